"""How many questions in the form of ProsQA are answered right by rules that do not read who is asked about.

``python benchmarks/prosqa_rules.py FILE`` reads a published file and as many made-up problems, even ones and ones like
those of ProsQA, prints how many of them each rule has right and what they look like, and writes
``results/prosqa-rules.json``. Where both options are alike to a rule, that counts half.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from unspoken.evaluation.significance import rate
from unspoken.tasks.logic import LogicConfig, _read
from unspoken.tasks.logic_graphs import steps_away
from unspoken.tasks.problems import ReasoningProblem

RESULTS = Path(__file__).resolve().parent.parent / "results" / "prosqa-rules.json"
Pairs = Sequence[tuple[str, str]]
# Of an option and the sentences: the option with the higher value is taken.
Rule = Callable[[str, Pairs], float]


def fewer_sentences(option: str, pairs: Pairs) -> float:
    """The option that stands in fewer sentences."""
    return -sum(option in pair for pair in pairs)


def farther_from_all(option: str, pairs: Pairs) -> float:
    """The option that is more steps away from the person that is nearest to it, whoever that is."""
    people = {old for old, _ in pairs if old[0].isupper()}
    return min((away[option] for one in people if option in (away := steps_away(pairs, one))), default=len(pairs))


RULES: dict[str, Rule] = {"fewer_sentences": fewer_sentences, "farther_from_all": farther_from_all}


def outcome(rule: Rule, problem: ReasoningProblem) -> float:
    """1 where a rule takes the right option, 0 where the wrong one, and a half where both are alike to it."""
    asked = _read(problem.question)
    (wrong,) = (option for option in asked.options if option != problem.answer)
    right_value, wrong_value = rule(problem.answer, asked.pairs), rule(wrong, asked.pairs)
    return 0.5 if right_value == wrong_value else float(right_value > wrong_value)


def shape(problems: Sequence[ReasoningProblem]) -> dict[str, float]:
    """Means over problems: how much there is in a question, and how many steps away the options are."""
    found = []
    for problem in problems:
        asked = _read(problem.question)
        (wrong,) = (option for option in asked.options if option != problem.answer)
        people = {old for old, _ in asked.pairs if old[0].isupper()}
        found.append(
            {
                "people": len(people),
                "concepts": len({new for _, new in asked.pairs}),
                "sentences": len(asked.pairs),
                "steps_to_answer": steps_away(asked.pairs, asked.person)[problem.answer],
                "steps_to_wrong_option": farther_from_all(wrong, asked.pairs),
            }
        )
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def measured(problems: Sequence[ReasoningProblem]) -> dict[str, Any]:
    """How many problems, what they look like, and by rule the rate of right answers with its interval."""
    rates = {name: rate(np.array([[outcome(rule, one) for one in problems]])) for name, rule in RULES.items()}
    shown = {name: asdict(found) for name, found in rates.items()}
    return {"problems": len(problems), "shape": shape(problems), **shown}


def main(file: Path) -> None:
    task = LogicConfig(tests=(str(file),)).build()
    count = task.size(file.stem)
    assert count is not None
    like_prosqa = LogicConfig(like_prosqa=True).build()
    sets = {"published": (task, file.stem), "made_up": (task, "test"), "like_prosqa": (like_prosqa, "test")}
    found = {name: measured(made.sample(split, range(count))) for name, (made, split) in sets.items()}
    facts = {"command": f"python benchmarks/prosqa_rules.py {file.name}", "file": file.name}
    facts["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    RESULTS.write_text(json.dumps({**facts, **found}, indent=1) + "\n")
    for name, rates in found.items():
        print(name, *(f"{rule}: {100 * rates[rule]['mean']:.1f} %" for rule in RULES), sep="  ")
        print("  ", *(f"{what}: {mean:.2f}" for what, mean in rates["shape"].items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
