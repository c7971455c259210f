"""A model as it answers: a way to write a chain, and a way to make an answer of it. Every method is used through this.

Axes: B batch, T prompt tokens, N latent steps, M tokens of an answer, V vocabulary, D latent width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.chain import LatentChain, StopReason
from unspoken.reasoning.block import BlockReasoner
from unspoken.reasoning.engine import Intervention, Reasoner, RowTargets, StopRule
from unspoken.reasoning.flops import stack_flops
from unspoken.reasoning.latents import Sampling
from unspoken.reasoning.picking import FREE, ForcedTokens, Sample, Sampler, generator_of
from unspoken.reasoning.speakers import Request, SameStack, Speaker
from unspoken.tasks.prompt_format import TextFormat

if TYPE_CHECKING:
    from unspoken.measuring import Evaluation
    from unspoken.reasoning.inspection import Chain
    from unspoken.reasoning.text_answers import TextAnswer
    from unspoken.tasks.problems import ReasoningProblem
    from unspoken.tasks.task import TaskConfig

# What a step of a chain is: the row of one token, a mixture of rows, an output of the stack as it is, or a vector that
# is trained to be something else.
ChainKind = Literal["tokens", "superposition", "hidden", "latent"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A batch of answers.

    Attributes:
        chain: what it reasoned.
        tokens: ``[B, M]`` of the answer; anything may stand after a row's end.
        lengths: ``[B]``, tokens of each answer, its end included.
    """

    chain: LatentChain
    tokens: Int[Tensor, "B M"]
    lengths: Int[Tensor, " B"]

    def filled(self, fill: int, width: int | None = None) -> Int[Tensor, "B W"]:
        """The tokens with one id after the end of every row, in ``width`` columns; those of ``tokens`` by default."""
        column = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        tokens = torch.where(column < self.lengths[:, None], self.tokens, fill)
        more = 0 if width is None else width - tokens.shape[1]
        return torch.nn.functional.pad(tokens, (0, more), value=fill)


