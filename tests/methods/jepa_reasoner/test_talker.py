"""Who sees what: the two Talkers, their masks, and how they pick words."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from latent_models import caches_kept
from tiny_models import VOCABULARY, WIDTH, enliven, tiny_config
from torch import Tensor

from unspoken.chain import LatentChain, StopReason
from unspoken.methods.jepa_reasoner.talker import DualTalker, MonoTalker, build_talker
from unspoken.reasoning.picking import ForcedTokens, Sampler

FORMS = ["mono causal", "mono bidirectional", "dual"]
GREEDY = Sampler()


def talker_of(form: str, **settings: object) -> MonoTalker | DualTalker:
    config = tiny_config("unspoken", is_causal=form != "mono bidirectional", **settings)
    config._attn_implementation = "eager"
    talker = build_talker(form.split(" ", maxsplit=1)[0], config, encoder_layers=2)
    enliven(talker, "talker")
    return talker.eval()


def latents_of(rows: int = 3, steps: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Unit latents, their mask (all real), and tokens for the teacher."""
    generator = torch.Generator().manual_seed(3)
    latents = F.normalize(torch.randn(rows, steps, WIDTH, generator=generator), dim=-1)
    tokens = torch.randint(0, VOCABULARY, (rows, steps), generator=generator)
    return latents, torch.ones(rows, steps, dtype=torch.bool), tokens


def chain_of(latents: Tensor, mask: Tensor) -> LatentChain:
    return LatentChain(latents=latents, mask=mask, stop=torch.full((len(mask),), int(StopReason.END)))


def changes(before: Tensor, after: Tensor) -> list[bool]:
    """At which positions any row differs."""
    return ((before - after).abs().amax(dim=(0, 2)) > 1e-5).tolist()


# --- the input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_unit_latents_enter_with_entries_of_mean_square_one(form: str) -> None:
    talker = talker_of(form)
    latents, mask, tokens = latents_of()
    stack = talker.encoder if isinstance(talker, DualTalker) else talker.decoder
    seen: list[Tensor] = []
    stack.register_forward_pre_hook(lambda _, __, given: seen.append(given["inputs_embeds"]), with_kwargs=True)
    talker(latents, mask, tokens)
    torch.testing.assert_close(seen[0].square().mean(dim=-1), torch.ones(3, 6))
    torch.testing.assert_close(F.normalize(seen[0], dim=-1), latents)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_talker_keeps_no_cache_and_has_no_weights_but_those_that_it_uses(form: str) -> None:
    talker = talker_of(form, tie_word_embeddings=False)
    latents, mask, tokens = latents_of()
    stacks = [talker.encoder, talker.decoder] if isinstance(talker, DualTalker) else [talker.decoder]
    with caches_kept(*stacks) as kept:
        talker(latents, mask, tokens)
    assert kept == [False] * len(stacks)
    names = {name for name, _ in talker.named_parameters()}
    assert {name for name in names if name.startswith("lm_head")} == {"lm_head.weight"}
    tables = {name for name in names if "embed_tokens" in name}
    assert tables == ({"decoder.embed_tokens.weight"} if form == "dual" else set())


@pytest.mark.parametrize(("form", "places"), [("mono causal", [0]), ("dual", [0, 1, 2, 3, 4, 5])])
@torch.no_grad()
def test_words_are_picked_by_row_and_by_the_place_of_the_first(form: str, places: list[int]) -> None:
    talker, (latents, mask, _) = talker_of(form), latents_of()
    asked: list[tuple[list[int], int]] = []

    def sample(scores: Tensor, rows: Tensor, first: int) -> Tensor:
        asked.append((rows.tolist(), first))
        return scores.argmax(dim=-1)

    talker.speak(chain_of(latents, mask), sample)
    assert asked == [([0, 1, 2], place) for place in places]


# --- who sees which latent -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "seen_by"),
    [
        ("mono causal", [False, False, False, True, True, True]),
        ("mono bidirectional", [True] * 6),
        ("dual", [True] * 6),
    ],
)
@torch.no_grad()
def test_which_words_see_the_fourth_latent(form: str, seen_by: list[bool]) -> None:
    talker = talker_of(form)
    latents, mask, tokens = latents_of()
    changed = latents.clone()
    changed[:, 3] = -changed[:, 3]
    assert changes(talker(latents, mask, tokens), talker(changed, mask, tokens)) == seen_by


@torch.no_grad()
def test_the_dual_encoder_reads_the_chain_in_both_directions() -> None:
    # The decoder sees every encoded latent in any case; this is about what has gone into each of them.
    talker = talker_of("dual")
    assert isinstance(talker, DualTalker)
    latents, _, _ = latents_of()
    changed = latents.clone()
    changed[:, 3] = -changed[:, 3]
    before, after = (talker.encoder(inputs_embeds=each).last_hidden_state for each in (latents, changed))
    assert changes(before, after) == [True] * 6


@torch.no_grad()
def test_the_dual_decoder_sees_the_words_before_and_not_those_after() -> None:
    talker = talker_of("dual")
    latents, mask, tokens = latents_of()
    changed = tokens.clone()
    changed[:, 2] = (changed[:, 2] + 1) % VOCABULARY
    after = talker(latents, mask, changed)
    assert changes(talker(latents, mask, tokens), after) == [False, False, False, True, True, True]


