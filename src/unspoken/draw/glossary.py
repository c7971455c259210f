"""What the words at the heads of tables mean."""

from __future__ import annotations

GLOSSARY = {
    "Exact match": "Share of test problems whose whole answer is right.",
    "Latent steps": "Steps of the chain between prompt and answer; of an explicit chain, its tokens.",
    "Markers": "Tokens around the chain that are appended by force.",
    "Passes": "Forward passes that wait for one another: what an answer takes however many processors there are.",
    "MFLOPs": "Millions of floating-point operations of matrix products.",
    "FLOPs": "Floating-point operations of matrix products.",
    "Ended": "Share of chains that ended by themselves, not at the cap of their length.",
    "p": "How often chance alone would make a difference at least as large; below 0.05 it is significant.",
    "Real routes": "Share of answers that are routes of their tree to a leaf that may be meant.",
    "On the frontier": "No other system is more accurate for the same cost, or as accurate for less.",
    "Rank": "Share of the planes of all pairs of names that are nearer to a latent than that of the two siblings.",
    "Right larger": "Share of latents that hold more of the right child than of its sibling.",
    "Right child": "Its coefficient, where a latent is projected on the plane of both siblings.",
    "Other child": "The coefficient of the sibling, where a latent is projected on the plane of both.",
    "MMD": "Maximum mean discrepancy: distance of two distributions by the means of a Gaussian kernel.",
    "Fréchet": "Squared distance of two fitted Gaussians.",
}
