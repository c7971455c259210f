"""The engine around models that count columns, keep states, or treat what they are given in their own way."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conformance import CLOSE, assert_row_is, left_padded, naive_chain
from tiny_models import PAD, prompts
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from unspoken.chain import LatentChain
from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.reasoning.cache import require_filled
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import LatentStep, StopRule, respond, rollout
from unspoken.reasoning.row import AnswerDecoding

SHAPE = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
OLD_SHAPE = {"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 4, "attn_layer_indices": [1]}
KINDS: dict[str, dict[str, Any]] = {
    "mistral": SHAPE | {"sliding_window": 4},
    "mpt": {"vocab_size": 20, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "lfm2": SHAPE | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "bamba": SHAPE | MAMBA,
    "ctrl": OLD_SHAPE | {"dff": 32},
    "openai-gpt": OLD_SHAPE,
    "rwkv": {"vocab_size": 20, "hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2},
}


@torch.no_grad()
def tiny(kind: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**KINDS[kind]), attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.3, generator=generator)
    return model


@torch.no_grad()
def scores_alone(model: PreTrainedModel, embedded_TD: Tensor) -> Tensor:
    """Scores after one row that is computed at once, without a cache."""
    scores: Tensor = model(inputs_embeds=embedded_TD[None], use_cache=False).logits[0, -1]
    return scores


@pytest.mark.parametrize("kind", ["mistral", "mpt", "lfm2", "bamba"])
def test_a_short_given_chain_leaves_no_hole_behind_it(kind: str) -> None:
    model, marker, lengths = tiny(kind), 6, (7, 1, 0, 4)
    reasoner = CausalLMReasoner(model=model, settings=LatentGenerationConfig(open_ids=(2,), end_ids=(marker,)))
    rows = [prompt[start:] for prompt, start in zip(prompts(4, 6), (0, 2, 1, 0), strict=True)]
    latents = reasoner.embed_prompt(prompts(4, 7, seed=1)).detach()
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    given = LatentChain(latents=latents * mask[..., None], mask=mask, stop=torch.zeros(4, dtype=torch.long))
    seen: dict[int, Tensor] = {}

    def sample(scores: Tensor, rows: Tensor, first: int) -> Tensor:
        seen.update(zip(rows.tolist(), scores[:, 0], strict=True))
        return scores.argmax(dim=-1)

    decoding = AnswerDecoding(marker=(marker,), max_tokens=1, end_ids=(1,), pad_id=PAD, sample=sample)
    respond(reasoner, *left_padded(rows), StopRule(max_latents=0), decoding, given)
    closing = reasoner.embed_prompt(torch.tensor([[marker]]))[0]
    for row, (ids, length) in enumerate(zip(rows, lengths, strict=True)):
        whole = torch.cat([reasoner.embed_prompt(ids[None])[0], latents[row, :length], closing])
        torch.testing.assert_close(seen[row], scores_alone(model, whole), **CLOSE)


@pytest.mark.parametrize("kind", ["mistral", "mpt", "lfm2", "bamba", "ctrl"])
def test_a_chain_is_that_of_the_whole_row_computed_anew(kind: str) -> None:
    # Bamba left to itself would put every latent at position 0.
    reasoner = CoupledReasoner(model=tiny(kind), end_id=1, pad_id=PAD)
    stop = StopRule(max_latents=6, fixed=True)
    for prompt in prompts(3, 6):
        assert_row_is(rollout(reasoner, prompt[None], None, stop), 0, *naive_chain(reasoner, prompt, stop))


def test_a_model_that_scales_its_inputs_in_place_does_not_scale_the_chain() -> None:
    reasoner = CoupledReasoner(model=tiny("ctrl"), end_id=1, pad_id=PAD)
    chain = rollout(reasoner, prompts(), None, StopRule(max_latents=4, fixed=True))
    assert chain.support_ids is not None
    assert torch.equal(chain.latents, reasoner.embed_prompt(chain.support_ids[:, :, 0]))


class Unchecked:
    """Feeds back hidden states of any model; the methods of the library look at a model before they take it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    def stack(self) -> PreTrainedModel:
        return self.model.base_model

    def embed_prompt(self, input_ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(input_ids)

    def step(self, hidden: Tensor) -> LatentStep:
        return LatentStep(latent=hidden, next_input=hidden, done=torch.zeros(len(hidden), dtype=torch.bool))


@pytest.mark.parametrize("kind", ["openai-gpt", "rwkv"])
def test_a_model_that_ignores_the_cache_is_refused_by_name(kind: str) -> None:
    reasoner = Unchecked(tiny(kind))
    name = type(reasoner.stack).__name__
    with pytest.raises(ValueError, match=f"^{name} does not use the key-value cache .*past_key_values$"):
        rollout(reasoner, prompts(), None, StopRule(max_latents=4))


def test_a_state_fills_a_cache_as_keys_do() -> None:
    for states, filled in (({0: True}, True), ({0: False}, False)):
        cache: Any = SimpleNamespace(layers=[SimpleNamespace(has_previous_state=states)])
        with nullcontext() if filled else pytest.raises(ValueError, match=r"^Name does not use the key-value cache"):
            require_filled(cache, "Name")
