"""The right option follows from the sentences, the wrong one does not, and nothing but the way to it tells which.

The reference is a reader of the text that knows nothing of how questions are made.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest

from unspoken.tasks.arithmetic import NAMES
from unspoken.tasks.grading import graded
from unspoken.tasks.logic import CONCEPTS, LogicConfig, LogicTask
from unspoken.tasks.logic_graphs import even_graph, split_of_question
from unspoken.tasks.problems import ReasoningProblem, ReasoningTask

SPLITS = ("train", "validation", "test")


class Read(NamedTuple):
    """What a reader understands."""

    pairs: list[tuple[str, str]]
    person: str
    options: list[str]

    @property
    def people(self) -> set[str]:
        return {old for old, _ in self.pairs if old[0].isupper()}

    def inside(self, name: str) -> list[str]:
        """The names of which it is stated directly."""
        return [old for old, new in self.pairs if new == name]

    def places(self, name: str) -> list[int]:
        """The sentences with a name, by number."""
        return [position for position, pair in enumerate(self.pairs) if name in pair]

    def away(self, start: str) -> dict[str, int]:
        """Steps from a name to all that it is, by going round until nothing changes."""
        actual = {start: 0}
        for _ in self.pairs:
            for old, new in self.pairs:
                if old in actual:
                    actual[new] = min(actual.get(new, 99), actual[old] + 1)
        return actual

    def ways(self, goal: str, way: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Every way to a name, short or long."""
        if way[-1] == goal:
            return [way]
        return [actual for old, new in self.pairs if old == way[-1] for actual in self.ways(goal, (*way, new))]


def read(question: str) -> Read:
    facts, _, asked = question.rpartition(". ")
    pairs = []
    for sentence in facts.split(". "):
        words = sentence.removeprefix("Every ").split(" ")
        assert words[1:3] == ["is", "a"], sentence
        assert len(words) == 4
        assert sentence.startswith("Every ") == words[0].islower()
        pairs.append((words[0], words[3]))
    asks, person, article, first, either, second = asked.removesuffix("?").split(" ")
    assert (asks, article, either) == ("Is", "a", "or")
    return Read(pairs, person, [first, second])


def wrong_of(problem: ReasoningProblem) -> str:
    (wrong,) = set(read(problem.question).options) - {problem.answer}
    return wrong


def as_chain(way: tuple[str, ...]) -> str:
    first, *others = itertools.pairwise(way)
    return " ".join([f"{first[0]} is a {first[1]}.", *(f"Every {old} is a {new}." for old, new in others)])


def task(**settings: Any) -> LogicTask:
    return LogicConfig(**settings).build()


TASKS = [
    task(),
    task(hops=(2, 3), concepts=12, edges=20),
    task(hops=(1,), concepts=6, edges=6),
    task(hops=(2, 8), concepts=25, edges=70),
    task(hops=(3,), concepts=10, edges=40, spelled=1.0),
]


@pytest.fixture(scope="module", params=TASKS, ids=["default", "small", "one hop", "large", "spelled"])
def made(request: pytest.FixtureRequest) -> tuple[LogicTask, list[ReasoningProblem]]:
    return request.param, request.param.sample("train", range(60))


# --- answers and chains ----------------------------------------------------------------------------------------


def test_the_person_is_the_answer_and_another_person_alone_is_the_other_option(
    made: tuple[LogicTask, list[ReasoningProblem]],
) -> None:
    for problem in made[1]:
        statement = read(problem.question)
        (other,) = statement.people - {statement.person}
        mine, others = statement.away(statement.person), statement.away(other)
        assert problem.answer in mine
        assert wrong_of(problem) not in mine
        assert wrong_of(problem) in others
        assert problem.answer not in others


def test_chains_are_the_shortest_ways_in_the_order_of_telling(made: tuple[LogicTask, list[ReasoningProblem]]) -> None:
    for problem in made[1]:
        statement = read(problem.question)
        ways = statement.ways(problem.answer, (statement.person,))
        shortest = [way for way in ways if len(way) == min(map(len, ways))]
        shortest.sort(key=lambda way: [statement.pairs.index(pair) for pair in itertools.pairwise(way)])
        assert problem.chains == tuple(map(as_chain, shortest[:8]))


