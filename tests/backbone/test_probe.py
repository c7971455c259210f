"""What the properties of a model are tested with, and how much two computations may differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_hub import SLIDING, tiny_hub_model
from torch import Tensor

from unspoken.backbone import checks
from unspoken.backbone.checks import _differ, _first, _Lacking, _Probe, _same, _short

MODEL = tiny_hub_model("llama", vocab_size=80)


def test_prompts_of_four_and_six_tokens_are_followed_by_three_latents_each() -> None:
    probe, other = _Probe(MODEL, seed=0), _Probe(MODEL, seed=1)
    table = MODEL.get_input_embeddings().weight.detach()
    width = table.shape[1]
    assert (len(probe.short), len(probe.long)) == (4, 6)
    assert probe.mixed.shape == probe.unmixed.shape == probe.latents_2LD.shape == (2, 3, width)
    assert probe.together.shape == (2, 4, width)  # before the latents, and at each
    assert [len(row) for row in probe.whole] == [4 + 3, 6 + 3]
    # Rare tokens and those at the start of a vocabulary, which are often special, are left out.
    tokens = torch.cat([_Probe(MODEL, seed=seed).long for seed in range(40)])
    assert (int(tokens.min()), int(tokens.max())) == (20, 69)
    assert not torch.equal(probe.long, other.long)
    # Latents are six tenths of a row and four of another, or rows where a model takes nothing else.
    found = [
        bool(((0.6 * table[one] + 0.4 * table - probe.mixed[0, 0]).abs().amax(dim=1) < 1e-5).any()) for one in range(80)
    ]
    assert sum(found) == 1
    assert ((table - probe.unmixed[1, 2]).abs().amax(dim=1) == 0).sum() == 1
    assert torch.equal(probe.latents_2LD, probe.mixed)
    probe.__dict__["refusal"] = "no vectors"
    assert torch.equal(probe.latents_2LD, probe.unmixed)


def test_a_difference_is_relative_to_the_largest_number() -> None:
    expected = torch.tensor([1.0, -4.0, 2.0])
    assert _differ(expected + torch.tensor([0.0, 0.0, 0.5]), expected) == pytest.approx(0.125)
    assert _differ(torch.tensor([1e-6]), torch.zeros(1)) == pytest.approx(1.0)
    assert _differ(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
    assert _differ(torch.tensor([float("inf")]), torch.ones(1)) == float("inf")
    _same(expected + 4 * 1.9e-4, expected)
    with pytest.raises(_Lacking, match=r"^off by 0\.0002$"):
        _same(expected + 4 * 2.1e-4, expected)
    _same(expected + 4 * 0.09, expected, 0.1)
    _same(torch.tensor([1.5]), torch.tensor([1.0]), 0.5)
    with pytest.raises(_Lacking, match=r"shape \(1, 3\) instead of \(3,\)"):
        _same(expected[None], expected)


class Given(_Probe):
    """Outputs that are known; no model is run."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def outputs(*rows: float) -> Tensor:
    return torch.tensor([*rows])[:, None]


# One row of outputs at a time: the property, what a probe gives, and what it gives where the property is missing.
ROWS = outputs(1.0, 2, 3, 4, 5, 6, 7, 8, 9)
SHORT = outputs(1.0, 2, 3, 4, 5, 6, 7)
PROBE: dict[str, Any] = {
    "short": torch.zeros(4),
    "long": torch.zeros(6),
    "whole": (SHORT, ROWS),
    "of_rows": ROWS[:6],
    "of_ids": ROWS[:6],
    "together": torch.stack([SHORT[3:], ROWS[5:]]),
}
LIMITS: list[tuple[Callable[[Any], None], str, Any]] = [
    (checks._takes_rows_for_ids, "of_ids", ROWS[:6] + 0.01),
    (checks._looks_back_only, "of_rows", ROWS[:6] + 0.01),
    (checks._batches, "together", torch.stack([SHORT[3:], ROWS[4:8]])),
    (checks._pads, "together", torch.stack([SHORT[2:6], ROWS[5:]])),
]


@pytest.mark.parametrize(("question", "name", "wrong"), LIMITS)
def test_outputs_are_compared_place_by_place(question: Callable[[Any], None], name: str, wrong: Tensor) -> None:
    question(Given(**PROBE))
    with pytest.raises(_Lacking, match="off by"):
        question(Given(**{**PROBE, name: wrong}))


