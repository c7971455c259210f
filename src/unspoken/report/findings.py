"""What a results file says, in words: the paper's numbers beside, and sentences made from the numbers alone.

A sentence never claims more than its test: a difference is called one only where its interval leaves out zero, and one
seed is said to be one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unspoken.draw.formats import bare_percent, count, joined, p_value, percent, points, steps
from unspoken.evaluation.outcomes import COUPLED, PAIR

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
    "forced answer": ("the box is opened right after the chain", "Is the answer ready when the chain ends?"),
    "random mixtures": ("the same weights on random tokens", "Would any mixtures do?"),
}
# Of appendix C: what is wrong, and what the paper reports of a few sentences.
CORRUPTION_MEANING = {
    "none": ("the sentence’s own latents", "the sentence"),
    "random string": ("latents of random tokens", "nonsense after the prime"),
    "random prime": ("own latents, random first tokens", "nearly the sentence, one wrong name"),
    "gaussian": ("random directions of the same norm", "pieces of words"),
    "other sentence": ("latents of another sentence", "the other sentence’s content"),
}
# These take away what a chain holds; the others disturb it or the text after it.
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


def measured(results: Results, task: str) -> Mapping[str, Any]:
    """What was measured on one kind of task only, by its key in results; empty for other tasks."""
    entry: Mapping[str, Any] = results.get(task) or {}
    return entry


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What the kind of a task changes in sentences.

    Attributes:
        problem: what a system answers.
        symbols: what an answer is made of.
        curves: what to expect of curves of exact match.
        stage_names: systems have names of stages, with underscores, which read badly.
    """

    problem: str = "test problem"
    symbols: str = "names below the root"
    curves: str = "Look for a plateau followed by a fall: there the search is found."
    stage_names: bool = False


_WORDINGS = {
    "words": Wording(curves="", stage_names=True),
    "strings": Wording(symbols="symbols", curves="A string can go on in several ways, so no curve reaches the top."),
    "texts": Wording(problem="test sentence", curves="", stage_names=True),
}


def wording(results: Results) -> Wording:
    """The words for what a run is about; tree search where nothing else was measured."""
    return next((words for task, words in _WORDINGS.items() if results.get(task)), Wording())


def baseline(results: Results) -> str | None:
    """The system that the others are compared with: a word-problem run may have none, a file of trees does not name it."""
    name: str | None = results.get("baseline", COUPLED)
    return name


def label(results: Results, system: str) -> str:
    """A system or a stage as it is written."""
    return system.replace("_", " ") if wording(results).stage_names else system


def reasoners(results: Results) -> list[str]:
    """Systems that reason in latents; the steps of the baseline and of every other explicit chain are tokens."""
    problems = measured(results, "words")
    taken, explicit = problems.get("steps", {}), [baseline(results), *problems.get("explicit", ())]
    return [name for name in results["systems"] if name not in explicit and taken.get(name, {}).get("latents", 0) > 0]


def sample(results: Results) -> str:
    """``1,000 test problems, 3 seeds``."""
    return f"{count(results['problems'], wording(results).problem)}, {count(len(results['seeds']), 'seed')}"


def difference(results: Results, system: str) -> Mapping[str, Any] | None:
    """The paired test of a system against the baseline, if there is one."""
    entry: Mapping[str, Any] | None = results.get("differences", {}).get(f"{system} - {baseline(results)}")
    return entry


def differs(entry: Mapping[str, Any]) -> bool:
    """Whether a paired difference is one: its interval leaves out zero and its p-value is below 0.05."""
    return bool(entry["p"] < 0.05 and (entry["low"] > 0 or entry["high"] < 0))


def inside(results: Results) -> Mapping[str, Mapping[str, Any]]:
    """What was measured inside each Reasoner, by system."""
    entries: Mapping[str, Mapping[str, Any]] = results.get("inside") or {}
    return entries


def calibrations(results: Results) -> dict[str, Mapping[str, Any]]:
    """By Reasoner, its mixtures beside known odds, where they were measured."""
    return {name: entry["calibration"] for name, entry in inside(results).items() if "calibration" in entry}


def averaged(entry: Any) -> Any:
    """The mean over seeds of an entry that keeps the seeds' own values beside it."""
    return entry["mean"] if isinstance(entry, Mapping) and "mean" in entry else entry


def step_names(depth: int) -> list[str]:
    """What each step of a route must name: ``root, level 2, ..., leaf``."""
    return ["root", *(f"level {level}" for level in range(2, depth)), "leaf"]


def _spoken_text(results: Results) -> str | None:
    """The best Talker of plain text, with its own latents and with another sentence's."""
    every = measured(results, "texts").get("corruption")
    if not every:
        return None
    best = max(every, key=lambda name: every[name]["conditions"]["none"]["right"]["mean"])
    own, other = (every[best]["conditions"][name] for name in ("none", "other sentence"))
    return (
        f"From the latents of an unseen sentence the Talker ({best.replace('_', ' ')}) says "
        f"{percent(own['right']['mean'], 1)} of its tokens. From those of another sentence it says "
        f"{percent(other['right']['mean'], 1)} of them, and {percent(other['other']['mean'], 1)} of the other’s."
        f"{_seeds_caveat(results)}"
    )