def test_sizes_are_those_asked_for(made: tuple[LogicTask, list[ReasoningProblem]]) -> None:
    config, problems = made[0].config, made[1]
    for problem in problems:
        statement = read(problem.question)
        names = set(itertools.chain(*statement.pairs))
        assert len(statement.people) == 2
        assert len(names) == config.concepts + 2
        assert len(set(statement.pairs)) == len(statement.pairs)
        assert config.concepts <= len(statement.pairs) <= config.edges
        assert all(name not in statement.away(new) for name, new in statement.pairs), "a cycle"
    lengths = Counter(problem.chains[0].count(".") for problem in problems)
    assert set(lengths) == set(config.hops)
    assert min(lengths.values()) > 0.5 * len(problems) / len(config.hops)


def test_questions_are_full_and_often_have_several_chains() -> None:
    problems = TASKS[0].sample("train", range(100))
    assert 0.2 < np.mean([len(problem.chains) > 1 for problem in problems]) < 0.9
    assert np.mean([problem.question.count(".") == 36 for problem in problems]) > 0.9


def test_options_take_two_more_parents_each_where_four_sentences_are_left() -> None:
    problems = task(hops=(2,), concepts=12, edges=16).sample("train", range(40))
    assert {len(read(problem.question).inside(problem.answer)) for problem in problems} == {1, 2, 3}


# --- what cannot be guessed ------------------------------------------------------------------------------------


def test_both_options_have_the_same_depth_and_degree(made: tuple[LogicTask, list[ReasoningProblem]]) -> None:
    for problem in made[1]:
        statement = read(problem.question)
        (other,) = statement.people - {statement.person}
        right, wrong = problem.answer, wrong_of(problem)
        assert statement.away(statement.person)[right] == statement.away(other)[wrong]
        assert len(statement.inside(right)) == len(statement.inside(wrong))
        assert not {right, wrong} & {old for old, _ in statement.pairs}


Guess = Callable[[Read, str], float]  # how much speaks for an option

GUESSES: dict[str, Guess] = {
    "asked first": lambda statement, option: -statement.options.index(option),
    "stated early": lambda statement, option: -statement.places(option)[0],
    "stated late": lambda statement, option: statement.places(option)[-1],
    "stated often": lambda statement, option: len(statement.places(option)),
    "deep": lambda statement, option: max(statement.away(person).get(option, 0) for person in statement.people),
    "parents stated often": lambda statement, option: sum(
        len(statement.places(old)) for old in statement.inside(option)
    ),
    "near the person": lambda statement, option: (
        -min(abs(here - there) for here in statement.places(option) for there in statement.places(statement.person))
    ),
}


def hits(guess: Guess, problems: list[ReasoningProblem]) -> float:
    """How often a guess is right; half of the ties."""
    actual = []
    for problem in problems:
        statement = read(problem.question)
        right, wrong = guess(statement, problem.answer), guess(statement, wrong_of(problem))
        actual.append(0.5 if right == wrong else float(right > wrong))
    return float(np.mean(actual))


@pytest.fixture(scope="module")
def many() -> list[ReasoningProblem]:
    return TASKS[1].sample("train", range(800))


@pytest.mark.parametrize("name", GUESSES)
def test_the_surface_does_not_tell_the_answer(name: str, many: list[ReasoningProblem]) -> None:
    assert abs(hits(GUESSES[name], many) - 0.5) < 0.07  # four standard errors


def test_a_search_does_tell_the_answer(many: list[ReasoningProblem]) -> None:
    assert hits(lambda statement, option: option in statement.away(statement.person), many) == 1


def test_no_name_is_the_answer_more_often_than_another() -> None:
    answers = Counter(problem.answer for problem in TASKS[2].sample("train", range(600)))
    assert set(answers) == set(CONCEPTS)
    assert max(answers.values()) < 2 * 600 / len(CONCEPTS)


# --- splits and purity -----------------------------------------------------------------------------------------


def unfolded(statement: Read, name: str) -> tuple[Any, ...]:
    """All that leads to a name, without names."""
    kind = "person" if name in statement.people else "option" if name in statement.options else "concept"
    return kind, *sorted((unfolded(statement, old) for old in statement.inside(name)), key=repr)


@pytest.mark.parametrize(
    "settings", [{"hops": (1,), "concepts": 6, "edges": 6}, {"hops": (2,), "concepts": 8, "edges": 8}]
)
def test_no_graph_is_in_two_splits(settings: dict[str, Any]) -> None:
    actual: dict[str, set[str]] = {}
    seen = 0
    for split in SPLITS:
        statement = [read(problem.question) for problem in task(**settings).sample(split, range(80))]
        graphs = [
            repr(sorted(repr(unfolded(each, name)) for name in set(itertools.chain(*each.pairs)))) for each in statement
        ]
        actual[split] = set(graphs)
        seen += len(graphs) - len(actual[split])
    assert seen > 20, "graphs hardly ever occur twice, so this shows nothing"
    for first, second in itertools.combinations(SPLITS, 2):
        assert not actual[first] & actual[second], (first, second)