@torch.no_grad()
def test_the_mono_talker_looks_at_no_word() -> None:
    talker = talker_of("mono causal")
    latents, mask, tokens = latents_of()
    assert torch.equal(talker(latents, mask, tokens), talker(latents, mask, None))
    assert not any("embed_tokens" in name for name, _ in talker.named_parameters())


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_order_of_latents_matters(form: str) -> None:
    talker = talker_of(form)
    latents, mask, tokens = latents_of()
    swapped = latents[:, [1, 0, 2, 3, 4, 5]]
    assert changes(talker(latents, mask, tokens), talker(swapped, mask, tokens))[5]


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_padding_of_the_chain_changes_nothing(form: str) -> None:
    talker = talker_of(form)
    latents, mask, tokens = latents_of()
    padding = 5 * torch.randn(3, 4, WIDTH)
    longer = torch.cat([latents, padding], dim=1)
    longer_mask = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    longer_tokens = torch.cat([tokens, torch.randint(0, VOCABULARY, (3, 4))], dim=1)
    padded = talker(longer, longer_mask, longer_tokens)[:, :6]
    torch.testing.assert_close(padded, talker(latents, mask, tokens), rtol=1e-4, atol=1e-4)
    spoken = talker.speak(chain_of(longer, longer_mask), GREEDY)[:, :6]
    assert torch.equal(spoken, talker.speak(chain_of(latents, mask), GREEDY))


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_rows_of_different_length_do_not_disturb_each_other(form: str) -> None:
    talker = talker_of(form)
    latents, mask, _ = latents_of()
    mask = torch.arange(6)[None] < torch.tensor([[6], [2], [4]])
    together = talker.speak(chain_of(latents * mask[..., None], mask), GREEDY)
    for row, length in enumerate((6, 2, 4)):
        alone = talker.speak(chain_of(latents[row : row + 1, :length], mask[row : row + 1, :length]), GREEDY)
        assert torch.equal(together[row, :length], alone[0])


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_row_without_any_step_is_no_accident(form: str) -> None:
    # The control "no chain at all" masks everything.
    latents, mask, tokens = latents_of()
    assert talker_of(form)(latents, torch.zeros_like(mask), tokens).isfinite().all()


# --- training and decoding are the same ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_speaking_is_teacher_forcing_on_the_spoken_words(form: str) -> None:
    # Known mistake of other implementations: decoding starts from a token that training never showed.
    talker = talker_of(form)
    latents, mask, _ = latents_of(rows=8)
    spoken = talker.speak(chain_of(latents, mask), GREEDY)
    assert torch.equal(talker(latents, mask, spoken).argmax(dim=-1), spoken)
    assert spoken.unique().numel() > 3


@torch.no_grad()
def test_the_start_token_is_the_dual_talker_s_own_and_is_never_said() -> None:
    talker = talker_of("dual")
    assert isinstance(talker, DualTalker)
    assert talker.start_id == VOCABULARY
    latents, mask, tokens = latents_of()
    assert talker(latents, mask, tokens).shape == (3, 6, VOCABULARY)
    # The first word depends on it.
    before = talker(latents, mask, tokens)
    talker.decoder.get_input_embeddings().weight[talker.start_id] *= -1
    assert changes(before, talker(latents, mask, tokens))[0]


@pytest.mark.parametrize("tied", [True, False])
def test_the_dual_head_is_tied_to_its_own_embedding_unless_told_otherwise(tied: bool) -> None:
    talker = talker_of("dual", tie_word_embeddings=tied)
    assert isinstance(talker, DualTalker)
    assert (talker.lm_head is None) == tied
    latents, mask, tokens = latents_of()
    assert talker(latents, mask, tokens).shape == (3, 6, VOCABULARY)


def test_a_dual_talker_is_taught_with_words() -> None:
    latents, mask, _ = latents_of()
    with pytest.raises(ValueError, match="teacher-forced on tokens"):
        talker_of("dual")(latents, mask, None)


# --- forced tokens ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_forced_tokens_come_first_and_change_what_follows() -> None:
    talker = talker_of("dual")
    latents, mask, tokens = latents_of(rows=8)
    chain = chain_of(latents, mask)
    primed = talker.speak(chain, ForcedTokens(tokens[:, :3]))
    assert torch.equal(primed[:, :3], tokens[:, :3])
    assert torch.equal(talker(latents, mask, primed).argmax(dim=-1)[:, 3:], primed[:, 3:])
    assert not torch.equal(primed[:, 3:], talker.speak(chain, GREEDY)[:, 3:])


@torch.no_grad()
def test_as_many_forced_tokens_as_latents_are_the_output() -> None:
    latents, mask, tokens = latents_of()
    longer = torch.cat([tokens, tokens], dim=1)
    assert torch.equal(talker_of("dual").speak(chain_of(latents, mask), ForcedTokens(longer)), tokens)


# --- picking ---------------------------------------------------------------------------------------------------------


def test_temperature_zero_takes_the_most_likely_word() -> None:
    logits = torch.randn(4, 5, 9)
    assert torch.equal(Sampler(0.0)(logits), logits.argmax(dim=-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_words_are_drawn_as_often_as_the_temperature_says(temperature: float) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    drawn = Sampler(temperature, torch.Generator().manual_seed(0))(logits.expand(100, 100, 4))
    shares = torch.bincount(drawn.flatten(), minlength=4) / 10_000
    torch.testing.assert_close(shares, torch.softmax(logits / temperature, dim=0), rtol=0, atol=0.02)


def test_a_generator_makes_a_draw_repeatable() -> None:
    logits = torch.randn(4, 50, 9)
    first, again, other = (Sampler(1.0, torch.Generator().manual_seed(seed))(logits) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_negative_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature is -0\.1"):
        Sampler(-0.1)
