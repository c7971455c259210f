"""What the stages minimise: values by hand, a dense reference, and labels that are the model's own thoughts."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recorded import batch_digest, check_default_stages, check_plans
from settings_checks import check_defaults, check_ranges, check_recorded
from tiny_models import PAD, VOCABULARY, WIDTH, tiny_language_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unspoken.methods.latent_sft.building import generation_of
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.model import LatentSFTModel, LatentSFTOutput
from unspoken.methods.latent_sft.objective import divergences, token_losses
from unspoken.methods.latent_sft.stages import Labels, LatentShape, Stage1, Stage2
from unspoken.methods.rows import Kind, Rows, compact_rows, decoder_rows
from unspoken.reasoning import superposition
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import StopRule, rollout
from unspoken.reasoning.latents import Noise
from unspoken.reasoning.superposition import distribution, embedding_table, mix, readout_of
from unspoken.tasks.spans import Markers, Spans

MARKERS = Markers(open=(5,), end=(7, 3))
# Two latents, none, and one; after them two words of the marker and the answer.
BATCH = [
    Spans(prompt=(3, 11), steps=((13, 14, 15),), answer=(18, 1)),
    Spans(prompt=(12,), steps=(), answer=(1,)),
    Spans(prompt=(4, 9, 8), steps=((16, 17),), answer=(19, 14, 1)),
]
COUNTS, WORDS = [2, 0, 1], 4 + 3 + 5


def compact(batch: list[Spans] = BATCH) -> Rows:
    return compact_rows(batch, MARKERS, rate=2, pad_id=PAD)


# --- cross-entropy ---------------------------------------------------------------------------------------------------


def test_no_opinion_costs_the_logarithm_of_the_vocabulary() -> None:
    losses = token_losses(torch.zeros(3, 4), torch.randn(9, 4), torch.tensor([0, 4, 8]))
    torch.testing.assert_close(losses, torch.full((3,), math.log(9)))


def test_cross_entropy_by_hand() -> None:
    # Scores log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8.
    head = torch.tensor([1.0, 2.0, 5.0]).log()[:, None]
    losses = token_losses(torch.ones(3, 1), head, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(losses, torch.tensor([8.0, 4.0, 1.6]).log())


# --- divergence ------------------------------------------------------------------------------------------------------


def dense_divergence(student_NV: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """Summed over the whole vocabulary in plain words; what the teacher does not name has weight 0."""
    actual = []
    for scores, own_weights, own_ids in zip(student_NV, weights.tolist(), ids.tolist(), strict=True):
        teacher = dict(zip(own_ids, own_weights, strict=True))
        log_q = scores - scores.exp().sum().log()
        actual.append(sum((p * (math.log(p) - log_q[v]) for v, p in teacher.items() if p), torch.zeros(())))
    return torch.stack(actual)


@pytest.mark.parametrize("entries", [1, 3, 12])
def test_divergence_is_the_dense_one_in_value_and_gradient(entries: int) -> None:
    hidden, head = torch.randn(6, 4).requires_grad_(), torch.randn(12, 4)
    weights = torch.randn(6, entries).softmax(dim=-1)
    ids = torch.stack([torch.randperm(12)[:entries] for _ in range(6)])
    actual, expected = divergences(hidden, head, weights, ids), dense_divergence(hidden @ head.T, weights, ids)
    torch.testing.assert_close(actual, expected)
    required = torch.randn(6)
    ours, reference = (torch.autograd.grad(loss, hidden, required)[0] for loss in (actual, expected))
    torch.testing.assert_close(ours, reference)
    assert (actual >= -1e-6).all()


def test_a_student_that_agrees_costs_nothing_and_has_no_gradient() -> None:
    hidden, head = torch.randn(6, 4).requires_grad_(), torch.randn(12, 4)
    weights, ids = (hidden @ head.T).softmax(dim=-1).detach().sort(dim=-1)
    loss = divergences(hidden, head, weights, ids)
    torch.testing.assert_close(loss, torch.zeros(6), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), hidden)
    torch.testing.assert_close(gradient, torch.zeros(6, 4), rtol=0, atol=1e-6)


def test_a_teacher_of_few_entries_costs_the_mass_that_the_student_gives_to_others() -> None:
    # The student is normalised over the whole vocabulary: KL of the renormalised top 3 is minus the log of their mass.
    hidden, head = torch.randn(6, 4), torch.randn(12, 4)
    mass, ids = (hidden @ head.T).softmax(dim=-1).topk(3, dim=-1)
    loss = divergences(hidden, head, mass / mass.sum(dim=-1, keepdim=True), ids)
    torch.testing.assert_close(loss, -mass.sum(dim=-1).log())
    assert (loss > 0.001).all()


def test_a_certain_teacher_is_cross_entropy() -> None:
    hidden, head, tokens = torch.randn(6, 4), torch.randn(12, 4), torch.arange(6)
    certain = divergences(hidden, head, torch.ones(6, 1), tokens[:, None])
    torch.testing.assert_close(certain, token_losses(hidden, head, tokens))


def test_entries_of_weight_zero_cost_nothing_and_break_nothing() -> None:
    hidden, head = torch.randn(2, 4).requires_grad_(), torch.randn(12, 4)
    ids = torch.tensor([[3, 5, 7], [1, 2, 4]])
    weights = torch.tensor([[0.4, 0.6, 0.0], [1.0, 0.0, 0.0]])
    loss = divergences(hidden, head, weights, ids)
    torch.testing.assert_close(loss[0], divergences(hidden[:1], head, weights[:1, :2], ids[:1, :2])[0])
    loss.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


# --- a piece at a time -----------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Watches the size of every tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


@pytest.mark.parametrize("piece", [1, 3, 4, 11, 12])
def test_a_piece_at_a_time_is_the_whole_in_value_and_gradient(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head = torch.randn(12, 4).requires_grad_(), torch.randn(30, 4)
    tokens, ids = torch.randint(30, (12,)), torch.stack([torch.randperm(30)[:5] for _ in range(12)])
    weights, required = torch.randn(12, 5).softmax(dim=-1), torch.randn(12)

    def both() -> list[Tensor]:
        losses = (token_losses(hidden, head, tokens), divergences(hidden, head, weights, ids))
        return [*losses, *(torch.autograd.grad(loss, hidden, required)[0] for loss in losses)]

    complete = both()
    monkeypatch.setattr(superposition, "SCORED", piece)
    for one, other in zip(both(), complete, strict=True):
        torch.testing.assert_close(one, other)


def test_scores_over_the_vocabulary_exist_for_one_piece_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superposition, "SCORED", 10)
    hidden, head = torch.randn(80, 4).requires_grad_(), torch.randn(200, 4)
    with Largest() as largest:
        token_losses(hidden, head, torch.randint(200, (80,))).sum().backward()
        weights, ids = torch.full((80, 2), 0.5), torch.randint(200, (80, 2))
        divergences(hidden, head, weights, ids).sum().backward()
    assert largest.numbers <= 10 * 200


# --- stage 1 ---------------------------------------------------------------------------------------------------------


def test_stage_one_is_a_mean_over_tokens_and_tells_its_two_parts_apart() -> None:
    batch = [BATCH[0], BATCH[2]]
    rows = decoder_rows(batch, MARKERS, rate=2, pad_id=PAD)
    # One word of chunk text (the third of the first chain), then marker and answer of both.
    kinds = rows.kind[:, 1:][rows.target[:, 1:]]
    tokens = [15, 7, 3, 18, 1, 7, 3, 19, 14, 1]
    assert kinds.tolist() == [Kind.TEXT] + [Kind.FINAL] * 9
    hidden, head = torch.randn(10, 4), torch.randn(20, 4)
    scores = (hidden @ head.T).log_softmax(dim=-1)
    expected = torch.stack([-scores[position, token] for position, token in enumerate(tokens)])
    out = LatentSFTOutput(before_targets=hidden, before_slots=torch.randn(3, 4), head=head)
    loss, terms = Stage1(train="encoder", shape=LatentShape()).loss(lambda **_: out, {"decoder": rows, "encoder": None})
    torch.testing.assert_close(loss, expected.mean())
    torch.testing.assert_close(terms["chunk_loss"], expected[0])
    torch.testing.assert_close(terms["final_loss"], expected[1:].mean())
    # The formula of the paper: the first row has two latents, each with a mean of its own, the second row has one.
    loss, same = Stage1(train="union", mean="chunks").loss(lambda **_: out, {"decoder": rows, "encoder": None})
    first = (expected[0] + expected[1:5].mean()) / 2
    torch.testing.assert_close(loss, (first + expected[5:].mean()) / 2)
    assert same == terms


def test_a_hint_asks_each_latent_itself_for_what_it_must_predict() -> None:
    batch = [BATCH[0], BATCH[2]]
    rows = decoder_rows(batch, MARKERS, rate=2, pad_id=PAD)
    # The first latent of the first chain stands before 15; the second, and the other row's, before the marker's 7.
    hidden, head, summaries = torch.randn(10, 4), torch.randn(20, 4), torch.randn(3, 4)
    out = LatentSFTOutput(before_targets=hidden, before_slots=torch.randn(3, 4), summaries=summaries, head=head)
    given = {"decoder": rows, "encoder": None}
    plain, _ = Stage1(train="union").loss(lambda **_: out, given)
    loss, terms = Stage1(train="union", hint=0.5).loss(lambda **_: out, given)
    scores = (summaries @ head.T).log_softmax(dim=-1)
    expected = -(scores[0, 15] + scores[1, 7] + scores[2, 7]) / 3
    torch.testing.assert_close(terms["hint_loss"], expected)
    torch.testing.assert_close(loss, plain + 0.5 * expected)


def test_terms_carry_no_gradient() -> None:
    hidden = torch.randn(WORDS, 4).requires_grad_()
    out = LatentSFTOutput(before_targets=hidden, before_slots=hidden[:3] * 2, head=torch.randn(20, 4))
    batch = {"decoder": compact(), "weights": torch.full((3, 2), 0.5), "ids": torch.tensor([[4, 5]] * 3)}
    for stage in (Stage1(train="union"), Stage2()):
        loss, terms = stage.loss(lambda **_: out, {**batch, "encoder": None})
        assert loss.requires_grad
        assert not any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize(
    "how",
    [
        {"train": "encoder"},
        {"train": "decoder", "shape": LatentShape()},
        {"train": "union", "shape": LatentShape()},
    ],
)
def test_a_shape_is_given_where_a_line_of_stages_starts(how: Any) -> None:
    with pytest.raises(ValueError, match="give shape where train is 'encoder', and nowhere else"):
        Stage1(**how)


# --- stage 2 ---------------------------------------------------------------------------------------------------------


def learned(hidden: Tensor, slots: Tensor, head: Tensor, weights: Tensor, ids: Tensor | None, how: Stage2) -> Any:
    out = LatentSFTOutput(before_targets=hidden, before_slots=slots, head=head)
    return how.loss(lambda **_: out, {"decoder": compact(), "weights": weights, "ids": ids})


def test_divergence_is_averaged_in_each_row_first_and_over_rows_that_have_latents() -> None:
    slots, head = torch.randn(3, 4), torch.randn(20, 4)
    weights, ids = torch.rand(3, 5).softmax(dim=-1), torch.stack([torch.randperm(20)[:5] for _ in range(3)])
    each = dense_divergence(slots @ head.T, weights, ids)
    _, terms = learned(torch.randn(WORDS, 4), slots, head, weights, ids, Stage2())
    torch.testing.assert_close(terms["latent_loss"], ((each[0] + each[1]) / 2 + each[2]) / 2)
    assert abs(float(terms["latent_loss"] - each.mean())) > 0.01


def test_cross_entropy_is_averaged_over_the_tokens_of_all_rows() -> None:
    hidden, head = torch.randn(WORDS, 4), torch.randn(20, 4)
    output = [7, 3, 18, 1, 7, 3, 1, 7, 3, 19, 14, 1]
    expected = F.cross_entropy(hidden @ head.T, torch.tensor(output))
    weights, ids = torch.full((3, 2), 0.5), torch.tensor([[4, 5]] * 3)
    _, terms = learned(hidden, torch.randn(3, 4), head, weights, ids, Stage2())
    torch.testing.assert_close(terms["token_loss"], expected)


@pytest.mark.parametrize(("ce", "kl"), [(1.0, 1.0), (2.0, 0.5), (0.0, 1.0), (1.0, 0.0)])
def test_each_loss_has_its_weight(ce: float, kl: float) -> None:
    weights, ids = torch.full((3, 2), 0.5), torch.tensor([[4, 5]] * 3)
    tensors = torch.randn(WORDS, 4), torch.randn(3, 4), torch.randn(20, 4), weights, ids
    loss, terms = learned(*tensors, Stage2(ce_weight=ce, kl_weight=kl))
    torch.testing.assert_close(loss, ce * terms["token_loss"] + kl * terms["latent_loss"])
    assert float(terms["token_loss"]) > 0.1
    assert float(terms["latent_loss"]) > 0.1


@pytest.mark.parametrize("hidden", [False, True])
def test_a_batch_without_latents_is_supervised_by_its_words_alone(hidden: bool) -> None:
    rows = compact([BATCH[1], BATCH[1]])
    outputs = torch.randn(6, 4).requires_grad_()
    out = LatentSFTOutput(before_targets=outputs, before_slots=torch.zeros(0, 4), head=torch.randn(20, 4))
    none = torch.zeros(0, 4 if hidden else 2)
    batch = {"decoder": rows, "weights": none, "ids": None if hidden else torch.zeros(0, 2, dtype=torch.long)}
    loss, terms = Stage2().loss(lambda **_: out, batch)
    torch.testing.assert_close(loss, terms["token_loss"])
    assert terms["latent_loss"] == 0
    loss.backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


def test_without_a_vocabulary_step_directions_are_compared() -> None:
    # Same direction, opposite direction, a right angle: squared distances 0, 4 and 2 of unit vectors.
    # Entries of one place differ from latent to latent, so that only lengths of latents, not of places, give these.
    taught = torch.tensor([[3.0, 4.0, 0, 0], [0, 3.0, 4.0, 0], [0, 0, 3.0, 4.0]])
    slots = torch.tensor([[6.0, 8.0, 0, 0], [0, -1.5, -2.0, 0], [0, 0, 8.0, -6.0]])
    _, terms = learned(torch.randn(WORDS, 4), slots, torch.randn(20, 4), taught, None, Stage2())
    torch.testing.assert_close(terms["latent_loss"], torch.tensor(((0.0 + 4.0) / 2 + 2.0) / 2))


# --- labels that are the model's own thoughts -------------------------------------------------------------------------

# As many latents in every row, because a fixed chain has them.
EVEN = [
    Spans(prompt=(3, 11, 4), steps=((13,) * 8,), answer=(18, 1)),
    Spans(prompt=(12,), steps=((14,) * 8,), answer=(1,)),
    Spans(prompt=(11, 12, 16, 3, 17), steps=((15,) * 8,), answer=(14, 15, 1)),
]


def student(family: str, **shape: Any) -> LatentSFTModel:
    base = tiny_language_model(family)
    config = LatentSFTConfig(
        base_config=base.config, shape=asdict(LatentShape(**shape)), open_ids=[5], end_ids=[7, 3], has_encoder=False
    )
    model = LatentSFTModel._from_config(config, attn_implementation="eager")
    model.start_from(base)
    return model.eval()


@torch.no_grad()
def own_labels(model: LatentSFTModel, top_k: int | None) -> tuple[Tensor, Tensor]:
    """Four free-running thoughts about every question, slot by slot, as a folder of the model's shape records it."""
    given: Any = SimpleNamespace(generation=partial(LatentGenerationConfig, open_ids=(5,), end_ids=(7, 3)))
    settings = generation_of(replace(model.config.latent_shape, top_k=top_k), given)
    weights, ids = [], []
    for row in EVEN:
        prompt = torch.tensor([[*row.prompt, 5]])
        reasoner = CausalLMReasoner(model=model.decoder, settings=settings)
        chain = rollout(reasoner, prompt, None, StopRule(max_latents=4, fixed=True))
        assert chain.support_weights is not None and chain.support_ids is not None
        weights.append(chain.support_weights[0])
        ids.append(chain.support_ids[0])
    return torch.cat(weights), torch.cat(ids)


