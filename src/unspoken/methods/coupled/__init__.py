"""The coupled Transformer: it reasons in the tokens it speaks."""

from unspoken.methods.coupled.objective import supervised_places
from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.methods.settings.coupled import NextToken

__all__ = ["CoupledReasoner", "NextToken", "supervised_places"]
