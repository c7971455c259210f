"""Models that wrap a model of any family, and support what that family supports in transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from unspoken.backbone.folder import StrictLoading


def from_config(auto: Any, config: PreTrainedConfig, **settings: Any) -> Any:
    """A model of a configuration with fresh weights, of a class that transformers or this package has.

    Args:
        auto: the auto class of transformers that chooses it.
        settings: passed on, for instance ``attn_implementation``.

    Raises:
        ValueError: only code that the configuration names (``auto_map``) could make it; such code is never run, and
            transformers does not ask whether to run it.
    """
    return auto.from_config(config, trust_remote_code=False, **settings)


@dataclass(frozen=True)
class _RecomputedInEvaluation:
    """Recomputes a block in the backward pass, as transformers does, but runs it in evaluation mode both times."""

    block: nn.Module
    recompute: Callable[..., Any]  # of transformers

    def __call__(self, forward: Callable[..., Any], *inputs: Any) -> Any:
        def in_evaluation(*inputs: Any) -> Any:
            self.block.training = False
            try:
                return forward(*inputs)
            finally:
                self.block.training = True

        return self.recompute(in_evaluation, *inputs)


def evaluate_frozen(part: nn.Module) -> None:
    """Put a part of a model that trains into evaluation mode if no weight of it learns, in place.

    Otherwise its dropout would change what the rest of the model learns from. Blocks that the backward pass recomputes
    still are: transformers recomputes in training mode alone, so their own flag stays on, and they run in evaluation
    mode.
    """
    frozen = not any(weight.requires_grad for weight in part.parameters())
    if frozen:
        part.eval()
    for block in part.modules():
        if isinstance(block, GradientCheckpointingLayer) and block.gradient_checkpointing:
            recompute: Any = block._gradient_checkpointing_func
            if isinstance(recompute, _RecomputedInEvaluation):
                recompute = recompute.recompute
            block._gradient_checkpointing_func = _RecomputedInEvaluation(block, recompute) if frozen else recompute
            block.training = True


class Around(PreTrainedModel):
    """A model whose blocks are those of another, which its configuration names.

    Which kinds of attention and of experts there are depends on the inner model, so they are asked of its class.
    """

    @property
    def _inner_config(self) -> PreTrainedConfig:
        """Configuration of the inner model."""
        return self.config

    @property
    def _inner(self) -> Any:
        classes = AutoModel._model_mapping[type(self._inner_config)]
        return classes[0] if isinstance(classes, tuple) else classes

    @property
    def _supports_sdpa(self) -> bool:
        return bool(self._inner._supports_sdpa)

    @property
    def _supports_flash_attn(self) -> bool:
        return bool(self._inner._supports_flash_attn)

    @property
    def _supports_flex_attn(self) -> bool:
        return bool(self._inner._supports_flex_attn)

    @property
    def _supports_attention_backend(self) -> bool:
        return bool(self._inner._supports_attention_backend)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Never: transformers leaves unsaved buffers of custom code uninitialised."""
        return False

    def _grouped_mm_can_dispatch(self) -> bool:
        if not self._inner._can_set_experts_implementation():
            raise ValueError(f"{self._inner.__name__} has no experts to choose an implementation of")
        return True


class AroundDecoder(Around, StrictLoading):
    """A model around a causal language model, its ``decoder``, whose configuration is ``config.base_config``."""

    # Empty, because transformers would apply the family's weight renaming to the prefix a second time.
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    decoder: PreTrainedModel

    @property
    def _inner_config(self) -> PreTrainedConfig:
        base: PreTrainedConfig = self.config.base_config
        assert isinstance(base, PreTrainedConfig)  # transformers fills in a missing one
        return base

    def get_input_embeddings(self) -> nn.Module:
        """The table of the decoder."""
        table: nn.Module = self.decoder.get_input_embeddings()
        return table
