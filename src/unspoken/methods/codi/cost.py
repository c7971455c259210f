"""What a training row of CODI takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unspoken.methods.cost import FULL, Lengths, RowCost, Scores, StackPass
from unspoken.reasoning.flops import multiplied

if TYPE_CHECKING:
    from unspoken.methods.codi.stages import Codi


@dataclass(frozen=True, kw_only=True)
class ProjectionPass(StackPass):
    """Latents of one row that are projected: two products and no attention."""

    def flops(self, *, again: bool) -> float:
        """Forward, and backward for inputs and weights."""
        return 3 * 2 * self.positions * multiplied(self.stack)

    def saved_bytes(self, width: int, *, eager: bool, checkpointing: bool) -> float:
        """Inputs of both products and of the norm, and what comes before the activation."""
        outer, inner = self.stack[1].in_features, self.stack[1].out_features
        return self.positions * (width * (outer + 2 * inner) + FULL * outer)


def row_cost(objective: Codi, model: Any, lengths: Lengths) -> RowCost:
    """The student's text and latents, and the teacher's text once or twice, go through the blocks."""
    stack, head = model.decoder.base_model, model.decoder.get_output_embeddings().weight
    text = lengths.end + lengths.answer
    chain = lengths.chain * (1.0 if objective.last_step else max(0.0, 1 - 1 / max(lengths.steps, 1.0)))
    student, teacher = lengths.prompt + objective.latents + text, lengths.prompt + chain + text
    passes = [StackPass(stack=stack, positions=student), StackPass(stack=stack, positions=teacher)]
    if objective.separate_teacher:
        passes.append(StackPass(stack=stack, positions=teacher, graded=False))
    if model.projection is not None:
        passes.append(ProjectionPass(stack=model.projection, positions=objective.latents))
    # The last latent is read with the text; without latents the prompt is.
    made = text + (1 if objective.latents else lengths.prompt)
    return RowCost(
        tokens=student + teacher,
        passes=tuple(passes),
        scores=(
            Scores(head=head, made=made, supervised=lengths.answer),
            Scores(head=head, made=teacher, supervised=chain + text),
        ),
    )
