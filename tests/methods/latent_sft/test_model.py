"""Encoder and decoder together, against runs written out by hand: one row, one slot, no masks of our own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latent_models import caches_kept
from safetensors.torch import load_file, save_file
from tiny_hub import tiny_hub_model
from tiny_models import PAD, VOCABULARY, WIDTH, tiny_config, tiny_language_model
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from unspoken.methods.latent_sft import model as latent_sft_model
from unspoken.methods.latent_sft.building import gold_chain, stage_one_batch
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.objective import token_losses
from unspoken.methods.latent_sft.stages import LatentShape
from unspoken.methods.rows import Kind, Rows, compact_rows, decoder_rows, encoder_rows
from unspoken.places import at
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import StopRule, rollout
from unspoken.reasoning.superposition import embedding_table, mix
from unspoken.tasks import ArithmeticConfig
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.spans import Markers, Spans

MARKERS = Markers(open=(5, 3, 6), end=(7, 3, 6))
# Chains of one latent and of several, whole and broken last chunks, marker ids in the question, unequal lengths.
BATCH = [
    Spans(prompt=(3, 11, 4), steps=((13, 14, 15, 16, 17, 12),), answer=(18, 1)),
    Spans(prompt=(12,), steps=((19, 13, 4),), answer=(1,)),
    Spans(prompt=(11, 12, 16, 3, 17), steps=((18, 18),), answer=(14, 15, 1)),
    Spans(prompt=(19, 7), steps=((11, 12, 13, 14, 15, 16, 17),), answer=(19, 1)),
]
FAMILIES = ["unspoken", "llama", "qwen2"]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def joint(
    family: str = "unspoken", attention: str = "eager", *, has_encoder: bool = True, base: Any = None, **shape: Any
) -> LatentSFTModel:
    """Both halves from one lively base; the encoder is then moved a little, so that nothing confuses the two."""
    base = tiny_language_model(family, attention, **(base or {}))
    config = LatentSFTConfig(
        base_config=base.config,
        shape=asdict(LatentShape(**shape)),
        open_ids=list(MARKERS.open),
        end_ids=list(MARKERS.end),
        has_encoder=has_encoder,
    )
    model = LatentSFTModel._from_config(config, attn_implementation=attention)
    model.start_from(base)
    if has_encoder:
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for weight in (*model.encoder.parameters(), model.compress):
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model.eval()


def both(spans: list[Spans], rate: int = 2, **how: Any) -> dict[str, Rows]:
    return {
        "encoder": encoder_rows(spans, MARKERS, rate=rate, pad_id=PAD),
        "decoder": decoder_rows(spans, MARKERS, rate=rate, pad_id=PAD, **how),
    }


def compact(spans: list[Spans], rate: int = 2) -> Rows:
    return compact_rows(spans, MARKERS, rate=rate, pad_id=PAD)


def joined(labels: Iterator[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """The labels of all rows."""
    weights, ids = zip(*labels, strict=True)
    return torch.cat(weights), None if ids[0] is None else torch.cat(ids)


def chunks(chain: tuple[int, ...], rate: int = 2) -> list[list[int]]:
    return [list(chain[position : position + rate]) for position in range(0, len(chain), rate)]


# --- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_both_halves_start_as_copies_of_the_base(family: str) -> None:
    base = tiny_language_model(family)
    config = LatentSFTConfig(base_config=base.config, open_ids=[5], end_ids=[7])
    model = LatentSFTModel._from_config(config, attn_implementation="eager").eval()
    model.start_from(base)
    ids = torch.tensor([[3, 9, 12, 5]])
    assert torch.equal(model.decoder(ids).logits, base(ids).logits)
    assert torch.equal(model.encoder(ids).last_hidden_state, base.base_model(ids).last_hidden_state)
    addresses = [{weight.data_ptr() for weight in piece.parameters()} for piece in (base, model.encoder, model.decoder)]
    assert not addresses[0] & addresses[1]
    assert not addresses[0] & addresses[2]
    assert not addresses[1] & addresses[2]


@torch.no_grad()
def test_the_extra_token_starts_as_the_mean_of_what_the_blocks_see() -> None:
    for family in FAMILIES:
        base = tiny_language_model(family)
        model = LatentSFTModel(LatentSFTConfig(base_config=base.config, open_ids=[5], end_ids=[7]))
        model.start_from(base)
        seen = base.get_input_embeddings()(torch.arange(VOCABULARY))
        torch.testing.assert_close(model.compress, seen.mean(dim=0))


def test_stage_two_has_no_encoder() -> None:
    model = joint(has_encoder=False)
    assert not hasattr(model, "encoder")
    assert not hasattr(model, "compress")
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"decoder"}


# --- the encoder -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def summaries_by_hand(model: LatentSFTModel, row: Spans, rate: int = 2) -> Tensor:
    """Each slot alone at the end of all text before it, which stands where it stands in the full row."""
    embed = model.encoder.get_input_embeddings()
    head = [*row.prompt, *MARKERS.open]
    actual = []
    tokens, places, position = list(head), list(range(len(head))), len(head)
    for chunk in chunks(row.chain, rate):
        tokens, places = tokens + chunk, places + list(range(position, position + len(chunk)))
        position += len(chunk)
        inputs = torch.cat([embed(torch.tensor(tokens)), model.compress[None]])
        # Without a mask the library takes the gaps between positions for ends of packed texts.
        how = {"position_ids": torch.tensor([[*places, position]]), "attention_mask": torch.ones(1, len(inputs))}
        out = model.encoder(inputs_embeds=inputs[None], use_cache=False, **how)
        actual.append(out.last_hidden_state[0, -1])
        position += 1
    return torch.stack(actual)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("rate", [1, 2, 3])
@torch.no_grad()
def test_each_slot_sums_up_the_text_before_it_alone(family: str, attention: str, rate: int) -> None:
    model = joint(family, attention)
    actual = model.summaries(both(BATCH, rate)["encoder"])
    torch.testing.assert_close(actual, torch.cat([summaries_by_hand(model, row, rate) for row in BATCH]), **CLOSE)


@torch.no_grad()
def test_without_the_induction_mask_the_encoder_is_plainly_causal() -> None:
    model = joint(induction_mask=False)
    actual = iter(model.summaries(both(BATCH)["encoder"]))
    for row in BATCH:
        rows = encoder_rows([row], MARKERS, rate=2, pad_id=PAD)
        inputs = model.encoder.get_input_embeddings()(rows.ids)
        inputs[rows.slots] = model.compress
        out = model.encoder(inputs_embeds=inputs, use_cache=False).last_hidden_state[rows.slots]
        torch.testing.assert_close(torch.stack([next(actual) for _ in out]), out, **CLOSE)
        if len(row.chain) > 2:
            assert (out[1:] - summaries_by_hand(model, row)[1:]).abs().max() > 0.01


@pytest.mark.parametrize("top_k", [3, None])
@torch.no_grad()
def test_latents_are_mixed_by_the_decoder_s_head_out_of_the_decoder_s_table(top_k: int | None) -> None:
    model = joint("llama", base={"tie_word_embeddings": False}, top_k=top_k, temperature=0.7)
    rows = both(BATCH)["encoder"]
    scores = model.decoder.get_output_embeddings()(model.summaries(rows)) / 0.7
    if top_k is not None:
        scores = scores.masked_fill(scores < scores.sort(dim=-1).values[:, -top_k, None], float("-inf"))
    expected = scores.softmax(dim=-1) @ model.decoder.get_input_embeddings().weight
    torch.testing.assert_close(model.latents(rows), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("top_k", [3, None])
@torch.no_grad()
def test_a_label_is_what_the_decoder_was_given(family: str, top_k: int | None) -> None:
    model = joint(family, top_k=top_k, temperature=0.7)
    rows = both(BATCH)["encoder"]
    weights, ids = joined(model.labels(rows))
    assert ids is not None
    assert weights.shape == (3 + 2 + 1 + 4, top_k or VOCABULARY)
    torch.testing.assert_close(mix(weights, ids, embedding_table(model.decoder)), model.latents(rows))


@pytest.mark.parametrize(
    ("top_k", "allowed", "groups"), [(None, 9, [3, 2, 1, 4]), (None, 10, [10]), (3, 9, [10]), (3, 10, [10])]
)
@torch.no_grad()
def test_full_labels_that_do_not_fit_are_made_row_by_row(
    top_k: int | None, allowed: int, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, ids and scores over the vocabulary exist at once, the ids as numbers of twice the size."""
    widths, made, distribution = set[int](), list[int](), latent_sft_model.distribution
    monkeypatch.setattr(latent_sft_model, "rows_at_once", lambda width: widths.add(width) or allowed)
    monkeypatch.setattr(
        latent_sft_model, "distribution", lambda hidden, *how: made.append(len(hidden)) or distribution(hidden, *how)
    )
    labels = list(joint(top_k=top_k).labels(both(BATCH)["encoder"]))
    assert [len(weights) for weights, _ in labels] == [3, 2, 1, 4]
    assert made == groups
    assert widths <= {4 * VOCABULARY}


