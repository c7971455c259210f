"""Adapters on the encoder's table, against an encoder whose table has a row more, as in the published code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from tiny_hub import tiny_hub_model
from tiny_models import PAD, tiny_language_model
from torch import Tensor, nn

from unspoken.backbone.attention import attention_mask
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.masks import induction
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.stages import LatentShape, Stage1
from unspoken.methods.rows import Rows, encoder_rows
from unspoken.places import at
from unspoken.tasks.spans import Markers, Spans
from unspoken.training.adapters import add_adapters, merged
from unspoken.training.optimizers import build_optimizer
from unspoken.training.parts import LoRA, Optimizer

MARKERS = Markers(open=(5, 3, 6), end=(7, 3, 6))
RANK = 3
SETTINGS = Optimizer(name="adamw", lr=0.01, lr_rest=None, weight_decay=0.1, betas=(0.9, 0.999))
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}


def joint(family: str = "llama") -> LatentSFTModel:
    """Both halves from one base."""
    # Gemma's table multiplies its rows by the root of the width when they are read.
    gemma = family == "gemma3_text"
    base = tiny_hub_model(family, **SLIDING) if gemma else tiny_language_model(family, "eager")
    config = LatentSFTConfig(base_config=base.config, open_ids=list(MARKERS.open), end_ids=list(MARKERS.end))
    model = LatentSFTModel._from_config(config, attn_implementation="eager")
    model.start_from(base)
    return model.eval()


def rows_of_encoder() -> Rows:
    spans = [
        Spans(prompt=(3, 11, 4), steps=((13, 14, 15, 16, 17, 12),), answer=(18, 1)),
        Spans(prompt=(12,), steps=((19, 13, 4),), answer=(1,)),
    ]
    return encoder_rows(spans, MARKERS, rate=2, pad_id=PAD)


def adapted(family: str = "llama") -> LatentSFTModel:
    """The encoder in training, its adapters away from zero but for the table's first factor, as they start."""
    model = joint(family)
    model.train_only(encoder=True, decoder=False)
    add_adapters(model, Stage1(train="encoder", shape=LatentShape()), LoRA(rank=RANK, dropout=0.0, table=True))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.encoder.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


def with_a_row_more(model: LatentSFTModel, family: str) -> nn.Module:
    """The same encoder with the extra token in its table."""
    encoder = joint(family).encoder
    table = encoder.get_input_embeddings().weight
    encoder.resize_token_embeddings(len(table) + 1, mean_resizing=False)
    with torch.no_grad():
        scale = getattr(encoder.get_input_embeddings(), "embed_scale", 1.0)
        encoder.get_input_embeddings().weight[-1] = model.parametrizations.compress.original / scale
    encoder.requires_grad_(False)
    targets = [*PROJECTIONS, "embed_tokens"]
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets), encoder)
    ours = dict(model.encoder.named_parameters())
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "lora_" in name and "lora_embedding_A" not in name:
                weight.copy_(ours[name])
    return encoder


def summaries(encoder: nn.Module, rows: Rows) -> Tensor:
    extra = len(encoder.get_input_embeddings().weight) - 1  # type: ignore[operator, arg-type]
    ids = rows.ids.masked_fill(rows.slots, extra)
    mask = attention_mask(induction(rows), rows.position, encoder)
    hidden = encoder(ids, attention_mask=mask, position_ids=rows.position).last_hidden_state
    return at(hidden, rows.slots_at)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_extra_token_learns_as_a_row_of_the_table_does(family: str) -> None:
    model, rows = adapted(family), rows_of_encoder()
    theirs = with_a_row_more(model, family)
    ours_moved = build_optimizer(model, SETTINGS, "fp32")
    learning = [weight for weight in theirs.parameters() if weight.requires_grad]
    # The published code's optimiser: one rate and one decay for all factors of all adapters.
    theirs_moved = torch.optim.AdamW(learning, lr=0.01, weight_decay=0.1, betas=(0.9, 0.999))
    goal = torch.randn(model.summaries(rows).shape, generator=torch.Generator().manual_seed(6))
    before = model.compress.detach().clone()
    for _ in range(3):
        for moved, outputs in ((ours_moved, model.summaries(rows)), (theirs_moved, summaries(theirs, rows))):
            moved.zero_grad()
            (outputs - goal).square().mean().backward()
            moved.step()
    torch.testing.assert_close(model.summaries(rows), summaries(theirs, rows), rtol=1e-5, atol=1e-5)
    column = theirs.get_input_embeddings().lora_embedding_A["default"][:, -1:]  # type: ignore[operator]
    torch.testing.assert_close(model.parametrizations.compress[0].column, column, rtol=1e-5, atol=1e-6)
    assert float((model.compress.detach() - before).abs().max()) > 0.01
    assert torch.equal(model.parametrizations.compress.original, before)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@torch.no_grad()
def test_what_is_published_is_a_plain_model(family: str, tmp_path: Path) -> None:
    model, rows = adapted(family), rows_of_encoder()
    model.parametrizations.compress[0].column.fill_(0.2)
    model.encoder.get_input_embeddings().lora_embedding_A["default"].fill_(0.1)
    expected = model.summaries(rows)
    plain = merged(model)
    assert type(plain) is LatentSFTModel
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in joint(family).named_parameters()}
    plain.save_pretrained(tmp_path)
    loaded = LatentSFTModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    torch.testing.assert_close(loaded.summaries(rows), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.summaries(rows), expected)  # the one in training stays as it is


def test_the_decoder_gets_no_adapters_on_its_table() -> None:
    model = joint()
    model.train_only(encoder=True, decoder=True)
    add_adapters(model, Stage1(train="union"), LoRA(rank=RANK, table=True))
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name in learning if "embed_tokens" in name or "compress" in name} == {
        "encoder.embed_tokens.lora_embedding_A.default",
        "encoder.embed_tokens.lora_embedding_B.default",
        "parametrizations.compress.0.column",
    }
    assert any(name.startswith("decoder.") for name in learning)
    with pytest.raises(AttributeError):
        _ = model.decoder.get_input_embeddings().lora_embedding_A
