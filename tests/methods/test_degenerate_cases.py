"""Identities between methods: with nothing of its own left, a method is another one, in loss, gradients and answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import left_padded
from latent_models import BOX, MARKERS, NARROW, SPANS, around, assert_same_gradients, gradients, outputs_of
from tiny_drills import drilled
from tiny_models import END, FAMILIES, PAD, VOCABULARY, enliven, prompts, tiny_language_model
from tiny_words import PROMPT_FORMAT, TASK, TEXT_FORMAT, tiny_word_system
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.chain import StopReason
from unspoken.methods import catalogue
from unspoken.methods.budget_forcing.reasoning import BudgetForcing
from unspoken.methods.carrier import AddedLoss, CarriedRow
from unspoken.methods.carrier_model import CarrierModel
from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.coconut.objective import batch_of as coconut_batch
from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.codi.model import CodiForCausalLM
from unspoken.methods.codi.stages import Codi
from unspoken.methods.colar.model import ColarForCausalLM
from unspoken.methods.colar.objective import batch_of as colar_batch
from unspoken.methods.colar.stages import Colar
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.distillation_loss import batch_of as distillation_batch
from unspoken.methods.icot.objective import batch_of as icot_batch
from unspoken.methods.icot.stages import Icot
from unspoken.methods.lotus.model import LotusForCausalLM
from unspoken.methods.lotus.objective import batch_of as lotus_batch
from unspoken.methods.lotus.stages import Lotus
from unspoken.methods.mux.stages import Mux
from unspoken.methods.pause.configuration import append_row
from unspoken.methods.pause.objective import batch_of as pause_batch
from unspoken.methods.pause.stages import Pause
from unspoken.methods.pccot.model import PccotForCausalLM
from unspoken.methods.pccot.stages import Pccot
from unspoken.methods.sim_cot.objective import step_targets
from unspoken.methods.sim_cot.stages import SimCot
from unspoken.methods.soft_thinking import SoftThinking
from unspoken.reasoning.causal_lm import LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.system import System
from unspoken.tasks.spans import Markers, Spans
from unspoken.training.context import context_of

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
# Two ways to sum the same float32 numbers over several looped steps differ by this much at most.
LOOPED: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
OPEN, CLOSED = MARKERS.open, (*MARKERS.open, *MARKERS.end)
Text = tuple[Sequence[int], Sequence[int]]  # the tokens that are given and those that are learned


def tuned(model: Any, texts: Sequence[Text]) -> Tensor:
    """The loss of explicit tuning."""
    batch = pause_batch(texts, PAD)
    rows = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return NextToken(positions="answer").loss(model, {**rows, "answer_mask": batch["target_mask"]})[0]


def naive(model: Any, texts: Sequence[Text]) -> Tensor:
    """The same, one text after another."""
    losses = []
    for given, learned in texts:
        scores = model(input_ids=torch.tensor([[*given, *learned]]), use_cache=False).logits[0, len(given) - 1 : -1]
        losses.append(F.cross_entropy(scores, torch.tensor(learned), reduction="none"))
    return torch.cat(losses).mean()


def of_decoder(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by the names that the weights have in a plain language model."""
    return {name.removeprefix("decoder."): gradient for name, gradient in named.items()}


def assert_alike(loss: Tensor, model: PreTrainedModel, expected: Tensor, other: PreTrainedModel) -> dict[str, Tensor]:
    """The same loss, and the same gradients of all weights of the other model; the gradients of the first come back."""
    torch.testing.assert_close(loss, expected, **CLOSE)
    theirs = of_decoder(gradients(expected, other))
    assert max(float(gradient.abs().max()) for gradient in theirs.values()) > 1e-2
    ours = of_decoder(gradients(loss, model))
    assert_same_gradients(ours, theirs)
    return ours


def coconut(base: PreTrainedModel) -> CoconutModel:
    model = CoconutModel._from_config(base.config, attn_implementation="eager")
    model.start_from(base)
    return model.eval()


def coconut_rows(stage: Coconut, spans: Sequence[Spans] = SPANS) -> dict[str, Tensor]:
    return coconut_batch([stage.row(one, OPEN, MARKERS.end) for one in spans], PAD)