@torch.no_grad()
def test_without_the_vocabulary_step_latent_and_label_are_the_summary() -> None:
    model = joint(latent="hidden")
    rows = both(BATCH)["encoder"]
    vectors, ids = joined(model.labels(rows))
    assert ids is None
    assert torch.equal(vectors, model.summaries(rows))
    assert torch.equal(model.latents(rows), vectors)


@torch.no_grad()
def test_the_published_readout_is_the_table_and_warns() -> None:
    model = joint("llama", base={"tie_word_embeddings": False}, readout="table", top_k=None)
    rows = both(BATCH)["encoder"]
    table = model.decoder.get_input_embeddings().weight
    with pytest.warns(UserWarning, match="readout is 'table'"):
        actual = model.latents(rows)
    torch.testing.assert_close(actual, (model.summaries(rows) @ table.T).softmax(dim=-1) @ table)


# --- the decoder -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def compact_by_hand(model: LatentSFTModel, row: Spans, latents_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs before each supervised token and before each latent of one row, with the stack's own causal mask."""
    embed = model.decoder.get_input_embeddings()
    head, tail = [*row.prompt, *MARKERS.open], [*MARKERS.end, *row.answer]
    inputs = torch.cat([embed(torch.tensor(head)), latents_ND, embed(torch.tensor(tail))])
    hidden = model.decoder.base_model(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0]
    begin = len(head) + len(latents_ND) - 1
    return hidden[begin : begin + len(tail)], hidden[len(head) - 1 : len(head) - 1 + len(latents_ND)]


