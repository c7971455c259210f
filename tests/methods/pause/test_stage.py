"""What a stage of pauses counts and refuses, and its batch by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_stage import CAPS, PROBLEM, facts_of, facts_of_system
from tiny_models import END, PAD, VOCABULARY, WIDTH, tiny_language_model

from unspoken.methods.pause.configuration import PauseSettings
from unspoken.methods.pause.objective import batch_of, with_places
from unspoken.methods.pause.stages import Pause
from unspoken.methods.pause.systems import systems
from unspoken.reasoning.engine import StopRule
from unspoken.tasks.spans import Markers

MARKERS = Markers(open=(8,), end=(9, 10))


@pytest.mark.parametrize(("replaced", "left"), [(None, 0), (0, 6), (1, 4), (3, 0)])
def test_a_row_is_as_long_as_what_is_left_of_it(replaced: int | None, left: int) -> None:
    objective = Pause(replaced=replaced)
    assert objective.row_length(PROBLEM, CAPS) == 5 + left + 4
    assert objective.answer_tokens(CAPS) == (7 if replaced is None else 27)


def test_what_a_stage_needs() -> None:
    assert facts_of(Pause) == {"chain_needed", "recomputes"}
    assert [Pause(pauses=count).appends for count in (0, 1)] == [False, True]
    assert not Pause(filler="dot").appends


def test_a_system_by_hand() -> None:
    model = tiny_language_model("llama")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    PauseSettings(token=9, pauses=4, open_ids=MARKERS.open, end_ids=MARKERS.end).attach(model)
    (system,) = systems(model, stage="pause", max_answer=5)
    assert facts_of_system(system) == {
        "name": "pause",
        "opening": (8,),
        "marker": (9, 10),
        "ends": (END,),
        "stop": StopRule(max_latents=4, fixed=True),
        "max_tokens": 5,
        "kind": "latent",
        "table": VOCABULARY * WIDTH,
        "scorings": 0,
    }
    reasoner: Any = system.reasoner
    # It needs of a model what an explicit chain does.
    assert (reasoner.shift, reasoner.iterations, reasoner.settings.top_k) == (1, 0, 1)
    row = model.get_input_embeddings().weight[9]
    step = reasoner.step(torch.zeros(3, WIDTH))
    for latents in (reasoner.guess(3), step.latent, step.next_input):
        assert torch.equal(latents, row.expand(3, -1))
    assert step.done.tolist() == [False] * 3


def test_a_batch_by_hand() -> None:
    objective = Pause(pauses=2, replaced=2)
    rows = [objective.row(PROBLEM, MARKERS, 30), Pause(pauses=1).row(PROBLEM, MARKERS, 30)]
    assert rows[0] == ((3, 4, 5, 6, 7, 8, 30, 30, 9, 10), (14, 15, 16, 21, 22, 23, 1))
    assert rows[1] == ((3, 4, 5, 6, 7, 8, 30, 9, 10), (21, 22, 23, 1))
    batch = batch_of([((3, 4), (21, 1)), ((3,), (21, 22, 1)), ((3, 4, 5, 6), (1,))], 0)
    assert batch["input_ids"].tolist() == [[3, 4, 21, 1, 0], [3, 21, 22, 1, 0], [3, 4, 5, 6, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["target_mask"].int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert batch["supervised"].tolist() == [0, 1, 2, 3]
    placed = with_places(batch)
    assert placed["targets"].tolist() == [21, 1, 21, 22, 1, 1]
    # Rows of four scored columns, and of all five.
    assert placed["places"].tolist() == [1, 2, 4, 5, 6, 11]
    every = with_places({name: values for name, values in batch.items() if name != "supervised"})
    assert every["places"].tolist() == [1, 2, 5, 6, 7, 13]
    assert Pause().counts(placed) == {"tokens": 6}
    late = batch_of([((3, 4), (1,))], 0)
    assert (late["supervised"].tolist(), with_places(late)["places"].tolist()) == ([1], [0])


@pytest.mark.parametrize(
    ("pauses", "filler", "words", "token"), [(2, None, {}, 50), (0, None, {}, 8), (1, "dot", {"dot": (7,)}, 7)]
)
def test_the_token_that_is_repeated(pauses: int, filler: str | None, words: Any, token: int) -> None:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=50))
    context: Any = SimpleNamespace(
        markers=MARKERS, backbone_config=lambda: config, prompt_format=SimpleNamespace(encode=words.get)
    )
    assert Pause(pauses=pauses, filler=filler).token(context) == token


def test_a_filler_is_one_token() -> None:
    context: Any = SimpleNamespace(prompt_format=SimpleNamespace(encode=lambda _: (7, 8)))
    with pytest.raises(ValueError, match="'two' , which is 2 tokens".replace(" ,", ",")):
        Pause(filler="two").token(context)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (Pause(replaced=1), Pause(replaced=1), None),
        (Pause(replaced=1), Pause(replaced=2), None),
        (Pause(replaced=1), Pause(), None),
        (Pause(), Pause(), None),
        (object(), Pause(replaced=0, filler="dot"), None),
        (Pause(replaced=2), Pause(replaced=1), "replaced is 1, but 2"),
        (Pause(), Pause(replaced=1), "replaced is 1, but None"),
        (Pause(filler="dot"), Pause(), "filler is None, but 'dot'"),
    ],
)
def test_a_curriculum_replaces_more_steps_by_one_token(before: Any, after: Pause, message: str | None) -> None:
    line: Any = SimpleNamespace(before=SimpleNamespace(objective=before, name="earlier"))
    run: Any = None
    if message is None:
        after.check_lineage(line, run)
    else:
        with pytest.raises(ValueError, match=message):
            after.check_lineage(line, run)


@pytest.mark.parametrize(
    ("objective", "lora", "decay", "fits"),
    [
        (Pause(), "adapters", 0.1, False),
        (Pause(), "adapters", 0.0, True),
        (Pause(), None, 0.1, True),
        (Pause(filler="dot"), "adapters", 0.1, True),
        (Pause(pauses=0), "adapters", 0.1, True),
    ],
)
def test_decay_would_shrink_frozen_rows(objective: Pause, lora: Any, decay: float, fits: bool) -> None:
    stage: Any = SimpleNamespace(
        talker=None, blocks=None, steps=1, steps_of=(), lora=lora, optimizer=SimpleNamespace(weight_decay=decay)
    )
    if fits:
        objective.check_stage(stage)
    else:
        with pytest.raises(ValueError, match=r"optimizer.weight_decay is 0.1"):
            objective.check_stage(stage)


def test_nothing_is_sharded_on_one_rank() -> None:
    """A filler needs no row; a row of its own is trained alone."""
    table = torch.nn.Embedding(3, 2)
    table.weight.requires_grad_(False)
    model: Any = SimpleNamespace(get_input_embeddings=lambda: table)
    Pause(filler="dot").after_adapters(model)
    assert not table.weight.requires_grad
    Pause().after_adapters(model)
    table(torch.arange(3)).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.tolist() == [[0, 0], [0, 0], [1, 1]]
