"""What every method owes the shared engine, checked once for all of them.

A method's test file subclasses `ReasonerConformance` and supplies the fixture ``reasoner`` and two short functions.

Axes: B batch, T prompt tokens, N latent steps, D latent width.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import PAD, prompts
from torch import Tensor
from transformers import AutoModelForCausalLM

from unspoken.chain import LatentChain, StopReason
from unspoken.reasoning.engine import Reasoner, StopRule, rollout

CAP = 8
# Two ways to sum the same float32 numbers differ by this much at most, after eight looped steps.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}


@torch.no_grad()
def naive_chain(reasoner: Reasoner, prompt_T: Tensor, stop: StopRule) -> tuple[Tensor, StopReason]:
    """One row, no cache, no padding, no positions given: the whole sequence is computed anew at every step."""
    inputs = reasoner.embed_prompt(prompt_T[None])
    latents = [inputs.new_zeros((0, inputs.shape[-1]))]
    for _ in range(stop.max_latents):
        hidden = reasoner.stack(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1]
        latent_step = reasoner.step(hidden)
        if stop.fixed or latent_step.recorded is None or bool(latent_step.recorded[0]):
            latents.append(latent_step.latent)
        if not stop.fixed and bool(latent_step.done[0]):
            return torch.cat(latents), StopReason.END
        inputs = torch.cat([inputs, latent_step.next_input[:, None].to(inputs.dtype)], dim=1)
    return torch.cat(latents), StopReason.FIXED if stop.fixed else StopReason.CAP


def left_padded(rows: list[Tensor], filler: int = PAD) -> tuple[Tensor, Tensor]:
    """Prompts of different length as one batch and its attention mask."""
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([row.new_full((longest - len(row),), filler), row]) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    return ids, (torch.arange(longest, device=ids.device) >= longest - lengths[:, None]).long()


def assert_row_is(chain: LatentChain, row: int, latents_ND: Tensor, reason: StopReason) -> None:
    """One row of a chain holds exactly these steps and zeros after them."""
    steps = len(latents_ND)
    assert chain.mask[row].tolist() == [step < steps for step in range(chain.mask.shape[1])]
    assert chain.stop[row] == reason
    torch.testing.assert_close(chain.latents[row, :steps], latents_ND, **CLOSE)
    assert not chain.latents[row, steps:].any()


def assert_same_chain(one: LatentChain, two: LatentChain) -> None:
    """Bit-equal chains."""
    assert torch.equal(one.latents, two.latents)
    assert torch.equal(one.mask, two.mask)
    assert torch.equal(one.stop, two.stop)


class ReasonerConformance:
    """The facts that hold for every method; pytest collects them in each subclass named ``Test...``."""

    def teacher_forced(self, reasoner: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Outputs ``[B, T, ...]`` of the parallel pass that training uses."""
        raise NotImplementedError

    def reload(self, reasoner: Any, folder: Path) -> Any:
        """The method after its model went to disk and back."""
        raise NotImplementedError

    def expected(self, reasoner: Any, prompt_T: Tensor, stop: StopRule) -> tuple[Tensor, StopReason]:
        """Latents ``[N, D]`` of one row, and why they end."""
        return naive_chain(reasoner, prompt_T, stop)

    def test_the_prompts_of_this_suite_stop_in_every_way(self, reasoner: Reasoner) -> None:
        # Otherwise the other tests would compare chains that are all alike.
        chain = rollout(reasoner, prompts(), None, StopRule(max_latents=CAP))
        assert {StopReason.END, StopReason.CAP} == {StopReason(int(reason)) for reason in chain.stop}
        assert len(set(chain.lengths.tolist())) >= 3

    @pytest.mark.parametrize("fixed", [False, True])
    def test_cached_rollout_equals_the_naive_loop(self, reasoner: Reasoner, fixed: bool) -> None:
        stop = StopRule(max_latents=CAP, fixed=fixed)
        for prompt in prompts():
            chain = rollout(reasoner, prompt[None], None, stop)
            assert_row_is(chain, 0, *self.expected(reasoner, prompt, stop))

    @pytest.mark.parametrize("fixed", [False, True])
    def test_a_batch_equals_its_rows(self, reasoner: Reasoner, fixed: bool) -> None:
        stop = StopRule(max_latents=CAP, fixed=fixed)
        chain = rollout(reasoner, prompts(), None, stop)
        for row, prompt in enumerate(prompts()):
            assert_row_is(chain, row, *self.expected(reasoner, prompt, stop))

    @pytest.mark.parametrize("filler", [PAD, 7])
    def test_left_padded_rows_equal_each_row_alone(self, reasoner: Reasoner, filler: int) -> None:
        stop = StopRule(max_latents=CAP)
        rows = [prompt[start:] for prompt, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]
        ids, mask = left_padded(rows, filler)
        chain = rollout(reasoner, ids, mask, stop)
        for row, prompt in enumerate(rows):
            assert_row_is(chain, row, *self.expected(reasoner, prompt, stop))

    def test_padding_the_whole_batch_changes_nothing(self, reasoner: Reasoner) -> None:
        stop = StopRule(max_latents=CAP)
        ids, mask = left_padded([*prompts(), prompts(rows=1, length=9)[0]])
        padded = rollout(reasoner, ids, mask, stop)
        for row, prompt in enumerate(prompts()):
            assert_row_is(padded, row, *self.expected(reasoner, prompt, stop))

    def test_a_mask_of_ones_is_no_mask(self, reasoner: Reasoner) -> None:
        stop = StopRule(max_latents=CAP)
        assert_same_chain(
            rollout(reasoner, prompts(), None, stop), rollout(reasoner, prompts(), torch.ones_like(prompts()), stop)
        )

    def test_reasoning_twice_gives_the_same_bits(self, reasoner: Reasoner) -> None:
        stop = StopRule(max_latents=CAP)
        assert_same_chain(rollout(reasoner, prompts(), None, stop), rollout(reasoner, prompts(), None, stop))

    def test_saving_and_loading_changes_nothing(self, reasoner: Reasoner, tmp_path: Path) -> None:
        stop = StopRule(max_latents=CAP)
        again = self.reload(reasoner, tmp_path)
        assert_same_chain(rollout(reasoner, prompts(), None, stop), rollout(again, prompts(), None, stop))
        with torch.no_grad():
            assert torch.equal(self.teacher_forced(reasoner, prompts()), self.teacher_forced(again, prompts()))

    @torch.no_grad()
    def test_a_future_token_changes_nothing_earlier(self, reasoner: Reasoner) -> None:
        ids = prompts(rows=3, length=9)
        before = self.teacher_forced(reasoner, ids)
        for position in range(1, 9):
            changed = ids.clone()
            changed[:, position] = (changed[:, position] - 2) % 17 + 3
            after = self.teacher_forced(reasoner, changed)
            torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=1e-6)
            assert ((after[:, position] - before[:, position]).abs().amax(dim=-1) > 1e-3).all()

    @torch.no_grad()
    def test_left_padding_changes_nothing_in_the_parallel_pass(self, reasoner: Reasoner) -> None:
        rows = [prompt[start:] for prompt, start in zip(prompts(length=8), (0, 3, 1, 4, 0, 2), strict=True)]
        ids, mask = left_padded(rows)
        together = self.teacher_forced(reasoner, ids, mask)
        for outputs, row in zip(together, rows, strict=True):
            torch.testing.assert_close(outputs[-len(row) :], self.teacher_forced(reasoner, row[None])[0], **CLOSE)


