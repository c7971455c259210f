"""iCoT against plain sums over its tokens, and the identities of its specification."""

from __future__ import annotations

import json
import math
import shutil
import string
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import CausalConformance, left_padded
from faults import StopAt
from latent_models import caches_kept
from recorded import batch_digest, check_default_stages, check_plans
from settings_checks import check_defaults, check_ranges
from tiny_models import END, FAMILIES, PAD, prompts, tiny_language_model
from tiny_recipe import quiet_stage, quiet_train, weights
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from unspoken.backbone.folder import read_manifest
from unspoken.methods import catalogue
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.icot.objective import batch_of
from unspoken.methods.icot.stages import LARGEST_OFFSET, Icot
from unspoken.methods.rows import Kind
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.engine import StopRule
from unspoken.reasoning.picking import Sampler
from unspoken.report.answers import answer_problems
from unspoken.serving import open_served
from unspoken.serving.batch import Batch, Progress
from unspoken.tasks.spans import Markers, Spans
from unspoken.training import recipe as recipes
from unspoken.training import stages
from unspoken.training.context import context_of
from unspoken.training.plan import plan
from unspoken.training.recipe import Recipe
from unspoken.training.stages import data_of

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
MARKERS = Markers(open=(2,), end=(7, 6))
# Prompts, chains and answers all of different length; one chain is empty.
SPANS = [
    Spans(prompt=(3, 11, 5, 8, 13), steps=((13, 14), (15,), (4, 4)), answer=(5, 8, 13, 14, 9, END)),
    Spans(prompt=(12,), steps=((16, 17),), answer=(5, 8, 10, 9, END)),
    Spans(prompt=(4, 9, 8), steps=(), answer=(5, 19, END)),
]
PLAIN = Icot(steps_per_token=5, pretrain_steps=10, remove_all_beyond=4, smoothing=None)

TEXT = """
name: internalised
size: tiny
precision: fp32
attention: eager
task: {kind: arithmetic, steps: [1, 2], largest: 20, operations: [add, subtract]}
backbone: {hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 1, heads: 2}
stages:
  - {name: cot, objective: {kind: next_token, positions: answer}, steps: 2, evaluate_every: 2, batch_size: 4}
  - name: icot
    start: cot
    objective: {kind: icot, pretrain_steps: 1, steps_per_token: 2, remove_all_beyond: 3}
    steps: 10
    evaluate_every: 2
    batch_size: 4
evaluation: {problems: 6, validation_problems: 3, batch_size: 3, max_latents: 6, max_answer: 5}
threads: 1
"""
ADAMW = "stages.icot.optimizer={name: adamw, lr: 0.001, lr_rest: null}"
SPREAD = "stages.icot.objective.smoothing=0.5"


def recipe(*overrides: str) -> Recipe:
    return recipes.parse(TEXT, "internalised", overrides)


def batch_at(objective: Icot, removed: int, spans: list[Spans] = SPANS) -> dict[str, Any]:
    counts = [min(removed, len(row.chain)) for row in spans]
    return batch_of(objective, spans, counts, MARKERS, scheduled=removed, pad_id=PAD)


def gradients(loss: Tensor, model: PreTrainedModel) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [*model.parameters()]))


# --- the shared engine -----------------------------------------------------------------------------------------------

# A token that each family's chains run into early, late and never.
ENDS = {"unspoken": 9, "llama": 7, "qwen2": 11, "gpt2": 4}


# The suite runs on every family for the coupled model, which is the same reasoner; two are quick here.
CASES = [
    pytest.param(
        case, id="-".join(case), marks=[pytest.mark.slow] * (case not in (("unspoken", "eager"), ("gpt2", "eager")))
    )
    for case in product(FAMILIES, ("eager", "sdpa"))
]


@pytest.fixture(params=CASES)
def reasoner(request: pytest.FixtureRequest) -> CausalLMReasoner:
    family, attention = request.param
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(ENDS[family],), top_k=1, max_latents=0, fixed=True)
    return CausalLMReasoner(model=tiny_language_model(family, attention), settings=settings)


