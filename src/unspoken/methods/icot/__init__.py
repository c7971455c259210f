"""iCoT: an explicit chain that is removed token by token while training goes on (Deng et al., arXiv 2405.14838)."""
