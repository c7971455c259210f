"""The model in training of a stage with a loss on its latents, see `unspoken.methods.carrier`.

Axes: B batch, N latents, D width.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from unspoken.backbone.around import Around


class CarrierModel(Around):
    """Another method's model, whose latents are also read for a loss of their own.

    Args:
        carrier: that model, around a causal language model, its ``decoder``.
        further: modules that the reading of latents has besides.
    """

    base_model_prefix = ""

    def __init__(self, carrier: PreTrainedModel, **further: PreTrainedModel) -> None:
        super().__init__(carrier.config)
        self.carrier: Any = carrier
        for name, module in further.items():
            self.add_module(name, module)
        self.post_init()

    @property
    def _inner_config(self) -> PreTrainedConfig:
        base: PreTrainedConfig = getattr(self.config, "base_config", None) or self.config
        return base

    def get_input_embeddings(self) -> Any:
        """The table of the decoder."""
        return self.carrier.get_input_embeddings()

    def read(self, latents: Float[Tensor, "B N D"], added: dict[str, Tensor]) -> Tensor:
        """What the loss of the latents is made of.

        Args:
            added: of `unspoken.methods.carrier.AddedLoss.targets`.
        """
        raise NotImplementedError

    def forward(self, added: dict[str, Tensor], **given: Any) -> tuple[Any, Tensor]:
        """Outputs of the carrier, and what its latents are read as.

        Args:
            added: see `read`.
            given: what the carrier is given.
        """
        outputs = self.carrier(**given)
        return outputs, self.read(outputs.latents, added)
