"""How superpositions are read out and perturbed, and answers drawn: what recipes state, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unspoken.ranges import require_value

Readout = Literal["head", "table"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of an answer are drawn, see `unspoken.reasoning.picking.Sampler`."""

    temperature: float = 0.6
    top_p: float = 0.95

    def __post_init__(self) -> None:
        require_value(self, "temperature", lambda value: value > 0, "above 0")
        require_value(self, "top_p", lambda value: 0 < value <= 1, "above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Gumbel noise on superpositions (docs/methods/latent_sft.md, open points 10 to 12).

    Labels get one draw each time they are read, for input and target alike.
    """

    scale: float = 1.0
    temperature: float = 1.0
    lowest: float = -1.5
    highest: float = 3.0
    # What is drawn again where noise makes the end marker a label's likeliest entry: that slot alone, which keeps its
    # clean weights in the end, or all slots of the row, which keep the last draw ("row", the published code).
    redraw: Literal["slot", "row"] = "slot"

    def __post_init__(self) -> None:
        for name in ("scale", "temperature"):
            require_value(self, name, lambda value: value > 0, "above 0")
        require_value(self, "lowest", lambda value: value < self.highest, f"below highest, which is {self.highest}")
