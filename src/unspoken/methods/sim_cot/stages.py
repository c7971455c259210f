"""SIM-CoT's one stage (Wei et al., arXiv 2509.20317; details as in the published code, InternLM/SIM-CoT at f3ae967)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.carrier import AddedLoss, CarriedRow
from unspoken.methods.method import Batch, Context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from unspoken.methods.cost import Lengths, Scores, StackPass
    from unspoken.methods.sim_cot.model import SimCotModel


@dataclass(frozen=True, kw_only=True)
class SimCot(AddedLoss):
    """Cross-entropy of an auxiliary decoder that spells each step of the chain from the latents that stand for it.

    The decoder is a second language model, at first a copy of the first one; it sees the latents of its step and the
    tokens of that step before. The finished folder does not hold it.

    Attributes:
        pseudo_steps: latents for which a problem has no step spell its answer, as in the published code on Coconut;
            false leaves them alone, as on CODI.
    """

    kind: ClassVar[str] = "sim_cot"
    starts_from: ClassVar[tuple[str | None, ...]] = (*AddedLoss.starts_from, "sim_cot")

    pseudo_steps: bool = False

    def wrapped(self, carrier: Any) -> SimCotModel:
        from unspoken.methods.sim_cot.model import SimCotModel

        return SimCotModel(carrier, self.carrier.latents_per_explicit_step)

    def targets(self, rows: Sequence[CarriedRow], context: Context) -> Batch:
        """See `unspoken.methods.sim_cot.objective.step_targets`."""
        from unspoken.methods.sim_cot.objective import step_targets

        units = [row.latents // self.carrier.latents_per_explicit_step for row in rows]
        answers = [row.answer if self.pseudo_steps else () for row in rows]
        end_id, pad_id = context.tokenizer.eos_token_id, context.tokenizer.pad_token_id
        return step_targets([row.steps for row in rows], units, answers, end_id=end_id, pad_id=pad_id)

    @property
    def units(self) -> int:
        """Steps that the latents of a row can spell."""
        return self.carrier.latents // self.carrier.latents_per_explicit_step

    def added_counts(self, added: Batch) -> dict[str, int | Tensor]:
        from unspoken.methods.sim_cot.objective import tokens_of_steps

        return {"numbers": tokens_of_steps(added["step_numbers"], self.units)}

    def added_loss(self, outputs: Tensor, added: Batch) -> Tensor:
        """See `unspoken.methods.sim_cot.objective.spelling_loss`."""
        from unspoken.methods.sim_cot.objective import spelling_loss

        return spelling_loss(outputs, added, self.units)

    def added_cost(self, model: Any, lengths: Lengths) -> tuple[Sequence[StackPass], Sequence[Scores]]:
        """One short pass over each step."""
        from unspoken.methods.cost import Scores, StackPass

        size, decoder = self.carrier.latents_per_explicit_step, model.step_decoder
        steps = self.carrier.latents // size
        read = min(lengths.chain, lengths.chain / max(lengths.steps, 1.0) * steps)  # of the steps that latents replace
        one = StackPass(stack=decoder.base_model, positions=size + read / steps)
        made, head = read + steps, decoder.get_output_embeddings().weight
        return [one] * steps, [Scores(head=head, made=steps * size + read, supervised=made)]
