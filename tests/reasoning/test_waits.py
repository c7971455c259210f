"""How often the host waits for the device: counted on the CPU by the operations that would make it wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from conformance import left_padded
from tiny_models import FAMILIES, PAD, prompts, tiny_language_model, tiny_reasoner
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unspoken.chain import LatentChain
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import Reasoner, StopRule, respond, rollout
from unspoken.reasoning.picking import draw
from unspoken.reasoning.row import AnswerDecoding
from unspoken.serving.batch import Batch, Job

aten = torch.ops.aten
CAP, WORDS = 8, 6
# What reads a value to go on: the result, or its shape, is needed on the host. `multinomial` looks at its weights.
READS = {
    aten._local_scalar_dense.default,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.multinomial.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Waits(TorchDispatchMode):
    """Counts waits, and passes of a stack. A row of numbers that is read at once, ``tolist``, is one wait."""

    def __init__(self, stack: Any) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()
        self.passes: list[int] = []
        self._hook = stack.register_forward_pre_hook(lambda *_: self.passes.append(self.waits))

    @property
    def waits(self) -> int:
        return self.kinds.total()

    @property
    def after_the_prompt(self) -> list[int]:
        """Waits from one pass to the next, the reading of the prompt left out; the last pass ends with the answer."""
        marks = [*self.passes[1:], self.waits]
        return [after - before for before, after in pairwise(marks)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func in INDEXED and any(part is not None and part.dtype == torch.bool for part in args[1])
        if func in READS or masked:
            self.kinds[str(func)] += 1
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Waits:
        # On a tensor of the CPU these never reach the dispatcher.
        self._below = {name: getattr(Tensor, name) for name in ("tolist", "cpu", "numpy")}
        for name, method in self._below.items():
            setattr(Tensor, name, self._counted(name, method))
        return super().__enter__()

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **how: Any) -> Any:
            self.kinds[name] += 1
            return method(tensor, *args, **how)

        return counted

    def __exit__(self, *error: Any) -> None:
        for name, method in self._below.items():
            setattr(Tensor, name, method)
        self._hook.remove()
        super().__exit__(*error)


def reasoner_of(family: str, attention: str) -> CausalLMReasoner:
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(7, 14), top_k=10)
    return CausalLMReasoner(model=tiny_language_model(family, attention), settings=settings)


def batch_of(padded: bool) -> tuple[Tensor, Tensor | None]:
    if not padded:
        return prompts(), None
    return left_padded([prompt[start:] for prompt, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)])


def decoding(sample: Callable[..., Tensor] | None = None) -> AnswerDecoding:
    return AnswerDecoding(marker=(7, 14), max_tokens=WORDS, end_ids=(8, 1), pad_id=PAD, sample=sample)


def test_the_counter_counts() -> None:
    stack = torch.nn.Identity()
    with Waits(stack) as waits:
        for numbers in (torch.ones(3), torch.zeros(3)):
            stack(numbers)
            if numbers.any():
                numbers[numbers > 0] = 2
            numbers.tolist(), numbers.cpu(), numbers.nonzero(), numbers.unique(), numbers.equal(numbers)
            torch.multinomial(numbers + 1, 1)
    assert waits.kinds["tolist"] == waits.kinds["cpu"] == waits.kinds["aten.multinomial.default"] == 2
    # The first numbers are changed through a mask, too.
    assert waits.passes == [0, 8]
    assert waits.after_the_prompt == [7]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_thinking_waits_once_a_step_and_not_at_all_for_a_fixed_length(
    family: str, attention: str, padded: bool
) -> None:
    methods: list[Reasoner] = [reasoner_of(family, attention), tiny_reasoner(family, attention)]
    for method in methods:
        with Waits(method.stack) as waits:
            rollout(method, *batch_of(padded), StopRule(max_latents=CAP))
        assert set(waits.after_the_prompt) == {1}
        with Waits(method.stack) as waits:
            rollout(method, *batch_of(padded), StopRule(max_latents=CAP, fixed=True))
        assert len(waits.passes) == CAP
        assert not any(waits.after_the_prompt)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_thinking_and_answering_wait_once_a_step(family: str, attention: str, padded: bool) -> None:
    method = reasoner_of(family, attention)
    given = LatentChain(
        latents=torch.zeros(6, 3, 16),
        mask=torch.arange(3)[None] < torch.tensor([[3], [0], [1], [2], [3], [1]]),
        stop=torch.zeros(6, dtype=torch.long),
    )
    for chain, sample in ((None, None), (given, None), (None, lambda scores, _rows, _first: scores.argmax(dim=-1))):
        with Waits(method.stack) as waits:
            respond(method, *batch_of(padded), StopRule(max_latents=CAP), decoding(sample), chain)
        assert len(waits.passes) > CAP
        assert max(waits.after_the_prompt) == 1
        # Checks of the prompt, what the library asks before it makes a mask, and, once a model, how its head scores.
        assert waits.passes[1] <= 6


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_server_waits_once_a_step_for_sixteen_rows(attention: str, drawn: bool) -> None:
    method = reasoner_of("llama", attention)
    source = torch.Generator().manual_seed(0)
    sample = (lambda scores, _rows, _first: draw(scores.softmax(dim=-1), source)) if drawn else None
    reports: list[Any] = []
    asked = [tuple(prompt[index % 5 :].tolist()) for index, prompt in enumerate(prompts(16, 7))]
    rows = [Job(ids, StopRule(max_latents=CAP), decoding(sample)) for ids in asked]
    for row in rows:
        row.report = reports.append
    batch = Batch(method)
    batch.join(rows[:8])
    batch.step()
    batch.join(rows[8:])
    assert len(batch.rows) > 12
    with Waits(method.stack) as waits:
        while batch.rows:
            batch.step()
    assert len([one for one in reports if one.over]) == 16
    assert len(waits.after_the_prompt) > CAP
    assert max(waits.after_the_prompt) == 1