def final(out: Any, rows: Rows) -> Tensor:
    """Of the outputs before supervised tokens, those before end marker and answer."""
    return out.before_targets[rows.kind[:, 1:][rows.target[:, 1:]] == Kind.FINAL]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("chunk_sees", ["none", "first_token", "prompt"])
@torch.no_grad()
def test_the_main_track_of_stage_one_is_the_compact_run(family: str, attention: str, chunk_sees: str) -> None:
    model = joint(family, attention, chunk_sees=chunk_sees)
    rows = both(BATCH)
    latents = model.latents(rows["encoder"])
    actual = final(model(**rows), rows["decoder"])
    each = latents.split([3, 2, 1, 4])
    expected = [compact_by_hand(model, row, own)[0] for row, own in zip(BATCH, each, strict=True)]
    torch.testing.assert_close(actual, torch.cat(expected), **CLOSE)
    # And it is what stage 2 computes from the labels.
    weights, ids = joined(model.labels(rows["encoder"]))
    again = model(compact(BATCH), weights=weights, ids=ids)
    torch.testing.assert_close(again.before_targets, actual, **CLOSE)


@pytest.mark.parametrize(("changed", "how"), [({"supervision_mask": False}, {}), ({}, {"positions": "plain"})])
@torch.no_grad()
def test_the_ablations_leave_the_compact_run(changed: dict[str, Any], how: dict[str, Any]) -> None:
    model = joint(**changed)
    rows = both(BATCH, **how)
    each = model.latents(rows["encoder"]).split([3, 2, 1, 4])
    expected = torch.cat([compact_by_hand(model, row, own)[0] for row, own in zip(BATCH, each, strict=True)])
    assert (final(model(**rows), rows["decoder"]) - expected).abs().max() > 0.05


