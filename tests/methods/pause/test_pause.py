"""Pauses against plain text without a cache, and the identities of their specification."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import CAP, CausalConformance, left_padded
from latent_models import MARKERS, SPANS, caches_kept, gradients
from recorded import batch_digest, check_default_stages, check_plans
from safetensors.torch import load_file, save_file
from settings_checks import check_defaults, check_ranges
from tiny_models import END, FAMILIES, PAD, VOCABULARY, prompts, tiny_language_model
from tiny_recipe import quiet_stage, quiet_train
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.chain import StopReason
from unspoken.evaluation.controls import altered_chains
from unspoken.methods import catalogue
from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.coconut.objective import batch_of as coconut_batch
from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.cost import Lengths
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.loading import load_model
from unspoken.methods.pause.configuration import PauseSettings, append_row, train_last_row
from unspoken.methods.pause.objective import batch_of
from unspoken.methods.pause.stages import Pause
from unspoken.methods.pause.systems import PauseReasoner
from unspoken.reasoning.engine import Reasoner, StopRule, rollout
from unspoken.reasoning.flops import stack_flops
from unspoken.reasoning.picking import Sampler
from unspoken.reasoning.speakers import SameStack
from unspoken.reasoning.system import System
from unspoken.serving.batch import Batch, Progress
from unspoken.serving.systems import Served
from unspoken.tasks.spans import Spans
from unspoken.tasks.tree_search import TreeSearchConfig
from unspoken.training import recipe as recipes
from unspoken.training.context import context_of
from unspoken.training.plan import plan
from unspoken.training.recipe import Recipe

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
PAUSE = VOCABULARY


def paused(family: str = "unspoken", attention: str = "eager", *, pauses: int = 3, **settings: Any) -> PreTrainedModel:
    """A model with a row for the pause that is no copy any more."""
    model = tiny_language_model(family, attention, **settings)
    append_row(model, MARKERS.open[-1])
    with torch.no_grad():
        model.get_input_embeddings().weight[PAUSE] *= torch.linspace(-1, 1, 16)
    PauseSettings(token=PAUSE, pauses=pauses, open_ids=MARKERS.open, end_ids=MARKERS.end).attach(model)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    return model.eval()


def system_of(model: PreTrainedModel, max_tokens: int = 4) -> System:
    (mine,) = catalogue.systems(model, stage="pause", max_answer=max_tokens)
    return mine


def batch(objective: Pause, spans: Sequence[Spans] = SPANS) -> dict[str, Tensor]:
    return batch_of([objective.row(one, MARKERS, PAUSE) for one in spans], PAD)


# --- the shared engine -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[("unspoken", "eager"), ("llama", "sdpa"), ("gpt2", "eager")], ids="-".join)
def reasoner(request: pytest.FixtureRequest) -> Reasoner:
    return system_of(paused(*request.param)).reasoner


class TestConformance(CausalConformance):
    def test_the_prompts_of_this_suite_stop_in_every_way(self, reasoner: Reasoner) -> None:
        # The chain is the same for every prompt: the other tests compare it and the pass that training uses.
        chain = rollout(reasoner, prompts(), None, StopRule(max_latents=CAP, fixed=True))
        assert isinstance(reasoner, PauseReasoner)
        row = reasoner.embed_prompt(torch.tensor([[PAUSE]]))[0, 0]
        assert torch.equal(chain.latents, row.expand(6, CAP, -1))
        assert (chain.stop == StopReason.FIXED).all()


# --- answering -------------------------------------------------------------------------------------------------------

ROWS = [row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_one_pass_over_the_pauses_is_the_loop_over_them_and_plain_text(family: str) -> None:
    model = paused(family)
    mine, passes = system_of(model), []
    hook = mine.reasoner.stack.register_forward_pre_hook(lambda *_: passes.append(1))
    answer = mine.respond(*left_padded(ROWS))
    hook.remove()
    # The prompt with all pauses, the end marker, and every token but the last, which nothing reads.
    assert len(passes) == 1 + len(MARKERS.end) + int(answer.lengths.max()) - 1
    assert answer.chain.lengths.tolist() == [3] * 6
    assert (answer.chain.stop == StopReason.FIXED).all()
    assert isinstance(mine.speaker, SameStack)
    stepwise = replace(
        mine, speaker=SameStack(marker=MARKERS.end, end_ids=mine.speaker.end_ids, pad_id=mine.speaker.pad_id)
    ).respond(*left_padded(ROWS))
    assert torch.equal(stepwise.chain.latents, answer.chain.latents)
    assert torch.equal(stepwise.filled(PAD, 4), answer.filled(PAD, 4))
    for row, prompt in enumerate(ROWS):
        text = torch.tensor([[*prompt.tolist(), *MARKERS.open, *[PAUSE] * 3, *MARKERS.end]])
        plain = model.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=4, do_sample=False)
        assert plain[0, text.shape[1] :].tolist() == answer.tokens[row, : answer.lengths[row]].tolist()


@torch.no_grad()
def test_what_a_caller_may_change() -> None:
    mine, given = system_of(paused()), left_padded(ROWS)
    assert mine.respond(*given, stop=StopRule(max_latents=5, fixed=True)).chain.lengths.tolist() == [5] * 6
    assert not mine.respond(*given, stop=StopRule(max_latents=0)).chain.lengths.any()
    seen: list[int] = []

    def doubled(step: Any, number: int) -> Any:
        seen.append(number)
        return replace(step, latent=2 * step.latent, next_input=2 * step.next_input)

    changed, own = mine.respond(*given, intervene=doubled), mine.respond(*given)
    assert seen == [0, 1, 2]
    assert torch.equal(changed.chain.latents, 2 * own.chain.latents)
    again = mine.respond(*given, chain=changed.chain)
    assert torch.equal(again.tokens, changed.tokens)


@torch.no_grad()
def test_order_and_origin_of_pauses_mean_nothing() -> None:
    mine, given = system_of(paused("gpt2"), 8), left_padded(ROWS)
    own = mine.respond(*given)
    altered = altered_chains(mine, own.chain, 0)
    answers = {name: mine.respond(*given, chain=chain).filled(PAD, 8) for name, chain in altered.items()}
    for name in ("shuffle", "swap"):
        assert torch.equal(altered[name].latents, own.chain.latents)
        assert torch.equal(answers[name], own.filled(PAD, 8))
    torch.testing.assert_close(altered["mean"].latents, own.chain.latents)
    # The pauses are read all the same.
    for name in ("zero", "noise", "no chain"):
        assert not torch.equal(answers[name], own.filled(PAD, 8)), name


@pytest.mark.parametrize("pauses", [3, 12])
@torch.no_grad()
def test_pauses_cost_positions_and_no_pass(pauses: int) -> None:
    model = paused(pauses=pauses)
    mine = system_of(model)
    answer = mine.respond(prompts())
    assert mine.sequential_passes(pauses, 4) == len(MARKERS.open) + len(MARKERS.end) + 4
    lengths = answer.lengths.double()
    expected = stack_flops(model.base_model, 5 + 1 + pauses + 2 + lengths - 1) + 2 * (VOCABULARY + 1) * 16 * lengths
    torch.testing.assert_close(mine.flops(torch.tensor(5), answer), expected)


@torch.no_grad()
def test_it_is_served() -> None:
    mine = system_of(paused())
    served = Served(system=mine)
    progress: list[list[Progress]] = [[] for _ in ROWS]
    jobs = [served.job(row.tolist(), 4, Sampler(temperature=0)) for row in ROWS]
    computed = Batch(mine.reasoner)
    for job, reported in zip(jobs, progress, strict=True):
        job.report = reported.append
    computed.join(jobs)
    while computed.rows:
        computed.step()
    answer = mine.respond(*left_padded(ROWS))
    for reported, tokens, length in zip(progress, answer.tokens, answer.lengths, strict=True):
        assert [token for one in reported for token in one.tokens] == tokens[:length].tolist()
        assert reported[-1].over and reported[-1].latents == 3


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
def test_a_folder_is_a_plain_language_model_s(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = paused(family, **settings)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config.vocab_size == VOCABULARY + 1
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    one, two = system_of(model), system_of(loaded)
    assert (one.opening, one.stop, one.chain_kind) == (two.opening, two.stop, "latent")
    assert torch.equal(one.respond(prompts()).tokens, two.respond(prompts()).tokens)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith(("embed_tokens.weight", "wte.weight")))
    save_file(weights | {name: weights[name][:-1].clone()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_model(tmp_path)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "attention"), [*product(FAMILIES, ("eager",)), ("llama", "sdpa")])
@pytest.mark.parametrize("objective", [Pause(pauses=3), Pause(pauses=2, replaced=1)], ids=["plain", "thought"])
def test_a_padded_batch_is_the_rows_alone_in_loss_and_gradients(objective: Pause, family: str, attention: str) -> None:
    model = paused(family, attention)
    loss, _ = objective.loss(model, batch(objective))
    losses = []
    for spans in SPANS:
        left = [] if objective.replaced is None else [token for step in spans.steps[1:] for token in step]
        text = [*left, *spans.answer]
        ids = torch.tensor([[*spans.prompt, 2, *[PAUSE] * objective.pauses, 7, 6, *text]])
        scores = model(input_ids=ids, use_cache=False).logits[0, -len(text) - 1 : -1]
        losses.append(F.cross_entropy(scores, torch.tensor(text), reduction="none"))
    expected = torch.cat(losses).mean()
    torch.testing.assert_close(loss, expected, **CLOSE)
    ours, theirs = gradients(loss, model), gradients(expected, model)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    table = next(name for name, weight in model.named_parameters() if weight is model.get_input_embeddings().weight)
    assert ours[table][PAUSE].abs().max() > 1e-4


def test_a_training_pass_keeps_no_cache_and_an_answer_does() -> None:
    model, objective = paused("llama"), Pause(pauses=3)
    with caches_kept(model.base_model) as kept:
        objective.loss(model, batch(objective))
    assert kept == [False]
    model.generation_config.use_cache = False
    PauseSettings(token=PAUSE, pauses=3, open_ids=MARKERS.open, end_ids=MARKERS.end).attach(model)
    assert model.generation_config.use_cache


def test_without_pauses_and_replaced_steps_it_is_the_first_stage_of_coconut() -> None:
    model, objective = tiny_language_model("qwen2"), Pause(pauses=0, replaced=0)
    loss, _ = objective.loss(model, batch(objective))
    other = CoconutModel._from_config(model.config, attn_implementation="eager")
    other.start_from(model)
    stage = Coconut(replaced=0)
    rows = [stage.row(spans, MARKERS.open, MARKERS.end) for spans in SPANS]
    expected, _ = stage.loss(other.eval(), coconut_batch(rows, PAD))
    torch.testing.assert_close(loss, expected, **CLOSE)


@pytest.mark.parametrize("settings", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
def test_the_new_row_is_a_copy_in_table_and_head(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # The library would draw it about the mean of all rows, which takes long for a large table.
    monkeypatch.delattr(PreTrainedModel, "_init_added_embeddings_weights_with_mean")
    model = tiny_language_model("llama", **settings)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    append_row(model, 2)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight[: len(before[name])], before[name]), name
        if len(weight) > len(before[name]):
            assert torch.equal(weight[PAUSE], before[name][2]), name
    assert model.get_output_embeddings().weight.shape == model.get_input_embeddings().weight.shape == (PAUSE + 1, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_beside_frozen_weights_the_row_alone_learns(family: str) -> None:
    model, objective = paused(family).requires_grad_(False), Pause(pauses=3)
    train_last_row(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    weight = model.get_input_embeddings().weight
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        objective.loss(model, batch(objective))[0].backward()
        optimizer.step()
    for name, after in model.state_dict().items():
        assert torch.equal(after[:PAUSE], before[name][:PAUSE]), name
    assert not torch.equal(weight[PAUSE], before[next(n for n, w in model.named_parameters() if w is weight)][PAUSE])


# --- training --------------------------------------------------------------------------------------------------------

TEXT = """
name: paused
size: tiny
precision: fp32
attention: eager
task: {kind: arithmetic, steps: [1, 2], largest: 20, operations: [add, subtract]}
backbone: {hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 2, heads: 2}
stages:
  - {name: cot, objective: {kind: next_token, positions: answer}, steps: 2, evaluate_every: 2, batch_size: 8}
  - &stage
    name: answer_only
    start: cot
    objective: {kind: next_token, positions: answer, chain: none}
    steps: 2
    evaluate_every: 2
    batch_size: 8
  - {<<: *stage, name: pause, objective: {kind: pause, pauses: 2, replaced: 1}}
  - {<<: *stage, name: thought, start: pause, objective: {kind: pause, pauses: 4}}
