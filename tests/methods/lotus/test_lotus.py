"""LOTUS against a loop that has no cache, no padding and no positions, and the identities of its specification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import LatentConformance, left_padded
from latent_models import MARKERS, SPANS, around, assert_same_gradients, gradients, outputs_of
from recorded import batch_digest, check_default_stages, check_plans
from safetensors.torch import load_file
from settings_checks import check_defaults, check_ranges, check_recorded
from tiny_drills import drilled
from tiny_models import FAMILIES, PAD, VOCABULARY, prompts, tiny_language_model
from tiny_recipe import quiet_stage, quiet_train
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig

from unspoken.chain import StopReason
from unspoken.evaluation.cost import counted
from unspoken.methods import catalogue
from unspoken.methods.loading import load_model
from unspoken.methods.lotus.configuration import LotusConfig
from unspoken.methods.lotus.model import LotusForCausalLM
from unspoken.methods.lotus.objective import batch_of
from unspoken.methods.lotus.stages import Lotus
from unspoken.reasoning.engine import Reasoner, StopRule
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.spans import Spans
from unspoken.training import recipe as recipes
from unspoken.training.context import context_of
from unspoken.training.plan import plan

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
QUICK = ("unspoken", "gpt2")
EVERY = [pytest.param(family, marks=() if family in QUICK else pytest.mark.slow) for family in FAMILIES]
OBJECTIVE = Lotus(replaced=2, latents_per_step=2)


def lotus(family: str = "unspoken", attention: str = "eager", *, latents: int = 4, **settings: Any) -> LotusForCausalLM:
    own = {"iterations": 2, **{name: settings.pop(name) for name in ("iterations", "add_row") if name in settings}}
    base = settings.pop("base", None) or tiny_language_model(family, attention, **settings)
    model = around(LotusForCausalLM, base, latents=latents, **own)
    # What the marker is at the first block, which may not be its row of the table.
    assert torch.equal(model.latent_row, base.get_input_embeddings()(torch.tensor(MARKERS.open[-1])))
    with torch.no_grad():
        model.latent_row *= 1.5  # no row of the table any more
    return model


def batch(spans: Sequence[Spans] = SPANS, objective: Lotus = OBJECTIVE) -> dict[str, Any]:
    return batch_of(objective, spans, MARKERS, PAD)


def read(model: LotusForCausalLM, given: dict[str, Any]) -> Any:
    return outputs_of(
        model, {name: part for name, part in given.items() if name not in ("step_ids", "step_mask", "cut")}
    )


def naive_latents(model: LotusForCausalLM, prompt: Tensor, count: int) -> Tensor:
    """Latents ``[N, D]`` of one row; each pass reads the prompt anew."""
    before, latents = model.get_input_embeddings()(prompt[None]), model.latent_row.expand(count, -1)
    for _ in range(model.config.iterations):
        inputs = torch.cat([before, latents[None]], dim=1)
        hidden = model.decoder.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, -count:]
        latents = hidden + model.latent_row if model.config.add_row else hidden
    return latents


def naive_losses(model: LotusForCausalLM, spans: Sequence[Spans]) -> tuple[Tensor, Tensor]:
    """Of the text, and of what latents stand for."""
    embed, texts, steps = model.get_input_embeddings(), [], []
    for row in spans:
        prompt = torch.tensor(row.prompt + MARKERS.open)
        text = torch.tensor(OBJECTIVE.text(row))
        latents = naive_latents(model, prompt, 4)
        inputs = torch.cat([embed(prompt), latents, embed(torch.tensor(MARKERS.end)), embed(text)])
        scores = model.decoder(inputs_embeds=inputs[None], use_cache=False).logits[0]
        texts.append(F.cross_entropy(scores[-len(text) - 1 : -1], text, reduction="none"))
        for block, step in enumerate(row.steps[:2]):
            for place, token in enumerate(step[:2]):
                output = scores[len(prompt) - 1 + 2 * block + place]
                steps.append(F.cross_entropy(output, torch.tensor(token)))
    return torch.cat(texts).mean(), torch.stack(steps).mean()


# --- the shared engine -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[*EVERY, pytest.param("llama-sdpa", marks=pytest.mark.slow)])
def reasoner(request: pytest.FixtureRequest) -> Reasoner:
    family, _, attention = request.param.partition("-")
    return lotus(family, attention or "eager").reasoner()


class TestConformance(LatentConformance):
    def expected(self, reasoner: Any, prompt_T: Tensor, stop: StopRule) -> tuple[Tensor, StopReason]:
        with torch.no_grad():
            latents = naive_latents(reasoner.model, prompt_T, stop.max_latents)
        return latents, StopReason.FIXED if stop.fixed else StopReason.CAP


@torch.no_grad()
def test_without_iterations_the_latents_are_pause_tokens() -> None:
    model = lotus("gpt2", iterations=0)
    model.latent_row.copy_(model.get_input_embeddings().weight[9])
    text = torch.tensor([MARKERS.open]).expand(6, -1), torch.full((6, 4), 9), torch.tensor([MARKERS.end]).expand(6, -1)
    answer = model.system(name="lotus", max_tokens=1).respond(prompts())
    ids = torch.cat([prompts(), *text], dim=1)
    assert torch.equal(answer.tokens[:, 0], model.decoder(ids).logits[:, -1].argmax(dim=-1))
    out = read(model, batch())
    for row, spans in enumerate(SPANS):
        ids = torch.tensor([[*spans.prompt, *MARKERS.open, 9, 9, 9, 9, *MARKERS.end, *OBJECTIVE.text(spans)]])
        expected, prompt = model.decoder(ids).logits[0], len(spans.prompt + MARKERS.open)
        torch.testing.assert_close(out.latent_logits[row], expected[prompt - 1 : prompt + 3], **CLOSE)
        length = len(MARKERS.end + OBJECTIVE.text(spans))
        torch.testing.assert_close(out.logits[row, :length], expected[-length:], **CLOSE)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", pytest.param("sdpa", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize(("iterations", "add_row"), [(1, True), (3, True), (2, False)])
def test_a_padded_batch_is_the_naive_loop_in_latents_loss_and_gradients(
    family: str, attention: str, iterations: int, add_row: bool
) -> None:
    model, given = lotus(family, attention, iterations=iterations, add_row=add_row), batch()
    for latents, row in zip(read(model, given).latents, SPANS, strict=True):
        expected = naive_latents(model, torch.tensor(row.prompt + MARKERS.open), 4)
        torch.testing.assert_close(latents, expected, **CLOSE)
    loss, terms = replace(OBJECTIVE, latent_weight=0.7).loss(model, given)
    text, latent = naive_losses(model, SPANS)
    torch.testing.assert_close(terms["token_loss"], text, **CLOSE)
    torch.testing.assert_close(terms["latent_loss"], latent, **CLOSE)
    theirs = gradients(text + 0.7 * latent, model)
    assert all(gradient.abs().max() > 1e-5 for gradient in theirs.values())
    assert_same_gradients(gradients(loss, model), theirs)


@torch.no_grad()
def test_the_output_before_the_first_latent_is_that_of_the_first_pass() -> None:
    model, given = lotus("llama", iterations=3), batch()
    for row, spans in enumerate(SPANS):
        prompt = torch.tensor([spans.prompt + MARKERS.open])
        expected = model.decoder(prompt, use_cache=False).logits[0, -1]
        torch.testing.assert_close(read(model, given).latent_logits[row, 0], expected, **CLOSE)


@pytest.mark.parametrize("iterations", [0, 1, 3])
@torch.no_grad()
def test_later_passes_read_the_last_token_of_the_prompt_again(iterations: int) -> None:
    model, given, widths = lotus("llama", iterations=iterations), batch(), list[int]()
    model.decoder.base_model.register_forward_pre_hook(
        lambda _, __, how: widths.append(how["inputs_embeds"].shape[1]), with_kwargs=True
    )
    read(model, given)
    prompt, text = given["input_ids"].shape[1], given["text_ids"].shape[1]
    passes = [prompt + 4, *[1 + 4] * iterations]
    assert widths == [*passes[:-1], passes[-1] + text]


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_a_row_is_the_same_alone_and_with_more_padding(family: str) -> None:
    model, given = lotus(family), batch()
    wide = given | {
        "input_ids": F.pad(given["input_ids"], (2, 0), value=9),
        "attention_mask": F.pad(given["attention_mask"], (2, 0)),
        "text_ids": F.pad(given["text_ids"], (0, 3), value=9),
        "text_mask": F.pad(given["text_mask"], (0, 3)),
    }
    together, padded = read(model, given), read(model, wide)
    for row, spans in enumerate(SPANS):
        alone, length = read(model, batch([spans])), len(MARKERS.end + OBJECTIVE.text(spans))
        for out in (together, padded):
            torch.testing.assert_close(out.logits[row, :length], alone.logits[0, :length], rtol=1e-4, atol=5e-5)
            torch.testing.assert_close(out.latent_logits[row], alone.latent_logits[0], rtol=1e-4, atol=5e-5)


def test_latents_stand_for_the_tokens_of_their_steps() -> None:
    given = batch()
    assert given["step_ids"].tolist() == [[13, 14, 15, PAD], [16, 17, PAD, PAD], [19, PAD, 18, 3]]
    assert given["step_mask"].sum(dim=1).tolist() == [3, 2, 3]
    assert given["cut"] == 0
    # One token a step: the rest of it is cut off.
    short = batch(objective=replace(OBJECTIVE, latents_per_step=1))
    assert short["step_ids"].tolist() == [[13, 15], [16, PAD], [19, 18]]
    assert short["cut"] == pytest.approx(3 / 3)
    made = drilled("words")
    context, objective = context_of(made, made.stage("lotus")), Lotus(replaced=3, latents_per_step=13)
    problems = context.sample(np.arange(20))
    spans = context.task.spans(problems, context.prompt_format)
    form = PromptFormat(tokenizer=context.tokenizer)
    read_back = batch_of(objective, spans, form.markers, PAD)
    for row, problem in enumerate(problems):
        tokens = read_back["step_ids"][row][read_back["step_mask"][row]]
        assert form.tokenizer.decode(tokens) == problem.chains[0]
    assert read_back["cut"] == 0


# --- answering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_it_thinks_and_answers_as_training_had_it(family: str) -> None:
    model = lotus(family)
    rows = [row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]
    mine = model.system(name="lotus", max_tokens=4)
    answer = mine.respond(*left_padded(rows))
    output = [tuple(tokens[:length].tolist()) for tokens, length in zip(answer.tokens, answer.lengths, strict=True)]
    spans = [Spans(prompt=tuple(row.tolist()), steps=(), answer=text) for row, text in zip(rows, output, strict=True)]
    given = batch(spans)
    out = read(model, given)
    torch.testing.assert_close(answer.chain.latents, out.latents, **CLOSE)
    likely = out.logits.argmax(dim=-1)[:, :-1][given["target_mask"][:, 1:]]
    assert torch.equal(likely, given["text_ids"][given["target_mask"]])
    assert torch.equal(mine.respond(*left_padded(rows), chain=answer.chain).tokens, answer.tokens)
    swapped = mine.respond(*left_padded(rows), chain=answer.chain.with_latents(answer.chain.latents.flip(0)))
    assert not torch.equal(swapped.filled(PAD, 4), answer.filled(PAD, 4))


@torch.no_grad()
def test_layers_that_see_a_window_go_back_too() -> None:
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        max_position_embeddings=64,
    )
    base = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model = lotus(base=base, iterations=3)
    text, latent = naive_losses(model, SPANS)
    _, terms = OBJECTIVE.loss(model, batch())
    torch.testing.assert_close(terms["token_loss"], text, **CLOSE)
    torch.testing.assert_close(terms["latent_loss"], latent, **CLOSE)


@torch.no_grad()
def test_passes_do_not_depend_on_the_number_of_latents() -> None:
    model = lotus("llama", iterations=3)
    system, widths = model.system(name="lotus", max_tokens=3), list[int]()
    system.reasoner.stack.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["inputs_embeds"].shape[1]), with_kwargs=True
    )
    answer = system.respond(prompts(rows=1))
    read_with_the_prompt = prompts().shape[1] + len(MARKERS.open) + 4
    assert widths[:4] == [read_with_the_prompt, 4, 4, 4]
    cost = counted(system, torch.tensor([prompts().shape[1]]), answer)
    assert cost["sequential_passes"] == len(widths) + len(MARKERS.open)
    assert cost["latent_positions"] == 4 * (3 + 1)
    assert system.sequential_passes(78, 5) == system.sequential_passes(4, 5)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_folder_is_loaded_completely(tied: bool, tmp_path: Path) -> None:
    model = lotus("llama", tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, LotusForCausalLM)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    (one,), (two,) = (catalogue.systems(each, stage="lotus", max_answer=4) for each in (model, loaded))
    assert (one.opening, one.stop, one.iterations) == (two.opening, two.stop, two.iterations)
    assert torch.equal(one.respond(prompts()).tokens, two.respond(prompts()).tokens)


@torch.no_grad()
def test_half_precision_is_close() -> None:
    model = lotus("llama")
    expected = model.system(name="lotus", max_tokens=4).respond(prompts()).chain.latents
    half = model.to(torch.bfloat16).system(name="lotus", max_tokens=4).respond(prompts()).chain.latents
    assert half.dtype == torch.bfloat16
    assert (half - expected).norm() / expected.norm() < 0.1


# --- training --------------------------------------------------------------------------------------------------------


def test_a_curriculum_keeps_the_latent_row(tmp_path: Path) -> None:
    made = drilled("words")
    quiet_train(made, tmp_path, only="cot")
    quiet_stage(made, tmp_path, name="loop")
    first = load_file(tmp_path / "seed-0" / "loop" / "model" / "model.safetensors")
    started = context_of(made, made.stage("lotus"))
    model = made.stage("lotus").objective.build(load_model(tmp_path / "seed-0" / "loop" / "model"), started)
    assert all(torch.equal(weight, first[name]) for name, weight in model.state_dict().items() if name in first)
    folder = quiet_stage(made, tmp_path, name="lotus")
    last = load_file(folder / "model.safetensors")
    assert all(not torch.equal(weight, first[name]) for name, weight in last.items())
    (mine,) = catalogue.systems(load_model(folder), stage="lotus", max_answer=5)
    assert (mine.stop, mine.iterations) == (StopRule(max_latents=4, fixed=True), 1)


def test_a_plan_counts_every_iteration() -> None:
    flops = {}
    for count in (1, 2):
        stages = plan(drilled("words", None, f"stages.lotus.objective.iterations={count}"))["models"]
        flops[count] = next(one for one in stages if one["stage"] == "lotus")["flops"]
    assert 1.01 * flops[1] < flops[2] < 1.2 * flops[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lotus(replaced=0), "replaced is 0"),
        (lambda: Lotus(replaced=1, iterations=-1), "iterations is -1"),
        (lambda: drilled("words", None, "stages.loop.objective.replaced=3"), "later stages replace more"),
        (lambda: drilled("words", None, "attention=flex_attention"), "growing cache"),
    ],
)
def test_a_refusal_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_the_shipped_recipe_trains_answers_alone_as_long() -> None:
    made = recipes.load("arithmetic-lotus", "tiny")
    assert made.steps(made.stage("answer_only")) == sum(
        made.steps(made.stage(name)) for name in ("cot", "loop", "lotus")
    )


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(Lotus, "methods/lotus.md")
    check_recorded(LotusConfig)


def test_settings_end_where_they_say() -> None:
    counts: dict[str, Any] = {"replaced": ([1], [0]), "latents_per_step": ([1], [0]), "iterations": ([0], [-1])}
    check_ranges(Lotus, {**counts, "latent_weight": ([0.0], [-0.01])}, replaced=1)


def test_what_is_read_is_what_recorded_runs_read() -> None:
    assert batch_digest("arithmetic-lotus", "loop") == "88705d43e167"
    assert batch_digest("arithmetic-lotus", "lotus") == "fbf29b220988"


def test_stages_and_what_they_take_are_the_recorded_ones() -> None:
    check_plans("arithmetic-lotus tiny")
    check_default_stages("lotus")