class TestConformance(CausalConformance):
    """Nothing but what every causal language model has."""


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_answers_at_once_as_a_plain_language_model_goes_on(family: str, eos: bool) -> None:
    model = tiny_language_model(family)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    markers = Markers(open=(END,), end=(END,)) if eos else MARKERS
    settings = LatentGenerationConfig(open_ids=markers.open, end_ids=markers.end, top_k=1, max_latents=0, fixed=True)
    system = causal_lm_system(model, settings, name="icot", max_tokens=6)
    rows = [row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]
    together = system.respond(*left_padded(rows))
    assert together.chain.lengths.tolist() == [0] * 6
    for row, prompt in enumerate(rows):
        ids = torch.cat([prompt, torch.tensor([*markers.open, *markers.end])])[None]
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        expected = expected[0, ids.shape[1] :].tolist()
        for given in (together.filled(PAD)[row], system.respond(prompt[None]).filled(PAD)[0]):
            assert given.tolist()[: len(expected)] == expected


# --- schedule --------------------------------------------------------------------------------------------------------


def test_the_schedule_is_a_closed_formula() -> None:
    scheduled = 0
    for step in range(60):
        # As a counter would have it.
        scheduled += step > 10 and (step - 10) % 5 == 0
        assert PLAIN.scheduled(step) == scheduled
        assert PLAIN.removed(step, 0, 30) == (30 if scheduled >= 4 else scheduled)
        assert PLAIN.removed(step, 2, 1) == min(1, scheduled + 2)
    assert replace(PLAIN, remove_all_beyond=0).removed(0, 0, 30) == 30


@pytest.mark.parametrize("smoothing", [0.02, 4.0, 1e4])
def test_the_plan_counts_the_mean_offset(smoothing: float) -> None:
    made = recipe(f"stages.icot.objective.smoothing={smoothing}")
    tokens = next(one for one in plan(made)["models"] if one["stage"] == "icot")["tokens"]
    none = next(one for one in plan(recipe("stages.icot.objective.smoothing=null"))["models"] if one["stage"] == "icot")
    assert tokens < none["tokens"] if smoothing < 100 else tokens == none["tokens"]


@pytest.mark.parametrize("smoothing", [0.02, 0.5, 4.0])
def test_offsets_have_the_stated_distribution(smoothing: float) -> None:
    objective, count = replace(PLAIN, smoothing=smoothing), 1500
    drawn = np.array([objective.offset(3, index) for index in range(count)])
    assert drawn.tolist() == [objective.offset(3, index) for index in range(count)]
    assert (drawn != [objective.offset(4, index) for index in range(count)]).any()
    for at in (0, 1, 2, 10, 50, LARGEST_OFFSET):
        # Offsets beyond the largest one count as it.
        tail = math.exp(-smoothing * at)
        expected = tail if at == LARGEST_OFFSET else tail * (1 - math.exp(-smoothing))
        assert abs((drawn == at).mean() - expected) < 4 * math.sqrt(expected / count) + 1e-9
    assert drawn.max() <= LARGEST_OFFSET


@pytest.mark.parametrize("from_right", [False, True])
def test_removal_touches_the_chain_alone(from_right: bool) -> None:
    objective = replace(PLAIN, from_right=from_right)
    for removed, row in product(range(8), range(3)):
        spans, batch = SPANS[row], batch_at(objective, removed)
        rows, chain = batch["rows"], SPANS[row].chain
        left = max(0, len(chain) - removed)
        kept = chain[:left] if from_right else chain[len(chain) - left :]
        assert rows.ids[row][rows.real[row]].tolist() == [
            *(*spans.prompt, *MARKERS.open, *kept, *MARKERS.end, *spans.answer)
        ]
        learned = [*kept, *MARKERS.end, *spans.answer]
        assert rows.ids[row][rows.target[row]].tolist() == learned
    other = replace(objective, from_right=not from_right)
    one, two = batch_at(objective, 5)["rows"], batch_at(other, 5)["rows"]
    assert torch.equal(one.ids, two.ids) and torch.equal(one.target, two.target)
    assert not torch.equal(batch_at(objective, 2)["rows"].ids, batch_at(other, 2)["rows"].ids)