class CausalConformance(ReasonerConformance):
    """The same for reasoners around a plain causal language model in their field ``model``."""

    def teacher_forced(self, reasoner: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)
        out = reasoner.model(input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
        logits: Tensor = out.logits
        return logits

    def reload(self, reasoner: Any, folder: Path) -> Any:
        reasoner.model.save_pretrained(folder)
        attention = reasoner.model.config._attn_implementation
        return replace(reasoner, model=AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention))


class LatentConformance(ReasonerConformance):
    """The same for reasoners of a `LatentModel`, in their field ``model``."""

    def teacher_forced(self, reasoner: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)
        decoder = reasoner.model.decoder
        out = decoder(input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
        logits: Tensor = out.logits
        return logits

    def reload(self, reasoner: Any, folder: Path) -> Any:
        reasoner.model.save_pretrained(folder)
        attention = reasoner.model.config._attn_implementation
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).reasoner()

    def test_the_prompts_of_this_suite_stop_in_every_way(self, reasoner: Reasoner) -> None:
        # The length is fixed: the other tests compare chains that differ in their vectors alone.
        chain = rollout(reasoner, prompts(), None, StopRule(max_latents=CAP, fixed=True))
        assert chain.lengths.tolist() == [CAP] * 6
        assert (chain.stop == StopReason.FIXED).all()
        assert torch.pdist(chain.latents.flatten(1)).min() > 0.1
