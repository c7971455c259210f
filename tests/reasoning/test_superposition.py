"""A latent is a mixture of table rows: hand-made ones, a dense reference, and the noise on stored ones."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_language_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unspoken.backbone.vocabulary import scores
from unspoken.reasoning import superposition
from unspoken.reasoning.superposition import Noise, choose, embedding_table, mix, noisy, perturb, readout_of, superpose


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def dense(hidden: Tensor, readout: Tensor, table: Tensor, top_k: int | None, temperature: float) -> Tensor:
    """Section 2, with everything outside the k most likely entries struck out."""
    scores = hidden @ readout.T / temperature
    if top_k is not None:
        lowest = scores.sort(dim=-1, descending=True).values[:, top_k - 1 : top_k]
        scores = scores.masked_fill(scores < lowest, -math.inf)
    return scores.softmax(dim=-1) @ table


class Largest(TorchDispatchMode):
    """Watches the size of every tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


# --- choosing --------------------------------------------------------------------------------------------------------


def test_three_scores_by_hand() -> None:
    # Out of 1/7, 4/7 and 2/7 the two best are 2/3 and 1/3 of what is left.
    scores = torch.tensor([[1.0, 4.0, 2.0]]).log() - 5
    weights, ids = choose(scores, 2)
    assert ids.tolist() == [[1, 2]]
    torch.testing.assert_close(weights, torch.tensor([[2 / 3, 1 / 3]]))
    # At temperature 1/2 they are squared first.
    weights, _ = choose(scores, 2, temperature=0.5)
    torch.testing.assert_close(weights, torch.tensor([[16 / 20, 4 / 20]]))
    # And at 2 their roots are taken.
    weights, _ = choose(scores, 2, temperature=2.0)
    torch.testing.assert_close(weights, torch.tensor([[2.0, math.sqrt(2)]]) / (2 + math.sqrt(2)))


@pytest.mark.parametrize("top_k", [1, 3, 12, 40, None])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_weights_sum_to_one_and_fall(top_k: int | None, temperature: float) -> None:
    weights, ids = choose(drawn(6, 12) * 4, top_k, temperature)
    assert weights.shape == (6, min(top_k or 12, 12))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(6))
    assert (weights[:, :-1] >= weights[:, 1:]).all()
    assert all(len(set(row)) == len(row) for row in ids.tolist())


def test_the_whole_vocabulary_is_the_softmax_itself() -> None:
    scores = drawn(6, 12) * 4
    for top_k in (12, None):
        weights, ids = choose(scores, top_k, 0.7)
        torch.testing.assert_close(torch.zeros(6, 12).scatter(1, ids, weights), F.softmax(scores / 0.7, dim=-1))


def test_weights_are_made_in_float32() -> None:
    weights, _ = choose(drawn(6, 12).to(torch.bfloat16), 5)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(6), rtol=0, atol=1e-6)


def test_the_choice_of_entries_has_no_gradient_but_their_weights_do() -> None:
    scores = drawn(2, 12).requires_grad_()
    weights, ids = choose(scores, 3)
    (weights[:, 0] - weights[:, 2]).sum().backward()
    assert scores.grad is not None
    touched = scores.grad != 0
    assert torch.equal(touched, torch.zeros(2, 12).scatter(1, ids, 1.0).bool())


# --- noise while latents are learned ---------------------------------------------------------------------------------


def test_noise_in_training_has_the_law_of_noise_on_labels() -> None:
    weights = torch.tensor([[0.6, 0.3, 0.1]]).repeat(20_000, 1)
    torch.manual_seed(0)
    learned = noisy(weights, Noise())
    labels = perturb(weights, torch.tensor([[4, 5, 6]]).repeat(20_000, 1), torch.Generator().manual_seed(1), end_id=0)
    torch.testing.assert_close(learned.sum(dim=-1), torch.ones(20_000))
    # Standard deviations are about 0.3, so means of 20,000 are within 0.01.
    torch.testing.assert_close(learned.mean(dim=0), labels.mean(dim=0), rtol=0, atol=0.012)
    torch.testing.assert_close(learned.std(dim=0), labels.std(dim=0), rtol=0, atol=0.012)


