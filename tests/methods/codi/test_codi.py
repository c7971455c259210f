"""CODI against a loop that has no cache, no padding and no positions, and the identities of its specification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import LatentConformance, left_padded
from latent_models import (
    BOX,
    MARKERS,
    NARROW,
    SPANS,
    around,
    assert_same_gradients,
    caches_kept,
    gradients,
    outputs_of,
)
from recorded import batch_digest, check_default_stages, check_plans
from safetensors.torch import load_file, save_file
from settings_checks import check_defaults, check_ranges, check_recorded
from tiny_models import END, FAMILIES, PAD, VOCABULARY, enliven, prompts, tiny_language_model
from tiny_recipe import quiet_stage, quiet_train
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel, TrainerCallback

from unspoken.backbone.checks import Needs, require
from unspoken.methods import catalogue
from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.coconut.objective import batch_of as coconut_batch
from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.codi.configuration import CodiConfig
from unspoken.methods.codi.model import CodiForCausalLM
from unspoken.methods.codi.stages import Codi
from unspoken.methods.distillation_loss import batch_of, before_value, distances
from unspoken.methods.loading import load_model
from unspoken.methods.rows import explicit_rows
from unspoken.methods.self_distillation import LEARNING, Projection
from unspoken.reasoning.engine import Reasoner, StopRule
from unspoken.reasoning.flops import multiplied, stack_flops
from unspoken.tasks.arithmetic import ArithmeticConfig
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.spans import Spans
from unspoken.training import recipe as recipes
from unspoken.training.context import context_of
from unspoken.training.plan import plan
from unspoken.training.recipe import Recipe

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
OBJECTIVE = Codi(latents=3)


def codi(
    family: str = "unspoken",
    attention: str = "eager",
    *,
    latents: int = 3,
    projection: dict[str, Any] | None = NARROW,
    **settings: Any,
) -> CodiForCausalLM:
    base = tiny_language_model(family, attention, **settings)
    return around(CodiForCausalLM, base, latents=latents, projection=projection)


def batch(spans: Sequence[Spans] = SPANS, *, latents: int = 3, last_step: bool = False) -> dict[str, Any]:
    return batch_of(spans, MARKERS, BOX, latents=latents, last_step=last_step, pad_id=PAD)


def naive(model: CodiForCausalLM, row: Spans, latents: int) -> dict[str, Tensor]:
    """One row; the whole sequence is computed anew for every latent."""
    decoder, embed = model.decoder, model.get_input_embeddings()
    inputs = embed(torch.tensor([row.prompt + MARKERS.open]))
    begin = inputs.shape[1]
    for _ in range(latents):
        hidden = decoder.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        inputs = torch.cat([inputs, model.latent(hidden[:, -1:])], dim=1)
    thought = inputs[0, begin:]
    inputs = torch.cat([inputs, embed(torch.tensor([MARKERS.end + row.answer]))], dim=1)
    student = decoder(inputs_embeds=inputs, use_cache=False, output_hidden_states=True)
    chain = tuple(token for step in row.steps[:-1] for token in step)
    ids = torch.tensor([row.prompt + MARKERS.open + chain + MARKERS.end + row.answer])
    teacher = decoder(input_ids=ids, use_cache=False, output_hidden_states=True)
    learned = len(chain + MARKERS.end + row.answer)
    answer = torch.tensor(row.answer)
    before = -len(row.answer) + len(BOX) - 1  # the next token is the first of the value
    return {
        "latents": thought,
        "student": F.cross_entropy(student.logits[0, -len(answer) - 1 : -1], answer, reduction="none"),
        "teacher": F.cross_entropy(teacher.logits[0, -learned - 1 : -1], ids[0, -learned:], reduction="none"),
        "states": torch.stack([state[0, before] for state in student.hidden_states]),
        "teacher_states": torch.stack([state[0, before] for state in teacher.hidden_states]),
    }


def naive_terms(model: CodiForCausalLM, spans: Sequence[Spans], latents: int = 3) -> dict[str, Tensor]:
    rows = [naive(model, row, latents) for row in spans]
    states, expected = (torch.stack([row[name] for row in rows], dim=1) for name in ("states", "teacher_states"))
    layers = [
        F.smooth_l1_loss(own, teacher.detach()) / teacher.detach().std()
        for own, teacher in zip(states, expected, strict=True)
    ]
    return {
        "student": torch.cat([row["student"] for row in rows]).mean(),
        "teacher": torch.cat([row["teacher"] for row in rows]).mean(),
        "distance": torch.stack(layers).mean(),
    }


# --- the shared engine -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[*product(FAMILIES, ("eager",)), ("unspoken", "sdpa"), ("llama", "sdpa")], ids="-".join)
def reasoner(request: pytest.FixtureRequest) -> Reasoner:
    return codi(*request.param).reasoner()


class TestConformance(LatentConformance):
    """Nothing but what every model with a fixed number of latents has."""


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "attention"), [*product(FAMILIES, ("eager", "sdpa"))])
def test_a_padded_batch_is_the_naive_loop_in_latents_loss_and_gradients(family: str, attention: str) -> None:
    model, given = codi(family, attention), batch()
    out = outputs_of(model, given)
    for row, spans in enumerate(SPANS):
        torch.testing.assert_close(out.latents[row], naive(model, spans, 3)["latents"], **CLOSE)
    loss, terms = OBJECTIVE.loss(model, given)
    expected = naive_terms(model, SPANS)
    for name, value in (("student_loss", "student"), ("teacher_loss", "teacher"), ("distance", "distance")):
        torch.testing.assert_close(terms[name], expected[value], **CLOSE)
    total = sum(expected.values())
    torch.testing.assert_close(loss, total, **CLOSE)
    assert isinstance(total, Tensor)
    ours, theirs = gradients(loss, model), gradients(total, model)
    assert all(gradient.abs().max() > 1e-5 for gradient in theirs.values())
    assert_same_gradients(ours, theirs)


def test_weights_scale_their_terms() -> None:
    model, given = codi(), batch()
    _, terms = OBJECTIVE.loss(model, given)
    loss, _ = replace(OBJECTIVE, distance_weight=20.0, teacher_weight=0.5).loss(model, given)
    torch.testing.assert_close(
        loss, terms["student_loss"] + 0.5 * terms["teacher_loss"] + 20 * terms["distance"], **CLOSE
    )
    layers = [terms[f"distance_{layer}"] for layer in range(3)]
    torch.testing.assert_close(terms["distance"], torch.stack(layers).mean(), **CLOSE)


def test_without_latents_and_distance_it_is_answer_only_and_explicit_tuning() -> None:
    model = codi("gpt2", latents=0, projection=None)
    loss, _ = Codi(latents=0, distance_weight=0.0).loss(model, batch(latents=0))
    losses = []
    for steps in (slice(0), slice(-1)):
        rows = explicit_rows([replace(row, steps=row.steps[steps]) for row in SPANS], MARKERS, pad_id=PAD)
        # Without a chain the end marker is given, and not learned.
        given = 0 if steps.stop else len(MARKERS.end)
        target = rows.target & (rows.target.cumsum(dim=1) > given)
        scores = model.decoder(input_ids=rows.ids, use_cache=False).logits[:, :-1]
        losses.append(F.cross_entropy(scores[target[:, 1:]], rows.ids[target]))
    torch.testing.assert_close(loss, losses[0] + losses[1], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_distance_is_nothing_where_teacher_and_student_read_the_same(family: str) -> None:
    model = codi(family, latents=0, projection=None)
    one_step = [replace(row, steps=row.steps[:1]) for row in SPANS]
    objective = Codi(latents=0)
    _, same = objective.loss(model, batch(one_step, latents=0))
    _, other = objective.loss(model, batch(one_step, latents=0, last_step=True))
    assert same["distance"] < 1e-9
    assert other["distance"] > 1e-3


def test_the_distance_draws_the_student_alone() -> None:
    model, given = codi("llama"), batch()
    out = outputs_of(model, given)
    assert out.states is not None and out.teacher_states is not None
    assert not out.teacher_states.requires_grad
    ours = gradients(distances(out.states, out.teacher_states, divide_by_std=True).mean(), model)
    assert_same_gradients(ours, gradients(naive_terms(model, SPANS)["distance"], model))
    # Were the teacher not held fixed, the weights would move elsewhere.
    teacher = torch.stack([naive(model, row, 3)["teacher_states"] for row in SPANS], dim=1)
    states = torch.stack([naive(model, row, 3)["states"] for row in SPANS], dim=1)
    both = F.smooth_l1_loss(states, teacher, reduction="none").mean(dim=(1, 2)) / teacher.detach().std(dim=(1, 2))
    moved = gradients(both.mean(), model)
    name = "decoder.model.layers.0.mlp.up_proj.weight"
    assert (moved[name] - ours[name]).abs().max() > 0.05 * ours[name].abs().max()
    # The teacher learns by its own cross-entropy, through the same weights.
    loss, _ = OBJECTIVE.loss(model, given)
    without, _ = replace(OBJECTIVE, teacher_weight=0.0).loss(model, given)
    assert gradients(loss - without, model)[name].abs().max() > 1e-3


def test_distances_are_smooth_l1_over_the_teacher_s_deviation() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, 8, requires_grad=True), torch.randn(4, 3, 8, requires_grad=True)
    actual = distances(student, teacher, divide_by_std=True)
    expected = [F.smooth_l1_loss(one, other) / other.std() for one, other in zip(student, teacher, strict=True)]
    torch.testing.assert_close(actual, torch.stack(expected), **CLOSE)
    plain = distances(student, teacher, divide_by_std=False)
    torch.testing.assert_close(plain, actual * teacher.flatten(1).std(dim=1), **CLOSE)
    actual.sum().backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().max() > 0
    # In the quadratic zone twice the scale is twice the distance.
    near = teacher + 0.1 * torch.rand(4, 3, 8)
    scaled = distances(2 * near, 2 * teacher, divide_by_std=True)
    torch.testing.assert_close(scaled, 2 * distances(near, teacher, divide_by_std=True), **CLOSE)


def test_a_separate_teacher_differs_by_dropout_alone() -> None:
    given = batch()
    for dropout, same in ((0.0, True), (0.5, False)):
        model = codi("gpt2", resid_pdrop=dropout).train()
        actual = []
        for how in ({}, {"separate_teacher": False}, {"separate_teacher": True}):
            torch.manual_seed(0)
            actual.append(outputs_of(model, given, **how).teacher_states)
        assert torch.equal(actual[0], actual[1])
        assert torch.equal(actual[1], actual[2]) == same


def test_latents_are_kept_for_what_reads_them_and_the_teacher_s_text_is_not() -> None:
    model = codi("llama")
    with caches_kept(model.decoder.base_model) as kept:
        outputs_of(model, batch(), separate_teacher=True)
    # Prompt, two latents, and the third one with the text; then both passes over what the teacher reads.
    assert kept == [True] * 4 + [False] * 2


# --- sequences -------------------------------------------------------------------------------------------------------


def test_the_distilled_position_comes_before_the_value() -> None:
    given = batch()
    rows = torch.arange(len(SPANS))
    assert given["text_ids"][rows, given["distilled_at"] + 1].tolist() == [13, 10, 19]
    assert given["teacher"].ids[rows, given["teacher_at"] + 1].tolist() == [13, 10, 19]
    assert given["text_ids"][rows, given["distilled_at"]].tolist() == [8, 8, 8]
    # A tokenizer that merges the end of the box with a sign; and an answer that does not begin with a box.
    assert before_value((5, 8, 13, END), BOX) == 2
    assert before_value((5, 17, 13, END), BOX) == 1
    assert before_value((13, END), BOX) == 0


def test_the_distilled_position_of_word_problems() -> None:
    task = ArithmeticConfig(steps=(1, 2, 3), largest=20).build()
    form = PromptFormat(tokenizer=task.tokenizer)
    problems = task.sample("train", np.arange(40))
    spans = task.spans(problems, form)
    given = batch_of(spans, form.markers, form.box, latents=2, last_step=False, pad_id=PAD)
    rows = torch.arange(40)
    for ids, at in ((given["text_ids"], given["distilled_at"]), (given["teacher"].ids, given["teacher_at"])):
        assert form.tokenizer.batch_decode(ids[rows, at + 1][:, None]) == [problem.answer for problem in problems]
    # The teacher never reads the step that spells the answer.
    last = [len(row.prompt) + len(form.markers.open) + sum(map(len, row.steps[:-1])) for row in spans]
    assert [tuple(ids[at : at + 1].tolist()) for ids, at in zip(given["teacher"].ids, last, strict=True)] == [
        form.markers.end
    ] * 40


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_row_is_the_same_alone_and_with_more_padding(family: str) -> None:
    model, given = codi(family), batch()
    wide = given | {
        "input_ids": F.pad(given["input_ids"], (2, 0), value=9),
        "attention_mask": F.pad(given["attention_mask"], (2, 0)),
        "text_ids": F.pad(given["text_ids"], (0, 3), value=9),
        "text_mask": F.pad(given["text_mask"], (0, 3)),
        "target_mask": F.pad(given["target_mask"], (0, 3)),
    }
    together, padded = outputs_of(model, given), outputs_of(model, wide)
    for row, spans in enumerate(SPANS):
        alone = outputs_of(model, batch([spans]))
        length = len(MARKERS.end + spans.answer)
        for out in (together, padded):
            torch.testing.assert_close(out.logits[row, :length], alone.logits[0, :length], rtol=1e-4, atol=5e-5)
            torch.testing.assert_close(out.states[:, row], alone.states[:, 0], **CLOSE)
            torch.testing.assert_close(out.teacher_states[:, row], alone.teacher_states[:, 0], **CLOSE)


# --- answering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_thinks_and_answers_as_training_had_it(family: str) -> None:
    model = codi(family)
    rows = [row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]
    mine = model.system(name="codi", max_tokens=4)
    answer = mine.respond(*left_padded(rows))
    assert answer.chain.lengths.tolist() == [3] * 6
    output = [tokens[:length].tolist() for tokens, length in zip(answer.tokens, answer.lengths, strict=True)]
    spans = [
        Spans(prompt=tuple(row.tolist()), steps=(), answer=tuple(tokens))
        for row, tokens in zip(rows, output, strict=True)
    ]
    given = batch(spans)
    out = outputs_of(model, given)
    torch.testing.assert_close(answer.chain.latents, out.latents, rtol=1e-4, atol=2e-5)
    # Greedy tokens are the most likely ones in the parallel pass over themselves.
    likely = out.logits.argmax(dim=-1)[:, :-1][given["target_mask"][:, 1:]]
    assert torch.equal(likely, given["text_ids"][given["target_mask"]])
    again = mine.respond(*left_padded(rows), chain=answer.chain)
    assert torch.equal(again.tokens, answer.tokens)
    swapped = mine.respond(*left_padded(rows), chain=answer.chain.with_latents(answer.chain.latents.flip(0)))
    assert not torch.equal(swapped.filled(PAD, 4), answer.filled(PAD, 4))


@torch.no_grad()
def test_an_answer_s_cost_counts_the_projection() -> None:
    model = codi()
    mine = model.system(name="codi", max_tokens=4)
    answer = mine.respond(prompts())
    assert mine.sequential_passes(3, 4) == len(mine.opening) + 3 + 2 + 4
    assert model.projection is not None
    lengths = answer.lengths.double()
    scored = 2 * VOCABULARY * 16 * lengths
    stack = stack_flops(model.decoder.base_model, 5 + 1 + 3 + 2 + lengths - 1)
    projected = 3 * 2 * (16 * 24 + 24 * 16)
    assert multiplied(model.projection) == 16 * 24 + 24 * 16
    torch.testing.assert_close(mine.flops(torch.tensor(5), answer), stack + scored + projected)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("unspoken", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("gpt2", {}),
    ],
)
@torch.no_grad()
def test_a_folder_is_loaded_whole_or_not_at_all(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = codi(family, **settings)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, CodiForCausalLM)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    (one,), (two,) = (catalogue.systems(each, stage="codi", max_answer=4) for each in (model, loaded))
    assert (one.opening, one.stop, one.chain_kind) == (two.opening, two.stop, "latent")
    assert torch.equal(one.respond(prompts()).tokens, two.respond(prompts()).tokens)
    auto = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    out = auto.generate(prompts(), max_new_tokens=4, return_chain=True)
    assert torch.equal(out.sequences[:, :5], prompts())
    assert out.sequences[:, 5:8].tolist() == [[*MARKERS.open, *MARKERS.end]] * 6
    assert torch.equal(out.chain.latents, one.respond(prompts()).chain.latents)
    assert torch.equal(auto.generate(prompts(), max_new_tokens=4), out.sequences)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if name != "projection.1.weight"},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"projection\.1\.weight"):
        load_model(tmp_path)


def test_without_projection_distance_and_teacher_it_is_coconut_s_last_stage() -> None:
    model = codi("qwen2", projection=None)
    loss, _ = Codi(latents=3, projection=None, distance_weight=0.0, teacher_weight=0.0).loss(model, batch())
    other = CoconutModel._from_config(model.decoder.config, attn_implementation="eager")
    other.start_from(model.decoder)
    stage = Coconut(replaced=3, latents_per_step=1, rest="none")
    rows = [stage.row(spans, MARKERS.open, MARKERS.end) for spans in SPANS]
    expected, _ = stage.loss(other.eval(), coconut_batch(rows, PAD))
    torch.testing.assert_close(loss, expected, **CLOSE)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Codi(latents=-1), "latents is -1"),
        (lambda: Codi(distance_weight=-0.5), r"distance_weight is -0\.5"),
        (lambda: Projection(width=0), "width is 0"),
        (lambda: Projection(dropout=1.0), r"dropout is 1\.0"),
        (lambda: batch([]), "the batch is empty"),
        (lambda: recipe("attention=flex_attention"), "growing cache"),
        (lambda: recipe("activation_checkpointing=true"), "drops the cache"),
        (lambda: recipe("stages.codi.start=answers"), "starts from random weights or next_token"),
    ],
)
def test_one_line_says_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


class Forgetful(LlamaForCausalLM):
    """It returns no states of its blocks."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        plain = self.model.forward
        self.model.forward = lambda *inputs, **how: plain(*inputs, **{**how, "output_hidden_states": False})


