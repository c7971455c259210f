"""What teacher and student read and minimise (CODI, Shen et al., arXiv 2502.21074; code zhenyi4/codi at 4fd88d4).

Axes: B batch, L states of one position, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unspoken import distributed
from unspoken.methods.latent_pass import blocks_of, text_loss, with_text_places
from unspoken.methods.rows import explicit_rows
from unspoken.methods.self_distillation import SelfDistillation
from unspoken.methods.self_distilled import SelfDistilledOutput
from unspoken.places import at
from unspoken.tasks.spans import Markers, Spans


def before_value(answer: Sequence[int], box: Sequence[int]) -> int:
    """Number of tokens of an answer before its value, sign included.

    Args:
        answer: token ids.
        box: ids of the text before a value. Where a tokenizer merges the end of that text with the value, the merged
            token belongs to the value; so does the first token of an answer that does not begin with the text.
    """
    same = [one == other for one, other in zip(answer, box, strict=False)]
    return same.index(False) if False in same else len(same)


def teacher_spans(spans: Spans, *, last_step: bool) -> Spans:
    """What the teacher reads; the last step of a chain contains the answer and is left out by default."""
    return spans if last_step else replace(spans, steps=spans.steps[:-1], merged=None)


def batch_of(
    spans: Sequence[Spans], markers: Markers, box: Sequence[int], *, latents: int, last_step: bool, pad_id: int
) -> dict[str, Any]:
    """The sequences of student and teacher for the same problems.

    The student reads ``prompt | open | latents | end | answer``, the teacher ``prompt | open | chain | end | answer``.

    Returns:
        The student's blocks, see `unspoken.methods.latent_pass.blocks_of`; ``teacher``, rows; ``distilled_at`` and
        ``teacher_at`` ``[B]``, columns of the text and of the teacher's rows at which the next token is the first of
        the value.

    Raises:
        ValueError: an empty batch.
    """
    teachers = [teacher_spans(row, last_step=last_step) for row in spans]
    student = blocks_of([(row.prompt + markers.open, latents, markers.end, row.answer) for row in spans], pad_id)
    distilled_at = torch.tensor([len(markers.end) + before_value(row.answer, box) - 1 for row in spans])
    read = [len(row.prompt) + len(markers.open) + len(row.chain) for row in teachers]
    return {
        **student,
        "distilled_at": distilled_at,
        "teacher": explicit_rows(teachers, markers, pad_id=pad_id),
        "teacher_at": distilled_at + torch.tensor(read),
    }


def with_places(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that is still on the host, with the places of its supervised outputs and their targets."""
    teacher = batch["teacher"]
    return {**with_text_places(batch), "teacher_targets": at(teacher.ids, teacher.targets_at)}


def distances(
    student_LBD: Float[Tensor, "L B D"], teacher_LBD: Float[Tensor, "L B D"], *, divide_by_std: bool
) -> Float[Tensor, " L"]:
    """Smooth L1 distance of the student's states from the teacher's, a layer each; no gradient reaches the teacher.

    Args:
        divide_by_std: by the standard deviation of the teacher's states of the layer, over batch and width together.
    """
    student_LBD, teacher_LBD = student_LBD.float(), teacher_LBD.detach().float()
    distance_L = F.smooth_l1_loss(student_LBD, teacher_LBD, reduction="none").mean(dim=(1, 2))
    return distance_L / _std(teacher_LBD) if divide_by_std else distance_L


def _std(values_LBD: Float[Tensor, "L B D"]) -> Float[Tensor, " L"]:
    """Unbiased, over the batches of all ranks."""
    count = distributed.all_reduce_sum(torch.tensor(values_LBD[0].numel(), device=values_LBD.device))
    mean_L = distributed.all_reduce_sum(values_LBD.sum(dim=(1, 2))) / count
    squares_L = distributed.all_reduce_sum((values_LBD - mean_L[:, None, None]).square().sum(dim=(1, 2)))
    return (squares_L / (count - 1)).sqrt()


def distillation_loss(
    objective: SelfDistillation, outputs: SelfDistilledOutput, batch: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the student's answer and of the teacher's text, in nats per token, and distance of states."""
    assert outputs.logits is not None and outputs.teacher_logits is not None
    assert outputs.states is not None and outputs.teacher_states is not None
    if "places" not in batch:
        batch = with_places(batch)
    mean, rows, first = distributed.rank_weighted_mean, len(batch["text_ids"]), objective.first_state
    teacher_targets = batch["teacher_targets"]
    student = text_loss(outputs.logits, batch)
    teacher = mean(F.cross_entropy(outputs.teacher_logits.float(), teacher_targets), len(teacher_targets), "teacher")
    own_L = distances(outputs.states[first:], outputs.teacher_states[first:], divide_by_std=objective.divide_by_std)
    layers_L = mean(own_L, rows, "rows")
    distance = layers_L.mean()
    terms = {"student_loss": student, "teacher_loss": teacher, "distance": distance}
    terms |= {f"distance_{layer}": value for layer, value in enumerate(layers_L, start=first)}
    if outputs.residual is not None:
        terms["residual"] = mean(outputs.residual, rows, "rows")
    loss = student + objective.teacher_weight * teacher + objective.distance_weight * distance
    return loss, {name: value.detach() for name, value in terms.items()}
