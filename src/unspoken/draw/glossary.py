"""What the words at the heads of tables mean."""

from __future__ import annotations

GLOSSARY = {
    "Exact match": "Fraction of test problems whose whole answer is right.",
    "Latent steps": "Steps of the chain between prompt and answer; of an explicit chain, its tokens.",
    "Markers": "Tokens around the chain that are appended by force.",
    "Passes": "Forward passes that wait for one another: what an answer takes however many processors there are.",
    "MFLOPs": "Millions of floating-point operations of matrix products.",
    "FLOPs": "Floating-point operations of matrix products.",
    "Ended": "Fraction of chains that ended by themselves, not at the cap of their length.",
    "p": "How often chance alone would make a difference at least as large; below 0.05 it is significant.",
    "Valid routes": "Fraction of answers that lead from the root to a possible target leaf.",
    "On the frontier": "No other system is more accurate for the same cost, or as accurate for less.",
    "Rank": "Fraction of the planes of all pairs of names that are nearer to a latent than that of the two siblings.",
    "Right larger": "Fraction of latents that hold more of the right child than of its sibling.",
    "Right child": "Its coefficient, where a latent is projected on the plane of both siblings.",
    "Other child": "The coefficient of the sibling, where a latent is projected on the plane of both.",
    "MMD": "Maximum mean discrepancy: distance of two distributions by the means of a Gaussian kernel.",
    "Fréchet": "Squared distance of two fitted Gaussians.",
}