def test_a_model_without_states_is_refused() -> None:
    needs = Needs(method="CODI", properties=LEARNING)
    for family in FAMILIES:
        require(tiny_language_model(family), needs)
    model = Forgetful._from_config(tiny_language_model("llama").config, attn_implementation="eager")
    enliven(model, "llama")
    with pytest.raises(ValueError, match=r"^CODI cannot be used with Forgetful: output_hidden_states does not"):
        require(model, needs)


# --- training --------------------------------------------------------------------------------------------------------

TEXT = """
name: distilled
size: tiny
precision: fp32
attention: eager
task: {kind: arithmetic, steps: [1, 2], largest: 20, operations: [add, subtract]}
backbone: {hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 2, heads: 2}
stages:
  - {name: cot, objective: {kind: next_token, positions: answer}, steps: 2, evaluate_every: 2, batch_size: 8}
  - name: answers
    start: cot
    objective: {kind: coconut, replaced: 1}
    steps: 2
    evaluate_every: 2
    batch_size: 8
  - name: codi
    start: cot
    objective: {kind: codi, latents: 2}
    steps: 2
    evaluate_every: 2
    batch_size: 8
evaluation: {problems: 12, validation_problems: 6, batch_size: 5, max_latents: 6, max_answer: 5}
threads: 1
"""


