"""What makes latent chains of explicit ones that are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unspoken.chain import LatentChain
from unspoken.tasks.spans import Spans


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The model whose latents another one learned to write."""

    rate: int  # tokens of an explicit chain that one latent stands for
    chain: Callable[[Sequence[Spans]], LatentChain]  # the latents of problems whose chains are known, a row each
