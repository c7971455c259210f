"""The JEPA-Reasoner paper's claims about noise (section 6), each with the verdict of this run's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from unspoken.draw.charts import difference_bar
from unspoken.draw.formats import p_value, percent, points
from unspoken.draw.section import Section, Status, Test, Verdict, Verdicts
from unspoken.evaluation.outcomes import JEPA_REASONER
from unspoken.evaluation.results import Results, differs, label, summary_of
from unspoken.probes import token_noise
from unspoken.probes.probe import Probe, System, Task
from unspoken.tasks.context_free import SYMBOLS


class ClaimsProbe(Probe):
    """Do the paper's claims hold? It measures nothing: verdicts follow from what other probes measured."""

    key = "claims"

    def applies(self, system: System, task: Task) -> bool:
        return False

    def section(self, results: Results) -> Section | None:
        """The verdicts."""
        verdicts = judged(results)
        return Section(self.key, "The paper’s claims", [Verdicts(verdicts)]) if verdicts else None


def claims(results: Results) -> list[tuple[str, str]]:
    """The paper's claims about noise, each with what this run shows of it."""
    return [(verdict.name, verdict.text) for verdict in judged(results)]


def judged(results: Results) -> list[Verdict]:
    """The paper's claims about noise, each with the tests of this run.

    The tests are single ones: of twenty, one may seem to hold by chance.
    """
    tested = [*_token_claims(results), *_latent_claims(results)]
    effect = summary_of(results, "forced_symbols").get("systems", {}).get(JEPA_REASONER)
    if effect is not None:
        kept = effect["latents_identical"]
        unchanged = _Tested("holds", "holds: every latent is identical, bit for bit")
        tested.append(
            ("wrong symbols never reach the chain", [unchanged if kept else _Tested("fails", "DOES NOT HOLD")])
        )
    entries = [test.entry for _, tests in tested for test in tests if test.entry is not None]
    reach = max([1e-9, *(abs(entry[end]) for entry in entries for end in ("low", "high"))])
    return [
        Verdict(name=claim, tests=[Test(test.status, test.text, _drawn(test, reach)) for test in tests])
        for claim, tests in tested
        if tests
    ]


class _Tested(NamedTuple):
    """What one test shows; ``entry`` is the paired difference."""

    status: Status
    text: str
    entry: Mapping[str, float] | None = None


_COLOURS: Mapping[Status, str] = {"holds": "c3", "fails": "c2", "inconclusive": "c0"}


def _drawn(test: _Tested, reach: float) -> Markup | str:
    return "" if test.entry is None else difference_bar(test.entry, reach, _COLOURS[test.status])


def _token_claims(results: Results) -> Iterator[tuple[str, list[_Tested]]]:
    """What follows from wrong tokens in the prompt."""
    tests, against = summary_of(results, "token_noise").get("comparison", {}), f" - {results['baseline']}"
    test = tests.get(JEPA_REASONER + against)
    if test is not None:
        worst = test["levels"][-1]
        noise = f"{percent(worst['level'], 0)} of the prompt wrong"
        steps = range(1, len(worst["symbol"]))
        relative = [_step_verdict(results, worst["symbol"][step], step, "relative") for step in steps]
        yield f"{noise}: loses a smaller fraction than the coupled model", relative
        absolute = [_step_verdict(results, worst["symbol"][step], step, "absolute") for step in steps[1:]]
        yield f"{noise}: more symbols right than the coupled model", absolute
    for name, each in tests.items():
        if name.startswith(JEPA_REASONER):
            yield (
                f"{label(name.removesuffix(against))}: at least as accurate as the coupled model at every step and level",
                [_nowhere_worse(each)],
            )


def _latent_claims(results: Results) -> Iterator[tuple[str, list[_Tested]]]:
    """What follows from noise on latents."""
    summary = summary_of(results, "latent_noise")
    test = summary and summary["renormalised"]["comparison"].get(f"{JEPA_REASONER} - {summary['against']}")
    for level in (test["levels"][0], test["levels"][-1]) if test else ():
        noise = f"noise of {percent(level['level'], 0)} on latents" if level["level"] else "no noise"
        yield f"{noise}: more exact matches than Coconut", [_verdict(level["exact"][-1]["absolute"])]


def _verdict(entry: Mapping[str, float] | None, before: str = "") -> _Tested:
    """Whether a difference that should be positive is."""
    if entry is None:
        return _Tested("inconclusive", f"{before}not measured")
    status: Status = "inconclusive" if not differs(entry) else "holds" if entry["mean"] > 0 else "fails"
    answer = {"holds": "holds", "fails": "does not hold", "inconclusive": "inconclusive"}[status]
    low, high = points(entry["low"]), points(entry["high"])
    return _Tested(
        status, f"{before}{answer} ({points(entry['mean'])} points, {low} to {high}, {p_value(entry['p'])})", entry
    )


def _step_verdict(results: Results, test: Mapping[str, Any], step: int, kind: token_noise.Kind) -> _Tested:
    """What a test of noise shows of one generation step; inconclusive where a system is at chance without noise."""
    for name, _ in token_noise.compared(results):
        clean = token_noise.accuracy(results, name, "absolute", 0, step)
        if clean is not None and clean["low"] <= 1 / len(SYMBOLS):
            text = f"step {step + 1} inconclusive: without noise {label(name)} is at chance"
            return _Tested("inconclusive", text)
    return _verdict(test[kind], f"step {step + 1} ")


def _nowhere_worse(test: Mapping[str, Any]) -> _Tested:
    """Whether right symbols are at least as frequent at every step and level; ours, the paper's pair is not."""
    cells = [step["absolute"] for level in test["levels"] for step in level["symbol"]]
    sure = [cell["mean"] > 0 for cell in cells if differs(cell)]
    above, below = sure.count(True), sure.count(False)
    status: Status = "fails" if below else "holds" if above == len(cells) else "inconclusive"
    answer = {"holds": "holds", "fails": "does not hold", "inconclusive": "inconclusive"}[status]
    lowest, highest = min(cell["mean"] for cell in cells), max(cell["mean"] for cell in cells)
    text = (
        f"{answer} (of {len(cells)} steps and levels it is above in {above}, below in {below}; "
        f"{points(lowest)} to {points(highest)} points)"
    )
    return _Tested(status, text)
