"""JEPA-Reasoner (arXiv 2512.19171): a Reasoner that writes unit-norm latents, and a Talker that says them."""

from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.objective import collapsed, effective_rank
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.settings.jepa_reasoner import SST, TalkerLoss

__all__ = [
    "SST",
    "JepaReasonerConfig",
    "JepaReasonerForCausalLM",
    "JepaReasonerModel",
    "TalkerLoss",
    "collapsed",
    "effective_rank",
]
