"""Every kind of system: its chain is the engine's, its answer the speaker's, and its account adds up."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import END, PAD, WIDTH, prompts, tiny_config, tiny_language_model, tiny_pair
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.chain import LatentChain
from unspoken.methods import catalogue
from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.loading import load_model
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import StopRule, rollout
from unspoken.reasoning.flops import stack_flops
from unspoken.reasoning.latents import Sampling
from unspoken.reasoning.picking import FREE, Sampler
from unspoken.reasoning.system import System

REAL = (torch.arange(6) >= torch.tensor([0, 3, 1, 0, 4, 2, 0, 1, 3])[:, None]).long()
IDS = prompts(9, 6) * REAL
OPEN, CLOSE = (5,), (6, 7)
THINKERS: dict[str, dict[str, Any]] = {
    "explicit": {"top_k": 1},
    "superposition": {"top_k": 4},
    "full": {"top_k": None},
    "hidden": {"feed": "hidden"},
    "coconut": {"feed": "hidden", "fixed": True, "max_latents": 2},
    "answer only": {"top_k": 1, "max_latents": 0, "fixed": True},
}
TALKERS = ("mono", "dual", "nearest")
KINDS = ("coupled", *TALKERS, *THINKERS)


def model_of(kind: str) -> PreTrainedModel:
    if kind in TALKERS:
        pair = tiny_pair("dual" if kind == "dual" else "mono")
        return pair.reasoner if kind == "nearest" else pair
    model = tiny_language_model("unspoken")
    if kind in THINKERS:
        how = {"open_ids": OPEN, "end_ids": CLOSE, "max_latents": 5, **THINKERS[kind]}
        LatentGenerationConfig(**how).attach(model)
    return model


def system_of(kind: str, stage: str = "it") -> System:
    return catalogue.systems(model_of(kind), stage=stage, max_answer=6)[0]


def assert_same(chain: LatentChain, other: LatentChain) -> None:
    assert torch.equal(chain.latents, other.latents)
    assert torch.equal(chain.mask, other.mask)
    assert torch.equal(chain.stop, other.stop)


def by_hand(kind: str) -> tuple[LatentChain, Tensor]:
    """Chain and tokens out of the method's own pieces."""
    model: Any = model_of(kind)
    if kind in THINKERS:
        reasoner = CausalLMReasoner(model=model, settings=LatentGenerationConfig.of(model))
        return reasoner.respond(IDS, REAL, max_tokens=6)
    if kind == "coupled":
        coupled = CoupledReasoner(model=model, end_id=END, pad_id=PAD)
        chain = rollout(coupled, IDS, REAL, StopRule(max_latents=6))
        return chain, coupled.speak(chain)
    chain = model.reason(IDS, REAL, StopRule(max_latents=6))
    return chain, model.read_out(chain) if kind == "nearest" else model.speak(chain)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_chain_and_answer_are_those_of_the_method(kind: str) -> None:
    system = system_of(kind)
    chain, tokens = by_hand(kind)
    answer = system.respond(IDS, REAL, max_tokens=6)
    assert_same(answer.chain, chain)
    assert torch.equal(answer.tokens, tokens)
    for row, length in enumerate(answer.lengths.tolist()):
        row_ids = tokens[row].tolist()
        most = tokens.shape[1] if kind in THINKERS else int(chain.lengths[row])
        assert length == min(row_ids.index(END) + 1 if END in row_ids else len(row_ids), most)
        assert answer.filled(-7, 9)[row].tolist() == row_ids[:length] + [-7] * (9 - length)
        assert answer.filled(-7)[row].tolist() == row_ids[:length] + [-7] * (len(row_ids) - length)
    # A given chain is spoken from as it is.
    again = system.respond(IDS, REAL, max_tokens=6, chain=chain)
    assert again.chain is chain
    assert torch.equal(again.tokens, tokens)
    altered = chain.with_latents(chain.latents.flip(0), chain.mask.flip(0))
    if kind in ("mono", "dual", "superposition", "coconut"):
        assert not torch.equal(system.respond(IDS, REAL, max_tokens=6, chain=altered).tokens, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_may_have_a_length(kind: str) -> None:
    one = system_of(kind).of_length(3)
    answer = one.respond(IDS, REAL)
    assert answer.tokens.shape[1] <= 3
    if kind not in THINKERS:
        assert (answer.chain.lengths == 3).all()
        assert_same(answer.chain, rollout(one.reasoner, IDS, REAL, StopRule(max_latents=3, fixed=True)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_finished_chain_says_needs_no_prompt_unless_the_stack_says_it(kind: str) -> None:
    system = system_of(kind)
    answer = system.respond(IDS, REAL, max_tokens=6)
    if kind in THINKERS:
        with pytest.raises(ValueError, match="give respond the prompts"):
            system.decode(answer.chain)
        forced = system.respond(IDS, REAL, forced=(9,)).tokens
        assert not torch.equal(forced, system.respond(IDS, REAL).tokens)
        return
    assert torch.equal(system.decode(answer.chain).tokens, answer.tokens)
    with pytest.raises(ValueError, match="no tokens can be put before an answer"):
        system.respond(IDS, REAL, forced=(9,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_system_that_samples_draws_the_same_for_the_same_prompts(kind: str) -> None:
    greedy = system_of(kind)
    sampled = replace(greedy, sampling=Sampling(temperature=5.0, top_p=0.9))
    answer, again = sampled.respond(IDS, REAL, max_tokens=6), sampled.respond(IDS, REAL, max_tokens=6)
    assert torch.equal(answer.tokens, again.tokens)
    assert_same(answer.chain, greedy.respond(IDS, REAL, max_tokens=6).chain)
    free = greedy.speaker.samples
    assert torch.equal(answer.tokens, greedy.respond(IDS, REAL, max_tokens=6).tokens) == (not free)
    # A request may choose for itself.
    own = sampled.respond(IDS, REAL, max_tokens=6, **({"sample": Sampler(0.0)} if free else {}))
    assert torch.equal(own.tokens, greedy.respond(IDS, REAL, max_tokens=6).tokens)
    likeliest = replace(greedy, sampling=Sampling(temperature=5.0, top_p=1e-6))
    assert torch.equal(likeliest.respond(IDS, REAL, max_tokens=6).tokens, own.tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_drawn_where_something_is_free_to_choose(kind: str) -> None:
    system = system_of(kind)
    if kind in ("coupled", "nearest"):
        with pytest.raises(ValueError, match="samples none"):
            system.respond(IDS, REAL, sample=Sampler(1.0))
        return
    draws = [system.respond(IDS, REAL, sample=Sampler(3.0, torch.Generator().manual_seed(s))) for s in (0, 0, 1)]
    assert torch.equal(draws[0].tokens, draws[1].tokens)
    assert not torch.equal(draws[0].filled(PAD), draws[2].filled(PAD))
    assert_same(draws[0].chain, draws[2].chain)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nearest"])
def test_a_forced_token_is_said_whatever_the_system_would_say(kind: str) -> None:
    system = system_of(kind).of_length(6)
    clean = system.respond(IDS, REAL)
    steps = system.stop.max_latents if kind == "explicit" else 0
    tokens = torch.full((9, steps + 6), FREE)
    tokens[:, steps + 1] = 9
    answer = system.respond(IDS, REAL, **system.forcing(tokens))
    long = (clean.lengths > 1) & (answer.lengths > 1)
    assert long.sum() > 3
    assert (answer.tokens[long, 1] == 9).all()
    assert torch.equal(answer.tokens[long, 0], clean.tokens[long, 0])
    if kind != "coupled":
        assert_same(answer.chain, clean.chain)
        if kind != "explicit":
            return
    tokens[:, 1], row = 11, system.model.get_input_embeddings()(torch.tensor(11))
    answer = system.respond(IDS, REAL, **system.forcing(tokens))
    longer = answer.chain.mask[:, 1]
    assert longer.sum() > 3
    assert answer.chain.support_ids is not None
    assert (answer.chain.support_ids[longer, 1, 0] == 11).all()
    assert (answer.chain.latents[longer, 1] == row).all()


# --- what it is, and what it costs -----------------------------------------------------------------------------------


def test_kinds_are_told_apart() -> None:
    systems = {kind: system_of(kind) for kind in KINDS}

    def having(name: str) -> list[str]:
        return [kind for kind, system in systems.items() if getattr(system, name)]

    assert having("explicit") == ["coupled", "explicit"]
    assert replace(systems["explicit"], stop=StopRule(max_latents=1)).explicit
    assert having("has_talker") == ["mono", "dual"]
    assert having("silent") == [kind for kind in KINDS if kind != "coupled"]
    assert having("mixes_rows") == ["coupled", "explicit", "superposition", "full", "answer only"]
    assert having("targets") == ["mono", "dual", "nearest"]
    assert {kind: system.replaced for kind, system in systems.items() if system.replaced} == {"coconut": 2}
    assert [kind for kind, system in systems.items() if system.speaker.reads_tokens] == ["dual", *THINKERS]
    # Markers, chain and answer; where a latent stands for each token, the chain is the answer.
    after = {kind: system.steps_after_prompt(4) for kind, system in systems.items()}
    assert after == dict.fromkeys(("coupled", *TALKERS), 4) | {
        kind: 3 + system.stop.max_latents + 4 for kind, system in systems.items() if kind in THINKERS
    }
    assert {system.positions for system in systems.values()} == {64}


def test_passes_wait_for_one_another() -> None:
    passes = {kind: system_of(kind).sequential_passes(5, 3) for kind in KINDS}
    assert passes["coupled"] == passes["nearest"] == 5
    assert passes["mono"] == 6
    assert passes["dual"] == 5 + 1 + 5
    # The opening's token, the marker's and the answer's.
    assert {passes[kind] for kind in THINKERS} == {1 + 5 + 2 + 3}


class Refining:
    """A Reasoner whose latents count as refined three times."""

    iterations, shift = 3, 0

    def __init__(self, reasoner: Any) -> None:
        self._reasoner = reasoner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reasoner, name)

    def guess(self, count: int) -> Tensor:
        raise NotImplementedError


def test_latents_that_are_read_several_times_count_for_each_pass() -> None:
    system = system_of("coconut")
    assert (system.iterations, system.latent_positions(5)) == (None, 5)
    refined = replace(system, reasoner=Refining(system.reasoner))
    # Five latents at once: three passes write them, and one reads them with the answer.
    assert refined.latent_positions(5) == 5 * (3 + 1)
    assert refined.sequential_passes(5, 2) - system.sequential_passes(5, 2) == 3 - 5
    assert refined.sequential_passes(0, 2) == system.sequential_passes(0, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_of_the_stack_the_table_and_the_talker(kind: str) -> None:
    system = system_of(kind)
    answer = system.respond(IDS, REAL, max_tokens=6)
    found = system.flops(REAL.sum(dim=1), answer)
    scorings = {"full": 2, "coconut": 0}.get(kind, 1)
    for row, prompt in enumerate(REAL.sum(dim=1).tolist()):
        steps, tokens = int(answer.chain.lengths[row]), int(answer.lengths[row]) if kind in THINKERS else 0
        markers = 3 if kind in THINKERS else 0
        scored = tokens + scorings * (steps + (kind in THINKERS and int(answer.chain.stop[row]) == 0))
        expected = stack_flops(system.reasoner.stack, float(prompt + markers + steps + tokens - 1))
        expected += 2 * 20 * WIDTH * scored
        if kind in ("mono", "dual"):
            assert float(found[row]) > expected  # what the Talker adds is counted by hand in tests of its cost
        else:
            assert float(found[row]) == pytest.approx(expected)
    assert system.parameters == sum(weight.numel() for weight in model_of(kind).parameters())


def test_what_else_a_latent_step_computes_is_counted_for_each_step() -> None:
    system = system_of("coconut")
    answer = system.respond(IDS, REAL)
    more = replace(system, step_flops=1000).flops(REAL.sum(dim=1), answer) - system.flops(REAL.sum(dim=1), answer)
    assert torch.equal(more, 1000 * answer.chain.lengths.double())


def test_latents_that_are_refined_cost_a_pass_over_all_of_them_each_time() -> None:
    system = replace(system_of("coconut"), step_flops=1000)
    answer = system.respond(IDS, REAL)
    prompt = REAL.sum(dim=1)
    refined = replace(system, reasoner=Refining(system.reasoner)).flops(prompt, answer)
    stack = system.reasoner.stack
    for row, (tokens, steps) in enumerate(zip(prompt.tolist(), answer.chain.lengths.tolist(), strict=True)):
        # Three passes over the latents, which see the prompt, the marker's token and those before them.
        block = stack_flops(stack, tokens + 1 + steps) - stack_flops(stack, tokens + 1)
        expected = float(system.flops(prompt, answer)[row]) - 1000 * steps + 3 * (block + 1000 * steps)
        assert float(refined[row]) == pytest.approx(expected)


def test_tokens_of_the_opening_that_belong_to_the_prompt_take_no_pass() -> None:
    system = system_of("superposition")
    assert system.sequential_passes(5, 3) - replace(system, prefilled=1).sequential_passes(5, 3) == 1
    # A separate speaker has no opening to write.
    talker = replace(system_of("mono"), opening=(5, 6))
    assert talker.sequential_passes(5, 3) == system_of("mono").sequential_passes(5, 3) == 6


def test_a_system_is_plain_unless_more_is_known_of_it() -> None:
    given = system_of("superposition")
    names = ("name", "model", "reasoner", "speaker", "stop", "max_tokens", "chain_kind", "table_size")
    plain = System(**{name: getattr(given, name) for name in names})
    assert (plain.opening, plain.prefilled, plain.replaced, plain.targets) == ((), 0, 0, None)
    assert (plain.scorings, plain.step_flops, plain.text_format, plain.sampling) == (1, 0, None, None)
    assert (plain.markers, plain.iterations, plain.silent, plain.explicit) == (2, None, True, False)


def test_problems_are_measured_as_the_page_has_it_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr("unspoken.measuring.measured", lambda _system, data, **how: calls.append((data, how)))
    system = system_of("superposition")
    system.evaluate()
    given = {"grader": "math", "problems": 3, "controls": False, "batch_size": 2, "seed": 9}
    system.evaluate("file.jsonl", **given)
    documented = {"grader": None, "problems": 200, "controls": True, "batch_size": 32, "seed": 0}
    assert calls == [(None, documented), ("file.jsonl", given)]


@pytest.mark.parametrize("kind", ["coupled", "explicit"])
def test_steps_beyond_the_given_ones_are_the_system_s_own(kind: str) -> None:
    system = system_of(kind).of_length(6)
    tokens = torch.full((9, 2), FREE)
    tokens[:, 0] = 11
    forced = system.forcing(tokens)["intervene"]
    answer, clean = system.respond(IDS, REAL, intervene=forced), system.respond(IDS, REAL)
    assert answer.chain.support_ids is not None and clean.chain.support_ids is not None
    assert (answer.chain.support_ids[:, 0, 0] == 11).all()
    assert answer.chain.lengths.max() > 2
    # The first token of the vocabulary is one like any other.
    zeros = system.respond(IDS, REAL, intervene=system.forcing(torch.zeros(9, 1).long())["intervene"]).chain
    assert torch.equal(zeros.latents[:, 0], system.reasoner.embed_prompt(torch.zeros(9, 1).long())[:, 0])
    # A first step that the system would have chosen changes nothing.
    first = clean.chain.support_ids[:, :1, 0]
    rows = clean.chain.lengths > 1
    same = system.respond(IDS, REAL, **{"intervene": system.forcing(first)["intervene"]})
    assert torch.equal(same.chain.support_ids[rows], clean.chain.support_ids[rows])  # type: ignore[index]


# --- whose a model is ------------------------------------------------------------------------------------------------


def test_a_model_is_given_its_own_method_s_systems() -> None:
    names = {
        kind: [system.name for system in catalogue.systems(model_of(kind), stage="cot", max_answer=6)] for kind in KINDS
    }
    assert names.pop("explicit") == ["cot", "soft thinking"]
    assert names.pop("mono") == names.pop("dual") == ["cot", "cot, nearest row"]
    assert all(found == ["cot"] for found in names.values())
    softly = catalogue.systems(model_of("explicit"), stage="long", max_answer=6)[1]
    assert (softly.name, softly.chain_kind) == ("long, soft thinking", "superposition")


def test_models_in_training_answer_with_their_decoder() -> None:
    config = LatentSFTConfig(base_config=tiny_config("unspoken"), open_ids=[5], end_ids=[6, 7], has_encoder=False)
    latent_sft, coconut = LatentSFTModel(config), CoconutModel(tiny_config("unspoken"))
    settings = LatentGenerationConfig(open_ids=OPEN, end_ids=CLOSE, feed="hidden", fixed=True, max_latents=3)
    settings.attach(coconut.decoder)
    for model, kind in ((latent_sft, "superposition"), (coconut, "hidden")):
        (system,) = catalogue.systems(model, stage="it", max_answer=6)
        assert system.model is model.decoder
        assert system.chain_kind == kind
        assert system.markers == 3


def test_what_cannot_answer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no method can answer with a UnspokenModel"):
        catalogue.systems(tiny_language_model("unspoken").base_model, stage="it", max_answer=6)
    endless = tiny_language_model("unspoken")
    endless.config.eos_token_id = [1, 2]
    with pytest.raises(ValueError, match=r"eos_token_id is \[1, 2\]"):
        catalogue.systems(endless, stage="it", max_answer=6)
    (system,) = catalogue.systems(endless, stage="it", max_answer=6, end_id=1)
    assert system.speaker.end_ids == (1,)
    LatentSFTModel(LatentSFTConfig(base_config=tiny_config("unspoken"))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="stage 1 of Latent-SFT, which cannot answer by itself"):
        load_model(tmp_path)


def test_the_catalogue_imports_nothing_heavy() -> None:
    code = "import sys, unspoken.methods.catalogue; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
