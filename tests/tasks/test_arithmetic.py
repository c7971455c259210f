"""The text of a made-up problem says what its chains compute, and no calculation is in two splits.

The reference is a reader that knows English sentences and nothing of how problems are made.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest

from unspoken.tasks import arithmetic
from unspoken.tasks.arithmetic import NAMES, ArithmeticConfig, ArithmeticTask, Operation
from unspoken.tasks.grading import boxed
from unspoken.tasks.problems import ReasoningProblem, ReasoningTask

SPLITS = ("train", "validation", "test")
EVERY_OPERATION: tuple[Operation, ...] = ("add", "subtract", "multiply", "divide")

# new person, number, old person, other person; every sentence of the task in words of our own
P, N, W = "([A-Z][a-z]+)", "([0-9]+)", "[a-z]+"
GIVEN = [f"{P} has {N} {W}", f"{P} owns {N} {W}", f"The bag of {P} holds {N} {W}"]
BY_NUMBER = [
    ("+", f"{P} has {N} more {W} than {P}", "new number old"),
    ("+", f"{P} has as many {W} as {P} would have after finding {N} more", "new old number"),
    ("+", f"{P} owns the same number of {W} as {P} and {N} more", "new old number"),
    ("-", f"{P} has {N} fewer {W} than {P}", "new number old"),
    ("-", f"{P} has as many {W} as {P} would have after giving away {N}", "new old number"),
    ("-", f"{P} owns {N} {W} less than {P} does", "new number old"),
    ("*", f"{P} has {N} times as many {W} as {P}", "new number old"),
    ("*", f"For each of the {W} that {P} has, {P} has {N}", "old new number"),
    ("*", f"{P} owns {N} times the number of {W} that {P} owns", "new number old"),
    ("/", f"{P} has as many {W} as there are in one of {N} equal shares of what {P} has", "new number old"),
    (
        "/",
        f"If {P} filled {N} bags with the same number of {W}, each bag would hold as many as {P} has",
        "old number new",
    ),
]
BY_PEOPLE = [
    ("+", f"{P} has as many {W} as {P} and {P} together", "new old other"),
    ("+", f"{P} owns the same number of {W} as {P} and {P} put together", "new old other"),
    ("-", f"{P} has as many {W} as {P} would need to catch up with {P}", "new other old"),
    ("-", f"What {P} has is the difference between the {W} of {P} and the {W} of {P}", "new old other"),
]
ASKED = [
    ("+", rf"How many {W} do {P} and {P} have together\?", "old other"),
    ("+", rf"{P} and {P} put all their {W} in one box\. How many {W} are in the box\?", "old other"),
    ("+", rf"How many {W} do {P} and {P} own in all\?", "old other"),
    ("-", rf"How many more {W} does {P} have than {P}\?", "old other"),
    ("-", rf"How many fewer {W} does {P} have than {P}\?", "other old"),
    ("-", rf"How many {W} must {P} find to have as many as {P}\?", "other old"),
    ("", rf"How many {W} does {P} have\?", "old"),
    ("", rf"How many {W} does {P} own\?", "old"),
]
# of one person, whose number changes
CHANGES = [
    ("+", f"{P} finds {N} more"),
    ("+", f"{P} buys {N} more"),
    ("+", f"A friend gives {P} {N}"),
    ("-", f"{P} loses {N}"),
    ("-", f"{P} sells {N} of them"),
    ("-", f"{P} gives away {N}"),
    ("*", f"Then {P} has {N} times as many"),
    ("*", f"{P} makes {N} out of each"),
    ("/", f"{P} keeps one of {N} equal shares"),
    ("/", f"{P} swaps every {N} for one"),
]
ASKED_NOW = (rf"How many {W} does {P} have now\?", rf"How many {W} are left\?")
COMPUTE: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


@dataclass
class Read:
    """What a reader understands: for each person (and the question, "?") how the number comes about."""

    given: dict[str, int] = field(default_factory=dict)
    steps: dict[str, tuple[str, str, str | int]] = field(default_factory=dict)  # sign, person, person or number
    asked: str = "?"

    def solve(self, change: str = "") -> dict[str, Fraction]:
        """Everybody's number; a person may be given one thing more than there should be."""
        actual = {person: Fraction(number) + (person == change) for person, number in self.given.items()}
        for person, (sign, old, operand) in self.steps.items():
            by = actual[operand] if isinstance(operand, str) else Fraction(operand)
            actual[person] = COMPUTE[sign](actual[old], by) + (person == change)
        return actual

    def equations(self) -> dict[str, str]:
        actual = self.solve()
        return {
            person: f"<<{actual[old]}{sign}{actual[by] if isinstance(by, str) else by}={actual[person]}>>"
            for person, (sign, old, by) in self.steps.items()
        }

    def needs(self, person: str) -> set[str]:
        """The people whose steps must come before this one."""
        _, old, by = self.steps[person]
        return {other for other in (old, by) if isinstance(other, str)} & set(self.steps)

    def calculation(self, person: str) -> tuple[object, ...]:
        """The expression behind a number, blind to names and to the order of terms and factors."""
        if person in self.given:
            return (self.given[person],)
        sign, old, by = self.steps[person]
        terms = [self.calculation(old), self.calculation(by) if isinstance(by, str) else (by,)]
        return (sign, *(sorted(terms, key=repr) if sign in "+*" else terms))


