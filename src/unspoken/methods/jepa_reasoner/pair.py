"""The pair in one folder: a frozen Reasoner and its Talker, usable as any causal language model.

Axes: B batch, T tokens, N latent steps, D latent width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig, GenerationMixin
from transformers.utils.generic import ModelOutput

from unspoken.backbone import UnspokenConfig
from unspoken.backbone.around import evaluate_frozen
from unspoken.chain import LatentChain, pack
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel, JepaReasonerPreTrainedModel
from unspoken.methods.jepa_reasoner.talker import build_talker
from unspoken.placement import moved
from unspoken.reasoning.engine import StopRule
from unspoken.reasoning.picking import Sample, Sampler


@dataclass
class JepaCausalOutput(ModelOutput):
    """Teacher-forced outputs of the pair over the answer positions, moved to the left."""

    loss: Tensor | None = None  # mean cross-entropy, if labels were given
    logits: Tensor | None = None  # ``[B, N, V]``
    latents: Tensor | None = None  # ``[B, N, D]``, what the Talker was given
    # tokens, mask: ``[B, N]``, the tokens it should write
    tokens: Tensor | None = None
    mask: Tensor | None = None


@dataclass
class JepaGenerateOutput(ModelOutput):
    """``sequences`` ``[B, T + N]`` (prompt and answer) and the chain that the answer was decoded from."""

    sequences: Tensor | None = None
    chain: LatentChain | None = None


class JepaReasonerForCausalLM(JepaReasonerPreTrainedModel, GenerationMixin):
    """Reasoner and Talker: ``generate`` returns tokens, and the chain on request."""

    def __init__(self, config: JepaReasonerConfig) -> None:
        super().__init__(config)
        if not isinstance(config.talker_config, UnspokenConfig):
            raise ValueError("this configuration has no Talker yet; load the Reasoner alone with AutoModel")
        if config.talker_config.hidden_size != config.latent_dim:
            raise ValueError(
                f"the Talker's hidden_size {config.talker_config.hidden_size} is not the latent width "
                f"{config.latent_dim}; they must be equal, since nothing projects between them"
            )
        config.talker_config._attn_implementation = config._attn_implementation
        self.reasoner = JepaReasonerModel(config)
        self.talker = build_talker(config.talker_kind, config.talker_config, config.talker_encoder_layers)
        self.post_init()

    def freeze_reasoner(self) -> None:
        """Stage 3 trains the Talker alone."""
        self.reasoner.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> JepaReasonerForCausalLM:
        """As in torch, but a frozen Reasoner stays in evaluation mode: its dropout would blur latents."""
        super().train(mode)
        if mode:
            evaluate_frozen(self.reasoner)
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        answer_mask: Tensor | None = None,
        labels: Tensor | None = None,
        length: int | None = None,
    ) -> JepaCausalOutput:
        """Teacher-forced pass: latents of the answer positions, then the Talker on those latents alone.

        Args:
            input_ids: ``[B, T]``, prompt and answer.
            answer_mask: ``[B, T]``, true on answer tokens; by default where ``labels`` is not -100, else every
                token but the first.
            labels: ``[B, T]``; -100 is ignored.
            length: answer tokens of the longest row; if it is not given, the host waits for the device to count them.
        """
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if answer_mask is None:
            answer_mask = real.bool() if labels is None else labels != -100
        frozen = not any(parameter.requires_grad for parameter in self.reasoner.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            latents_BTD = self.reasoner(input_ids, attention_mask).latents
        # The latent at t stands for the token at t + 1.
        chosen = answer_mask[:, 1:] & real[:, :-1].bool()
        latents_BND, mask_BN = pack(latents_BTD[:, :-1], chosen, length)
        tokens_BN, _ = pack(input_ids[:, 1:], chosen, length)
        logits_BNV = self.talker(latents_BND, mask_BN, tokens_BN)
        loss = None
        if labels is not None:
            targets_BN, _ = pack(labels[:, 1:], chosen, length)
            loss = F.cross_entropy(logits_BNV[mask_BN].float(), targets_BN[mask_BN])
        return JepaCausalOutput(loss=loss, logits=logits_BNV, latents=latents_BND, tokens=tokens_BN, mask=mask_BN)

    def reason(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, stop: StopRule | None = None
    ) -> LatentChain:
        """The chain of each prompt; see `JepaReasonerModel.reason`."""
        return self.reasoner.reason(input_ids, attention_mask, stop)

    @torch.no_grad()
    def speak(self, chain: LatentChain, *, sample: Sample | None = None) -> Tensor:
        """Decode a finished chain: ``[B, N]`` tokens, padded after the first end-of-sequence.

        Args:
            chain: any chain of this model's width, on any device; the tokens are returned on the same device.
            sample: how the tokens are chosen; None takes the most likely ones.
        """
        home = chain.mask.device
        chain = moved(chain, self.device)
        tokens_BN = self.talker.speak(chain, sample or Sampler())
        ended = (tokens_BN == self.config.end_id).long()
        after_end = (ended.cumsum(dim=1) - ended) > 0
        pad = self.config.end_id if self.config.pad_token_id is None else self.config.pad_token_id
        return torch.where(after_end | ~chain.mask, pad, tokens_BN).to(home)

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
        return_chain: bool = False,
    ) -> Tensor | JepaGenerateOutput:
        """Write the chain of latents, then decode it.

        Args:
            inputs, input_ids: ``[B, T]`` prompts, padded on the left.
            generation_config: defaults for the next three.
            max_new_tokens: cap of the chain, and so of the answer (one latent per token).
            do_sample, temperature: how the Talker picks tokens; the chain is the same whatever they are.
            return_chain: also return the chain.

        Returns:
            ``[B, T + N]`` as every transformers model, or `JepaGenerateOutput`.

        Raises:
            ValueError: no prompts, or they are given twice; or ``max_new_tokens`` is below 1.
        """
        prompt = inputs if inputs is not None else input_ids
        if prompt is None or (inputs is not None and input_ids is not None):
            raise ValueError("give the prompts as inputs or as input_ids")
        settings = generation_config or self.generation_config
        if attention_mask is None and self.config.pad_token_id is not None:
            attention_mask = (prompt != self.config.pad_token_id).long()
        caps = (max_new_tokens, settings.max_new_tokens, self.config.max_latents)
        cap = next(cap for cap in caps if cap is not None)
        if cap < 1:
            raise ValueError(f"max_new_tokens is {cap}; it must be at least 1")
        sampling = settings.do_sample if do_sample is None else do_sample
        chosen = temperature if temperature is not None else settings.temperature
        chain = self.reason(prompt, attention_mask, StopRule(max_latents=cap))
        sampler = Sampler(1.0 if chosen is None else chosen, generator) if sampling else Sampler()
        spoken = self.speak(chain, sample=sampler)
        sequences = torch.cat([prompt, spoken], dim=1)
        return JepaGenerateOutput(sequences=sequences, chain=chain) if return_chain else sequences


AutoConfig.register(JepaReasonerConfig.model_type, JepaReasonerConfig)
AutoModel.register(JepaReasonerConfig, JepaReasonerModel)
AutoModelForCausalLM.register(JepaReasonerConfig, JepaReasonerForCausalLM)
