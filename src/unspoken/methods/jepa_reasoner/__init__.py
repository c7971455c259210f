"""JEPA-Reasoner (arXiv 2512.19171): a Reasoner that writes unit-norm latents, and a Talker that decodes them."""