def read_changes(sentences: list[str]) -> Read:
    """A problem about one person, who is another one ("Ann, after 2") after every change."""
    first, *changes, asked = sentences
    (given,) = [match for pattern in GIVEN if (match := re.fullmatch(pattern, first.removesuffix(".")))]
    person, number = given.groups()
    actual = Read(given={person: int(number)}, asked=f"{person}, after {len(changes)}")
    latest = person
    for count, sentence in enumerate(changes, start=1):
        ((sign, match),) = [
            (sign, match) for sign, pattern in CHANGES if (match := re.fullmatch(pattern, sentence.removesuffix(".")))
        ]
        assert match[1] == person
        actual.steps[f"{person}, after {count}"] = (sign, latest, int(match[2]))
        latest = f"{person}, after {count}"
    (match,) = [match for pattern in ASKED_NOW if (match := re.fullmatch(pattern, asked))]
    assert set(match.groups()) <= {person}
    return actual


def read(question: str) -> Read:
    if re.fullmatch(f"(.*[.] )?({'|'.join(ASKED_NOW)})", question):
        return read_changes(re.findall(r"[^.?]+[.?]", question.replace(". ", ".")))
    actual = Read()
    sentences = re.findall(r"[^.?]+[.?](?: How many [a-z]+ are in the box\?)?", question)
    for sentence in map(str.strip, sentences):
        if sentence.endswith("?"):
            ((sign, match, order),) = [
                (sign, match, order) for sign, pattern, order in ASKED if (match := re.fullmatch(pattern, sentence))
            ]
            people = dict(zip(order.split(), match.groups(), strict=True))
            if sign:
                actual.steps["?"] = (sign, people["old"], people["other"])
            else:
                actual.asked = people["old"]
            continue
        bare = sentence.removesuffix(".")
        given = [match for pattern in GIVEN if (match := re.fullmatch(pattern, bare))]
        steps = [
            (sign, dict(zip(order.split(), match.groups(), strict=True)))
            for sign, pattern, order in BY_NUMBER + BY_PEOPLE
            if (match := re.fullmatch(pattern, bare))
        ]
        assert len(given) + len(steps) == 1, f"read in {len(given) + len(steps)} ways: {sentence!r}"
        if given:
            person, number = given[0].groups()
            new, known = person, {}
            actual.given[person] = int(number)
        else:
            sign, known = steps[0]
            new = known.pop("new")
            by: str | int = known["other"] if "other" in known else int(known.pop("number"))
            assert set(known.values()) <= {*actual.given, *actual.steps}, f"unknown person in {sentence!r}"
            assert new not in {*actual.given, *actual.steps}, f"{new} has two numbers in {question!r}"
            actual.steps[new] = (sign, known["old"], by)
    return actual


def orders(problem: Read) -> set[str]:
    """All valid chains, by trying every order."""
    equations = problem.equations()
    return {
        " ".join(equations[person] for person in order)
        for order in itertools.permutations(equations)
        if all(problem.needs(person) <= set(order[:position]) for position, person in enumerate(order))
    }


