"""Latent-SFT: latents that are superpositions over the vocabulary, learned from explicit chains (arXiv 2510.15522)."""

from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.label_store import LabelIdentity, LabelStore, LabelWriter
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.reasoner import LatentGenerateOutput, LatentReasoner, LatentSettings, latent_generate
from unspoken.methods.latent_sft.spelling import Spelling
from unspoken.methods.settings.latent_sft import Autonomy, Compress, Labels, LatentShape, Noise

__all__ = [
    "Autonomy",
    "Compress",
    "LabelIdentity",
    "LabelStore",
    "LabelWriter",
    "Labels",
    "LatentGenerateOutput",
    "LatentReasoner",
    "LatentSFTConfig",
    "LatentSFTModel",
    "LatentSettings",
    "LatentShape",
    "Noise",
    "Spelling",
    "latent_generate",
]
