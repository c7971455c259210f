"""Problems drawn like those of ProsQA, which have what its published questions have, what they give away included."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from unspoken.tasks.logic import LogicConfig, LogicTask, _read
from unspoken.tasks.logic_graphs import steps_away
from unspoken.tasks.problems import ReasoningProblem


@cache
def like_prosqa() -> LogicTask:
    return LogicConfig(like_prosqa=True).build()


@cache
def problems() -> list[ReasoningProblem]:
    return list(like_prosqa().sample("train", range(400)))


def test_the_answer_alone_is_reached_from_the_person_asked_about() -> None:
    for problem in problems():
        pairs, person, options = _read(problem.question)
        (wrong,) = (option for option in options if option != problem.answer)
        people = {old for old, _ in pairs} - {new for _, new in pairs}
        assert all(name[0].isupper() == (name in people) for pair in pairs for name in pair)
        assert len(set(pairs)) == len(pairs)
        away = steps_away(pairs, person)
        assert wrong not in away
        assert any(wrong in steps_away(pairs, other) for other in people - {person})
        assert not {wrong, problem.answer} & {old for old, _ in pairs}
        assert problem.chains
        assert all(chain.count(".") == away[problem.answer] >= 3 for chain in problem.chains)


def test_sizes_are_about_those_of_the_published_questions() -> None:
    # The means of the 800 published validation and test questions; the tolerances are four standard errors of 400.
    facts = Counter[str]()
    for problem in problems():
        pairs, person, options = _read(problem.question)
        (wrong,) = (option for option in options if option != problem.answer)
        people = {old for old, _ in pairs if old[0].isupper()}
        nearest = {name: min(steps_away(pairs, one).get(name, 99) for one in people) for name in options}
        facts += Counter(
            nodes=len({name for pair in pairs for name in pair}),
            sentences=len(pairs),
            people=len(people),
            steps=steps_away(pairs, person)[problem.answer],
            shallow=int(nearest[wrong] < nearest[problem.answer]),
        )
    means = {name: total / len(problems()) for name, total in facts.items()}
    assert means["nodes"] == pytest.approx(22.8, abs=0.4)
    assert means["sentences"] == pytest.approx(36.0, abs=1.2)
    assert means["people"] == pytest.approx(2.56, abs=0.16)
    assert means["steps"] == pytest.approx(3.77, abs=0.16)
    assert means["shallow"] == pytest.approx(683 / 800, abs=0.08)


def test_who_is_asked_about_has_either_place_and_the_answer_too() -> None:
    first = earlier = 0
    for problem in problems():
        pairs, person, options = _read(problem.question)
        first += options[0] == problem.answer
        earlier += next(old for old, _ in pairs if old[0].isupper()) == person
    assert 160 < first < 240
    assert 120 < earlier < 280


def test_no_graph_is_in_two_splits_and_a_problem_is_the_same_when_made_again() -> None:
    questions = {split: {one.question for one in like_prosqa().sample(split, range(50))} for split in ("train", "test")}
    assert not questions["train"] & questions["test"]
    again = LogicConfig(like_prosqa=True).build().sample("train", [7])
    assert again[0] == problems()[7]


def test_invented_names_of_people_begin_with_capitals() -> None:
    (problem,) = LogicConfig(like_prosqa=True, spelled=1.0).build().sample("train", [3])
    pairs, _, _ = _read(problem.question)
    people = {old for old, _ in pairs} - {new for _, new in pairs}
    assert {name for pair in pairs for name in pair if name[0].isupper()} == people


def test_other_questions_about_its_graphs_are_not_offered() -> None:
    assert LogicConfig(like_prosqa=True).traits.questions == 1
    assert LogicConfig().traits.questions > 1


@pytest.mark.parametrize("settings", [{"hops": (3,)}, {"concepts": 25}, {"edges": 30}])
def test_sizes_of_one_s_own_are_refused(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} is set, but like_prosqa draws graphs of its own sizes; leave {name}"):
        LogicConfig(like_prosqa=True, **settings)  # type: ignore[arg-type]
