"""How superpositions are read out and perturbed: what recipes state of it, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Readout = Literal["head", "table"]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Gumbel noise on superpositions (section 7.2). On labels, one draw a reading serves input and target."""

    scale: float = 1.0
    temperature: float = 1.0
    lowest: float = -1.5
    highest: float = 3.0

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.temperature <= 0 or self.lowest >= self.highest:
            raise ValueError("noise needs a positive scale and temperature, and lowest below highest")
