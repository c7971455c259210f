"""FlexAttention computes what plain attention computes; on a CPU forward alone, so there it is refused for training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tiny_drills import drilled
from tiny_models import PAD, prompts, tiny_language_model
from tiny_recipe import one_stage, quiet_train
from torch import Tensor

from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.stages import LatentShape
from unspoken.methods.rows import decoder_rows, encoder_rows
from unspoken.tasks.spans import Markers, Spans

MARKERS = Markers(open=(5,), end=(7,))
# Of the libraries' own calls: of torch's mask builder, and of what its compiler imports.
pytestmark = [
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.mark.parametrize("family", ["unspoken", "llama"])
@torch.no_grad()
def test_scores_are_those_of_plain_attention(family: str) -> None:
    ids = prompts(rows=3, length=9)
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[2, :2] = 0, 0
    plain, flex = (tiny_language_model(family, kind) for kind in ("eager", "flex_attention"))
    for given in (None, mask):
        expected, actual = (model(input_ids=ids, attention_mask=given).logits for model in (plain, flex))
        seen = torch.ones_like(mask).bool() if given is None else given.bool()
        torch.testing.assert_close(actual[seen], expected[seen], rtol=1e-4, atol=1e-4)


def stage_one(attention: str) -> tuple[Tensor, Tensor]:
    """Outputs of the decoder before targets and slots, from the encoder's own latents."""
    base = tiny_language_model("unspoken", attention)
    config = LatentSFTConfig(
        base_config=base.config, shape=asdict(LatentShape(top_k=3)), open_ids=list(MARKERS.open), end_ids=[7]
    )
    model = LatentSFTModel._from_config(config, attn_implementation=attention)
    model.start_from(base)
    spans = [
        Spans(prompt=(3, 11, 4), steps=((13, 14, 15, 16, 17),), answer=(18, 1)),
        Spans(prompt=(12,), steps=((19, 13),), answer=(1,)),
    ]
    layouts = (lay_out(spans, MARKERS, rate=2, pad_id=PAD) for lay_out in (encoder_rows, decoder_rows))
    encoder, decoder = layouts
    outputs = model.eval()(decoder=decoder, encoder=encoder)
    assert outputs.before_targets is not None and outputs.before_slots is not None
    return outputs.before_targets, outputs.before_slots


@torch.no_grad()
def test_the_masks_of_stage_one_are_block_masks() -> None:
    for actual, expected in zip(stage_one("flex_attention"), stage_one("eager"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_training_with_it_on_a_cpu_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which torch can train on CUDA alone, not on cpu; leave the key out"):
        quiet_train(one_stage("attention=flex_attention"), tmp_path)
    assert not list(tmp_path.glob("seed-*"))


def test_a_growing_cache_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stages\[3\] \(coconut\): flex_attention would compile a kernel for every"):
        drilled("strings", None, "attention=flex_attention")
