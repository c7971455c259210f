"""The paper's decoder as a transformers model.

Source: JEPA-Reasoner, section 3 (blocks with parameter-free QK-norm, HybridNorm after the last block, tied head that
exists only in pretraining). Block norm, activation, positions and biases are not printed;
docs/methods/jepa_reasoner.md lists our choices.

Axes: B batch, T tokens, S keys, H heads, C width of a head, D latent width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import capture_outputs

from unspoken.backbone.configuration import UnspokenConfig
from unspoken.backbone.folder import StrictLoading

Rotary = tuple[Tensor, Tensor]


def rotary_tables(positions_BT: Tensor, head_dim: int, theta: float) -> Rotary:
    """Cosines and sines ``[B, 1, T, C/2]`` in float32 of rotary positions (RoFormer, section 3.4)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_BT.device) / head_dim
    angles = positions_BT[:, None, :, None].float() * theta**-exponents
    return angles.cos(), angles.sin()


def rotate(x_BHTC: Tensor, rotary: Rotary) -> Tensor:
    """Turn each pair (i, i + C/2) of a head by its position's angle."""
    cos, sin = (table.to(x_BHTC.dtype) for table in rotary)
    first, second = x_BHTC.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """``softmax(q k' * scaling + mask) v``: the "eager" entry of the attention interface of transformers.

    On a CPU in bfloat16 it is about five times faster in training than the fused kernel for short sequences.
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class HybridNorm(nn.Module):
    """RMS norm with a gain, then an optional L2 norm that puts the output on the unit sphere.

    Pretraining runs with the L2 part off, so that the RMS part acts as the usual final norm (JEPA-Reasoner, section 3).
    """

    def __init__(self, config: UnspokenConfig) -> None:
        super().__init__()
        self.rms = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.l2_output = config.l2_output

    def forward(self, h_BTD: Tensor) -> Tensor:
        h_BTD = self.rms(h_BTD)
        return F.normalize(h_BTD.float(), dim=-1) if self.l2_output else h_BTD


class UnitEmbedding(nn.Embedding):
    """A table whose rows are read out normalised and scaled by ``sqrt(D)``.

    The stored rows stay free, because the tied head needs their norms.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.normalize(super().forward(input), dim=-1) * self.embedding_dim**0.5


class Attention(nn.Module):
    """Multi-head attention with parameter-free QK-norm, over the block's own tokens or over an encoder's output."""

    def __init__(self, config: UnspokenConfig, layer_idx: int, *, cross: bool = False) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.cross = cross
        self.is_causal = config.is_causal and not cross
        # Attributes of a configuration are slow to read, and a step of decoding takes a millisecond or less.
        self.head_dim = config.head_dim
        self.norm = F.rms_norm if config.qk_norm == "rms" else F.layer_norm
        self.norm_eps = config.norm_eps
        self.scaling = config.head_dim**-0.5
        self.num_key_value_groups = 1
        self.q_proj = nn.Linear(config.hidden_size, config.attention_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.attention_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.attention_size, bias=False)
        self.o_proj = nn.Linear(config.attention_size, config.hidden_size, bias=False)

    def _heads(self, x_BTA: Tensor) -> Tensor:
        return x_BTA.view(*x_BTA.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _qk_norm(self, x_BHTC: Tensor) -> Tensor:
        return self.norm(x_BHTC, x_BHTC.shape[-1:], eps=self.norm_eps)

    def forward(
        self,
        h_BTD: Tensor,
        *,
        rotary: Rotary,
        attention_mask: Tensor | BlockMask | None,
        past_key_values: Cache | None = None,
        source_BSD: Tensor | None = None,
        source_rotary: Rotary | None = None,
        **kwargs: Any,
    ) -> Tensor:
        source = h_BTD if source_BSD is None else source_BSD
        query = rotate(self._qk_norm(self._heads(self.q_proj(h_BTD))), rotary)
        key = rotate(
            self._qk_norm(self._heads(self.k_proj(source))), rotary if source_rotary is None else source_rotary
        )
        value = self._heads(self.v_proj(source))
        if past_key_values is not None and not self.cross:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, plain_attention
        )
        # Autocast leaves the norms in float32 but projects values in bfloat16: one dtype for the kernel.
        query, key = query.to(value.dtype), key.to(value.dtype)
        out, _ = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, is_causal=self.is_causal, **kwargs
        )
        return self.o_proj(out.reshape(*h_BTD.shape[:2], -1))


class FeedForward(nn.Module):
    """Two matrices, no gate: the reported 42M parameters fit only this form."""

    def __init__(self, config: UnspokenConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, h_BTD: Tensor) -> Tensor:
        return self.down_proj(self.act(self.up_proj(h_BTD)))