@torch.no_grad()
def test_without_the_supervision_mask_the_decoder_is_plainly_causal() -> None:
    model = joint("llama", supervision_mask=False)
    rows = both(BATCH[:1], positions="plain")
    inputs = model.decoder.get_input_embeddings()(rows["decoder"].ids)
    inputs[rows["decoder"].slots] = model.latents(rows["encoder"])
    hidden = model.decoder.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    expected = hidden[:, :-1][rows["decoder"].target[:, 1:]]
    torch.testing.assert_close(model(**rows).before_targets, expected, **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_a_batch_of_stage_one_is_its_rows(attention: str) -> None:
    model = joint("unspoken", attention)
    together = model(**both(BATCH)).before_targets
    alone = [model(**both([row])).before_targets for row in BATCH]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("hidden", [False, True])
@torch.no_grad()
def test_stage_two_is_judged_before_each_latent_and_each_word(family: str, attention: str, hidden: bool) -> None:
    model = joint(family, attention, has_encoder=False)
    # One row without latents among the others.
    batch = [*BATCH[:2], Spans(prompt=(9, 8), steps=(), answer=(2, 1)), *BATCH[2:]]
    counts = [3, 2, 0, 1, 4]
    if hidden:
        weights, ids = torch.randn(10, WIDTH), None
        latents = weights
    else:
        weights, ids = torch.rand(10, 4).softmax(dim=-1), torch.randint(2, VOCABULARY, (10, 4))
        latents = mix(weights, ids, embedding_table(model.decoder))
    out = model(compact(batch), weights=weights, ids=ids)
    by_hand = [compact_by_hand(model, row, own) for row, own in zip(batch, latents.split(counts), strict=True)]
    torch.testing.assert_close(out.before_targets, torch.cat([targets for targets, _ in by_hand]), **CLOSE)
    torch.testing.assert_close(out.before_slots, torch.cat([slots for _, slots in by_hand]), **CLOSE)
    assert torch.equal(out.head, model.decoder.get_output_embeddings().weight)


# --- stage 2 on the decoder's own latents ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [{"top_k": 3}, {"top_k": None, "temperature": 0.5}, {"latent": "hidden"}])
@torch.no_grad()
def test_own_latents_after_enough_passes_are_those_of_a_rollout(family: str, shape: dict[str, Any]) -> None:
    model, row = joint(family, has_encoder=False, **shape), BATCH[3]
    rows = compact([row])
    given = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(5))
    config = model.config.latent_shape
    # A rollout is at temperature 1, whatever that of the labels is.
    generation = LatentGenerationConfig(
        open_ids=MARKERS.open, end_ids=MARKERS.end, top_k=config.top_k, feed=config.latent
    )
    head = torch.tensor([[*row.prompt, *MARKERS.open]])
    chain = rollout(
        CausalLMReasoner(model=model.decoder, settings=generation), head, None, StopRule(max_latents=4, fixed=True)
    )
    for own, passes in ((4, 1), (4, 3), (4, 4), (3, 4)):
        fed = slots_read(model, rows, given, torch.arange(4) < own, passes)
        expected, alike = chain.latents[0], min(own, passes)
        torch.testing.assert_close(fed[:alike], expected[:alike], **CLOSE)
        torch.testing.assert_close(fed[own:], given[own:])
        assert all((fed[place] - expected[place]).abs().max() > 1e-3 for place in range(alike, 4))


def test_own_latents_are_computed_without_a_gradient() -> None:
    model, rows = joint(has_encoder=False, top_k=3), compact(BATCH[3:])
    given = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(5))
    own = torch.tensor([False, True, True, False])
    weight = model.decoder.base_model.layers[0].ffn.up_proj.weight

    def gradient(latents_ND: Tensor, **how: Any) -> Tensor:
        loss = model(decoder=rows, weights=latents_ND, ids=None, **how).before_targets.square().sum()
        return torch.autograd.grad(loss, weight)[0]

    required = gradient(slots_read(model, rows, given, own, 2))
    torch.testing.assert_close(gradient(given, own=own, rollout_passes=2), required, **CLOSE)
    assert not torch.allclose(gradient(given), required, **CLOSE)


