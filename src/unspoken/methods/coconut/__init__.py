"""Coconut: the last hidden state is the next input, learned by replacing explicit steps one by one (2412.06769).

The room holds what is learned. A finished stage is a plain causal language model that thinks a fixed number of hidden
states, which `unspoken.methods.latent_sft.CausalLMReasoner` does with ``feed="hidden"`` and ``fixed=True``.
"""
