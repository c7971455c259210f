"""LOTUS: latents that are looped together and supervised as the tokens that they stand for (arXiv 2606.31779)."""
