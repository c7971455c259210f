"""What a training row takes, worked out by hand for stacks of a few weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from unspoken.backbone import UnspokenConfig, UnspokenModel
from unspoken.methods import cost
from unspoken.methods.cost import Lengths, ProjectionPass, Scores, StackPass, measured_lengths
from unspoken.tasks.spans import Markers, Spans

# Two blocks, each with 3 x 8 x 16 weights before attention, 16 x 8 after it and 2 x 8 x 24 in the feed-forward part.
WEIGHTS = 2 * (384 + 128 + 384)


@pytest.fixture
def stack() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 8, "attention_size": 16, "intermediate_size": 24}
    return UnspokenModel(UnspokenConfig(**sizes, num_hidden_layers=2, num_attention_heads=2))


def test_operations_of_a_pass(stack: Any) -> None:
    # Five positions see three on average; 4 operations for each of 2 x 16 channels.
    row = StackPass(stack=stack, positions=5)
    forward = 5 * (2 * WEIGHTS + 128 * 3)
    assert row.flops(again=False) == 3 * forward
    assert row.flops(again=True) == 4 * forward
    for again in (False, True):
        assert replace(row, has_gradient=False).flops(again=again) == forward
    assert replace(row, causal=False).flops(again=False) == 3 * 5 * (2 * WEIGHTS + 128 * 5)
    assert replace(row, across=4).flops(again=False) == 3 * 5 * (2 * WEIGHTS + 128 * 7)
    stack.requires_grad_(False)
    # Gradients of the inputs alone; attention has no weights.
    assert row.flops(again=False) == 5 * (2 * 2 * WEIGHTS + 3 * 128 * 3)
    assert row.flops(again=True) == 5 * (3 * 2 * WEIGHTS + 4 * 128 * 3)


def test_operations_are_those_that_torch_counts(stack: Any) -> None:
    stack.set_attn_implementation("eager")
    inputs = torch.randn(1, 5, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        stack(inputs_embeds=inputs).last_hidden_state.sum().backward()
    # Plain attention computes the scores of later positions too.
    expected = StackPass(stack=stack, positions=5, causal=False).flops(again=False)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_bytes_that_a_pass_keeps(stack: Any) -> None:
    row = StackPass(stack=stack, positions=5)

    def kept(width: int = 2, *, eager: bool = False, checkpointing: bool = False, **changes: Any) -> float:
        return replace(row, **changes).saved_bytes(width, eager=eager, checkpointing=checkpointing)

    # The residual stream twice in float32, two normed inputs, six tensors of 16 around attention, and twice 24.
    block = 2 * 4 * 8 + 2 * (2 * 8 + 6 * 16 + 2 * 24)
    assert kept() == 2 * 5 * block
    assert kept(4) == 2 * 5 * (2 * 4 * 8 + 4 * (2 * 8 + 6 * 16 + 2 * 24))
    # Scores of two heads over five positions, in two bytes and once more in float32 for the softmax.
    assert kept(eager=True) == 2 * 5 * (block + 2 * 5 * (2 + 4))
    assert kept(4, eager=True) == kept(4) + 2 * 5 * 2 * 5 * 4
    assert kept(checkpointing=True) == 5 * (2 * 4 * 8 + block)
    # Attention to another stack: its norm, its six tensors, and scores over four positions.
    across = 4 * 8 + 2 * (8 + 6 * 16)
    assert kept(across=4) == 2 * 5 * (block + across)
    assert kept(across=4, eager=True) == 2 * 5 * (block + 2 * 5 * 6 + across + 2 * 4 * 6)
    assert kept(has_gradient=False) == 0


def test_bytes_of_other_families() -> None:
    llama: Any = LlamaModel(
        LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
        )
    )
    # Half as many keys as queries, and a gate in the feed-forward part: four tensors of 12.
    expected = 2 * 4 * 8 + 2 * (2 * 8 + 3 * 8 + 3 * 4 + 4 * 12)
    assert StackPass(stack=llama, positions=1).saved_bytes(2, eager=False, checkpointing=False) == expected
    gpt2: Any = GPT2Model(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2))
    # Four times the width between the two matrices where the configuration does not say.
    expected = 2 * 4 * 8 + 2 * (2 * 8 + 6 * 8 + 2 * 32)
    assert StackPass(stack=gpt2, positions=1).saved_bytes(2, eager=False, checkpointing=False) == expected


def test_a_projection_has_two_products() -> None:
    projection = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8), nn.LayerNorm(8))
    row = ProjectionPass(stack=projection, positions=3)
    assert row.flops(again=False) == row.flops(again=True) == 3 * 3 * 2 * (8 * 6 + 6 * 8)
    # Inputs of both products, what comes before the activation, and the norm's input in float32.
    assert row.saved_bytes(2, eager=False, checkpointing=False) == 3 * (2 * (8 + 6 + 6) + 4 * 8)


def test_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "positions_at_once", lambda _: 8)
    head = nn.Parameter(torch.zeros(10, 8))
    scores = Scores(head=head, made=5, supervised=4)
    forward = 2 * 10 * 8 * 5
    assert scores.flops(rows=3) == 3 * forward
    assert replace(scores, has_gradient=False).flops(rows=3) == forward
    assert replace(scores, products=2).flops(rows=3) == 2 * 3 * forward
    assert replace(scores, supervised=6).flops(rows=3) == 3 * 2 * 10 * 8 * 6
    # Made again in the backward pass where they are more than fit at once.
    pieces = replace(scores, pieces=True)
    assert (pieces.flops(rows=2), pieces.flops(rows=3)) == (3 * forward, 4 * forward)
    # Three rows of five scores; of four each a copy in two bytes, one in float32, and the logarithms in float32.
    assert scores.saved_bytes(3, 2) == 10 * (2 * 3 * 5 + 3 * 4 * (2 + 4 + 4))
    assert scores.saved_bytes(3, 4) == 10 * (4 * 3 * 5 + 3 * 4 * (4 + 4))
    assert pieces.saved_bytes(3, 2) == 10 * (2 * 3 * 5 + 8 * (2 + 4 + 4))
    head.requires_grad_(False)
    assert scores.flops(rows=3) == 2 * forward


def test_lengths_are_means_over_the_first_problems() -> None:
    assert Lengths(prompt=1, chain=2, end=3, answer=4, steps=5).total == 10
    assert Lengths(prompt=1, answer=4) == Lengths(prompt=1, chain=0, end=0, answer=4, steps=1)
    rows = [
        Spans(prompt=(1, 2), steps=((3,), (4, 5)), answer=(6,)),
        Spans(prompt=(1, 2, 3, 4), steps=((3, 4, 5, 6, 7),), answer=(6, 7)),
    ]
    for size, most in ((None, 64), (2, 2), (1000, 64)):
        asked: list[np.ndarray] = []
        task = SimpleNamespace(
            size=lambda _, size=size: size,
            sample=lambda _, indices, asked=asked: asked.append(indices),
            spans=lambda *_: rows,
        )
        context: Any = SimpleNamespace(
            task=task, training_task=task, prompt_format=None, markers=Markers(open=(9,), end=(8, 8))
        )
        assert measured_lengths(context) == Lengths(prompt=4, chain=4, end=2, answer=1.5, steps=1.5)
        assert asked[0].tolist() == list(range(most))
