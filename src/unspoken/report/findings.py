"""What a results file says, in words: the paper's numbers beside, and sentences made from the numbers alone.

A sentence never claims more than its test: a difference is called one only where its interval leaves out zero, and one
seed is said to be one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unspoken.evaluation.outcomes import COUPLED, PAIR
from unspoken.report.formats import bare_percent, count, joined, p_value, percent, points, steps

Results = Mapping[str, Any]


CONTROL_MEANING = {
    "zero": ("zero vectors", "Are the vectors read at all, or only their number?"),
    "mean": ("the average latent of each step", "Is it this problem, or just a latent typical of its place?"),
    "noise": ("random directions of the same norm", "Would any vectors of the right length do?"),
    "shuffle": ("the same latents in random order", "Does the order carry information?"),
    "swap": ("the chain of another problem", "Does the answer follow the chain?"),
    "truncate": ("the first half, then zeros", "Are the late steps needed?"),
    "no chain": ("a single zero vector", "How far does guessing go?"),
}
WORD_CONTROL_MEANING = CONTROL_MEANING | {
    "no chain": ("nothing between the markers", "How far does it get without a chain?"),
    "forced answer": ("the box is opened right behind the chain", "Is the answer ready when the chain ends?"),
    "random mixtures": ("the same weights on random tokens", "Would any mixtures do?"),
}
# Of appendix C: what is wrong, and what the paper reports of a few sentences.
CORRUPTION_MEANING = {
    "none": ("the sentence’s own latents", "the sentence"),
    "random string": ("latents of random tokens", "nonsense behind the prime"),
    "random prime": ("own latents, random first tokens", "nearly the sentence, one wrong name"),
    "gaussian": ("random directions of the same norm", "pieces of words"),
    "other sentence": ("latents of another sentence", "the other sentence’s content"),
}
# These take away what a chain holds; the others disturb it or the text behind it.
_EMPTYING = ("no chain", "swap", "mean", "random mixtures", "noise", "zero")
# If all of five right answers are lost, chance does that too, once in sixteen times (sign test).
_FEWEST_TO_LOSE = 6


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What JEPA-Reasoner (arXiv 2512.19171v3, section 5.1) reports for tree search.

    Attributes:
        exact_match: of the whole route.
        major: the right child has the larger of the two coefficients.
        rank: of the sibling plane among all planes, as a share.
        parameters: of the Reasoner.
    """

    exact_match: float = 0.9987
    major: float = 0.9989
    rank: float = 0.0172
    parameters: float = 42e6


PAPER = Paper()


def compares_to_paper(results: Results) -> bool:
    """Whether the task is the paper's: tree search with one named target."""
    task = results.get("recipe", {}).get("task", {})
    return bool(task.get("kind") == "tree_search" and task.get("targets", 1) == 1)


def is_ambiguous(results: Results) -> bool:
    """Whether the prompt leaves open where the route leads."""
    return bool(results.get("recipe", {}).get("task", {}).get("targets", 1) != 1)


def title(results: Results) -> str:
    """Name and size of the run."""
    return f"{results.get('name', 'run')}, {results.get('size', '')}".rstrip(", ")


def words(results: Results) -> Mapping[str, Any]:
    """What was measured on word problems only; empty for other tasks."""
    found: Mapping[str, Any] = results.get("words") or {}
    return found


def texts(results: Results) -> Mapping[str, Any]:
    """What was measured on plain text only; empty for other tasks."""
    found: Mapping[str, Any] = results.get("texts") or {}
    return found


def baseline(results: Results) -> str | None:
    """The system that the others are compared with: a word-problem run may have none, a file of trees does not say."""
    found: str | None = results.get("baseline", COUPLED)
    return found


def label(results: Results, system: str) -> str:
    """A system as it is written: on word problems it has the name of a stage, which reads badly."""
    return system.replace("_", " ") if words(results) else system


def reasoners(results: Results) -> list[str]:
    """Systems that reason in latents; the steps of the baseline and of every other explicit chain are tokens."""
    taken, spoken = words(results).get("steps", {}), [baseline(results), *words(results).get("explicit", ())]
    return [name for name in results["systems"] if name not in spoken and taken.get(name, {}).get("latents", 0) > 0]


def sample(results: Results) -> str:
    """``1,000 test problems, 3 seeds``."""
    what = "test sentence" if texts(results) else "test problem"
    return f"{count(results['problems'], what)}, {count(len(results['seeds']), 'seed')}"


def difference(results: Results, system: str) -> Mapping[str, Any] | None:
    """The paired test of a system against the baseline, if there is one."""
    found: Mapping[str, Any] | None = results.get("differences", {}).get(f"{system} - {baseline(results)}")
    return found


def differs(entry: Mapping[str, Any]) -> bool:
    """Whether a paired difference is one: its interval leaves out zero and its p-value is below 0.05."""
    return bool(entry["p"] < 0.05 and (entry["low"] > 0 or entry["high"] < 0))


