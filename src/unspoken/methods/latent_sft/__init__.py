"""Latent-SFT: latents that are superpositions over the vocabulary, learned from explicit chains (arXiv 2510.15522)."""

from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.label_store import LabelIdentity, LabelStore, LabelWriter
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.settings.latent_sft import Labels, LatentShape, Stage1, Stage2

__all__ = [
    "LabelIdentity",
    "LabelStore",
    "LabelWriter",
    "Labels",
    "LatentSFTConfig",
    "LatentSFTModel",
    "LatentShape",
    "Stage1",
    "Stage2",
]