def with_states(*widths: int) -> Given:
    """A stack of two blocks that returns states of these widths."""

    def stack(**_: Any) -> Any:
        return SimpleNamespace(hidden_states=tuple(torch.zeros(1, 6, width) for width in widths) or None)

    stack.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=2))  # type: ignore[attr-defined]
    return Given(stack=stack, long=torch.zeros(6), rows=lambda ids: ids[:, None])


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((4, 4, 4), None),
        ((4, 4), "^2 instead of 3$"),
        ((4, 4, 4, 4), "^4 instead of 3$"),
        ((), "^0 instead of 3$"),
        ((4, 4, 3), r"^of different shapes, \(1, 6, 3\) and \(1, 6, 4\)$"),
    ],
)
def test_states_are_those_before_each_block_and_after_the_last(widths: tuple[int, ...], message: str | None) -> None:
    if message is None:
        checks._returns_states(with_states(*widths))
        return
    with pytest.raises(_Lacking, match=message):
        checks._returns_states(with_states(*widths))


def test_latents_that_enter_one_at_a_time_are_compared_from_the_prompt_s_last_token_on() -> None:
    def caching(outputs: Tensor) -> Given:
        def step_by_step(inputs: Tensor, mask: Any, latents: Tensor) -> Tensor:
            assert (inputs.shape, mask, latents.tolist()) == ((1, 6, 1), None, [[7.0, 8.0, 9.0]])
            return outputs[None]

        vectors = torch.tensor([[4.0, 5, 6], [7.0, 8, 9]])
        return Given(**PROBE, rows=lambda ids: ids[:, None], mixed=vectors, refusal=None, step_by_step=step_by_step)

    checks._caches(caching(ROWS[5:]))
    for wrong in (ROWS[4:8], ROWS[5:] + 0.01):
        with pytest.raises(_Lacking, match="off by"):
            checks._caches(caching(wrong))


def test_widths_are_those_of_outputs_and_of_the_config() -> None:
    inside = torch.zeros(2, 3, 4)
    for outside, fits in ((4, True), (5, False)):
        probe = Given(whole=(torch.zeros(7, outside), torch.zeros(9, outside)), unmixed=inside)
        if fits:
            checks._keeps_its_width(probe)
        else:
            with pytest.raises(_Lacking, match=r"^5 and 4$"):
                checks._keeps_its_width(probe)
    checks._names_its_width(Given(unmixed=inside, stack=SimpleNamespace(config=SimpleNamespace(hidden_size=4))))
    for named in (5, None):
        with pytest.raises(_Lacking, match=f"^{named} and 4$"):
            checks._names_its_width(
                Given(unmixed=inside, stack=SimpleNamespace(config=SimpleNamespace(hidden_size=named)))
            )


def test_hidden_tokens_have_a_tenth_of_the_usual_tolerance() -> None:
    for error, fits in ((1.9e-5, True), (2.1e-5, False)):
        probe = Given(masked=(ROWS * (1 + error), ROWS))
        if fits:
            checks._obeys_masks(probe)
        else:
            with pytest.raises(_Lacking, match="off by 2e-05"):
                checks._obeys_masks(probe)


def test_a_few_tokens_exceed_a_reach_that_is_shortened_to_three() -> None:
    for window, places, inside in ((4, 64, 3), (3, 64, 3), (2, 64, 2), (63, 64, 3), (64, 64, 64), (None, 64, None)):
        config = tiny_hub_model("mistral", sliding_window=8, max_position_embeddings=places).config
        config.sliding_window = window
        with _short(config):
            assert config.sliding_window == inside, window
        assert config.sliding_window == window
    config = tiny_hub_model("gemma3_text", **SLIDING).config
    before = config.sliding_window

    def interrupted() -> None:
        with _short(config):
            assert config.sliding_window == 3
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert config.sliding_window == before


def test_an_error_is_one_line_of_at_most_120_letters() -> None:
    assert _first(ValueError("a\n  b")) == "ValueError: a b"
    assert _first(KeyError("x" * 200)) == f"KeyError: '{'x' * 119}"


