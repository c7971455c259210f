"""The model of MUX in training: its carrier's, whose latents are scored as outputs of the stack are.

Axes: B batch, N latents, P of them that stand for a span, D width, V vocabulary.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from unspoken.backbone.vocabulary import scores
from unspoken.methods.carrier_model import CarrierModel
from unspoken.places import at
from unspoken.reasoning.superposition import readout_of


class MuxModel(CarrierModel):
    """A carrier whose latents are read with the head of its language model."""

    def read(self, latents: Float[Tensor, "B N D"], added: dict[str, Tensor]) -> Float[Tensor, "P V"]:
        """Scores of the vocabulary. The head gets no gradient: the latents learn what it reads.

        Args:
            added: ``span_places`` ``[P]`` of the latents that stand for a span.
        """
        return scores(at(latents, added["span_places"]), readout_of(self.carrier.decoder, "head"))