evaluation: {problems: 12, validation_problems: 6, batch_size: 5, max_latents: 6, max_answer: 5}
threads: 1
"""


def recipe(*overrides: str) -> Recipe:
    return recipes.parse(TEXT, "paused", overrides)


def stage_weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first stage is finished."""
    folder = tmp_path_factory.mktemp("run")
    quiet_train(recipe(), folder, only="cot")
    return folder


def trained(explicit: Path, folder: Path, made: Recipe, *names: str) -> list[Path]:
    """Model folders of stages that start from the explicit chain."""
    shutil.copytree(explicit, folder, dirs_exist_ok=True)
    return [quiet_stage(made, folder, name=name) for name in names]


def test_no_pauses_train_what_answers_alone_train(
    explicit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both then score the same positions, in products of the same shape.
    monkeypatch.setattr("unspoken.methods.coupled.stages.LARGE_VOCABULARY", 0)
    made = recipe("stages.pause.objective={kind: pause, pauses: 0}")
    alone, none = trained(explicit, tmp_path, made, "answer_only", "pause")
    for name, weight in stage_weights(alone).items():
        assert torch.equal(stage_weights(none)[name], weight), name
    assert not system_of(load_model(none)).stop.max_latents


def test_a_curriculum_trains_one_row(explicit: Path, tmp_path: Path) -> None:
    made = recipe()
    first, second = trained(explicit, tmp_path, made, "pause", "thought")
    table, token = "model.embed_tokens.weight", len(made.tokenizer())
    rows = [stage_weights(folder)[table] for folder in (tmp_path / "seed-0" / "cot" / "model", first, second)]
    assert [len(one) for one in rows] == [token, token + 1, token + 1]
    assert not torch.equal(rows[1][token], rows[2][token])
    models = [load_model(folder) for folder in (first, second)]
    assert [system_of(model).stop for model in models] == [StopRule(max_latents=n, fixed=True) for n in (2, 4)]
    for model in models:
        settings = PauseSettings.recorded(model)
        assert settings is not None and settings.token == token
        assert not hasattr(model.generation_config, "latent")


@pytest.mark.parametrize("chain", ["explicit", "none"])
def test_a_model_that_is_trained_further_on_text_forgets_its_pauses(chain: Any, tmp_path: Path) -> None:
    made = recipe()
    stage = replace(made.stage("cot"), objective=NextToken(positions="answer", chain=chain))
    model = stage.objective.build(paused("llama"), context_of(made, stage))
    model.save_pretrained(tmp_path)
    for one in (model, load_model(tmp_path)):
        first = catalogue.systems(one, stage="cot", max_answer=4)[0]
        assert not isinstance(first.reasoner, PauseReasoner)
        assert bool(first.stop.max_latents) == (chain == "explicit")
        assert not hasattr(one.generation_config, "pause")


def test_a_filler_is_an_ordinary_token_and_adds_no_row() -> None:
    made = recipe("stages.pause.objective={kind: pause, pauses: 2, filler: .}", "stages.thought.start=cot")
    stage, tokenizer = made.stage("pause"), made.tokenizer()
    context = context_of(made, stage)
    model = stage.objective.build(None, context)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    settings = PauseSettings.recorded(model)
    assert settings is not None and tokenizer.decode([settings.token]) == "."
    (text,) = tokenizer.batch_decode(stage.objective.collate(context)(np.arange(1))["input_ids"])
    assert "<think>..</think>" in text.replace(" ", "")


def test_on_a_pretrained_model_with_adapters_the_row_is_the_only_new_one(tmp_path: Path) -> None:
    tokenizer = recipe().tokenizer()
    base = tiny_language_model("llama", vocab_size=len(tokenizer), max_position_embeddings=128)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    made = recipe(
        f"backbone={tmp_path / 'base'}",
        "stages.pause.start=null",
        "stages.pause.objective={kind: pause, pauses: 2}",
        "stages.thought.start=cot",
        "stages.pause.lora={rank: 4}",
        "stages.pause.optimizer={name: adamw, lr: 0.01, lr_rest: null, warmup_steps: 0}",
    )
    after, before = stage_weights(quiet_stage(made, tmp_path, name="pause")), base.state_dict()
    table, token = "model.embed_tokens.weight", len(tokenizer)
    assert torch.equal(after[table][:token], before[table])
    assert not torch.equal(after[table][token], before[table][context_of(made, made.stages[0]).markers.open[-1]])
    assert torch.equal(after["lm_head.weight"][:token], before["lm_head.weight"])
    matrix = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(after[matrix], before[matrix])


def test_a_plan_counts_the_pauses() -> None:
    none, four = (
        {one["stage"]: one for one in plan(recipe(f"stages.thought.objective.pauses={pauses}"))["models"]}
        for pauses in (0, 4)
    )
    assert none["thought"]["tokens"] == none["answer_only"]["tokens"]
    assert four["thought"]["tokens"] == none["thought"]["tokens"] + 16 * 4
    assert four["thought"]["parameters"] == four["cot"]["parameters"] + 32
    assert none["thought"]["flops"] < four["thought"]["flops"] < 1.5 * none["thought"]["flops"]


def test_the_shipped_recipe_trains_as_many_pauses_as_codi_has_latents() -> None:
    made = recipes.load("arithmetic-codi", "tiny")
    names = ("codi", "pause", "filler")
    assert {made.steps(made.stage(name)) for name in names} == {300}
    assert {made.stage(name).start for name in names} == {"pretrain"}
    objectives: list[Any] = [made.stage(name).objective for name in names]
    assert objectives[0].latents == objectives[1].pauses == objectives[2].pauses


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pause(pauses=-1), "pauses is -1"),
        (lambda: Pause(replaced=-1), "replaced -1"),
        (lambda: batch_of([], PAD), "the batch is empty"),
        (lambda: recipe("stages.thought.objective.filler=."), "filler is '.', but None in 'pause'"),
        (lambda: recipe("stages.thought.objective.replaced=0"), "replaced is 0, but 1 in 'pause'"),
        (
            lambda: recipe("stages.pause.objective={kind: pause}", "stages.thought.objective.replaced=1"),
            "replaced is 1, but None in 'pause'",
        ),
        (
            lambda: recipe("stages.pause.lora={rank: 4}", "stages.pause.optimizer={weight_decay: 0.1}"),
            r"weight_decay is 0\.1",
        ),
        (
            lambda: Pause(filler="5+3").token(context_of(recipe(), recipe().stage("pause"))),
            "'5\\+3', which is 3 tokens",
        ),
    ],
)
def test_one_line_says_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_without_chains_between_markers_there_is_nothing_to_pause_in() -> None:
    assert "pause" in recipes.learnable(recipe().task)
    assert "pause" not in recipes.learnable(TreeSearchConfig())


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(Pause, "methods/pause.md")