def test_splits_share_out_the_graphs() -> None:
    random = Random(0)
    graphs = [even_graph(random, 3, TASKS[0].config.concepts, TASKS[0].config.edges) for _ in range(1000)]
    shares = Counter(split_of_question(graph.pairs, graph.options) for graph in graphs)
    assert abs(shares["train"] / 1000 - 6 / 8) < 0.05
    assert abs(shares["validation"] / 1000 - 1 / 8) < 0.04


@pytest.mark.parametrize("hops", range(1, 9))
def test_the_smallest_settings_have_problems_in_every_split(hops: int) -> None:
    smallest = task(hops=(hops,), concepts=2 * hops + 4, edges=2 * hops + 4)
    for split in SPLITS:
        assert smallest.sample(split, [0])[0].chains[0].count(".") == hops


def test_order_and_batching_change_nothing() -> None:
    for split in SPLITS:
        full = TASKS[0].sample(split, np.arange(20), seed=3)
        order = np.random.default_rng(0).permutation(20)
        assert TASKS[0].sample(split, order, seed=3) == [full[index] for index in order]
        assert [task().sample(split, [index], seed=3)[0] for index in range(20)] == full


def test_a_sample_is_the_same_in_every_process_and_version() -> None:
    # If a library ever changes this, results of earlier runs are no longer comparable.
    (problem,) = task(hops=(2,), concepts=8, edges=10).sample("train", [1])
    assert problem == ReasoningProblem(
        question="Every drenk is a yent. Every blick is a nald. Max is a wug. Ida is a hask. Every drenk is a nald. "
        "Ida is a drenk. Ida is a blick. Every drenk is a blick. Every wug is a stroy. Every wug is a thrin. "
        "Is Ida a stroy or yent?",
        chains=("Ida is a drenk. Every drenk is a yent.",),
        answer="yent",
        key="train:0:1",
    )


def test_seeds_splits_and_indices_give_different_problems() -> None:
    problems = [row for split in SPLITS for seed in range(3) for row in TASKS[0].sample(split, range(20), seed)]
    assert len({problem.question for problem in problems}) == len(problems)
    assert len({problem.key for problem in problems}) == len(problems)


# --- tokens ----------------------------------------------------------------------------------------------------


def test_words_and_names_are_one_token_each() -> None:
    tokenizer = TASKS[0].tokenizer
    for piece in [*NAMES, *CONCEPTS, "Every", "is", "a", ".", "?", "<think>", "</think>", "\\boxed{", "}"]:
        assert len(tokenizer(piece).input_ids) == 1, piece
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.padding_side) == (0, 1, "left")
    assert tokenizer("[PAD][EOS]").input_ids == [0, 1]
    assert tokenizer.chat_template is None


def test_the_name_to_look_up_follows_its_subject_at_once() -> None:
    tokenize = TASKS[0].tokenizer.tokenize
    assert tokenize("Ann is a dax. Every dax is a wug.") == ["Ann is a", "dax", ".", "Every dax is a", "wug", "."]
    # Only whole words, and only where a sentence is about a name.
    assert tokenize("Ann is an")[:2] == ["Ann", "is"]
    assert tokenize("Is Ann a dax")[:3] == ["Is", "Ann", "a"]
    assert tokenize("Every daxy is a")[:2] == ["Every", "d"]


def test_other_names_are_spelled() -> None:
    tokenizer = TASKS[0].tokenizer
    assert tokenizer.tokenize("Tia is a daxy.") == ["T", "##i", "##a", "is", "a", "d", "##a", "##x", "##y", "."]


def test_problems_read_back_as_they_were(made: tuple[LogicTask, list[ReasoningProblem]]) -> None:
    tokenizer = made[0].tokenizer
    for problem in made[1]:
        for text in (problem.question, *problem.chains, f"\\boxed{{{problem.answer}}}"):
            assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_it_reads_back_what_it_wrote_to_disk(tmp_path: Path) -> None:
    tokenizer = TASKS[0].tokenizer
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    text = "Every dax is a gnu. Is Ann a dax or gnu?"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == text


