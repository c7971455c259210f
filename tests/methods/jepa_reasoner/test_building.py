"""Models of JEPA-Reasoner's stages, and what is measured while they train."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import END, PAD, WIDTH, prompts, tiny_config, tiny_language_model, tiny_reasoner

from unspoken.methods.jepa_reasoner.building import collapse_readings, forced_latents, pair_of, reasoner_of
from unspoken.methods.jepa_reasoner.objective import effective_rank
from unspoken.methods.jepa_reasoner.stages import SST


def refused() -> None:
    raise AssertionError("the backbone's weights are not asked for")


def context(family: str = "unspoken", **changes: Any) -> Any:
    given = {
        "pretrained": False,
        "base": refused,
        "backbone_config": lambda: tiny_config(family),
        "lineage": SimpleNamespace(settings=SimpleNamespace(blocks=None), name="sst"),
        "tokenizer": SimpleNamespace(eos_token_id=END, pad_token_id=PAD),
        "full_cap": 9,
        "opening": (2, 3),
        "attention": "eager",
    }
    return SimpleNamespace(**given | changes)


# --- the Reasoner ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [PAD, END])
def test_a_reasoner_records_its_tokens_and_its_cap(pad: int) -> None:
    model = reasoner_of(SST(), None, context(tokenizer=SimpleNamespace(eos_token_id=END, pad_token_id=pad)))
    config = model.config
    assert (config.max_latents, config.open_ids, config.end_id) == (9, [2, 3], END)
    # Where ends also pad, padding is not known by its token.
    assert config.pad_token_id == (None if pad == END else PAD)
    assert torch.equal(model.target_table, model.backbone.get_input_embeddings().weight)


@pytest.mark.parametrize("family", ["unspoken", "llama"])
def test_a_stage_goes_on_with_the_weights_of_the_one_before(family: str) -> None:
    start = tiny_language_model(family)
    given = context(family, pretrained=True, backbone_config=refused)
    weights = reasoner_of(SST(), start, given).backbone.state_dict()
    assert weights.keys() == start.base_model.state_dict().keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in start.base_model.state_dict().items())
    # Without a stage before it, with those of a pretrained backbone.
    alone = reasoner_of(SST(), None, context(family, pretrained=True, base=lambda: start, backbone_config=refused))
    assert all(torch.equal(weight, alone.backbone.state_dict()[name]) for name, weight in weights.items())


@pytest.mark.parametrize("unit", [True, False])
def test_rows_enter_as_they_did_before_unless_a_recipe_has_it_otherwise(unit: bool) -> None:
    own = reasoner_of(SST(), None, context(backbone_config=lambda: tiny_config("unspoken", unit_embeddings=unit)))
    assert own.config.unit_tokens == unit
    # The blocks' last norm is switched on where SST starts.
    assert own.backbone.config.l2_output
    assert reasoner_of(SST(unit_tokens=unit), None, context("llama")).config.unit_tokens == unit
    assert not reasoner_of(SST(), None, context("llama")).config.unit_tokens


def test_a_table_that_normalises_its_rows_cannot_let_them_in_as_they_are() -> None:
    refused_settings = SST(unit_tokens=False)
    with pytest.raises(ValueError, match=r"stages \(sst\): objective\.unit_tokens is false.*backbone\.unit_embeddings"):
        reasoner_of(refused_settings, None, context())
    plain = context(backbone_config=lambda: tiny_config("unspoken", unit_embeddings=False))
    model = reasoner_of(refused_settings, None, plain)
    assert torch.equal(model.embed_prompt(prompts()), model.backbone.get_input_embeddings().weight[prompts()])
    assert reasoner_of(SST(unit_tokens=True), None, context()).config.unit_tokens


def test_beside_adapters_the_table_is_trained_in_full() -> None:
    model = tiny_reasoner().requires_grad_(False)
    SST().after_adapters(model)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        "backbone.embed_tokens.weight"
    }


# --- the pair --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "layers"), [(None, 1), (1, 1), (3, 3)])
def test_a_talker_starts_beside_the_frozen_reasoner(asked: int | None, layers: int) -> None:
    start, named = tiny_reasoner(), list[Any]()
    start.config.input_scale = 2.5
    model = pair_of(
        start,
        context(
            talker=SimpleNamespace(variant="dual", encoder_layers=asked),
            talker_config=lambda width: tiny_config("unspoken", hidden_size=width),
            name_ends=named.append,
        ),
    )
    assert named == [model]
    assert len(model.talker.encoder.layers) == model.config.talker_encoder_layers == layers
    assert (model.config.max_latents, model.config.pad_token_id, model.config.unit_tokens) == (9, PAD, True)
    assert model.reasoner.scale == start.scale == 2.5
    assert all(torch.equal(weight, model.reasoner.state_dict()[name]) for name, weight in start.state_dict().items())
    assert {name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad} == {"talker"}


# --- what is measured ------------------------------------------------------------------------------------------------


def answers() -> dict[str, Any]:
    ids = prompts(rows=3, length=7)
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, 4:] = True
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "answer_mask": answer}


@torch.no_grad()
def test_signs_of_collapse_are_measured_on_the_latents_of_the_answer() -> None:
    model, batch = tiny_reasoner(), answers()
    latents = model(batch["input_ids"]).latents[:, 3:6]
    # A row that the latents of the first problem point at makes some of them hits.
    model.target_table[batch["input_ids"][0, 5]] = latents[0, 1]
    nearest = model.nearest_row(latents)
    hits = (nearest == batch["input_ids"][:, 4:]).double().mean()
    assert 0 < hits < 1
    readings = collapse_readings(model, SST(), batch)
    assert readings["nearest_row"] == pytest.approx(float(hits))
    assert readings["effective_rank"] == pytest.approx(effective_rank(model.target_table))
    cosines = F.cosine_similarity(latents, model.target_table[batch["input_ids"][:, 4:]], dim=-1)
    assert readings["sst_loss"] == pytest.approx(float(4 * (1 - cosines).mean()), abs=1e-4)


@torch.no_grad()
def test_forced_latents_are_those_before_the_tokens_of_the_answer() -> None:
    model, batch = tiny_reasoner(), answers()
    latents = forced_latents(model, SST(), batch)
    assert latents.shape == (3, 3, WIDTH)
    torch.testing.assert_close(latents, model(batch["input_ids"]).latents[:, 3:6])
