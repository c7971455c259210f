"""Does a token of the answer reach the chain? Every seed of the Talker is changed, and the chain must stay as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unspoken.draw.formats import count, percent, steps
from unspoken.draw.section import Paragraph, Section
from unspoken.evaluation.results import Results, label
from unspoken.probes.probe import Probe, System, Task, View
from unspoken.tasks.tree_search import searches_trees

_PROBLEMS, _DRAWS, _TEMPERATURE = 200, 5, 20.0


class ResampledAnswersProbe(Probe):
    """The answer may change, the chain must stay the same to the last bit; of the first seed."""

    key = "resampled_answers"

    def applies(self, system: System, task: Task) -> bool:
        """Tree search with a Talker; of other tasks wrong tokens are forced, which asks the same."""
        return searches_trees(task) and system.has_talker

    def measure(self, view: View) -> dict[str, Any] | None:
        """How many answers changed, and whether no chain did."""
        if not view.first_seed:
            return None
        import torch

        from unspoken.reasoning.picking import Sampler

        problems = view.first(_PROBLEMS).problems
        prompts = view.task.prompts(problems, view.prompt_format)
        samplers = [Sampler(_TEMPERATURE, torch.Generator().manual_seed(seed)) for seed in range(_DRAWS)]
        first, *others = [view.system.respond(*prompts, sample=sampler) for sampler in samplers]
        changed = [(first.tokens != other.tokens).any(dim=1).double().mean() for other in others]
        return {
            "talker_seeds": _DRAWS,
            "temperature": _TEMPERATURE,
            "problems": len(problems),
            "answers_changed": float(torch.stack(changed).mean()),
            "latents_identical": all(torch.equal(first.chain.latents, other.chain.latents) for other in others),
        }

    def over_seeds(self, seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return seeds[0]

    def draw(self, summary: Any, results: Results) -> Section | None:
        more = (
            "Containment holds by construction: no token of the answer enters the Reasoner. It limits what a wrong token "
            "can do, not what a wrong latent can do."
        )
        statements = [_statement("" if len(summary) == 1 else label(name), entry) for name, entry in summary.items()]
        return Section(self.key, "Does the answer affect the chain?", [*statements, Paragraph(more, "caption")])


def _statement(system: str, entry: Mapping[str, Any]) -> Paragraph:
    contained, outcome = entry["latents_identical"], "and every chain is identical, bit for bit."
    if not contained:
        outcome = "AND SO DID THE CHAINS: a token of the answer reached the Reasoner, which must not happen."
    text = (
        f"{f'{system}, ' if system else ''}{count(entry['talker_seeds'], 'seed')} of the Talker at temperature "
        f"{steps(entry['temperature'])}, {count(entry['problems'], 'problem')}: "
        f"{percent(entry['answers_changed'], 1)} of the answers changed, {outcome}"
    )
    return Paragraph(text, "statement" if contained else "statement alarm", label="containment")