def test_a_property_must_fail_on_two_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: list[tuple[int, bool]] = []

    def question(fails: tuple[bool, bool]) -> Callable[[_Probe], None]:
        def ask(probe: _Probe) -> None:
            assert not probe.model.training
            seed = 0 if torch.equal(probe.long, _Probe(MODEL, seed=0).long) else 1
            seen.append((seed, torch.is_grad_enabled()))
            if fails[seed]:
                raise _Lacking("so")

        return ask

    properties = {
        "both": ("it fails", question((True, True))),
        "first": ("it fails", question((True, False))),
        "second": ("it fails", question((False, True))),
        "gradient": ("it learns", question((False, False))),
    }
    monkeypatch.setattr(checks, "_PROPERTIES", properties)
    MODEL.train()
    assert checks._ask(MODEL) == {"both": "it fails (so)"}
    assert MODEL.training
    MODEL.eval()
    # Gradients are needed for one property alone, and only what failed is asked again.
    assert seen == [(0, False), (0, False), (0, False), (0, True), (1, False), (1, False)]


def test_results_are_kept_under_a_hash_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = checks._key(MODEL)
    assert len(key) == 32 and set(key) <= set("0123456789abcdef")
    assert checks._key(tiny_hub_model("llama", vocab_size=80)) == key
    one, two = tiny_hub_model("llama"), tiny_hub_model("llama")
    one.config.first, one.config.second = two.config.first, two.config.second = 1, 2
    del one.config.first
    one.config.first = 1  # whatever the order of the keys
    assert checks._key(one) == checks._key(two) != key
    assert checks._read(key) is None
    checks._write(key, {"causal": "so"})
    assert checks._read(key) == {"causal": "so"}
    assert checks._folder() == tmp_path / "unspoken" / "backbones"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert checks._folder() == Path.home() / ".cache" / "unspoken" / "backbones"


def test_latents_enter_with_positions_and_masks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two rows the first is padded by one token."""
    calls: list[Any] = []

    class Stack:
        config = "its config"

        def __call__(self, **how: Any) -> Any:
            calls.append(how)
            return SimpleNamespace(last_hidden_state=how["inputs_embeds"])

    monkeypatch.setattr(checks, "DynamicCache", lambda config: f"a cache of {config}")
    latents, mask = torch.tensor([[[3.0], [4.0]], [[5.0], [6.0]]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    inputs = torch.tensor([[[0.0], [1.0], [2.0]]] * 2)
    probe = Given(stack=Stack())
    assert probe.step_by_step(inputs, mask, latents).tolist() == [[[2.0], [3.0], [4.0]], [[2.0], [5.0], [6.0]]]
    assert [how["position_ids"].tolist() for how in calls] == [[[0, 0, 1], [0, 1, 2]], [[2], [3]], [[3], [4]]]
    assert calls[2]["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1] * 5]
    assert [(how["past_key_values"], how["use_cache"]) for how in calls] == [("a cache of its config", True)] * 3


def test_padding_holds_what_must_not_be_seen() -> None:
    probe = _Probe(MODEL, seed=0)
    given: list[Tensor] = []
    probe.step_by_step = lambda *inputs: given.extend(inputs) or inputs[0]  # type: ignore[assignment, method-assign]
    _ = probe.together
    rows, mask, latents = given
    assert torch.equal(rows[0], torch.cat([probe.rows(probe.long[:2]), probe.rows(probe.short)]))
    assert torch.equal(rows[1], probe.rows(probe.long))
    assert mask.tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6]
    assert latents is probe.mixed


@pytest.mark.parametrize(("error", "fits"), [(0.0, True), (0.0039, True), (0.0041, False), (-1.0, False)])
def test_the_gradient_through_a_cache_is_that_without(
    monkeypatch: pytest.MonkeyPatch, error: float, fits: bool
) -> None:
    """Outputs are sums of all inputs so far; what a cache keeps has a wrong gradient, at -1 none."""

    class Stack:
        config = None

        def __call__(self, inputs_embeds: Tensor, use_cache: bool, past_key_values: Any = None, **_: Any) -> Any:
            assert use_cache is (past_key_values is not None)
            hidden = inputs_embeds.cumsum(dim=1)
            if past_key_values is not None:
                kept = past_key_values.total
                hidden = hidden + kept + error * (kept - kept.detach())
                past_key_values.total = hidden[:, -1:]
            return SimpleNamespace(last_hidden_state=hidden)

    monkeypatch.setattr(checks, "DynamicCache", lambda **_: SimpleNamespace(total=torch.zeros(1)))
    given = {"model": SimpleNamespace(device="cpu"), "unmixed": torch.zeros(2, 3, 4), "short": torch.zeros(4)}
    probe = Given(stack=Stack(), rows=lambda ids: torch.ones(len(ids), 4), **given)
    if fits:
        checks._trains_through_its_cache(probe)
    else:
        with pytest.raises(_Lacking, match="off by"):
            checks._trains_through_its_cache(probe)
