"""MUX: a latent holds a span of the chain as one distribution, position-coded (arXiv 2607.18264).

The authors' code was not read: what is here follows notes on the paper. Ours are the cut of chains that have fewer
tokens than latents, the head that gets no gradient, and the weight of the loss.
"""