@pytest.mark.parametrize("text", ["dax!", "5", "é", "McDax"])
def test_what_is_no_name_is_never_a_token(text: str) -> None:
    with pytest.raises(Exception, match="UNK"):
        TASKS[0].tokenizer(text)


def test_a_share_of_the_problems_is_spelled() -> None:
    problems = task(spelled=0.3).sample("train", range(300))
    spelled = [problem for problem in problems if problem.answer not in CONCEPTS]
    assert 0.2 < len(spelled) / len(problems) < 0.4
    for problem in spelled:
        statement = read(problem.question)
        names = set(itertools.chain(*statement.pairs))
        assert not names & {*CONCEPTS, *NAMES}
        assert len({"".join(sorted(name.lower())) for name in names}) == len(names)


# --- grading ---------------------------------------------------------------------------------------------------


def test_every_concept_is_graded_as_itself_alone() -> None:
    assert len({"".join(sorted(name)) for name in CONCEPTS}) == len(CONCEPTS)
    problems = [ReasoningProblem(question="", chains=(), answer=name, key="") for name in CONCEPTS]
    assert graded([f"\\boxed{{{name}}}" for name in CONCEPTS], problems).all()
    assert not graded([f"\\boxed{{{name}}}" for name in (*CONCEPTS[1:], CONCEPTS[0])], problems).any()
    assert not graded(list(CONCEPTS), problems).any()


# --- published files -------------------------------------------------------------------------------------------

QUESTION = (
    "Every tolpus is a renpus. Una is a gropus. Mia is a wexpus. Every wexpus is a tolpus. Mia is a quapus. "
    "Every quapus is a renpus. Every gropus is a hadpus. Is Mia a hadpus or renpus?"
)
ROW: dict[str, Any] = {
    "question": QUESTION,
    "answer": "Mia is a renpus.",
    "steps": ["Mia is a wexpus.", "Every wexpus is a tolpus.", "Every tolpus is a renpus."],  # not the shortest
    "idx_to_symbol": ["Mia", "Una", "wexpus", "gropus", "tolpus", "quapus", "renpus", "hadpus"],
    "edges": [[4, 6], [1, 3], [0, 2], [2, 4], [0, 5], [5, 6], [3, 7]],
    "root": 0,
    "target": 6,
    "neg_target": 7,
}
OTHER = {
    "question": "Every dax is a miv. Bo is a dax. Ann is a wug. Is Bo a miv or wug?",
    "answer": "Bo is a miv.",
    "steps": ["Bo is a dax.", "Every dax is a miv."],
}


def save(path: Path, *rows: Any, lines: bool = False) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("lines", [True, False])
def test_published_rows_are_a_test_set(tmp_path: Path, lines: bool) -> None:
    made = task(tests=(save(tmp_path / "prosqa.json", ROW, OTHER, lines=lines),))
    assert made.tests == ("test", "prosqa")
    assert (made.size("prosqa"), made.size("test")) == (2, None)
    first, second = made.sample("prosqa", [0, 1], seed=7)
    assert first.question == QUESTION
    assert first.answer == "renpus"
    assert first.chains == (
        "Mia is a wexpus. Every wexpus is a tolpus. Every tolpus is a renpus.",
        "Mia is a quapus. Every quapus is a renpus.",
    )
    assert second.chains == ("Bo is a dax. Every dax is a miv.",)
    assert made.sample("prosqa", np.array([1])) == [second]
    assert first.key != second.key
    for problem in (first, second):
        for text in (problem.question, *problem.chains):
            assert made.tokenizer.decode(made.tokenizer(text).input_ids) == text
    with pytest.raises(IndexError, match="index 2 is outside split 'prosqa' of 2"):
        made.sample("prosqa", [2])


