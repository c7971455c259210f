"""Parts of a recipe: shapes of models, and how weights move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from unspoken.architecture import check_architecture

if TYPE_CHECKING:
    from unspoken.backbone import UnspokenConfig


@dataclass(frozen=True, kw_only=True)
class StackShape:
    """Blocks of the Reasoner, or of a Talker (then ``layers`` counts its decoder blocks).

    ``unit_embeddings``: table rows enter the first block normalised, on the scale of looped latents
    (docs/methods/jepa_reasoner.md, open point 8). ``initializer_range``: standard deviation of fresh weights.
    """

    hidden_size: int
    attention_size: int
    intermediate_size: int
    layers: int
    heads: int
    unit_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        check_architecture(
            vocab_size=1,
            hidden_size=self.hidden_size,
            attention_size=self.attention_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            initializer_range=self.initializer_range,
        )

    def config(self, *, vocab_size: int, positions: int, **others: Any) -> UnspokenConfig:
        """The transformers config of this shape."""
        from unspoken.backbone import UnspokenConfig

        try:
            return UnspokenConfig(
                vocab_size=vocab_size,
                hidden_size=self.hidden_size,
                attention_size=self.attention_size,
                intermediate_size=self.intermediate_size,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                unit_embeddings=self.unit_embeddings,
                initializer_range=self.initializer_range,
                max_position_embeddings=positions,
                **others,
            )
        except Exception as error:
            # transformers wraps our message in two lines of its own.
            raise ValueError(str(error.__cause__ or error).strip().splitlines()[-1].strip()) from None


@dataclass(frozen=True, kw_only=True)
class TalkerShape:
    """The Talker. Its width is the Reasoner's latent width."""

    variant: Literal["mono", "dual"] = "mono"  # ``"mono"`` or ``"dual"``
    causal: bool = True  # mask of the Mono-Talker; the Dual-Talker's decoder is always causal
    attention_size: int
    intermediate_size: int
    layers: int
    heads: int
    encoder_layers: int | None = None  # blocks of the Dual-Talker's encoder; 1 if null

    def __post_init__(self) -> None:
        if self.encoder_layers is not None and self.encoder_layers < 1:
            raise ValueError(f"encoder_layers is {self.encoder_layers}; it must be at least 1")
        if self.variant == "mono" and self.encoder_layers is not None:
            raise ValueError("encoder_layers is set, but a mono Talker has no encoder")
        if self.variant == "dual" and not self.causal:
            raise ValueError("causal is false, but the decoder of a dual Talker is always causal")

    def stack(self, *, hidden_size: int) -> StackShape:
        """Its blocks over latents of a width.

        Raises:
            ValueError: they cannot be built.
        """
        return StackShape(
            hidden_size=hidden_size,
            attention_size=self.attention_size,
            intermediate_size=self.intermediate_size,
            layers=self.layers,
            heads=self.heads,
        )


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Optimiser and learning-rate schedule of a stage."""

    # ``"muon"`` (Muon on the matrices of the blocks, AdamW on table, head and gains) or ``"adamw"`` on all.
    name: Literal["muon", "adamw"] = "muon"
    lr: float = 0.02  # peak learning rate of the matrices
    lr_rest: float | None = 0.003  # peak learning rate of everything else; the same as ``lr`` if null
    weight_decay: float = 0.0  # of the matrices; table and gains have none
    betas: tuple[float, ...] = (0.9, 0.95)  # of AdamW
    warmup_steps: int = 20
    # ``"linear"``, or ``"logarithmic"``: log(step) / log(warmup_steps) of the peak, the default of DeepSpeed.
    warmup: Literal["linear", "logarithmic"] = "linear"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # decay to zero after the warm-up, or none
    clip: float = 1.0  # largest norm of the gradient

    def __post_init__(self) -> None:
        if self.lr <= 0 or (self.lr_rest is not None and self.lr_rest <= 0):
            raise ValueError("learning rates must be positive")
        if self.name == "adamw" and self.lr > 0.01:
            raise ValueError(f"lr is {self.lr}, a rate for Muon; AdamW needs about 0.001 or less: set lr and lr_rest")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)}; it must be two numbers in [0, 1)")
        if self.weight_decay < 0 or self.warmup_steps < 0 or self.clip <= 0:
            raise ValueError("weight_decay and warmup_steps cannot be negative, and clip must be positive")


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters on every linear layer of what a stage trains, merged when the stage ends.

    An SST stage also trains the table, in full.
    """

    rank: int = 64  # of the adapters
    # Their scale is alpha / rank; null is twice the rank, as Latent-SFT publishes. CODI and CoLaR have 32 for rank 128.
    alpha: float | None = None
    dropout: float = 0.1  # before those of linear layers
    # Also on the input table of Latent-SFT's encoder, as in the published code, and thereby on the row of its extra
    # token; false trains that row alone, in full.
    table: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"rank is {self.rank} and dropout {self.dropout}; they must be at least 1 and in [0, 1)")
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f"alpha is {self.alpha}; it must be above 0, or null for twice the rank")
