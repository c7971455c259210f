"""The models of self-distillation: teacher and student are one causal language model that writes latents.

Axes: B batch, P prompt tokens, N latents, M tokens after the latents, L blocks, D width, V vocabulary, S supervised
tokens of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from unspoken.backbone.around import AroundDecoder
from unspoken.backbone.checks import Needs, require
from unspoken.backbone.vocabulary import scores
from unspoken.chain import LatentChain
from unspoken.methods.configuration import SelfDistilledConfig
from unspoken.methods.rows import Rows
from unspoken.methods.self_distillation import ANSWERING, Projection
from unspoken.places import at
from unspoken.reasoning.engine import LatentStep, StopRule
from unspoken.reasoning.flops import multiplied
from unspoken.reasoning.speakers import SameStack, ends_and_pad
from unspoken.reasoning.superposition import readout_of
from unspoken.reasoning.system import System


@dataclass
class SelfDistilledOutput(ModelOutput):
    """Outputs of both passes.

    Attributes:
        logits: ``[B, M, V]``, the student's scores of the token after each token of its text.
        latents: ``[B, N, D]``.
        states: ``[L + 1, B, D]``, the student's hidden states at the distilled position: the input of the first block,
            then the output of each.
        teacher_logits: ``[S, V]``, the teacher's scores of its supervised tokens, row by row.
        teacher_states: ``[L + 1, B, D]``, without gradient.
        residual: how far latents are from those of the pass before, relative to their norm, where they are refined.
    """

    logits: Tensor | None = None
    latents: Tensor | None = None
    states: Tensor | None = None
    teacher_logits: Tensor | None = None
    teacher_states: Tensor | None = None
    residual: Tensor | None = None


@dataclass
class LatentAnswerOutput(ModelOutput):
    """``sequences`` ``[B, P + M]`` (prompt, markers and answer) and the chain that the answer was made from."""

    sequences: Tensor | None = None
    chain: LatentChain | None = None


def projection_of(shape: Projection, width: int) -> nn.Sequential:
    """``LN(W_2 gelu(W_1 dropout(h)))``, from hidden states to inputs of one width."""
    inner = shape.width or width
    layers = [nn.Dropout(shape.dropout), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)]
    return nn.Sequential(*layers, *([nn.LayerNorm(width)] if shape.norm else []))


class SelfDistilledModel(AroundDecoder, GenerationMixin):
    """A causal language model that writes a fixed number of projected hidden states before it answers."""

    config: SelfDistilledConfig

    def __init__(self, config: SelfDistilledConfig) -> None:
        super().__init__(config)
        how: Any = {"attn_implementation": config._attn_implementation}
        self.decoder: PreTrainedModel = AutoModelForCausalLM.from_config(self._inner_config, **how)
        table: Any = self.decoder.get_input_embeddings()
        shape = config.latent_projection
        self.projection = None if shape is None else projection_of(shape, table.weight.shape[1])
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head of the decoder."""
        head: nn.Module = self.decoder.get_output_embeddings()
        return head

    def start_from(self, base: PreTrainedModel) -> None:
        """Copy the weights of a causal language model of the same shape."""
        self.decoder.load_state_dict(base.state_dict(), strict=True)

    def student(
        self, input_ids: Tensor, attention_mask: Tensor, latent_mask: Tensor, text_ids: Tensor, text_mask: Tensor
    ) -> tuple[Any, Tensor, Tensor | None]:
        """The training pass of the student, over the blocks of `unspoken.methods.latent_pass.blocks_of`.

        Returns:
            Outputs of the last pass with hidden states, the text being its last M positions; latents ``[B, N, D]``; and
            the residual of `SelfDistilledOutput`.
        """
        raise NotImplementedError

    def system(self, *, name: str, max_tokens: int) -> System:
        """How it answers.

        Raises:
            ValueError: the latents would be wrong around the decoder, or nothing is named that could end an answer.
        """
        raise NotImplementedError

    def latent(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """What a hidden state is fed back as."""
        return hidden if self.projection is None else self.projection(hidden)

    def forward(
        self,
        input_ids: Int[Tensor, "B P"],
        attention_mask: Int[Tensor, "B P"],
        latent_mask: Bool[Tensor, "B N"],
        text_ids: Int[Tensor, "B M"],
        text_mask: Int[Tensor, "B M"],
        distilled_at: Int[Tensor, " B"],
        teacher: Rows,
        teacher_at: Int[Tensor, " B"],
        separate_teacher: bool = False,
        **how: Any,
    ) -> SelfDistilledOutput:
        """The student writes its latents and reads its answer; the teacher reads chain and answer.

        Args:
            input_ids, attention_mask: prompts, padded on the left so that all rows write latents at the same time.
            latent_mask: true everywhere; its width is the number of latents.
            text_ids, text_mask: end marker and answer, padded on the right.
            distilled_at: column of the text whose hidden states are compared.
            teacher: rows of `rows.explicit_rows`.
            teacher_at: column of those rows that is compared.
            separate_teacher: the compared states come from a pass of their own, with a dropout mask of its own.
            how: further arguments of `student`.
        """
        student, latents, residual = self.student(input_ids, attention_mask, latent_mask, text_ids, text_mask, **how)
        before = student.logits.shape[1] - text_ids.shape[1]
        explicit = self.decoder(input_ids=teacher.ids, use_cache=False, output_hidden_states=True)
        teacher_states = explicit.hidden_states
        if separate_teacher:
            with torch.no_grad():
                stack = self.decoder.base_model
                teacher_states = stack(teacher.ids, use_cache=False, output_hidden_states=True).hidden_states
        return SelfDistilledOutput(
            logits=student.logits[:, before:],
            latents=latents,
            states=_states_at(student.hidden_states, distilled_at + before),
            # Every row begins with its prompt, so each supervised token has an output before it.
            teacher_logits=at(explicit.logits, teacher.targets_at - 1),
            teacher_states=_states_at(teacher_states, teacher_at).detach(),
            residual=residual,
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


def _states_at(states_LBTD: tuple[Tensor, ...], column_B: Int[Tensor, " B"]) -> Float[Tensor, "L B D"]:
    """Hidden states of one position of each row."""
    row_B = torch.arange(len(column_B), device=column_B.device)
    return torch.stack([states_BTD[row_B, column_B] for states_BTD in states_LBTD])


@dataclass(frozen=True, kw_only=True)
class SelfDistilledReasoner:
    """Feeds back hidden states, projected. It names no end of its own: chains have a fixed number of steps.

    Attributes:
        title: of the method, for messages.

    Raises:
        ValueError: the latents would be wrong around the model's decoder.
    """

    title: ClassVar[str]

    model: SelfDistilledModel

    def __post_init__(self) -> None:
        require(self.model.decoder, Needs(method=self.title, properties=ANSWERING))

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
        """Project."""
        latent = self.model.latent(hidden)
        never = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        return LatentStep(latent=latent, next_input=latent, done=never)

    def system(self, *, name: str, max_tokens: int) -> System:
        """The student path of the model.

        Raises:
            ValueError: nothing is named that could end an answer.
        """
        model, config = self.model, self.model.config
        ends, pad = ends_and_pad(model.generation_config)
        return System(
            name=name,
            model=model,
            reasoner=self,
            speaker=SameStack(marker=tuple(config.end_ids or ()), end_ids=ends, pad_id=pad),
            opening=tuple(config.open_ids or ()),
            stop=StopRule(max_latents=config.latents, fixed=True),
            max_tokens=max_tokens,
            chain_kind="hidden" if model.projection is None else "latent",
            table_size=model.decoder.get_output_embeddings().weight.numel(),
            scorings=0,
            step_flops=0 if model.projection is None else 2 * multiplied(model.projection),
        )