class DecoderBlock(GradientCheckpointingLayer):
    """Pre-norm attention, optional cross-attention, FFN."""

    def __init__(self, config: UnspokenConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config, layer_idx)
        self.cross_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps) if config.cross_attention else None
        self.cross_attention = Attention(config, layer_idx, cross=True) if config.cross_attention else None
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(
        self,
        h_BTD: Tensor,
        *,
        rotary: Rotary,
        attention_mask: Tensor | BlockMask | None = None,
        past_key_values: Cache | None = None,
        source_BSD: Tensor | None = None,
        source_mask: Tensor | None = None,
        source_rotary: Rotary | None = None,
        **kwargs: Any,
    ) -> Tensor:
        h_BTD = h_BTD + self.attention(
            self.attention_norm(h_BTD),
            rotary=rotary,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        if self.cross_attention is not None and self.cross_norm is not None:
            h_BTD = h_BTD + self.cross_attention(
                self.cross_norm(h_BTD),
                rotary=rotary,
                attention_mask=source_mask,
                source_BSD=source_BSD,
                source_rotary=source_rotary,
                **kwargs,
            )
        return h_BTD + self.ffn(self.ffn_norm(h_BTD))


class UnspokenPreTrainedModel(StrictLoading):
    """Loading, saving and initialisation shared by the models of this file."""

    config_class = UnspokenConfig
    config: UnspokenConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": DecoderBlock}


class UnspokenModel(UnspokenPreTrainedModel):
    """Embedding table (absent if ``vocab_size`` rows are not wanted), blocks, HybridNorm.

    Args:
        config: the shape.
        embeddings: False builds the stack alone, for inputs that are vectors already (the Talker's encoder and the
            Mono-Talker have no token embedding; JEPA-Reasoner, section 3, table of Talker parts).
    """

    def __init__(self, config: UnspokenConfig, *, embeddings: bool = True) -> None:
        super().__init__(config)
        config.validate_architecture()
        kind = UnitEmbedding if config.unit_embeddings else nn.Embedding
        self.embed_tokens = kind(config.vocab_size, config.hidden_size) if embeddings else None
        self.layers = nn.ModuleList(DecoderBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = HybridNorm(config)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | BlockMask | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | BlockMask | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the stack.

        Args:
            input_ids: ``[B, T]``, or ``inputs_embeds`` ``[B, T, D]`` on the scale of the embedding module.
            attention_mask: ``[B, S]`` over cached and new positions, 1 for real ones; padding on either side.
            position_ids: ``[B, T]`` rotary positions; counted from the cache's length if not given.
            encoder_hidden_states, encoder_attention_mask: ``[B, S, D]`` and ``[B, S]`` for cross-attention.

        Raises:
            ValueError: both or none of ``input_ids`` and ``inputs_embeds``; cross-attention without an encoder.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            if self.embed_tokens is None:
                raise ValueError("this stack has no embedding table: give inputs_embeds")
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + seen
        make_mask = create_causal_mask if self.config.is_causal else create_bidirectional_mask
        mask = make_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotary = rotary_tables(position_ids, self.config.head_dim, self.config.rope_theta)
        source_mask, source_rotary = None, None
        if self.config.cross_attention:
            if encoder_hidden_states is None:
                raise ValueError("this stack has cross-attention: give encoder_hidden_states")
            source_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
            )
            steps = torch.arange(encoder_hidden_states.shape[1], device=inputs_embeds.device)[None]
            source_rotary = rotary_tables(steps, self.config.head_dim, self.config.rope_theta)
        h_BTD = inputs_embeds
        for block in self.layers:
            h_BTD = block(
                h_BTD,
                rotary=rotary,
                attention_mask=mask,
                past_key_values=past_key_values,
                source_BSD=encoder_hidden_states,
                source_mask=source_mask,
                source_rotary=source_rotary,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(h_BTD), past_key_values=past_key_values)


class UnspokenForCausalLM(UnspokenPreTrainedModel, GenerationMixin):
    """The stack with its tied head: the coupled Transformer, and stage 1 of the JEPA-Reasoner."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: UnspokenConfig) -> None:
        super().__init__(config)
        self.model = UnspokenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | BlockMask | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As `UnspokenModel.forward`, then the tied head.

        Args:
            labels: ``[B, T]``, shifted inside; -100 is ignored.
            logits_to_keep: only the last so many positions, or the given indices; 0 keeps all.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        h_BTD = outputs.last_hidden_state
        columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        if not isinstance(columns, int):
            h_BTD = h_BTD[:, columns]
        logits_BTV = self.lm_head(h_BTD)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


AutoConfig.register(UnspokenConfig.model_type, UnspokenConfig)
AutoModel.register(UnspokenConfig, UnspokenModel)
AutoModelForCausalLM.register(UnspokenConfig, UnspokenForCausalLM)