def recipe(*overrides: str) -> Recipe:
    return recipes.parse(TEXT, "distilled", overrides)


class _Tokens(TrainerCallback):
    """Keeps what the Trainer counts."""

    seen = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen = int(state.num_input_tokens_seen)


def trained(folder: Path, *overrides: str) -> tuple[PreTrainedModel, Path, int]:
    made = recipe(*overrides)
    quiet_train(made, folder, only="cot")
    tokens = _Tokens()
    path = quiet_stage(made, folder, tokens, name="codi")
    return load_model(path), path, tokens.seen


def test_a_training_step_is_deterministic_and_its_tokens_are_counted(tmp_path: Path) -> None:
    (one, folder, seen), (two, _, _) = (trained(tmp_path / name) for name in ("one", "two"))
    for name, weight in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], weight), name
    made = recipe()
    context = context_of(made, made.stage("codi"))
    make = made.stage("codi").objective.collate(context)
    batches = [make(np.arange(start, start + 8)) for start in (16, 24)]
    assert seen == sum(b["input_ids"].numel() + b["text_ids"].numel() + b["teacher"].ids.numel() for b in batches)
    (mine,) = catalogue.systems(one, stage="codi", max_answer=5)
    assert mine.stop == StopRule(max_latents=2, fixed=True)
    before = load_file(folder.parent.parent / "cot" / "model" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    moved = [name for name, weight in before.items() if not torch.equal(after[f"decoder.{name}"], weight)]
    assert len(moved) == len(before)


def test_adapters_are_merged_and_the_projection_is_trained_in_full(tmp_path: Path) -> None:
    lora = ("stages.codi.lora={rank: 4}", "stages.codi.optimizer={name: adamw, lr: 0.01, lr_rest: null}")
    model, folder, _ = trained(tmp_path, *lora)
    assert isinstance(model, CodiForCausalLM)
    before = load_file(folder.parent.parent / "cot" / "model" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert torch.equal(after[f"decoder.{name}"], before[name])
    assert not torch.equal(
        after["decoder.model.layers.0.ffn.up_proj.weight"], before["model.layers.0.ffn.up_proj.weight"]
    )
    assert after["projection.4.weight"].ne(1).any()  # the gain starts at one


def test_without_a_projection_the_folder_is_a_plain_language_model_s(tmp_path: Path) -> None:
    model, _, _ = trained(tmp_path, "stages.codi.objective.projection=null")
    assert type(model).__name__ == "UnspokenForCausalLM"
    (mine,) = catalogue.systems(model, stage="codi", max_answer=5)
    assert (mine.chain_kind, mine.stop) == ("hidden", StopRule(max_latents=2, fixed=True))


def test_a_plan_counts_both_sequences_and_the_projection() -> None:
    flops = {}
    for name, value in (("both", ""), ("again", "separate_teacher=true"), ("bare", "projection=null")):
        made = recipe(*([f"stages.codi.objective.{value}"] if value else []))
        stage = next(one for one in plan(made)["models"] if one["stage"] == "codi")
        flops[name] = stage["flops"]
        cot = next(one for one in plan(made)["models"] if one["stage"] == "cot")
        assert 1.5 * cot["tokens"] < stage["tokens"] < 2.5 * cot["tokens"]
    # Of 16 rows with two latents each: forward and backward through two matrices.
    assert flops["both"] - flops["bare"] == pytest.approx(16 * 3 * 2 * 2 * (2 * 32 * 32))
    assert 1.1 * flops["both"] < flops["again"] < 1.3 * flops["both"]


def test_the_shipped_recipe_trains_each_baseline_as_long() -> None:
    made = recipes.load("arithmetic-codi", "tiny")
    assert {made.steps(made.stage(name)) for name in ("cot", "answer_only", "codi")} == {300}
    assert {made.stage(name).start for name in ("cot", "answer_only", "codi")} == {"pretrain"}


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(Codi, "methods/codi.md")
    check_recorded(CodiConfig)


def test_settings_end_where_they_say() -> None:
    weights: dict[str, Any] = {name: ([0.0], [-0.01]) for name in ("distance_weight", "teacher_weight")}
    check_ranges(Codi, {**weights, "latents": ([0], [-1])})
    check_ranges(Projection, {"width": ([1], [0]), "dropout": ([0.0, 0.99], [-0.01, 1.0])})


def test_what_is_read_is_what_recorded_runs_read() -> None:
    assert batch_digest("arithmetic-codi", "codi") == "8b6108265198"
    assert batch_digest("arithmetic-codi", "codi", "stages.codi.objective.last_step=false") == "67edf9981bd5"


def test_stages_and_what_they_take_are_the_recorded_ones() -> None:
    check_plans("arithmetic-codi tiny")
    check_default_stages("codi")
