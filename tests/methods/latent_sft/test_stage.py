"""What the stages of Latent-SFT take, count and refuse, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from plain_stage import LENGTHS, PROBLEM, facts_of, sized_model
from transformers import LlamaConfig

from unspoken.backbone import UnspokenConfig
from unspoken.methods.cost import Lengths, RowCost, Scores, StackPass
from unspoken.methods.latent_sft.building import stage_one_batch
from unspoken.methods.latent_sft.labelling import shuffled
from unspoken.methods.latent_sft.labels import LabelIdentity, differing_facts
from unspoken.methods.latent_sft.model import LatentSFTOutput
from unspoken.methods.latent_sft.objective import (
    divergences,
    stage1_counts,
    stage1_loss,
    stage1_places,
    stage2_loss,
    stage2_places,
    token_losses,
)
from unspoken.methods.latent_sft.stages import Labels, LatentShape, Stage1, Stage2
from unspoken.methods.method import Lineage
from unspoken.methods.rows import Kind, compact_rows, decoder_rows
from unspoken.reasoning.latents import Noise
from unspoken.tasks.spans import Markers, Spans
from unspoken.training.parts import LoRA, StackShape

HEAD: Any = "head"
MARKERS = Markers(open=(8,), end=(9,))


def lineage_of(*objectives: Any) -> Any:
    """A lineage of stages, the first one given first."""
    lineage: Lineage | None = None
    for objective in objectives:
        settings: Any = SimpleNamespace(name=objective.kind, objective=objective, lora=None)
        lineage = Lineage(settings=settings, before=lineage)
    return lineage


def context_of(shape: LatentShape, *later: Any) -> Any:
    return SimpleNamespace(lineage=lineage_of(Stage1(train="encoder", shape=shape), *later))


FEW, ALL, HIDDEN = LatentShape(rate=5), LatentShape(rate=5, top_k=None), LatentShape(rate=5, latent="hidden")
MODEL = sized_model(encoder="encoder")


def read_out(shape: LatentShape, *, has_gradient: bool) -> tuple[Scores, ...]:
    """Scores of three latents."""
    if shape is HIDDEN:
        return ()
    return (
        Scores(head=HEAD, supervised=3, has_gradient=has_gradient, products=1 + (shape is ALL), pieces=shape is ALL),
    )


@pytest.mark.parametrize("shape", [FEW, ALL, HIDDEN], ids=["few entries", "all entries", "hidden states"])
def test_stage_one_reads_the_chain_twice(shape: LatentShape) -> None:
    # Twelve tokens in chunks of five are three latents; the decoder does not read the first chunk.
    encoder, decoder, learned = 10 + 12 + 3 + 2, 10 + 3 + 7 + 7, 7 + 7
    for train in ("encoder", "decoder", "union"):
        objective = Stage1(train=train, shape=shape if train == "encoder" else None)
        taught = train != "decoder"
        assert objective.row_cost(MODEL, LENGTHS, context_of(shape)) == RowCost(
            tokens=encoder + decoder,
            passes=(
                StackPass(stack="encoder", positions=encoder, has_gradient=taught),
                StackPass(stack="stack", positions=decoder),
            ),
            scores=(*read_out(shape, has_gradient=taught), Scores(head=HEAD, supervised=learned, pieces=True)),
        )
    short = Lengths(prompt=10, chain=4, end=2, answer=5)
    cost = Stage1(train="union").row_cost(MODEL, short, context_of(shape))
    assert cost.scores[-1].supervised == 7


@pytest.mark.parametrize("shape", [FEW, ALL, HIDDEN], ids=["few entries", "all entries", "hidden states"])
def test_labels_take_a_pass_of_the_encoder(shape: LatentShape) -> None:
    assert Labels().row_cost(MODEL, LENGTHS, context_of(shape, Labels())) == RowCost(
        tokens=27,
        passes=(StackPass(stack="encoder", positions=27, has_gradient=False),),
        scores=read_out(shape, has_gradient=False),
    )


@pytest.mark.parametrize(("latents", "passes", "again"), [(0, 2, 0), (4, 1, 1), (4, 2, 2)])
@pytest.mark.parametrize("shape", [FEW, ALL, HIDDEN], ids=["few entries", "all entries", "hidden states"])
def test_stage_two_reads_latents_in_place_of_the_chain(
    shape: LatentShape, latents: int, passes: int, again: int
) -> None:
    objective = Stage2(rollout_latents=latents, rollout_passes=passes)
    tokens = 10 + 3 + 7
    learned = [7] if shape is HIDDEN else [7, 3]
    assert objective.row_cost(MODEL, LENGTHS, context_of(shape, Labels(), objective)) == RowCost(
        tokens=tokens,
        passes=(
            StackPass(stack="stack", positions=tokens),
            *[StackPass(stack="stack", positions=tokens, has_gradient=False)] * again,
        ),
        scores=(
            *(Scores(head=HEAD, supervised=count, pieces=True) for count in learned),
            *again * read_out(shape, has_gradient=False),
        ),
    )


def test_rows_are_as_long_as_text_and_latents() -> None:
    # Six tokens of chain in chunks of five are two latents.
    context = context_of(FEW)
    assert Stage1(train="union").row_length(PROBLEM, context) == 5 + 6 + 2 + 4
    assert Stage2().row_length(PROBLEM, context) == 5 + 2 + 4
    assert Labels().training_rows(0, 0, None) == 4096
    assert [Labels(rows=5).training_rows(3, 2, size) for size in (None, 4, 5, 6)] == [5, 4, 5, 5]


def test_what_the_stages_need_and_say_of_their_line() -> None:
    assert facts_of(Stage1) == {"chain_needed", "recomputes"}
    assert facts_of(Labels) == {"chain_needed", "writes_data", "recomputes"}
    assert facts_of(Stage2) == {"chain_needed", "first_rows", "answers_from_latents", "recomputes"}
    assert [kind.ends_at_marker for kind in (Stage1, Stage2)] == [True, True]
    for last in (True, False):
        measured = [one.measured(last=last, has_chain=True) for one in (Stage1(train="union"), Labels(), Stage2())]
        assert measured == [False, False, True]
    lineage = lineage_of(Stage1(train="encoder", shape=LatentShape(rate=3)), Labels(), Stage2(), Stage2())
    assert Stage2().rate(lineage) == 3
    assert Stage2().teacher(lineage) is lineage.before.before.before
    assert Stage2().teacher(lineage.before.before.before) is None


@pytest.mark.parametrize(
    ("before", "train", "fits"),
    [
        ((), "encoder", True),
        (("encoder",), "encoder", False),
        (("encoder",), "decoder", True),
        (("encoder",), "union", True),
        (("encoder", "decoder"), "union", True),
        (("encoder", "decoder"), "decoder", False),
        (("encoder", "union"), "union", False),
    ],
)
def test_halves_are_trained_in_order(before: Any, train: Any, fits: bool) -> None:
    stages = [Stage1(train=one, shape=FEW if one == "encoder" else None) for one in (*before, train)]
    run: Any = None
    if fits:
        stages[-1].check_lineage(lineage_of(*stages), run)
    else:
        with pytest.raises(ValueError, match="encoder, then decoder, then union"):
            stages[-1].check_lineage(lineage_of(*stages), run)


def test_noise_needs_superpositions_of_a_few_tokens() -> None:
    run: Any = None
    for shape, fits in ((FEW, True), (ALL, False), (HIDDEN, False)):
        stage = Stage1(train="encoder", shape=shape, noise=Noise())
        replace(stage, noise=None).check_lineage(lineage_of(stage), run)
        if fits:
            stage.check_lineage(lineage_of(stage), run)
        else:
            with pytest.raises(ValueError, match="noise needs superpositions"):
                stage.check_lineage(lineage_of(stage), run)


@pytest.mark.parametrize("lora", [None, LoRA(), LoRA(table=True)])
@pytest.mark.parametrize("unit_embeddings", [None, False, True])
def test_adapters_on_a_table_need_rows_that_are_read_as_stored(lora: LoRA | None, unit_embeddings: bool | None) -> None:
    """What PEFT adds after a row is normalised, merging would add before: the published encoder would be another."""
    lineage = lineage_of(Stage1(train="encoder", shape=FEW))
    lineage.settings.lora = lora
    run: Any = SimpleNamespace(backbone="a model of the hub")
    config: Any = LlamaConfig()
    if unit_embeddings is not None:
        sizes = {"hidden_size": 8, "attention_size": 8, "intermediate_size": 8, "heads": 2}
        run.backbone = StackShape(layers=2, unit_embeddings=unit_embeddings, **sizes)
        config = UnspokenConfig(unit_embeddings=unit_embeddings)
    if unit_embeddings and lora is not None and lora.table:
        with pytest.raises(ValueError, match=r"^lora\.table is true, but .* set lora\.table to false"):
            lineage.objective.check_lineage(lineage, run)
        with pytest.raises(ValueError, match=r"^stages \(stage1\): lora\.table is true, but"):
            lineage.objective.check_backbone(config, lineage.settings)
        return
    lineage.objective.check_lineage(lineage, run)
    lineage.objective.check_backbone(config, lineage.settings)


# --- losses ----------------------------------------------------------------------------------------------------------

# Three tokens of vocabulary; a hidden state is its scores.
TABLE = torch.eye(3)
HALF = [math.log(2), 0.0, 0.0]  # probabilities of a half, a quarter and a quarter
EVEN = [0.0, 0.0, 0.0]


def test_token_losses_and_divergences() -> None:
    hidden = torch.tensor([HALF, HALF, EVEN])
    assert token_losses(hidden, TABLE, torch.tensor([0, 1, 2])).tolist() == pytest.approx(
        [math.log(2), math.log(4), math.log(3)]
    )
    # Weights that do not sum to 1 are those of their shares.
    weights, ids = torch.tensor([[0.25, 0.25], [2.0, 0.0], [1.0, 3.0]]), torch.tensor([[0, 1], [0, 1], [1, 2]])
    expected = [
        0.5 * math.log(0.5 / 0.5) + 0.5 * math.log(0.5 / 0.25),
        math.log(1 / 0.5),
        0.25 * math.log(0.25 * 3) + 0.75 * math.log(0.75 * 3),
    ]
    assert divergences(hidden, TABLE, weights, ids).tolist() == pytest.approx(expected)


def one_row(rate: int) -> Any:
    """Two problems, of three and of one token of chain."""
    rows = [Spans(prompt=(0,), steps=((1, 2, 0),), answer=(1,)), Spans(prompt=(0,), steps=((1,),), answer=(2,))]
    return decoder_rows(rows, Markers(open=(0,), end=(2,)), rate=rate, pad_id=0)


def test_stage_one_weighs_tokens_or_chunks_alike() -> None:
    """The first row has the chunks 2, 0 and "2 1", the second one "2 2"; they are certain but for some tokens."""
    rows = one_row(1)
    assert rows.ids.flatten()[rows.targets_at].tolist() == [2, 0, 2, 1, 2, 2]
    # Losses: log 2, 0, log 3, 0, 0 and log 4.
    certain = 100.0
    before = torch.tensor(
        [[0.0, -certain, 0.0], [certain, 0, 0], EVEN, [0, certain, 0], [0, 0, certain], [math.log(2), 0.0, 0.0]]
    )
    losses = [math.log(2), 0, math.log(3), 0, 0, math.log(4)]
    outputs = LatentSFTOutput(before_targets=before, head=TABLE)
    batch = {"decoder": rows}
    loss, terms = stage1_loss(Stage1(train="union"), outputs, batch)
    assert loss.item() == pytest.approx(sum(losses) / 6)
    assert terms["chunk_loss"].item() == pytest.approx(losses[0] / 2)
    assert terms["final_loss"].item() == pytest.approx((losses[2] + losses[5]) / 4)
    chunks, _ = stage1_loss(Stage1(train="union", mean="chunks"), outputs, batch)
    first = (losses[0] + losses[1] + losses[2] / 2) / 3
    assert chunks.item() == pytest.approx((first + losses[5] / 2) / 2)


def test_stage_one_counts() -> None:
    batch: dict[str, Any] = {"decoder": one_row(1)}
    plain = stage1_counts(stage1_places(Stage1(train="union"), batch))
    assert plain == {"tokens": 6, "latents": 4, "chunk": 2, "final": 4}
    placed = stage1_places(Stage1(train="union", mean="chunks", hint=1.0), batch)
    assert stage1_counts(placed) == {"tokens": 6, "latents": 4, "chunk": 2, "final": 4, "rows": 2, "hints": 4}
    # Each latent and the first token that it must predict, and the tokens of its chunk.
    rows = batch["decoder"]
    assert rows.ids.flatten()[placed["hinted_at"]].tolist() == [2, 0, 2, 2]
    assert placed["hinted_by"].tolist() == [0, 1, 2, 3]


def test_a_hint_is_weighed_and_added() -> None:
    batch: dict[str, Any] = {"decoder": one_row(1)}
    zeros = torch.zeros(6, 3)
    summaries = torch.tensor([[0.0, 0.0, math.log(2)], HALF, EVEN, EVEN])
    outputs = LatentSFTOutput(before_targets=zeros, head=TABLE, summaries=summaries)
    loss, terms = stage1_loss(Stage1(train="union", hint=0.5), outputs, batch)
    hint = (2 * math.log(2) + 2 * math.log(3)) / 4
    assert terms["hint_loss"].item() == pytest.approx(hint)
    assert loss.item() == pytest.approx(math.log(3) + 0.5 * hint)


def test_stage_two_is_a_mean_over_tokens_and_one_over_slots_then_rows() -> None:
    rows = [
        Spans(prompt=(0,), steps=((1, 2),), answer=(1,)),
        Spans(prompt=(0,), steps=((1,),), answer=(2,)),
        Spans(prompt=(0,), steps=(), answer=(2,)),
    ]
    compact = compact_rows(rows, Markers(open=(0,), end=(2,)), rate=1, pad_id=0)
    weights, ids = torch.ones(3, 1), torch.tensor([[0], [1], [2]])
    batch = stage2_places({"decoder": compact, "weights": weights, "ids": ids})
    assert batch["slot_weights"].tolist() == [0.5, 0.5, 1.0]
    assert int(batch["rows_with_latents"]) == 2
    counts = Stage2().counts(batch)
    assert {name: int(count) for name, count in counts.items()} == {"tokens": 6, "rows": 3, "rows_with_latents": 2}
    outputs = LatentSFTOutput(
        before_targets=torch.zeros(6, 3), before_slots=torch.tensor([HALF, HALF, EVEN]), head=TABLE
    )
    loss, terms = stage2_loss(Stage2(ce_weight=2.0, kl_weight=5.0), outputs, batch)
    latent = ((math.log(2) + math.log(4)) / 2 + math.log(3)) / 2
    assert terms["token_loss"].item() == pytest.approx(math.log(3))
    assert terms["latent_loss"].item() == pytest.approx(latent)
    assert loss.item() == pytest.approx(2 * math.log(3) + 5 * latent)


def test_hidden_states_are_compared_by_direction() -> None:
    """The squared distance of unit vectors: two for a right angle, four for the opposite."""
    compact = compact_rows([Spans(prompt=(0,), steps=((1, 2),), answer=(1,))], MARKERS, rate=1, pad_id=0)
    batch = {
        "decoder": replace(compact, ids=compact.ids.clamp(max=2)),
        "ids": None,
        "weights": torch.tensor([[2.0, 0, 0], [0, 3.0, 0]]),
    }
    outputs = LatentSFTOutput(
        before_targets=torch.zeros(2, 3), before_slots=torch.tensor([[0.0, 5.0, 0], [0, -1.0, 0]]), head=TABLE
    )
    _, terms = stage2_loss(Stage2(), outputs, batch)
    assert terms["latent_loss"].item() == pytest.approx((2 + 4) / 2)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_every_epoch_reads_every_row_once() -> None:
    epochs, rows = shuffled(np.arange(3, 13), 5, 7)
    assert epochs.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    assert sorted(rows[2:7].tolist()) == [0, 1, 2, 3, 4]
    _, first = shuffled(np.arange(5), 5, 7)
    assert rows[:2].tolist() == first[3:].tolist()
    assert rows[2:7].tolist() != first.tolist()
    assert len({tuple(shuffled(np.arange(20), 20, seed)[1].tolist()) for seed in range(9)}) == 9


IDENTITY = LabelIdentity(
    data="d",
    split="train",
    seed=0,
    tokenizer="t",
    rate=2,
    latent="superposition",
    width=2,
    top_k=3,
    temperature=1.0,
    readout="head",
    encoder="e",
    decoder="e",
    precision="float32",
)


@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        ([[0, 2**31 - 1]], [[0.25, 0.755]], None),
        ([[0, 1]], [[0.25, 0.765]], "1 in sum"),
        ([[0, 1]], [[0.25, 0.735]], "1 in sum"),
        ([[0, 1]], [[1.0, 0.0]], None),
        ([[0, 1]], [[1.01, -0.01]], "none negative"),
        ([[0, 2**31]], [[0.5, 0.5]], r"token ids are in \[0, 2\^31\)"),
        ([[-1, 0]], [[0.5, 0.5]], "reach from -1 to 0"),
        ([[0, 1, 2]], [[0.5, 0.25, 0.25]], r"give floats \[N, 2\]"),
        (torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2), None),
    ],
)
def test_labels_are_distributions(ids: Any, weights: Any, message: str | None) -> None:
    if message is None:
        stored = IDENTITY.stored_superposition(torch.as_tensor(ids), torch.as_tensor(weights))
        assert (stored["ids"].tolist(), stored["ids"].dtype) == (torch.as_tensor(ids).tolist(), torch.int32)
        return
    with pytest.raises(ValueError, match=message):
        IDENTITY.stored_superposition(torch.as_tensor(ids), torch.as_tensor(weights))


def test_three_facts_that_differ_are_named() -> None:
    recorded, expected = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, {"a": 1, "b": 3, "c": 4, "d": 5, "f": 6}
    assert differing_facts(recorded, expected) == "b is 2, not 3, c is 3, not 4, d is 4, not 5"
    assert differing_facts({"e": 5}, {}) == "e is 5, not None"
    assert differing_facts(recorded, recorded) is None


def test_both_rows_of_stage_one_have_the_shape_of_its_latents() -> None:
    tokenizer = SimpleNamespace(pad_token_id=30)
    layout: Any = SimpleNamespace(tokenizer=tokenizer, markers=MARKERS)
    rows = stage_one_batch([PROBLEM], layout, LatentShape(rate=4, positions="plain"))
    assert rows["encoder"].ids.tolist() == [[3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 30, 15, 16, 30, 9]]
    assert rows["decoder"].ids.tolist() == [[3, 4, 5, 6, 7, 8, 30, 15, 16, 30, 9, 21, 22, 23, 1]]
    assert rows["decoder"].position.tolist() == [list(range(15))]
    assert (rows["encoder"].kind == Kind.LATENT).sum().item() == 2
