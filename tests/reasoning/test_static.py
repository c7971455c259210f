"""Steps of fixed shape, captured or not, against the loop whose cache grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance import assert_row_is, left_padded, naive_chain
from tiny_models import FAMILIES, PAD, prompts, tiny_language_model, tiny_reasoner, tiny_recurrent_model
from torch import Tensor
from transformers import AutoModelForCausalLM, MptConfig

from unspoken.chain import LatentChain
from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.reasoning import static
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import Reasoner, StopRule, respond, rollout
from unspoken.reasoning.row import AnswerDecoding

CAP, WORDS = 8, 6
ROWS = [prompt[start:] for prompt, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]
END = {"unspoken": 17, "llama": 7, "qwen2": 13, "gpt2": 19}
SPEECH = AnswerDecoding(marker=(7, 14), max_tokens=WORDS, end_ids=(8, 1), pad_id=PAD)


def reasoner_of(family: str, attention: str, feed: Any = "superposition") -> CausalLMReasoner:
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(END[family], 14), top_k=10, feed=feed)
    return CausalLMReasoner(model=tiny_language_model(family, attention), settings=settings)


def assert_close_chain(one: LatentChain, two: LatentChain) -> None:
    assert torch.equal(one.mask, two.mask)
    assert torch.equal(one.stop, two.stop)
    # A chain of hidden states is a little chaotic, so rounding grows from step to step.
    torch.testing.assert_close(one.latents, two.latents, rtol=1e-3, atol=2e-4)


def assert_static_is_plain(method: Any, device: str = "cpu") -> None:
    """Chains and answers of padded and unpadded rows, from own and from given chains."""
    stop = StopRule(max_latents=CAP)
    for batch in ((prompts(), None), left_padded(ROWS)):
        ids, mask = (None if part is None else part.to(device) for part in batch)
        plain = rollout(method, ids, mask, stop, static=False)
        assert_close_chain(rollout(method, ids, mask, stop, static=True), plain)
        if not isinstance(method, CausalLMReasoner):
            continue
        for given in (None, plain):
            chain, answers = respond(method, ids, mask, stop, SPEECH, given, static=False)
            again, tokens = respond(method, ids, mask, stop, SPEECH, given, static=True)
            assert_close_chain(again, chain)
            assert torch.equal(tokens, answers)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_fixed_shape_are_those_of_the_plain_loop(family: str, attention: str) -> None:
    assert_static_is_plain(reasoner_of(family, attention))
    assert_static_is_plain(reasoner_of(family, attention, feed="hidden"))
    assert_static_is_plain(tiny_reasoner(family, attention))


def test_steps_of_fixed_shape_are_those_of_the_whole_row_computed_anew() -> None:
    method, stop = tiny_reasoner("llama"), StopRule(max_latents=CAP)
    chain = rollout(method, *left_padded(ROWS), stop, static=True)
    for row, prompt in enumerate(ROWS):
        assert_row_is(chain, row, *naive_chain(method, prompt, stop))


def test_every_step_is_the_same_work() -> None:
    method = reasoner_of("llama", "sdpa")
    shapes: list[tuple[int, ...]] = []

    def watch(_module: Any, _args: Any, how: dict[str, Tensor]) -> None:
        shapes.append((*how["hidden_states"].shape, *how["attention_mask"].shape))

    method.stack.layers[0].self_attn.register_forward_pre_hook(watch, with_kwargs=True)
    # Models with states fill their caches only where they are asked to.
    cached: list[bool] = []
    method.stack.register_forward_pre_hook(
        lambda _module, _args, how: cached.append(how["use_cache"]), with_kwargs=True
    )
    rollout(method, *left_padded(ROWS), StopRule(max_latents=CAP, fixed=True), static=True)
    assert set(shapes[1:]) == {(6, 1, 16, 6, 1, 1, 5 + CAP)}
    shapes.clear()
    rollout(method, *left_padded(ROWS), StopRule(max_latents=CAP, fixed=True), static=False)
    assert len(set(shapes[1:])) == CAP - 1
    assert cached == [True] * (2 * CAP)


class Replayed:
    """What a CUDA graph does, done on the CPU: the work is noted once, and then redone into the same memory."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captures += 1
        cache = step.__self__._cache  # type: ignore[attr-defined]
        lengths = [layer.cumulative_length.clone() for layer in cache.layers]
        result = step()
        # A capture computes nothing; what was written beyond the length is written again.
        for layer, length in zip(cache.layers, lengths, strict=True):
            layer.cumulative_length.copy_(length)
        result.fill_(float("nan"))

        def replay() -> Tensor:
            self.replays += 1
            return result.copy_(step())

        return replay


