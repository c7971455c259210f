"""What the notebooks train on: small word problems with their steps, and a tiny model in the layout of the hub.

With a model of your own neither is needed: give `unspoken.train` its folder and your file of problems.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = ("Ann", "Bo", "Cy", "Dee")
THINGS = ("pears", "coins", "books", "cards")
SPECIAL = ["<pad>", "<eos>", "<think>", "</think>"]


def save_problems(path: str | Path, count: int = 1500, seed: int = 0) -> list[dict[str, object]]:
    """Write different problems of two steps, one a line, with ``question``, ``steps`` and ``answer``."""
    draw = random.Random(seed)
    rows: dict[str, dict[str, object]] = {}
    while len(rows) < count:
        first, second = draw.randint(2, 9), draw.randint(2, 9)
        total = first + second
        given = draw.randint(1, total - 1)
        name, thing = draw.choice(NAMES), draw.choice(THINGS)
        question = f"{name} has {first} {thing}, gets {second} more and gives {given} away. How many {thing} are left?"
        steps = [f"{first}+{second}={total}", f"{total}-{given}={total - given}"]
        rows[question] = {"question": question, "steps": steps, "answer": total - given}
    Path(path).write_text("\n".join(map(json.dumps, rows.values())))
    return list(rows.values())


def save_tiny_model(folder: str | Path, rows: list[dict[str, object]], seed: int = 0) -> int:
    """Write a Llama of three blocks with random weights, and its tokenizer; returns the number of its weights."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["{question} {steps} {answer} \\boxed <<>>".format(**row) for row in rows], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return int(model.num_parameters())
