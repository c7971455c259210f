"""Models that write a fixed number of latents before they answer, around any causal language model.

Axes: B batch, P prompt tokens, M tokens after the latents, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from unspoken.backbone.around import AroundDecoder, from_config
from unspoken.backbone.checks import Needs, require
from unspoken.backbone.vocabulary import scores
from unspoken.chain import LatentChain
from unspoken.methods.configuration import LatentConfig
from unspoken.methods.method import Context
from unspoken.methods.self_distillation import ANSWERING
from unspoken.reasoning.engine import LatentStep, StopRule
from unspoken.reasoning.flops import multiplied
from unspoken.reasoning.speakers import SameStack, ends_and_pad
from unspoken.reasoning.superposition import readout_of
from unspoken.reasoning.system import System


@dataclass
class LatentAnswerOutput(ModelOutput):
    """``sequences`` ``[B, P + M]`` (prompt, markers and answer) and the chain that the answer was made from."""

    sequences: Tensor | None = None
    chain: LatentChain | None = None


class LatentModel(AroundDecoder, GenerationMixin):
    """A causal language model, its ``decoder``, that feeds back hidden states as they are before it answers.

    Attributes:
        title: of the method, for messages.
    """

    title: ClassVar[str]
    config: LatentConfig

    def __init__(self, config: LatentConfig) -> None:
        super().__init__(config)
        how: Any = {"attn_implementation": config._attn_implementation}
        self.decoder: PreTrainedModel = from_config(AutoModelForCausalLM, self._inner_config, **how)
        self.projection: nn.Sequential | None = None

    def get_output_embeddings(self) -> nn.Module:
        """The head of the decoder."""
        head: nn.Module = self.decoder.get_output_embeddings()
        return head

    def start_from(self, base: PreTrainedModel) -> None:
        """Copy the weights of a causal language model of the same shape."""
        self.decoder.load_state_dict(base.state_dict())

    @classmethod
    def around(cls, base: PreTrainedModel, context: Context, **settings: Any) -> LatentModel:
        """The model of a stage that begins with a causal language model, whose folder records how it reasons.

        Args:
            settings: of the configuration, besides what the context knows.
        """
        common: dict[str, Any] = {
            "base_config": base.config,
            "open_ids": list(context.markers.open),
            "end_ids": list(context.markers.end),
            "eos_token_id": context.tokenizer.eos_token_id,
            "pad_token_id": context.tokenizer.pad_token_id,
        }
        model: LatentModel = cls._from_config(
            cls.config_class(**common | settings), attn_implementation=context.attention
        )
        model.start_from(base)
        context.name_ends(model)
        return model

    def latent(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """What a hidden state is fed back as."""
        return hidden

    def reasoner(self) -> LatentReasoner:
        """How it writes its chain.

        Raises:
            ValueError: the latents would be wrong around the decoder.
        """
        return LatentReasoner(model=self)

    def system(self, *, name: str, max_tokens: int) -> System:
        """How it answers.

        Raises:
            ValueError: as `reasoner`, or nothing is named that could end an answer.
        """
        config, projection = self.config, self.projection
        ends, pad = ends_and_pad(self.generation_config)
        return System(
            name=name,
            model=self,
            reasoner=self.reasoner(),
            speaker=SameStack(marker=tuple(config.end_ids or ()), end_ids=ends, pad_id=pad),
            opening=tuple(config.open_ids or ()),
            stop=StopRule(max_latents=config.latents, fixed=True),
            max_tokens=max_tokens,
            chain_kind="hidden" if projection is None else "latent",
            table_size=self.decoder.get_output_embeddings().weight.numel(),
            scorings=0,
            step_flops=0 if projection is None else 2 * multiplied(projection),
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "B P"],
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int = 16,
        return_chain: bool = False,
    ) -> Tensor | LatentAnswerOutput:
        """Write the latents, then the most likely answer.

        Args:
            input_ids, attention_mask: prompts without the open marker, padded on the left.
            max_new_tokens: cap of the answer.
            return_chain: also return the chain.

        Returns:
            ``[B, P + M]``, prompt, both markers and answer, padded after its end; or `LatentAnswerOutput`.

        Raises:
            ValueError: as `unspoken.reasoning.system.System.respond`.
        """
        mine = self.system(name=self.config.model_type, max_tokens=max_new_tokens)
        answer = mine.respond(input_ids, attention_mask)
        markers = torch.tensor([*mine.opening, *mine.speaker.marker], device=input_ids.device)
        tokens = answer.filled(ends_and_pad(self.generation_config)[1])
        sequences = torch.cat([input_ids, markers.expand(len(input_ids), -1), tokens], dim=1)
        return LatentAnswerOutput(sequences=sequences, chain=answer.chain) if return_chain else sequences


@dataclass(frozen=True, kw_only=True)
class LatentReasoner:
    """Feeds back what the model makes of hidden states. It names no end: chains have a fixed number of steps.

    Raises:
        ValueError: the latents would be wrong around the model's decoder.
    """

    model: LatentModel

    def __post_init__(self) -> None:
        require(self.model.decoder, Needs(method=self.model.title, properties=ANSWERING))

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
        """What the hidden state is fed back as."""
        latent = self.model.latent(hidden)
        never = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        return LatentStep(latent=latent, next_input=latent, done=never)
