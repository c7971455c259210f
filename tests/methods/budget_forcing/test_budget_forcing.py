"""NoThink and budget forcing against a loop without a cache, and the identities of their specification."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import left_padded
from settings_checks import check_defaults, check_ranges
from tiny_hub import save_hub_folder
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system
from torch import Tensor

import unspoken
from unspoken.chain import StopReason
from unspoken.methods.budget_forcing.reasoning import BudgetForcing, NoThink
from unspoken.methods.reasoning import Reasoning
from unspoken.reasoning.system import Answer, System
from unspoken.serving.batch import Batch, Progress
from unspoken.serving.systems import Served
from unspoken.training.recipe import load

CAP = 6
PROBLEMS = TASK.sample("test", range(8))
ROWS = [torch.tensor(row) for row in [span.prompt for span in TASK.spans(PROBLEMS, PROMPT_FORMAT)]]
MARKERS = PROMPT_FORMAT.markers


@pytest.fixture(scope="module", params=["unspoken", "llama", "gpt2"])
def explicit(request: pytest.FixtureRequest) -> System:
    """A model some of whose chains end: its first choices are frequent."""
    system = tiny_word_system(request.param, top_k=1, max_latents=CAP)
    ids, mask = left_padded(ROWS)
    frequent = system.respond(ids, mask).chain.support_ids
    assert frequent is not None
    # The end marker is a token that random weights choose in the middle of some chains.
    ends = [int(token) for token in frequent[:, 2, 0]]
    from unspoken.reasoning.causal_lm import LatentGenerationConfig, causal_lm_system

    settings = LatentGenerationConfig(open_ids=MARKERS.open, end_ids=(ends[0], 9), top_k=1, max_latents=CAP)
    settings.attach(system.model)
    again = causal_lm_system(system.model, settings, name=request.param, max_tokens=3)
    return replace(again, text_format=system.text_format)


def asked(system: System, rows: list[Tensor] = ROWS) -> Answer:
    return system.respond(*left_padded(rows))


def tokens_of(answer: Answer, row: int) -> tuple[list[int], list[int]]:
    """The thought and the answer of a row."""
    assert answer.chain.support_ids is not None or not answer.chain.mask.any()
    thought = [] if answer.chain.support_ids is None else answer.chain.support_ids[row, :, 0]
    kept = [int(token) for token, real in zip(thought, answer.chain.mask[row], strict=True) if real]
    return kept, answer.tokens[row, : int(answer.lengths[row])].tolist()


@torch.no_grad()
def naive(system: System, prompt: Tensor, way: BudgetForcing, words: list[int]) -> tuple[list[int], list[int]]:
    """The same with the whole text read anew for every token."""
    text, thought, pending = [*prompt.tolist(), *system.opening], list[int](), list[int]()
    end = system.speaker.marker

    def likeliest() -> int:
        return int(system.model(torch.tensor([text + thought])).logits[0, -1].argmax())

    while len(thought) < way.budget:
        token = likeliest()
        if token == end[0] and len(thought) >= way.least and not pending:
            break
        if token == end[0] and len(thought) < way.least and not pending:
            pending = list(words)
        thought.append(pending.pop(0) if pending else token)
    text, spoken = [*text, *thought, *end], list[int]()
    thought_only, thought = thought, []
    while len(spoken) < system.max_tokens and (not spoken or spoken[-1] not in system.speaker.end_ids):
        spoken.append(likeliest())
        text.append(spoken[-1])
    return thought_only, spoken


WAYS = [
    (BudgetForcing(budget=0), []),
    (BudgetForcing(budget=2), []),
    (BudgetForcing(budget=CAP), []),
    (BudgetForcing(budget=5, least=4, continuation="<<"), PROMPT_FORMAT.encode("<<")),
    (BudgetForcing(budget=9, least=9, continuation="Ann has"), PROMPT_FORMAT.encode("Ann has")),
]


@pytest.mark.parametrize(("way", "words"), WAYS)
def test_rows_of_a_padded_batch_are_the_naive_loop_s(explicit: System, way: BudgetForcing, words: Any) -> None:
    system = way.applied(explicit)
    answer = asked(system)
    for row, prompt in enumerate(ROWS):
        assert tokens_of(answer, row) == naive(system, prompt, way, list(words))
        alone = system.respond(prompt[None])
        assert tokens_of(alone, 0) == tokens_of(answer, row)
    lengths = answer.chain.lengths
    assert way.least <= int(lengths.min()) and int(lengths.max()) <= way.budget
    for reason, length in zip(answer.chain.stop.tolist(), lengths.tolist(), strict=True):
        assert reason in ((StopReason.END, StopReason.CAP) if length < way.budget else (StopReason.CAP, StopReason.END))


def test_the_chains_of_these_tests_end_in_every_way(explicit: System) -> None:
    answer = asked(explicit)
    assert {StopReason.END, StopReason.CAP} == {StopReason(int(reason)) for reason in answer.chain.stop}


def test_the_budget_of_the_model_itself_changes_nothing(explicit: System) -> None:
    free, forced = asked(explicit), asked(BudgetForcing(budget=CAP).applied(explicit))
    assert torch.equal(free.chain.latents, forced.chain.latents) and torch.equal(free.tokens, forced.tokens)


def test_no_budget_is_no_think_without_its_sentence(explicit: System) -> None:
    none, bare = asked(BudgetForcing(budget=0).applied(explicit)), asked(NoThink(sentence="").applied(explicit))
    assert torch.equal(none.tokens, bare.tokens) and not none.chain.mask.any()
    prefilled = NoThink(sentence="Ann has").applied(explicit)
    words = PROMPT_FORMAT.encode("Ann has")
    expected = BudgetForcing(budget=0).applied(replace(explicit))
    longer = [torch.cat([row, torch.tensor([*explicit.opening, *words])]) for row in ROWS]
    assert torch.equal(asked(prefilled).tokens, asked(replace(expected, opening=()), longer).tokens)


def test_the_conclusion_follows_the_end_marker(explicit: System) -> None:
    way = BudgetForcing(budget=3, conclusion="How many")
    system, words = way.applied(explicit), PROMPT_FORMAT.encode("How many")
    assert system.speaker.marker == (*explicit.speaker.marker, *words)
    answer = asked(system)
    for row, prompt in enumerate(ROWS):
        assert tokens_of(answer, row) == naive(system, prompt, way, [])


def test_thought_and_answer_are_counted_apart_and_no_prefill_as_either(explicit: System) -> None:
    prefilled, bare = (NoThink(sentence=text).applied(explicit) for text in ("Ann has", ""))
    assert prefilled.sequential_passes(0, 3) == bare.sequential_passes(0, 3)
    assert (prefilled.markers, bare.markers) == (len(explicit.opening) + 2 + 2, len(explicit.opening) + 2)
    answer = asked(BudgetForcing(budget=2).applied(explicit))
    assert int(answer.chain.lengths.max()) <= 2 and int(answer.lengths.max()) <= 3
    prompts = torch.tensor([len(row) for row in ROWS])
    assert (prefilled.flops(prompts, asked(prefilled)) > bare.flops(prompts, asked(bare))).all()


def test_a_server_answers_alike(explicit: System) -> None:
    system = BudgetForcing(budget=5, least=4, continuation="Ann has").applied(explicit)
    served, batch = Served(system=system), Batch(system.reasoner)
    made: dict[int, list[Progress]] = {row: [] for row in range(len(ROWS))}
    for row, prompt in enumerate(ROWS):
        job = served.job(prompt.tolist(), system.max_tokens)
        job.report = made[row].append
        batch.join([job])
        batch.step()  # they are in different phases
    while batch.rows:
        batch.step()
    expected = asked(system)
    for row in range(len(ROWS)):
        assert [token for progress in made[row] for token in progress.tokens] == tokens_of(expected, row)[1]
        assert made[row][-1].latents == int(expected.chain.lengths[row])


def test_a_model_of_the_hub_with_thinking_tokens(tmp_path: Path) -> None:
    save_hub_folder(tmp_path)
    plain = unspoken.load(tmp_path, device="cpu")
    silent = unspoken.load(tmp_path, "no_think", device="cpu")
    assert silent.texts.decode(silent.opening[1:]).strip() == NoThink().sentence
    assert silent.answer("2+2", max_tokens=4).cost.latent_steps == 0
    short = unspoken.load(tmp_path, {"kind": "budget_forcing", "budget": 3, "least": 3}, device="cpu")
    answer = short.answer("2+2", max_tokens=4)
    assert answer.cost.latent_steps == 3
    assert (plain.silent, short.silent, short.explicit) == (False, True, True)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (NoThink(), "cannot write the sentence 'Okay, I think I have finished thinking.'"),
        (BudgetForcing(budget=3, least=1), "cannot write the continuation 'Wait'"),
        (BudgetForcing(budget=3, conclusion="Final Answer:"), "cannot write the conclusion 'Final Answer:'"),
    ],
)
def test_what_a_tokenizer_cannot_write_is_one_line(explicit: System, way: Reasoning, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        way.applied(explicit)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    for settings in ({"top_k": 5}, {"top_k": 1, "max_latents": 0, "fixed": True}):
        system = tiny_word_system(**settings)
        from unspoken.reasoning.causal_lm import CausalLMReasoner

        assert isinstance(system.reasoner, CausalLMReasoner)
        system.reasoner.settings.attach(system.model)
        with pytest.raises(
            ValueError, match="writes no chain of tokens, so there is none to close; leave no_think out"
        ):
            NoThink(sentence="").applied(system)
    save_hub_folder(tmp_path, markers=())
    with pytest.raises(ValueError, match=r"no token of .* closes a chain; give budget_forcing its markers"):
        unspoken.load(tmp_path, BudgetForcing(budget=3), device="cpu")
    named = unspoken.load(tmp_path, BudgetForcing(budget=3, markers=("", "So ")), device="cpu")
    assert (named.opening, named.texts.decode(named.speaker.marker)) == ((), "So ")
    for settings, message in (
        ({"budget": -1}, "budget is -1; it must be 0 or more"),
        ({"budget": 2, "least": 3}, "least is 3; it must be from 0 to budget, which is 2"),
        ({"budget": 2, "continuation": ""}, "continuation is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            BudgetForcing(**settings)  # type: ignore[arg-type]


def test_recipes_ask_for_them_by_name() -> None:
    ways = "[{kind: no_think, sentence: ''}, {kind: budget_forcing, budget: 4}]"
    recipe = load("arithmetic", "tiny", [f"evaluation.reasonings={ways}"])
    assert [way.title for way in recipe.evaluation.reasonings] == [
        "no think, sentence none",
        "budget forcing, budget 4",
    ]
    with pytest.raises(ValueError, match="suits no stage"):
        load("tree-search", "tiny", ["evaluation.reasonings=[{kind: budget_forcing, budget: 4}]"])
    with pytest.raises(ValueError, match="budget is missing"):
        load("arithmetic", "tiny", ["evaluation.reasonings=[{kind: budget_forcing}]"])


def test_defaults_are_those_of_the_page() -> None:
    for way in (NoThink, BudgetForcing):
        check_defaults(way, "methods/budget_forcing.md", kind=way.kind)


def test_settings_end_where_they_say() -> None:
    check_ranges(BudgetForcing, {"budget": ([3, 4], [2]), "least": ([0, 3], [-1])}, budget=3, least=3)
    assert BudgetForcing(budget=0).budget == 0
