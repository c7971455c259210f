"""PCCoT: continuous thoughts that are guessed at once and refined together (Wu et al., arXiv 2506.18582)."""