def test_noise_in_training_lets_the_gradient_through_and_is_off_without_scale() -> None:
    weights = torch.tensor([[0.6, 0.3, 0.1]]).requires_grad_()
    (gradient,) = torch.autograd.grad(noisy(weights, Noise())[0, 0], weights)
    assert gradient.abs().min() > 0
    torch.testing.assert_close(noisy(weights, Noise(scale=1e-6)), weights, rtol=1e-4, atol=1e-5)


def test_noise_in_training_is_divided_by_its_temperature() -> None:
    weights = torch.tensor([[0.6, 0.3, 0.1]])
    torch.manual_seed(0)
    usual = noisy(weights, Noise())
    torch.manual_seed(0)
    hot = noisy(weights, Noise(temperature=2.0))
    torch.testing.assert_close(hot, F.normalize(usual.sqrt(), p=1, dim=-1))


def test_noise_in_training_keeps_entries_of_weight_zero_out() -> None:
    found = noisy(torch.tensor([[0.7, 0.3, 0.0]]), Noise())
    assert found[0, 2] < 1e-7
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))


def test_superpositions_are_noisy_only_if_asked() -> None:
    hidden, table = drawn(6, 4), drawn(12, 4)
    clean, again, noisy = (superpose(hidden, table, table, top_k=3, noise=noise) for noise in (None, None, Noise()))
    assert torch.equal(clean, again)
    assert (noisy - clean).abs().amax(dim=-1).min() > 0


# --- mixing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 5, None])
def test_a_certain_token_is_its_row(top_k: int | None) -> None:
    table = drawn(12, 4)
    scores = 200.0 * F.one_hot(torch.tensor([7, 0, 11]), 12)
    weights, ids = choose(scores, top_k)
    torch.testing.assert_close(mix(weights, ids, table), table[[7, 0, 11]])


def test_a_mixture_by_hand() -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]])
    weights, ids = torch.tensor([[0.25, 0.75], [0.5, 0.5]]), torch.tensor([[0, 2], [1, 0]])
    torch.testing.assert_close(mix(weights, ids, table), torch.tensor([[3.25, 3.0], [0.5, 1.0]]))
    # All three entries, in any order, and axes in front.
    every, order = torch.tensor([[[0.5, 0.25, 0.25]]]), torch.tensor([[[2, 0, 1]]])
    torch.testing.assert_close(mix(every, order, table), torch.tensor([[[2.25, 2.5]]]))


def test_a_mixture_over_the_whole_vocabulary_never_holds_a_row_for_every_entry_of_every_slot() -> None:
    table = drawn(40, 4)
    weights, ids = choose(drawn(10, 40), None)
    with Largest() as largest:
        found = mix(weights, ids, table)
    assert largest.numbers <= 10 * 40
    torch.testing.assert_close(found, (weights[..., None] * table[ids]).sum(dim=1))