def _next_token(results: Results) -> str | None:
    """The stage that predicts plain text best, where no Talker says any."""
    language = measured(results, "texts").get("language")
    if not language:
        return None
    name = max(language, key=lambda stage: language[stage]["accuracy"]["mean"])
    right = percent(language[name]["accuracy"]["mean"], 1)
    return f"{name} knows {right} of the next tokens of unseen text.{_seeds_caveat(results)}"


def _known_odds(results: Results) -> str | None:
    entry = next(iter(calibrations(results).values()), None)
    if entry is None:
        return None
    forced = {key: averaged(value) for key, value in entry["forced"].items()}
    return (
        f"Where the odds of the next node are known, the mixture in a latent is off by {bare_percent(forced['error'], 1)} "
        f"points on average; even odds everywhere would be off by {bare_percent(forced['uniform_error'], 1)}. "
        f"Of the spoken routes, {percent(averaged(entry['valid_routes']))} are real and lead to a leaf that may be meant."
    )


def _pair(results: Results) -> str | None:
    """The Reasoner with its Talker beside the coupled model."""
    if PAIR not in results["systems"]:
        return None
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


def _latents(results: Results) -> str | None:
    """The best system that reasons in latents beside the explicit chain of thought."""
    explicit, silent = baseline(results), reasoners(results)
    if explicit is None or explicit not in results["systems"] or not silent:
        return None
    problems = measured(results, "words")
    taken = problems["steps"]
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
    swapped = problems.get("controls", {}).get(best, {}).get("swap")
    if swapped is not None:
        text += f" With the chain of another problem it answers {percent(swapped['exact_match']['mean'])}."
    return text + _seeds_caveat(results)


def _ranking(results: Results) -> str:
    """The best and the worst system, where nothing more is known of them."""
    systems = results["systems"]
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
    return [*_emptied(change, lost), *_disturbed(change, lost)]


def _emptied(change: Mapping[str, Any], lost: Mapping[str, float]) -> list[str]:
    """What it costs to take away what a chain holds."""
    names = [name for name in _EMPTYING if name in change]
    needed = sorted((name for name in names if name in lost), key=lambda name: lost[name])
    spared = [name for name in names if name not in lost]
    if needed and not spared:
        span = " to ".join(dict.fromkeys(bare_percent(lost[name], 1) for name in (needed[0], needed[-1])))
        return [f"The chain does something: without what it holds, accuracy falls by {span} points."]
    if needed:
        most = f"{'up to ' if len(needed) > 1 else ''}{bare_percent(lost[needed[-1]], 1)} points"
        anyones = ", so it need not be this problem’s chain" if "swap" in spared else ""
        return [
            f"The chain does something, but not all of it counts: {joined(needed)} cost {most}, while "
            f"{joined(spared)} cost nothing detectable{anyones}."
        ]
    none = "No sign that the chain does anything: to take away what it holds costs nothing detectable."
    return [none] if spared else []


def _disturbed(change: Mapping[str, Any], lost: Mapping[str, float]) -> list[str]:
    """What it costs to disturb a chain, or the text after it."""
    sentences, subjects = [], {"shuffle": "its order", "truncate": "its second half"}
    used = [f"{subject} ({points(-lost[name])} points)" for name, subject in subjects.items() if name in lost]
    if used:
        sentences.append(_sentence(f"{joined(used)} {'matters' if len(used) == 1 else 'matter'}"))
    unused = [subject for name, subject in subjects.items() if name in change and name not in lost]
    if unused:
        sentences.append(
            _sentence(f"{joined(unused)} {'makes' if len(unused) == 1 else 'make'} no detectable difference")
        )
    if "forced answer" in lost:
        sentences.append(
            f"Answering right after the chain costs {bare_percent(lost['forced answer'], 1)} points: "
            "part of the work is done in the text after it."
        )
    elif "forced answer" in change:
        sentences.append("Answering right after the chain costs nothing detectable.")
    return sentences


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _verdict(paired: Mapping[str, Any]) -> str:
    if differs(paired):
        return f" ({points(paired['mean'])} points, {p_value(paired['p'])})"
    span = f"95 % interval of the difference {points(paired['low'])} to {points(paired['high'])} points"
    if paired["p"] < 0.05:
        # A test over problems alone can be sure about these seeds where seeds disagree with one another.
        return f"; seeds differ too much to tell the two methods apart ({span})"
    return f", which is no detectable difference ({span})"


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


def training_time(results: Results) -> float | None:
    """Seconds that all stages of a seed took; None where a stage does not tell."""
    seconds = [stage["seconds"] for entry in results.get("training", ()) for stage in entry["stages"].values()]
    known = bool(seconds) and all(value is not None for value in seconds)
    return sum(seconds) / len(results["training"]) if known else None
