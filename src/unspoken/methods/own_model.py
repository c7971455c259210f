"""Methods whose finished folders hold a model of their own that states how it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unspoken.methods.method import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.methods.latent_model import LatentModel
    from unspoken.reasoning.system import System


class OwnModelMethod(Method):
    """A method with a `LatentModel`."""

    def model_class(self) -> type[LatentModel]:
        """The model; importing it registers it with transformers."""
        raise NotImplementedError

    def register(self) -> None:
        """See `model_class`."""
        self.model_class()

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        """The model's own system."""
        return [model.system(name=stage, max_tokens=max_answer)] if isinstance(model, self.model_class()) else []