def test_settings_end_where_they_say() -> None:
    check_ranges(Pause, {"pauses": ([0], [-1]), "replaced": ([0, 1], [-1])})


def test_what_is_read_is_what_recorded_runs_read() -> None:
    assert batch_digest("arithmetic-codi", "pause") == "4a97f5653d4e"
    assert batch_digest("arithmetic-codi", "filler") == "878fea6ce266"


def test_stages_and_what_they_take_are_the_recorded_ones() -> None:
    check_plans("arithmetic-codi tiny")
    check_default_stages("pause")


@pytest.mark.parametrize(("replaced", "left"), [(None, 0.0), (0, 12.0), (1, 9.0), (9, 0.0)])
def test_a_row_takes_one_pass_over_prompt_pauses_and_what_is_left(replaced: int | None, left: float) -> None:
    lengths = Lengths(prompt=10, chain=12, end=1, answer=3, steps=4)
    model: Any = tiny_language_model("llama")
    cost = Pause(pauses=5, replaced=replaced).row_cost(model, lengths, None)  # type: ignore[arg-type]
    (one,), (scores,) = cost.passes, cost.scores
    assert cost.tokens == one.positions == 10 + 5 + 1 + left + 3
    assert scores.made == scores.supervised == left + 3
    for steps in (0.5, 1.0):  # one step is all of a chain
        few = Pause(pauses=5, replaced=1).row_cost(model, replace(lengths, steps=steps), None)  # type: ignore[arg-type]
        assert few.tokens == 10 + 5 + 1 + 3
