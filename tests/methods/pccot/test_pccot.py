"""PCCoT against a loop that has no cache, no padding and no positions, and the identities of its specification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import CAP, LatentConformance, left_padded
from latent_models import BOX, MARKERS, NARROW, SPANS, around, assert_same_gradients, gradients, outputs_of
from recorded import batch_digest, check_default_stages, check_plans
from safetensors.torch import load_file, save_file
from settings_checks import check_defaults, check_ranges, check_recorded
from tiny_models import FAMILIES, PAD, VOCABULARY, enliven, prompts, tiny_language_model
from tiny_recipe import quiet_stage, quiet_train
from torch import Tensor
from transformers import AutoModelForCausalLM, Mamba2Config, MistralConfig, PreTrainedModel

from unspoken.backbone.vocabulary import embedding_table
from unspoken.evaluation.cost import counted
from unspoken.methods import catalogue
from unspoken.methods.codi.model import CodiForCausalLM
from unspoken.methods.codi.stages import Codi
from unspoken.methods.distillation_loss import batch_of
from unspoken.methods.loading import load_model
from unspoken.methods.pccot.configuration import PccotConfig
from unspoken.methods.pccot.model import PccotForCausalLM
from unspoken.methods.pccot.stages import Pccot
from unspoken.reasoning.engine import LatentStep, Reasoner, StopRule
from unspoken.reasoning.flops import multiplied, stack_flops
from unspoken.reasoning.picking import Sampler
from unspoken.serving.batch import Batch, Job, Progress
from unspoken.tasks.spans import Spans
from unspoken.training import recipe as recipes
from unspoken.training.plan import plan
from unspoken.training.recipe import Recipe

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
LATENTS = 4
# One family with rotary positions and one with absolute ones is quick; the others are slow tests.
QUICK = ("unspoken", "gpt2")
EVERY = [pytest.param(family, marks=() if family in QUICK else pytest.mark.slow) for family in FAMILIES]


def pccot(
    family: str = "unspoken",
    attention: str = "eager",
    *,
    iterations: int = 2,
    projection: dict[str, Any] | None = NARROW,
    base: PreTrainedModel | None = None,
    **settings: Any,
) -> PccotForCausalLM:
    base = tiny_language_model(family, attention, **settings) if base is None else base
    return around(PccotForCausalLM, base, latents=LATENTS, projection=projection, iterations=iterations)


def codi(family: str = "unspoken", projection: dict[str, Any] | None = NARROW) -> CodiForCausalLM:
    return around(CodiForCausalLM, tiny_language_model(family), latents=LATENTS, projection=projection)


def batch(spans: Sequence[Spans] = SPANS) -> dict[str, Any]:
    return batch_of(spans, MARKERS, BOX, latents=LATENTS, last_step=False, pad_id=PAD)


def naive_latents(model: PccotForCausalLM, prompt: Tensor, iterations: int, *, cut: bool = False) -> list[Tensor]:
    """Latents ``[N, D]`` of every pass over one row; each pass reads the prompt anew."""
    before = model.get_input_embeddings()(prompt[None])
    chains = [model.latent_row.expand(LATENTS, -1)]
    for _ in range(iterations):
        inputs = torch.cat([before, chains[-1][None]], dim=1)
        hidden = model.decoder.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        hidden = hidden[0, -LATENTS - 1 : -1]
        chains.append(model.latent(hidden.detach() if cut else hidden))
    return chains


def naive_terms(model: PccotForCausalLM, spans: Sequence[Spans], *, cut: bool = False) -> dict[str, Tensor]:
    decoder, embed = model.decoder, model.get_input_embeddings()
    student_losses, teacher_losses, own, expected = [], [], [], []
    for row in spans:
        prompt = torch.tensor(row.prompt + MARKERS.open)
        latents = naive_latents(model, prompt, model.config.iterations, cut=cut)[-1]
        text = embed(torch.tensor([MARKERS.end + row.answer]))
        inputs = torch.cat([embed(prompt[None]), latents[None], text], dim=1)
        student = decoder(inputs_embeds=inputs, use_cache=False, output_hidden_states=True)
        chain = tuple(token for step in row.steps[:-1] for token in step)
        ids = torch.tensor([row.prompt + MARKERS.open + chain + MARKERS.end + row.answer])
        teacher = decoder(input_ids=ids, use_cache=False, output_hidden_states=True)
        answer, learned = torch.tensor(row.answer), len(chain + MARKERS.end + row.answer)
        student_losses.append(F.cross_entropy(student.logits[0, -len(answer) - 1 : -1], answer, reduction="none"))
        teacher_losses.append(
            F.cross_entropy(teacher.logits[0, -learned - 1 : -1], ids[0, -learned:], reduction="none")
        )
        column = -len(row.answer) + len(BOX) - 1  # the next token is the first of the value
        # The input of the first block is not compared.
        own.append(torch.stack([state[0, column] for state in student.hidden_states[1:]]))
        expected.append(torch.stack([state[0, column] for state in teacher.hidden_states[1:]]).detach())
    layers = [
        F.smooth_l1_loss(one, other) / other.std()
        for one, other in zip(torch.stack(own, dim=1), torch.stack(expected, dim=1), strict=True)
    ]
    return {
        "student_loss": torch.cat(student_losses).mean(),
        "teacher_loss": torch.cat(teacher_losses).mean(),
        "distance": torch.stack(layers).mean(),
    }


# --- the shared engine -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[*EVERY, pytest.param("llama-sdpa", marks=pytest.mark.slow)])
def reasoner(request: pytest.FixtureRequest) -> Reasoner:
    family, _, attention = request.param.partition("-")
    # With as many iterations as latents the chain is the sequential one, which the suite expects.
    return pccot(family, attention or "eager", iterations=CAP).reasoner()


class TestConformance(LatentConformance):
    """Nothing but what every model with a fixed number of latents has."""


# --- identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_after_some_iterations_as_many_latents_are_the_sequential_chain_s(family: str) -> None:
    expected = codi(family).system(name="codi", max_tokens=4).respond(prompts())
    for iterations in range(LATENTS + 3):
        answer = pccot(family, iterations=iterations).system(name="pccot", max_tokens=4).respond(prompts())
        difference = (answer.chain.latents - expected.chain.latents).abs().amax(dim=(0, 2))
        assert (difference[:iterations] < 1e-4).all()
        assert (difference[iterations:] > 1e-2).all()
        same = torch.equal(answer.filled(PAD, 4), expected.filled(PAD, 4))
        assert same or iterations < LATENTS
        assert answer.chain.lengths.tolist() == [LATENTS] * 6


def test_as_many_iterations_as_latents_learn_as_codi_does() -> None:
    sequential, given = codi("qwen2"), batch()
    objective = Codi(latents=LATENTS, distance_weight=0.0)
    expected, terms = objective.loss(sequential, given)
    theirs = gradients(expected, sequential)
    for iterations in (LATENTS, LATENTS + 1):
        model = pccot("qwen2", iterations=iterations)
        loss, own = Pccot(latents=LATENTS, iterations=iterations, distance_weight=0.0).loss(model, given)
        torch.testing.assert_close(loss, expected, **CLOSE)
        ours = gradients(loss, model)
        assert not ours.pop("latent_row").any()  # nothing of the guess is left
        assert_same_gradients(ours, theirs)
        # CODI compares the input of the first block too, where both sequences have the same token.
        torch.testing.assert_close(own["distance"] * 2 / 3, terms["distance"], **CLOSE)
        assert (own["residual"] < 1e-4) == (iterations > LATENTS)


@torch.no_grad()
def test_one_latent_needs_one_iteration() -> None:
    stop = StopRule(max_latents=1, fixed=True)
    expected = codi("gpt2").system(name="codi", max_tokens=4).respond(prompts(), stop=stop)
    answer = pccot("gpt2", iterations=1).system(name="pccot", max_tokens=4).respond(prompts(), stop=stop)
    torch.testing.assert_close(answer.chain.latents, expected.chain.latents, **CLOSE)
    assert torch.equal(answer.tokens, expected.tokens)


@torch.no_grad()
def test_without_iterations_the_latents_are_pause_tokens() -> None:
    # The latent row is that of a token, so a language model reads the same as text.
    model = pccot("gpt2", iterations=0, projection=None)
    model.latent_row.copy_(model.get_input_embeddings().weight[9])
    pauses = torch.full((6, LATENTS), 9)
    text = torch.tensor([MARKERS.open]).expand(6, -1), pauses, torch.tensor([MARKERS.end]).expand(6, -1)
    ids = torch.cat([prompts(), *text], dim=1)
    answer = model.system(name="pccot", max_tokens=1).respond(prompts())
    assert torch.equal(answer.tokens[:, 0], model.decoder(ids).logits[:, -1].argmax(dim=-1))
    out = outputs_of(model, batch())
    for row, spans in enumerate(SPANS):
        ids = torch.tensor([*spans.prompt, *MARKERS.open, *[9] * LATENTS, *MARKERS.end, *spans.answer])
        length = len(MARKERS.end + spans.answer)
        assert out.logits is not None
        torch.testing.assert_close(out.logits[row, :length], model.decoder(ids[None]).logits[0, -length:], **CLOSE)


@torch.no_grad()
def test_a_changed_latent_is_fed_back_as_in_the_sequential_chain() -> None:
    def intervene(step: LatentStep, number: int) -> LatentStep:
        latent = step.latent + number
        return replace(step, latent=latent, next_input=latent)

    expected = codi("llama").system(name="codi", max_tokens=4).respond(prompts(), intervene=intervene)
    mine = pccot("llama", iterations=LATENTS).system(name="pccot", max_tokens=4)
    answer = mine.respond(prompts(), intervene=intervene)
    torch.testing.assert_close(answer.chain.latents, expected.chain.latents, **CLOSE)
    assert torch.equal(answer.tokens, expected.tokens)
    assert (mine.respond(prompts()).chain.latents - answer.chain.latents).abs().max() > 0.5


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", pytest.param("sdpa", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("iterations", [1, 3])
def test_a_padded_batch_is_the_naive_loop_in_latents_loss_and_gradients(
    family: str, attention: str, iterations: int
) -> None:
    model, given = pccot(family, attention, iterations=iterations), batch()
    out = outputs_of(model, given)
    chains = [naive_latents(model, torch.tensor(row.prompt + MARKERS.open), iterations) for row in SPANS]
    assert out.latents is not None and out.residual is not None
    for latents, expected in zip(out.latents, chains, strict=True):
        torch.testing.assert_close(latents, expected[-1], **CLOSE)
    changes = [(after - before).norm() / after.norm() for *_, before, after in chains]
    torch.testing.assert_close(out.residual, torch.stack(changes).mean(), **CLOSE)
    loss, terms = Pccot(latents=LATENTS, iterations=iterations).loss(model, given)
    values = naive_terms(model, SPANS)
    for name, value in values.items():
        torch.testing.assert_close(terms[name], value, **CLOSE)
    assert "distance_0" not in terms
    total = torch.stack([*values.values()]).sum()
    torch.testing.assert_close(loss, total, **CLOSE)
    theirs = gradients(total, model)
    assert all(gradient.abs().max() > 1e-5 for gradient in theirs.values())
    assert_same_gradients(gradients(loss, model), theirs)


def test_a_cut_gradient_ends_at_the_pass_before() -> None:
    model, given = pccot("llama"), batch()
    loss, _ = Pccot(latents=LATENTS, iterations=2, cut_gradient=True).loss(model, given)
    through, _ = Pccot(latents=LATENTS, iterations=2).loss(model, given)
    torch.testing.assert_close(loss, through, **CLOSE)
    ours = gradients(loss, model)
    assert_same_gradients(ours, gradients(torch.stack([*naive_terms(model, SPANS, cut=True).values()]).sum(), model))
    name = "decoder.model.layers.0.mlp.up_proj.weight"
    assert (gradients(through, model)[name] - ours[name]).abs().max() > 0.05 * ours[name].abs().max()


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_a_row_is_the_same_alone_and_with_more_padding(family: str) -> None:
    model, given = pccot(family), batch()
    wide = given | {
        "input_ids": F.pad(given["input_ids"], (2, 0), value=9),
        "attention_mask": F.pad(given["attention_mask"], (2, 0)),
        "text_ids": F.pad(given["text_ids"], (0, 3), value=9),
        "text_mask": F.pad(given["text_mask"], (0, 3)),
    }
    together, padded = outputs_of(model, given), outputs_of(model, wide)
    for row, spans in enumerate(SPANS):
        alone = outputs_of(model, batch([spans]))
        length = len(MARKERS.end + spans.answer)
        assert alone.logits is not None and alone.states is not None
        for out in (together, padded):
            assert out.logits is not None and out.states is not None
            torch.testing.assert_close(out.logits[row, :length], alone.logits[0, :length], rtol=1e-4, atol=5e-5)
            torch.testing.assert_close(out.states[:, row], alone.states[:, 0], **CLOSE)


# --- answering -------------------------------------------------------------------------------------------------------


def ragged() -> list[Tensor]:
    return [row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_it_thinks_and_answers_as_training_had_it(family: str) -> None:
    model, rows = pccot(family), ragged()
    mine = model.system(name="pccot", max_tokens=4)
    answer = mine.respond(*left_padded(rows))
    output = [tokens[:length].tolist() for tokens, length in zip(answer.tokens, answer.lengths, strict=True)]
    spans = [
        Spans(prompt=tuple(row.tolist()), steps=(), answer=tuple(tokens))
        for row, tokens in zip(rows, output, strict=True)
    ]
    given = batch(spans)
    out = outputs_of(model, given)
    torch.testing.assert_close(answer.chain.latents, out.latents, **CLOSE)
    # Greedy tokens are the most likely ones in the parallel pass over themselves.
    assert out.logits is not None
    likely = out.logits.argmax(dim=-1)[:, :-1][given["target_mask"][:, 1:]]
    assert torch.equal(likely, given["text_ids"][given["target_mask"]])
    again = mine.respond(*left_padded(rows), chain=answer.chain)
    assert torch.equal(again.tokens, answer.tokens)
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
    enliven(base, "llama")
    model, given = pccot(base=base, iterations=3), batch()
    out = outputs_of(model, given)
    system = model.system(name="pccot", max_tokens=3)
    for row, spans in enumerate(SPANS):
        expected = naive_latents(model, torch.tensor(spans.prompt + MARKERS.open), 3)[-1]
        assert out.latents is not None
        torch.testing.assert_close(out.latents[row], expected, **CLOSE)
        answer = system.respond(torch.tensor([spans.prompt]))
        torch.testing.assert_close(answer.chain.latents[0], expected, **CLOSE)
        given_chain = system.respond(torch.tensor([spans.prompt]), chain=answer.chain)
        assert torch.equal(given_chain.tokens, answer.tokens)


def test_a_model_with_a_recurrent_state_is_refused() -> None:
    config = Mamba2Config(
        vocab_size=VOCABULARY, hidden_size=16, num_heads=4, head_dim=8, n_groups=2, state_size=8, num_hidden_layers=1
    )
    with pytest.raises(ValueError, match="recurrent state, which cannot go back") as refusal:
        PccotForCausalLM(PccotConfig(base_config=config))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("piece", [512, 2])  # at once, and in pieces between the steps of the others
@torch.no_grad()
def test_a_server_s_rows_answer_as_they_do_alone(piece: int) -> None:
    model = pccot("llama")
    system = model.system(name="pccot", max_tokens=5)
    progress: list[list[Progress]] = []
    served = Batch(system.reasoner, piece)

    def join(rows: list[Tensor]) -> None:
        jobs = []
        for row in rows:
            decoding = system.speaker.decoding(5)  # type: ignore[union-attr]
            jobs.append(Job((*row.tolist(), *system.opening), system.stop, decoding))
            progress.append([])
            jobs[-1].report = progress[-1].append
        served.join(jobs)

    rows = ragged()
    join(rows[:2])
    for first in (2, 3, 5):
        served.step()
        join(rows[first : {2: 3, 3: 5, 5: 6}[first]])
    while served.rows:
        served.step()
    for row, reports in zip(rows, progress, strict=True):
        alone = system.respond(row[None])
        tokens = [token for report in reports for token in report.tokens]
        assert tokens == alone.tokens[0, : int(alone.lengths[0])].tolist()
        assert reports[-1].over and reports[-1].latents == LATENTS


@torch.no_grad()
def test_answers_are_drawn() -> None:
    system = pccot().system(name="pccot", max_tokens=4)
    generators = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    one, two = (system.respond(prompts(), sample=Sampler(3.0, generator)) for generator in generators)
    assert torch.equal(one.chain.latents, two.chain.latents)
    assert not torch.equal(one.filled(PAD, 4), two.filled(PAD, 4))


# --- cost ------------------------------------------------------------------------------------------------------------


@contextmanager
def columns_read(stack: PreTrainedModel) -> Iterator[list[int]]:
    """New columns of every pass of a stack."""
    widths: list[int] = []
    hook = stack.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["inputs_embeds"].shape[1]), with_kwargs=True
    )
    yield widths
    hook.remove()


@pytest.mark.parametrize("iterations", [0, 1, 3])
@torch.no_grad()
def test_passes_one_after_another_and_positions_in_parallel_are_counted_apart(iterations: int) -> None:
    model = pccot("llama", iterations=iterations)
    system = model.system(name="pccot", max_tokens=3)
    prompt = prompts(rows=1)
    with columns_read(system.reasoner.stack) as widths:
        answer = system.respond(prompt)
    before, tokens = prompt.shape[1] + len(MARKERS.open), int(answer.lengths[0])
    blocks = [before + LATENTS, *[LATENTS] * iterations]
    assert widths == [*blocks, *[1] * (len(MARKERS.end) + tokens - 1)]
    cost = counted(system, torch.tensor([prompt.shape[1]]), answer)
    # As everywhere, the opening counts as if the model had written it.
    assert cost["sequential_passes"] == len(widths) + len(MARKERS.open)
    assert cost["latent_positions"] == LATENTS * (iterations + 1)
    assert cost["latent_steps"] == LATENTS
    # Pairs of a position and one that it sees, pass after pass.
    seen = sum(
        width * begin + width * (width + 1) / 2
        for begin, width in zip([0, *[before] * iterations], blocks, strict=True)
    )
    begin = before + LATENTS
    text = len(MARKERS.end) + tokens - 1
    seen += text * begin + text * (text + 1) / 2
    stack: Any = system.reasoner.stack
    one = stack_flops(stack, 1.0) - 2 * multiplied(stack)  # attention of one pair
    assert model.projection is not None
    expected = 2 * multiplied(stack) * (sum(blocks) + text) + one * seen
    expected += 2 * VOCABULARY * 16 * tokens + iterations * LATENTS * 2 * multiplied(model.projection)
    assert cost["flops"] == pytest.approx(expected)


@torch.no_grad()
def test_the_sequential_passes_do_not_depend_on_the_number_of_latents() -> None:
    system = pccot(iterations=3).system(name="pccot", max_tokens=4)
    assert system.sequential_passes(24, 5) == system.sequential_passes(4, 5) == 1 + 3 + 2 + 5
    assert codi().system(name="codi", max_tokens=4).sequential_passes(24, 5) == 1 + 24 + 2 + 5


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("unspoken", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("gpt2", {"projection": None}),
    ],
)
@torch.no_grad()
def test_a_folder_is_loaded_completely_or_not_at_all(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = pccot(family, **settings)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, PccotForCausalLM)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    (one,), (two,) = (catalogue.systems(each, stage="pccot", max_answer=4) for each in (model, loaded))
    assert (one.opening, one.stop, one.iterations) == (two.opening, two.stop, two.iterations)
    assert torch.equal(one.respond(prompts()).tokens, two.respond(prompts()).tokens)
    auto = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    out = auto.generate(prompts(), max_new_tokens=4, return_chain=True)
    assert out.sequences[:, 5:8].tolist() == [[*MARKERS.open, *MARKERS.end]] * 6
    torch.testing.assert_close(out.chain.latents, one.respond(prompts()).chain.latents, rtol=1e-4, atol=2e-5)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["latent_row"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="latent_row"):
        load_model(tmp_path)


@torch.no_grad()
def test_half_precision_is_close() -> None:
    model = pccot("llama")
    expected = model.system(name="pccot", max_tokens=4).respond(prompts()).chain.latents
    half = model.to(torch.bfloat16).system(name="pccot", max_tokens=4).respond(prompts()).chain.latents
    assert half.dtype == torch.bfloat16
    assert (half - expected).norm() / expected.norm() < 0.1


# --- training --------------------------------------------------------------------------------------------------------

TEXT = """
name: parallel
size: tiny
precision: fp32
attention: eager
task: {kind: arithmetic, steps: [1, 2], largest: 20, operations: [add, subtract]}
backbone: {hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 2, heads: 2}
stages:
  - {name: cot, objective: {kind: next_token, positions: answer}, steps: 2, evaluate_every: 2, batch_size: 8}
  - name: pccot
    start: cot
    objective: {kind: pccot, latents: 3, iterations: 2, projection: {}}
    steps: 2
    evaluate_every: 2
    batch_size: 8
