"""Who sees whom: the paper's matrices, a slow reference, and what models make of the masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCABULARY, WIDTH, tiny_language_model
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.backbone.attention import MaskMod, attention_mask, dense
from unspoken.methods.latent_sft.masks import causal, induction, supervision
from unspoken.methods.rows import Kind, Rows, compact_rows, decoder_rows, encoder_rows
from unspoken.tasks.spans import Markers, Spans

PAD = 0
ONE, THREE = Markers(open=(3,), end=(4,)), Markers(open=(5, 3, 6), end=(7, 3, 6))
EXAMPLE = Spans(prompt=(11, 12), steps=((13, 14, 15, 16, 17),), answer=(18, 1))
# Chains of one latent and of several, whole and broken last chunks, marker ids in the question, unequal lengths.
BATCH = [
    Spans(prompt=(3, 11, 4), steps=((13, 14, 15, 16, 17, 12),), answer=(18, 1)),
    Spans(prompt=(12,), steps=((19, 13, 4),), answer=(1,)),
    Spans(prompt=(11, 12, 16, 3, 17), steps=((18, 18),), answer=(14, 15, 1)),
    Spans(prompt=(19, 7), steps=((11, 12, 13, 14, 15, 16, 17),), answer=(19, 1)),
]
FAMILIES = ["llama", "unspoken"]

INDUCTION = """
     q1 q2  B c1 c2 L1 c3 c4 L2 c5 L3  E
q1    1  .  .  .  .  .  .  .  .  .  .  .
q2    1  1  .  .  .  .  .  .  .  .  .  .
B     1  1  1  .  .  .  .  .  .  .  .  .
c1    1  1  1  1  .  .  .  .  .  .  .  .
c2    1  1  1  1  1  .  .  .  .  .  .  .
L1    1  1  1  1  1  1  .  .  .  .  .  .
c3    1  1  1  1  1  .  1  .  .  .  .  .
c4    1  1  1  1  1  .  1  1  .  .  .  .
L2    1  1  1  1  1  .  1  1  1  .  .  .
c5    1  1  1  1  1  .  1  1  .  1  .  .
L3    1  1  1  1  1  .  1  1  .  1  1  .
E     1  1  1  1  1  .  1  1  .  1  .  1
"""
SUPERVISION = """
     q1 q2  B Z1 c3 c4 Z2 c5 Z3  E a1 a2