def inside(results: Results) -> Mapping[str, Mapping[str, Any]]:
    """What was measured inside each Reasoner, by system."""
    found: Mapping[str, Mapping[str, Any]] = results.get("inside") or {}
    return found


def averaged(entry: Any) -> Any:
    """The mean over seeds of an entry that keeps the seeds' own values beside it."""
    return entry["mean"] if isinstance(entry, Mapping) and "mean" in entry else entry


def step_names(depth: int) -> list[str]:
    """What each step of a route must name: ``root, level 2, ..., leaf``."""
    return ["root", *(f"level {level}" for level in range(2, depth)), "leaf"]


def finding(results: Results) -> str:
    """One or two sentences: what came out."""
    if texts(results):
        return _said(results)
    systems = results["systems"]
    calibrated = [entry["calibration"] for entry in inside(results).values() if "calibration" in entry]
    if calibrated:
        return _calibrated(calibrated[0])
    if PAIR in systems:
        return _pair(results)
    explicit, silent = baseline(results), reasoners(results)
    if explicit is not None and explicit in systems and silent:
        return _latents(results, explicit, silent)
    rates = {name: entry["exact_match"]["mean"] for name, entry in systems.items()}
    low, high = min(rates, key=lambda name: rates[name]), max(rates, key=lambda name: rates[name])
    problems = count(results["problems"], "unseen problem")
    if len(rates) == 1:
        return f"{label(results, high)} answers {percent(rates[high])} of {problems}."
    overlap = systems[low]["exact_match"]["high"] >= systems[high]["exact_match"]["low"]
    together = "; their intervals overlap" if overlap else ""
    return (
        f"Of {len(rates)} systems, {label(results, high)} answers the most of {problems}, {percent(rates[high])}, "
        f"and {label(results, low)} the least, {percent(rates[low])}{together}.{_seeds_caveat(results)}"
    )


def _said(results: Results) -> str:
    """The best Talker of plain text, with its own latents and with another sentence's."""
    every = texts(results)["corruption"]
    if not every:
        language = texts(results)["language"]
        name = max(language, key=lambda stage: language[stage]["accuracy"]["mean"])
        right = percent(language[name]["accuracy"]["mean"], 1)
        return f"{name} knows {right} of the next tokens of unseen text.{_seeds_caveat(results)}"
    best = max(every, key=lambda name: every[name]["conditions"]["none"]["right"]["mean"])
    own, other = (every[best]["conditions"][name] for name in ("none", "other sentence"))
    return (
        f"From the latents of an unseen sentence the Talker ({best.replace('_', ' ')}) says "
        f"{percent(own['right']['mean'], 1)} of its tokens. From those of another sentence it says "
        f"{percent(other['right']['mean'], 1)} of them, and {percent(other['other']['mean'], 1)} of the other’s."
        f"{_seeds_caveat(results)}"
    )


def _latents(results: Results, explicit: str, silent: Sequence[str]) -> str:
    """The best system that reasons in latents beside the explicit chain of thought."""
    taken = words(results)["steps"]
    rates = {name: entry["exact_match"]["mean"] for name, entry in results["systems"].items()}
    best = max(silent, key=lambda name: rates[name])
    paired = difference(results, best)
    text = (
        f"Reasoning in {steps(taken[best]['latents'])} latents a problem, {label(results, best)} answers "
        f"{percent(rates[best])} of {count(results['problems'], 'unseen problem')}; the explicit chain of thought "
        f"({label(results, explicit)}, {steps(taken[explicit]['latents'])} tokens){_equal_training(results)} answers {percent(rates[explicit])}"
        f"{'' if paired is None else _verdict(paired)}."
    )
    if len(silent) > 1:
        among = f"{len(silent)} systems that reason in latents"
        tied = sum(rates[name] == rates[best] for name in silent) > 1
        text += f" None of {among} is better." if tied else f" It is the best of {among}, picked on these problems."
    swapped = words(results).get("controls", {}).get(best, {}).get("swap")
    if swapped is not None:
        text += f" With the chain of another problem it answers {percent(swapped['exact_match']['mean'])}."
    return text + _seeds_caveat(results)


def own_accuracy(controls: Mapping[str, Mapping[str, Any]]) -> float:
    """Accuracy from its own chains of a word-problem system, on the problems of its controls."""
    entry = next(iter(controls.values()))
    own: float = entry["exact_match"]["mean"] - entry["difference"]["mean"]
    return own


