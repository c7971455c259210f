"""SIM-CoT: latents that an auxiliary decoder can spell as their explicit steps (Wei et al., arXiv 2509.20317)."""