@dataclass(frozen=True, kw_only=True)
class System:
    """A model as it answers.

    Attributes:
        name: for tables and clients.
        model: what is loaded; its parameters are counted.
        reasoner: writes the chain.
        speaker: makes the answer.
        opening: tokens between a prompt and its first latent.
        stop: when a chain ends, unless a request has a rule of its own.
        max_tokens: cap of an answer, unless a request has its own.
        chain_kind: what a step of the chain is.
        prefilled: tokens of the opening that belong to the prompt and take no pass of their own.
        replaced: tokens at the start of a continuation that the latents stand for, one each, and that are not written.
        targets: the rows that the latents point at, where they are trained to.
        table_size: weights of the table that an output is scored against.
        scorings: products with that table at each latent step; 2 where the whole vocabulary is mixed.
        step_flops: floating-point operations of a latent step besides the stack's and the scores'.
        text_format: how it reads text; None where it is given token ids alone.
        sampling: how the tokens of an answer are drawn where a request has no choice of its own; None takes the most
            likely ones. The same prompts get the same draws.
    """

    name: str
    model: PreTrainedModel
    reasoner: Reasoner
    speaker: Speaker
    opening: tuple[int, ...] = ()
    stop: StopRule
    max_tokens: int
    chain_kind: ChainKind
    prefilled: int = 0
    replaced: int = 0
    targets: RowTargets | None = None
    table_size: int
    scorings: int = 1
    step_flops: int = 0
    text_format: TextFormat | None = None
    sampling: Sampling | None = None

    # --- what it is ----------------------------------------------------------------------------------------------

    @property
    def explicit(self) -> bool:
        """Its chain is made of tokens: a chain of thought."""
        return self.chain_kind == "tokens" and self.stop.max_latents > 0

    @property
    def mixes_rows(self) -> bool:
        """Its latents are rows of the input table with weights, which can be drawn and looked at; one row counts."""
        return self.chain_kind in ("tokens", "superposition")

    @property
    def silent(self) -> bool:
        """Its chain is not the answer itself."""
        return not self.speaker.chain_tokens

    @property
    def has_talker(self) -> bool:
        """A model of its own decodes the finished chain."""
        return self.speaker.samples and not self.speaker.same_stack

    @property
    def parameters(self) -> int:
        """Weights of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def markers(self) -> int:
        """Tokens around the chain that are appended by force."""
        return len(self.opening) + len(self.speaker.marker)

    @property
    def iterations(self) -> int | None:
        """Passes over all latents together after the first one; None where they are written one after another."""
        return self.reasoner.iterations if isinstance(self.reasoner, BlockReasoner) else None

    @property
    def positions(self) -> int | None:
        """The most tokens and latents that fit the stack; None if nothing limits them."""
        return getattr(self.reasoner.stack.config, "max_position_embeddings", None)

    def steps_after_prompt(self, max_tokens: int) -> int:
        """The most positions that a chain and an answer of so many tokens take after the prompt."""
        latents = self.speaker.stop_rule(self.stop, max_tokens).max_latents
        return self.markers + latents + (max_tokens if self.speaker.same_stack else 0)

    def of_length(self, tokens: int) -> System:
        """The same system with answers of so many tokens; where each of them has a latent, chains have that length."""
        if self.speaker.same_stack:
            return replace(self, max_tokens=tokens)
        return replace(self, max_tokens=tokens, stop=StopRule(max_latents=tokens, fixed=True))

    @property
    def texts(self) -> TextFormat:
        """How it reads and writes text; a ValueError if it was opened without a tokenizer."""
        if self.text_format is None:
            raise ValueError(f"{self.name} has no tokenizer; open its folder with unspoken.load, or give token ids")
        return self.text_format

    # --- what it does --------------------------------------------------------------------------------------------

    @overload
    def answer(
        self,
        text: str,
        chain: Chain | None = None,
        sample: Sample | None = None,
        max_tokens: int | None = None,
        *,
        continue_chain: bool = ...,
    ) -> TextAnswer: ...

    @overload
    def answer(
        self,
        text: list[str] | tuple[str, ...],
        chain: Sequence[Chain] | None = None,
        sample: Sample | None = None,
        max_tokens: int | None = None,
        *,
        continue_chain: bool = ...,
    ) -> list[TextAnswer]: ...

    def answer(
        self,
        text: Any,
        chain: Any = None,
        sample: Sample | None = None,
        max_tokens: int | None = None,
        *,
        continue_chain: bool = False,
    ) -> TextAnswer | list[TextAnswer]:
        """Read a problem, reason and answer; several texts in batches, with ``sample`` in one.

        Args:
            text: a problem as a person types it, or several.
            chain: answer from this chain, or from one for each text, instead of writing one.
            sample: how the tokens of the answer are chosen, for instance a `Sampler`; None takes the most likely ones.
            max_tokens: cap of the answer.
            continue_chain: the chain is a beginning, and the model writes the steps that come after it.

        Raises:
            ValueError: the text cannot be read, a chain is another model's, or as `respond`.
        """
        from unspoken.reasoning.text_answers import answer_texts

        texts, chains = text, chain
        if isinstance(text, str):
            texts, chains = [text], None if chain is None else [chain]
        answers = answer_texts(self, texts, chains, continue_chain=continue_chain, sample=sample, max_tokens=max_tokens)
        return answers[0] if isinstance(text, str) else answers

    def chat(
        self, turns: Sequence[Mapping[str, str]], sample: Sample | None = None, max_tokens: int | None = None
    ) -> TextAnswer:
        """Answer the last turn of a conversation, in the format of the model's chat template.

        A model that was trained on word problems also gets the instruction that these have; any other reads the turns
        alone.

        Args:
            turns: each with ``role`` (``system``, ``user`` or ``assistant``) and ``content``; the last one is a user's.
            sample, max_tokens: as of `answer`.

        Raises:
            ValueError: the model has no chat template or reads one problem alone, or the template refuses the turns.
        """
        from unspoken.reasoning.text_answers import answer_prompts

        prompt = self.texts.chat(turns, instructed=self.texts.trained_on is not None)
        return answer_prompts(self, [prompt], None, sample, max_tokens)[0]

    @torch.no_grad()
    def respond(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Tensor | None = None,
        *,
        max_tokens: int | None = None,
        stop: StopRule | None = None,
        chain: LatentChain | None = None,
        forced: tuple[int, ...] = (),
        sample: Sample | None = None,
        intervene: Intervention | None = None,
    ) -> Answer:
        """Reason and answer.

        Args:
            input_ids: prompts without the opening, padded on the left, on any device, to which the answer comes back.
            attention_mask: true on the tokens of the prompts; all of them if None.
            max_tokens: cap of the answer. Where each token has a latent it is the cap of the chain too.
            stop: when the chain ends; by default the system's own rule.
            chain: answer from this chain instead of writing one; every causal control does.
            forced: tokens that are appended by force before the answer; they do not come back.
            sample: how the tokens of the answer are chosen; None takes the most likely ones.
            intervene: changes every latent step on its way into chain and loop.

        Raises:
            ValueError: as `unspoken.reasoning.engine.respond`, or the speaker cannot do what is asked.
        """
        cap = self.max_tokens if max_tokens is None else max_tokens
        if sample is None and self.sampling is not None and self.speaker.samples:
            source = generator_of(str(input_ids.tolist()))
            sample = Sampler(self.sampling.temperature, source, self.sampling.top_p)
        ids, mask = opened(input_ids, attention_mask, self.opening)
        request = Request(
            input_ids=ids,
            attention_mask=mask,
            stop=self.speaker.stop_rule(self.stop, cap) if stop is None else stop,
            max_tokens=cap,
            chain=chain,
            forced=forced,
            sample=sample,
            intervene=intervene,
        )
        return self._answer(*self.speaker.respond(self.reasoner, request))

    @torch.no_grad()
    def decode(self, chain: LatentChain, sample: Sample | None = None) -> Answer:
        """What a separate speaker makes of finished chains.

        Raises:
            ValueError: the stack that reasons also answers, so it must read the prompts: use `respond`.
        """
        if isinstance(self.speaker, SameStack):
            raise ValueError(f"{self.name} answers with the stack that reasons; give respond the prompts and the chain")
        return self._answer(chain, self.speaker.decode(chain, sample))

    def _answer(self, chain: LatentChain, tokens: Int[Tensor, "B M"]) -> Answer:
        ends = torch.tensor(self.speaker.end_ids, device=tokens.device)
        before = (torch.isin(tokens, ends).cumsum(dim=1) == 0).sum(dim=1)
        most = torch.full_like(before, tokens.shape[1]) if self.speaker.same_stack else chain.lengths
        return Answer(chain=chain, tokens=tokens, lengths=torch.minimum(before + 1, most))

    def forcing(self, tokens: Int[Tensor, "B W"]) -> dict[str, Any]:
        """Arguments of `respond` by which the system writes given tokens in place of its own.

        Args:
            tokens: `FREE` where it chooses. Of an explicit chain the first ``stop.max_latents`` columns are its steps,
                and a forced step never ends it; other columns are the answer.
        """
        if not self.explicit:
            return {"sample": ForcedTokens(tokens)}
        if not self.speaker.same_stack:
            return {"intervene": forced_steps(self.reasoner, tokens)}
        steps = self.stop.max_latents
        return {"intervene": forced_steps(self.reasoner, tokens[:, :steps]), "sample": ForcedTokens(tokens[:, steps:])}

    def evaluate(
        self,
        data: str | Path | Mapping[str, Any] | TaskConfig | None = None,
        *,
        grader: str | Callable[[str, ReasoningProblem], bool] | None = None,
        problems: int = 200,
        controls: bool = True,
        batch_size: int = 32,
        seed: int = 0,
    ) -> Evaluation:
        """Answer test problems, once with the system's own chains and once with each kind of altered chain.

        Args:
            data: a file of problems with ``question`` and ``answer``, or the ``task`` of a recipe; by default what the
                system was trained on, of which the test sets are used.
            grader: of a file: how answers are compared, as the key of `unspoken.tasks.jsonl.JsonlConfig`, or a function
                at the top of a module; by default that of the file which the system was trained on, or "math".
            problems: of each test set; smaller sets are used in full.
            controls: also answer from zeroed, averaged, shuffled, swapped, cut and missing chains.
            batch_size: problems answered at once.
            seed: of random changes to chains.

        Raises:
            ValueError: the problems cannot be read, are none of the system's, or it has learned from them.
        """
        from unspoken.measuring import measured

        return measured(
            self, data, grader=grader, problems=problems, controls=controls, batch_size=batch_size, seed=seed
        )

    # --- what it costs -------------------------------------------------------------------------------------------

    def sequential_passes(self, steps: float, tokens: float) -> float:
        """Forward passes that wait for one another, the prompt's included, given latent steps and tokens.

        The opening of a chain counts as in an explicit chain, where the model writes it itself, but for what is
        prefilled.
        """
        chain = steps if self.iterations is None else min(steps, 1) * self.iterations
        opening = len(self.opening) - self.prefilled if self.speaker.same_stack else 0
        return opening + chain + self.speaker.passes(steps, tokens)

    def latent_positions(self, steps: Any) -> Any:
        """Latents that go through the stack, in each pass that reads them, given latent steps, a number or ``[B]``."""
        return steps * (1 + (self.iterations or 0))

    def flops(self, prompt: Int[Tensor, " *B"], answer: Answer) -> Float[Tensor, " B"]:
        """Floating-point operations of answers, each as if it were given alone and with a cache.

        Counted is what `unspoken.reasoning.flops` counts, and two for every weight of the table that outputs are scored
        against, at each step that is scored. Not counted is what a batch adds: padding, and rows that run on until the
        last one ends.

        Args:
            prompt: tokens that are read before the opening, ``[B]`` or the same for all.
        """
        latents = answer.chain.lengths
        tokens = answer.lengths if self.speaker.same_stack else torch.zeros_like(latents)
        # The step in whose place a chain ends, by its marker or for certainty, is scored and not recorded.
        stop = answer.chain.stop
        ended = ((stop == StopReason.END) | (stop == StopReason.CERTAIN)).long() if self.speaker.same_stack else 0
        scored_latents = latents + ended if self.scorings else torch.zeros_like(latents)
        scored = (tokens + scored_latents * self.scorings).double()
        # The last token of an answer is never read.
        positions = (prompt + self.markers + latents + tokens - 1).double()
        stack, steps = self.reasoner.stack, latents.double()
        total: Tensor = stack_flops(stack, positions) + 2 * self.table_size * scored + self.speaker.flops(steps)
        if self.iterations is None:
            return total + self.step_flops * steps
        before = (prompt + len(self.opening)).double()
        block = stack_flops(stack, before + steps) - stack_flops(stack, before)
        return total + self.iterations * (block + self.step_flops * steps)


def opened(
    input_ids: Int[Tensor, "B T"], attention_mask: Tensor | None, opening: tuple[int, ...]
) -> tuple[Int[Tensor, "B any"], Tensor | None]:
    """Prompts and their mask with the tokens that open a chain."""
    tokens = torch.tensor(opening, dtype=input_ids.dtype, device=input_ids.device).expand(len(input_ids), -1)
    mask = None if attention_mask is None else torch.cat([attention_mask, torch.ones_like(tokens)], dim=1)
    return torch.cat([input_ids, tokens], dim=1), mask


def forced_steps(reasoner: Reasoner, tokens: Int[Tensor, "B N"]) -> Intervention:
    """Steps of an explicit chain that are some tokens, where one is given; such a step never ends the chain."""
    tokens = tokens.to(reasoner.stack.device)

    def intervene(latent_step: Any, step: int) -> Any:
        if step >= tokens.shape[1]:
            return latent_step
        token, recorded = tokens[:, step], latent_step.recorded
        given = token != FREE
        row = reasoner.embed_prompt(token.clamp(min=0)[:, None])[:, 0]
        latent = torch.where(given[:, None], row, latent_step.latent)
        return replace(
            latent_step,
            latent=latent,
            next_input=latent,
            done=latent_step.done & ~given,
            recorded=None if recorded is None else recorded | given,
            support_ids=torch.where(given, token, latent_step.support_ids[:, 0])[:, None],
        )

    return intervene
