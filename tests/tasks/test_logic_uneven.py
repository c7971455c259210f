"""Problems whose wrong option lies nearer to its person than the answer, as in published files."""

from __future__ import annotations

from collections import Counter

import pytest

from unspoken.tasks.logic import LogicConfig, LogicTask, _read, _steps_from


def uneven(**settings: object) -> LogicTask:
    return LogicConfig(**{"hops": (3, 4), "wrong_hops": (1, 2), "concepts": 12, "edges": 20, **settings}).build()  # type: ignore[arg-type]


@pytest.mark.parametrize(("hops", "wrong_hops"), [((3, 4), (1, 2)), ((2,), (5,)), ((3,), (3,))])
def test_each_option_is_as_many_steps_from_its_own_person_as_was_asked_for(
    hops: tuple[int, ...], wrong_hops: tuple[int, ...]
) -> None:
    seen = Counter[tuple[int, int]]()
    for problem in uneven(hops=hops, wrong_hops=wrong_hops).sample("train", range(100)):
        pairs, person, options = _read(problem.question)
        (wrong,) = (option for option in options if option != problem.answer)
        (other,) = {old for old, _ in pairs if old[0].isupper()} - {person}
        from_asked, from_other = _steps_from(pairs, person), _steps_from(pairs, other)
        assert wrong not in from_asked
        assert problem.answer not in from_other
        assert not {wrong, problem.answer} & {old for old, _ in pairs}
        parents = Counter(new for _, new in pairs)
        assert parents[wrong] == parents[problem.answer]
        assert all(chain.count(".") == from_asked[problem.answer] for chain in problem.chains)
        seen[from_asked[problem.answer], from_other[wrong]] += 1
    assert set(seen) == {(right, wrong) for right in hops for wrong in wrong_hops}


def test_who_is_asked_about_has_either_name_and_the_answer_either_place() -> None:
    problems = uneven().sample("test", range(200))
    first = sum(_read(problem.question).options[0] == problem.answer for problem in problems)
    assert 70 < first < 130
    earlier = 0
    for problem in problems:
        pairs, person, _ = _read(problem.question)
        earlier += next(old for old, _ in pairs if old[0].isupper()) == person
    assert 70 < earlier < 130


def test_no_graph_is_in_two_splits() -> None:
    made = uneven()
    questions = {split: {one.question for one in made.sample(split, range(50))} for split in ("train", "test")}
    assert not questions["train"] & questions["test"]


def test_without_it_nothing_changes() -> None:
    even = LogicConfig(hops=(3, 4), concepts=12, edges=20)
    assert even.build().fingerprint != uneven().fingerprint
    assert (
        even.build().fingerprint != LogicConfig(hops=(3, 4), concepts=12, edges=20, wrong_hops=(3,)).build().fingerprint
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wrong_hops": (0,)}, "wrong_hops"),
        ({"wrong_hops": (9,)}, "wrong_hops"),
        ({"wrong_hops": (5,)}, "concepts is 12; it must be 13 to 41 for 4 hops and 5 wrong_hops"),
    ],
)
def test_what_cannot_be_made_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        uneven(**settings)