def task(**settings: object) -> ArithmeticTask:
    return ArithmeticConfig(**settings).build()  # type: ignore[arg-type]


TASKS = [
    task(),
    task(operations=EVERY_OPERATION),
    task(steps=(1, 6), operations=EVERY_OPERATION, largest=200),
    task(steps=(3,), operations=("subtract",), largest=20),
    task(steps=(5,), operations=("add", "divide"), largest=40),
    task(steps=(2, 4), largest=20, joins=False),
    task(steps=(3, 5), joins=False, operations=EVERY_OPERATION),
]


@pytest.fixture(
    params=TASKS,
    ids=[
        "default",
        "all operations",
        "one and six",
        "subtract alone",
        "add and divide",
        "one person",
        "one person, all operations",
    ],
)
def made(request: pytest.FixtureRequest) -> tuple[ArithmeticTask, list[ReasoningProblem]]:
    return request.param, request.param.sample("train", range(400))


def test_the_text_says_what_the_answer_is(made: tuple[ArithmeticTask, list[ReasoningProblem]]) -> None:
    for problem in made[1]:
        facts = read(problem.question)
        assert str(facts.solve()[facts.asked]) == problem.answer, problem


def test_chains_are_all_valid_orders_and_the_first_is_the_order_of_telling(
    made: tuple[ArithmeticTask, list[ReasoningProblem]],
) -> None:
    for problem in made[1]:
        facts = read(problem.question)
        valid = orders(facts)
        assert problem.chains[0] == " ".join(facts.equations().values())
        assert len(problem.chains) == min(len(valid), 8)
        assert len(set(problem.chains)) == len(problem.chains)
        assert set(problem.chains) <= valid


def test_numbers_are_whole_and_within_bounds(made: tuple[ArithmeticTask, list[ReasoningProblem]]) -> None:
    for problem in made[1]:
        largest = made[0].config.largest
        assert all(int(number) <= largest for number in re.findall("[0-9]+", problem.question + problem.chains[0]))
        results = read(problem.question).solve().values()
        assert all(result.denominator == 1 and 0 <= result <= largest for result in results)


def test_without_joins_each_step_changes_the_number_of_one_person() -> None:
    made = task(steps=(2, 4), largest=20, joins=False, operations=EVERY_OPERATION).sample("train", range(400))
    assert {name for problem in made for name in NAMES if re.search(rf"\b{name}\b", problem.question)} == set(NAMES)
    for problem in made:
        assert sum(bool(re.search(rf"\b{name}\b", problem.question)) for name in NAMES) == 1
        (chain,) = problem.chains
        steps = [re.fullmatch(r"<<(\d+)[-+*/](\d+)=(\d+)>>", step) for step in chain.split()]
        numbers = [tuple(map(int, step.groups())) for step in steps if step]
        assert len(numbers) in (2, 4)
        assert all(result == taken for (_, _, result), (taken, _, _) in itertools.pairwise(numbers))
        assert re.search(r"\d+", problem.question)[0] == str(numbers[0][0])  # type: ignore[index]


def test_every_number_matters_to_the_answer(made: tuple[ArithmeticTask, list[ReasoningProblem]]) -> None:
    for problem in made[1]:
        facts = read(problem.question)
        right = facts.solve()[facts.asked]
        for person in (*facts.given, *facts.steps):
            assert facts.solve(change=person)[facts.asked] != right, (person, problem)


def test_steps_and_operations_are_those_asked_for(made: tuple[ArithmeticTask, list[ReasoningProblem]]) -> None:
    config = made[0].config
    signs = {arithmetic.SYMBOLS[operation] for operation in config.operations}
    assert {sign for problem in made[1] for sign, _, _ in read(problem.question).steps.values()} == signs
    lengths = Counter(problem.chains[0].count("<<") for problem in made[1])
    assert set(lengths) == set(config.steps)
    assert min(lengths.values()) > 0.75 * len(made[1]) / len(config.steps)


def test_long_problems_often_have_several_orders() -> None:
    long = [problem for problem in TASKS[0].sample("train", range(1000)) if problem.chains[0].count("<<") >= 3]
    assert sum(len(problem.chains) > 1 for problem in long) > 0.4 * len(long)


