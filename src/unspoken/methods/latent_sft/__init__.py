"""Latent-SFT: latents that are superpositions over the vocabulary, learned from explicit chains (arXiv 2510.15522)."""
