"""Questions about a system's chains and answers: one file each, which measures, sums up over seeds and draws."""