def test_mixtures_are_made_of_as_many_rows_at_a_time_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def watched(function: Any, rows: int, *tensors: Tensor) -> Any:
        asked.append(rows)
        return function(*tensors)

    monkeypatch.setattr(superposition, "NUMBERS", 120)
    monkeypatch.setattr(superposition, "in_pieces", watched)
    table = drawn(40, 4)
    # A slot takes 4 numbers for each of its 3 entries, and two slots twice as many; of all 40 entries one number each.
    for ids in (torch.zeros(10, 3), torch.zeros(5, 2, 3), torch.zeros(10, 40)):
        mix(torch.zeros(ids.shape), ids.long(), table)
    assert asked == [120 // 12, 120 // 24, 120 // 40]


def test_pieces_let_the_gradient_through() -> None:
    rows = drawn(5, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(superposition.in_pieces(lambda some: some**2, 2, rows).sum(), rows)
    torch.testing.assert_close(gradient, 2 * rows)


@pytest.mark.parametrize("top_k", [5, None])
def test_mixtures_are_added_up_in_float32_and_have_the_precision_of_the_table(top_k: int | None) -> None:
    table = drawn(500, 16)
    weights, ids = choose(drawn(3, 500), top_k)
    exact = torch.einsum("nk,nkd->nd", weights.double(), table[ids].double()).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(mix(weights, ids, table), exact, rtol=1e-5, atol=1e-6)
    low = table.to(torch.bfloat16)
    mixed = mix(weights, ids, low)
    assert mixed.dtype == torch.bfloat16
    exact = torch.einsum("nk,nkd->nd", weights.double(), low[ids].double())
    assert torch.equal(mixed, exact.float().to(torch.bfloat16))


# --- superposing -----------------------------------------------------------------------------------------------------

# Vocabulary of 12: one piece, two whole ones, pieces with a rest, pieces of one entry.
PIECES = [12, 6, 5, 1]


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_whole_vocabulary_a_piece_at_a_time_is_the_dense_softmax(
    pieces: int, temperature: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superposition, "_CHUNK", pieces)
    readout, table, wanted = drawn(12, 4), drawn(12, 4), drawn(6, 4)
    hidden = (scale * drawn(6, 4)).requires_grad_()
    found = superpose(hidden, readout, table, top_k=None, temperature=temperature)
    (gradient,) = torch.autograd.grad(found, hidden, wanted)
    expected = dense(hidden, readout, table, None, temperature)
    (reference,) = torch.autograd.grad(expected, hidden, wanted)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


def test_a_full_superposition_never_holds_a_score_for_every_entry_of_every_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(superposition, "_CHUNK", 100)
    readout, table = drawn(1000, 4), drawn(1000, 4)
    hidden = drawn(50, 4).requires_grad_()
    with Largest() as largest:
        superpose(hidden, readout, table, top_k=None).sum().backward()
    assert largest.numbers <= 50 * 100


def test_a_full_superposition_looks_at_8192_entries_at_one_time() -> None:
    readout, table, hidden = drawn(9000, 2), drawn(9000, 2), drawn(8, 2)
    with Largest() as largest:
        found = superpose(hidden, readout, table, top_k=None)
    assert largest.numbers == 8 * 8192
    torch.testing.assert_close(found, dense(hidden, readout, table, None, 1.0), rtol=1e-4, atol=1e-5)


def test_scores_that_no_exponential_can_hold_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superposition, "_CHUNK", 5)
    readout, table = drawn(12, 4), drawn(12, 4)
    hidden = (1e4 * drawn(6, 4)).requires_grad_()
    found = superpose(hidden, readout, table, top_k=None)
    found.sum().backward()
    torch.testing.assert_close(found, table[(hidden @ readout.T).argmax(dim=-1)])
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("top_k", [3, 12, None])
def test_the_gradient_is_that_of_finite_differences(top_k: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superposition, "_CHUNK", 5)
    readout, table, wanted = drawn(12, 4), drawn(12, 4), drawn(2, 4)
    hidden = drawn(2, 4).requires_grad_()

    def loss(at: Tensor) -> Tensor:
        return (superpose(at, readout, table, top_k=top_k, temperature=0.8) * wanted).sum()

    (gradient,) = torch.autograd.grad(loss(hidden), hidden)
    step = 1e-2
    for place in range(8):
        nudge = torch.zeros(8).index_fill(0, torch.tensor([place]), step).view(2, 4)
        slope = (loss(hidden.detach() + nudge) - loss(hidden.detach() - nudge)) / (2 * step)
        assert gradient.flatten()[place] == pytest.approx(float(slope), abs=2e-3)


@pytest.mark.parametrize("top_k", [1, 4, 12])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_few_entries_are_the_dense_softmax_without_the_others(top_k: int, temperature: float) -> None:
    readout, table, wanted = drawn(12, 4), drawn(12, 4), drawn(6, 4)
    hidden = drawn(6, 4).requires_grad_()
    found = superpose(hidden, readout, table, top_k=top_k, temperature=temperature)
    (gradient,) = torch.autograd.grad(found, hidden, wanted)
    expected = dense(hidden, readout, table, top_k, temperature)
    (reference,) = torch.autograd.grad(expected, hidden, wanted)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("top_k", [4, None])
def test_no_gradient_reaches_readout_and_table_of_a_model(top_k: int | None) -> None:
    model = tiny_language_model("llama", tie_word_embeddings=False)
    hidden = drawn(3, 16).requires_grad_()
    superpose(hidden, readout_of(model, "head"), embedding_table(model), top_k=top_k).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("top_k", [4, None])
@pytest.mark.parametrize("slots", [0, 1])
def test_a_batch_may_have_no_slots(top_k: int | None, slots: int) -> None:
    hidden = drawn(slots, 4).requires_grad_()
    latents = superpose(hidden, drawn(12, 4), drawn(12, 4), top_k=top_k)
    latents.sum().backward()
    assert latents.shape == (slots, 4)


def test_precision_of_the_whole_vocabulary_survives_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superposition, "_CHUNK", 100)
    readout, table, wanted = drawn(500, 16), drawn(500, 16), drawn(6, 16)
    hidden = drawn(6, 16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = superpose(hidden, readout, table, top_k=None)
        (gradient,) = torch.autograd.grad(found, hidden, wanted)
    expected = dense(hidden, readout, table, None, 1.0)
    (reference,) = torch.autograd.grad(expected, hidden, wanted)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


# --- tables and read-outs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["unspoken", "llama", "qwen2", "gpt2"])
def test_the_table_holds_what_the_blocks_see(family: str) -> None:
    model = tiny_language_model(family)
    table = embedding_table(model)
    seen: list[Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda _module, _args, out: seen.append(out))
    model(torch.arange(20)[None])
    assert torch.equal(table, seen[0][0])
    assert not table.requires_grad
    assert table.shape == (20, 16)


def test_our_backbone_mixes_unit_rows_and_not_stored_ones() -> None:
    model = tiny_language_model("unspoken")
    table = embedding_table(model)
    torch.testing.assert_close(table.norm(dim=-1), torch.full((20,), 4.0))
    stored: Any = model.get_input_embeddings().weight
    assert (stored.norm(dim=-1) - 4).abs().max() > 0.1
    # A latent that is sure of one token enters the first block as that token would.
    hidden = 100 * stored[[5]].detach()
    latent = superpose(hidden, readout_of(model, "head"), table, top_k=10)
    sure = int((hidden @ stored.T).argmax())
    torch.testing.assert_close(latent, model.get_input_embeddings()(torch.tensor([sure])).detach())


@pytest.mark.parametrize(("family", "tied"), [("unspoken", True), ("llama", True), ("gpt2", True)])
def test_both_readouts_agree_where_the_head_is_the_table(family: str, tied: bool) -> None:
    model = tiny_language_model(family, tie_word_embeddings=tied)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(readout_of(model, "head"), readout_of(model, "table"))


def test_the_table_as_readout_of_an_untied_model_warns() -> None:
    model = tiny_language_model("llama", tie_word_embeddings=False)
    # The check of shapes, on in tests only, would stand between the warning and the line that it is about.
    function = getattr(readout_of, "__wrapped__", readout_of)
    with pytest.warns(UserWarning, match="readout is 'table', but this model's head is not tied") as caught:
        table = function(model, "table")
    assert caught[0].filename == __file__
    assert torch.equal(table, model.get_input_embeddings().weight)
    head = readout_of(model, "head")
    assert torch.equal(head, model.get_output_embeddings().weight)
    assert not torch.equal(head, table)
    assert not head.requires_grad
    assert not table.requires_grad


@torch.no_grad()
def test_the_head_says_what_the_model_says() -> None:
    for family in ("unspoken", "llama", "qwen2", "gpt2"):
        model = tiny_language_model(family)
        ids = torch.tensor([[3, 8, 5]])
        hidden = model.base_model(ids).last_hidden_state[0]
        torch.testing.assert_close(scores(hidden, readout_of(model, "head")), model(ids).logits[0])


# --- noise -----------------------------------------------------------------------------------------------------------

NEVER = 99


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stored(slots: int = 50, entries: int = 5) -> tuple[Tensor, Tensor]:
    return choose(2 * torch.randn(slots, 12, generator=seeded(7)), entries)


def test_noise_of_no_scale_changes_nothing() -> None:
    weights, ids = stored()
    for scale in (0.0, 1e-6):
        torch.testing.assert_close(
            perturb(weights, ids, seeded(), end_id=NEVER, scale=scale), weights, rtol=0, atol=1e-5
        )


def test_noise_makes_other_weights_that_sum_to_one() -> None:
    weights, ids = stored()
    noisy = perturb(weights, ids, seeded(), end_id=NEVER)
    torch.testing.assert_close(noisy.sum(dim=-1), torch.ones(50))
    assert ((noisy - weights).abs().amax(dim=-1) > 1e-3).all()
    assert (noisy > 0).all()


def test_a_generator_in_the_same_state_makes_the_same_noise() -> None:
    weights, ids = stored()
    first = perturb(weights, ids, seeded(3), end_id=NEVER)
    torch.manual_seed(99)  # nothing else has a say
    assert torch.equal(perturb(weights, ids, seeded(3), end_id=NEVER), first)
    assert not torch.equal(perturb(weights, ids, seeded(4), end_id=NEVER), first)


def shifts(weights: Tensor, noisy: Tensor, temperature: float = 1.0) -> Tensor:
    """The noise that was added to each logarithm, up to one number a slot: entries minus the slot's first entry."""
    added = temperature * noisy.double().log() - weights.double().log()
    return added - added[:, :1]


def test_noise_is_clamped_after_it_is_scaled() -> None:
    weights = torch.full((4000, 4), 0.25)
    ids = torch.arange(4).expand(4000, 4)
    # So loud that nearly every draw lies outside the bounds: differences are 0 or the whole width.
    loud = shifts(weights, perturb(weights, ids, seeded(), end_id=NEVER, scale=1e4, lowest=-1.5, highest=3.0))
    inside = torch.isclose(loud.abs(), torch.tensor(0.0).double(), atol=1e-4) | torch.isclose(
        loud.abs(), torch.tensor(4.5).double(), atol=1e-4
    )
    assert inside.double().mean() > 0.99
    # Usual noise never spans more, and the bounds are met now and then.
    usual = shifts(weights, perturb(weights, ids, seeded(), end_id=NEVER))
    assert usual.abs().max() <= 4.5 + 1e-4
    wide = shifts(weights, perturb(weights, ids, seeded(), end_id=NEVER, lowest=-50.0, highest=50.0))
    assert wide.abs().max() > 6
    narrow = shifts(weights, perturb(weights, ids, seeded(), end_id=NEVER, lowest=-0.1, highest=0.2))
    assert narrow.abs().max() <= 0.3 + 1e-5


def test_without_bounds_the_most_likely_entry_is_a_draw_from_the_weights() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2]]).expand(20_000, 3).contiguous()
    ids = torch.arange(3).expand(20_000, 3)
    noisy = perturb(weights, ids, seeded(), end_id=NEVER, lowest=-100.0, highest=100.0)
    shares = torch.bincount(noisy.argmax(dim=-1), minlength=3) / 20_000
    torch.testing.assert_close(shares, weights[0], rtol=0, atol=0.015)


