"""What came out of a run, in one or two sentences made from its numbers alone.

A sentence never claims more than its test: a difference is called one only where its interval leaves out zero, rates
that are written alike are ties, and a single seed is named as such. A model that answers in another way than it was
trained to is never what a run is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unspoken.draw.formats import bare_percent, count, joined, p_value, percent, points, steps
from unspoken.evaluation.outcomes import JEPA_REASONER
from unspoken.evaluation.results import (
    Results,
    as_trained,
    averaged,
    difference,
    differs,
    label,
    reasoners,
    summary_of,
)


def sample(results: Results) -> str:
    """``1,000 test problems, 3 seeds``."""
    what = "test sentence" if summary_of(results, "corruption") else "test problem"
    return f"{count(results['problems'], what)}, {count(len(results['seeds']), 'seed')}"


def origin(results: Results) -> str:
    """When, from which sources and versions and on which machine results were measured, as far as they tell."""
    made = results.get("made") or {}
    machine, versions = made.get("machine") or {}, made.get("versions") or {}
    device = machine.get("gpu") or machine.get("device")
    hardware = [machine[key] for key in ("processor",) if machine.get(key)]
    hardware += [count(machine["threads"], "thread")] if machine.get("threads") else []
    hardware += [f"computed on {device}"] if device else []
    facts = {
        "date": made.get("date") and f"measured {made['date']}",
        "commit": made.get("commit") and f"commit {made['commit']}",
        "hardware": ", ".join(hardware),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }
    missing = [name for name, fact in facts.items() if not fact]
    sentences = [fact for fact in facts.values() if fact]
    if missing:
        sentences.append(f"{joined(missing)} not recorded")
    text = " · ".join(sentences)
    return text[:1].upper() + text[1:]


def _spoken_text(results: Results) -> str | None:
    """The best Talker of plain text, with its own latents and with another sentence's."""
    every = summary_of(results, "corruption").get("systems")
    if not every:
        return None
    best = max(every, key=lambda name: every[name]["conditions"]["none"]["right"]["mean"])
    own, other = (every[best]["conditions"][name] for name in ("none", "other sentence"))
    return (
        f"From the latents of an unseen sentence the Talker ({label(best)}) decodes "
        f"{percent(own['right']['mean'], 1)} of its tokens. From those of another sentence it decodes "
        f"{percent(other['right']['mean'], 1)} of the first sentence’s tokens and "
        f"{percent(other['other']['mean'], 1)} of the second’s."
        f"{_seeds_caveat(results)}"
    )


def _next_token(results: Results) -> str | None:
    """The stage that predicts plain text best, where no Talker decodes any."""
    language = summary_of(results, "next_token").get("systems")
    if not language:
        return None
    name = max(language, key=lambda stage: language[stage]["accuracy"]["mean"])
    right = percent(language[name]["accuracy"]["mean"], 1)
    return f"{label(name)} predicts {right} of the next tokens of unseen text.{_seeds_caveat(results)}"


def _known_odds(results: Results) -> str | None:
    entry = next(iter(summary_of(results, "calibration").values()), None)
    if entry is None:
        return None
    forced = {key: averaged(value) for key, value in entry["forced"].items()}
    return (
        f"Where the odds of the next node are known, the mixture in a latent is off by {bare_percent(forced['error'], 1)} "
        f"points on average; even odds everywhere would be off by {bare_percent(forced['uniform_error'], 1)}. "
        f"Of the answers, {percent(averaged(entry['valid_routes']))} are valid routes: they lead from the root to a possible "
        "target leaf."
    )


def _pair(results: Results) -> str | None:
    """The Reasoner with its Talker beside the coupled model."""
    if JEPA_REASONER not in results["systems"]:
        return None
    own = results["systems"][JEPA_REASONER]["exact_match"]["mean"]
    problems = count(results["problems"], "unseen problem")
    text = f"Reasoning in latents alone, the JEPA-Reasoner answers {percent(own)} of {problems}"
    paired = difference(results, JEPA_REASONER)
    if paired is not None:
        other = results["systems"][results["baseline"]]["exact_match"]["mean"]
        text += f"; the coupled baseline{_equal_training(results)} answers {percent(other)}"
        text += _verdict(paired, JEPA_REASONER, results["baseline"])
    text += "."
    noise = summary_of(results, "controls").get(JEPA_REASONER, {}).get("noise")
    if noise is not None:
        text += f" With noise in place of its chain it answers {percent(noise['exact_match']['mean'])}."
    return text + _seeds_caveat(results)


def _latents(results: Results) -> str | None:
    """The best system that was trained to reason in latents beside the explicit chain of thought."""
    explicit, trained = results["baseline"], as_trained(results)
    silent = [name for name in reasoners(results) if name in trained]
    if explicit is None or explicit not in results["systems"] or not silent:
        return None
    taken = {name: entry["cost"]["latent_steps"] for name, entry in results["systems"].items()}
    rates = _rates(results)
    best = max(silent, key=lambda name: rates[name]["mean"])
    paired = difference(results, best)
    text = (
        f"Reasoning in {steps(taken[best])} latents per problem, {label(best)} answers "
        f"{percent(rates[best]['mean'])} of {count(results['problems'], 'unseen problem')}; the explicit chain of thought "
        f"({label(explicit)}, {steps(taken[explicit])} tokens){_equal_training(results)} answers "
        f"{percent(rates[explicit]['mean'])}{'' if paired is None else _verdict(paired, best, explicit)}."
    )
    if len(silent) > 1:
        text += _rank({name: rates[name] for name in silent}, best)
    swapped = summary_of(results, "controls").get(best, {}).get("swap")
    if swapped is not None:
        text += f" With the chain of another problem {label(best)} answers {percent(swapped['exact_match']['mean'])}."
    return text + _seeds_caveat(results)