def test_all_names_things_and_ways_of_saying_it_occur() -> None:
    questions = [problem.question for problem in TASKS[1].sample("train", range(3000))]
    for pattern in [*GIVEN, *(pattern for _, pattern, _ in BY_NUMBER + BY_PEOPLE + ASKED)]:
        assert any(re.search(pattern, question) for question in questions), pattern
    output = set(re.findall("[A-Za-z]+", " ".join(questions)))
    assert {*NAMES, *arithmetic.THINGS} <= output


def test_the_answer_cannot_be_guessed_without_computing() -> None:
    problems = TASKS[0].sample("train", range(2000))
    common = Counter(problem.answer for problem in problems).most_common(1)[0][1]
    assert common < 0.08 * len(problems)
    guesses: dict[str, Callable[[list[int]], int]] = {
        "last": lambda numbers: numbers[-1],
        "sum": sum,
        "product": lambda numbers: int(np.prod(numbers)),
        "first and last": lambda numbers: numbers[0] + numbers[-1],
        "difference": lambda numbers: abs(numbers[0] - numbers[-1]),
        "largest": max,
    }
    for name, guess in guesses.items():
        hits = [
            guess([int(text) for text in re.findall("[0-9]+", row.question)]) == int(row.answer) for row in problems
        ]
        assert sum(hits) < 0.25 * len(problems), name


# --- splits and purity -----------------------------------------------------------------------------------------


def test_order_and_batching_change_nothing() -> None:
    for split in SPLITS:
        full = TASKS[0].sample(split, np.arange(20), seed=3)
        order = np.random.default_rng(0).permutation(20)
        assert TASKS[0].sample(split, order, seed=3) == [full[index] for index in order]
        assert [task().sample(split, [index], seed=3)[0] for index in range(20)] == full
    assert TASKS[0].sample("train", []) == []


def test_a_sample_is_the_same_in_every_process_and_version() -> None:
    # If a library ever changes this, results of earlier runs are no longer comparable.
    (problem,) = TASKS[0].sample("train", [1])
    assert problem == ReasoningProblem(
        question="Lea owns 31 marbles. The bag of Ann holds 42 marbles. Pam has as many marbles as Lea would need to "
        "catch up with Ann. Eli has as many marbles as Lea would have after giving away 30. "
        "How many fewer marbles does Eli have than Pam?",
        chains=("<<42-31=11>> <<31-30=1>> <<11-1=10>>", "<<31-30=1>> <<42-31=11>> <<11-1=10>>"),
        answer="10",
        key="train:0:1",
    )


def test_seeds_splits_and_indices_give_different_problems() -> None:
    problems = [row for split in SPLITS for seed in range(3) for row in TASKS[0].sample(split, range(100), seed)]
    assert len({problem.question for problem in problems}) == len(problems)
    assert len({problem.key for problem in problems}) == len(problems)


def test_large_indices_are_samples_too() -> None:
    assert len({row.question for row in TASKS[0].sample("train", np.array([0, 10**6, 10**12, 2**62]))}) == 4


@pytest.mark.parametrize("settings", [{}, {"steps": (1, 2), "largest": 20, "operations": EVERY_OPERATION}])
def test_no_calculation_is_in_two_splits(settings: dict[str, object]) -> None:
    actual: dict[str, set[tuple[object, ...]]] = {}
    for split in SPLITS:
        count = 1500 if split == "train" else 300
        problems = [row for seed in (0, 1) for row in task(**settings).sample(split, range(count), seed)]
        facts = [read(problem.question) for problem in problems]
        actual[split] = {each.calculation(each.asked) for each in facts}
    assert len(actual["test"]) > 5
    for first, second in itertools.combinations(SPLITS, 2):
        assert not actual[first] & actual[second], (first, second)


def test_splits_share_out_the_calculations() -> None:
    quantity = arithmetic._Quantity
    shares = Counter(
        arithmetic._split_of([quantity(a), quantity(b), quantity(a - b, "subtract", (0, 1))])
        for a in range(100)
        for b in range(100)
    )
    assert abs(shares["train"] / 10_000 - 6 / 8) < 0.02
    assert abs(shares["validation"] / 10_000 - 1 / 8) < 0.015
    assert abs(shares["test"] / 10_000 - 1 / 8) < 0.015


