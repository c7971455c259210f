"""What the tokenizers of the tasks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD_TOKEN, EOS_TOKEN = "[PAD]", "[EOS]"


def padded_left(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A finished tokenizer, which knows both tokens above, as the library has it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def by_character(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a character and a marker like ``[EOS]``; nothing stands between two of them in a text."""
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=PAD_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\[[A-Z]+\]|."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return padded_left(tokenizer)