def chain_verdict(controls: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Whether the chain of a word-problem system does anything, out of its controls' paired differences.

    Args:
        controls: by name, each with its accuracy and its ``difference`` to the system with its own chain.

    Returns:
        Sentences, the most important first.
    """
    asked = next(iter(controls.values()))["exact_match"]
    answers = asked["problems"] * len(asked["seeds"])
    right = round(own_accuracy(controls) * answers)
    if right < _FEWEST_TO_LOSE:
        return [f"It cannot be told whether the chain does anything: with it, {right} of {answers} answers are right."]
    change = {name: entry["difference"] for name, entry in controls.items()}
    lost = {name: -entry["mean"] for name, entry in change.items() if differs(entry) and entry["mean"] < 0}
    emptied = [name for name in _EMPTYING if name in change]
    needed = sorted((name for name in emptied if name in lost), key=lambda name: lost[name])
    spared = [name for name in emptied if name not in lost]
    parts = []
    if needed and not spared:
        span = " to ".join(dict.fromkeys(bare_percent(lost[name], 1) for name in (needed[0], needed[-1])))
        parts.append(f"The chain does something: without what it holds, accuracy falls by {span} points.")
    elif needed:
        most = f"{'up to ' if len(needed) > 1 else ''}{bare_percent(lost[needed[-1]], 1)} points"
        anyones = ", so it need not be this problem’s chain" if "swap" in spared else ""
        parts.append(
            f"The chain does something, but not all of it counts: {joined(needed)} cost {most}, while "
            f"{joined(spared)} cost nothing detectable{anyones}."
        )
    elif spared:
        parts.append("No sign that the chain does anything: to take away what it holds costs nothing detectable.")
    subjects = {"shuffle": "its order", "truncate": "its second half"}
    told = [f"{subject} ({points(-lost[name])} points)" for name, subject in subjects.items() if name in lost]
    if told:
        parts.append(_sentence(f"{joined(told)} {'matters' if len(told) == 1 else 'matter'}"))
    told = [subject for name, subject in subjects.items() if name in change and name not in lost]
    if told:
        parts.append(_sentence(f"{joined(told)} {'makes' if len(told) == 1 else 'make'} no detectable difference"))
    if "forced answer" in lost:
        parts.append(
            f"Answering right behind the chain costs {bare_percent(lost['forced answer'], 1)} points: "
            "part of the work is done in the text after it."
        )
    elif "forced answer" in change:
        parts.append("Answering right behind the chain costs nothing detectable.")
    return parts


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _pair(results: Results) -> str:
    own = results["systems"][PAIR]["exact_match"]["mean"]
    problems = count(results["problems"], "unseen problem")
    text = f"Reasoning without a word, the JEPA-Reasoner answers {percent(own)} of {problems}"
    paired = difference(results, PAIR)
    if paired is not None:
        other = results["systems"][COUPLED]["exact_match"]["mean"]
        text += f"; the coupled baseline{_equal_training(results)} answers {percent(other)}"
        text += _verdict(paired)
    text += "."
    noise = results.get("controls", {}).get("noise")
    if noise is not None:
        text += f" With noise in place of its chain it answers {percent(noise['exact_match']['mean'])}."
    return text + _seeds_caveat(results)


def _verdict(paired: Mapping[str, Any]) -> str:
    if differs(paired):
        return f" ({points(paired['mean'])} points, {p_value(paired['p'])})"
    span = f"95 % interval of the difference {points(paired['low'])} to {points(paired['high'])} points"
    if paired["p"] < 0.05:
        # A test over problems alone can be sure about these seeds where seeds disagree with one another.
        return f"; seeds differ too much to tell the two methods apart ({span})"
    return f", which is no detectable difference ({span})"


def _calibrated(entry: Mapping[str, Any]) -> str:
    forced = {key: averaged(value) for key, value in entry["forced"].items()}
    return (
        f"Where the odds of the next node are known, the mixture in a latent is off by {bare_percent(forced['error'], 1)} "
        f"points on average; even odds everywhere would be off by {bare_percent(forced['uniform_error'], 1)}. "
        f"Of the spoken routes, {percent(averaged(entry['valid_routes']))} are real and lead to a leaf that may be meant."
    )


def _equal_training(results: Results) -> str:
    for stage in results.get("recipe", {}).get("stages", ()):
        if stage.get("name") == baseline(results) and stage.get("steps_of"):
            return f", given as many training steps as {joined(list(stage['steps_of']))} together,"
    return ""


def _seeds_caveat(results: Results) -> str:
    if len(results["seeds"]) > 1:
        return ""
    return " One seed: this compares models, not methods."


def containment(results: Results) -> str | None:
    """The statement about error containment, if it was measured."""
    entry = results.get("containment")
    if not entry:
        return None
    text = (
        f"{count(entry['talker_seeds'], 'seed')} of the Talker at temperature {steps(entry['temperature'])}, "
        f"{count(entry['problems'], 'problem')}: the words of {percent(entry['answers_changed'], 1)} of the answers changed, "
    )
    if entry["latents_identical"]:
        return text + "and not one bit of any chain."
    return text + "AND SO DID THE CHAINS: a spoken token reached the Reasoner, which must not happen."


def each_seed(values: Sequence[float]) -> str:
    """The seeds' own rates in per cent, or their range if there are many."""
    shown = [f"{100 * value:.2f}" for value in values]
    if len(shown) <= 4:
        return "  ".join(shown)
    return f"{min(shown, key=float)} … {max(shown, key=float)}"