def test_the_temperature_divides_the_noisy_logarithms() -> None:
    weights, ids = stored()
    hot = perturb(weights, ids, seeded(), end_id=NEVER, temperature=2.0)
    usual = perturb(weights, ids, seeded(), end_id=NEVER)
    torch.testing.assert_close(hot, F.normalize(usual.sqrt(), p=1, dim=-1), rtol=1e-4, atol=1e-6)


def ending(slots: int = 60) -> tuple[Tensor, Tensor]:
    """Slots whose second of three entries is the end: some draws make it the most likely one."""
    weights = torch.tensor([[0.45, 0.35, 0.2]]).expand(slots, 3).contiguous()
    return weights, torch.tensor([[5, 4, 6]]).expand(slots, 3).contiguous()


def test_a_slot_that_would_end_the_chain_is_drawn_again_and_no_other() -> None:
    weights, ids = ending()
    free = perturb(weights, ids, seeded(), end_id=NEVER)
    guarded = perturb(weights, ids, seeded(), end_id=4)
    ended = free.argmax(dim=-1) == 1
    assert 5 < int(ended.sum()) < 40
    assert torch.equal(guarded[~ended], free[~ended])
    assert (guarded[ended] != free[ended]).any(dim=-1).all()
    assert (guarded.argmax(dim=-1) != 1).all()
    # They are noisy draws, not the clean weights.
    assert ((guarded[ended] - weights[ended]).abs().amax(dim=-1) > 1e-3).all()


