"""Wrong tokens forced on whatever answers reasoning problems; see `unspoken.evaluation.forced_tokens`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unspoken.draw.formats import count, percent
from unspoken.draw.section import Section
from unspoken.draw.table import text
from unspoken.evaluation.results import Results, label
from unspoken.probes.effects import Kinds, effect_table, latents_cell, rate_of
from unspoken.probes.probe import Probe, System, Task, View

if TYPE_CHECKING:
    from unspoken.evaluation.forcing import Effect

_PROBLEMS = 200  # that are asked
_EFFECTS: Kinds = {
    ("Later tokens|changed", "later"): rate_of("later_changed"),
    ("Right answers|lost", "lost"): rate_of("answers_lost"),
    ("Latents|largest change", "latents"): latents_cell,
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One model: what its tokens are, and the effect at each rate."""

    output_kind: str
    effects: list[Effect]


class ForcedTokensProbe(Probe):
    """Later tokens that change, right answers that are lost and latents that move under forced wrong tokens."""

    key = "forced_tokens"

    def applies(self, system: System, task: Task) -> bool:
        """Where answers are texts and some token is the system's own choice."""
        return task.traits.has_chain and (system.explicit or system.speaker.samples)

    def measure(self, view: View) -> Reading | None:
        """None where the right answers do not have two different tokens."""
        from unspoken.evaluation.forced_tokens import answer_tokens, effects_of, forced_decoding

        some = view.first(_PROBLEMS)
        others = answer_tokens(some.problems, some.prompt_format)
        if len(others) < 2:
            return None
        decoding = forced_decoding(some.system, some.task, some.problems, some.prompt_format, some.batch_size)
        effects = effects_of(decoding, some.task, some.problems, some.prompt_format, others, some.seed)
        return Reading(output_kind=decoding.output_kind, effects=effects)

    def summarise(self, readings: Mapping[str, Sequence[Reading]], *, baseline: str | None) -> dict[str, Any]:
        """The effects on the models of several seeds, with 95 % intervals.

        Returns:
            ``problems``, ``rates`` and ``systems``: for each ``output_kind``, what its tokens are, and ``effects``, one
            for each rate, with ``forced`` (rate of the tokens that could be), ``later_changed`` and ``answers_lost``
            (each ``mean``, ``low``, ``high``, or None where there was nothing to change or to lose), ``judged`` (how
            many answers count, over all seeds), ``latents_identical`` and ``largest_latent_change`` over all seeds.
        """
        from unspoken.evaluation.forced_tokens import RATES, summary

        systems = {
            name: {
                "output_kind": seeds[0].output_kind,
                "effects": [summary(each) for each in zip(*(seed.effects for seed in seeds), strict=True)],
            }
            for name, seeds in readings.items()
        }
        problems = len(next(iter(readings.values()))[0].effects[0].counts)
        return {"problems": problems, "rates": list(RATES), "systems": systems}

    def draw(self, entry: Any, results: Results) -> Section | None:
        systems = [
            (text(label(name), f"forced: {system['output_kind']}"), system["effects"])
            for name, system in entry["systems"].items()
        ]
        note = (
            "While a system answers, some of the numbers or names in its text become other ones, and it goes on from "
            f"them; every system is forced at the same positions, on the first {count(entry['problems'], 'problem')}. "
            "Later tokens are those after the first wrong one that are not forced themselves. An answer that is itself "
            "forced is wrong by construction, so right answers lost are counted only where a token was forced and none in "
            "the box: a method that writes nothing else has none to lose. Methods that reason in latents have finished "
            "their chain when they answer; in an explicit chain every wrong token is a wrong step. Below each rate, its "
            "95 % interval."
        )
        rates = [percent(rate, 0) for rate in entry["rates"]]
        table = effect_table(
            systems,
            _EFFECTS,
            [(f"{rate} of its tokens wrong", f"{rate}: ") for rate in rates],
            title="forced wrong tokens: later tokens changed, right answers lost, largest change of a latent",
            note=note,
        )
        return Section("forced", "Forced wrong tokens", [table])
