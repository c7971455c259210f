"""The models of self-distillation: teacher and student are one causal language model that writes latents.

Axes: B batch, P prompt tokens, N latents, M tokens after the latents, L blocks, D width, V vocabulary, S supervised
tokens of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from unspoken.methods.configuration import SelfDistilledConfig
from unspoken.methods.latent_model import LatentModel
from unspoken.methods.rows import Rows
from unspoken.methods.self_distillation import Projection
from unspoken.places import at


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


def projection_of(shape: Projection, width: int) -> nn.Sequential:
    """``LN(W_2 gelu(W_1 dropout(h)))``, from hidden states to inputs of one width."""
    inner = shape.width or width
    layers = [nn.Dropout(shape.dropout), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)]
    return nn.Sequential(*layers, *([nn.LayerNorm(width)] if shape.norm else []))


class SelfDistilledModel(LatentModel):
    """A causal language model that writes a fixed number of projected hidden states before it answers."""

    config: SelfDistilledConfig

    def __init__(self, config: SelfDistilledConfig) -> None:
        super().__init__(config)
        table: Any = self.decoder.get_input_embeddings()
        shape = config.latent_projection
        self.projection = None if shape is None else projection_of(shape, table.weight.shape[1])
        self.post_init()

    def student(
        self, input_ids: Tensor, attention_mask: Tensor, latent_mask: Tensor, text_ids: Tensor, text_mask: Tensor
    ) -> tuple[Any, Tensor, Tensor | None]:
        """The training pass of the student, over the blocks of `unspoken.methods.latent_pass.blocks_of`.

        Returns:
            Outputs of the last pass with hidden states, the text being its last M positions; latents ``[B, N, D]``; and
            the residual of `SelfDistilledOutput`.
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


def _states_at(states_LBTD: tuple[Tensor, ...], column_B: Int[Tensor, " B"]) -> Float[Tensor, "L B D"]:
    """Hidden states of one position of each row."""
    row_B = torch.arange(len(column_B), device=column_B.device)
    return torch.stack([states_BTD[row_B, column_B] for states_BTD in states_LBTD])