def test_a_slot_that_always_ends_keeps_its_clean_weights() -> None:
    weights, ids = ending(3)
    ids[1] = 4  # whatever is drawn, it is the end
    noisy = perturb(weights, ids, seeded(), end_id=4, attempts=20)
    assert torch.equal(noisy[1], weights[1])
    assert not torch.equal(noisy[0], weights[0])
    assert not torch.equal(noisy[2], weights[2])


@pytest.mark.parametrize(
    ("ahead", "draws"), [(4.49, 100), (4.502, 1)], ids=["noise may just turn it", "no noise turns it"]
)
def test_a_slot_that_no_noise_turns_is_drawn_once(ahead: float, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Noise lies between -1.5 and 3; the draw of all attempts is one that leaves the order as it is.
    weights = torch.tensor([ahead, 0.0]).softmax(dim=-1)[None]
    shapes = []

    def half(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        shapes.append(shape)
        return torch.full(shape, 0.5)

    monkeypatch.setattr(superposition.torch, "rand", half)
    noisy = perturb(weights, torch.tensor([[4, 5]]), seeded(), end_id=4)
    assert torch.equal(noisy, weights)
    assert shapes == [(1, 2)] * draws


def test_the_published_guard_draws_all_slots_of_a_row_again() -> None:
    weights, ids = ending(6)
    draws, source = [], seeded()
    while not draws or (draws[-1].argmax(dim=-1) == 1).any():
        draws.append(perturb(weights, ids, source, end_id=NEVER))
    assert len(draws) > 2
    assert torch.equal(perturb(weights, ids, seeded(), end_id=4, redraw="row"), draws[-1])
    # It gives up after some attempts and goes on with what was drawn last.
    assert torch.equal(perturb(weights, ids, seeded(), end_id=4, redraw="row", attempts=2), draws[1])


def test_a_single_attempt_leaves_slots_that_would_end_clean() -> None:
    weights, ids = ending()
    free = perturb(weights, ids, seeded(), end_id=NEVER)
    once = perturb(weights, ids, seeded(), end_id=4, attempts=1)
    ended = free.argmax(dim=-1) == 1
    assert torch.equal(once[~ended], free[~ended])
    assert torch.equal(once[ended], weights[ended])


def test_entries_of_weight_zero_and_rows_without_slots_are_no_trouble() -> None:
    noisy = perturb(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[5, 6, 7]]), seeded(), end_id=4)
    assert noisy.isfinite().all()
    assert noisy[0, 0] > 0.999
    empty = perturb(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long), seeded(), end_id=4)
    assert empty.shape == (0, 3)


def test_noise_leaves_the_stored_weights_alone() -> None:
    weights, ids = ending()
    before = weights.clone()
    perturb(weights, ids, seeded(), end_id=4)
    assert torch.equal(weights, before)
