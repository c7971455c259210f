"""The coupled Transformer: it reasons in the tokens it speaks."""

from unspoken.methods.coupled.objective import NextToken, judged_places
from unspoken.methods.coupled.reasoner import CoupledReasoner

__all__ = ["CoupledReasoner", "NextToken", "judged_places"]
