"""Settings of Latent-SFT's stages, and what a latent is (arXiv 2510.15522)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unspoken.reasoning.latents import Noise, Readout

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """What a latent is, and how it is taught. Fixed when a line of stages starts, and the same in all of them.

    Attributes:
        rate: tokens of the explicit chain that one latent stands for (r).
        top_k: entries of a superposition; null keeps the whole vocabulary.
        temperature: of the read-out.
        readout: "head" (the paper's formula) or "table" (the published code).
        latent: "superposition", or "hidden" for the ablation without the vocabulary step, ``Z_i = h_i``.
        induction_mask, supervision_mask: false replaces the mask by a plain causal one (the ablations).
        positions: of the decoder; "two_track" or "plain" (section 4.3).
        chunk_sees: what chunk text may see besides its latent and itself; "none" is the paper's.
    """

    rate: int = 2
    top_k: int | None = 10
    temperature: float = 1.0
    readout: Readout = "head"
    latent: Literal["superposition", "hidden"] = "superposition"
    induction_mask: bool = True
    supervision_mask: bool = True
    positions: Literal["two_track", "plain"] = "two_track"
    chunk_sees: Literal["none", "first_token", "prompt"] = "none"

    def __post_init__(self) -> None:
        if self.rate < 1:
            raise ValueError(f"rate is {self.rate}; a latent stands for at least 1 token")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or null for the whole vocabulary")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")


@dataclass(frozen=True, kw_only=True)
class Stage1:
    """Stage 1: make latents that the decoder can use (section 5).

    Attributes:
        train: which half learns.
        shape: what a latent is; given where a line of stages starts, inherited behind it.
        mean: over all supervised tokens of a batch alike (the published code), or over the tokens of a chunk, then
            over the chunks of a row, then over rows (the paper's formula); see open point 4.
        noise: on the latents while they are learned, as stage 2 puts it on their labels. Ours, off by default: a
            channel with noise makes the encoder choose superpositions that are far from each other, which stage 2 can
            tell apart.
        hint: weight of a second term: cross-entropy of what each latent must predict under its own superposition over
            the whole vocabulary. Ours, off by default: a pretrained model's head says something like it at once; from
            random weights it gives the encoder a code to start from.
    """

    kind: ClassVar[str] = "stage1"
    former_kind: ClassVar[str] = "compress"

    train: Literal["encoder", "decoder", "union"]
    shape: LatentShape | None = None
    mean: Literal["tokens", "chunks"] = "tokens"
    noise: Noise | None = None
    hint: float = 0.0

    def __post_init__(self) -> None:
        if self.hint < 0 or (self.hint and self.train == "decoder"):
            raise ValueError(
                f"hint is {self.hint} where train is {self.train!r}; it is not negative, and only an encoder that "
                "learns can take one"
            )
        if (self.train == "encoder") != (self.shape is not None):
            raise ValueError("give shape where train is 'encoder', and nowhere else: later stages inherit it")

    def with_places(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What a batch needs before it leaves the host, see `unspoken.methods.latent_sft.objective.stage1_places`."""
        from unspoken.methods.latent_sft.objective import stage1_places

        return stage1_places(self, batch)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model's forward takes out of a batch."""
        return {"decoder": batch["decoder"], "encoder": batch["encoder"], "noise": self.noise}

    def __call__(self, outputs: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of a batch, see `unspoken.methods.latent_sft.objective.stage1_loss`."""
        from unspoken.methods.latent_sft.objective import stage1_loss

        return stage1_loss(self, outputs, batch)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Between the stages: write the label of every latent of the first ``rows`` training problems (section 6)."""

    kind: ClassVar[str] = "labels"

    rows: int = 4096

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Stage2:
    """Stage 2: say the latents oneself, and know when to stop (section 7).

    Attributes:
        ce_weight, kl_weight: of the two losses.
        noise: on the labels; null for none (the first version).
    """

    kind: ClassVar[str] = "stage2"
    former_kind: ClassVar[str] = "autonomy"

    ce_weight: float = 1.0
    kl_weight: float = 1.0
    noise: Noise | None = field(default_factory=Noise)

    def with_places(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What a batch needs before it leaves the host, see `unspoken.methods.latent_sft.objective.stage2_places`."""
        from unspoken.methods.latent_sft.objective import stage2_places

        return stage2_places(batch)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model's forward takes out of a batch."""
        return {"decoder": batch["decoder"], "weights": batch["weights"], "ids": batch["ids"]}

    def __call__(self, outputs: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of a batch, see `unspoken.methods.latent_sft.objective.stage2_loss`."""
        from unspoken.methods.latent_sft.objective import stage2_loss

        return stage2_loss(self, outputs, batch)