def test_a_batch_has_the_chains_of_its_step() -> None:
    made = recipe(SPREAD, "stages.icot.steps=40", "stages.icot.objective.remove_all_beyond=9")
    stage = made.stage("icot")
    objective: Any = stage.objective
    context = context_of(made, stage, seed=5)
    data = data_of(made, context)
    assert data.first == 8
    for step in (0, 2, 3, 8, 13, 18, 19, 39):
        batch = data.__getitems__([*range(4 * step, 4 * step + 4)])
        spans = context.task.spans(context.sample(np.arange(4) + 8 + 4 * step), context.prompt_format)
        scheduled = max(0, step - 1) // 2
        offsets = [objective.offset(5, 8 + 4 * step + row) for row in range(4)]
        expected = [
            0 if scheduled >= 9 else max(0, len(row.chain) - scheduled - offset)
            for row, offset in zip(spans, offsets, strict=True)
        ]
        assert (batch["rows"].kind == Kind.TEXT).sum(dim=1).tolist() == expected
        assert batch["scheduled"] == scheduled
        # A rank reads some of these rows, and makes the same of them.
        own = data.__getitems__([4 * step + 1, 4 * step + 3])["rows"]
        assert (own.kind == Kind.TEXT).sum(dim=1).tolist() == expected[1::2]


# --- the loss --------------------------------------------------------------------------------------------------------


def naive_loss(model: PreTrainedModel, removed: int, given: int = 0) -> Tensor:
    """Row by row, without padding; the first tokens after the open marker may be given and not learned."""
    losses = []
    for row in SPANS:
        tail = [*row.chain[removed:], *MARKERS.end, *row.answer]
        ids = torch.tensor([[*row.prompt, *MARKERS.open, *tail]])
        logits = model(input_ids=ids, use_cache=False).logits[0, -len(tail) - 1 : -1]
        losses.append(F.cross_entropy(logits, torch.tensor(tail), reduction="none")[given:])
    return torch.cat(losses).mean()


@pytest.mark.parametrize(("family", "attention"), [*product(FAMILIES, ("eager",)), ("unspoken", "sdpa")])
def test_a_padded_batch_is_its_rows_in_loss_and_gradients(family: str, attention: str) -> None:
    model = tiny_language_model(family, attention)
    for removed in (0, 2, 9):
        loss, terms = PLAIN.loss(model, batch_at(PLAIN, removed))
        expected = naive_loss(model, removed)
        torch.testing.assert_close(loss, expected, **CLOSE)
        for one, other in zip(gradients(loss, model), gradients(expected, model), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4 * float(other.abs().max().clamp(min=1e-3)))
        left = [max(0, len(row.chain) - removed) for row in SPANS]
        assert float(terms["chain_left"]) == pytest.approx(sum(left) / 3)
        # Scores at other positions change nothing.
        everywhere = {name: value for name, value in batch_at(PLAIN, removed).items() if name != "supervised"}
        torch.testing.assert_close(PLAIN.loss(model, everywhere)[0], loss, **CLOSE)


def test_a_training_pass_keeps_no_cache() -> None:
    model = tiny_language_model("llama")
    with caches_kept(model.base_model) as kept:
        PLAIN.loss(model, batch_at(PLAIN, 1))
    assert kept == [False]


