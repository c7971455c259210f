"""CoLaR: groups of chain tokens compressed into one latent, at any rate (Tan et al., arXiv 2505.16552), supervised."""
