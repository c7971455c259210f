"""Published graphs in words of the task: other names, one for one, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from unspoken.tasks.arithmetic import NAMES
from unspoken.tasks.logic import CONCEPTS, LogicConfig, LogicTask

ROW = {
    "question": "Every tolpus is a renpus. Una is a gropus. Mia is a wexpus. Every wexpus is a tolpus. "
    "Mia is a quapus. Every quapus is a renpus. Every gropus is a hadpus. Is Mia a hadpus or renpus?",
    "answer": "Mia is a renpus.",
    "steps": ["Mia is a wexpus.", "Every wexpus is a tolpus.", "Every tolpus is a renpus."],  # not the shortest
}
# Names of the task are given new ones too, and the wrong option stands in the question alone.
OTHER = {
    "question": "Every dax is a miv. Bo is a dax. Is Bo a miv or wug?",
    "answer": "Bo is a miv.",
    "steps": ["Bo is a dax.", "Every dax is a miv."],
}
WORDS = {"Every", "Is", "is", "a", "or"}


def read(folder: Path, *rows: Any, renamed: bool) -> LogicTask:
    path = folder / "prosqa.json"
    path.write_text(json.dumps(rows))
    return LogicConfig(tests=(str(path),), renamed=renamed).build()


def names_in(question: str) -> list[str]:
    return [word for word in re.findall("[A-Za-z]+", question) if word not in WORDS]


def test_every_name_is_replaced_one_for_one_and_nothing_else(tmp_path: Path) -> None:
    plain, made = (read(tmp_path, ROW, OTHER, renamed=renamed) for renamed in (False, True))
    for old, new in zip(plain.sample("prosqa", range(2)), made.sample("prosqa", range(2)), strict=True):
        names = dict(zip(names_in(old.question), names_in(new.question), strict=True))
        assert len(names) == len(set(names.values())), "two names became one"
        assert all(name in (NAMES if was[0].isupper() else CONCEPTS) for was, name in names.items())

        def translated(text: str, names: dict[str, str] = names) -> str:
            return re.sub("[A-Za-z]+", lambda word: names.get(word[0], word[0]), text)

        assert new.question == translated(old.question) != old.question
        assert new.chains == tuple(map(translated, old.chains))
        assert new.answer == names[old.answer]
        # Three tokens a fact (whom it is about, what that is, the stop) and seven for the question: nothing is spelled.
        assert len(made.tokenizer(new.question).input_ids) == 3 * new.question.count(".") + 7


def test_names_are_the_same_every_time_and_part_of_the_data(tmp_path: Path) -> None:
    first, again, plain = (read(tmp_path, ROW, renamed=renamed) for renamed in (True, True, False))
    assert first.sample("prosqa", [0]) == again.sample("prosqa", [0])
    assert first.fingerprint == again.fingerprint != plain.fingerprint
    # As in recorded results, whose problems are named by their own words.
    (problem,), (published,) = first.sample("prosqa", [0]), plain.sample("prosqa", [0])
    assert problem.key == published.key == f"prosqa:{hashlib.sha256(published.question.encode()).hexdigest()[:16]}"
    assert problem.question == (
        "Every thrin is a tulk. Pam is a plov. Kit is a skon. Every skon is a thrin. Kit is a tazz. "
        "Every tazz is a tulk. Every plov is a cheb. Is Kit a cheb or tulk?"
    )


def test_more_names_than_there_are_cannot_be_given(tmp_path: Path) -> None:
    def row_of(count: int) -> dict[str, Any]:
        coined = [one + other for one in "bcdfghk" for other in "bcdfghk"][:count]
        facts = [f"{old} is a {new}." for old, new in pairwise(["Ann", *coined])]
        facts = [fact if fact.startswith("Ann") else f"Every {fact}" for fact in facts]
        question = f"{' '.join(facts)} Bo is a wug. Is Ann a {coined[-1]} or wug?"
        return {"question": question, "answer": f"Ann is a {coined[-1]}.", "steps": facts}

    # As many as there are, with the wug.
    assert len(read(tmp_path, row_of(40), renamed=True).sample("prosqa", [0])[0].steps) == 40
    row = row_of(49)
    assert len(read(tmp_path, row, renamed=False).sample("prosqa", [0])[0].steps) == 49
    with pytest.raises(ValueError, match="row 1: it has 50 concepts, and there are only 41 names") as caught:
        read(tmp_path, row, renamed=True)
    assert "\n" not in str(caught.value)
