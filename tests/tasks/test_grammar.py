"""Strings, their recognisers and the completion problem.

The reference is a recursive parser of single strings, and for small grammars the written-out language.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from settings_checks import check_defaults

from unspoken.tasks.context_free import EOS, FIRST_TERMINAL, PAD, Grammar
from unspoken.tasks.grammar import GrammarConfig, GrammarProblems, GrammarTask

SPLITS = ("train", "validation", "test")
# Root 0, then 1 and 2, then the terminals a, b, c as 3, 4, 5. Two symbols share a rule, and lengths differ.
SMALL = Grammar(
    rules=(
        ((1, 2), (2, 1, 1), (1,)),
        ((3, 4), (3,), (5, 5, 4)),
        ((4, 3, 3), (3, 4)),
    )
)
DRAWN = [Grammar.draw(levels=2, rules=rules, seed=seed) for rules, seed in ((2, 0), (2, 1), (3, 2))]
TASK = GrammarConfig(levels=3).build()


def written_out(grammar: Grammar) -> set[str]:
    """Every string of a small grammar."""
    texts = [set() for _ in grammar.rules] + [{"a"}, {"b"}, {"c"}]
    for symbol in reversed(range(len(grammar.rules))):
        for rule in grammar.rules[symbol]:
            texts[symbol] |= {"".join(pieces) for pieces in itertools.product(*(texts[piece] for piece in rule))}
    return texts[0]


def parses(grammar: Grammar, text: str, *, prefix: bool = False) -> bool:
    """Top-down parsing with the set of ends of each symbol at each place.

    A prefix is followed by wildcards, and may end anywhere in them.
    """
    length = len(text)
    text += "?" * 64 if prefix else ""

    @cache
    def ends(symbol: int, start: int) -> frozenset[int]:
        if symbol >= len(grammar.rules):
            target = "abc"[symbol - len(grammar.rules)]
            return frozenset({start + 1} if text[start : start + 1] in (target, "?") else ())
        actual: set[int] = set()
        for rule in grammar.rules[symbol]:
            reached = {start}
            for piece in rule:
                reached = {end for position in reached for end in ends(piece, position)}
            actual |= reached
        return frozenset(actual)

    reached = ends(0, 0)
    return any(end >= length for end in reached) if prefix else length in reached


def tokens(texts: Iterable[str]) -> NDArray[np.int64]:
    """Token ids, padded on the left."""
    rows = [[FIRST_TERMINAL + "abc".index(letter) for letter in text] for text in texts]
    width = max(map(len, rows))
    return np.array([[PAD] * (width - len(row)) + row for row in rows], dtype=np.int64).reshape(len(rows), width)


def every_text(length: int) -> list[str]:
    return ["".join(letters) for letters in itertools.product("abc", repeat=length)]


def same(some: GrammarProblems, others: GrammarProblems) -> bool:
    made = [(TASK.text(piece), piece.prompt_B.tolist()) for piece in (some, others)]
    return made[0] == made[1]


def problem(text: str, prompt: int) -> GrammarProblems:
    return GrammarProblems(ids_BT=tokens([text]), length_B=np.array([len(text)]), prompt_B=np.array([prompt]))


# --- recognising -----------------------------------------------------------------------------------------------


def test_a_small_language_is_recognised_text_by_text() -> None:
    language = written_out(SMALL)
    assert {"a", "ab", "abab", "aab", "baaaa", "abaa", "abbaa", "baaccbccb"} <= language
    begun = {text[:length] for text in language for length in range(len(text) + 1)}
    texts = [text for length in range(9) for text in every_text(length)]
    # All lengths in one batch: padding must not matter, and many texts share a byte.
    assert SMALL.accepts(tokens(texts)).tolist() == [text in language for text in texts]
    assert SMALL.accepts_prefix(tokens(texts)).tolist() == [text in begun for text in texts]


@pytest.mark.parametrize("grammar", DRAWN, ids=["two rules", "two other rules", "three rules"])
def test_drawn_languages_are_recognised_text_by_text(grammar: Grammar) -> None:
    language = written_out(grammar)
    begun = {text[:length] for text in language for length in range(len(text) + 1)}
    texts = every_text(min(map(len, language))) if min(map(len, language)) == 9 else every_text(8)
    generator = np.random.default_rng(0)
    # Nearly right ones of all lengths: another symbol, one more, one less.
    for text in sorted(language)[:100]:
        position, letter = int(generator.integers(len(text))), "abc"[generator.integers(3)]
        texts += [
            text,
            text[:position] + letter + text[position + 1 :],
            text[:position] + letter + text[position:],
            text[1:],
        ]
        texts += [text[:position] + letter, text[:position]]
    assert grammar.accepts(tokens(texts)).tolist() == [text in language for text in texts]
    assert grammar.accepts_prefix(tokens(texts)).tolist() == [text in begun for text in texts]


def test_every_string_with_one_wrong_symbol_is_judged_as_the_parser_judges_it() -> None:
    texts = TASK.text(TASK.sample("test", np.arange(8)))
    wrong = [
        text[:position] + letter + text[position + 1 :]
        for text in texts
        for position in range(len(text))
        for letter in "abc"
        if letter != text[position]
    ]
    expected = [parses(TASK.grammar, text) for text in wrong]
    assert len(wrong) > 700
    assert 0 < sum(expected) < len(wrong) / 2, "both kinds must occur"
    assert TASK.grammar.accepts(tokens(wrong)).tolist() == expected


@pytest.mark.parametrize(("levels", "count"), [(4, 30), (5, 8)])
def test_long_strings_with_one_wrong_symbol_are_judged_as_the_parser_judges_them(levels: int, count: int) -> None:
    task = GrammarConfig(levels=levels).build()
    ids = task.sample("test", np.arange(count)).ids_BT
    wrong, length_B = ids.copy(), (ids > EOS).sum(axis=1)
    places = ids.shape[1] - 2 - np.random.default_rng(0).integers(length_B)  # padded on the left, an end at the right
    wrong[np.arange(count), places] = FIRST_TERMINAL + (wrong[np.arange(count), places] - FIRST_TERMINAL + 1) % 3
    problems = GrammarProblems(ids_BT=wrong, length_B=length_B, prompt_B=length_B)
    expected = [parses(task.grammar, text) for text in task.text(problems)]
    assert sum(expected) < count / 2
    assert task.grammar.accepts(problems.ids_BT).tolist() == expected


def test_beginnings_are_judged_as_the_parser_judges_them() -> None:
    generator = np.random.default_rng(1)
    texts = []
    for text in TASK.text(TASK.sample("test", np.arange(40))):
        start = text[: generator.integers(1, len(text))]
        texts += [start, start[:-1] + "abc"[generator.integers(3)], start + "".join(generator.choice(list("abc"), 2))]
    expected = [parses(TASK.grammar, text, prefix=True) for text in texts]
    assert all(expected[::3])
    assert 20 < len(expected) - sum(expected) < 80
    assert TASK.grammar.accepts_prefix(tokens(texts)).tolist() == expected


@pytest.mark.parametrize("length", [1, 5, 7, 14])
def test_a_text_that_is_shorter_than_what_its_symbols_derive_can_only_begin_a_string(length: int) -> None:
    texts = [text[:length] for text in TASK.text(TASK.sample("test", np.arange(4)))]
    texts += [text[::-1] for text in texts]
    assert not TASK.grammar.accepts(tokens(texts)).any()
    assert TASK.grammar.accepts_prefix(tokens(texts)).tolist() == [
        parses(TASK.grammar, text, prefix=True) for text in texts
    ]


@pytest.mark.parametrize(("levels", "rules", "count"), [(3, 2, 300), (3, 4, 300), (4, 2, 60), (5, 2, 4), (5, 4, 4)])
def test_every_string_is_in_the_language(levels: int, rules: int, count: int) -> None:
    task = GrammarConfig(levels=levels, rules=rules).build()
    problems = task.sample("train", np.arange(count))
    assert task.grammar.accepts(problems.ids_BT).all()
    assert task.grammar.accepts_prefix(problems.window(int(problems.prompt_B.max()), 0)).all()


def test_what_is_no_terminal_derives_from_nothing() -> None:
    rows = np.array([[2, 3, 2, 3], [2, 3, EOS, 3], [2, 3, PAD, 3], [2, 3, 9, 3], [2, 3, 2, EOS], [PAD] * 4])
    # abab; ab and ab with something in between; an end; nothing at all, which begins every string
    assert SMALL.accepts(rows).tolist() == [True] + [False] * 5
    assert SMALL.accepts_prefix(rows).tolist() == [True] + [False] * 4 + [True]
    assert len(SMALL.accepts(rows[:0])) == 0


# --- grammars --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_full_grammar_has_the_paper_s_shape(seed: int) -> None:
    grammar = Grammar.draw(levels=5, rules=2, seed=seed)
    levels = [range(1), range(1, 3), range(3, 5), range(5, 8), range(8, 14), range(14, 17)]
    for symbols, below in itertools.pairwise(levels):
        pieces = [piece for symbol in symbols for rule in grammar.rules[symbol] for piece in rule]
        assert set(pieces) == set(below)
    rules = [rule for choices in grammar.rules for rule in choices]
    assert len(rules) == len(set(rules)) == 28
    assert {len(rule) for rule in rules} == {3, 4}
    assert 600 <= grammar.mean_length <= 700


def test_a_smaller_grammar_keeps_the_symbols_next_to_the_terminals() -> None:
    assert [len(Grammar.draw(levels=levels, rules=3, seed=0).rules) for levels in (2, 3, 4, 5)] == [7, 10, 12, 14]


def test_lengths_of_a_grammar_that_can_be_worked_out_by_hand() -> None:
    # Symbol 1 makes 2, 1 or 3 terminals, symbol 2 makes 3 or 2; the root 1 2, 2 1 1, or 1.
    assert SMALL.mean_length == pytest.approx((4.5 + 6.5 + 2) / 3)
    assert SMALL.lengths == [(1, 9), (1, 3), (2, 3), (1, 1), (1, 1), (1, 1)]
    assert SMALL.choices == 4


@pytest.mark.parametrize(
    ("levels", "least", "most", "count"), [(3, 46, 51, 3000), (4, 167, 189, 600), (5, 600, 700, 60)]
)
def test_strings_have_the_mean_length_of_their_grammar(levels: int, least: int, most: int, count: int) -> None:
    task = GrammarConfig(levels=levels, grammar_seed=1).build()
    lengths = task.sample("train", np.arange(count)).length_B
    error = lengths.std() / count**0.5
    assert abs(lengths.mean() - task.grammar.mean_length) < 4 * error
    assert least <= task.grammar.mean_length <= most
    assert lengths.max() <= task.grammar.lengths[0][1]


def test_every_rule_is_equally_likely() -> None:
    noise = np.random.default_rng(0).integers(0, 2**64, (40_000, SMALL.choices), dtype=np.uint64)
    ids, lengths = SMALL.derive(noise)
    counts = Counter(TASK.text(GrammarProblems(ids_BT=ids, length_B=lengths, prompt_B=lengths)))
    # The root's rule, then those of its parts; abaa comes from a and baa as well as from ab, a and a.
    shares = {"a": 1 / 9, "ccb": 1 / 9, "aab": 1 / 18, "baaaa": 1 / 54, "baaccbccb": 1 / 54, "abaa": 1 / 18 + 1 / 54}
    for text, fraction in shares.items():
        assert abs(counts[text] / 40_000 - fraction) < 5 * (fraction / 40_000) ** 0.5, text
    assert set(counts) == written_out(SMALL)


# --- samples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_order_and_batching_change_nothing(split: str) -> None:
    entire = TASK.sample(split, np.arange(40), seed=3)
    order = np.random.default_rng(0).permutation(40)
    shuffled = TASK.sample(split, order, seed=3)
    assert TASK.text(shuffled) == [TASK.text(entire)[i] for i in order]
    assert shuffled.prompt_B.tolist() == entire.prompt_B[order].tolist()
    # Another object that never made anything before, and twice the same index.
    assert same(GrammarConfig(levels=3).build().sample(split, np.arange(40), seed=3), entire)
    assert len(set(TASK.text(TASK.sample(split, np.array([7, 7]), seed=3)))) == 1


def test_the_data_are_still_the_same() -> None:
    # Neither the library's nor Python's random streams may change what a published seed means.
    problems = TASK.sample("test", np.array([0]))
    assert TASK.text(problems) == ["acacaaacbaacacaaababacacaaacbacbcbacbbbcbc"]
    assert problems.prompt_B.tolist() == [25]


def test_an_empty_batch_is_empty() -> None:
    empty = TASK.sample("train", np.array([], dtype=np.int64))
    assert len(empty) == 0
    for none in (empty, TASK.sample("train", np.arange(3)).select([])):
        assert none.ids_BT.shape == TASK.prompts(none)[0].shape == (0, 0)
        assert TASK.rows(none)["input_ids"].shape == (0, 1)  # the end
        assert TASK.answers(none).shape == (0, 4)
    ids, lengths = SMALL.derive(np.zeros((0, SMALL.choices), dtype=np.uint64))
    assert (ids.shape, lengths.shape) == ((0, 0), (0,))


def test_seeds_splits_indices_and_grammars_give_different_strings() -> None:
    other = GrammarConfig(levels=3, grammar_seed=1).build()
    indices = np.array([*range(50), 10**12])
    texts: list[str] = []
    for task, split, seed in itertools.product((TASK, other), SPLITS, range(2)):
        texts += task.text(task.sample(split, indices, seed))
    assert len(set(texts)) > 0.98 * len(texts)


def test_no_string_is_in_two_splits() -> None:
    made = {split: set[str]() for split in SPLITS}
    for split, seed in itertools.product(SPLITS, range(2)):
        made[split] |= set(TASK.text(TASK.sample(split, np.arange(1500 if split == "train" else 300), seed)))
    for first, second in itertools.combinations(SPLITS, 2):
        assert not made[first] & made[second], (first, second)
    # The control: without splits, samples of this size share strings.
    noise = np.random.default_rng(0).integers(0, 2**64, (2, 3000, TASK.grammar.choices), dtype=np.uint64)
    drawn = [{bytes(row) for row in TASK.grammar.derive(piece)[0]} for piece in noise]
    assert drawn[0] & drawn[1]


# --- tokens ----------------------------------------------------------------------------------------------------


def test_the_tokenizer_reads_the_text_as_the_task_encodes_it() -> None:
    problems = TASK.sample("train", np.arange(20))
    read = TASK.tokenizer([text + "[EOS]" for text in TASK.text(problems)], padding=True, return_tensors="pt")
    batch = TASK.rows(problems)
    assert torch.equal(read["input_ids"], batch["input_ids"])
    assert torch.equal(read["attention_mask"], batch["attention_mask"])
    assert len(TASK.tokenizer) == 5
    assert (TASK.tokenizer.pad_token_id, TASK.tokenizer.eos_token_id, TASK.tokenizer.padding_side) == (PAD, EOS, "left")


def test_prompt_and_answer_are_the_beginning_of_the_string() -> None:
    problems = TASK.sample("train", np.arange(300))
    (prompt_ids, prompt_mask), answers, batch = TASK.prompts(problems), TASK.answers(problems), TASK.rows(problems)
    assert answers.shape == (300, 4)
    for row, text in enumerate(TASK.text(problems)):
        prompt = prompt_ids[row][prompt_mask[row].bool()]
        letters = "".join("??abc"[token] for token in [*prompt.tolist(), *answers[row].tolist()])
        assert text.startswith(letters)
        assert len(text) // 2 <= len(prompt) <= len(text) - 4
        assert torch.equal(batch["input_ids"][row][batch["answer_mask"][row]], answers[row])
        before = batch["attention_mask"][row].bool() & (batch["answer_mask"][row].cumsum(0) == 0)
        assert torch.equal(batch["input_ids"][row][before], prompt)
    assert prompt_mask[:, -1].all()
    assert (prompt_ids[prompt_mask == 0] == PAD).all()
    # Prompts end everywhere in their range: at its first place, its last, and half-way in the mean.
    least, most = problems.length_B // 2, problems.length_B - 4
    assert (problems.prompt_B == least).any()
    assert (problems.prompt_B == most).any()
    assert abs(((problems.prompt_B - least) / (most - least)).mean() - 0.5) < 0.08


# --- grading ---------------------------------------------------------------------------------------------------


def test_one_wrong_step_is_wrong_and_told_apart() -> None:
    problems = TASK.sample("test", np.arange(6))
    assert TASK.grade(TASK.answers(problems), problems).correct.all()
    for step in range(4):
        spoken = TASK.answers(problems)
        spoken[1:, step] = torch.where(spoken[1:, step] == 2, 3, 2)
        assert TASK.grade(spoken, problems).correct.tolist() == [True] + [False] * 5
        assert TASK.grade(spoken, problems).per_symbol.sum(dim=0).tolist() == [
            1 if at == step else 6 for at in range(4)
        ]


def test_short_answers_lack_symbols_and_long_ones_are_cut() -> None:
    problems = TASK.sample("test", np.arange(5))
    answers = TASK.answers(problems)
    assert TASK.grade(answers[:, :3], problems).per_symbol.tolist() == [[True, True, True, False]] * 5
    assert TASK.valid(answers[:, :3], problems).all()
    longer = torch.cat([answers, torch.randint(0, 5, (5, 3))], dim=1)
    assert TASK.grade(longer, problems).correct.all()
    assert TASK.valid(longer, problems).all()


def test_every_continuation_is_valid_if_the_parser_can_go_on() -> None:
    problems = TASK.sample("test", np.arange(3))
    continuations = every_text(4)
    for row, text in enumerate(TASK.text(problems)):
        one = problem(text, int(problems.prompt_B[row]))
        many = GrammarProblems(
            ids_BT=one.ids_BT.repeat(81, axis=0), length_B=one.length_B.repeat(81), prompt_B=one.prompt_B.repeat(81)
        )
        output = torch.from_numpy(tokens(continuations))
        start = text[: one.prompt_B[0]]
        expected = [parses(TASK.grammar, start + more, prefix=True) for more in continuations]
        assert TASK.valid(output, many).tolist() == expected
        exact = [text.startswith(start + more) for more in continuations]
        assert TASK.grade(output, many).correct.tolist() == exact
        assert sum(exact) == 1 <= sum(expected) < 81


def test_an_end_is_valid_where_the_string_is_complete() -> None:
    problems = TASK.sample("test", np.arange(20))
    early = replace(problems, prompt_B=problems.length_B - 2)
    last = torch.from_numpy(early.window(0, 2))
    output = torch.cat([last, torch.full((20, 1), EOS), torch.randint(0, 5, (20, 1))], dim=1)
    assert TASK.valid(output, early).all()
    assert not TASK.grade(output, early).correct.any()
    too_early = torch.cat([last[:, :1], torch.full((20, 3), EOS)], dim=1)
    complete = [parses(TASK.grammar, text[:-1]) for text in TASK.text(problems)]
    assert TASK.valid(too_early, early).tolist() == complete
    assert not all(complete)


# --- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 2}, "levels is 2"),
        ({"levels": 6}, "levels is 6"),
        ({"rules": 1}, "rules is 1"),
        ({"rules": 5}, "rules is 5"),
        ({"steps": 0}, "steps is 0; it must lie between 2 and 121"),
        ({"levels": 3, "steps": 14}, "between 2 and 13"),
        ({"levels": 3, "steps": 13}, "steps is 13; give an even number"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        GrammarConfig(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "rules",
    [
        (((1, 2),), ((3, 4),), ((1, 3),)),  # back to an earlier symbol
        (((1, 3),), ((2, 3),)),  # a symbol beside a terminal
        (((1, 9),), ((2, 3),)),  # no such symbol
        (((1,),), ()),  # no rules
        (((1,), ()), ((2,),)),  # an empty rule
    ],
)
def test_rules_that_are_not_levelled_are_refused(rules: tuple[tuple[tuple[int, ...], ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"rules of symbol [0-2] are") as error:
        Grammar(rules=rules)
    assert "\n" not in str(error.value)


def test_other_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="no split 'dev'; this task has train, validation, test"):
        TASK.sample("dev", np.array([0]))


def test_the_fingerprint_names_settings_and_rules() -> None:
    settings = [{}, {"levels": 4}, {"rules": 3}, {"grammar_seed": 1}, {"steps": 8}]
    prints = [GrammarConfig(**{"levels": 3, **each}).build().fingerprint for each in settings]
    assert len(set(prints)) == len(settings)
    assert prints[0] == TASK.fingerprint
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in prints)
    # The same settings with other rules, as another version of Python's generator might draw them.
    other = GrammarTask(TASK.config)
    other.grammar = GrammarConfig(levels=3, grammar_seed=1).build().grammar
    assert other.fingerprint != TASK.fingerprint


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(GrammarConfig, "recipes.md", prefix="task.", kind="grammar")