evaluation: {problems: 12, validation_problems: 6, batch_size: 5, max_latents: 6, max_answer: 5}
threads: 1
"""


def recipe(*overrides: str) -> Recipe:
    return recipes.parse(TEXT, "parallel", overrides)


def trained(folder: Path, *overrides: str) -> tuple[PreTrainedModel, Path]:
    made = recipe(*overrides)
    quiet_train(made, folder, only="cot")
    path = quiet_stage(made, folder, name="pccot")
    return load_model(path), path


@pytest.mark.slow
def test_a_training_step_is_deterministic(tmp_path: Path) -> None:
    (one, _), (two, _) = (trained(tmp_path / name) for name in ("one", "two"))
    for name, weight in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], weight), name


def test_a_training_step_moves_every_weight(tmp_path: Path) -> None:
    one, folder = trained(tmp_path)
    (mine,) = catalogue.systems(one, stage="pccot", max_answer=5)
    assert (mine.stop, mine.iterations) == (StopRule(max_latents=3, fixed=True), 2)
    before = load_file(folder.parent.parent / "cot" / "model" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert all(not torch.equal(after[f"decoder.{name}"], weight) for name, weight in before.items())
    mean = embedding_table(load_model(folder.parent.parent / "cot" / "model")).mean(dim=0)
    assert not np.allclose(after["latent_row"], mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["unspoken", "gpt2"])
def test_the_latent_row_begins_as_the_mean_of_what_tokens_are_at_the_first_block(family: str) -> None:
    base = tiny_language_model(family)
    with torch.no_grad():
        tokens = base.get_input_embeddings()(torch.arange(VOCABULARY))
    model = around(PccotForCausalLM, base, latents=2, iterations=1, projection=None)
    assert torch.equal(model.latent_row, tokens.mean(dim=0))


@pytest.mark.slow
def test_beside_adapters_the_latent_row_and_the_projection_are_trained_in_full(tmp_path: Path) -> None:
    lora = ("stages.pccot.lora={rank: 4}", "stages.pccot.optimizer={name: adamw, lr: 0.01, lr_rest: null}")
    _, folder = trained(tmp_path, *lora)
    before = load_file(folder.parent.parent / "cot" / "model" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    table = before["model.embed_tokens.weight"]
    assert torch.equal(after["decoder.model.embed_tokens.weight"], table)
    mean = embedding_table(load_model(folder.parent.parent / "cot" / "model")).mean(dim=0)
    assert (after["latent_row"] - mean).abs().max() > 1e-4
    assert after["projection.4.weight"].ne(1).any()  # the gain starts at one


def test_a_plan_counts_every_iteration() -> None:
    flops = {}
    for name, value in {
        "two": "iterations=2",
        "three": "iterations=3",
        "cut": "cut_gradient=true",
        "bare": "projection=null",
    }.items():
        stages = plan(recipe(f"stages.pccot.objective.{value}"))["models"]
        flops[name] = next(one for one in stages if one["stage"] == "pccot")["flops"]
    # Of 16 rows with three latents each, in two iterations: forward and backward through two matrices.
    assert flops["two"] - flops["bare"] == pytest.approx(16 * 2 * 3 * 3 * 2 * (2 * 32 * 32))
    assert 1.02 * flops["two"] < flops["three"] < 1.2 * flops["two"]
    # A pass without a backward one is a third of a pass.
    assert flops["cut"] < flops["two"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pccot(latents=0), "latents is 0"),
        (lambda: Pccot(iterations=-1), "iterations is -1"),
        (lambda: Pccot(teacher_weight=-0.5), r"teacher_weight is -0\.5"),
        (lambda: recipe("attention=flex_attention"), "growing cache"),
        (lambda: recipe("activation_checkpointing=true"), "drops the cache"),
    ],
)
def test_a_refusal_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_the_shipped_recipe_trains_each_baseline_as_long() -> None:
    made = recipes.load("arithmetic-pccot", "tiny")
    assert {made.steps(made.stage(name)) for name in ("cot", "answer_only", "pccot")} == {300}
    assert {made.stage(name).start for name in ("cot", "answer_only", "pccot")} == {"pretrain"}


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(Pccot, "methods/pccot.md")
    check_recorded(PccotConfig)


def test_settings_end_where_they_say() -> None:
    check_ranges(Pccot, {"latents": ([1], [0]), "iterations": ([0], [-1])})


def test_what_is_read_is_what_recorded_runs_read() -> None:
    assert batch_digest("arithmetic-pccot", "pccot") == "54ddf5911a57"


def test_stages_and_what_they_take_are_the_recorded_ones() -> None:
    check_plans("arithmetic-pccot tiny")
    check_default_stages("pccot")


def test_the_last_pass_reads_latents_and_text_and_the_prompt_if_nothing_was_refined() -> None:
    refined, guessed = (Pccot(latents=6, iterations=iterations) for iterations in (2, 0))
    assert [objective.scored(10.0, 5.0) for objective in (refined, guessed)] == [6 + 5, 6 + 5 + 10]
    assert len(refined.further_passes(None, 10.0, 7.0)) == 2
    assert not guessed.further_passes(None, 10.0, 7.0)
