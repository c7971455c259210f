"""Readings and changes of chains whose latents can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny_words import TASK, table_rows, tiny_word_system
from torch import Tensor
from torch.testing import assert_close

from unspoken.chain import LatentChain, StopReason
from unspoken.draw.table import grids
from unspoken.reasoning.inspection import Chain

WIDTH = 16


@dataclass
class Rows:
    """Targets with a table of their own."""

    target_table: Tensor

    def nearest_row(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        raise NotImplementedError


def name(token: int) -> str:
    return str(TASK.tokenizer.decode([token]))


def record(latents: Tensor, **support: Tensor) -> LatentChain:
    steps = len(latents)
    return LatentChain(
        latents=latents[None],
        mask=torch.ones(1, steps, dtype=torch.bool),
        stop=torch.tensor([int(StopReason.CERTAIN)]),
        **{key: value[None] for key, value in support.items()},
    )


def pointing(*latents: dict[int, float], table: Tensor | None = None) -> Chain:
    """Latents by their entries that are not 0, trained to point at the axes unless another table is given."""
    rows = Rows(torch.eye(WIDTH) * torch.arange(1, WIDTH + 1)[:, None] if table is None else table)
    vectors = torch.zeros(len(latents), WIDTH)
    for step, entries in enumerate(latents):
        for place, value in entries.items():
            vectors[step, place] = value
    system = replace(tiny_word_system(), chain_kind="latent", targets=rows)
    return Chain(system=system, record=record(vectors))


def mixed(*weights: dict[int, float]) -> Chain:
    """Superpositions by the weights of their tokens."""
    system = tiny_word_system()
    entries = max(len(one) for one in weights)
    ids, values = torch.zeros(len(weights), entries, dtype=torch.long), torch.zeros(len(weights), entries)
    for step, one in enumerate(weights):
        ids[step, : len(one)], values[step, : len(one)] = torch.tensor([*one]), torch.tensor([*one.values()])
    latents = torch.einsum("nk,nkd->nd", values, table_of(system)[ids])
    return Chain(system=system, record=record(latents, support_ids=ids, support_weights=values))


def table_of(system: Any) -> Tensor:
    rows: Tensor = system.model.get_input_embeddings()(torch.arange(len(table_rows(system)))).detach()
    return rows


def weights_of(chain: Chain, step: int) -> dict[str, float]:
    return {token: pytest.approx(weight, abs=1e-5) for token, weight in chain.steps(top=20)[step].tokens}


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_latent_that_points_at_rows_is_read_by_coefficients_and_cosines() -> None:
    chain = pointing({2: 3.0, 5: -4.0}, {}, {1: 2.0})
    first, nothing, last = chain.steps(top=2)
    assert first.tokens == ((name(5), pytest.approx(-4.0)), (name(2), pytest.approx(3.0)))
    assert first.rows[0] == (name(2), pytest.approx(0.6))
    assert (first.norm, first.entropy, first.nearest) == (5.0, None, name(2))
    assert (nothing.norm, nothing.rows, nothing.nearest) == (0.0, (), None)
    assert last.rows[0] == (name(1), pytest.approx(1.0))
    assert [len(step.rows) for step in chain.steps(top=3)] == [3, 0, 3]
    assert [len(step.tokens) for step in chain.steps(top=3)] == [3, 3, 3]
    # At least the nearest row is read, and no more rows than there are.
    assert (len(chain.steps(top=0)[0].tokens), len(chain.steps(top=0)[0].rows)) == (0, 1)
    assert len(chain.steps(top=99)[0].rows) == len(chain.steps(top=99)[0].tokens) == WIDTH
    assert len(chain.steps()[0].tokens) == len(chain.steps()[0].rows) == 5
    assert pointing().steps() == []
    assert chain.stopped is StopReason.CERTAIN


def test_oblique_rows_have_coefficients_and_more_rows_than_numbers_have_cosines() -> None:
    table = torch.eye(WIDTH)
    table[1, :2] = torch.tensor([3.0, 4.0])  # the direction (0.6, 0.8)
    # Twice the first direction and once the second.
    chain = pointing({0: 2.6, 1: 0.8}, table=table)
    step = chain.steps(top=2)[0]
    assert step.tokens == ((name(0), pytest.approx(2.0, abs=1e-5)), (name(1), pytest.approx(1.0, abs=1e-5)))
    length = math.sqrt(2.6**2 + 0.8**2)
    assert step.rows == ((name(0), pytest.approx(2.6 / length)), (name(1), pytest.approx((1.56 + 0.64) / length)))
    several = pointing({0: 2.6, 1: 0.8}, table=torch.cat([table, table[1:2]]))
    assert dict(several.steps(top=1)[0].tokens) == {name(0): pytest.approx(2.6 / length)}
    columns = [one.table().columns[1].head for one in (chain, several)]
    assert columns == ["made of", "cosine with rows"]


def test_the_entropy_is_that_of_all_entries_and_zeros_only_fill_up() -> None:
    chain = mixed({8: 0.5, 9: 0.25, 10: 0.125, 11: 0.125}, {12: 1.0})
    first, last = chain.steps(top=2)
    assert first.tokens == ((name(8), 0.5), (name(9), 0.25))
    assert first.entropy == pytest.approx(1.75 * math.log(2))
    assert (last.tokens, last.entropy) == (((name(12), 1.0),), pytest.approx(0.0))
    assert last.rows[0] == (name(12), pytest.approx(1.0, abs=1e-5))
    assert chain.table().columns[1].head == "made of"


def test_a_table_has_five_tokens_a_step_unless_asked() -> None:
    weights = (0.2, 0.18, 0.16, 0.14, 0.12, 0.08, 0.07, 0.05)
    chain = mixed(dict(zip(range(8, 16), weights, strict=True)))
    for table, count in ((chain.table(), 5), (chain.table(3), 3), (chain.table(top=8), 8)):
        _, (_, tokens, entropy, nearest, _) = grids(table)[0][1]
        assert tokens == "  ".join(f"{name(8 + place)} {weights[place]:.2f}" for place in range(count))
        assert (entropy, nearest) == ("1.99", chain.steps()[0].nearest)


def test_the_distance_to_a_piece_is_that_to_its_nearest_token() -> None:
    chain = pointing({2: 3.0, 5: 4.0}, {}, {3: -2.0}, {1: 1.0})
    pieces = [[2], [4], [3, 4], [1]]
    expected = [0.4, None, 1.0, 0.0]
    assert chain.distances(pieces) == [None if one is None else pytest.approx(one, abs=1e-6) for one in expected]
    assert chain.distances([[2, 5]]) == [pytest.approx(0.2), None, None, None]
    assert chain.distances([]) == [None] * 4
    assert chain.distances([(), (), (3,)]) == [None, None, pytest.approx(2.0), None]
    assert pointing().distances(pieces) == []
    hidden = tiny_word_system(feed="hidden")
    assert Chain(system=hidden, record=chain.record).distances(pieces) == [None] * 4


# --- changes ---------------------------------------------------------------------------------------------------------


def test_a_mixture_of_directions_keeps_the_length_of_the_latent() -> None:
    chain = pointing({2: 10.0}, {3: 1.0}).edit(-2, {name(4): 3.0, 5: 4.0})
    assert_close(chain.record.latents[0, 0, 4:6], torch.tensor([6.0, 8.0]))
    assert float(chain.record.latents[0, 0].norm()) == pytest.approx(10.0)
    assert torch.equal(chain.record.latents[0, 1], torch.eye(WIDTH)[3])


def test_a_coefficient_is_set_and_the_rest_is_scaled_to_the_length() -> None:
    chain = pointing({2: 3.0, 5: 4.0})
    # Of length 5: beside a coefficient of 3 stands one of 4, and beside 5 or 0 the other alone.
    for weight, rest in ((3.0, 4.0), (5.0, 0.0), (0.0, 5.0), (4.0, 3.0)):
        latent = chain.weigh(0, 5, weight).record.latents[0, 0]
        assert_close(latent[[5, 2]], torch.tensor([weight, rest]), rtol=0, atol=2e-3)
    for weight in (-0.01, 5.01):
        with pytest.raises(ValueError, match="it must be from 0 to 5"):
            chain.weigh(0, 5, weight)
    assert chain.weigh(0, 5, 5.0049).steps(top=1)[0].tokens[0][0] == name(5)  # the length, but for rounding
    for alone, weight in (({5: 2.0}, 1.0), ({}, 0.0)):
        with pytest.raises(ValueError, match="alone; use edit to name what it shall be"):
            pointing(alone).weigh(0, 5, weight)


def test_a_coefficient_of_an_oblique_row_is_set() -> None:
    table = torch.eye(WIDTH)
    table[1, :2] = torch.tensor([0.6, 0.8])
    # 2 a + 1 b with a b = 0.6 has squared length 7.4; so has 1 a + 2 b.
    latent = pointing({0: 2.6, 1: 0.8}, table=table).weigh(0, 1, 2.0).record.latents[0, 0]
    assert_close(latent[:2], torch.tensor([2.2, 1.6]))
    # Of a long latent that is the row alone, rounding leaves a short rest.
    with pytest.raises(ValueError, match="alone; use edit to name what it shall be"):
        pointing({0: 6000.0, 1: 8000.0}, table=table).weigh(0, 1, 1.0)


def test_a_weight_is_set_and_the_others_keep_their_proportions() -> None:
    chain = mixed({8: 0.5, 9: 0.3, 10: 0.2}, {8: 1.0})
    assert weights_of(chain.weigh(0, 9, 0.65), 0) == {name(9): 0.65, name(8): 0.25, name(10): 0.1}
    assert weights_of(chain.weigh(0, 9, 0.0), 0) == {name(8): 5 / 7, name(10): 2 / 7}
    assert weights_of(chain.weigh(0, 12, 0.5), 0) == {name(12): 0.5, name(8): 0.25, name(9): 0.15, name(10): 0.1}
    assert weights_of(chain.weigh(0, 9, 1.0), 0) == weights_of(chain.weigh(1, 9, 1.0), 1) == {name(9): 1.0}
    assert weights_of(chain.weigh(-1, 9, 0.25), 1) == {name(8): 0.75, name(9): 0.25}
    assert weights_of(chain.weigh(1, 8, 1.0), 1) == {name(8): 1.0}
    # What only fills a distribution up is no entry of the new one.
    filled = mixed({8: 0.5, 9: 0.5}, {8: 1.0}).weigh(1, 9, 0.25).record.support_ids
    assert filled is not None and filled.tolist() == [[[8, 9], [8, 9]]]
    table = table_of(chain.system)
    latent = chain.weigh(0, 9, 0.65).record.latents[0, 0]
    assert_close(latent, 0.65 * table[9] + 0.25 * table[8] + 0.1 * table[10])
    with pytest.raises(ValueError, match=f"step 1 is {name(8)!r} alone"):
        chain.weigh(1, 8, 0.5)
    with pytest.raises(ValueError, match="it must be from 0 to 1"):
        chain.weigh(0, 9, 1.01)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
def test_a_chain_between_two_has_directions_and_lengths_between_theirs(fraction: float) -> None:
    one, other = pointing({2: 1.0}, {3: 1.0}, {6: 2.0}), pointing({5: 3.0}, {3: 5.0})
    latents = one.mixed(other, fraction).record.latents[0]
    near, far = 1 - fraction, 3 * fraction
    length = (1 - fraction) + 3 * fraction
    assert_close(latents[0, [2, 5]], length * torch.tensor([near, far]) / math.hypot(near, far))
    assert float(latents[1, 3]) == pytest.approx((1 - fraction) + 5 * fraction)
    # Further steps are those of the nearer chain.
    assert len(latents) == (2 if fraction > 0.5 else 3)
    assert torch.equal(one.mixed(other, 0.0).record.latents, one.record.latents)
    assert torch.equal(one.mixed(other, 1.0).record.latents, other.record.latents)
    for outside in (-0.01, 1.01):
        with pytest.raises(ValueError, match="it must be from 0 to 1"):
            one.mixed(other, outside)
    narrow = Chain(system=one.system, record=replace(one.record, latents=one.record.latents[..., 1:]))
    for part in (0.0, 0.3, 0.7):
        with pytest.raises(ValueError, match="has latents of another width"):
            one.mixed(narrow, part)


def test_superpositions_are_mixed_by_their_weights() -> None:
    one, other = mixed({8: 0.5, 9: 0.5}, {8: 1.0}), mixed({9: 0.5, 10: 0.25, 11: 0.25})
    both = one.mixed(other, 0.25)
    assert weights_of(both, 0) == {name(9): 0.5, name(8): 0.375, name(10): 0.0625, name(11): 0.0625}
    assert weights_of(both, 1) == {name(8): 1.0}
    latents = 0.75 * one.record.latents[0, 0] + 0.25 * other.record.latents[0, 0]
    assert_close(both.record.latents[0, 0], latents)
    # At the ends it is one of the two, without entries of the other.
    for fraction, whole in ((0.0, one), (1.0, other)):
        ids, expected = one.mixed(other, fraction).record.support_ids, whole.record.support_ids
        assert ids is not None and expected is not None and torch.equal(ids, expected)


def order(chain: Chain) -> list[int]:
    return [int(latent.argmax()) for latent in chain.record.latents[0]]


def test_steps_change_places() -> None:
    chain = pointing(*({step: 1.0} for step in range(4)))
    assert order(chain.move(0, 2)) == [1, 2, 0, 3]
    assert order(chain.move(3, 0)) == [3, 0, 1, 2]
    assert order(chain.move(1, -1)) == [0, 2, 3, 1]
    assert order(chain.move(2, 2)) == [0, 1, 2, 3]
    assert order(chain.delete(-1)) == [0, 1, 2]
    assert order(chain.delete(1)) == [0, 2, 3]
    assert order(chain.truncate(4)) == [0, 1, 2, 3]
    assert len(chain.truncate(0)) == 0
    for steps in (-1, 5):
        with pytest.raises(ValueError, match="give 0 to 4"):
            chain.truncate(steps)
    assert (chain.check_step(-4), chain.check_step(3)) == (0, 3)
    for step in (-5, 4):
        with pytest.raises(ValueError, match=f"there is no step {step} in"):
            chain.zero(step)
    assert not chain.zero(-1).record.latents[0, 3].any()


def test_a_step_of_another_chain_brings_its_distribution() -> None:
    one, other = mixed({8: 0.5, 9: 0.5}, {8: 1.0}), mixed({12: 1.0}, {9: 0.5, 10: 0.25, 11: 0.25})
    swapped = one.swap(other, -1)
    assert weights_of(swapped, 0) == {name(8): 0.5, name(9): 0.5}
    assert weights_of(swapped, 1) == {name(9): 0.5, name(10): 0.25, name(11): 0.25}
    assert weights_of(other.swap(one, 1), 1) == {name(8): 1.0}
    pointed = pointing({2: 1.0}, {3: 1.0}).swap(pointing({5: 1.0}, {6: 1.0}, {7: 1.0}), -1)
    assert (order(pointed), pointed.record.support_ids) == ([2, 7], None)
    bare = one.with_latent(0, torch.ones(WIDTH))
    assert bare.steps()[0].tokens == () and bare.steps()[0].entropy is None
    assert weights_of(bare, 1) == {name(8): 1.0}


def test_a_token_is_an_id_or_the_text_that_a_table_writes() -> None:
    chain, last = mixed({8: 1.0}), len(TASK.tokenizer) - 1
    assert weights_of(chain.edit(0, {0: 1.0, last: 3.0}), 0) == {name(last): 0.75, name(0): 0.25}
    for token in (-1, last + 1):
        with pytest.raises(ValueError, match=f"there is no token {token}; the vocabulary has {last + 1}"):
            chain.edit(0, {token: 1.0})
    with pytest.raises(ValueError, match="is no single token"):
        chain.edit(0, {"☃": 1.0})
    for weights in ({8: 1.0, 9: -1e-9}, {8: 0.0}):
        with pytest.raises(ValueError, match="give at least one above 0 and none below"):
            chain.edit(0, weights)
    assert weights_of(chain.edit(0, {8: 0.0, 9: 2.0}), 0) == {name(9): 1.0}