@pytest.mark.parametrize("feed", ["superposition", "hidden"])
def test_a_replayed_step_keeps_nothing_of_the_step_before(feed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Replayed()
    monkeypatch.setattr(static, "captured", graph)
    monkeypatch.setattr(static, "_can_capture", lambda _tensor: True)
    assert_static_is_plain(reasoner_of("llama", "sdpa", feed))
    assert graph.captures == 6
    assert graph.replays > 6 * CAP


def test_a_step_that_cannot_be_captured_is_run_as_it_is_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore about it")

    monkeypatch.setattr(static, "captured", fails)
    monkeypatch.setattr(static, "_can_capture", lambda _tensor: True)
    method, stop = reasoner_of("llama", "sdpa"), StopRule(max_latents=CAP)
    assert_close_chain(rollout(method, prompts(), None, stop, static=True), rollout(method, prompts(), None, stop))
    (record,) = caplog.records
    assert "could not be captured as a CUDA graph (operation not permitted when stream is capturing);" in record.message
    with pytest.raises(ValueError, match=r"LlamaModel cannot decode with fixed shapes: its step could not be captured"):
        rollout(method, prompts(), None, stop, static=True)


@pytest.mark.parametrize(
    ("reason", "model"),
    [
        (
            "sliding window",
            tiny_language_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0),
        ),
        (
            "recurrent state",
            tiny_recurrent_model(),
        ),
        ("static cache", AutoModelForCausalLM.from_config(MptConfig(vocab_size=20, d_model=16, n_layers=2, n_heads=2))),
    ],
    ids=["window", "state", "bias"],
)
def test_models_that_cannot_are_refused_with_the_reason(reason: str, model: Any) -> None:
    method: Reasoner = CoupledReasoner(model=model.eval(), end_id=1, pad_id=PAD)
    name = type(method.stack).__name__
    with pytest.raises(ValueError, match=f"^{name} cannot decode with fixed shapes: .*{reason}.*leave static out$"):
        rollout(method, prompts(), None, StopRule(max_latents=2), static=True)
    # Left to itself the engine takes the plain loop.
    assert rollout(method, prompts(), None, StopRule(max_latents=2, fixed=True)).mask.all()


def test_steps_have_fixed_shapes_on_a_gpu_or_where_they_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    able = tiny_language_model("llama").base_model
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    answers = {
        (device.type, asked): static.has_static_steps(able, device, asked)
        for device in (cuda, cpu)
        for asked in (None, True, False)
    }
    assert answers == {
        ("cuda", None): True,
        ("cuda", True): True,
        ("cuda", False): False,
        ("cpu", None): False,
        ("cpu", True): True,
        ("cpu", False): False,
    }
    assert static.why_not_static(able) is None
    windowed = tiny_language_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0).base_model
    with caplog.at_level("INFO"):
        assert not static.has_static_steps(windowed, cuda, None)
    assert [record.message.split(":")[0] for record in caplog.records] == ["Qwen2Model decodes without a captured step"]
    assert not static.has_static_steps(windowed, cuda, False)
    with pytest.raises(ValueError, match="leave static out"):
        static.has_static_steps(windowed, cuda, True)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_steps_are_those_of_the_plain_loop(
    family: str, attention: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device to capture a step on")
    replays: list[None] = []
    real = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(None), real(graph))[1])
    for feed in ("superposition", "hidden"):
        method = reasoner_of(family, attention, feed)
        method.model.to("cuda")
        assert_static_is_plain(method, "cuda")
    assert len(replays) > 6 * CAP
    assert "could not be captured" not in caplog.text
