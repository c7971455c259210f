"""The training pass against a loop over rows that has no cache, no padding and no positions."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_models import FAMILIES, PAD, tiny_language_model
from torch import Tensor
from transformers import AutoModelForCausalLM, OpenAIGPTConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.coconut.objective import batch_of
from unspoken.methods.coconut.stages import Coconut, Row

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
END = (7, 6)
# Prompts, latents and texts all of different length; one row does not think.
ROWS = [
    Row(prompt=(3, 11, 2), latents=3, end=END, text=(13, 14, 15, 1)),
    Row(prompt=(12,), latents=0, end=END, text=(1,)),
    Row(prompt=(4, 9, 8, 5, 2), latents=2, end=END, text=(19, 14, 1)),
    Row(prompt=(17, 2), latents=3, end=END, text=(16, 10)),
]
OBJECTIVE = Coconut(replaced=3, latents_per_step=1)


def coconut(family: str, attention: str = "eager") -> CoconutModel:
    base = tiny_language_model(family, attention)
    model = CoconutModel._from_config(base.config, attn_implementation=attention)
    model.start_from(base)
    return model.train()


def loss_of(model: CoconutModel, batch: dict[str, Tensor]) -> Tensor:
    loss, _ = OBJECTIVE.loss(model, batch)
    return loss


def outputs_of(model: CoconutModel, batch: dict[str, Tensor]) -> Any:
    """Of the pass that a stage trains by."""
    return model(**{name: piece for name, piece in batch.items() if name != "target_mask"})


def naive(model: CoconutModel, row: Row) -> tuple[Tensor, Tensor]:
    """Latents ``[N, D]`` and losses of the text of one row; the whole sequence is computed anew for every latent."""
    decoder = model.decoder
    embed = decoder.get_input_embeddings()
    inputs = embed(torch.tensor([row.prompt]))
    for _ in range(row.latents):
        hidden = decoder.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        inputs = torch.cat([inputs, hidden[:, -1:]], dim=1)
    latents = inputs[0, len(row.prompt) :]
    inputs = torch.cat([inputs, embed(torch.tensor([row.end + row.text]))], dim=1)
    scores = decoder(inputs_embeds=inputs, use_cache=False).logits[0]
    before = len(row.prompt) + row.latents + len(row.end) - 1
    output = scores[before : before + len(row.text)]
    return latents, F.cross_entropy(output, torch.tensor(row.text), reduction="none")


def gradients(loss: Tensor, model: CoconutModel) -> dict[str, Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


@pytest.mark.parametrize(("family", "attention"), [*product(FAMILIES, ("eager", "sdpa"))])
def test_a_padded_batch_is_the_naive_loop_in_latents_loss_and_gradients(family: str, attention: str) -> None:
    model, batch = coconut(family, attention), batch_of(ROWS, pad_id=PAD)
    actual = [naive(model, row) for row in ROWS]
    out = outputs_of(model, batch)
    for row, (latents, _) in enumerate(actual):
        torch.testing.assert_close(out.latents[row, : len(latents)], latents, **CLOSE)
    loss, expected = loss_of(model, batch), torch.cat([losses for _, losses in actual]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(loss, model), gradients(expected, model)
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()), msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_more_padding_and_what_it_holds_change_nothing(family: str) -> None:
    model, batch = coconut(family), batch_of(ROWS, pad_id=PAD)
    wide = {
        "input_ids": F.pad(batch["input_ids"], (2, 0), value=9),
        "attention_mask": F.pad(batch["attention_mask"], (2, 0)),
        "latent_mask": F.pad(batch["latent_mask"], (0, 2)),
        "text_ids": F.pad(batch["text_ids"], (0, 3), value=9),
        "text_mask": F.pad(batch["text_mask"], (0, 3)),
        "target_mask": F.pad(batch["target_mask"], (0, 3)),
    }
    narrow, wider = gradients(loss_of(model, batch), model), gradients(loss_of(model, wide), model)
    for name, gradient in narrow.items():
        torch.testing.assert_close(wider[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()), msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_under_bfloat16_autocast(family: str) -> None:
    model, batch = coconut(family), batch_of(ROWS, pad_id=PAD)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(model, batch), rtol=0.1, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients(loss, model).values())


@pytest.mark.parametrize("detached", [False, True])
def test_the_loss_reaches_what_the_first_latent_is_made_of(detached: bool) -> None:
    model, batch = coconut("llama"), batch_of([ROWS[0]], pad_id=PAD)
    passes: list[Tensor] = []

    def watch(_module: Any, _args: Any, out: BaseModelOutputWithPast) -> BaseModelOutputWithPast:
        passes.append(out.last_hidden_state)
        out.last_hidden_state.retain_grad()
        if detached and len(passes) == 1:
            out.last_hidden_state = out.last_hidden_state.detach()
        return out

    model.decoder.base_model.register_forward_hook(watch)
    loss_of(model, batch).backward()
    # Prompt, two latents, and the third latent with all of the text.
    assert [hidden.shape[1] for hidden in passes] == [3, 1, 1, 7]
    first = passes[0].grad
    if detached:
        assert first is None
    else:
        assert first is not None
        assert first[:, -1].abs().min() > 0
        assert not first[:, :-1].any()


@torch.no_grad()
def test_nothing_earlier_depends_on_a_later_token() -> None:
    model, batch = coconut("gpt2"), batch_of([ROWS[0], ROWS[3]], pad_id=PAD)
    before = outputs_of(model, batch)
    for position in range(4):
        changed = batch["text_ids"].clone()
        changed[:, position] = 9
        after = outputs_of(model, batch | {"text_ids": changed})
        # The last latent enters with the text, so its own vector is made before, too.
        assert torch.equal(after.latents, before.latents)
        torch.testing.assert_close(after.logits[:, :position], before.logits[:, :position], rtol=0, atol=1e-6)
        assert ((after.logits[:, position] - before.logits[:, position]).abs().amax(dim=-1) > 1e-3).all()
    asked = batch["input_ids"].clone()
    asked[:, -1] = 9
    other = outputs_of(model, batch | {"input_ids": asked})
    assert ((other.latents - before.latents).abs().amax(dim=-1) > 1e-3).all()


def test_checkpointed_activations_are_refused_where_they_would_lose_the_cache() -> None:
    model = coconut("llama")
    model.decoder.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="turn activation_checkpointing off") as caught:
        loss_of(model, batch_of(ROWS, pad_id=PAD))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["unspoken", "gpt2"])
@torch.no_grad()
def test_checkpoints_and_the_published_decoder_hold_the_same_model(family: str, tmp_path: Path) -> None:
    model, batch = coconut(family), batch_of(ROWS, pad_id=PAD)
    base = tiny_language_model(family)
    assert all(torch.equal(weight, base.state_dict()[name]) for name, weight in model.decoder.state_dict().items())
    # As the Trainer resumes: weights of a checkpoint, read into a fresh model.
    model.save_pretrained(tmp_path / "checkpoint")
    again = CoconutModel._from_config(base.config, attn_implementation="eager")
    missing = again.load_state_dict(load_file(tmp_path / "checkpoint" / "model.safetensors"), strict=False)
    assert set(missing.missing_keys) <= {"decoder.lm_head.weight"} and not missing.unexpected_keys
    assert torch.equal(loss_of(again, batch), loss_of(model, batch))
    # As a stage ends: a plain causal language model, which the next stage starts from.
    model.decoder.save_pretrained(tmp_path / "model")
    third = CoconutModel._from_config(base.config, attn_implementation="eager")
    third.start_from(AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    assert torch.equal(loss_of(third, batch), loss_of(model, batch))


@torch.no_grad()
def test_a_window_sees_no_hole_behind_a_row_with_fewer_latents() -> None:
    base = tiny_language_model("qwen2", use_sliding_window=True, sliding_window=3, max_window_layers=0)
    model = CoconutModel._from_config(base.config, attn_implementation="eager")
    model.start_from(base)
    batch = batch_of(ROWS, pad_id=PAD)
    out = outputs_of(model, batch)
    losses = F.cross_entropy(out.logits[:, :-1].transpose(1, 2), batch["text_ids"][:, 1:], reduction="none")
    for row, expected in enumerate(ROWS):
        latents, output = naive(model, expected)
        torch.testing.assert_close(out.latents[row, : expected.latents], latents, **CLOSE)
        torch.testing.assert_close(losses[row][batch["target_mask"][row, 1:]], output, **CLOSE)


def test_a_model_that_ignores_the_cache_is_refused_by_name() -> None:
    shape = {"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = CoconutModel._from_config(OpenAIGPTConfig(**shape), attn_implementation="eager")
    with pytest.raises(ValueError, match=r"^OpenAIGPTModel does not use the key-value cache"):
        loss_of(model, batch_of(ROWS, pad_id=PAD))