def test_the_split_is_blind_to_the_order_of_telling_and_of_terms() -> None:
    quantity = arithmetic._Quantity
    seen = set()
    for number in range(2, 40):
        one = [
            quantity(number),
            quantity(number + 3, "add", (0,), 3),
            quantity(number * 2, "multiply", (0,), 2),
            quantity(number * 3 + 3, "add", (1, 2)),
        ]
        other = [
            quantity(number),
            quantity(number * 2, "multiply", (0,), 2),
            quantity(number + 3, "add", (0,), 3),
            quantity(number * 3 + 3, "add", (1, 2)),
        ]
        assert arithmetic._split_of(one) == arithmetic._split_of(other)
        seen.add(arithmetic._split_of(one))
    assert seen == set(SPLITS)


# Ann has 12 things; D is half of that and one more, or what Ann and Bo have together.
ANN, BO = arithmetic._Quantity(12), arithmetic._Quantity(3)
HALF = [ANN, arithmetic._Quantity(6, "divide", (0,), 2), arithmetic._Quantity(7, "add", (1,), 1)]
BOTH = [ANN, BO, arithmetic._Quantity(15, "add", (0, 1))]


@pytest.mark.parametrize(
    ("quantities", "idle"),
    [
        ([ANN], False),
        (BOTH, False),
        ([ANN, BO, arithmetic._Quantity(13, "add", (0,), 1)], True),  # nobody asks for what Bo has
        ([*BOTH, arithmetic._Quantity(3, "subtract", (2, 0))], True),
        ([*BOTH, arithmetic._Quantity(12, "subtract", (2, 1))], True),
        ([*BOTH, arithmetic._Quantity(27, "add", (2, 0))], False),
        ([ANN, BO, arithmetic._Quantity(9, "subtract", (0, 1)), arithmetic._Quantity(12, "add", (2, 1))], True),
        ([ANN, arithmetic._Quantity(19, "add", (0,), 7), arithmetic._Quantity(7, "subtract", (1, 0))], True),
        ([ANN, arithmetic._Quantity(10, "subtract", (0,), 2), arithmetic._Quantity(2, "subtract", (0, 1))], True),
        ([ANN, arithmetic._Quantity(24, "multiply", (0,), 2), arithmetic._Quantity(12, "subtract", (1, 0))], False),
        # Twice the half of it and one more is what Ann has and two; three times as much is more.
        ([*HALF, arithmetic._Quantity(14, "multiply", (2,), 2), arithmetic._Quantity(2, "subtract", (3, 0))], True),
        ([*HALF, arithmetic._Quantity(21, "multiply", (2,), 3), arithmetic._Quantity(9, "subtract", (3, 0))], False),
        ([*HALF, arithmetic._Quantity(5, "subtract", (0, 2))], False),
    ],
)
def test_a_quantity_is_idle_where_it_cancels_out(quantities: list[arithmetic._Quantity], idle: bool) -> None:
    assert arithmetic._has_idle(quantities) is idle


# --- tokens ----------------------------------------------------------------------------------------------------


def test_numbers_signs_and_markers_are_one_token_each() -> None:
    tokenizer = TASKS[0].tokenizer
    pieces = [*map(str, range(100)), "<<", ">>", "=", "+", "-", "*", "/", ".", "?", ",", "\\boxed{", "}", "pears"]
    for piece in [*pieces, "<think>", "</think>", "[PAD]", "[EOS]"]:
        assert len(tokenizer(piece).input_ids) == 1, piece
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.padding_side) == (0, 1, "left")
    assert tokenizer("[PAD][EOS]").input_ids == [0, 1]
    assert tokenizer.chat_template is None


@pytest.mark.parametrize(
    "text", [r"\boxed{18}", "<<5+3=8>> <<5*2=10>> <<18/6=3>> <<8-3=5>>", "<think> <<5+3=8>> </think>"]
)
def test_chains_and_boxes_read_back_as_they_were(text: str) -> None:
    tokenizer = TASKS[0].tokenizer
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_problems_read_back_as_they_were(made: tuple[ArithmeticTask, list[ReasoningProblem]]) -> None:
    tokenizer = made[0].tokenizer
    for problem in made[1]:
        for text in (problem.question, *problem.chains, f"\\boxed{{{problem.answer}}}"):
            assert tokenizer.decode(tokenizer(text).input_ids) == text
        spoken = tokenizer(f"</think>\\boxed{{{problem.answer}}}[EOS]").input_ids
        assert len(spoken) == 5
        assert boxed(tokenizer.decode(spoken, skip_special_tokens=True)) == problem.answer