q1    1  .  .  .  .  .  .  .  .  .  .  .
q2    1  1  .  .  .  .  .  .  .  .  .  .
B     1  1  1  .  .  .  .  .  .  .  .  .
Z1    1  1  1  1  .  .  .  .  .  .  .  .
c3    .  .  .  1  1  .  .  .  .  .  .  .
c4    .  .  .  1  1  1  .  .  .  .  .  .
Z2    1  1  1  1  .  .  1  .  .  .  .  .
c5    .  .  .  .  .  .  1  1  .  .  .  .
Z3    1  1  1  1  .  .  1  .  1  .  .  .
E     1  1  1  1  .  .  1  .  1  1  .  .
a1    1  1  1  1  .  .  1  .  1  1  1  .
a2    1  1  1  1  .  .  1  .  1  1  1  1
"""


def drawn(mask_B1TT: Tensor) -> list[list[str]]:
    """The mask of the only row, in the signs of the drawings."""
    return [["1" if allowed else "." for allowed in query] for query in mask_B1TT[0, 0].tolist()]


def drawing(text: str) -> list[list[str]]:
    return [line.split()[1:] for line in text.strip().splitlines()[1:]]


# --- the paper's example ---------------------------------------------------------------------------------------------


def test_induction_is_the_drawing() -> None:
    rows = encoder_rows([EXAMPLE], ONE, rate=2, pad_id=PAD)
    assert drawn(dense(induction(rows), rows.position)) == drawing(INDUCTION)


def test_supervision_is_the_drawing() -> None:
    rows = decoder_rows([EXAMPLE], ONE, rate=2, pad_id=PAD)
    assert drawn(dense(supervision(rows), rows.position)) == drawing(SUPERVISION)


@pytest.mark.parametrize(
    ("chunk_sees", "c3", "c4", "c5"),
    [
        ("first_token", "1 . . 1 1", "1 . . 1 1 1", "1 . . . . . 1 1"),
        ("prompt", "1 1 1 1 1", "1 1 1 1 1 1", "1 1 1 . . . 1 1"),
    ],
)
def test_chunk_text_may_be_given_the_first_token_or_the_prompt(chunk_sees: Any, c3: str, c4: str, c5: str) -> None:
    expected = drawing(SUPERVISION)
    for query, seen in ((4, c3), (5, c4), (7, c5)):
        expected[query] = seen.split() + ["."] * (12 - len(seen.split()))
    longer = Spans(prompt=EXAMPLE.prompt * 3, steps=(EXAMPLE.chain,), answer=EXAMPLE.answer)
    rows = decoder_rows([EXAMPLE, longer], ONE, rate=2, pad_id=PAD)
    assert drawn(dense(supervision(rows, chunk_sees), rows.position)[:, :, :12, :12]) == expected


def test_padding_sees_itself_and_is_seen_by_nobody() -> None:
    short = Spans(prompt=(12,), steps=((13,),), answer=(1,))
    rows = decoder_rows([EXAMPLE, short], ONE, rate=2, pad_id=PAD)
    for mod in (causal(rows), induction(rows), supervision(rows), supervision(rows, "first_token")):
        mask = dense(mod, rows.position)[1, 0]
        assert torch.equal(mask[5:], torch.eye(12, dtype=torch.bool)[5:])
        assert not mask[:5, 5:].any()
        assert mask[:5, 0].all()  # the first token, seen by prompt, latent, end and answer


# --- a slow reference ------------------------------------------------------------------------------------------------


def chunks(chain: tuple[int, ...], rate: int) -> list[tuple[int, ...]]:
    return [chain[index : index + rate] for index in range(0, len(chain), rate)]


def encoder_tags(row: Spans, markers: Markers, rate: int) -> list[str]:
    tags = ["text"] * len(row.prompt + markers.open)
    for chunk in chunks(row.chain, rate):
        tags += ["text"] * len(chunk) + ["L"]
    return tags + ["text"] * len(markers.end)


def decoder_tags(row: Spans, markers: Markers, rate: int) -> list[tuple[str, int]]:
    tags = [("P", 0)] * len(row.prompt + markers.open)
    for number, chunk in enumerate(chunks(row.chain, rate)):
        # The text of a chunk comes after the latent of the chunk before.
        tags += [("S", number)] * (len(chunk) if number else 0) + [("Z", number + 1)]
    return tags + [("F", 0)] * len(markers.end + row.answer)


def induction_allows(tags: list[str], q: int, k: int) -> bool:
    return k <= q and (k == q or tags[k] != "L")


def supervision_allows(tags: list[tuple[str, int]], q: int, k: int) -> bool:
    """The table of the four kinds, line by line."""
    (query, query_number), (key, key_number) = tags[q], tags[k]
    if k >= q:
        return k == q
    if query == "P":
        return key == "P"
    if query == "Z":
        return key == "P" or (key == "Z" and key_number < query_number)
    if query == "S":
        return key in ("Z", "S") and key_number == query_number
    return key in ("P", "Z", "F")


def reference(tags_of_rows: list[list[Any]], allows: Callable[[list[Any], int, int], bool]) -> Any:
    """``[B, T, T]`` in nested loops."""
    width = max(len(tags) for tags in tags_of_rows)
    masks = []
    for tags in tags_of_rows:
        mask = [[q == k for k in range(width)] for q in range(width)]
        for q in range(len(tags)):
            for k in range(len(tags)):
                mask[q][k] = allows(tags, q, k)
        masks.append(mask)
    return masks


lengths = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 7), st.integers(1, 2)), min_size=1, max_size=3)


@given(lengths=lengths, rate=st.integers(1, 3), markers=st.sampled_from([ONE, THREE]))
@settings(max_examples=40, deadline=None)
def test_both_masks_are_those_of_the_table(lengths: list[tuple[int, int, int]], rate: int, markers: Markers) -> None:
    batch = [Spans(prompt=(3,) * p, steps=((4,) * chain,), answer=(1,) * answer) for p, chain, answer in lengths]
    encoder = encoder_rows(batch, markers, rate=rate, pad_id=PAD)
    expected = reference([encoder_tags(row, markers, rate) for row in batch], induction_allows)
    assert dense(induction(encoder), encoder.position)[:, 0].tolist() == expected
    decoder = decoder_rows(batch, markers, rate=rate, pad_id=PAD)
    expected = reference([decoder_tags(row, markers, rate) for row in batch], supervision_allows)
    assert dense(supervision(decoder), decoder.position)[:, 0].tolist() == expected


def test_causal_is_the_lower_triangle_of_the_real_part() -> None:
    rows = compact_rows(BATCH, THREE, rate=2, pad_id=PAD)
    width = rows.ids.shape[1]
    both_real = rows.real[:, :, None] & rows.real[:, None, :]
    expected = (both_real & torch.ones(width, width).tril().bool()) | torch.eye(width).bool()
    assert torch.equal(dense(causal(rows), rows.position)[:, 0], expected)


# --- in models -------------------------------------------------------------------------------------------------------


def vectors(rows: Rows) -> Tensor:
    """A latent for every slot, always the same."""
    return torch.randn(int(rows.slots.sum()), WIDTH, generator=torch.Generator().manual_seed(1))


def inputs_of(model: PreTrainedModel, rows: Rows, latents_ND: Tensor | None = None) -> Tensor:
    """``[B, T, D]``: table rows, and latents at the slots."""
    inputs_BTD = model.get_input_embeddings()(rows.ids).detach().clone()
    inputs_BTD[rows.slots] = (vectors(rows) if latents_ND is None else latents_ND).to(inputs_BTD)
    return inputs_BTD


def logits_of(model: PreTrainedModel, rows: Rows, mod: MaskMod, inputs_BTD: Tensor | None = None) -> Tensor:
    inputs_BTD = inputs_of(model, rows) if inputs_BTD is None else inputs_BTD
    mask = attention_mask(mod, rows.position, model)
    logits: Tensor = model(inputs_embeds=inputs_BTD, attention_mask=mask, position_ids=rows.position).logits
    return logits


def compact_runs(model: PreTrainedModel) -> Tensor:
    """Logits ``[M, V]`` of every problem run on its own, with the model's own mask and positions, row after row."""
    latents = iter(vectors(decoder_rows(BATCH, THREE, rate=2, pad_id=PAD)))
    actual = []
    for problem in BATCH:
        rows = compact_rows([problem], THREE, rate=2, pad_id=PAD)
        own = torch.stack([next(latents) for _ in range(int(rows.slots.sum()))])
        actual.append(model(inputs_embeds=inputs_of(model, rows, own)).logits[0])
    return torch.cat(actual)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk_sees", ["none", "first_token", "prompt"])
