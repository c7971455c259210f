"""Coconut: the last hidden state is the next input, learned by replacing explicit steps one by one (2412.06769).

A finished stage is a plain causal language model: `unspoken.reasoning.causal_lm.CausalLMReasoner` writes its chain of a
fixed number of hidden states with ``feed="hidden"`` and ``fixed=True``.
"""
