"""CoLaR against a loop that has no cache, no padding and no positions, and the identities of its specification."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import CAP, ReasonerConformance, left_padded
from latent_models import caches_kept
from recorded import batch_digest, check_default_stages, check_plans
from safetensors.torch import load_file
from settings_checks import check_defaults, check_ranges, check_recorded
from tiny_models import END, FAMILIES, PAD, VOCABULARY, enliven, prompts, tiny_language_model
from tiny_recipe import quiet_stage, quiet_train
from torch import Tensor
from transformers import AutoModelForCausalLM

from unspoken.chain import StopReason
from unspoken.methods import catalogue
from unspoken.methods.colar.configuration import ColarConfig
from unspoken.methods.colar.model import ColarForCausalLM, ColarOutput, ColarReasoner
from unspoken.methods.colar.objective import batch_of, latent_losses, with_places
from unspoken.methods.colar.reasoning import ThinkingSpeed
from unspoken.methods.colar.stages import Colar
from unspoken.methods.loading import load_model
from unspoken.reasoning.engine import StopRule, rollout
from unspoken.reasoning.flops import multiplied, stack_flops
from unspoken.serving.batch import Batch, Progress
from unspoken.serving.systems import Served
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.spans import Markers, Spans
from unspoken.training import recipe as recipes
from unspoken.training.context import context_of
from unspoken.training.plan import plan
from unspoken.training.recipe import Recipe

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
SPEEDS = [[10], [11], [12]]
# Prompts, chains and answers all of different length.
SPANS = [
    Spans(prompt=(3, 11, 5, 8, 13), steps=((13, 14), (15,), (4, 4)), answer=(5, 8, 13, 14, 9, END)),
    Spans(prompt=(12,), steps=((16, 17),), answer=(5, 8, 10, 9, END)),
    Spans(prompt=(4, 9, 8), steps=((19,), (18, 3)), answer=(5, 8, 19, 9, END)),
]
OBJECTIVE = Colar(max_compression=3, speed="{}")


@cache
def markers(family: str) -> Markers:
    """An end marker that random weights write early, late and never."""
    for end in range(3, VOCABULARY):
        model = colar(family, end=end)
        chain = rollout(ColarReasoner(model=model), prompts(), None, StopRule(max_latents=CAP))
        if len({int(reason) for reason in chain.stop}) == 2 and len(set(chain.lengths.tolist())) >= 3:
            return Markers(open=(2,), end=(end, 6))
    raise AssertionError(f"no token ends chains of {family} at different steps")


def colar(family: str = "unspoken", attention: str = "eager", *, end: int | None = None, **settings: Any) -> Any:
    base = tiny_language_model(family, attention)
    config = ColarConfig(
        base_config=base.config,
        compression=2,
        speed_ids=SPEEDS,
        open_ids=[2],
        end_ids=list(markers(family).end) if end is None else [end, 6],
        latents=CAP,
        eos_token_id=END,
        pad_token_id=PAD,
        **{"head_width": 24, **settings},
    )
    model = ColarForCausalLM._from_config(config, attn_implementation=attention)
    model.start_from(base)
    enliven(model.latent_head, "talker")
    with torch.no_grad():
        # Larger latents make a chain in which the rounding of float32 grows too fast.
        model.latent_head.mean.weight *= 0.3 if family == "unspoken" else 0.5
    return model.eval()


def rows_of(family: str, objective: Colar = OBJECTIVE, seed: int = 0) -> list[Any]:
    draws = np.random.default_rng(seed)
    return [objective.row(spans, markers(family), SPEEDS, draws) for spans in SPANS]


def naive_terms(model: Any, rows: list[Any], floor: float = 0.1) -> dict[str, Tensor]:
    """Losses of rows that are read one by one."""
    embed, labelled, latent = model.decoder.get_input_embeddings(), [], {"mean": [], "nll": []}
    for row in rows:
        inputs = torch.stack([embed(torch.tensor(group)).sum(dim=0) / math.sqrt(len(group)) for group in row.groups])
        hidden = model.decoder.base_model(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0]
        scores = model.decoder(inputs_embeds=inputs[None], use_cache=False).logits[0]
        mean, log_deviation = model.latent_head(hidden)
        for place in range(1, len(row.groups)):
            if row.labels[place] >= 0:
                labelled.append(F.cross_entropy(scores[place - 1], torch.tensor(row.labels[place])))
            if row.grouped[place]:
                target, spread = (inputs[place] / model.scale).detach(), log_deviation[place - 1].exp().clamp(floor)
                latent["mean"].append((mean[place - 1] - target).square().mean())
                latent["nll"].append(-torch.distributions.Normal(mean[place - 1], spread).log_prob(target).mean())
    return {"token": torch.stack(labelled).mean(), **{name: torch.stack(all_).mean() for name, all_ in latent.items()}}


def gradients(loss: Tensor, model: Any) -> dict[str, Tensor]:
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    grads = torch.autograd.grad(loss, list(learned.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(learned, grads, strict=True))


# --- the shared engine -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[*product(FAMILIES, ("eager",)), ("unspoken", "sdpa"), ("llama", "sdpa")], ids="-".join)
def reasoner(request: pytest.FixtureRequest) -> ColarReasoner:
    return ColarReasoner(model=colar(*request.param))


class TestConformance(ReasonerConformance):
    def teacher_forced(self, reasoner: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)
        decoder = reasoner.model.decoder
        logits: Tensor = decoder(
            input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
        ).logits
        return logits

    def reload(self, reasoner: Any, folder: Path) -> ColarReasoner:
        reasoner.model.save_pretrained(folder)
        attention = reasoner.model.config._attn_implementation
        return ColarReasoner(model=AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention))


# --- groups ----------------------------------------------------------------------------------------------------------


def test_a_group_of_equal_tokens_is_the_root_of_their_number_times_their_row() -> None:
    model = colar()
    row = model.get_input_embeddings()(torch.tensor(7))
    for count in (1, 2, 5):
        ids, members = torch.full((1, 5), 7), torch.arange(5)[None] < count
        torch.testing.assert_close(model.compressed(ids, members)[0], row * math.sqrt(count), **CLOSE)
        plain = colar(root_mean=False).compressed(ids, members)[0]
        torch.testing.assert_close(plain, row, **CLOSE)


def test_groups_follow_the_open_marker_and_labels_come_from_their_group() -> None:
    end, speeds = markers("unspoken").end, set()
    for seed in range(40):
        for spans, row in zip(SPANS, rows_of("unspoken", seed=seed), strict=True):
            at = len(spans.prompt)
            speed = SPEEDS.index(list(row.groups[at])) + 1
            speeds.add(speed)
            head, chain = (*spans.prompt, *SPEEDS[speed - 1], 2), row.groups[at + 2 : -len(end + spans.answer)]
            assert row.groups[: at + 2] == tuple((token,) for token in head)
            assert row.groups[len(head) + len(chain) :] == tuple((token,) for token in (*end, *spans.answer))
            assert sum(chain, ()) == spans.chain and {len(group) for group in chain[:-1]} <= {speed}
            assert row.labels[: len(head)] == (-100,) * len(head)
            labels = row.labels[len(head) : len(head) + len(chain)]
            assert all(label in group for label, group in zip(labels, chain, strict=True))
            assert row.labels[len(head) + len(chain) :] == (*end, *spans.answer)
            first, last = row.grouped.index(True), len(row.grouped) - 1 - row.grouped[::-1].index(True)
            assert (first, last) == (len(head), len(head) + len(chain)) and all(row.grouped[first : last + 1])
    assert speeds == {1, 2, 3}
    both = {rows_of("unspoken", seed=seed)[1].labels for seed in range(40)}
    assert len(both) == 3  # without compression, and each member of one group in turn


def test_draws_are_a_function_of_seed_and_sample() -> None:
    made = recipe()
    context = context_of(made, made.stage("colar"))
    make = made.stage("colar").objective.collate(context)
    alone, together = make(np.arange(3, 4)), make(np.arange(2, 5))
    width = int(alone["attention_mask"].sum())
    assert torch.equal(alone["labels"][0, :width], together["labels"][1, :width])
    other = make(np.arange(103, 104))
    assert not torch.equal(other["labels"], alone["labels"])


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "attention"), [*product(FAMILIES, ("eager",)), ("llama", "sdpa")])
@pytest.mark.parametrize("latent_loss", ["nll", "mean"])
def test_a_padded_batch_is_the_naive_loop_in_loss_and_gradients(family: str, attention: str, latent_loss: Any) -> None:
    model, rows = colar(family, attention), rows_of(family)
    objective = replace(OBJECTIVE, latent_loss=latent_loss, token_weight=0.5, latent_weight=2.0)
    batch = {**batch_of(rows, PAD)}
    loss, terms = objective.loss(model, batch)
    expected = naive_terms(model, rows)
    torch.testing.assert_close(terms["token_loss"], expected["token"], **CLOSE)
    torch.testing.assert_close(terms[f"latent_{latent_loss}"], expected[latent_loss], **CLOSE)
    total = 0.5 * expected["token"] + 2 * expected[latent_loss]
    torch.testing.assert_close(loss, total, **CLOSE)
    ours, theirs = gradients(loss, model), gradients(total, model)
    # Table and head do not change: what a latent means must not.
    assert not any("embed" in name or "lm_head" in name or "wte" in name for name in ours)
    for name, gradient in theirs.items():
        largest = max(float(gradient.abs().max()), 1e-3)
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=2e-4 * largest, msg=name)
    wide = {
        "ids": F.pad(batch["ids"], (0, 1, 0, 3), value=9),
        "members": F.pad(batch["members"], (0, 1, 0, 3)),
        "attention_mask": F.pad(batch["attention_mask"], (0, 3)),
        "labels": F.pad(batch["labels"], (0, 3), value=-100),
        "grouped": F.pad(batch["grouped"], (0, 3)),
    }
    torch.testing.assert_close(objective.loss(model, wide)[0], loss, **CLOSE)


def test_a_training_pass_keeps_no_cache() -> None:
    model, rows = colar("llama"), rows_of("llama")
    with caches_kept(model.decoder.base_model) as kept:
        OBJECTIVE.loss(model, {**batch_of(rows, PAD)})
    assert kept == [False]


def test_without_compression_it_is_explicit_tuning_on_the_same_text() -> None:
    objective = Colar(max_compression=1, compression=1, speed="{}")
    for family in FAMILIES:
        model, end = colar(family), markers(family).end
        rows = rows_of(family, objective)
        _, terms = objective.loss(model, {**batch_of(rows, PAD)})
        losses = []
        for spans in SPANS:
            head, text = (*spans.prompt, *SPEEDS[0], 2), (*spans.chain, *end, *spans.answer)
            scores = model.decoder(torch.tensor([[*head, *text]]), use_cache=False).logits[0, len(head) - 1 : -1]
            losses.append(F.cross_entropy(scores, torch.tensor(text), reduction="none"))
        torch.testing.assert_close(terms["token_loss"], torch.cat(losses).mean(), **CLOSE)


def output(mean: Tensor, log_deviation: Tensor | None, groups: Tensor) -> ColarOutput:
    return ColarOutput(logits=None, mean=mean, log_deviation=log_deviation, groups=groups)


def test_without_deviation_the_draw_is_the_mean_and_the_likelihood_s_quadratic_term() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, groups = (torch.randn(5, 8, generator=generator) for _ in range(2))
    losses = latent_losses(output(mean, torch.full_like(mean, -40), groups), floor=1.0)
    torch.testing.assert_close(losses["sample"], losses["mean"], **CLOSE)
    torch.testing.assert_close(2 * losses["nll"] - math.log(2 * math.pi), losses["mean"], **CLOSE)
    assert set(latent_losses(output(mean, None, groups), floor=1.0)) == {"mean"}


def test_the_published_loss_drives_the_deviation_to_zero_and_the_likelihood_does_not() -> None:
    mean = torch.zeros(20000, 1)
    deviation = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    for place, value in enumerate((-1.0, 0.0, 1.0)):
        log_deviation = deviation[place].expand_as(mean)
        torch.manual_seed(0)
        losses = latent_losses(output(mean, log_deviation, mean), floor=0.01)
        (pull,) = torch.autograd.grad(losses["sample"].mean(), deviation)
        # d/d(log s) E[(s eps)^2] = 2 s^2, whatever the target is.
        assert float(pull[place]) == pytest.approx(2 * math.exp(2 * value), rel=0.03)
    groups = torch.randn(20000, 1, generator=torch.Generator().manual_seed(1))
    losses = latent_losses(output(mean, deviation[1].expand_as(mean), groups), floor=0.01)
    (pull,) = torch.autograd.grad(losses["nll"].mean(), deviation)
    assert abs(float(pull[1])) < 0.03  # at the deviation of the data the likelihood rests


def test_the_scale_is_that_of_the_table() -> None:
    model = colar("gpt2")
    assert float(model.scale) == pytest.approx(float(model.get_input_embeddings().weight.std()), rel=1e-5)


# --- answering -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def naive_answer(model: Any, prompt: Tensor, speed: int) -> tuple[Tensor, list[int]]:
    """One row; the sequence is computed anew at every step, as published but for the mean and the arg-max."""
    embed, end = model.get_input_embeddings(), model.config.end_ids
    inputs = embed(torch.tensor([[*prompt.tolist(), *SPEEDS[speed - 1], 2]]))
    before = inputs.shape[1]

    def read() -> tuple[Tensor, int]:
        hidden = model.decoder.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1]
        return hidden, int(model.decoder(inputs_embeds=inputs, use_cache=False).logits[0, -1].argmax())

    while inputs.shape[1] - before < CAP:
        hidden, token = read()
        if token == end[0] and inputs.shape[1] > before:
            break
        inputs = torch.cat([inputs, (model.latent_head(hidden)[0] * model.scale)[:, None]], dim=1)
    chain, spoken = inputs[0, before:], list[int]()
    inputs = torch.cat([inputs, embed(torch.tensor([end]))], dim=1)
    while len(spoken) < 4 and spoken[-1:] != [END]:
        spoken.append(read()[1])
        inputs = torch.cat([inputs, embed(torch.tensor([[spoken[-1]]]))], dim=1)
    return chain, spoken


ROWS = [row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]


@pytest.mark.parametrize(("family", "speed"), [*product(FAMILIES, (1, 2, 3))])
def test_any_speed_is_the_naive_loop_and_a_latent_always_comes_first(family: str, speed: int) -> None:
    model = colar(family)
    mine = model.system(name="colar", max_tokens=4, compression=speed)
    answer = mine.respond(*left_padded(ROWS))
    assert int(answer.chain.lengths.min()) >= 1
    for row, prompt in enumerate(ROWS):
        chain, spoken = naive_answer(model, prompt, speed)
        assert int(answer.chain.lengths[row]) == len(chain)
        torch.testing.assert_close(answer.chain.latents[row, : len(chain)], chain, rtol=1e-4, atol=2e-5)
        assert answer.tokens[row, : int(answer.lengths[row])].tolist() == spoken
    again = mine.respond(*left_padded(ROWS), chain=answer.chain)
    assert torch.equal(again.tokens, answer.tokens)


def test_speeds_are_asked_for_by_name_and_answers_are_served() -> None:
    model = colar("llama")
    (mine,) = catalogue.systems(model, stage="colar", max_answer=4)
    assert mine.opening == (*SPEEDS[1], 2)
    fast = ThinkingSpeed(compression=3).applied(mine)
    assert (fast.opening, fast.name) == ((*SPEEDS[2], 2), "colar, thinking speed, compression 3")
    expected, made = fast.respond(*left_padded(ROWS)), dict[int, list[Progress]]()
    served, batch = Served(system=fast), Batch(fast.reasoner)
    for row, prompt in enumerate(ROWS):
        made[row] = []
        job = served.job(prompt.tolist(), 4)
        job.report = made[row].append
        batch.join([job])
        batch.step()
    while batch.rows:
        batch.step()
    for row, progress in made.items():
        tokens = expected.tokens[row, : int(expected.lengths[row])].tolist()
        assert [token for one in progress for token in one.tokens] == tokens
        assert progress[-1].latents == int(expected.chain.lengths[row])
    with pytest.raises(ValueError, match="compression is 0; a latent stands for at least 1 token"):
        ThinkingSpeed(compression=0)
    for number in (4, 7):
        with pytest.raises(ValueError, match=f"compression is {number}, but .* was trained with 1 to 3"):
            ThinkingSpeed(compression=number).applied(mine)
    (plain,) = catalogue.systems(tiny_language_model("llama"), stage="plain", max_answer=4)
    with pytest.raises(ValueError, match="plain is no CoLaR model; leave thinking_speed out"):
        ThinkingSpeed(compression=2).applied(plain)


def test_draws_depend_on_seed_and_prompt_and_not_on_the_batch() -> None:
    model = colar("llama", floor=0.5)
    (mine,) = catalogue.systems(model, stage="colar", max_answer=4)
    drawn = ThinkingSpeed(compression=2, sampled=True).applied(mine)
    together = drawn.respond(*left_padded(ROWS))
    for row, prompt in enumerate(ROWS):
        alone, length = drawn.respond(prompt[None]).chain, int(together.chain.lengths[row])
        assert int(alone.lengths[0]) == length
        one, other = together.chain.latents[row, :length], alone.latents[0, :length]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=5e-5)
    again = ThinkingSpeed(compression=2, sampled=True, seed=1).applied(mine).respond(*left_padded(ROWS))
    first = (
        again.chain.latents[:, 0],
        together.chain.latents[:, 0],
        mine.respond(*left_padded(ROWS)).chain.latents[:, 0],
    )
    assert min(float((one - other).abs().max()) for one, other in pairwise(first)) > 1e-3
    exact = colar("llama", deterministic=True)
    (certain,) = catalogue.systems(exact, stage="colar", max_answer=4)
    with pytest.raises(ValueError, match="has no deviation to draw with; set sampled to false"):
        ThinkingSpeed(compression=2, sampled=True).applied(certain)


def test_an_answer_s_cost_counts_the_latent_head() -> None:
    model = colar()
    mine = model.system(name="colar", max_tokens=4)
    answer = mine.respond(prompts())
    latents, tokens = answer.chain.lengths.double(), answer.lengths.double()
    # What names the speed is a part of the prompt; the open marker counts as in an explicit chain.
    assert mine.sequential_passes(3, 4) == 1 + 3 + 2 + 4
    assert float(mine.latent_positions(3)) == 3
    inner = 16 * 24 + 24 * 24 + 2 * 24 * 16
    assert multiplied(model.latent_head) == inner
    ended = (answer.chain.stop == StopReason.END).double()
    scored = 2 * VOCABULARY * 16 * (tokens + latents + ended)
    stack = stack_flops(model.decoder.base_model, 5 + 2 + latents + 2 + tokens - 1)
    torch.testing.assert_close(mine.flops(torch.tensor(5), answer), stack + scored + 2 * inner * latents)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_loaded_whole_and_generates(family: str, tmp_path: Path) -> None:
    model = colar(family)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())
    auto = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    for speed in (2, 1):
        auto.config.compression = speed
        answer = model.system(name="colar", max_tokens=4, compression=speed).respond(prompts())
        made = auto.generate(prompts(), max_new_tokens=4, return_chain=True)
        assert torch.equal(made.chain.latents, answer.chain.latents)
        assert torch.equal(made.sequences[:, 5 + 4 :], answer.filled(PAD))


# --- training --------------------------------------------------------------------------------------------------------

TEXT = """
name: compressed
size: tiny
precision: fp32
attention: eager
task: {kind: arithmetic, steps: [1, 2], largest: 20, operations: [add, subtract]}
backbone: {hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 2, heads: 2}
stages:
  - {name: cot, objective: {kind: next_token, positions: answer}, steps: 2, evaluate_every: 2, batch_size: 8}
  - name: colar
    start: cot
    objective: {kind: colar, max_compression: 3, speed: '{}'}
    steps: 2
    evaluate_every: 2
    batch_size: 8
