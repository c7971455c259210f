"""Wrong tokens in the prompt, and systems that are planted to need a clean prompt or not to read it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tiny_strings import TASK, planted, right_symbols, string_system, string_view
from torch import Tensor

from unspoken.draw.section import Figure, Section
from unspoken.draw.table import Table, grids
from unspoken.evaluation.outcomes import JEPA_REASONER
from unspoken.probes.token_noise import RATES, TokenNoiseProbe, noise_curves
from unspoken.tasks.context_free import PAD, SYMBOLS

PROBE = TokenNoiseProbe()
CLEAN, MASK = TASK.prompts(TASK.sample("test", range(8)))


def test_every_system_continues_the_same_prompts_and_padding_stays() -> None:
    read: list[list[Tensor]] = [[], []]
    for prompts in read:

        def reply(ids: Tensor, _: Any, prompts: list[Tensor] = prompts) -> Tensor:
            prompts.append(ids)
            return right_symbols()

        view = string_view(planted(reply), seed=5)
        prompts.clear()
        PROBE.measure(view)
    assert all(torch.equal(*pair) for pair in zip(*read, strict=True))
    assert torch.equal(read[0][0], CLEAN)
    for rate, ids in zip(RATES, read[0], strict=True):
        wrong = (ids != CLEAN).sum(dim=1)
        assert wrong.tolist() == [int(rate * length + 0.5) for length in MASK.sum(dim=1).tolist()]
        assert torch.isin(ids[MASK.bool()], torch.tensor(SYMBOLS)).all()
        assert (ids[~MASK.bool()] == PAD).all()


@pytest.fixture
def summary() -> dict[str, Any]:
    """A baseline that gives nothing unless all of its prompt is right, and a pair that gives right symbols anyway."""
    right = right_symbols()

    def fragile(ids: Tensor, _: Any) -> Tensor:
        return torch.where((ids == CLEAN).all(dim=1, keepdim=True), right, PAD)

    systems = [planted(lambda *_: right, name=JEPA_REASONER), planted(fragile, name="coupled")]
    assert all(PROBE.applies(system, TASK) for system in systems)
    readings = {system.name: [PROBE.measure(string_view(system, seed=seed)) for seed in (0, 1)] for system in systems}
    return PROBE.summarise(readings, baseline="coupled")


def test_what_a_planted_system_needs_of_its_prompt_is_measured(summary: dict[str, Any]) -> None:
    assert summary["half"] == 2
    for name, after in ((JEPA_REASONER, 1.0), ("coupled", 0.0)):
        levels = summary["systems"][name]["levels"]
        assert [level["level"] for level in levels] == list(RATES)
        for kind in ("symbol", "exact"):
            values = [[step["mean"] for step in level[kind]] for level in levels]
            assert values == [[1.0, 1.0], *[[after] * 2] * (len(RATES) - 1)]
        assert summary["valid"][name] == [1.0, *[after] * (len(RATES) - 1)]
    clean, *noisy = summary["comparison"][f"{JEPA_REASONER} - coupled"]["levels"]
    assert [step["absolute"]["mean"] for step in clean["symbol"]] == [0.0, 0.0]
    assert all(step[kind]["mean"] == 1.0 for level in noisy for step in level["symbol"] for kind in step)
    json.dumps(summary, allow_nan=False)


def test_one_seed_of_one_system_is_summarised() -> None:
    reading = PROBE.measure(string_view(planted(lambda *_: right_symbols())))
    assert PROBE.summarise({"one": [reading]}, baseline=None)["half"] == 2


def test_steps_that_the_paper_does_not_print_have_no_line_of_its(summary: dict[str, Any]) -> None:
    for system in summary["systems"].values():
        for level in system["levels"]:
            level["symbol"] = level["symbol"][:1] * 5
    columns = noise_curves({"baseline": "coupled", "probes": {"token_noise": summary | {"half": 5}}})
    assert [panel.drawing.count("dashed faint") for column in columns for panel in column] == [2] * 8 + [0] * 2


def test_who_leaves_out_the_first_half_is_not_asked() -> None:
    assert not PROBE.applies(string_system("coconut"), TASK)


def test_the_first_half_of_a_clean_run_is_that_of_the_whole_answer() -> None:
    view = string_view(string_system("coupled"))
    assert view.graded.per_symbol is not None
    assert PROBE.measure(view).hits[0.0].tolist() == view.graded.per_symbol[:, :2].double().tolist()


def test_curves_have_a_column_a_step_and_the_paper_s_lines_in_it(summary: dict[str, Any]) -> None:
    results = {"baseline": "coupled", "probes": {"token_noise": summary}}
    columns = noise_curves(results)
    assert [[panel.remark for panel in column] for column in columns] == [["absolute", "relative"]] * 2
    for panel in (panel for column in columns for panel in column):
        assert panel.drawing.count("dashed faint") == 2
    drawing = columns[0][0].drawing
    assert drawing.count('class="dot c1"') == drawing.count('class="dot c2"') == 7
    section = PROBE.section(results)
    assert isinstance(section, Section)
    figure, absolute, relative = section.blocks
    assert isinstance(figure, Figure)
    assert isinstance(absolute, Table)
    assert isinstance(relative, Table)
    notes = [table.note for table in (absolute, relative)]
    assert notes[0].startswith("Accuracy of each symbol, in per cent")
    assert notes[1].startswith("Accuracy divided by the system’s own without noise, in per cent")
    ((_, lines),) = grids(absolute)
    assert [line[:3] for line in lines[1:3]] == [["0 %", "100.0", "100.0"], ["5 %", "0.0", "100.0"]]
    assert lines[2][-2:] == ["0.0", "100.0"]
    # The paper's value of step 1 at 30 %, and the better system in bold.
    assert absolute.rows[-1][1].note == "paper 64.0"
    assert [cell.classes for cell in absolute.rows[-1][1:3]] == ["", "strong"]
    assert PROBE.section({"baseline": None, "probes": {}}) is None