def test_own_latents_take_one_pass_unless_more_are_asked_for() -> None:
    model, rows = joint(has_encoder=False, top_k=3), compact(BATCH[3:])
    given, own = torch.randn(4, WIDTH), torch.tensor([False, True, True, False])
    with caches_kept(model.decoder.base_model) as kept:
        model(decoder=rows, weights=given, ids=None, own=own)
    # None of them is gone on from.
    assert kept == [False] * 2


@torch.no_grad()
def slots_read(model: LatentSFTModel, rows: Rows, given: Tensor, own: Tensor, passes: int) -> Tensor:
    """What stands at the slots in the last pass through the decoder."""
    seen: list[Tensor] = []
    hook = model.decoder.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["inputs_embeds"].detach().clone()), with_kwargs=True
    )
    try:
        model(decoder=rows, weights=given, ids=None, own=own, rollout_passes=passes)
    finally:
        hook.remove()
    assert len(seen) == passes + 1
    return at(seen[-1], rows.slots_at)


def test_rows_that_do_not_belong_together_are_refused() -> None:
    model = joint()
    with pytest.raises(ValueError, match="different numbers of latents"):
        model(decoder=both(BATCH, rate=2)["decoder"], encoder=both(BATCH, rate=3)["encoder"])
    # As many slots in all, but in other rows.
    turned = [BATCH[1], BATCH[0], *BATCH[2:]]
    with pytest.raises(ValueError, match="different numbers of latents"):
        model(decoder=both(BATCH)["decoder"], encoder=both(turned)["encoder"])


@pytest.mark.parametrize("labels", [9, 11])
def test_stage_two_needs_a_latent_for_every_slot_and_no_more(labels: int) -> None:
    model = joint(has_encoder=False)
    weights, ids = torch.full((labels, 2), 0.5), torch.full((labels, 2), 4)
    with pytest.raises(ValueError, match=f"{labels} latents for 10 slots"):
        model(compact(BATCH), weights=weights, ids=ids)


# --- gradients -------------------------------------------------------------------------------------------------------

# prompt 0 1, open 2 3 4, Z1 5, c3 c4 6 7, Z2 8, c5 c6 9 10, Z3 11, c7 12, Z4 13, end 14 15 16, answer 17 18
ROW = Spans(prompt=(19, 7), steps=((11, 12, 13, 14, 15, 16, 17),), answer=(19, 1))
LATENTS, TEXTS = {1: 5, 2: 8, 3: 11, 4: 13}, {1: [6, 7], 2: [9, 10], 3: [12]}


