"""What stages and their context do where a method states nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from plain_stage import CAPS, PROBLEM, facts_of

from unspoken.methods.cost import Lengths
from unspoken.methods.method import Context, DecoderObjective, Lineage, Method, Objective, refuse_cacheless
from unspoken.tasks.spans import Markers


class Learned(Objective):
    kind = "learned"


def stage(**changes: Any) -> Any:
    return SimpleNamespace(**{"talker": None, "blocks": None, "steps": 3, "steps_of": (), "name": "one", **changes})


def context(*, markers: bool = True, has_chain: bool = True, chain_cap: int | None = None) -> Context:
    of_format = Markers(open=(8,), end=(9, 10))
    given: dict[str, Any] = dict.fromkeys(
        ("lineage", "base", "backbone_config", "talker", "talker_config", "attention"), None
    )
    task = SimpleNamespace(
        sample=lambda split, indices, seed: (split, indices, seed), rows=lambda problems, _: {"rows": problems}
    )
    return Context(
        **given,
        pretrained=False,
        traits=SimpleNamespace(  # type: ignore[arg-type]
            markers=of_format if markers else None, has_chain=has_chain, chain_cap=chain_cap, row_tokens=(9, 4)
        ),
        make_task=lambda: task,  # type: ignore[arg-type,return-value]
        prompt_format=SimpleNamespace(  # type: ignore[arg-type]
            markers=of_format, tokenizer=SimpleNamespace(eos_token_id=1, pad_token_id=0)
        ),
        max_latents=20,
        max_answer=7,
        batch_size=2,
        seed=5,
    )


def test_markers_are_the_task_s_or_the_end_of_text() -> None:
    assert context().markers == Markers(open=(8,), end=(9, 10))
    assert context(markers=False).markers == Markers(open=(1,), end=(1,))
    assert context().opening == (8,)
    assert context(has_chain=False).opening == ()


def test_a_chain_for_everything_is_as_long_as_steps_marker_and_answer() -> None:
    assert context().full_cap == 20 + 2 + 7
    assert context(has_chain=False).full_cap == 20
    assert context(chain_cap=5).full_cap == 5


def test_a_model_writes_its_chain_between_the_markers() -> None:
    settings = context().generation(top_k=3)
    assert (settings.open_ids, settings.end_ids) == ((8,), (9, 10))
    assert (settings.max_latents, settings.top_k) == (20, 3)
    assert context().generation(max_latents=4).max_latents == 4
    model: Any = SimpleNamespace(generation_config=SimpleNamespace())
    context().name_ends(model)
    assert vars(model.generation_config) == {"eos_token_id": 1, "pad_token_id": 0}


def test_problems_to_measure_on_are_the_same_for_every_seed() -> None:
    indices = np.arange(2)
    assert context().sample(indices) == ("train", indices, 5)
    assert context().sample(indices, "validation") == ("validation", indices, 0)
    assert Learned().collate(context())(indices) == {"rows": ("train", indices, 5)}
    assert Learned().collate(context(), "test")(indices) == {"rows": ("test", indices, 0)}


def test_a_line_is_read_back_to_its_start() -> None:
    first = Lineage(settings=stage(name="cot", objective=Learned()))
    second = Lineage(settings=stage(name="last", objective=Learned()), before=first)
    assert [one.name for one in second] == ["last", "cot"]
    assert (first.kind_before, second.kind_before) == (None, "learned")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"steps": None, "steps_of": ("cot",)}, None),
        ({"steps": None}, "exactly one of steps and steps_of"),
        ({"steps_of": ("cot",)}, "exactly one of steps and steps_of"),
        ({"talker": "shape"}, "a learned stage trains no Talker; remove it"),
        ({"blocks": 1}, "blocks is set, but a learned stage cannot truncate its backbone"),
    ],
)
def test_keys_that_a_stage_has_no_use_for(changes: dict[str, Any], message: str | None) -> None:
    if message is None:
        Learned().check_stage(stage(**changes))
    else:
        with pytest.raises(ValueError, match=message):
            Learned().check_stage(stage(**changes))


def test_keys_that_some_stages_have() -> None:
    class Cut(Objective):
        kind = "cut"
        cuts_blocks = trains_talker = True

    Cut().check_stage(stage(blocks=1, talker="shape"))
    with pytest.raises(ValueError, match="blocks is 0"):
        Cut().check_stage(stage(blocks=0))

    class Written(Objective):
        kind = "written"
        writes_data = True

    Written().check_stage(stage(steps=None))


def test_what_is_true_of_a_stage_that_states_nothing() -> None:
    one, model = Learned(), torch.nn.Linear(1, 1)
    assert facts_of(Learned) == {"recomputes"}
    assert [one.measured(last=last, has_chain=chain) for last in (True, False) for chain in (True, False)] == [
        True,
        True,
        False,
        False,
    ]
    assert [one.candidate(step) for step in (0, 1, 2)] == [False, True, True]
    assert (one.writes_tokens, one.ends_at_marker, one.questions_per_row) == (False, False, 1)
    assert one.row_length(PROBLEM, CAPS) == 5 + 6 + 4
    assert one.answer_tokens(CAPS) == 7
    assert one.training_rows(3, 4, 5) == 12
    assert one.counts({}) == {}
    assert one.counts({"targets": torch.zeros(3)}) == {"tokens": 3}
    assert one.mean_lengths(context()) == Lengths(prompt=9, answer=4)
    assert one.exported(model) is one.answering(model) is model  # type: ignore[arg-type,comparison-overlap]
    assert one.adapted(model) == [model]  # type: ignore[arg-type]

    class Spoken(Learned):
        writes_tokens = True  # type: ignore[assignment]

    assert Spoken().ends_at_marker


def test_a_decoder_alone_is_published_and_adapted() -> None:
    decoder = SimpleNamespace(base_model=torch.nn.Linear(1, 1))
    model: Any = SimpleNamespace(decoder=decoder)
    one = DecoderObjective()
    assert one.exported(model) is decoder
    assert one.answering(model) is decoder
    assert one.adapted(model) == [decoder]


@pytest.mark.parametrize(
    ("attention", "checkpointing", "message"),
    [
        ("sdpa", False, None),
        ("flex_attention", False, "flex_attention would compile .* Name's growing cache"),
        ("sdpa", True, "activation_checkpointing drops the cache that Name keeps"),
    ],
)
def test_a_growing_cache_goes_with_neither(attention: str, checkpointing: bool, message: str | None) -> None:
    run: Any = SimpleNamespace(attention=attention, activation_checkpointing=checkpointing)
    if message is None:
        refuse_cacheless("Name", run)
    else:
        with pytest.raises(ValueError, match=message):
            refuse_cacheless("Name", run)


def test_a_method_that_states_nothing_makes_nothing() -> None:
    class Empty(Method):
        name = "empty"
        objectives = ()

    model: Any = None
    assert Empty().systems(model, stage="s", max_answer=1, end_id=None, pad_id=None) == []
    assert Empty().default_stages(None) == {}  # type: ignore[arg-type]