@torch.no_grad()
def test_chunk_text_is_a_side_branch(family: str, chunk_sees: Any) -> None:
    model = tiny_language_model(family)
    rows = decoder_rows(BATCH, THREE, rate=2, pad_id=PAD)
    main = rows.real & (rows.kind != Kind.TEXT)
    logits = logits_of(model, rows, supervision(rows, chunk_sees))
    torch.testing.assert_close(logits[main], compact_runs(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("positions", "masked"), [("plain", True), ("two_track", False)])
@torch.no_grad()
def test_the_main_track_needs_both_the_mask_and_its_own_positions(family: str, positions: Any, masked: bool) -> None:
    model = tiny_language_model(family)
    rows = decoder_rows(BATCH, THREE, rate=2, pad_id=PAD, positions=positions)
    main = rows.real & (rows.kind != Kind.TEXT)
    logits = logits_of(model, rows, supervision(rows) if masked else causal(rows))
    assert (logits[main] - compact_runs(model)).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_latent_of_the_encoder_depends_on_text_before_it_and_on_nothing_else(family: str) -> None:
    model = tiny_language_model(family)
    rows = encoder_rows([EXAMPLE], ONE, rate=2, pad_id=PAD)
    inputs, slots = inputs_of(model, rows), [5, 8, 10]

    def moved_by(index: int, mod: MaskMod) -> list[int]:
        """Positions whose output changes when the input of one of them does."""
        changed = inputs.clone()
        changed[0, index] *= -1
        difference = logits_of(model, rows, mod, changed) - logits_of(model, rows, mod, inputs)
        return (difference[0].abs().amax(dim=-1) > 1e-5).nonzero().flatten().tolist()

    texts = {"q1": 0, "B": 2, "c2": 4, "c3": 6, "c5": 9, "E": 11}
    seen_by = {"q1": slots, "B": slots, "c2": slots, "c3": [8, 10], "c5": [10], "E": []}
    for name, index in texts.items():
        assert [slot for slot in moved_by(index, induction(rows)) if slot in slots] == seen_by[name]
    for slot in slots:
        assert moved_by(slot, induction(rows)) == [slot]
    # Plain causal attention would let latents lean on the ones before.
    assert moved_by(5, causal(rows)) == [5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_chunk_reaches_the_question_through_its_latent_only(family: str) -> None:
    reached = {}
    for blocks in (1, 2):
        model = tiny_language_model(family, num_hidden_layers=blocks)
        rows = decoder_rows([EXAMPLE], ONE, rate=2, pad_id=PAD)
        inputs = inputs_of(model, rows).requires_grad_()
        logits = logits_of(model, rows, supervision(rows), inputs)
        # The second chunk, c3 c4, is predicted at Z1 and c3; only the output at c3 comes from chunk text.
        F.cross_entropy(logits[0, 4], rows.ids[0, 5]).backward()
        assert inputs.grad is not None
        reached[blocks] = inputs.grad[0].abs().amax(dim=-1).nonzero().flatten().tolist()
    # One block: c3 looks at Z1 and itself. Two blocks: Z1 has looked at the question by then.
    assert reached == {1: [3, 4], 2: [0, 1, 2, 3, 4]}


# --- kinds of attention ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of torch, when flex is first used
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@torch.no_grad()
def test_every_kind_of_attention_gives_the_same(family: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The backbone's annotations know of tensors only, the checker of tests refuses a block mask.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", attention == "flex_attention")
    plain, other = tiny_language_model(family), tiny_language_model(family, attention)
    encoder = encoder_rows(BATCH, THREE, rate=2, pad_id=PAD)
    decoder = decoder_rows(BATCH, THREE, rate=2, pad_id=PAD)
    for rows, mod in ((encoder, induction(encoder)), (decoder, supervision(decoder)), (decoder, causal(decoder))):
        expected = logits_of(plain, rows, mod)
        # The fused kernel takes half a minute to compile; the library's plain one reads the same block mask.
        with torch.compiler.set_stance("force_eager"):
            actual = logits_of(other, rows, mod)
        torch.testing.assert_close(actual[rows.real], expected[rows.real], rtol=1e-4, atol=1e-4)
        assert actual.isfinite().all()
        assert expected.isfinite().all()


@torch.no_grad()
def test_the_mask_of_plain_attention_has_the_type_of_the_model() -> None:
    model = tiny_language_model("llama").to(torch.bfloat16)
    rows = decoder_rows(BATCH, ONE, rate=2, pad_id=PAD)
    mask = attention_mask(supervision(rows), rows.position, model)
    assert isinstance(mask, Tensor)
    assert mask.dtype == torch.bfloat16
    assert mask.unique().tolist() == [torch.finfo(torch.bfloat16).min, 0.0]
    assert torch.equal(mask == 0, dense(supervision(rows), rows.position))
    logits = logits_of(model, rows, supervision(rows))
    assert logits.shape[-1] == VOCABULARY
    assert logits.isfinite().all()


def test_attention_that_knows_only_causal_masks_is_refused() -> None:
    model = tiny_language_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    rows = decoder_rows([EXAMPLE], ONE, rate=2, pad_id=PAD)
    with pytest.raises(ValueError, match="attention 'flash_attention_2' of LlamaForCausalLM takes no mask of our own"):
        attention_mask(supervision(rows), rows.position, model)
