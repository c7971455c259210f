"""How an answer is made of a chain: by the stack that wrote it, or by something else once it is finished.

Axes: B batch, T prompt tokens, N latent steps, M tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from jaxtyping import Int
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.reasoning.engine import AnsweringReasoner, Intervention, Reasoner, StopRule, respond, rollout
from unspoken.reasoning.picking import Sample
from unspoken.reasoning.row import AnswerDecoding


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a speaker is asked for, on any device."""

    # input_ids, attention_mask: prompts ``[B, T]``, padded on the left, with the tokens that open the chain
    input_ids: Int[Tensor, "B T"]
    attention_mask: Tensor | None
    stop: StopRule  # when the chain ends
    max_tokens: int  # cap of the answer
    chain: LatentChain | None = None  # answer from this chain instead of writing one
    forced: tuple[int, ...] = ()  # tokens that are appended by force before the answer
    sample: Sample | None = None  # how the answer's tokens are chosen; None takes the most likely ones
    intervene: Intervention | None = None  # changes every latent step, see `unspoken.reasoning.engine`


@dataclass(frozen=True, kw_only=True)
class SameStack:
    """The stack that wrote the chain goes on in the same cache: it reads the end marker and then its own tokens."""

    same_stack: ClassVar[bool] = True
    samples: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = True
    chain_tokens: ClassVar[bool] = False

    marker: tuple[int, ...]  # tokens that close the chain; they are appended by force
    end_ids: tuple[int, ...]  # tokens that end an answer
    pad_id: int  # fills answers after their end

    def decoding(self, max_tokens: int, forced: tuple[int, ...] = (), sample: Sample | None = None) -> AnswerDecoding:
        """How the engine decodes an answer."""
        return AnswerDecoding(
            marker=(*self.marker, *forced),
            max_tokens=max_tokens,
            end_ids=self.end_ids,
            pad_id=self.pad_id,
            sample=sample,
        )

    def stop_rule(self, stop: StopRule, max_tokens: int) -> StopRule:
        """When the chain ends: the cap of the answer does not matter to it."""
        return stop

    def respond(self, reasoner: Reasoner, request: Request) -> tuple[LatentChain, Int[Tensor, "B M"]]:
        """The chain and the answer."""
        given = request.chain
        stop = request.stop if given is None else replace(request.stop, max_latents=0)
        decoding = self.decoding(request.max_tokens, request.forced, request.sample)
        chain, tokens = respond(
            cast(AnsweringReasoner, reasoner),
            request.input_ids,
            request.attention_mask,
            stop,
            decoding,
            given,
            request.intervene,
        )
        return (chain if given is None else given), tokens

    def passes(self, steps: float, tokens: float) -> float:
        """Sequential forward passes of the answer, given latent steps and its tokens."""
        return len(self.marker) + tokens

    def flops(self, latents: Tensor) -> Tensor | float:
        """Floating-point operations ``[B]`` besides those of the stack that wrote the chain."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Separate:
    """A finished chain is read, one token per latent: by a Talker, by the nearest rows, or as the tokens it is made of.

    Attributes:
        decode: a chain ``[B, N]`` and how tokens are chosen (None without ``samples``) to tokens ``[B, N]``.
        end_ids: tokens that end an answer.
        samples: it is a model of its own, whose tokens can be drawn or forced.
        reads_tokens: each token depends on those before it.
        chain_tokens: the chain is made of the answer's tokens: no step of it is silent.
        chain_passes: sequential forward passes of decoding, given the latent steps.
        chain_flops: floating-point operations ``[B]`` of decoding, given the latent steps ``[B]``.
    """

    same_stack: ClassVar[bool] = False
    marker: ClassVar[tuple[int, ...]] = ()

    decode: Callable[[LatentChain, Sample | None], Int[Tensor, "B N"]]
    end_ids: tuple[int, ...]
    samples: bool = False
    reads_tokens: bool = False
    chain_tokens: bool = False
    chain_passes: Callable[[float], float] = lambda _steps: 0
    chain_flops: Callable[[Tensor], Tensor | float] = lambda _latents: 0.0

    def stop_rule(self, stop: StopRule, max_tokens: int) -> StopRule:
        """When the chain ends: it has a latent for every token of the answer."""
        return replace(stop, max_latents=max_tokens)

    def respond(self, reasoner: Reasoner, request: Request) -> tuple[LatentChain, Int[Tensor, "B N"]]:
        """The chain and the answer.

        Raises:
            ValueError: tokens are forced before the answer, or are to be sampled where nothing can be chosen.
        """
        if request.forced:
            raise ValueError("no tokens can be put before an answer that is read off a finished chain")
        if request.sample is not None and not self.samples:
            raise ValueError("this system reads its answer off its chain and samples none; leave sampling out")
        chain = request.chain
        if chain is None:
            chain = rollout(reasoner, request.input_ids, request.attention_mask, request.stop, request.intervene)
        return chain, self.decode(chain, request.sample)

    def passes(self, steps: float, tokens: float) -> float:
        """Sequential forward passes of the answer, given latent steps and its tokens."""
        return self.chain_passes(steps)

    def flops(self, latents: Tensor) -> Tensor | float:
        """Floating-point operations ``[B]`` besides those of the stack that wrote the chain."""
        return self.chain_flops(latents)


Speaker = SameStack | Separate


def ends_and_pad(config: Any) -> tuple[tuple[int, ...], int]:
    """Tokens that end an answer, and the one that fills rows after it; a ValueError if a config names no end."""
    ends = config.eos_token_id
    if ends is None:
        raise ValueError("the generation config has no eos_token_id: nothing could end an answer; set it")
    listed = tuple(ends) if isinstance(ends, list | tuple) else (int(ends),)
    return listed, listed[0] if config.pad_token_id is None else int(config.pad_token_id)
