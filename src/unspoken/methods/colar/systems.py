"""CoLaR as it answers: latents drawn or taken at their mean, until the head says the end marker, then the answer."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.backbone.checks import Needs, require
from unspoken.backbone.vocabulary import scores
from unspoken.methods.colar.model import ColarForCausalLM
from unspoken.methods.colar.stages import ANSWERING
from unspoken.reasoning.engine import LatentStep, StopRule
from unspoken.reasoning.flops import multiplied
from unspoken.reasoning.speakers import SameStack, ends_and_pad
from unspoken.reasoning.superposition import readout_of
from unspoken.reasoning.system import System


@dataclass(frozen=True, kw_only=True)
class ColarReasoner:
    """Feeds back the mean of the latent head; a row is done where the likeliest token is the first of the end marker.

    Raises:
        ValueError: the latents would be wrong around the model's decoder.
    """

    model: ColarForCausalLM

    def __post_init__(self) -> None:
        require(self.model.decoder, Needs(method="CoLaR", properties=ANSWERING))

    @property
    def stack(self) -> PreTrainedModel:
        """The decoder without its head."""
        stack: PreTrainedModel = self.model.decoder.base_model
        return stack

    def embed_prompt(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Rows of the input table."""
        embedded: Tensor = self.model.get_input_embeddings()(input_ids)
        return embedded

    def logits(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        """Scores of the next token."""
        return scores(hidden, readout_of(self.model.decoder, "head")).float()

    def step(self, hidden: Float[Tensor, "B D"]) -> LatentStep:
        """The mean of the next group."""
        mean, _ = self.model.head(hidden)
        latent = (mean * self.model.scale).to(hidden.dtype)
        done = self.logits(hidden).argmax(dim=-1) == (self.model.config.end_ids or [])[0]
        return LatentStep(latent=latent, next_input=latent, done=done, recorded=~done)


def system(model: ColarForCausalLM, *, name: str, max_tokens: int, compression: int | None = None) -> System:
    """A model at one speed.

    Args:
        compression: tokens that a latent stands for; as the folder records it by default.

    Raises:
        ValueError: the model was not trained at this speed, the latents would be wrong around its decoder, or nothing
            is named that could end an answer.
    """
    config, speeds = model.config, model.config.speed_ids or []
    speed = config.compression if compression is None else compression
    if not 1 <= speed <= len(speeds):
        raise ValueError(f"compression is {speed}, but {name} was trained with 1 to {len(speeds)}")
    ends, pad = ends_and_pad(model.generation_config)
    named = tuple(speeds[speed - 1])
    return System(
        name=name,
        model=model,
        reasoner=ColarReasoner(model=model),
        speaker=SameStack(marker=tuple(config.end_ids or ()), end_ids=ends, pad_id=pad),
        opening=(*named, *(config.open_ids or ())),
        prefilled=len(named) + len(config.open_ids or ()),
        # The end marker always follows a latent.
        stop=StopRule(max_latents=config.max_latents, min_latents=min(1, config.max_latents)),
        max_tokens=max_tokens,
        chain_kind="latent",
        table_size=model.decoder.get_output_embeddings().weight.numel(),
        step_flops=2 * multiplied(model.head),
    )


def systems(model: PreTrainedModel, *, stage: str, max_answer: int) -> list[System]:
    """The system of a stage in training or finished; nothing if the model is another method's."""
    return [system(model, name=stage, max_tokens=max_answer)] if isinstance(model, ColarForCausalLM) else []
