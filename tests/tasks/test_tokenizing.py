"""Tokens of words, characters and byte pairs, and the text that they give back."""

from __future__ import annotations

from typing import Any

import pytest

from unspoken.tasks.tokenizing import by_character, by_word, byte_pairs

MARKERS = ("[PAD]", "[EOS]")
SIGNS = ["<think>", "</think>", "\\boxed{", "}", "<<", ">>", "=", "+", "-", "*", "/", ".", "?", ","]
WORDS = [*MARKERS, *SIGNS, "Ann", "has", "pears", "1", "12", "3"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Ann has 12 pears.", ["Ann", "has", "12", "pears", "."]),
        ("<<12+1=3>>", ["<<", "12", "+", "1", "=", "3", ">>"]),
        ("<<1-3=1>> <<3*1=12>> <<1/1=1>>", None),
        ("\\boxed{12}", ["\\boxed{", "12", "}"]),
        ("Ann, has 1?", ["Ann", ",", "has", "1", "?"]),
        ("<think> <<1+1=3>> </think>", None),
    ],
)
def test_words_and_signs_are_tokens_and_give_the_text_back(text: str, tokens: list[str] | None) -> None:
    tokenizer = by_word(WORDS)
    if tokens is not None:
        assert tokenizer.tokenize(text) == tokens
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_words_are_not_shortened_when_they_are_written() -> None:
    tokenizer = by_word([*MARKERS, "they", "do", "not"])
    assert tokenizer.decode([2, 3, 4]) == "they do not"


def test_what_a_tokenizer_of_words_does_not_know() -> None:
    tokenizer = by_word(WORDS)
    assert tokenizer("  Ann\n has ")["input_ids"] == [16, 17]
    assert tokenizer("[PAD][EOS]")["input_ids"] == [0, 1]
    with pytest.raises(Exception, match=r"WordLevel|missing|UNK"):
        tokenizer("Bob")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.padding_side) == (0, 1, "left")
    batch = tokenizer(["Ann", "Ann has 1"], padding=True)
    assert batch["input_ids"] == [[0, 0, 16], [16, 17, 19]]


def test_spaces_before_stops_stay_where_a_text_has_them() -> None:
    tokenizer = by_character([*MARKERS, " ", ".", "a", "n", "'", "t"])
    text = "a . n 't"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=None) == text


def test_characters_and_markers_are_tokens() -> None:
    tokenizer = by_character([*MARKERS, "[ROOT]", ",", "A", "B"])
    assert tokenizer("AB,A[ROOT]B[EOS]")["input_ids"] == [4, 5, 3, 4, 2, 5, 1]
    assert tokenizer("Az")["input_ids"] == [4, 0]  # what is no token is padding
    assert tokenizer.decode([4, 5, 3, 4, 2, 5, 1]) == "AB,A[ROOT]B[EOS]"


TEXTS = ["the cat and the cat 12 12 12", "the hat and the hat 12 12 12"] * 5


def pairs(vocabulary: int, **settings: Any) -> Any:
    return byte_pairs(TEXTS, vocabulary, MARKERS, what="texts", **settings)


def test_byte_pairs_write_every_text_with_exactly_as_many_entries() -> None:
    tokenizer = pairs(262)
    assert len(tokenizer) == 262
    assert tokenizer.convert_ids_to_tokens([0, 1]) == list(MARKERS)
    for text in ("the cat", " é 東\n", "the  cat ,"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("12") == ["12"]
    assert tokenizer.tokenize("the") == pairs(262, prefix_space=False).tokenize("the")


def test_byte_pairs_of_single_digits_and_of_texts_after_a_space() -> None:
    assert pairs(262, single_digits=True).tokenize("12") == ["1", "2"]
    spaced = pairs(262, prefix_space=True)
    assert spaced.tokenize("the") == spaced.tokenize(" the")
    plain = pairs(262)
    assert plain.tokenize("the") != plain.tokenize(" the")


def test_a_vocabulary_larger_than_the_texts_give_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task.vocabulary is 5000, but the texts give only") as error:
        pairs(5000)
    most = int(str(error.value).partition("give only ")[2].split()[0])
    assert len(pairs(most)) == most
    message = f"task.vocabulary is {most + 1}, but the texts give only {most} entries; lower it, or give more text"
    with pytest.raises(ValueError, match=message):
        pairs(most + 1)
