"""What the shared suite asks of every method, in bfloat16: with a cache, in a batch, after padding, after a reload.

A chain that runs free would show nothing: rounding to 8 bits grows from step to step until another token is the most
likely one. So every loop is fed what the plain one fed itself, a row at a time without cache and padding, and each
thought must be the plain one's up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conformance import assert_same_chain, left_padded
from on_device import DEVICE, again, placed
from tiny_models import prompts
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.reasoning.engine import LatentStep, StopRule, rollout

pytestmark = pytest.mark.gpu

STEPS = 4
STOP = StopRule(max_latents=STEPS, fixed=True)
# Of the norm of a latent_step. Bfloat16 rounds by 2^-9 at most, in some dozen places one after another.
ROUNDING = 0.05
# Of the largest score: a token that leads by less may change places with the next one.
LEAD = 0.05

coupled = again("methods/coupled/test_conformance")
jepa = again("methods/jepa_reasoner/test_conformance")
latent_sft = again("reasoning/test_causal_lm")
coconut = again("methods/coconut/test_reasoner")

coupled_reasoner = coupled.reasoner
jepa_reasoner = jepa.reasoner
latent_sft_reasoner = latent_sft.reasoner
coconut_reasoner = coconut.reasoner


@torch.no_grad()
def plain(reasoner: Any, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of one row without cache and padding: thoughts and feeds ``[N, D]``, and whether each thought was clear."""
    inputs = reasoner.embed_prompt(prompt[None])
    latents, feeds, clear = [], [], []
    for _ in range(STEPS):
        hidden = reasoner.stack(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1]
        latent_step = reasoner.step(hidden)
        latents.append(latent_step.latent)
        feeds.append(latent_step.next_input.to(inputs.dtype))
        clear.append(_is_main_rank(reasoner, hidden))
        inputs = torch.cat([inputs, feeds[-1][:, None]], dim=1)
    return torch.cat(latents), torch.cat(feeds), torch.cat(clear)


def plain_rows(reasoner: Any, rows: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """`plain` of each row, ``[B, N, ...]``."""
    return tuple(torch.stack(parts) for parts in zip(*(plain(reasoner, row) for row in rows), strict=True))


def _is_main_rank(reasoner: Any, hidden: Tensor) -> Tensor:
    """Whether the choice that a thought makes, if it makes one, does not hang on rounding."""
    if not isinstance(reasoner, CoupledReasoner):
        return torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    scores = reasoner.model.get_output_embeddings()(hidden).float()
    first, second = scores.topk(2, dim=-1).values.unbind(dim=-1)
    return first - second > LEAD * scores.abs().amax(dim=-1)


def fed(reasoner: Any, ids: Tensor, mask: Tensor | None, feeds: Tensor) -> Tensor:
    """Thoughts ``[B, N, D]`` of the engine, which is fed what the plain loop fed itself."""
    latents: list[Tensor] = []

    def replay(latent_step: LatentStep, step: int) -> LatentStep:
        latents.append(latent_step.latent)
        return replace(latent_step, next_input=feeds[:, step].to(latent_step.next_input))

    rollout(reasoner, ids, mask, STOP, intervene=replay)
    return torch.stack(latents, dim=1)


def apart(latents: Tensor, others: Tensor) -> Tensor:
    """Distances ``[...]`` over the norm of the second."""
    return (latents.float() - others.float()).norm(dim=-1) / others.float().norm(dim=-1)


def assert_alike(latents: Tensor, expected: Tensor, clear: Tensor) -> None:
    """The same up to rounding where a latent is clear, and most are; those of another row are far away."""
    assert clear.float().mean() > 0.5
    assert float(apart(latents, expected)[clear].max()) < ROUNDING
    assert float(apart(latents, expected.roll(1, dims=0)).median()) > 10 * ROUNDING


class Bfloat16:
    """The facts; each method is a subclass with a fixture ``reasoner``, over all that its own tests have."""

    module: ModuleType

    def test_with_a_cache_in_a_batch_and_alone(self, reasoner: Any) -> None:
        ids = prompts().to(DEVICE)
        assert reasoner.stack.dtype == torch.bfloat16
        latents, feeds, clear = plain_rows(reasoner, ids)
        assert latents.device.type == DEVICE.type
        assert_alike(fed(reasoner, ids, None, feeds), latents, clear)
        alone = torch.cat([fed(reasoner, row[None], None, own[None]) for row, own in zip(ids, feeds, strict=True)])
        assert_alike(alone, latents, clear)

    def test_behind_padding(self, reasoner: Any) -> None:
        rows = [row[start:].to(DEVICE) for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]
        latents, feeds, clear = plain_rows(reasoner, rows)
        ids, mask = left_padded(rows)
        assert_alike(fed(reasoner, ids, mask, feeds), latents, clear)

    def test_after_a_reload(self, reasoner: Any, tmp_path: Path) -> None:
        before: LatentChain = rollout(reasoner, prompts().to(DEVICE), None, STOP)
        loaded = placed(self.module.TestConformance().reload(reasoner, tmp_path), torch.bfloat16)
        assert_same_chain(before, rollout(loaded, prompts().to(DEVICE), None, STOP))


class TestCoupled(Bfloat16):
    module = coupled

    @pytest.fixture
    def reasoner(self, coupled_reasoner: Any) -> Any:
        return placed(coupled_reasoner, torch.bfloat16)


class TestJepaReasoner(Bfloat16):
    module = jepa

    @pytest.fixture
    def reasoner(self, jepa_reasoner: Any) -> Any:
        return placed(jepa_reasoner, torch.bfloat16)


class TestLatentSFT(Bfloat16):
    module = latent_sft

    @pytest.fixture
    def reasoner(self, latent_sft_reasoner: Any) -> Any:
        return placed(latent_sft_reasoner, torch.bfloat16)


class TestCoconut(Bfloat16):
    module = coconut

    @pytest.fixture
    def reasoner(self, coconut_reasoner: Any) -> Any:
        return placed(coconut_reasoner, torch.bfloat16)
