"""What was said is graded by what stands in the last box, in value."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.tasks.problems import ReasoningProblem, boxed, graded


def problem(answer: str) -> ReasoningProblem:
    return ReasoningProblem(question="How many?", chains=(), answer=answer, key="row")


def is_right(said: str, answer: str) -> bool:
    return bool(graded([said], [problem(answer)])[0])


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{18}", "18"),
        (r"So it is \boxed{18}.", "18"),
        (r"\boxed{12} no, \boxed{18}", "18"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{ 18 }", " 18 "),
        (r"\boxed {18}", "18"),
        (r"\boxed{}", ""),
        (r"\boxed{12} and then \boxed{1", "12"),  # cut off by the limit of tokens
        (r"\boxed{\}", None),
        (r"\boxed{18", None),
        (r"\boxed 18", None),
        ("18", None),
        ("boxed{18}", None),
        ("", None),
    ],
)
def test_the_last_complete_box_is_read(text: str, inside: str | None) -> None:
    assert boxed(text) == inside


balanced = st.recursive(
    st.text("ab1 +", max_size=4), lambda inner: st.builds("{}{{{}}}{}".format, inner, inner, inner), max_leaves=8
)


@given(before=st.text("ab }", max_size=6), inside=balanced, after=st.text("ab }", max_size=6))
def test_a_box_ends_where_its_braces_balance(before: str, inside: str, after: str) -> None:
    assert boxed(f"{before}\\boxed{{{inside}}}{after}") == inside


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (r"\boxed{18}", "18"),
        (r"\boxed{ 18 }", "18 "),
        (r"\boxed{18.0}", "18"),
        (r"\boxed{\frac{36}{2}}", "18"),
        (r"\boxed{9*2}", "18"),
        (r"\boxed{\$18}", "18"),
        (r"\boxed{1,234}", "1234"),
        (r"\boxed{4/5}", "0.8"),
        (r"\boxed{-3}", "-3"),
        (r"\boxed{5:45}", "5:45"),
        (r"first \boxed{7} then \boxed{18}", "18"),
    ],
)
def test_the_same_letters_or_the_same_value_are_right(said: str, answer: str) -> None:
    assert is_right(said, answer)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (r"\boxed{81}", "18"),
        (r"\boxed{-18}", "18"),
        (r"\boxed{180}", "18"),
        (r"\boxed{17, 18}", "18"),
        (r"\boxed{18!}", "18"),
        (r"\boxed{}", "18"),
        (r"\boxed{many}", "18"),
        (r"\boxed{guw}", "wug"),
        (r"\boxed{((((}", "18"),
        (r"first \boxed{18} then \boxed{7}", "18"),
        ("18", "18"),
        ("", "18"),
        (r"\boxed{18", "18"),
    ],
)
def test_anything_else_is_wrong(said: str, answer: str) -> None:
    assert not is_right(said, answer)


def test_a_batch_is_graded_row_by_row() -> None:
    right = graded([r"\boxed{1}", "nothing", r"\boxed{3}", r"\boxed{4.0}"], [problem(text) for text in "1224"])
    assert right.dtype == np.bool_
    assert right.tolist() == [True, False, False, True]


def test_an_empty_batch_is_empty() -> None:
    assert graded([], []).shape == (0,)


def test_every_problem_needs_a_text() -> None:
    with pytest.raises(ValueError, match="1 texts for 2 problems"):
        graded([r"\boxed{1}"], [problem("1"), problem("2")])


def test_grading_works_outside_the_main_thread() -> None:
    # The library's own time limit is a signal, which other threads cannot have.
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.extend([is_right(r"\boxed{23.0}", "23"), is_right("no", "23")]))
    thread.start()
    thread.join()
    assert found == [True, False]


def test_a_number_too_large_to_compute_is_wrong_and_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_TIME_LIMIT", 1)
    assert graded([r"\boxed{9^{9^{9}}}", r"\boxed{24.0}"], [problem("18"), problem("24")]).tolist() == [False, True]
