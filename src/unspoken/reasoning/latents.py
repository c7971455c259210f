"""How superpositions are read out and perturbed, and answers drawn: what recipes state, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Readout = Literal["head", "table"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of an answer are drawn, see `unspoken.reasoning.picking.Sampler`."""

    temperature: float = 0.6
    top_p: float = 0.95

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature is {self.temperature} and top_p {self.top_p}; they must be positive and in (0, 1]"
            )


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Gumbel noise on superpositions (section 7.2). On labels, one draw a reading serves input and target."""

    scale: float = 1.0
    temperature: float = 1.0
    lowest: float = -1.5
    highest: float = 3.0
    # What is drawn again where noise makes the end marker a label's likeliest entry: that slot alone, which keeps its
    # clean weights in the end, or all slots of the row, which keep the last draw ("row", the published code).
    redraw: Literal["slot", "row"] = "slot"

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.temperature <= 0 or self.lowest >= self.highest:
            raise ValueError("noise needs a positive scale and temperature, and lowest below highest")