def test_bfloat16_is_float32_within_its_rounding() -> None:
    model, batch = tiny_language_model("llama"), batch_at(PLAIN, 1)
    expected, _ = PLAIN.loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        actual, _ = PLAIN.loss(model, batch)
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("explicit", [True, False])
def test_its_ends_are_explicit_tuning_and_answers_alone(explicit: bool) -> None:
    form = "stages.icot.objective.eos_separators=false"
    beyond = "stages.icot.objective.remove_all_beyond=" + ("3" if explicit else "0")
    made = recipe(form, beyond, "stages.icot.objective.smoothing=null")
    context = context_of(made, made.stage("icot"))
    objective, indices = made.stage("icot").objective, np.arange(8, 12)
    model = tiny_language_model("unspoken", vocab_size=len(context.tokenizer))
    batch = objective.collate(context)(indices)
    loss, _ = objective.loss(model, batch)
    problems = context.sample(indices)
    rows = context.task.rows(problems, context.prompt_format, chain=explicit)
    if not explicit:  # the second separator is learned too
        marker = len(context.markers.end)
        for row in rows["answer_mask"]:
            first = int(row.nonzero()[0])
            row[first - marker : first] = True
    expected, _ = NextToken(positions="answer", chain="explicit" if explicit else "none").loss(model, rows)
    torch.testing.assert_close(loss, expected, **CLOSE)
    for one, other in zip(gradients(loss, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4 * float(other.abs().max().clamp(min=1e-3)))


def test_the_end_of_text_token_is_both_separators() -> None:
    made = recipe("stages.icot.objective.remove_all_beyond=0", "stages.icot.objective.smoothing=null")
    context = context_of(made, made.stage("icot"))
    eos = context.tokenizer.eos_token_id
    spans = context.task.spans(context.sample(np.arange(8, 10)), context.prompt_format)
    rows = made.stage("icot").objective.collate(context)(np.arange(8, 10))["rows"]
    for row, problem in enumerate(spans):
        assert rows.ids[row][rows.real[row]].tolist() == [*problem.prompt, eos, eos, *problem.answer]


@pytest.mark.parametrize("from_right", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_kept_positions_do_not_depend_on_what_was_removed(family: str, from_right: bool) -> None:
    objective, model = replace(PLAIN, keep_position=True, from_right=from_right), tiny_language_model(family)
    for removed, spans in product((0, 1, 3, 9), SPANS):
        rows = batch_at(objective, removed, [spans])["rows"]
        after = len(MARKERS.end) + len(spans.answer)
        begin = len(spans.prompt) + len(MARKERS.open) + len(spans.chain)
        assert rows.position[0, -after:].tolist() == [*range(begin, begin + after)]
        # No gap of positions hides the prompt: the same with a mask of four axes, which the library takes as it is.
        hidden = torch.full((rows.ids.shape[1],) * 2, torch.finfo(torch.float32).min).triu(1)[None, None]
        logits = model(input_ids=rows.ids, position_ids=rows.position, attention_mask=hidden, use_cache=False).logits[0]
        chosen = rows.target[0]
        expected = F.cross_entropy(logits[:-1][chosen[1:]], rows.ids[0][chosen])
        torch.testing.assert_close(objective.loss(model, batch_at(objective, removed, [spans]))[0], expected, **CLOSE)
    together = objective.loss(model, batch_at(objective, 2))[0]
    if family == "gpt2":
        assert (together - PLAIN.loss(model, batch_at(replace(PLAIN, from_right=from_right), 2))[0]).abs() > 1e-3


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(PLAIN, steps_per_token=0), "steps_per_token is 0"),
        (lambda: replace(PLAIN, remove_all_beyond=-1), "remove_all_beyond is -1"),
        (lambda: replace(PLAIN, smoothing=0.0), r"smoothing is 0\.0"),
        (lambda: batch_of(PLAIN, [], [], MARKERS, scheduled=0, pad_id=PAD), "the batch is empty"),
        (lambda: recipe("stages.icot.steps=7"), "chains are gone after 7 steps"),
        (lambda: recipe("stages.icot.steps=null", "stages.icot.steps_of=[cot]"), "set steps and leave steps_of out"),
        (lambda: recipe("group_by_length=true"), "group_by_length reads rows in another order"),
        (lambda: recipe("stages.icot.start=icot"), "refers to 'icot'"),
    ],
)
def test_one_line_says_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_a_start_that_read_an_unknown_number_of_rows_is_refused() -> None:
    text = TEXT.replace(
        "  - name: icot\n    start: cot",
        "  - {name: more, objective: {kind: next_token}, steps_of: [cot], "
        "batch_size: 4}\n  - name: icot\n    start: more",
    )
    with pytest.raises(ValueError, match="stage 'more' before it has steps_of"):
        recipes.parse(text, "internalised")


def tokenizer_of_letters() -> PreTrainedTokenizerFast:
    tokens = ["~pad", "~end", *string.printable]
    words = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="~pad"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="~pad", eos_token="~end")


# --- training --------------------------------------------------------------------------------------------------------


