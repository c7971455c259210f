"""Pause tokens (Goyal et al., arXiv 2310.02226) and filler tokens (Pfau et al., arXiv 2404.15758): one token, repeated.

The copies give the network more positions to compute in and no recurrent step: one pass reads them all. So they are the
control for every method with a fixed number of latents. A finished folder is a plain causal language model's.
"""
