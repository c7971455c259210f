"""CODI: an explicit chain distilled into continuous thoughts of the same model (Shen et al., arXiv 2502.21074)."""
