"""The Talker: it decodes the Reasoner's finished chain into tokens (JEPA-Reasoner, section 3).

It is given latents and nothing else: not the problem, not the prompt's latents. Otherwise it could solve the task
itself, and the claim would not be about the Reasoner.

Axes: B batch, N latent steps (one per token, same order), D latent width, V vocabulary.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unspoken.backbone import UnspokenConfig, UnspokenModel
from unspoken.chain import LatentChain
from unspoken.reasoning.picking import Sample


class MonoTalker(nn.Module):
    """Decoder blocks over the latents themselves and an LM head: the whole answer in one pass, no token embedding.

    ``config.is_causal`` chooses between the causal form (default: the paper calls it a decoder) and the bidirectional
    one, which is what access to the whole trajectory needs (docs/methods/jepa_reasoner.md, open point 15).
    """

    def __init__(self, config: UnspokenConfig) -> None:
        super().__init__()
        self.decoder = UnspokenModel(config, embeddings=False)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.scale = config.hidden_size**0.5

    def forward(
        self, latents: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"], tokens: Int[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N V"]:
        """Logits of the token that each latent stands for; ``tokens`` is ignored."""
        # Latents stand on the left: no causal block sees the padding after them.
        seen = None if self.decoder.config.is_causal else mask.long()
        hidden = self.decoder(
            inputs_embeds=(latents * self.scale).to(self.decoder.dtype), attention_mask=seen, use_cache=False
        ).last_hidden_state
        return self.lm_head(hidden)

    def speak(self, chain: LatentChain, sample: Sample) -> Int[Tensor, "B N"]:
        """One pass; the token of each position is chosen independently."""
        return sample(self(chain.latents, chain.mask), _every_row(chain), 0)


class DualTalker(nn.Module):
    """A bidirectional encoder over the latents and a causal decoder over the tokens written so far.

    Its own start token (id V) is the same in training and in decoding (docs/methods/jepa_reasoner.md, open point
    18). The head is tied to the decoder's own embedding unless the config changes it (open point 19 there).
    """

    def __init__(self, config: UnspokenConfig, encoder_layers: int) -> None:
        super().__init__()
        encoder_config, decoder_config = copy.deepcopy(config), copy.deepcopy(config)
        encoder_config.is_causal, encoder_config.num_hidden_layers = False, encoder_layers
        decoder_config.is_causal, decoder_config.cross_attention = True, True
        decoder_config.vocab_size = config.vocab_size + 1
        self.start_id = config.vocab_size
        self.scale = config.hidden_size**0.5
        self.encoder = UnspokenModel(encoder_config, embeddings=False)
        self.decoder = UnspokenModel(decoder_config)
        untied = not config.tie_word_embeddings
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False) if untied else None

    def _encode(self, latents: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(
            inputs_embeds=(latents * self.scale).to(self.encoder.dtype), attention_mask=mask.long(), use_cache=False
        ).last_hidden_state

    def _decode(self, tokens: Tensor, encoded: Tensor, mask: Tensor) -> Tensor:
        hidden = self.decoder(
            input_ids=tokens, encoder_hidden_states=encoded, encoder_attention_mask=mask.long(), use_cache=False
        ).last_hidden_state
        if self.lm_head is not None:
            return self.lm_head(hidden)
        return F.linear(hidden, self.decoder.get_input_embeddings().weight[: self.start_id])

    def forward(
        self, latents: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"], tokens: Int[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N V"]:
        """Teacher-forced logits: position n sees every latent and the tokens before n."""
        if tokens is None:
            raise ValueError("a Dual-Talker is teacher-forced on tokens: give them, or call speak")
        start = torch.full_like(tokens[:, :1], self.start_id)
        return self._decode(torch.cat([start, tokens[:, :-1]], dim=1), self._encode(latents, mask), mask)

    def speak(self, chain: LatentChain, sample: Sample) -> Int[Tensor, "B N"]:
        """Token by token, one token per latent.

        Sentences are as short as their chain, so each step runs the decoder on the full prefix, without a cache.
        """
        encoded, rows = self._encode(chain.latents, chain.mask), _every_row(chain)
        tokens = torch.full((len(chain), 1), self.start_id, device=chain.mask.device)
        for step in range(chain.mask.shape[1]):
            token = sample(self._decode(tokens, encoded, chain.mask)[:, -1:], rows, step)
            tokens = torch.cat([tokens, token], dim=1)
        return tokens[:, 1:]


def _every_row(chain: LatentChain) -> Int[Tensor, " B"]:
    return torch.arange(len(chain), device=chain.mask.device)


def build_talker(kind: str, config: UnspokenConfig, encoder_layers: int) -> MonoTalker | DualTalker:
    """A Talker with random weights.

    Args:
        kind: "mono" or "dual".
    """
    return MonoTalker(config) if kind == "mono" else DualTalker(config, encoder_layers)