evaluation: {problems: 12, validation_problems: 6, batch_size: 5, max_latents: 6, max_answer: 5}
threads: 1
"""


def recipe(*overrides: str) -> Recipe:
    return recipes.parse(TEXT, "compressed", overrides)


def trained(folder: Path, *overrides: str) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    made = recipe(*overrides)
    quiet_train(made, folder, only="cot")
    path = quiet_stage(made, folder, name="colar")
    before = load_file(path.parent.parent / "cot" / "model" / "model.safetensors")
    return load_model(path), before, load_file(path / "model.safetensors")


@pytest.mark.parametrize("loss", ["nll", "sample", "mean"])
def test_a_stage_trains_all_but_the_table_and_is_deterministic(loss: str, tmp_path: Path) -> None:
    how = f"stages.colar.objective.latent_loss={loss}"
    (one, before, after), (two, _, _) = (trained(tmp_path / name, how) for name in ("one", "two"))
    for name, weight in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], weight), name
    still = {name for name, weight in before.items() if torch.equal(after[f"decoder.{name}"], weight)}
    assert {"model.embed_tokens.weight"} <= still <= {"model.embed_tokens.weight", "lm_head.weight"}
    (mine,) = catalogue.systems(one, stage="colar", max_answer=5)
    assert mine.stop == StopRule(max_latents=6, min_latents=1)
    assert (one.latent_head.log_deviation is None) == (loss == "mean")


def test_adapters_are_merged_and_the_latent_head_is_trained_in_full(tmp_path: Path) -> None:
    lora = ("stages.colar.lora={rank: 4}", "stages.colar.optimizer={name: adamw, lr: 0.01, lr_rest: null}")
    model, before, after = trained(tmp_path, *lora)
    name = "model.layers.0.ffn.up_proj.weight"
    assert not torch.equal(after[f"decoder.{name}"], before[name])
    assert torch.equal(after["decoder.model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert after["latent_head.features.3.weight"].ne(1).any() and isinstance(model, ColarForCausalLM)


def test_a_plan_counts_compressed_chains() -> None:
    tokens = {}
    for largest in (1, 3):
        made = recipe(f"stages.colar.objective.max_compression={largest}", "stages.colar.objective.compression=1")
        tokens[largest] = next(one for one in plan(made)["models"] if one["stage"] == "colar")["tokens"]
    assert tokens[3] < tokens[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Colar(compression=6), "compression is 6; it must be from 1 to max_compression, which is 5"),
        (lambda: Colar(floor=0.0), r"floor is 0\.0"),
        (lambda: Colar(latent_weight=-1.0), r"latent_weight is -1\.0"),
        (lambda: Colar(speed="fast"), "it must hold {} once"),
        (lambda: batch_of([], PAD), "the batch is empty"),
        (lambda: recipe("stages.colar.start=colar"), "only to stages listed before it"),
        (lambda: recipe("stages.colar.objective.latent_loss=mse"), "latent_loss is 'mse'"),
        (lambda: recipe("evaluation.reasonings=[{kind: thinking_speed, compression: 4}]"), "suits no stage"),
        (lambda: recipe("evaluation.reasonings=[{kind: thinking_speed, compression: 0}]"), "compression is 0"),
        (
            lambda: recipe(
                "stages.colar.objective.latent_loss=mean",
                "evaluation.reasonings=[{kind: thinking_speed, compression: 1, sampled: true}]",
            ),
            "suits no stage",
        ),
    ],
)
def test_one_line_says_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_a_speed_that_the_tokenizer_cannot_write_is_refused() -> None:
    made = recipe("stages.colar.objective.speed='(Thinking speed: {})'")
    objective = made.stage("colar").objective
    assert isinstance(objective, Colar)
    with pytest.raises(ValueError, match="which the tokenizer cannot write"):
        objective.speeds(context_of(made, made.stage("colar")))


def test_speeds_that_the_tokenizer_writes_alike_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe()
    objective, context = made.stage("colar").objective, context_of(made, made.stage("colar"))
    assert isinstance(objective, Colar)
    monkeypatch.setattr(PromptFormat, "encode", lambda *_: (3,))
    with pytest.raises(ValueError, match="makes the same tokens for several numbers"):
        objective.speeds(context)


@torch.no_grad()
def test_a_draw_of_one_deviation_is_that_far_above_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspoken.methods.colar.model.row_draws", lambda keys, *_: torch.ones(len(keys), 16))
    model, hidden = colar("llama", floor=0.5), torch.randn(3, 16)
    mean, log_deviation = model.latent_head(hidden)
    drawn = replace(model.reasoner(), seed=0).random_step(hidden, [(row, 0) for row in range(3)]).latent
    torch.testing.assert_close(drawn, model.scale * (mean + log_deviation.exp().clamp(min=0.5)))


@torch.no_grad()
def test_draws_have_the_deviation_of_the_head_in_units_of_the_table() -> None:
    model = colar("llama", floor=0.5)
    assert float(model.scale) != pytest.approx(1, abs=0.05)
    hidden = torch.randn(1, model.decoder.config.hidden_size).expand(400, -1)
    drawn = replace(model.reasoner(), seed=0).random_step(hidden, [(row, 0) for row in range(400)]).latent
    deviation = model.latent_head(hidden)[1].exp().clamp(min=0.5)
    standard = (drawn - model.latent(hidden)) / (deviation * model.scale)
    assert float(standard.mean()) == pytest.approx(0, abs=0.05)
    assert float(standard.std()) == pytest.approx(1, abs=0.05)


def test_places_of_a_batch_are_those_before_its_targets() -> None:
    rows = batch_of(rows_of("unspoken"), PAD)
    batch = with_places({**rows})
    width = batch["labels"].shape[1]
    assert torch.equal(batch["labels"].flatten()[batch["before_targets"] + 1], batch["targets"])
    assert batch["grouped"].flatten()[batch["before_groups"] + 1].all()
    assert (batch["before_groups"] % width < width - 1).all()
    # Any token may be a target, also the first of the vocabulary.
    labels = torch.where(batch["labels"] > 0, 0, batch["labels"])
    assert torch.equal(with_places({**rows, "labels": labels})["before_targets"], batch["before_targets"])


def test_the_shipped_recipe_trains_each_baseline_as_long() -> None:
    made = recipes.load("arithmetic-colar", "tiny")
    assert {made.steps(made.stage(name)) for name in ("colar", "cot_longer", "answer_only")} == {300}


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(Colar, "methods/colar.md")
    check_recorded(ColarConfig)


def test_settings_end_where_they_say() -> None:
    weights: dict[str, Any] = {name: ([0.0], [-0.01]) for name in ("token_weight", "latent_weight")}
    check_ranges(Colar, {**weights, "floor": ([1e-6], [0.0]), "head_width": ([1], [0, -1])})
    check_ranges(Colar, {"compression": ([1, 3], [0, 4])}, max_compression=3)


def test_what_is_read_is_what_recorded_runs_read() -> None:
    assert batch_digest("arithmetic-colar", "colar") == "12733afcce29"


def test_stages_and_what_they_take_are_the_recorded_ones() -> None:
    check_plans("arithmetic-colar tiny")
    check_default_stages("colar")