def latent_loss(model: LatentSFTModel, weights: Tensor, ids: Tensor, taught: tuple[Tensor, Tensor]) -> float:
    """The loss of one chain as input against another as target."""
    rows = compact(EVEN)
    with torch.no_grad():
        out = model(rows, weights=weights, ids=ids)
        _, terms = Stage2().loss(lambda **_: out, {"decoder": rows, "weights": taught[0], "ids": taught[1]})
    return float(terms["latent_loss"])


@pytest.mark.parametrize("family", ["unspoken", "llama"])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_a_model_taught_its_own_chain_has_nothing_to_learn(family: str, temperature: float) -> None:
    # Training in parallel and reasoning freely are the same computation, slot by slot, whatever labels are made at.
    model = student(family, temperature=temperature)
    weights, ids = own_labels(model, None)
    assert weights.shape == (12, VOCABULARY)
    assert latent_loss(model, weights, ids, (weights, ids)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@torch.no_grad()
def test_a_student_that_equals_its_labels_feeds_them_back(temperature: float) -> None:
    teacher, hidden = student("llama", temperature=temperature, top_k=None), torch.randn(6, WIDTH)
    head = readout_of(teacher.decoder, "head")
    weights, ids = distribution(hidden, head, None, temperature)
    # Outputs of which the student's head makes these labels.
    learned = hidden / temperature
    torch.testing.assert_close(divergences(learned, head, weights, ids), torch.zeros(6), rtol=0, atol=1e-6)
    given: Any = SimpleNamespace(generation=partial(LatentGenerationConfig, open_ids=(5,), end_ids=(7, 3)))
    settings = generation_of(teacher.config.latent_shape, given)
    step = CausalLMReasoner(model=teacher.decoder, settings=settings).step(learned)
    torch.testing.assert_close(step.latent, mix(weights, ids, embedding_table(teacher.decoder)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["unspoken", "llama"])
def test_labels_that_are_shifted_by_one_slot_are_seen(family: str) -> None:
    model = student(family)
    weights, ids = own_labels(model, None)
    for shift in (1, -1):
        moved = tuple(element.view(3, 4, -1).roll(shift, dims=1).flatten(0, 1) for element in (weights, ids))
        assert latent_loss(model, weights, ids, moved) > 0.1  # type: ignore[arg-type]
        # In the input as well: the row of labels as a whole was read one slot off.
        assert latent_loss(model, *moved, moved) > 0.1  # type: ignore[arg-type, call-arg]


def test_labels_of_another_row_are_seen() -> None:
    model = student("unspoken")
    weights, ids = own_labels(model, None)
    other = tuple(element.view(3, 4, -1).roll(1, dims=0).flatten(0, 1) for element in (weights, ids))
    assert latent_loss(model, *other, other) > 0.1  # type: ignore[arg-type, call-arg]


def test_the_model_learns_its_labels() -> None:
    # A few steps of plain descent on one batch: both losses fall, table and head stay.
    model = student("unspoken").train()
    model.train_only(encoder=False, decoder=True)
    table = model.decoder.get_input_embeddings().weight.detach().clone()
    rows, stage = compact(EVEN), Stage2(noise=None)
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(12, 4, generator=generator).softmax(dim=-1)
    ids = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:4] for _ in range(12)])
    batch = {"decoder": rows, "weights": weights, "ids": ids}
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=0.01, weight_decay=0)
    history = []
    for _ in range(30):
        loss, terms = stage.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((float(terms["token_loss"]), float(terms["latent_loss"])))
    assert history[-1][0] < 0.5 * history[0][0]
    assert history[-1][1] < 0.7 * history[0][1]
    assert torch.equal(model.decoder.get_input_embeddings().weight, table)