class _Moments(TrainerCallback):
    """Whether the optimiser's state is empty before each of its steps, and whether a run is stopped and goes on."""

    def __init__(self) -> None:
        self.empty: dict[int, bool] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        inner = optimizer.optimizer
        states = {bool(one.state) for one in getattr(inner, "parts", [inner])}
        assert len(states) == 1
        self.empty[state.global_step] = states == {False}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first stage is finished."""
    folder = tmp_path_factory.mktemp("started")
    quiet_train(recipe(), folder, only="cot")
    return folder


def begun(started: Path, folder: Path) -> Path:
    """A copy of it."""
    shutil.copytree(started, folder)
    return folder


def scheduled_of(model: Path) -> list[tuple[int, float, float]]:
    history = read_manifest(model)["history"]
    return [(entry["step"], entry["scheduled"], entry["loss"]) for entry in history if "scheduled" in entry]


@pytest.mark.parametrize(
    ("optimizer", "stops"),
    [("muon", (5,)), *(pytest.param(name, (2, 4, 7, 8), marks=pytest.mark.slow) for name in ("muon", "adamw"))],
)
def test_moments_are_reset_at_each_removal_and_a_stopped_run_goes_on_bit_for_bit(
    started: Path, tmp_path: Path, optimizer: str, stops: tuple[int, ...]
) -> None:
    made = recipe(SPREAD, *([ADAMW] if optimizer == "adamw" else []))
    moments = _Moments()
    model = quiet_stage(made, begun(started, tmp_path / "undisturbed"), moments, name="icot")
    # One token after step 3, two after step 5, all after step 7; by step 9 no chain was left to remove.
    assert moments.empty == {step: step in (0, 3, 5, 7) for step in range(10)}
    expected = weights(tmp_path / "undisturbed")
    # With checkpoints after every second step: right before and after removals.
    for stop in stops:
        output, again = begun(started, tmp_path / f"stopped-{stop}"), _Moments()
        with pytest.raises(KeyboardInterrupt):
            quiet_stage(made, output, StopAt("step_end", stop), name="icot")
        stopped = quiet_stage(made, output, again, name="icot")
        assert weights(output) == expected
        assert scheduled_of(stopped) == scheduled_of(model)
        assert again.empty == {step: moments.empty[step] for step in again.empty}
        assert len(again.empty) == 10 - (stop - 1) // 2 * 2


@pytest.mark.slow
def test_moments_are_kept_where_no_reset_is_wanted(started: Path, tmp_path: Path) -> None:
    kept = _Moments()
    never = recipe(SPREAD, "stages.icot.objective.reset_optimizer=false")
    quiet_stage(never, begun(started, tmp_path / "kept"), kept, name="icot")
    assert [step for step, empty in kept.empty.items() if empty] == [0]


def test_the_folder_is_a_plain_language_model_s_that_answers_without_a_chain(started: Path, tmp_path: Path) -> None:
    output = begun(started, tmp_path / "run")
    folder = quiet_stage(recipe(), output, name="icot")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "UnspokenForCausalLM"
    before = AutoModelForCausalLM.from_pretrained(output / "seed-0" / "cot" / "model").state_dict()
    assert all(not torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    (mine,) = catalogue.systems(model, stage="icot", max_answer=5)
    assert (mine.name, mine.chain_kind, mine.stop) == ("icot", "tokens", StopRule(max_latents=0, fixed=True))
    # The server's engine writes what the command does.
    answer = next(answer_problems(output, [None], stage="icot"))
    served, reports = open_served(output, stage="icot"), list[Progress]()
    batch = Batch(served.system.reasoner)
    job = served.job(served.prompt(answer["problem"], chat=False), served.answer_tokens, Sampler())
    job.report = reports.append
    batch.join([job])
    while batch.rows:
        batch.step()
    assert served.text([token for progress in reports for token in progress.tokens]) == answer["answer"]
    assert (reports[-1].over, reports[-1].latents) == (True, 0)


@pytest.mark.parametrize(("name", "selected"), [("icot", 8), ("cot", 0)])
def test_checkpoints_are_selected_when_no_chain_is_left(
    name: str, selected: int, started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter(range(9, 0, -1))  # each worse than the one before
    monkeypatch.setattr(stages, "validator_of", lambda *_: lambda _: {"score": next(scores), "exact_match": 0.9})
    output = tmp_path if name == "cot" else begun(started, tmp_path / "run")
    # The last chain goes at step 7; where its answers would do before, the stage goes on.
    early = [f"stages.{name}.stop_at=0.5", f"stages.{name}.optimizer.schedule=constant"]
    manifest = read_manifest(quiet_stage(recipe(*early), output, name=name))
    assert manifest["step"] == selected
    assert manifest["history"][-1]["step"] == max(selected, 2)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_of_the_hub_is_tuned_and_stays_one(family: str, tmp_path: Path) -> None:
    rows = [{"question": f"Twice {n} and 3?", "steps": [f"<<{n}+3={n + 3}>>"], "answer": str(n + 3)} for n in range(9)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "test.json").write_text(json.dumps([{"input": "2 and 2?", "target": 4}]))
    hub = tiny_language_model(family, vocab_size=102, max_position_embeddings=160)
    hub.save_pretrained(tmp_path / "hub")
    tokenizer_of_letters().save_pretrained(tmp_path / "hub")
    task = f"{{kind: grade_school, train: {tmp_path}/train.json, tests: [{tmp_path}/test.json], validation_rows: 3}}"
    made = recipe(
        f"task={task}",
        f"backbone={tmp_path / 'hub'}",
        "stages=[{name: icot, objective: {kind: icot, pretrain_steps: 1, steps_per_token: 1, remove_all_beyond: 1}, "
        "steps: 3, evaluate_every: 3, batch_size: 2, optimizer: {name: adamw, lr: 0.001, lr_rest: null}}]",
    )
    folder = quiet_stage(made, tmp_path, name="icot")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is type(hub)
    (mine,) = catalogue.systems(model, stage="icot", max_answer=5)
    eos = mine.speaker.end_ids[0]
    assert (mine.opening, mine.speaker.marker) == ((eos,), (eos,))
    ids = torch.tensor([[5, 9, 11]])
    asked = torch.cat([ids, torch.tensor([[eos, eos]])], dim=1)
    plain = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=5, do_sample=False)
    answer = mine.respond(ids).filled(model.generation_config.pad_token_id)[0].tolist()
    assert answer[: plain.shape[1] - 5] == plain[0, 5:].tolist()


def test_a_plan_counts_what_is_left_of_the_chains() -> None:
    made = recipe(
        "stages.icot.steps=60",
        "stages.icot.objective.steps_per_token=4",
        "stages.icot.objective.remove_all_beyond=12",
        "stages.icot.batch_size=16",
    )
    stage = next(one for one in plan(made)["models"] if one["stage"] == "icot")
    data = data_of(made, context_of(made, made.stage("icot")))
    read = [int(data.__getitems__([*range(16 * step, 16 * step + 16)])["rows"].length.sum()) for step in range(60)]
    assert stage["tokens"] == pytest.approx(sum(read), rel=0.05)


def test_the_shipped_recipe_trains_answers_alone_as_long() -> None:
    made = recipes.load("arithmetic-icot", "small")
    assert made.steps(made.stage("answer_only")) == made.steps(made.stage("cot")) + made.steps(made.stage("icot"))


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(Icot, "methods/icot.md")


def test_settings_end_where_they_say() -> None:
    counts: dict[str, Any] = {"pretrain_steps": ([0], [-1]), "remove_all_beyond": ([0], [-1])}
    others = {"steps_per_token": 1, "pretrain_steps": 0}
    check_ranges(Icot, {**counts, "steps_per_token": ([1], [0]), "smoothing": ([1e-6], [0.0])}, **others)


def test_what_is_read_is_what_recorded_runs_read() -> None:
    assert batch_digest("arithmetic-icot", "icot", size="small") == "cb96d29e28e3"
    changes = ("stages.icot.objective.from_right=true", "stages.icot.objective.eos_separators=false")
    assert batch_digest("arithmetic-icot", "icot", *changes, size="small") == "d78741e571ca"


def test_stages_and_what_they_take_are_the_recorded_ones() -> None:
    check_plans("arithmetic-icot small")
    check_default_stages("icot")
