"""How the folder of a finished model answers where it records nothing, and what a carrier's lineage must be."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig

from unspoken.methods import catalogue, loading
from unspoken.methods.carrier import Carrier, carried, carriers
from unspoken.methods.catalogue import METHODS, objectives, trainable
from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.codi.stages import Codi
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.defaults import TrainingFacts, distilled, on_codi
from unspoken.methods.latent_model import LatentModel
from unspoken.methods.method import Lineage
from unspoken.methods.mux.stages import Mux
from unspoken.methods.self_distillation import Projection
from unspoken.methods.self_distilled import projection_of
from unspoken.methods.sim_cot.stages import SimCot
from unspoken.storage import FolderError


@dataclass(frozen=True)
class Answers:
    text_format: Any = None


@pytest.mark.parametrize(
    ("given", "positions", "cap"),
    [(None, 2048, 256), (None, 1024, 256), (None, 1020, 255), (None, 100, 25), (None, None, 256), (9, 100, 9)],
)
def test_an_answer_takes_a_quarter_of_the_positions_at_most(
    monkeypatch: pytest.MonkeyPatch, given: int | None, positions: int | None, cap: int
) -> None:
    asked: dict[str, Any] = {}
    tokenizer = SimpleNamespace(eos_token_id=5, pad_token_id=6)
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
    monkeypatch.setattr(loading, "load_model", lambda _: model)
    monkeypatch.setattr(loading, "load_answer_tokenizer", lambda _: tokenizer)
    monkeypatch.setattr(catalogue, "systems", lambda _, **how: asked.update(how) or [Answers(), Answers("other")])
    system: Any = loading.load_system("there", name="mine", max_answer=given)
    assert asked == {"stage": "mine", "max_answer": cap, "end_id": 5, "pad_id": 6}
    assert system.text_format.prompt_format.tokenizer is tokenizer


@pytest.mark.parametrize(
    ("asked", "device", "kernel"), [(None, "cpu", "eager"), (None, "meta", "sdpa"), ("sdpa", "cpu", "sdpa")]
)
def test_plain_attention_is_fastest_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, asked: Any, device: str, kernel: str
) -> None:
    given: dict[str, Any] = {}
    model = torch.nn.Linear(1, 1)
    monkeypatch.setattr(catalogue, "load", lambda _, **how: given.update(how) or model)
    monkeypatch.setattr(catalogue, "require_answering", lambda *_: None)
    assert loading.load_model("there", device=torch.device(device), attention=asked) is model
    assert given == {"dtype": torch.float32, "attn_implementation": kernel}
    assert not model.training


@pytest.mark.parametrize(
    ("architectures", "kind"),
    [
        (None, AutoModelForCausalLM),
        (["LlamaForCausalLM"], AutoModelForCausalLM),
        (["LlamaModel"], AutoModel),
        ([], AutoModel),
        ("LlamaForCausalLM", None),
        (["LlamaForCausalLM", 3], None),
    ],
)
def test_a_folder_names_the_class_of_its_model(monkeypatch: pytest.MonkeyPatch, architectures: Any, kind: Any) -> None:
    config = LlamaConfig()
    object.__setattr__(config, "architectures", architectures)
    monkeypatch.setattr("unspoken.backbone.loading.load_config", lambda _: config)
    monkeypatch.setattr("unspoken.backbone.loading.load_pretrained", lambda *given, **how: (*given, how))
    if kind is None:
        with pytest.raises(FolderError, match=r"there: config\.json names architectures .*, no list of names"):
            catalogue.load("there")
    else:
        assert catalogue.load("there", dtype=torch.float32) == ("there", kind, {"dtype": torch.float32})


def test_sixteen_tokens_are_generated_where_no_number_is_given() -> None:
    class Asked(Exception):
        pass

    def system(*, name: str, max_tokens: int) -> None:
        raise Asked(f"{name} {max_tokens}")

    model: Any = SimpleNamespace(config=SimpleNamespace(model_type="lotus"), system=system)
    for given, asked in (({}, "lotus 16"), ({"max_new_tokens": 3}, "lotus 3")):
        with pytest.raises(Asked, match=f"^{asked}$"):
            LatentModel.generate(model, torch.zeros(1, 1, dtype=torch.long), **given)


def test_stages_that_carry_a_loss() -> None:
    kinds = {objective.kind for objective in carriers()}
    assert kinds == {"coconut", "codi", "pccot"}
    assert all(issubclass(one, Carrier) for one in carriers())
    assert len(objectives()) == len({one.kind for one in objectives()}) == sum(len(one.objectives) for one in METHODS)


def lineage_of(*objectives: Any) -> Any:
    lineage: Lineage | None = None
    for number, objective in enumerate(objectives):
        from unspoken.training.recipe import Stage

        lineage = Lineage(settings=Stage(name=f"s{number}", objective=objective, steps=1), before=lineage)
    return lineage


def test_a_carrier_fits_the_line_without_added_losses() -> None:
    run: Any = SimpleNamespace(
        task=SimpleNamespace(traits=SimpleNamespace(fixed_steps=None)), attention="sdpa", activation_checkpointing=False
    )
    first = SimCot(carrier=Coconut(replaced=1))
    lineage = lineage_of(NextToken(), first, SimCot(carrier=Coconut(replaced=2)))
    assert [one.objective.kind for one in carried(lineage)] == ["coconut", "coconut", "next_token"]
    lineage.objective.check_lineage(lineage, run)
    wrong = lineage_of(first, SimCot(carrier=Codi()))
    with pytest.raises(ValueError, match="a codi stage cannot start from a coconut stage"):
        wrong.objective.check_lineage(wrong, run)
    fewer = lineage_of(SimCot(carrier=Coconut(replaced=2)), SimCot(carrier=Coconut(replaced=1)))
    with pytest.raises(ValueError, match="it replaces 1 steps by 2 latents and 's0' before it 2 by 4"):
        fewer.objective.check_lineage(fewer, run)


@pytest.mark.parametrize("kind", [Mux, SimCot])
def test_an_added_loss_has_latents_and_a_weight(kind: Any) -> None:
    assert kind(carrier=Codi()).weight == 1.0
    assert kind(carrier=Codi(latents=1), weight=0.001).weight == 0.001
    with pytest.raises(ValueError, match=r"weight is 0\.0; it must be above 0 \(for no added loss use kind: codi\)"):
        kind(carrier=Codi(), weight=0.0)
    with pytest.raises(ValueError, match=r"carrier \(codi\) has 0 latents; set latents above 0"):
        kind(carrier=Codi(latents=0))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_micro_batches_do_not_see_the_deviation_of_a_batch(accumulate: int) -> None:
    run: Any = SimpleNamespace(attention="sdpa", activation_checkpointing=False)
    lineage: Any = SimpleNamespace(settings=SimpleNamespace(accumulate=accumulate))
    Codi(divide_by_std=False).check_lineage(lineage, run)
    if accumulate == 1:
        Codi().check_lineage(lineage, run)
    else:
        with pytest.raises(ValueError, match="divide_by_std takes the deviation over the whole batch"):
            Codi().check_lineage(lineage, run)


def test_a_projection_is_two_layers_and_a_norm() -> None:
    plain = projection_of(Projection(), 6)
    assert [type(layer).__name__ for layer in plain] == ["Dropout", "Linear", "GELU", "Linear", "LayerNorm"]
    narrow = projection_of(Projection(width=4, dropout=0.25, norm=False), 6)
    assert [tuple(weight.shape) for weight in narrow.parameters()] == [(4, 6), (4,), (6, 4), (6,)]
    assert narrow[0].p == 0.25
    for name, value in (("width", 0), ("dropout", -0.01), ("dropout", 1.0)):
        with pytest.raises(ValueError, match=f"^{name} is {value}; it must be at least"):
            Projection(**{name: value})  # type: ignore[arg-type]
    assert Projection(width=1, dropout=0.99).width == 1


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"),
    # An epoch of 3200 rows has a hundred steps; one of few rows has twenty.
    [(3200, 32, 1, 100), (3201, 32, 1, 101), (3200, 32, 2.5, 250), (40, 8, 1, 20), (40, 8, 3, 60), (40, 8, 0.01, 1)],
)
def test_steps_of_epochs(rows: int, batch: int, epochs: float, steps: int) -> None:
    facts = TrainingFacts(rows=rows, steps=1, chain=1, width=1, heads=1, batch_size=batch)
    assert facts.optimizer_steps(epochs) == steps


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_only_step_of_a_chain_is_kept_for_the_teacher(steps: int) -> None:
    facts = TrainingFacts(rows=40, steps=steps, chain=6, width=8, heads=2, batch_size=8)
    objective = {"kind": "codi", "last_step": steps == 1}
    expected = {"codi": [{"name": "codi", "objective": objective, "epochs": 8}]} if steps else {}
    assert distilled(facts, {"kind": "codi"}) == expected
    added = {"mux": [{"name": "mux", "objective": {"kind": "mux", "carrier": objective}, "epochs": 8}]} if steps else {}
    assert on_codi(facts, "mux") == added


def test_problems_that_allow_everything_train_every_method() -> None:
    assert set(trainable()) == {
        "answer-only",
        "cot",
        "coconut",
        "codi",
        "colar",
        "icot",
        "jepa-reasoner",
        "latent-sft",
        "lotus",
        "mux",
        "pause",
        "pccot",
        "sim-cot",
    }