def reached(model: LatentSFTModel, target: int) -> set[int]:
    """Places of the decoder's input that the loss of the token at ``target`` has a gradient for."""
    leaves: list[Tensor] = []

    def watch(_module: Any, args: Any, how: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        leaves.append(how["inputs_embeds"].detach().requires_grad_())
        return args, {**how, "inputs_embeds": leaves[-1]}

    rows = both([ROW])
    hook = model.decoder.base_model.register_forward_pre_hook(watch, with_kwargs=True)
    out = model(**rows)
    hook.remove()
    order = rows["decoder"].target[0].nonzero().flatten().tolist()
    losses = token_losses(out.before_targets, out.head, rows["decoder"].ids[0, order])
    losses[order.index(target)].backward()
    assert leaves[0].grad is not None
    return set(leaves[0].grad[0].abs().amax(dim=-1).nonzero().flatten().tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_chunk_knows_no_other_chunk_and_no_later_latent(family: str) -> None:
    model = joint(family)
    for number, text in TEXTS.items():
        earlier = {LATENTS[other] for other in range(1, number + 1)}
        for target in text:
            own = {position for position in text if position < target}
            assert reached(model, target) == {0, 1, 2, 3, 4} | earlier | own
    # End and answer know every latent and no text.
    assert reached(model, 14) == {0, 1, 2, 3, 4, *LATENTS.values()}
    assert reached(model, 18) == {0, 1, 2, 3, 4, *LATENTS.values(), 14, 15, 16, 17}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_chunk_reaches_the_question_only_through_its_latent(family: str) -> None:
    # In one block text looks at its latent as that came in, which has not looked at the question yet.
    shallow = joint(family, base={"num_hidden_layers": 1})
    assert reached(shallow, 7) == {5, 6}
    assert reached(shallow, 10) == {8, 9}
    # The first token of a chunk is read from the latent itself.
    assert reached(shallow, 9) == {0, 1, 2, 3, 4, 5, 8}


@pytest.mark.parametrize("target", [9, 10])
def test_the_encoder_learns_from_a_chunk_through_the_text_before_it(target: int) -> None:
    model = joint()
    leaves: list[Tensor] = []

    def watch(_module: Any, args: Any, how: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        leaves.append(how["inputs_embeds"].detach().requires_grad_())
        return args, {**how, "inputs_embeds": leaves[-1]}

    rows = both([ROW])
    model.encoder.register_forward_pre_hook(watch, with_kwargs=True)
    out = model(**rows)
    order = rows["decoder"].target[0].nonzero().flatten().tolist()
    token_losses(out.before_targets, out.head, rows["decoder"].ids[0, order])[order.index(target)].backward()
    # prompt and open 0-4, c1 c2 5 6, L1 7, c3 c4 8 9, L2 10, c5 .. after them. Chunk 3 is read from Z2, which saw Z1.
    assert leaves[0].grad is not None
    actual = leaves[0].grad[0].abs().amax(dim=-1).nonzero().flatten().tolist()
    assert actual == list(range(11))


STEPS = {"encoder": (True, False), "decoder": (False, True), "union": (True, True)}


def gradients(model: LatentSFTModel, loss: Tensor) -> dict[str, bool]:
    """For each weight, whether it got a gradient; an existing one is not all zero."""
    loss.backward()
    named = dict(model.named_parameters())
    assert all(bool(weight.grad.any()) for weight in named.values() if weight.grad is not None)
    return {name: weight.grad is not None for name, weight in named.items()}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("top_k", [3, None])
def test_each_step_of_stage_one_trains_its_half_and_never_table_or_head(
    step: str, tied: bool, top_k: int | None
) -> None:
    encoder, decoder = STEPS[step]
    model = joint("llama", base={"tie_word_embeddings": tied}, top_k=top_k)
    model.train_only(encoder=encoder, decoder=decoder)
    rows = both(BATCH)
    out = model(**rows)
    tokens = rows["decoder"].ids[:, 1:][rows["decoder"].target[:, 1:]]
    actual = gradients(model, token_losses(out.before_targets, out.head, tokens).mean())
    frozen = {"decoder.model.embed_tokens.weight", "decoder.lm_head.weight"}
    for name, learned in actual.items():
        required = decoder if name.startswith("decoder.") else encoder
        assert learned == (required and name not in frozen), name
    assert ("compress" in actual) and actual["compress"] == encoder


def test_stage_two_trains_the_decoder_s_blocks() -> None:
    model = joint("unspoken", has_encoder=False)
    model.train_only(encoder=False, decoder=True)
    weights, ids = torch.full((10, 2), 0.5), torch.randint(2, VOCABULARY, (10, 2))
    out = model(compact(BATCH), weights=weights, ids=ids)
    actual = gradients(model, out.before_slots.square().sum() + out.before_targets.sum())
    assert {name for name, learned in actual.items() if not learned} == {"decoder.model.embed_tokens.weight"}


@pytest.mark.parametrize("family", ["unspoken", "llama"])
def test_checkpointed_activations_give_the_same_gradients(family: str) -> None:
    actual, runs = [], []
    for checkpointed in (False, True):
        model = joint(family)
        model.train_only(encoder=True, decoder=True)
        if checkpointed:
            model.activation_checkpointing_enable()
        model.train()
        for half in (model.encoder, model.decoder.base_model):
            next(half.layers[0].children()).register_forward_pre_hook(lambda *_, how=checkpointed: runs.append(how))
        rows = both(BATCH)
        out = model(**rows)
        out.before_targets.sum().backward()
        actual.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert (runs.count(False), runs.count(True)) == (2, 4)
    assert actual[0].keys() == actual[1].keys()
    for name, gradient in actual[0].items():
        torch.testing.assert_close(actual[1][name], gradient)


# --- the encoder as a teacher ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_teacher_s_chains_are_its_latents_row_by_row() -> None:
    task = ArithmeticConfig().build()
    prompt_format = PromptFormat(tokenizer=task.tokenizer)
    model = joint("llama", base={"vocab_size": len(task.tokenizer), "max_position_embeddings": 256})
    spans = [prompt_format.spans(problem) for problem in task.sample("train", np.arange(6))]
    batch = stage_one_batch(spans, prompt_format, model.config.latent_shape)
    chain = gold_chain(model, prompt_format, spans)
    assert chain.lengths.tolist() == [-(-len(row.chain) // 2) for row in spans]
    assert len(set(chain.lengths.tolist())) > 1
    torch.testing.assert_close(chain.latents[chain.mask], model.latents(batch["encoder"]))
    assert not chain.latents[~chain.mask].any()
    for row, own in enumerate(spans):
        alone = gold_chain(model, prompt_format, [own])
        torch.testing.assert_close(chain.latents[row, : len(alone.latents[0])], alone.latents[0], **CLOSE)
    # What is answered first from these chains is what stage 1 finds most likely after the end marker.
    out, rows = model(**batch), batch["decoder"]
    scores = (final(out, rows) @ out.head.T).split([1 + len(row.answer) for row in spans])
    settings = LatentGenerationConfig(open_ids=prompt_format.markers.open, end_ids=prompt_format.markers.end)
    ids, mask = prompt_format.prompts(task.sample("train", np.arange(6)))
    reasoner = CausalLMReasoner(model=model.decoder, settings=settings)
    _, output = reasoner.respond(ids, mask, max_tokens=1, given=chain)
    assert output[:, 0].tolist() == [int(own[1].argmax()) for own in scores]


# --- on disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_stage_one_survives_the_disk(family: str, tied: bool, tmp_path: Path) -> None:
    tie = {} if family == "unspoken" else {"tie_word_embeddings": tied}
    model = joint(family, "sdpa", base=tie, rate=2, top_k=3, temperature=0.7)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    assert isinstance(again, LatentSFTModel)
    assert again.config.latent_shape == LatentShape(rate=2, top_k=3, temperature=0.7)
    assert again.config.markers == MARKERS
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(model(**both(BATCH)).before_targets, again(**both(BATCH)).before_targets)
    for one in (model, again):
        pieces: list[PreTrainedModel] = [one.decoder, one.encoder]
        assert [piece.config._attn_implementation for piece in pieces] == ["sdpa", "sdpa"]
        head, table = one.decoder.get_output_embeddings().weight, one.decoder.get_input_embeddings().weight
        assert (head is table) == (tied or family == "unspoken")


@torch.no_grad()
def test_stage_two_survives_the_disk(tmp_path: Path) -> None:
    model = joint("unspoken", has_encoder=False)
    model.save_pretrained(tmp_path)
    again = LatentSFTModel.from_pretrained(tmp_path)
    assert not again.config.has_encoder
    weights, ids = torch.full((10, 2), 0.5), torch.randint(2, VOCABULARY, (10, 2))
    one, two = (each(compact(BATCH), weights=weights, ids=ids) for each in (model, again.eval()))
    torch.testing.assert_close(one.before_slots, two.before_slots, **CLOSE)


@pytest.mark.parametrize("lost", ["compress", "encoder.layers.1.ffn_norm.weight", "decoder.model.norm.rms.weight"])
def test_a_lost_weight_is_refused(lost: str, tmp_path: Path) -> None:
    joint().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    assert lost in weights
    save_file({name: weight for name, weight in weights.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing keys in the weights: {lost}"):
        LatentSFTModel.from_pretrained(tmp_path)


# --- halves that do not learn -----------------------------------------------------------------------------------------


def noisy_halves(kind: str, settings: dict[str, Any]) -> LatentSFTModel:
    """Both halves from a base that has dropout."""
    base = tiny_hub_model(kind, **settings)
    config = LatentSFTConfig(base_config=base.config, open_ids=[5], end_ids=[7])
    model = LatentSFTModel._from_config(config, attn_implementation="eager")
    model.start_from(base)
    return model


GPT2 = ("gpt2", {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4})  # 0.1 at three places, as published
# Its blocks have the dropout in their own forward.
OPT = ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.1})


@pytest.mark.parametrize(("kind", "settings"), [GPT2, OPT])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_half_that_does_not_learn_has_no_dropout(kind: str, settings: dict[str, Any], checkpointed: bool) -> None:
    model, ids = noisy_halves(kind, settings), torch.randint(9, 50, (2, 12))

    def halves() -> dict[str, Any]:
        return {"encoder": model.encoder, "decoder": model.decoder.base_model}

    def spread(half: Any) -> float:
        """How much two passes differ."""
        inputs = half.get_input_embeddings()(ids).detach().requires_grad_()
        one, other = (half(inputs_embeds=inputs, use_cache=False).last_hidden_state for _ in range(2))
        return float((one - other).detach().abs().max())

    assert model.training  # as it is built
    if checkpointed:
        model.activation_checkpointing_enable()
    for learning in (("encoder",), ("decoder",), ("encoder", "decoder")):
        model.train_only(**{name: name in learning for name in halves()})
        for mode in (None, True, False, True):
            if mode is not None:
                model.train(mode)
            assert model.training == (mode is not False)
            for name, half in halves().items():
                assert (spread(half) > 1e-4) == (name in learning and mode is not False), (name, learning, mode)


@pytest.mark.parametrize(("kind", "settings"), [GPT2, OPT])
def test_the_blocks_of_a_half_that_does_not_learn_are_recomputed(kind: str, settings: dict[str, Any]) -> None:
    # Gradients go through a frozen decoder to the encoder: as many of its activations would be kept otherwise.
    spans = [Spans(prompt=(11, 12), steps=((13, 14, 15),), answer=(18, 1))]
    gradients, runs = [], []
    for checkpointed in (False, True):
        model = noisy_halves(kind, settings)
        model.train_only(encoder=True, decoder=False)
        if checkpointed:
            model.activation_checkpointing_enable()
        model.train()
        model.encoder.eval()  # so that nothing is drawn
        blocks = [one for one in model.decoder.modules() if isinstance(one, GradientCheckpointingLayer)]
        assert len(blocks) == 2
        next(blocks[0].children()).register_forward_pre_hook(lambda *_, how=checkpointed: runs.append(how))
        rows = {"encoder": encoder_rows(spans, MARKERS, rate=2, pad_id=PAD)}
        rows["decoder"] = decoder_rows(spans, MARKERS, rate=2, pad_id=PAD)
        model(**rows).before_targets.square().sum().backward()
        gradients.append(model.compress.grad)
        copied = copy.deepcopy(model)
        assert all(not module.training for module in copied.eval().modules())
    assert (runs.count(False), runs.count(True)) == (1, 2)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_hidden_states_have_no_entries_to_keep() -> None:
    with pytest.raises(ValueError, match="top_k is 1, but latents that are hidden states have no entries to keep"):
        LatentShape(latent="hidden", top_k=1)
    assert LatentShape(latent="hidden").top_k == 10
    assert LatentShape(top_k=1).latent == "superposition"


@pytest.mark.parametrize(("field", "value"), [("rate", 0), ("top_k", 0), ("temperature", 0.0)])
def test_a_shape_that_means_nothing_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        LatentShape(**{field: value})


def test_the_base_is_of_the_kind_it_was(tmp_path: Path) -> None:
    config = LatentSFTConfig(base_config=tiny_config("qwen2"), open_ids=[5], end_ids=[7])
    config.save_pretrained(tmp_path)
    again = LatentSFTConfig.from_pretrained(tmp_path)
    assert type(again.base_config) is type(tiny_config("qwen2"))
    assert again.base_config.num_key_value_heads == 2