def distillation_rows(latents: int, spans: Sequence[Spans] = SPANS, *, last_step: bool = False) -> dict[str, Any]:
    return distillation_batch(spans, MARKERS, BOX, latents=latents, last_step=last_step, pad_id=PAD)


@torch.no_grad()
def greedy(model: Any, text: Sequence[int], count: int, end: int) -> list[int]:
    """The likeliest continuation; the text is read anew for every token."""
    tokens: list[int] = []
    while len(tokens) < count and tokens[-1:] != [end]:
        logits = model(input_ids=torch.tensor([[*text, *tokens]]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


# --- Coconut ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_coconut_that_replaces_no_step_is_explicit_tuning(family: str) -> None:
    model, stage = coconut(tiny_language_model(family)), Coconut(replaced=0)
    # Of the template one thing differs: the end marker is given before the steps. Explicit tuning learns it after them.
    texts = [((*row.prompt, *CLOSED), (*row.chain, *row.answer)) for row in SPANS]
    loss, _ = stage.loss(model, coconut_rows(stage))
    assert_alike(loss, model, tuned(model.decoder, texts), model.decoder)


@pytest.mark.parametrize("replaced", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_coconut_without_thoughts_leaves_out_one_step_after_another(family: str, replaced: int) -> None:
    model, stage = coconut(tiny_language_model(family)), Coconut(replaced=replaced, latents_per_step=0)
    left = [tuple(token for step in row.steps[replaced:] for token in step) for row in SPANS]
    texts = [((*row.prompt, *CLOSED), (*rest, *row.answer)) for row, rest in zip(SPANS, left, strict=True)]
    assert_alike(stage.loss(model, coconut_rows(stage))[0], model, naive(model.decoder, texts), model.decoder)
    # It is iCoT that removes tokens step by step. Both read the same text if iCoT's open marker is both of Coconut's,
    # and its end marker the first token of the answers, which all have the same.
    stepwise = Icot(steps_per_token=1, pretrain_steps=0, smoothing=None)
    spans = [replace(row, answer=row.answer[1:]) for row in SPANS]
    removed = [len(row.chain) - len(rest) for row, rest in zip(SPANS, left, strict=True)]
    around_chain = Markers(open=CLOSED, end=BOX[:1])
    batch = icot_batch(stepwise, spans, removed, around_chain, scheduled=0, pad_id=PAD)
    expected, _ = stepwise.loss(model.decoder, batch)
    assert_alike(stage.loss(model, coconut_rows(stage))[0], model, expected, model.decoder)


@pytest.mark.parametrize("family", FAMILIES)
def test_coconut_without_thoughts_answers_as_a_plain_model_goes_on(family: str) -> None:
    made = drilled("words", None, "stages.first.objective={kind: coconut, replaced: 2, latents_per_step: 0}")
    context = context_of(made, made.stage("first"))
    base = tiny_language_model(family, vocab_size=len(context.tokenizer), max_position_embeddings=160)
    model = made.stage("first").objective.build(base, context).eval()
    (system,) = catalogue.systems(model, stage="first", max_answer=6)
    rows = [row.prompt for row in context.task.spans(context.sample(np.arange(4)), context.prompt_format)]
    answer = system.respond(*left_padded([torch.tensor(row) for row in rows]))
    assert not answer.chain.mask.any()
    around_nothing = (*context.markers.open, *context.markers.end)
    expected = [greedy(base, (*row, *around_nothing), 6, context.tokenizer.eos_token_id) for row in rows]
    assert len({tuple(tokens) for tokens in expected}) > 1
    output = zip(answer.tokens.tolist(), answer.lengths.tolist(), strict=True)
    assert [tokens[:length] for tokens, length in output] == expected


# --- iCoT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["unspoken", "gpt2"])
@pytest.mark.parametrize("explicit", [True, False])
def test_icot_before_and_after_its_schedule_is_tuning_with_two_separators(explicit: bool, family: str) -> None:
    beyond = int(explicit)  # 0 removes everything at once
    objective = f"{{kind: icot, pretrain_steps: 0, steps_per_token: 1, remove_all_beyond: {beyond}, smoothing: null}}"
    made = drilled("words", None, f"stages.icot.objective={objective}")
    context, stage = context_of(made, made.stage("icot")), made.stage("icot").objective
    first = np.arange(16, 20)  # what the stage reads in its first step, after the sixteen rows of the stage before
    eos = context.tokenizer.eos_token_id
    texts = [
        ((*row.prompt, eos), (*(row.chain if explicit else ()), eos, *row.answer))
        for row in context.task.spans(context.sample(first), context.prompt_format)
    ]
    model = tiny_language_model(family, vocab_size=len(context.tokenizer), max_position_embeddings=160)
    loss, terms = stage.loss(model, stage.collate(context)(first))
    assert bool(terms["chain_left"]) == explicit
    assert_alike(loss, model, tuned(model, texts), model)


# --- CODI and PCCoT --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_codi_without_latents_and_distance_is_answer_only_and_explicit_tuning(family: str) -> None:
    model = around(CodiForCausalLM, tiny_language_model(family), latents=0, projection=None)
    loss, _ = Codi(latents=0, distance_weight=0.0).loss(model, distillation_rows(0))
    chains = [tuple(token for step in row.steps[:-1] for token in step) for row in SPANS]
    alone = [((*row.prompt, *CLOSED), row.answer) for row in SPANS]
    explicit = [
        ((*row.prompt, *OPEN), (*chain, *MARKERS.end, *row.answer)) for row, chain in zip(SPANS, chains, strict=True)
    ]
    assert_alike(loss, model, tuned(model.decoder, alone) + tuned(model.decoder, explicit), model.decoder)


@pytest.mark.parametrize("family", FAMILIES)
def test_codi_without_projection_distance_and_teacher_is_the_last_stage_of_coconut(family: str) -> None:
    model = around(CodiForCausalLM, tiny_language_model(family), latents=3, projection=None)
    objective = Codi(latents=3, projection=None, distance_weight=0.0, teacher_weight=0.0)
    other, stage = coconut(model.decoder), Coconut(replaced=3, latents_per_step=1, rest="none")
    expected, _ = stage.loss(other, coconut_rows(stage))
    assert_alike(objective.loss(model, distillation_rows(3))[0], model, expected, other)


def plain_table(family: str) -> PreTrainedModel:
    """Our own table normalises its rows when it reads them, and latent rows as they are; a pause would be another."""
    return tiny_language_model(family, **({"unit_embeddings": False} if family == "unspoken" else {}))


def with_pause_row(model: Any) -> PreTrainedModel:
    """The decoder of a model with a latent row, which is the row of a pause token after all others."""
    base = copy.deepcopy(model.decoder)
    append_row(base, OPEN[-1])
    with torch.no_grad():
        base.get_input_embeddings().weight[VOCABULARY] = model.latent_row
    return base


def assert_pauses(loss: Tensor, logits: Tensor, model: Any, objective: Pause) -> None:
    """A model with a latent row learns as one that pauses, and has the same scores of the text."""
    plain = with_pause_row(model)

    # The head of a model that pauses has a row for the pause too; without its score both have one vocabulary.
    def forward(**given: Any) -> Any:
        return SimpleNamespace(logits=plain(**given).logits[..., :VOCABULARY])

    rows = [objective.row(one, MARKERS, VOCABULARY) for one in SPANS]
    expected, _ = objective.loss(forward, {**pause_batch(rows, PAD)})
    torch.testing.assert_close(loss, expected, **CLOSE)
    for row, (given, learned) in enumerate(rows):
        begin, text = len(given) - len(MARKERS.end), torch.tensor([[*given, *learned]])
        torch.testing.assert_close(logits[row, : text.shape[1] - begin], forward(input_ids=text).logits[0, begin:])
    theirs = gradients(expected, plain)
    table = next(name for name, weight in plain.named_parameters() if weight is plain.get_input_embeddings().weight)
    pause = theirs[table][VOCABULARY]
    assert pause.abs().max() > 1e-3
    shared = {name: one[:VOCABULARY] if len(one) == VOCABULARY + 1 else one for name, one in theirs.items()}
    assert_same_gradients(of_decoder(gradients(loss, model)), {**shared, "latent_row": pause})


@pytest.mark.parametrize("family", FAMILIES)
def test_pccot_without_iterations_pauses(family: str) -> None:
    model = around(PccotForCausalLM, plain_table(family), latents=4, projection=None, iterations=0)
    objective = Pccot(latents=4, iterations=0, distance_weight=0.0, teacher_weight=0.0)
    batch = distillation_rows(4)
    logits = outputs_of(model, batch).logits
    assert_pauses(objective.loss(model, batch)[0], logits, model, Pause(pauses=4))


@pytest.mark.parametrize("iterations", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_latent_that_is_refined_again_is_codi_s(family: str, iterations: int) -> None:
    shape: dict[str, Any] = {"latents": 1, "projection": NARROW}
    model = around(PccotForCausalLM, tiny_language_model(family), iterations=iterations, **shape)
    other = around(CodiForCausalLM, tiny_language_model(family), **shape)
    loss, _ = Pccot(latents=1, iterations=iterations, distance_weight=0.0).loss(model, distillation_rows(1))
    expected, _ = Codi(latents=1, distance_weight=0.0).loss(other, distillation_rows(1))
    ours = assert_alike(loss, model, expected, other)
    assert not ours["latent_row"].any()  # the guess is forgotten after one pass
    mine, theirs = (one.system(name="one", max_tokens=4).respond(prompts()) for one in (model, other))
    torch.testing.assert_close(mine.chain.latents, theirs.chain.latents, **LOOPED)
    assert torch.equal(mine.filled(PAD), theirs.filled(PAD))


@contextmanager
def caches_of(stack: PreTrainedModel) -> Iterator[list[Any]]:
    """The key-value caches that passes of a stack leave."""
    caches: list[Any] = []
    hook = stack.register_forward_hook(lambda _, __, outputs: caches.append(outputs.past_key_values))
    yield caches
    hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_as_many_iterations_as_latents_leave_codi_s_keys_and_values(family: str) -> None:
    shape: dict[str, Any] = {"latents": 3, "projection": NARROW}
    batch = distillation_rows(3)
    real = torch.cat([batch["attention_mask"], batch["latent_mask"].long(), batch["text_mask"]], dim=1).bool()

    def states(model: Any) -> Tensor:
        """Keys and values ``[L, R, H, 2 D]`` of all R tokens and latents that are not padding."""
        with caches_of(model.decoder.base_model) as caches:
            outputs_of(model, batch)
        layers = [cache for cache in caches if cache is not None][-1].layers
        return torch.stack([torch.cat([one.keys, one.values], dim=-1).transpose(1, 2)[real] for one in layers])

    expected = states(around(CodiForCausalLM, tiny_language_model(family), **shape))
    for iterations in (2, 3, 5):
        model = around(PccotForCausalLM, tiny_language_model(family), iterations=iterations, **shape)
        if iterations < 3:  # the last latent is not there yet
            assert (states(model) - expected).abs().max() > 1e-2
        else:
            torch.testing.assert_close(states(model), expected, **LOOPED)


# --- LOTUS -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_lotus_without_iterations_pauses_in_one_pass(family: str, size: int) -> None:
    model = around(LotusForCausalLM, plain_table(family), latents=2 * size, iterations=0)
    with torch.no_grad():
        model.latent_row *= 1.5  # no row of the table any more
    objective = Lotus(replaced=2, latents_per_step=size, iterations=0, latent_weight=0.0)
    batch = lotus_batch(objective, SPANS, MARKERS, PAD)
    passes: list[int] = []
    hook = model.decoder.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    loss, terms = objective.loss(model, batch)
    hook.remove()
    assert len(passes) == 1
    names = ("input_ids", "attention_mask", "latent_mask", "text_ids", "text_mask")
    logits = model(**{name: batch[name] for name in names}).logits
    assert_pauses(loss, logits, model, Pause(pauses=2 * size, replaced=2))
    if size == 1:  # a latent stands for the first token of its step, which the output before it predicts
        plain, losses = with_pause_row(model), []
        for row in SPANS:
            ids = torch.tensor([[*row.prompt, *OPEN, *[VOCABULARY] * 2]])
            scores = plain(input_ids=ids).logits[0, len(row.prompt) + len(OPEN) - 1 :, :VOCABULARY]
            first = torch.tensor([step[0] for step in row.steps[:2]])
            losses.append(F.cross_entropy(scores[: len(first)], first, reduction="none"))
        torch.testing.assert_close(terms["latent_loss"], torch.cat(losses).mean(), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_latents_of_lotus_begin_as_copies_of_the_open_marker(family: str) -> None:
    model = around(LotusForCausalLM, tiny_language_model(family), latents=4, iterations=0)
    objective, pause = (
        Lotus(replaced=2, latents_per_step=2, iterations=0, latent_weight=0.0),
        Pause(pauses=4, replaced=2),
    )
    rows = [pause.row(one, MARKERS, OPEN[-1]) for one in SPANS]
    loss, _ = objective.loss(model, lotus_batch(objective, SPANS, MARKERS, PAD))
    torch.testing.assert_close(loss, pause.loss(model.decoder, {**pause_batch(rows, PAD)})[0], **CLOSE)


# --- losses on the latents of a carrier ------------------------------------------------------------------------------

CARRIERS: dict[str, Any] = {"codi": Codi(latents=3, last_step=True), "coconut": Coconut(replaced=3, rest="none")}
NAMES = ("input_ids", "attention_mask", "latent_mask", "text_ids", "text_mask", "distilled_at", "teacher", "teacher_at")


def carried(objective: AddedLoss, family: str, spans: Sequence[Spans] = SPANS, **settings: Any) -> Any:
    """The model of an added loss in training, and a batch of its carrier."""
    base, stage = tiny_language_model(family, **settings), objective.carrier
    if isinstance(stage, Coconut):
        return objective.wrapped(coconut(base)).eval(), coconut_rows(stage, spans)
    model = around(CodiForCausalLM, base, latents=stage.latents, projection=NARROW)
    return objective.wrapped(model).eval(), distillation_rows(stage.latents, spans, last_step=True)


def added_to(objective: AddedLoss, batch: dict[str, Any], spans: Sequence[Spans] = SPANS) -> dict[str, Any]:
    """What the latents of a batch learn besides."""
    rows = [
        CarriedRow(index=index, steps=objective.carrier.replaced_steps(one, index, 0), latents=count, answer=one.answer)
        for index, (one, count) in enumerate(zip(spans, batch["latent_mask"].sum(dim=1).tolist(), strict=True))
    ]
    context: Any = SimpleNamespace(seed=0, tokenizer=SimpleNamespace(eos_token_id=END, pad_token_id=PAD))
    return {**objective.targets(rows, context)}


def added_alone(objective: AddedLoss, model: CarrierModel, batch: dict[str, Any], added: dict[str, Any]) -> Tensor:
    """The added loss without its weight."""
    _, scores = model(added=added, **{name: batch[name] for name in NAMES if name in batch})
    return objective.added_loss(scores, added)


@pytest.mark.parametrize("kind", [SimCot, Mux])
@pytest.mark.parametrize("carrier", CARRIERS)
def test_without_the_added_loss_the_carrier_learns_as_it_does_alone(carrier: str, kind: type[AddedLoss]) -> None:
    objective = kind(carrier=CARRIERS[carrier], weight=0.7)
    # With dropout, so that the added loss must not draw a random number before the carrier does.
    model, batch = carried(objective, "gpt2", resid_pdrop=0.3)
    model.train()
    added = added_to(objective, batch)
    torch.manual_seed(3)
    loss, terms = objective.loss(model, {**batch, "added": added})
    torch.manual_seed(3)
    apart = added_alone(objective, model, batch, added)
    torch.manual_seed(3)
    expected, own = objective.carrier.loss(model.carrier, batch)
    assert all(torch.equal(terms[name], value) for name, value in own.items())
    torch.testing.assert_close(loss - 0.7 * apart, expected, **CLOSE)
    theirs, through, ours = (gradients(one, model) for one in (expected, apart, loss))
    of_carrier = {name: gradient for name, gradient in theirs.items() if name.startswith("carrier.")}
    assert_same_gradients({name: ours[name] - 0.7 * through[name] for name in of_carrier}, of_carrier)
    assert max(float(through[name].abs().max()) for name in of_carrier) > 1e-2
    # Weights of its own learn from the added loss alone.
    own_weights = {name: 0.7 * gradient for name, gradient in through.items() if name not in of_carrier}
    assert_same_gradients(ours, own_weights)
    assert bool(own_weights) == (kind is SimCot)
    assert not any(theirs[name].any() for name in own_weights)


def naive_latents(model: CarrierModel, prompt: Sequence[int], count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and latents ``[1, 1, D]`` of one row; the sequence is read anew for each of them."""
    carrier, outputs, latents = model.carrier, list[Tensor](), list[Tensor]()
    before = carrier.get_input_embeddings()(torch.tensor([[*prompt, *OPEN]]))
    for _ in range(count):
        inputs = torch.cat([before, *latents], dim=1)
        outputs.append(carrier.decoder.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1:])
        latents.append(carrier.latent(outputs[-1]) if isinstance(carrier, CodiForCausalLM) else outputs[-1])
    return outputs, latents


@pytest.mark.parametrize("thought", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_spelled_thought_reaches_all_thoughts_before_it(carrier: str, family: str, thought: int) -> None:
    objective = SimCot(carrier=CARRIERS[carrier])
    model, batch = carried(objective, family, SPANS[:1])
    size, count = objective.carrier.latents_per_explicit_step, objective.carrier.latents
    steps = [step if number == thought else () for number, step in enumerate(SPANS[0].steps)]
    added = step_targets([tuple(steps)], [3], [()], end_id=END, pad_id=PAD)
    made: list[Tensor] = []

    def keep(_: Any, __: Any, outputs: Any) -> None:
        outputs.last_hidden_state.retain_grad()
        made.append(outputs.last_hidden_state)

    # An output is read by nothing but the latent that is made of it. Later passes see it through that latent alone,
    # while a latent that was cut off would still be seen through the cache.
    hook = model.carrier.decoder.base_model.register_forward_hook(keep)
    added_alone(objective, model, batch, added).backward()
    hook.remove()
    outputs, latents = naive_latents(model, SPANS[0].prompt, count)
    target = torch.tensor([*SPANS[0].steps[thought], END])
    inputs = torch.cat([*latents[thought * size :][:size], model.get_input_embeddings()(target[None])], dim=1)
    logits = model.step_decoder(inputs_embeds=inputs, use_cache=False).logits[0, size - 1 : -1]
    theirs = torch.autograd.grad(F.cross_entropy(logits, target), outputs, allow_unused=True)
    for number, (output, expected) in enumerate(zip(made, theirs, strict=False)):
        if number < (thought + 1) * size:
            assert output.grad is not None and expected is not None
            largest = float(expected.abs().max())
            assert largest > 1e-4
            torch.testing.assert_close(output.grad[:, -1:], expected, rtol=1e-3, atol=2e-4 * largest)
        else:  # the thoughts after it learn nothing from it
            assert output.grad is None or not output.grad.any()


@pytest.mark.parametrize("carrier", ["{kind: codi, latents: 2}", "{kind: coconut, replaced: 1}"], ids=CARRIERS)
def test_no_answer_depends_on_the_decoder_of_steps(carrier: str) -> None:
    stage = f"stages.sim_cot.objective={{kind: sim_cot, carrier: {carrier}}}"
    made = drilled("words", None, stage, "stages.sim_cot.start=cot")
    context, objective = context_of(made, made.stage("sim_cot")), made.stage("sim_cot").objective
    assert isinstance(objective, SimCot)
    base = tiny_language_model("llama", vocab_size=len(context.tokenizer), max_position_embeddings=160)
    rows = [row.prompt for row in context.task.spans(context.sample(np.arange(4)), context.prompt_format)]
    ids, mask = left_padded([torch.tensor(row) for row in rows])

    def answers(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        (system,) = catalogue.systems(model.eval(), stage="sim_cot", max_answer=5)
        answer = system.respond(ids, mask)
        return answer.chain.latents, answer.filled(PAD)

    torch.manual_seed(1)
    model: Any = objective.build(base, context)
    torch.manual_seed(1)
    alone = objective.carrier.exported(objective.carrier.build(base, context))
    expected = answers(alone)
    enliven(model.step_decoder, "talker")
    published = objective.exported(model)
    assert not any("step_decoder" in name for name in published.state_dict())
    assert published.state_dict().keys() == alone.state_dict().keys()
    for actual in (answers(objective.answering(model)), answers(published)):
        assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_latent_of_mux_that_stands_for_one_token_learns_its_cross_entropy(family: str) -> None:
    # As many latents as the longest chain has tokens, so that no span has two.
    objective = Mux(carrier=Coconut(replaced=5, latents_per_step=1, rest="none"), temperature=2.0)
    model, batch = carried(objective, family)
    added = added_to(objective, batch)
    assert added["span_ids"].shape[1] == 1
    latents = model.carrier(**{name: batch[name] for name in NAMES if name in batch}).latents
    # The head gets no gradient: the latents learn what it reads.
    head = model.carrier.decoder.get_output_embeddings().weight.detach()
    first = torch.cat([own[: len(row.chain)] for own, row in zip(latents, SPANS, strict=True)])
    tokens = torch.tensor([token for row in SPANS for token in row.chain])
    expected = F.cross_entropy(first @ head.T / 2, tokens)
    assert_alike(added_alone(objective, model, batch, added), model, expected, model)


# --- CoLaR -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_colar_without_compression_and_latent_loss_is_explicit_tuning(family: str) -> None:
    speeds = [[10]]
    how: dict[str, Any] = {"compression": 1, "speed_ids": speeds, "latents": 4, "head_width": 8}
    model = around(ColarForCausalLM, tiny_language_model(family), **how)
    objective = Colar(max_compression=1, compression=1, speed="{}", latent_weight=0.0)
    draws = np.random.default_rng(0)
    batch = {**colar_batch([objective.row(row, MARKERS, speeds, draws) for row in SPANS], PAD)}
    # Of the template one thing differs: the prompt names the speed.
    texts = [((*row.prompt, *speeds[0], *OPEN), (*row.chain, *MARKERS.end, *row.answer)) for row in SPANS]
    loss, _ = objective.loss(model, batch)
    # Table and head of CoLaR do not learn; `gradients` leaves them out on both sides.
    ours = assert_alike(loss, model, tuned(model.decoder, texts), model.decoder)
    assert not any(gradient.any() for name, gradient in ours.items() if name.startswith("latent_head."))


# --- Soft Thinking and budget forcing --------------------------------------------------------------------------------

# The first token of the end marker, which random weights choose early, late and never.
ENDS = {"unspoken": 3, "llama": 7, "qwen2": 11, "gpt2": 4}
CAP = 8


# A distribution with all of its weight on one token, of few tokens and of the whole vocabulary.
COLD = (SoftThinking(top_k=10, temperature=1e-6), SoftThinking(top_k=None, temperature=1e-6))


@pytest.mark.parametrize(
    ("family", "way"), [*product(FAMILIES, [SoftThinking(top_k=1)]), *product(("unspoken", "llama"), COLD)]
)
def test_soft_thinking_in_one_token_is_the_explicit_chain(family: str, way: SoftThinking) -> None:
    model = tiny_language_model(family)
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(ENDS[family], 6), top_k=1, max_latents=CAP)
    settings.attach(model)
    explicit = causal_lm_system(model, settings, name=family, max_tokens=5)
    given = left_padded([row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)])
    expected = explicit.respond(*given)
    answer = way.applied(replace(explicit, text_format=TEXT_FORMAT)).respond(*given)
    assert {StopReason.END, StopReason.CAP} == {StopReason(int(reason)) for reason in expected.chain.stop}
    for name in ("latents", "mask", "stop"):
        assert torch.equal(getattr(answer.chain, name), getattr(expected.chain, name)), name
    assert torch.equal(answer.filled(PAD), expected.filled(PAD))
    # Each step is the row of the token that a plain model would write there.
    for row, (prompt, mask) in enumerate(zip(*given, strict=True)):
        tokens = greedy(model, (*prompt[mask.bool()].tolist(), 2), CAP, ENDS[family])
        written = [token for token in tokens if token != ENDS[family]]
        rows = model.get_input_embeddings()(torch.tensor(written, dtype=torch.long))
        assert torch.equal(answer.chain.latents[row][answer.chain.mask[row]], rows)


PROBLEMS = [torch.tensor(row.prompt) for row in TASK.spans(TASK.sample("test", range(8)), PROMPT_FORMAT)]


def closing(family: str, further: tuple[int, ...]) -> System:
    """A model that closes some of its chains: its end marker begins with a token that it writes in the middle of one.

    Args:
        further: tokens of the marker after that one, which the model would not write.
    """
    system = tiny_word_system(family, top_k=1, max_latents=CAP)
    written = system.respond(*left_padded(PROBLEMS)).chain.support_ids
    assert written is not None
    ends = (int(written[0, 2, 0]), *further)
    settings = LatentGenerationConfig(open_ids=PROMPT_FORMAT.markers.open, end_ids=ends, top_k=1, max_latents=CAP)
    settings.attach(system.model)
    made = causal_lm_system(system.model, settings, name=family, max_tokens=4)
    return replace(made, text_format=system.text_format)


@pytest.mark.parametrize("family", ["unspoken", "gpt2"])
@torch.no_grad()
def test_a_budget_that_is_never_spent_leaves_a_plain_model_s_text(family: str) -> None:
    system = closing(family, ())
    (end,) = system.speaker.marker
    (eos,) = system.speaker.end_ids
    answer = BudgetForcing(budget=40).applied(system).respond(*left_padded(PROBLEMS))
    closed = (answer.chain.stop == StopReason.END).nonzero()[:, 0].tolist()
    assert closed
    for row in closed:
        assert answer.chain.support_ids is not None
        thought = answer.chain.support_ids[row, :, 0][answer.chain.mask[row]].tolist()
        text = [*thought, end, *answer.tokens[row, : answer.lengths[row]].tolist()]
        assert eos not in thought  # the library's own generation would end there
        ids = torch.tensor([[*PROBLEMS[row].tolist(), *system.opening]])
        plain = system.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(text), do_sample=False, eos_token_id=eos
        )
        assert plain[0, ids.shape[1] :].tolist() == text


@pytest.mark.parametrize("further", [(), (9,)], ids=["one token", "two tokens"])
@pytest.mark.parametrize("family", ["unspoken", "gpt2"])
@torch.no_grad()
def test_the_end_marker_is_read_once_however_a_chain_is_closed(family: str, further: tuple[int, ...]) -> None:
    system = closing(family, further)
    table = system.model.get_input_embeddings()(torch.arange(len(TASK.tokenizer)))
    stack, read = system.reasoner.stack, list[Tensor]()
    hook = stack.register_forward_pre_hook(lambda _, __, given: read.append(given["inputs_embeds"]), with_kwargs=True)
    reasons = set()
    for prompt in PROBLEMS[:2]:
        free = BudgetForcing(budget=12).applied(system).respond(prompt[None]).chain
        written = [] if free.support_ids is None else free.support_ids[0, :, 0][free.mask[0]].tolist()
        # Without a thought, cut off, closed by the model and by force at once, and closed by the model.
        for budget in {0, 1, max(len(written) - 1, 0), len(written), len(written) + 1}:
            read.clear()
            answer = BudgetForcing(budget=budget).applied(system).respond(prompt[None])
            reasons.add(StopReason(int(answer.chain.stop[0])))
            # What the stack has read are rows of the table, which tell the tokens.
            ids = (torch.cat(read, dim=1)[0][:, None] == table).all(dim=-1).float().argmax(dim=1).tolist()
            tokens = answer.tokens[0, : int(answer.lengths[0])].tolist()
            thought = written[:budget]
            assert ids == [*prompt.tolist(), *system.opening, *thought, *system.speaker.marker, *tokens[:-1]]
    hook.remove()
    assert reasons == {StopReason.END, StopReason.CAP}