def _rates(results: Results) -> dict[str, Mapping[str, Any]]:
    return {name: entry["exact_match"] for name, entry in results["systems"].items()}


def _as_many(rates: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """The systems whose rate is written as that of this one, itself included."""
    return [other for other in rates if percent(rates[other]["mean"]) == percent(rates[name]["mean"])]


def _rank(rates: Mapping[str, Mapping[str, Any]], best: str) -> str:
    """A sentence on where the best of several latent reasoners stands among them."""
    kind = "systems that were trained to reason in latents"
    among, ties = f"{len(rates)} {kind}", _as_many(rates, best)
    if len(ties) == len(rates):
        return f" {_all(len(rates))} {kind} answer equally many."
    if len(ties) > 1:
        return f" Of {among}, {joined([label(name) for name in ties])} answer the most, and equally many."
    near = [label(name) for name in rates if name != best and rates[name]["high"] >= rates[best]["low"]]
    text = f" It is the best of {among}, picked on these problems"
    if near:
        overlap = "the interval of {} overlaps" if len(near) == 1 else "the intervals of {} overlap"
        text += f"; {overlap.format(joined(near))} with its own"
    return f"{text}."


def _all(number: int) -> str:
    return "Both" if number == 2 else f"All {number}"


def _ranking(results: Results) -> str:
    """The best and the worst system, where nothing more is known of them."""
    rates = {name: rate for name, rate in _rates(results).items() if name in as_trained(results)}
    low, high = (pick(rates, key=lambda name: rates[name]["mean"]) for pick in (min, max))
    problems = count(results["problems"], "unseen problem")
    if len(rates) == 1:
        return f"{label(high)} answers {percent(rates[high]['mean'])} of {problems}."
    most, least = _as_many(rates, high), _as_many(rates, low)
    if len(most) == len(rates):
        return (
            f"{_all(len(rates))} systems answer {percent(rates[high]['mean'])} of {problems}.{_seeds_caveat(results)}"
        )
    overlap = max(rates[name]["high"] for name in least) >= min(rates[name]["low"] for name in most)
    best, worst = (joined([label(name) for name in names]) for names in (most, least))
    among = f"{len(rates)} systems" if len(rates) == len(results["systems"]) else f"{len(rates)} trained systems"
    return (
        f"Of {among}, {best} {'answers' if len(most) == 1 else 'answer'} the most of {problems}, "
        f"{percent(rates[high]['mean'])}, and {worst} the least, {percent(rates[low]['mean'])}"
        f"{'; their intervals overlap' if overlap else ''}.{_seeds_caveat(results)}"
    )


def _verdict(paired: Mapping[str, Any], system: str, baseline: str) -> str:
    """What a paired difference of a system and the baseline shows, after the baseline's rate."""
    if differs(paired):
        fewer = "fewer" if paired["mean"] > 0 else "more"
        test = "" if paired["p"] is None else f", {p_value(paired['p'])}"
        size = abs(paired["mean"])
        return f" ({bare_percent(size, 1 if size >= 0.001 else 3)} points {fewer}{test})"
    span = (
        f"{label(system)} minus {label(baseline)}: {points(paired['low'])} to {points(paired['high'])} points, "
        "95 % interval"
    )
    if paired["p"] is not None and paired["p"] < 0.05:
        # A test over problems alone can be sure about these seeds where seeds disagree with one another.
        return f"; seeds differ too much for a significant difference of the two methods ({span})"
    return f", which is no detectable difference ({span})"


def _equal_training(results: Results) -> str:
    for stage in results.get("recipe", {}).get("stages", ()):
        if stage.get("name") == results["baseline"] and stage.get("steps_of"):
            return f", given as many training steps as {joined(list(stage['steps_of']))} together,"
    return ""


def _seeds_caveat(results: Results) -> str:
    if len(results["seeds"]) > 1:
        return ""
    return " Only one seed: differences between systems may come from the seed and not from the method."


_FINDINGS: tuple[Callable[[Results], str | None], ...] = (
    _spoken_text,
    _next_token,
    _known_odds,
    _pair,
    _latents,
    _ranking,
)


def finding(results: Results) -> str:
    """One or two sentences: what came out."""
    return next(text for about in _FINDINGS if (text := about(results)) is not None)


def each_seed(values: Sequence[float]) -> str:
    """The seeds' own rates in per cent, or their range if there are many."""
    shown = [f"{100 * value:.2f}" for value in values]
    if len(shown) <= 4:
        return "  ".join(shown)
    return f"{min(shown, key=float)} … {max(shown, key=float)}"


def training_time(results: Results) -> float | None:
    """Seconds that all stages of a seed took; None where a stage does not tell."""
    seconds = [stage["seconds"] for entry in results.get("training", ()) for stage in entry["stages"].values()]
    known = bool(seconds) and all(value is not None for value in seconds)
    return sum(seconds) / len(results["training"]) if known else None
