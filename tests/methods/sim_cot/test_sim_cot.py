"""SIM-CoT against one step at a time, and the identities of its specification."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from latent_models import BOX, MARKERS, NARROW, SPANS, around, assert_same_gradients, caches_kept, gradients
from recorded import batch_digest, check_default_stages, check_plans
from safetensors.torch import load_file
from settings_checks import check_defaults
from tiny_drills import drilled
from tiny_models import END, FAMILIES, PAD, tiny_language_model
from tiny_recipe import quiet_stage, quiet_train
from torch import Tensor

from unspoken.methods import catalogue
from unspoken.methods.carrier import Steps
from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.coconut.objective import batch_of as coconut_batch
from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.codi.model import CodiForCausalLM
from unspoken.methods.codi.stages import Codi
from unspoken.methods.distillation_loss import batch_of as codi_batch
from unspoken.methods.loading import load_model
from unspoken.methods.sim_cot.model import SimCotModel
from unspoken.methods.sim_cot.objective import step_targets
from unspoken.methods.sim_cot.stages import SimCot
from unspoken.training import recipe as recipes
from unspoken.training.context import context_of
from unspoken.training.plan import plan
from unspoken.training.recipe import Recipe
from unspoken.training.stages import data_of

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
CARRIERS = ("codi", "coconut")
ON: dict[str, SimCot] = {
    "codi": SimCot(carrier=Codi(latents=2), weight=0.5),
    "coconut": SimCot(carrier=Coconut(replaced=2, rest="none"), weight=0.5),
}
# What the latents of each row spell: CODI's chains lack their last step, and Coconut's last latents spell the rest.
SPELLED: dict[str, list[Steps]] = {
    "codi": [((13, 14), (15,)), (), ((19,),)],
    "coconut": [((13, 14), (15, 4, 4)), ((16, 17),), ((19,), (18, 3))],
}


def model_on(carrier: str, family: str = "unspoken") -> SimCotModel:
    base = tiny_language_model(family)
    if carrier == "codi":
        return SimCotModel(around(CodiForCausalLM, base, latents=2, projection=NARROW), 1).eval()
    model = CoconutModel._from_config(base.config, attn_implementation="eager")
    model.start_from(base)
    return SimCotModel(model, 2).eval()


def batch_on(carrier: str) -> dict[str, Any]:
    stage = ON[carrier].carrier
    if isinstance(stage, Coconut):
        batch: dict[str, Any] = coconut_batch([stage.row(one, MARKERS.open, MARKERS.end) for one in SPANS], PAD)
    else:
        batch = codi_batch(SPANS, MARKERS, BOX, latents=2, last_step=False, pad_id=PAD)
    steps = [stage.replaced_steps(one, 0, 0) for one in SPANS]
    return {**batch, "added": step_targets(steps, [2, 2, 2], [()] * 3, end_id=END, pad_id=PAD)}


def naive_loss(model: SimCotModel, latents: Tensor, spelled: list[Steps]) -> Tensor:
    """One step at a time, each after its own latents alone."""
    size = model.latents_per_explicit_step
    losses: list[list[Tensor]] = [[], []]
    embed = model.carrier.get_input_embeddings()
    for row, steps in zip(latents, spelled, strict=True):
        for number, step in enumerate(steps):
            target = torch.tensor([*step, END])
            inputs = torch.cat([row[number * size : (number + 1) * size], embed(target)])
            logits = model.step_decoder(inputs_embeds=inputs[None], use_cache=False).logits[0]
            losses[number].append(F.cross_entropy(logits[size - 1 : -1], target, reduction="none"))
    # Every step weighs the same, however long it is.
    return torch.stack([torch.cat(step).mean() for step in losses if step]).mean()


@pytest.mark.parametrize(("carrier", "family"), [*product(CARRIERS, FAMILIES)])
def test_both_losses_are_the_naive_ones_with_their_gradients(carrier: str, family: str) -> None:
    model, batch, objective = model_on(carrier, family), batch_on(carrier), ON[carrier]
    loss, terms = objective.loss(model, batch)
    alone = {name: part for name, part in batch.items() if name != "added"}
    expected, own = objective.carrier.loss(model.carrier, alone)
    # The carrier's terms are what they are without the added loss, to the bit.
    assert all(torch.equal(terms[name], value) for name, value in own.items())
    shown: list[Any] = []
    objective.carrier.loss(lambda **given: shown.append(model.carrier(**given)) or shown[-1], alone)
    added = naive_loss(model, shown[0].latents, SPELLED[carrier])
    torch.testing.assert_close(terms["sim_cot_loss"], added, **CLOSE)
    theirs = gradients(expected + 0.5 * added, model)
    assert_same_gradients(gradients(loss, model), theirs)
    assert all(part.abs().max() > 1e-5 for name, part in theirs.items() if "step_decoder" in name and "mlp" in name)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_step_reaches_its_latents_and_those_before_and_none_after(carrier: str) -> None:
    model, batch = model_on(carrier, "llama"), batch_on(carrier)
    read: list[Tensor] = []

    def keep(_: Any, __: Any, given: dict[str, Any]) -> None:
        if given.get("inputs_embeds") is not None and given["inputs_embeds"].shape[1] == 1:
            given["inputs_embeds"].retain_grad()
            read.append(given["inputs_embeds"])

    hook = model.carrier.decoder.base_model.register_forward_pre_hook(keep, with_kwargs=True)
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "latent_mask", "text_ids", "text_mask")}
    more = ("distilled_at", "teacher", "teacher_at")
    outputs = model.carrier(**given, **{name: batch[name] for name in more if name in batch})
    hook.remove()
    size = model.latents_per_explicit_step
    # The first step of the first row: of the latents, the last is only read with the text.
    thoughts = outputs.latents[:1, :size]
    target = torch.tensor([[13, 14, END]])
    model.read(thoughts, {"step_ids": target, "step_places": torch.arange(3)})[
        torch.arange(3), target[0]
    ].sum().backward()
    reached = [bool(latent.grad is not None and latent.grad[0].any()) for latent in read]
    # Passes read the latents 0, 1, .. one after another; latents of the first step are made of those before them.
    assert reached == [number < size - 1 for number in range(len(read))]
    assert model.carrier.get_input_embeddings().weight.grad.any()


def test_where_no_row_has_latents_the_decoder_has_gradients_all_the_same() -> None:
    # Ranks whose rows have some wait for these.
    model, objective = model_on("coconut"), ON["coconut"]
    rows = [
        replace(objective.carrier, replaced=0, rest="explicit").row(one, MARKERS.open, MARKERS.end) for one in SPANS
    ]
    added = step_targets([()] * 3, [0, 0, 0], [()] * 3, end_id=END, pad_id=PAD)
    batch = {**coconut_batch(rows, PAD), "added": added}
    loss, terms = objective.loss(model, batch)
    loss.backward()
    assert terms["sim_cot_loss"] == 0 and torch.isfinite(loss)
    learned = [weight for weight in model.step_decoder.parameters() if weight.requires_grad]
    assert all(weight.grad is not None and not weight.grad.any() for weight in learned)


def test_a_step_is_spelled_from_its_latents_alone() -> None:
    model, batch = model_on("coconut", "gpt2"), batch_on("coconut")
    latents = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = model.read(latents, batch["added"])
        other = latents.clone()
        other[1:], other[0, 2:] = 7.0, -3.0
        changed = model.read(other, batch["added"])
    first = len((13, 14, END))
    assert torch.equal(together[:first], changed[:first])
    assert (together[first:] - changed[first:]).abs().amax(dim=1).min() > 1e-3


def test_the_decoder_of_steps_keeps_no_cache() -> None:
    model, batch = model_on("coconut", "llama"), batch_on("coconut")
    with caches_kept(model.step_decoder.base_model) as kept:
        ON["coconut"].loss(model, batch)
    assert kept == [False]


def test_steps_are_merged_ended_and_left_alone() -> None:
    chain: Steps = ((3,), (4, 5), (6,))
    spelled = step_targets([chain, chain[:1], ()], [2, 2, 1], [(), (8, END), ()], end_id=END, pad_id=PAD)
    assert spelled["step_ids"].tolist() == [
        *([3, END, PAD, PAD], [4, 5, 6, END]),  # three steps in two places
        *([3, END, PAD, PAD], [8, END, PAD, PAD]),  # a pseudo-step, which ends already
        *([PAD] * 4, [PAD] * 4),
    ]
    assert spelled["step_targets"].tolist() == [3, END, 4, 5, 6, END, 3, END, 8, END]
    assert spelled["step_numbers"].tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 1, 1]
    nothing = step_targets([(), ()], [0, 0], [(), ()], end_id=END, pad_id=PAD)
    model = model_on("coconut")
    assert SimCot.added_loss(ON["coconut"], model.read(torch.zeros(2, 0, 16), nothing), nothing) == 0


def test_a_decoder_that_is_given_the_step_learns_to_repeat_it() -> None:
    # With positions of its own: to attention alone, a vector that is read twice is the same both times.
    model = model_on("codi", "gpt2")
    added = step_targets([((9,),), ((12,),), ((17,),)], [1] * 3, [()] * 3, end_id=END, pad_id=PAD)
    thoughts = model.carrier.get_input_embeddings()(torch.tensor([[9], [12], [17]])).detach()
    optimizer = torch.optim.Adam(model.step_decoder.parameters(), 0.01)
    losses = []
    for _ in range(150):
        loss = ON["codi"].added_loss(model.read(thoughts, added), added)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1
    assert losses[-1] < 0.05


# --- training --------------------------------------------------------------------------------------------------------


def recipe(carrier: str, *overrides: str) -> Recipe:
    own = "{kind: codi, latents: 2}" if carrier == "codi" else "{kind: coconut, replaced: 1, mixed: 0.3}"
    stage = f"stages.sim_cot.objective={{kind: sim_cot, carrier: {own}}}"
    return drilled("words", None, stage, "stages.sim_cot.start=cot", *overrides)


@pytest.mark.parametrize(("carrier", "kind"), [("codi", "CodiForCausalLM"), ("coconut", "UnspokenForCausalLM")])
def test_the_folder_is_the_carrier_s(carrier: str, kind: str, tmp_path: Path) -> None:
    made = recipe(carrier)
    quiet_train(made, tmp_path, only="cot")
    folder = quiet_stage(made, tmp_path, name="sim_cot")
    model = load_model(folder)
    assert type(model).__name__ == kind
    weights = load_file(folder / "model.safetensors")
    assert not any("step_decoder" in name for name in weights)
    before = load_file(tmp_path / "seed-0" / "cot" / "model" / "model.safetensors")
    prefix = "decoder." if carrier == "codi" else ""
    assert all(not torch.equal(weights[prefix + name], weight) for name, weight in before.items())
    (mine,) = catalogue.systems(model, stage="sim_cot", max_answer=5)
    assert mine.stop.fixed and mine.stop.max_latents == 2


@pytest.mark.parametrize("carrier", CARRIERS)
def test_it_starts_as_its_carrier_does(carrier: str) -> None:
    made = recipe(carrier)
    stage = made.stage("sim_cot")
    context, objective = context_of(made, stage), stage.objective
    assert isinstance(objective, SimCot)
    built = []
    for one in (objective, objective.carrier):
        torch.manual_seed(3)
        built.append(one.build(None, context))
    model, plain = built
    assert isinstance(model, SimCotModel)
    for name, weight in plain.state_dict().items():
        assert torch.equal(model.carrier.state_dict()[name], weight), name
    for name, weight in model.carrier.decoder.state_dict().items():
        assert torch.equal(model.step_decoder.state_dict()[name], weight), name
    batch = data_of(made, context).__getitems__([*range(8)])
    spans = context.task.spans(context.sample(np.arange(8) + 16), context.prompt_format)
    steps = [objective.carrier.replaced_steps(one, 16 + row, 0) for row, one in enumerate(spans)]
    spelled = [token for row in steps for token in sum(row, ())]
    assert [token for token in batch["added"]["step_targets"].tolist() if token != END] == spelled


def test_a_plan_counts_the_decoder() -> None:
    made = recipe("codi", "stages.codi.objective={kind: codi, latents: 2}")
    by_name = {one["stage"]: one for one in plan(made)["models"]}
    with_it, without = by_name["sim_cot"], by_name["codi"]
    assert with_it["tokens"] == without["tokens"]
    assert 1.05 * without["flops"] < with_it["flops"] < 1.6 * without["flops"]
    assert with_it["parameters"] > 1.5 * without["parameters"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimCot(carrier=Codi(), weight=0.0), r"weight is 0\.0; .* .for no added loss use kind: codi"),
        (lambda: SimCot(carrier=Codi(latents=0)), "has 0 latents; set latents above 0"),
        (lambda: recipe("codi", "stages.sim_cot.objective.carrier.kind=pause"), "carrier.kind is 'pause'"),
        (lambda: recipe("codi", "stages.sim_cot.start=first"), "a codi stage cannot start from a coconut stage"),
        (lambda: recipe("codi", "attention=flex_attention"), "growing cache"),
    ],
)
def test_a_refusal_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_the_shipped_recipe_trains_each_as_long() -> None:
    made = recipes.load("arithmetic-sim-cot", "tiny")
    assert made.steps(made.stage("sim_cot")) == made.steps(made.stage("codi"))
    assert made.steps(made.stage("sim_coconut")) == made.steps(made.stage("coconut"))


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(SimCot, "methods/sim_cot.md")


def test_what_is_read_is_what_recorded_runs_read() -> None:
    assert batch_digest("arithmetic-sim-cot", "sim_cot") == "3cd4844ce47d"
    assert batch_digest("arithmetic-sim-cot", "sim_coconut") == "5ba9d7ba63cb"
    pseudo = batch_digest("arithmetic-sim-cot", "sim_cot", "stages.sim_cot.objective.pseudo_steps=true")
    assert pseudo == "143dd3c2d1f5"


def test_stages_and_what_they_take_are_the_recorded_ones() -> None:
    check_plans("arithmetic-sim-cot tiny")
    check_default_stages("sim-cot")
