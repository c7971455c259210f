"""What a model gives at each latent of a chain, read for many rows at once."""

from __future__ import annotations

import pytest
import torch
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system
from transformers import DynamicCache

from unspoken.chain import LatentChain
from unspoken.evaluation.answering import answer
from unspoken.evaluation.distributions import before_latents, distributions

LENGTHS = (0, 0, 6, 2, 4, 1, 5)
PROBLEMS = TASK.sample("test", range(len(LENGTHS)))


@torch.no_grad()
@pytest.mark.parametrize("family", ["unspoken", "llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [2, 7])
def test_distributions_of_a_batch_are_those_of_single_rows(family: str, batch_size: int) -> None:
    system = tiny_word_system(family, temperature=0.7)
    mask = torch.arange(6)[None] < torch.tensor(LENGTHS)[:, None]
    chain = LatentChain(latents=torch.randn(7, 6, 16) * mask[..., None], mask=mask, stop=torch.zeros(7).long())
    found = distributions(system, TASK, PROBLEMS, PROMPT_FORMAT, chain, batch_size)
    assert [len(steps) for steps in found] == list(LENGTHS)
    model, prompt_format = system.model, PROMPT_FORMAT
    prompts = [(*prompt_format.prompt(problem.question), *prompt_format.markers.open) for problem in PROBLEMS]
    assert len({len(prompt) for prompt in prompts}) > 3
    for row, (prompt, steps) in enumerate(zip(prompts, LENGTHS, strict=True)):
        vectors = model.get_input_embeddings()(torch.tensor([prompt]))
        logits = model(inputs_embeds=torch.cat([vectors, chain.latents[row : row + 1, :steps]], dim=1)).logits[0]
        expected = (logits[len(prompt) - 1 :][:steps] / 0.7).softmax(dim=-1)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-5)


def test_chains_are_read_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.ones(7, 2, dtype=torch.bool)
    chain = LatentChain(latents=torch.ones(7, 2, 16), mask=mask, stop=torch.zeros(7).long())
    # Nothing could take the keys and values of a position.
    monkeypatch.setattr(DynamicCache, "update", None)
    for family in ("llama", "gpt2"):
        assert len(before_latents(tiny_word_system(family), TASK, PROBLEMS, PROMPT_FORMAT, chain, 7)) == 7


@torch.no_grad()
@pytest.mark.parametrize("family", ["unspoken", "gpt2"])
def test_what_is_fed_back_as_it_is_was_made_from_itself(family: str) -> None:
    # The one system that records the stack's outputs while it thinks, from a cache.
    system = tiny_word_system(family, feed="hidden")
    chain = answer(system, TASK, PROBLEMS, PROMPT_FORMAT, batch_size=3).chain
    assert bool(chain.mask.any())
    for row, hidden in enumerate(before_latents(system, TASK, PROBLEMS, PROMPT_FORMAT, chain, 4)):
        torch.testing.assert_close(hidden, chain.latents[row, : int(chain.lengths[row])], rtol=1e-4, atol=1e-4)