def test_the_fingerprint_names_the_settings_and_what_files_hold_but_not_where(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    made = [
        task(tests=(save(tmp_path / "prosqa.json", ROW),)),
        task(tests=(save(tmp_path / "elsewhere" / "prosqa.json", ROW),)),
        task(tests=(save(tmp_path / "prosqa.json", ROW, OTHER),)),
        *(task(), task(edges=35), task(hops=(3, 4)), task(spelled=0.1)),
    ]
    assert made[0].fingerprint == made[1].fingerprint
    assert len({one.fingerprint for one in made}) == 6
    assert all(re.fullmatch("[0-9a-f]{16}", one.fingerprint) for one in made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, "'question' is None; it must be text"),
        ({"question": QUESTION.replace("Una is a gropus.", "Una likes gropus.")}, "cannot read 'Una likes gropus.'"),
        ({"question": QUESTION.removesuffix("?")}, "cannot read 'Is Mia a hadpus or renpus' at the end"),
        ({"answer": "renpus"}, "cannot read 'renpus'"),
        ({"answer": "Una is a hadpus."}, "is none of the two that are asked about"),
        ({"answer": "Mia is a tolpus."}, "is none of the two that are asked about"),
        ({"answer": "Mia is a hadpus."}, "must make Mia a hadpus, and not a renpus"),
        ({"question": QUESTION.replace("Una is a gropus", "Mia is a gropus")}, "a renpus, and not a hadpus"),
        ({"question": QUESTION.replace("a hadpus or", "a renpus or")}, "a renpus, and not a renpus"),
        ({"steps": "Mia is a wexpus."}, "must be a list of texts"),
        ({"steps": []}, "the steps do not lead from Mia to renpus"),
        ({"steps": ROW["steps"][:2]}, "the steps do not lead"),
        ({"steps": ROW["steps"][1:]}, "the steps do not lead"),
        ({"steps": ["Mia is a renpus."]}, "the steps do not lead"),
    ],
)
def test_a_malformed_row_is_refused_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "rows.json", OTHER, {**ROW, **changes})
    with pytest.raises(ValueError, match=message) as caught:
        task(tests=(path,))
    assert str(caught.value).startswith(f"{path}, row 2: ")
    assert str(caught.value).endswith("; fix the row")
    assert "\n" not in str(caught.value)


def test_a_missing_field_and_a_line_that_is_not_json_are_refused_with_their_place(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.jsonl", OTHER, {"question": QUESTION, "answer": "Mia is a renpus."}, lines=True)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: field 'steps' is missing"):
        task(tests=(path,))
    Path(path).write_text("Mia\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: not JSON"):
        task(tests=(path,))


def test_a_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*gone\.json"):
        task(tests=(str(tmp_path / "gone.json"),))
    with pytest.raises(ValueError, match=r"empty\.json has no rows"):
        task(tests=(save(tmp_path / "empty.json"),))


# --- typed questions and settings ------------------------------------------------------------------------------


def test_a_typed_question_is_a_problem_without_chain() -> None:
    (problem,) = TASKS[0].parse("  Ann is a dax.\nEvery dax is a yeti. Is Ann a yeti  or wug? ")
    assert problem.question == "Ann is a dax. Every dax is a yeti. Is Ann a yeti or wug?"
    assert problem.chains == ()
    assert problem.answer == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  ", "empty"),
        ("Ann is a dax.", "cannot read 'Ann is a dax.' at the end"),
        ("Ann owns a dax. Is Ann a dax or wug?", "cannot read 'Ann owns a dax.'"),
        ("Zoé is a dax. Is Zoé a dax or wug?", "cannot read 'Zoé is a dax.'"),
        ("Ann is a dax. </think> Is Ann a dax or wug?", "cannot read '</think> Is Ann"),
    ],
)
def test_a_question_of_another_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TASKS[0].parse(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hops": ()}, "hops"),
        ({"hops": (0, 2)}, "hops"),
        ({"hops": (9,)}, "hops"),
        ({"hops": (2, 2)}, "hops"),
        ({"hops": (3, 4), "concepts": 11}, "concepts is 11; it must be 12 to 41 for 4 hops"),
        ({"concepts": 42, "edges": 60}, "concepts"),
        ({"edges": 19}, "edges is 19; it must be at least the 20 of concepts"),
        ({"spelled": 1.5}, "spelled"),
        ({"spelled": -0.5}, "spelled"),
        ({"renamed": True}, "renamed is true, but tests lists no published files"),
        ({"tests": ("a/test.json",)}, "2 splits are named 'test'"),
        ({"tests": ("a/prosqa.json", "b/prosqa.jsonl")}, "2 splits are named 'prosqa'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**settings)


def test_there_is_no_other_split_and_made_up_ones_do_not_end() -> None:
    assert isinstance(TASKS[0], ReasoningTask)
    assert [TASKS[0].size(split) for split in SPLITS] == [None, None, None]
    for ask in (TASKS[0].size, lambda split: TASKS[0].sample(split, [0])):
        with pytest.raises(ValueError, match="no split 'dev'"):
            ask("dev")
