"""The training passes of methods whose latents are hidden states that are fed back, one after another or together.

Rows are three blocks whose borders are the same in every row: ``prompt | latents | text``, where the text begins with
the end marker.

Axes: B batch, P prompt tokens, N latents, M tokens after the latents, T = P + N + M, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from unspoken import distributed
from unspoken.chain import real_last
from unspoken.places import at, places_of
from unspoken.reasoning.block import allow_rollback, refined
from unspoken.reasoning.cache import require_filled

IDS = Sequence[int]


def blocks_of(rows: Sequence[tuple[IDS, int, IDS, IDS]], pad_id: int) -> dict[str, Tensor]:
    """Rows, each a prompt, its number of latents, the end marker and the tokens after that, as a batch.

    Returns:
        ``input_ids``, ``attention_mask`` ``[B, P]``, prompts padded on the left; ``latent_mask`` ``[B, N]``, latents
        from the left; ``text_ids``, ``text_mask`` and ``target_mask`` ``[B, M]``, end marker and tokens after it,
        padded on the right; these tokens are the targets.

    Raises:
        ValueError: an empty batch.
    """
    if not rows:
        raise ValueError("the batch is empty; give at least one row")
    prompts = [torch.tensor(prompt) for prompt, _, _, _ in rows]
    texts = [torch.tensor([*end, *text]) for _, _, end, text in rows]
    targets = [torch.arange(len(end) + len(text)) >= len(end) for _, _, end, text in rows]
    latents = [torch.ones(count, dtype=torch.bool) for _, count, _, _ in rows]
    return {
        "input_ids": pad_sequence(prompts, batch_first=True, padding_value=pad_id, padding_side="left"),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in prompts], True, padding_side="left"),
        "latent_mask": pad_sequence(latents, batch_first=True),
        "text_ids": pad_sequence(texts, batch_first=True, padding_value=pad_id),
        "text_mask": pad_sequence([torch.ones_like(ids) for ids in texts], batch_first=True),
        "target_mask": pad_sequence(targets, batch_first=True),
    }


class CachedReading:
    """Rows that are read a few columns at a time, into a cache through which gradients flow.

    Args:
        decoder: a causal language model.
        mask: ``[B, T]``, 1 at real tokens and latents, of all that will be read.

    Raises:
        ValueError: activation checkpointing is on, which drops the cache.
    """

    def __init__(self, decoder: PreTrainedModel, mask: Tensor) -> None:
        if decoder.training and decoder.is_activation_checkpointing:
            raise ValueError(
                "activation checkpointing is on, but it drops the key-value cache in which latents are kept; turn "
                "activation_checkpointing off"
            )
        self.cache = DynamicCache(config=decoder.config)
        self._mask_BT = mask
        self._positions_BT = (mask.cumsum(dim=1) - 1).clamp(min=0)
        self._columns = 0

    def __call__(self, model: PreTrainedModel, new_BTD: Tensor, **how: Any) -> Any:
        """Outputs of the decoder or of its stack for the next columns.

        Raises:
            ValueError: the model ignores the cache that it is given: a latent would not see the prompt.
        """
        begin, self._columns = self._columns, self._columns + new_BTD.shape[1]
        outputs = model(
            inputs_embeds=new_BTD,
            attention_mask=self._mask_BT[:, : self._columns],
            position_ids=self._positions_BT[:, begin : self._columns],
            past_key_values=self.cache,
            use_cache=True,
            **how,
        )
        if not begin:
            require_filled(self.cache, type(model).__name__)
        return outputs

    def go_back(self, columns: int) -> None:
        """Forget the last columns, see `unspoken.reasoning.block.allow_rollback`."""
        self.cache.crop(-columns)
        self._columns -= columns


def latent_pass(
    decoder: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    latent_mask: Tensor,
    text_ids: Tensor,
    text_mask: Tensor,
    *,
    latent_of: Callable[[Tensor], Tensor] = lambda hidden: hidden,
    **how: Any,
) -> tuple[Any, Tensor]:
    """Write the latents, then read the text.

    The output at the last prompt token makes the first latent, the output at a latent the next one. So N latents take N
    short passes over one key-value cache, and the pass over the text takes the last latent along. Gradients flow
    through the latents and through the cache.

    Args:
        decoder: a causal language model.
        latent_mask: true where a row has a latent, from the left. A row with fewer latents is moved to the right, so
            that its text follows its last latent at once: it still reads its prompt while others write latents.
        latent_of: hidden states ``[B, 1, D]`` to what is fed back.
        how: further arguments of the pass over the text.

    Returns:
        Outputs of the last pass, the text being its last M positions, and latents ``[B, N, D]`` from the left; they
        mean something where the row has a latent.

    Raises:
        ValueError: as `CachedReading`.
    """
    embed = decoder.get_input_embeddings()
    length, latents = input_ids.shape[1], latent_mask.shape[1]
    mask_BS = torch.cat([attention_mask, latent_mask.to(attention_mask.dtype)], dim=1)
    order_BS = real_last(mask_BS.bool())
    mask_BT = torch.cat([mask_BS.gather(1, order_BS), text_mask], dim=1)
    tokens_BS = F.pad(input_ids, (0, latents)).gather(1, order_BS)
    latent_BS = order_BS >= length
    read = CachedReading(decoder, mask_BT)
    new_BTD = embed(tokens_BS[:, :length])
    outputs_BND = [new_BTD[:, :0]]
    for column in range(length, length + latents):
        hidden_BTD = read(decoder.base_model, new_BTD).last_hidden_state
        new_BTD = latent_of(hidden_BTD[:, -1:]).to(new_BTD.dtype)
        outputs_BND.append(new_BTD)
        new_BTD = torch.where(latent_BS[:, column, None, None], new_BTD, embed(tokens_BS[:, column, None]))
    outputs = read(decoder, torch.cat([new_BTD, embed(text_ids)], dim=1), **how)
    # Latents from the left again, as the mask of the caller has them.
    missing_B1 = (~latent_mask).sum(dim=1, keepdim=True)
    columns_BN = (torch.arange(latents, device=missing_B1.device) + missing_B1).clamp(max=latents - 1)
    latents_BND = torch.cat(outputs_BND, dim=1)
    return outputs, latents_BND.gather(1, columns_BN[:, :, None].expand(-1, -1, latents_BND.shape[-1]))


def block_pass(
    decoder: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    latent_mask: Tensor,
    text_ids: Tensor,
    text_mask: Tensor,
    *,
    guess: Tensor,
    iterations: int,
    latent_of: Callable[[Tensor], Tensor],
    shift: int = 1,
    cut_gradient: bool = False,
    reread: int = 0,
    **how: Any,
) -> tuple[Any, list[Tensor]]:
    """Guess as many latents in every row, refine them together, then read the text with those of the last pass.

    Args:
        decoder: a causal language model.
        latent_mask: true everywhere; its width is the number of latents.
        guess: ``[D]``, what stands in for a latent in the first pass.
        iterations: passes over all latents after the first one.
        latent_of, shift: see `unspoken.reasoning.block.refined`.
        cut_gradient: latents are made of outputs through which no gradient flows.
        reread: last prompt tokens that every pass reads, for their outputs in the last one.
        how: further arguments of the pass over the text.

    Returns:
        Outputs of the last pass, latents and text being its last N + M positions, and the latents ``[B, N, D]`` of
        every pass.

    Raises:
        ValueError: as `CachedReading`, or a layer keeps a recurrent state.
    """
    embed, latents = decoder.get_input_embeddings(), latent_mask.shape[1]
    reading = CachedReading(decoder, torch.cat([attention_mask, latent_mask.long(), text_mask], dim=1))
    if iterations:
        allow_rollback(reading.cache, type(decoder).__name__)

    again_BTD = embed(input_ids)[:, input_ids.shape[1] - reread :]

    def read(new_BTD: Tensor) -> Tensor:
        first = not reading.cache.get_seq_length()
        new_BTD = new_BTD if first else torch.cat([again_BTD, new_BTD], dim=1)
        hidden_BTD: Tensor = reading(decoder.base_model, new_BTD).last_hidden_state
        reading.go_back(reread + latents)
        hidden_BTD = hidden_BTD if first else hidden_BTD[:, reread:]
        return hidden_BTD.detach() if cut_gradient else hidden_BTD

    guess_BND = guess.expand(len(input_ids), latents, -1)
    new_BTD, chains = refined(read, embed(input_ids), guess_BND, iterations, latent_of, shift)
    if iterations:
        new_BTD = torch.cat([again_BTD, new_BTD], dim=1)
    return reading(decoder, torch.cat([new_BTD, embed(text_ids)], dim=1), **how), chains


def with_text_places(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that is still on the host, with the places of its supervised outputs and their targets."""
    chosen = batch["target_mask"][:, 1:]
    return {**batch, "places": places_of(F.pad(chosen, (0, 1))), "targets": batch["text_ids"][:, 1:][chosen]}


def text_loss(logits: Tensor, batch: dict[str, Any]) -> Tensor:
    """Mean over the targets of all ranks, in nats; prompts, latents and markers are not supervised.

    Args:
        logits: ``[B, M, V]``.
        batch: of `with_text_places`.
    """
    tokens = batch["targets"]
    losses = F.cross_entropy(at(logits, batch["places"]).float(), tokens)
    return distributed.rank_weighted_mean(losses, len(tokens))