def test_spaces_are_not_tokens() -> None:
    tokenizer = TASKS[0].tokenizer
    assert tokenizer("<< 5 + 3 = 8 >>").input_ids == tokenizer("<<5+3=8>>").input_ids
    assert tokenizer("Ann has 5 pears .").input_ids == tokenizer("Ann has 5 pears.").input_ids


@pytest.mark.parametrize("text", ["Ann owns 5 unicorns.", "100", "é", "<"])
def test_an_unknown_word_is_never_a_token(text: str) -> None:
    with pytest.raises(Exception, match="UNK"):
        TASKS[0].tokenizer(text)


def test_the_vocabulary_does_not_depend_on_the_operations() -> None:
    assert TASKS[0].tokenizer.get_vocab() == TASKS[1].tokenizer.get_vocab()


# --- typed questions and settings ------------------------------------------------------------------------------


def test_a_typed_question_is_a_problem_without_chain() -> None:
    (problem,) = TASKS[0].parse("  Ann has 5 pears. How many pears does Ann have? ")
    assert problem.question == "Ann has 5 pears. How many pears does Ann have?"
    assert problem.chains == ()
    assert problem.answer == ""


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Ann has 5 unicorns.", "'unicorns'"),
        ("Ann has 100 pears.", "'100'"),
        ("Ann has 007 pears.", "'007'"),
        ("Zoé has 5 pears.", "'Zo'"),
        ("Ann has 5 pears!", "'!'"),
        ("Ann has 5 pears. </think> How many?", "'</think>'"),
        ("Ann has 5 pears. [EOS]", r"'\[EOS\]'"),
        ("  ", "empty"),
    ],
)
def test_a_word_that_the_task_does_not_know_is_named(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        TASKS[0].parse(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": ()}, "steps"),
        ({"steps": (0, 2)}, "steps"),
        ({"steps": (7,)}, "steps"),
        ({"steps": (2, 2)}, "steps"),
        ({"largest": 19}, "largest"),
        ({"operations": ()}, "operations"),
        ({"operations": ("add", "add")}, "operations"),
        ({"operations": ("multiply", "divide")}, "add or subtract"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**settings)


@pytest.mark.parametrize(
    "operations",
    [
        chosen
        for count in range(1, 5)
        for chosen in itertools.combinations(EVERY_OPERATION, count)
        if {"add", "subtract"} & set(chosen)
    ],
    ids="-".join,
)
def test_all_other_settings_have_problems_in_every_split(operations: tuple[Operation, ...]) -> None:
    for steps, joins in itertools.product(range(1, 7), (True, False)):
        smallest = task(steps=(steps,), largest=20, operations=operations, joins=joins)
        for split in SPLITS:
            assert smallest.sample(split, [0])[0].chains[0].count("<<") == steps


def test_it_is_a_word_task() -> None:
    assert isinstance(task(), ReasoningTask)


def test_there_is_no_other_split_and_none_ends() -> None:
    assert TASKS[0].tests == ("test",)
    assert [TASKS[0].size(split) for split in SPLITS] == [None, None, None]  # type: ignore[func-returns-value]
    for ask in (TASKS[0].size, lambda split: TASKS[0].sample(split, [0])):
        with pytest.raises(ValueError, match="no split 'dev'"):
            ask("dev")


def test_the_fingerprint_names_the_settings() -> None:
    made = [task(**changed).fingerprint for changed in ({}, {"largest": 98}, {"steps": (2, 3)}, {"joins": False})]  # type: ignore[dict-item]
    assert len(set(made)) == 4
    assert task().fingerprint == made[0]
    assert made[0] == "37bde99248f1e98f"  # in runs from before there was a choice about joins
    assert re.fullmatch("[0-9a-f]{16}", made[3])
