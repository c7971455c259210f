"""Answers are graded by what stands in the last box: in value, as numbers, texts or choices, or by a function."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.tasks import grading
from unspoken.tasks.grading import (
    _same_mathematics,
    answer_fault,
    boxed,
    choice_of,
    graded,
    name_of,
    number_of,
    plain,
)
from unspoken.tasks.problems import ReasoningProblem


def problem(answer: str, grader: str = "math") -> ReasoningProblem:
    return ReasoningProblem(question="How many?", chains=(), answer=answer, key="row", grader=grader)


def is_right(reply: str, answer: str) -> bool:
    return bool(graded([reply], [problem(answer)])[0])


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
    ("reply", "answer"),
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
def test_the_same_letters_or_the_same_value_are_right(reply: str, answer: str) -> None:
    assert is_right(reply, answer)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (r"\boxed{81}", "18"),
        (r"\boxed{-18}", "18"),
        (r"\boxed{180}", "18"),
        (r"\boxed{17, 18}", "18"),
        (r"\boxed{18!}", "18"),
        (r"\boxed{}", "18"),
        (r"\boxed{many}", "18"),
        (r"\boxed{guw}", "wug"),
        (r"\boxed{ba}", "ab"),
        (r"\boxed{((((}", "18"),
        (r"first \boxed{18} then \boxed{7}", "18"),
        ("18", "18"),
        ("", "18"),
        (r"\boxed{18", "18"),
    ],
)
def test_anything_else_is_wrong(reply: str, answer: str) -> None:
    assert not is_right(reply, answer)


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
    actual: list[bool] = []
    thread = threading.Thread(target=lambda: actual.extend([is_right(r"\boxed{23.0}", "23"), is_right("no", "23")]))
    thread.start()
    thread.join()
    assert actual == [True, False]


def test_a_number_too_large_to_compute_is_wrong_and_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "_TIME_LIMIT", 1)
    assert graded([r"\boxed{9^{9^{9}}}", r"\boxed{24.0}"], [problem("18"), problem("24")]).tolist() == [False, True]


# --- by name ---------------------------------------------------------------------------------------------------------

BUILT_IN = ("math", "number", "string", "choice")


def right_by(grader: str, inside: str, answer: str) -> bool:
    return bool(graded([f"So \\boxed{{{inside}}}."], [problem(answer, grader)])[0])


@pytest.mark.parametrize(
    ("grader", "inside", "answer"),
    [
        ("number", "18.0", "18"),
        ("number", "$1,234.50", "1234.5"),
        ("number", "-$3", "-3"),
        ("number", "\\$3", "3"),
        ("number", "1{,}000", "1000"),
        ("number", "+7", "7"),
        ("number", "4/5", "0.8"),
        ("number", ".5", "1/2"),
        ("number", "2e3", "2,000"),
        ("number", "50%", "50"),
        ("number", "−3", "-3"),
        ("number", "４2", "42"),
        ("number", "-0", "0"),
        ("string", "  New   YORK. ", "new york"),
        ("string", "Straße", "strasse"),
        ("string", "café", "café"),
        ("choice", "b", "B"),
        ("choice", "(B)", "B"),
        ("choice", "B) Paris", "(b)"),
        ("choice", "B. Paris", "B"),
        ("choice", "12", "(12)"),
    ],
)
def test_two_spellings_of_one_answer_are_right(grader: str, inside: str, answer: str) -> None:
    assert right_by(grader, inside, answer)
    assert right_by(grader, answer, answer)


@pytest.mark.parametrize(
    ("grader", "inside", "answer"),
    [
        ("number", "18.000001", "18"),
        ("number", "50%", "0.5"),
        ("number", "18 pears", "18"),
        ("number", "9*2", "18"),
        ("number", "1,2", "12"),
        ("number", "4/0", "0"),
        ("number", "1e9999", "1"),
        ("number", "\u0663", "3"),
        ("number", "", "0"),
        ("string", "York", "New York"),
        ("string", "York New", "New York"),
        ("string", ".", "x"),
        ("choice", "C", "B"),
        ("choice", "Berlin", "B"),
        ("choice", "B Paris", "B"),
        ("choice", "A or B", "A"),
        ("choice", "", "B"),
    ],
)
def test_another_answer_is_wrong(grader: str, inside: str, answer: str) -> None:
    assert not right_by(grader, inside, answer)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-3/4", Fraction(-3, 4)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("12/1,000", Fraction(12, 1000)),
        ("1e-2", Fraction(1, 100)),
        ("5.", Fraction(5)),
        ("+€2", Fraction(2)),
        ("£2", Fraction(2)),
        ("-$2", Fraction(-2)),
        ("$-2", Fraction(-2)),
        ("1,23", None),
        ("1/2/3", None),
        ("3/0", None),
        ("--3", None),
        ("", None),
    ],
)
def test_the_number_that_a_text_is(text: str, number: Fraction | None) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize(
    ("text", "label"),
    [("b", "B"), ("(B)", "B"), ("[c]", "C"), ("B: Paris\nor so", "B"), ("12)", "12"), ("123", None), ("B) Paris", "B")]
    + [(text, None) for text in ("B)Paris", "BC", "", "-1", "B Paris")],
)
def test_the_label_of_a_choice(text: str, label: str | None) -> None:
    assert choice_of(text) == label


@pytest.mark.parametrize(
    ("grader", "answer", "fault"),
    [
        ("math", "18", None),
        ("math", "{", "the answer '{' has braces that do not balance, so no box can hold it"),
        ("math", " . ", "the answer ' . ' is blank"),
        ("number", "many", "the answer 'many' is not a number, which the grader 'number' needs"),
        ("math", "many", None),
        ("choice", "Paris", "the answer 'Paris' is not a label such as B or (B), which the grader 'choice' needs"),
        ("string", "Paris", None),
        ("number", "B", "the answer 'B' is not a number, which the grader 'number' needs"),
        ("choice", "B", None),
    ],
)
def test_what_is_wrong_with_a_right_answer(grader: str, answer: str, fault: str | None) -> None:
    assert answer_fault(grader, answer) == fault


def test_a_comparison_has_five_seconds() -> None:
    assert grading._TIME_LIMIT == 5
    assert graded.__doc__ is not None
    assert "longer than five\n" in graded.__doc__


decimals = st.decimals(min_value=-(10**12), max_value=10**12, places=4, allow_nan=False)


@given(value=decimals)
def test_every_way_to_write_a_number_is_that_number(value: Decimal) -> None:
    plainly = format(value, "f")
    for text in (plainly, format(value, ",f"), f"{plainly}0", f"${value:f}" if value > 0 else plainly, f" {plainly} "):
        assert number_of(text) == Fraction(value)


@given(one=decimals, other=decimals)
def test_numbers_are_compared_exactly(one: Decimal, other: Decimal) -> None:
    assert right_by("number", format(one, "f"), format(other, "f")) == (one == other)


@pytest.mark.parametrize("grader", BUILT_IN)
@given(answer=st.text(max_size=12) | st.from_regex(r"\(?[A-Da-d]\)?|-?[0-9]{1,6}(\.[0-9]+)?", fullmatch=True))
def test_the_answer_itself_is_right_wherever_it_is_accepted(grader: str, answer: str) -> None:
    if answer_fault(grader, answer) is None:
        assert right_by(grader, answer, answer)


@pytest.mark.parametrize("grader", ["number", "string", "choice"])
@given(text=st.text(max_size=40), answer=st.text(min_size=1, max_size=12))
def test_no_text_breaks_a_grader(grader: str, text: str, answer: str) -> None:
    inside = boxed(text)
    right = bool(graded([text], [problem(answer, grader)])[0])
    assert inside is not None or not right
    if all(boxed(f"\\boxed{{{one}}}") == one for one in (text, answer)):
        assert right_by(grader, text, answer) == right_by(grader, answer, text)


@given(answer=st.text(min_size=1, max_size=12), spaces=st.text(" \t\n", min_size=1, max_size=3))
def test_case_and_spaces_are_not_part_of_a_string(answer: str, spaces: str) -> None:
    assert plain(f"{spaces}{answer}{spaces}".upper().lower()) == plain(answer.upper().lower())
    assert plain(f"a{spaces}b") == "a b"


def test_a_number_of_thousands_of_digits_is_none_and_does_not_hang() -> None:
    assert number_of("9" * 5000) is None
    assert number_of("1e999") == 10**999


def test_a_problem_without_a_known_answer_has_no_right_text() -> None:
    for grader in BUILT_IN:
        assert not graded([r"\boxed{}"], [problem("", grader)])[0]


def test_an_unknown_grader_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="grader is 'maths'; choose one of number, math, string, choice, or your own"):
        graded([r"\boxed{1}"], [problem("1", "maths")])


# --- a user's own ----------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module and gives its name, another one in every test."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> str:
        name = f"own_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def test_a_function_of_one_s_own_gets_the_inside_of_the_box_and_the_problem(own: Callable[[str], str]) -> None:
    name = own("def longest(answer, problem):\n    return len(answer) >= len(problem.answer)\n")
    texts = [r"\boxed{ four }", r"\boxed{no}", "four"]
    assert graded(texts, [problem("four", f"{name}:longest")] * 3).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def right(answer): return True", "must be a function of .answer, problem.: too many positional arguments"),
        ("def right(answer, problem): return 'yes'", "gave 'yes' for problem row; it must give True or False"),
        ("def right(answer, problem): return 1 / 0", "failed on problem row: ZeroDivisionError: division by zero"),
        ("def right(answer, problem, *, strict): return True", "missing a required argument: 'strict'"),
        ("right = 3", "is int; it must be a function"),
        ("def wrong(): pass", "cannot be imported .AttributeError"),
        ("raise RuntimeError('two\\nlines')", "cannot be imported .RuntimeError: two lines.; start where own_"),
    ],
)
def test_what_is_wrong_with_a_function_is_told_in_one_line(
    own: Callable[[str], str], source: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        graded([r"\boxed{1}"], [problem("1", f"{own(source)}:right")])
    assert "\n" not in str(error.value)


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"'nowhere_to_be_seen:right' cannot be imported .ModuleNotFoundError"):
        graded([r"\boxed{1}"], [problem("1", "nowhere_to_be_seen:right")])


def test_a_module_of_the_current_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grader_of_this_folder.py").write_text("def right(answer, problem):\n    return answer == 'x'\n")
    assert graded([r"\boxed{x}", r"\boxed{1}"], [problem("1", "grader_of_this_folder:right")] * 2).tolist() == [
        True,
        False,
    ]


def test_a_function_is_recorded_by_the_name_that_it_is_imported_by(own: Callable[[str], str]) -> None:
    module = own("def right(answer, problem):\n    return True\n")
    name = f"{module}:right"
    function = importlib.import_module(module).right
    assert name_of(function) == name
    assert graded([r"\boxed{1}"], [problem("2", name)]).tolist() == [True]
    again = own(
        "def right(answer, problem):\n    return True\nfirst = right\ndef right(answer, problem):\n    return False\n"
    )
    importlib.reload(importlib.import_module(again))
    # Its name is that of another function by now.
    replaced = importlib.import_module(again).first
    for nameless in (lambda *_: True, partial(function, ""), replaced):
        with pytest.raises(ValueError, match="which has no name to import it by; define it at the top of a module"):
            name_of(nameless)


# --- numbers as people write them ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "given", "right"),
    [
        *[("18", given, True) for given in (r"\$18", "$18", "18.00", r"\text{18}", "18 dollars", "18 people", "18.")],
        *[("18", given, False) for given in ("-18", "18 million", "18 pi", "18 x", "18 18")],
        *[("18", given, False) for given in ("18 squared", "18 and 19", "17 dollars", "dollars 19", "")],
        ("1000", "1e3", True),
        ("1000", "1,000", True),
        ("1000", "1 thousand", True),
        ("73", "73.", True),
        ("1.5", "1 1/2", True),
        ("-1.5", "-1 1/2", True),
        ("0.5", "-1 1/2", False),
        ("2880000", "2.88 million", True),
        ("2880000", "2.88 million dollars", True),
        ("3000000000", "3 billion", True),
        ("2000000000000", "2 trillion", True),
        ("3000000000", "3 thousand million", False),
        ("3000", "3 thousand million", False),
        ("18", "18 big red pears", True),
        ("18", "18 very big red pears", False),
        ("18", "18 1/0", False),
        ("0.5", r"50\%", True),
        ("18 cents", "18 dollars", False),
        ("Omega", "\N{GREEK CAPITAL LETTER OMEGA}", True),
        ("\N{GREEK CAPITAL LETTER OMEGA}", "Omega", True),
        ("2^{10}", "1024", True),
    ],
)  # fmt: skip
def test_a_number_as_a_person_writes_it(answer: str, given: str, right: bool) -> None:
    assert _same_mathematics(given, answer) == right


@pytest.mark.parametrize("given", ["9^{9^9}", "9^9^9", "9**9**9", "2^{99999999}", "123456!", "((9!)!)!", "9!!!"])
def test_a_tower_of_powers_is_not_computed_in_any_thread(given: str) -> None:
    verdicts: list[bool] = []
    thread = threading.Thread(target=lambda: verdicts.append(_same_mathematics(given, "18")), daemon=True)
    thread.start()
    thread.join(10)
    assert verdicts == [False]
