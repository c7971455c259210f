"""Tokenizers of the tasks: one token per character, or byte pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD_TOKEN, EOS_TOKEN = "[PAD]", "[EOS]"


def padded_left(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A finished tokenizer with the two tokens above, as a transformers tokenizer that pads on the left."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


# A marker, a word, a number or a sign.
WORD = r"\[PAD\]|\[EOS\]|</?think>|\\boxed\{|<<|>>|[A-Za-z]+|[0-9]+|\S"


def by_word(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per word, number, stop, sign and marker. It has no token for unknown words and raises on them."""
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(cleanup=False),  # a space before every token but the first
            decoders.Fuse(),
            decoders.Replace(Regex(r" (?=[.?,}=+*/-]|>>)"), ""),
            decoders.Replace(Regex(r"(?<=<<|[=+*/-]|\{) "), ""),
        ]
    )
    return padded_left(tokenizer)


def by_character(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per character, and per marker like ``[EOS]``; texts have no spaces between tokens."""
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=PAD_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\[[A-Z]+\]|."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return padded_left(tokenizer)


def byte_pairs(
    texts: Iterable[str],
    vocabulary: int,
    markers: Sequence[str],
    *,
    what: str,
    prefix_space: bool = False,
    single_digits: bool = False,
) -> PreTrainedTokenizerFast:
    """Byte-level byte pairs (Sennrich et al., 2016) learned from some texts; every text can be written.

    Args:
        vocabulary: entries, the markers and all 256 bytes among them.
        markers: first entries; each stays in one piece.
        what: the texts, for the message.
        prefix_space: put a space before every text.
        single_digits: never merge digits.

    Raises:
        ValueError: the texts have too few byte pairs.
    """
    made = Tokenizer(models.BPE())
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizer]) if single_digits else pre_tokenizer
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(markers),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    if made.get_vocab_size() < vocabulary:
        raise ValueError(
            f"task.vocabulary is {vocabulary}, but the {what} give only {made.get_vocab_size()} entries; "
            "lower it, or give more text"
        )
    return padded_left(made)
