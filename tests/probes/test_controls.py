"""Controls of two planted systems: one answers from its chain alone, the other does not read it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tag_balance import unbalanced
from tiny_models import tiny_pair
from tiny_strings import planted as planted_strings
from tiny_strings import right_symbols, string_system, string_view
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system, word_view
from torch import Tensor

from unspoken.chain import LatentChain, StopReason
from unspoken.draw.page import to_html
from unspoken.draw.section import Section, Verdicts
from unspoken.draw.table import Table, grids
from unspoken.evaluation.controls import CONTROLS
from unspoken.methods import catalogue
from unspoken.probes.controls import FORCED, ControlsProbe, Reading, chain_verdict, own_accuracy
from unspoken.probes.probe import View
from unspoken.reasoning.system import Answer, System

PROBE = ControlsProbe()
# Problems with different answers, so that no chain of another one leads to a right one.
_BY_ANSWER = {problem.answer: row for row, problem in enumerate(TASK.sample("test", range(60)))}
ROWS = sorted(_BY_ANSWER.values())[:12]
PROBLEMS = TASK.sample("test", range(60)).select(ROWS)
CODES = F.normalize(torch.randn(len(PROBLEMS), 16, generator=torch.Generator().manual_seed(77)), dim=-1)
READER, IGNORER = "reader", "no_reader"


@dataclass(frozen=True, kw_only=True)
class Planted(System):
    """Knows every answer: out of the first latent, which is the code of a problem; or out of the prompt."""

    reads_chain: bool

    def respond(self, input_ids: Tensor, attention_mask: Tensor | None = None, **request: Any) -> Answer:
        prompts = [tuple(PROMPT_FORMAT.prompt(problem.question)) for problem in PROBLEMS]
        assert attention_mask is not None
        asked = [
            prompts.index(tuple(row[mask.bool()].tolist())) for row, mask in zip(input_ids, attention_mask, strict=True)
        ]
        chain = request.get("chain")
        if chain is None:
            latents = CODES[asked][:, None].expand(-1, 3, -1)
            mask = torch.ones(latents.shape[:2], dtype=torch.bool)
            chain = LatentChain(latents=latents, mask=mask, stop=torch.full((len(asked),), StopReason.END))
        nearest = (chain.latents[:, 0] * chain.mask[:, :1]) @ CODES.T
        known = [int(row.argmax()) if row.max() > 0.99 else None for row in nearest] if self.reads_chain else asked
        answers = ["?" if row is None else PROBLEMS[row].answer for row in known]
        texts = [f"{answer}}}" if request.get("forced") else f"\\boxed{{{answer}}}" for answer in answers]
        rows = [torch.tensor([*PROMPT_FORMAT.encode(text), PROMPT_FORMAT.tokenizer.eos_token_id]) for text in texts]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
        return Answer(chain=chain, tokens=tokens, lengths=torch.tensor([len(row) for row in rows]))


def planted(*, reads_chain: bool) -> System:
    base = tiny_word_system(feed="hidden")
    fields = {key: getattr(base, key) for key in base.__dataclass_fields__}
    name = READER if reads_chain else IGNORER
    return Planted(**fields | {"name": name}, reads_chain=reads_chain)


def view(system: System, seed: int = 0, **rest: Any) -> View:
    empty = word_view(tiny_word_system(max_latents=0), 1)
    asked = replace(empty, system=system, problems=PROBLEMS, answers=None, seed=seed)
    return replace(asked, answers=asked.answer(), **rest)


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    readings = {}
    for reads_chain in (True, False):
        system = planted(reads_chain=reads_chain)
        assert PROBE.applies(system, TASK)
        seeds = [PROBE.measure(view(system, seed)) for seed in (0, 1)]
        assert all(reading is not None and reading.own.all() for reading in seeds)
        readings[system.name] = [reading for reading in seeds if reading is not None]
    return PROBE.summarise(readings, baseline=None)


# --- planted systems ---------------------------------------------------------------------------------------------


def test_what_a_chain_holds_is_lost_where_it_is_read(summary: dict[str, Any]) -> None:
    json.dumps(summary, allow_nan=False)
    lost = {"zero", "mean", "noise", "swap", "no chain"}
    for system, expected in ((READER, lost), (IGNORER, set())):
        controls = summary[system]
        assert set(controls) == {*CONTROLS, FORCED}
        assert {name for name, entry in controls.items() if entry["exact_match"]["mean"] == 0} == expected
        assert {name for name, entry in controls.items() if entry["difference"]["mean"] == -1} == expected
        for name in set(controls) - expected:
            assert controls[name]["exact_match"]["mean"] == 1
            assert controls[name]["difference"]["mean"] == 0
        assert {(len(e["exact_match"]["seeds"]), e["exact_match"]["problems"]) for e in controls.values()} == {(2, 12)}
        assert own_accuracy(controls) == 1


def test_verdicts_say_whether_the_chain_is_used(summary: dict[str, Any]) -> None:
    # All three latents of a chain are the same, and the first is read.
    unmoved = "Its order and its second half make no detectable difference."
    text_after = "Answering right after the chain costs nothing detectable."
    assert chain_verdict(summary[READER]) == [
        "The chain is used: without its content, accuracy falls by 100.0 points.",
        unmoved,
        text_after,
    ]
    assert chain_verdict(summary[IGNORER]) == [
        "No evidence that the chain is used: without its content, accuracy does not change detectably.",
        unmoved,
        text_after,
    ]


def test_the_section_has_a_verdict_and_a_column_a_system(summary: dict[str, Any]) -> None:
    own = {"exact_match": {"mean": 1.0, "low": 0.9, "high": 1.0, "seeds": [1.0, 1.0], "problems": 1000}}
    results = {
        "problems": 1000,
        "baseline": None,
        "systems": dict.fromkeys((READER, IGNORER), own),
        "probes": {"controls": summary},
    }
    section = PROBE.section(results)
    assert isinstance(section, Section)
    verdicts, table = section.blocks
    assert isinstance(verdicts, Verdicts) and isinstance(table, Table)
    assert unbalanced(to_html(section.blocks)) == []
    ((title, (header, *rows)),) = grids(table)
    assert "first 12 problems" in title
    assert header == ["system", "own", *["zero", "mean", "random", "shuffle", "swap", "half", "none", "forced"]]
    assert rows == [
        ["reader", "100.0", "−100.0", "−100.0", "−100.0", "(0.0)", "−100.0", "(0.0)", "−100.0", "(0.0)"],
        ["no reader", "100.0", *["(0.0)"] * 8],
    ]
    assert "Altered chains are measured on the first 12 of the 1,000 problems." in to_html([table])
    assert PROBE.section({"probes": {}}) is None


# --- who is asked ------------------------------------------------------------------------------------------------


def test_another_way_to_reason_is_asked_and_a_system_without_a_chain_is_not() -> None:
    assert PROBE.measure(view(planted(reads_chain=True), as_trained=False)) is not None
    assert PROBE.measure(word_view(tiny_word_system(max_latents=0), 3)) is None


def test_only_a_chain_that_is_not_the_answer_is_altered() -> None:
    talker, nearest = catalogue.systems(tiny_pair("mono"), stage="pair", max_answer=4)
    assert PROBE.applies(talker, TASK)
    assert not PROBE.applies(nearest, TASK)
    (explicit,) = catalogue.systems(tiny_word_system(max_latents=0).model, stage="cot", max_answer=4)[:1]
    assert PROBE.applies(explicit, TASK) == explicit.silent
    assert not PROBE.applies(talker, _running_text())


def test_a_box_is_opened_after_chains_of_texts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, plain = list[dict[str, Any]](), View.answer
    monkeypatch.setattr(View, "answer", lambda self, **how: (asked.append(how), plain(self, **how))[1])
    reading = PROBE.measure(view(planted(reads_chain=True)))
    assert reading is not None and FORCED in reading.altered
    assert [how["boxed"] for how in asked if "boxed" in how] == [True]
    symbols = PROBE.measure(string_view(string_system("coconut")))
    assert symbols is not None and FORCED not in symbols.altered


def test_of_a_string_the_second_half_counts() -> None:
    # Every answer has two symbols that are wrong, and then two that are right.
    tokens = right_symbols()
    tokens[:, :2] = 0
    reading = PROBE.measure(string_view(planted_strings(lambda *_: tokens)))
    assert reading is not None and len(reading.symbols) > 3
    assert set(reading.symbols.values()) == {1.0}


def _running_text() -> Any:
    """A task whose rows are no problems."""

    class Text:
        traits = replace(TASK.traits, continues=True, has_chain=False)

    return Text()


def verdict_of(own: np.ndarray, altered: np.ndarray) -> list[str]:
    """Of one seed and one control."""
    reading = Reading(own=own.astype(float), altered={"zero": altered.astype(float)}, symbols={"zero": 0.5})
    entries = PROBE.summarise({"it": [reading]}, baseline=None)["it"]
    assert entries["zero"]["symbol_accuracy"] == 0.5
    return chain_verdict(entries)


def test_six_right_answers_are_needed_to_see_that_they_are_lost() -> None:
    rows = np.arange(20)
    assert verdict_of(rows < 5, rows < 0) == ["Inconclusive: even from its own chains, only 5 of 20 answers are right."]
    assert verdict_of(rows < 6, rows < 0) == ["The chain is used: without its content, accuracy falls by 30.0 points."]


def test_more_right_answers_without_the_chain_are_no_loss() -> None:
    rows = np.arange(20)
    (sentence,) = verdict_of(rows < 10, rows < 20)
    assert sentence.startswith("No evidence that the chain is used")


def test_symbols_are_averaged_over_seeds() -> None:
    own = np.array([1.0, 1.0])
    seeds = [Reading(own=own, altered={"zero": 1 - own}, symbols={"zero": value}) for value in (0.25, 0.75)]
    entry = PROBE.summarise({"it": seeds}, baseline=None)["it"]["zero"]
    assert entry["symbol_accuracy"] == 0.5
    assert entry["difference"] == {"mean": -1.0, "low": -1.0, "high": -1.0, "p": 0.5}  # of two problems
