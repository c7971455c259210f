"""What is chosen for problems of one's own, by planted lengths, sizes and widths."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unspoken.methods.defaults import TrainingFacts
from unspoken.tasks.spans import Spans
from unspoken.training.own_data import _facts, _filled, _in_order, as_overrides

CONFIG = SimpleNamespace(hidden_size=96, num_attention_heads=3)


def facts(**changes: Any) -> TrainingFacts:
    return TrainingFacts(**{"rows": 8000, "steps": 2, "chain": 6, "width": 64, "heads": 2, "batch_size": 8, **changes})


@pytest.mark.parametrize(
    ("width", "given", "rank", "rate"),
    [
        (511, {}, None, 0.001),
        (512, {}, 64, 0.0003),
        (512, {"lora": None}, None, 0.00005),
        (511, {"lora": None}, None, 0.001),
        (512, {"lora": {"rank": 8}}, 64, 0.0003),  # the recipe has its rank in place of the usual one
        (511, {"lora": {"rank": 8}}, 64, 0.0003),
    ],
)
def test_a_wide_model_gets_adapters_and_a_lower_rate(width: int, given: Any, rank: Any, rate: float) -> None:
    stage = _filled({"name": "one", "epochs": 3}, facts(width=width), given)
    assert stage["lora"] == (None if rank is None else {"rank": rank})
    assert stage["optimizer"]["lr"] == rate


@pytest.mark.parametrize(
    ("rows", "epochs", "steps", "every", "warmup"),
    [(8000, 3, 3000, 250, 30), (8000, 1, 1000, 250, 30), (2400, 1, 300, 75, 30), (8, 1, 20, 5, 2), (8, 0.1, 2, 1, 0)],
)
def test_a_stage_is_measured_four_times_or_more(rows: int, epochs: float, steps: int, every: int, warmup: int) -> None:
    stage = _filled({"name": "one", "epochs": epochs}, facts(rows=rows), {})
    assert stage == {
        "name": "one",
        "steps": steps,
        "batch_size": 8,
        "accumulate": 1,
        "evaluate_every": every,
        "lora": None,
        "optimizer": {"name": "adamw", "lr": 0.001, "lr_rest": None, "weight_decay": 0.01, "warmup_steps": warmup},
    }


@pytest.mark.parametrize(
    ("steps", "taken", "every", "warmup"),
    [(8, 8, 2, 0), (3000, 3000, 250, 30), (1, 1, 1, 0), (0, 20, 5, 2), ("9", 20, 5, 2), (True, 20, 5, 2)],
)
def test_looks_and_warm_up_follow_from_given_steps(steps: Any, taken: int, every: int, warmup: int) -> None:
    # What is no number of steps is refused when the recipe is read.
    stage = _filled({"name": "one", "epochs": 1}, facts(rows=8), {"steps": steps})
    assert (stage["steps"], stage["evaluate_every"], stage["optimizer"]["warmup_steps"]) == (taken, every, warmup)


def test_what_a_method_states_stays() -> None:
    labels = {"name": "labels", "objective": {"kind": "labels"}}
    assert _filled(labels, facts(), {}) == labels
    given = {"name": "one", "epochs": 1, "lora": None, "optimizer": {"weight_decay": 0.0}, "batch_size": 3}
    stage = _filled(given, facts(width=512), {})
    assert "lora" not in stage
    assert (stage["batch_size"], stage["optimizer"]["weight_decay"]) == (3, 0.0)
    assert stage["optimizer"]["name"] == "adamw"


def planted(
    monkeypatch: pytest.MonkeyPatch,
    *lengths: tuple[int, int, int],
    rows: Any,
    validation: Any = 30,
    config: Any = CONFIG,
) -> Any:
    """Facts and caps of problems with these lengths of prompt, step and answer; the first have one step, and so on."""
    spans = [
        Spans(prompt=(3,) * prompt, steps=((4,) * chain,) + ((4,),) * number, answer=(5,) * answer)
        for number, (prompt, chain, answer) in enumerate(lengths)
    ]
    task = SimpleNamespace(
        size=lambda split: rows if split == "train" else validation,
        sample=lambda _, indices: indices,
        spans=lambda indices, _: [spans[number % len(spans)] for number in indices.tolist()],
    )
    composite = SimpleNamespace(get_text_config=lambda: config)
    monkeypatch.setattr("unspoken.training.context.base_config", lambda _: composite)
    recipe: Any = SimpleNamespace(task=SimpleNamespace(build=lambda: task), tokenizer=lambda: None)
    return _facts(recipe)


@pytest.mark.parametrize(
    ("longest", "rows", "batch", "measured"),
    [
        (2**14 // 32, 5000, 32, 32),  # a batch has 16,384 tokens at most, and its size is a power of two
        (2**14 // 32 + 1, 5000, 16, 16),
        (2**14 // 32, 4999, 8, 32),
        (2**14 // 4, 4999, 4, 4),
        (2**14 + 1, 5000, 1, 1),
        (16, 5000, 32, 32),
    ],
)
def test_batches_hold_what_fits(
    monkeypatch: pytest.MonkeyPatch, longest: int, rows: int, batch: int, measured: int
) -> None:
    known, caps = planted(monkeypatch, (longest - 8, 5, 3), rows=rows)
    assert (known.rows, known.batch_size, known.width, known.heads) == (rows, batch, 96, 3)
    assert (caps["batch_size"], caps["problems"], caps["validation_problems"]) == (measured, 500, 30)
    # A quarter more than the longest, and four.
    assert (caps["max_latents"], caps["max_answer"]) == (4 + 7, 4 + 4)


def test_one_chain_in_twenty_may_be_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    # Twenty problems, whose chains have 1 to 20 steps and one token more in each; the first step has one.
    known, caps = planted(monkeypatch, *[(2, 1, 2)] * 20, rows=20)
    assert (known.steps, known.chain) == (20, 20)  # the 95th percentile, 19.05, is rounded up
    assert caps["max_latents"] == 4 + 25
    known, _ = planted(monkeypatch, *[(2, 1, 2)] * 21, rows=21)
    assert (known.steps, known.chain) == (20, 20)


@pytest.mark.parametrize(("width", "heads"), [(256, 4), (32, 1)])
def test_a_model_without_heads(monkeypatch: pytest.MonkeyPatch, width: int, heads: int) -> None:
    known, _ = planted(monkeypatch, (2, 1, 2), rows=20, config=SimpleNamespace(hidden_size=width))
    assert (known.width, known.heads) == (width, heads)


@pytest.mark.parametrize(("held_out", "measured"), [(None, 100), (99, 99), (100, 100), (101, 100)])
def test_a_hundred_problems_select_a_checkpoint(monkeypatch: pytest.MonkeyPatch, held_out: Any, measured: int) -> None:
    known, caps = planted(monkeypatch, (2, 1, 2), rows=None, validation=held_out)
    assert (known.rows, caps["validation_problems"]) == (1000, measured)


def test_rows_are_read_in_order_where_a_stage_asks_for_it() -> None:
    one, icot = {"objective": {"kind": "next_token"}}, {"objective": {"kind": "icot"}}
    assert [_in_order(stages) for stages in ([one], [one, icot], [icot])] == [False, True, True]


def test_nested_settings_as_overrides() -> None:
    values = {"steps": 3, "optimizer": {"lr": 0.1, "betas": [0.9, 0.95]}, "name": "a b", "lora": None}
    assert as_overrides(values, "stages.one.") == [
        "stages.one.steps=3",
        "stages.one.optimizer.lr=0.1",
        "stages.one.optimizer.betas=[0.9, 0.95]",
        'stages.one.name="a b"',
        "stages.one.lora=null",
    ]