# --- settings --------------------------------------------------------------------------------------------------------


class ForwardError(Exception):
    """Raised by a model that computes nothing."""


def inputs_of(stage: Stage1 | Stage2, batch: dict[str, Any]) -> Any:
    """What a stage gives to its model."""

    def forward(**inputs: Any) -> Any:
        raise ForwardError(inputs)

    with pytest.raises(ForwardError) as caught:
        stage.loss(forward, batch)
    return caught.value.args[0]


def test_the_model_is_given_its_part_of_a_batch() -> None:
    noise = Noise(scale=0.5)
    given = inputs_of(Stage1(train="union", noise=noise), {"decoder": 1, "encoder": 2, "other": 3})
    assert given == {"decoder": 1, "encoder": 2, "noise": noise}
    batch = {"decoder": 1, "weights": 2, "ids": 3, "other": 4}
    assert inputs_of(Stage2(), batch) == {"decoder": 1, "weights": 2, "ids": 3}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"train": "decoder", "hint": 0.1}, "hint is 0.1 while train is 'decoder'; it weights a loss of the encoder"),
        ({"train": "union", "hint": -0.1}, "hint is -0.1; it must be 0 or more"),
    ],
)
def test_a_hint_is_for_an_encoder_that_learns(how: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage1(**how)


@pytest.mark.parametrize("how", [{"scale": 0.0}, {"temperature": 0.0}, {"lowest": 1.0, "highest": 1.0}])
def test_noise_that_means_nothing_is_refused(how: dict[str, float]) -> None:
    name, value = next(iter(how.items()))
    with pytest.raises(ValueError, match=f"^{name} is {value}; it must be (above 0|below highest)"):
        Noise(**how)


def test_noise_of_stage_one_is_never_drawn_again() -> None:
    with pytest.raises(ValueError, match=r"noise\.redraw is 'row', but stage 1 draws nothing again; leave it out"):
        Stage1(train="union", noise=Noise(redraw="row"))
    assert Stage2(noise=Noise(redraw="row")).noise == Noise(redraw="row")


def test_labels_are_of_at_least_one_problem() -> None:
    with pytest.raises(ValueError, match="rows is 0"):
        Labels(rows=0)


def test_defaults_are_those_of_the_page() -> None:
    for stage in (Stage1, Labels, Stage2):
        check_defaults(stage, "methods/latent_sft.md", kind=stage.kind)
    check_defaults(LatentShape, "methods/latent_sft.md", prefix="shape.")
    check_recorded(LatentSFTConfig)


def test_settings_end_where_they_say() -> None:
    check_ranges(LatentShape, {"rate": ([1], [0]), "top_k": ([1], [0]), "temperature": ([1e-6], [0.0])})
    check_ranges(Labels, {"rows": ([1], [0])})
    check_ranges(Stage1, {"hint": ([0.0], [-0.01])}, train="union")
    check_ranges(Stage2, {"rollout_latents": ([0], [-1]), "rollout_passes": ([1], [0])})


def test_what_is_read_is_what_recorded_runs_read() -> None:
    assert batch_digest("arithmetic", "encoder") == "5b5a4d1dad25"


def test_stages_and_what_they_take_are_the_recorded_ones() -> None:
    check_plans("arithmetic tiny", "cups small")
    check_default_stages("latent-sft")
