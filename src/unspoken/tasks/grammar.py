"""Continuing the strings of a context-free grammar (JEPA-Reasoner, sections 5.2 and 5.3; after Allen-Zhu and Li,
arXiv 2305.13673).

A string is made by expanding a root through a fixed number of levels; each symbol has a few rules of three or four
symbols of the next level, all equally likely. A problem is the beginning of a string, the answer its next symbols. The
paper prints no rules: ours are drawn from a seed, and a grammar is kept if the mean length of its strings is that of
the paper, 600 to 700 at five levels, and the same factor a level with fewer levels.

Sample i is a pure function of (config, seed, split, i): its random numbers are a stream of Philox, a counter-based
generator (Salmon et al., 2011), that is named by seed, split and i. A string belongs to exactly one split, by its hash.

Axes: B strings, T tokens, P prompt tokens, N symbols of a completion.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from unspoken.tasks.context_free import EOS, LEVELS, MARKERS, PAD, TERMINALS, Grammar, last_places
from unspoken.tasks.spans import Spans
from unspoken.tasks.task import Array, Indices, SymbolTask, Traits, check_split, digest, split_of
from unspoken.tasks.tokenizing import by_character

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from unspoken.tasks.prompt_format import PromptFormat

_SPLIT_CLASSES = 16  # fourteen for training, one for validation, one for test


@dataclass(frozen=True, kw_only=True)
class GrammarConfig:
    """What a grammar problem looks like."""

    kind: ClassVar[str] = "grammar"

    grammar_seed: int = 0  # names the grammar among those of its size
    # Of production; 5 is the paper's. Strings have 600 to 700 symbols in the mean, 167 to 189 with four levels, 46 to
    # 51 with three.
    levels: int = 5
    # Of each symbol. More of them leave more to chance: fewer next symbols can be known. With two rules and three
    # levels strings are so few that training strings begin like test strings; three rules are better there.
    rules: int = 2
    steps: int = 4  # symbols to give; 4 in the paper's test of token noise, 8 in its test of latent noise

    def __post_init__(self) -> None:
        if not 3 <= self.levels <= LEVELS:
            raise ValueError(f"levels is {self.levels}; 3 to {LEVELS} make enough strings for three splits")
        if not 2 <= self.rules <= 4:
            raise ValueError(f"rules is {self.rules}; every symbol has 2 to 4 rules")
        # Half of the shortest string that rules of three symbols make.
        if not 2 <= self.steps <= 3**self.levels // 2:
            raise ValueError(f"steps is {self.steps}; it must lie between 2 and {3**self.levels // 2}, half a string")
        if self.steps % 2:
            raise ValueError(
                f"steps is {self.steps}; give an even number: one half of the symbols is measured under noise on "
                "tokens, the other under noise on latents"
            )

    @property
    def traits(self) -> Traits:
        """The next symbols are the chain and the answer; half of them may be left out."""
        mean = Grammar.draw(levels=self.levels, rules=self.rules, seed=self.grammar_seed).mean_length
        # A prompt ends between the middle and the last place from which enough symbols follow.
        prompt = (1.5 * mean - self.steps) / 2
        return Traits(
            own_vocabulary=True,
            has_chain=False,
            answerable=False,
            selected_by="symbols",
            fixed_steps=self.steps // 2,
            chain_cap=self.steps,
            answer_cap=self.steps,
            row_tokens=(prompt, mean + 1 - prompt),
            talker_tokens=(mean + 1, (1 + self.steps) / 2),
        )

    def build(self) -> GrammarTask:
        return GrammarTask(self)


@dataclass(frozen=True, kw_only=True)
class GrammarProblems:
    """A batch of problems."""

    ids_BT: Array  # token ids of the strings with all their symbols, padded on the left
    length_B: Array  # symbols of each string
    prompt_B: Array  # how many of them are given

    def __len__(self) -> int:
        return len(self.length_B)

    def select(self, rows: Indices) -> GrammarProblems:
        chosen = np.asarray(rows, dtype=np.int64)
        length_B = self.length_B[chosen]
        padding = self.ids_BT.shape[1] - int(length_B.max(initial=0))
        return GrammarProblems(ids_BT=self.ids_BT[chosen, padding:], length_B=length_B, prompt_B=self.prompt_B[chosen])

    def window(self, before: int, after: int) -> Array:
        """Tokens ``[B, before + after]`` around the end of each prompt; padding where the string has none."""
        width = self.ids_BT.shape[1]
        columns = (width - self.length_B + self.prompt_B)[:, None] + np.arange(-before, after)
        inside = (columns >= 0) & (columns < width)
        return np.where(inside, np.take_along_axis(self.ids_BT, columns * inside, axis=1), PAD)


class GrammarTask(SymbolTask):
    """Makes, prints and grades grammar problems."""

    def __init__(self, config: GrammarConfig) -> None:
        self.config = config
        self.grammar = Grammar.draw(levels=config.levels, rules=config.rules, seed=config.grammar_seed)

    @property
    def fingerprint(self) -> str:
        """A hash of the settings and of the rules themselves, since a seed alone does not name them."""
        return digest({"kind": self.config.kind, **asdict(self.config), "grammar": self.grammar.rules})

    @property
    def answer_length(self) -> int:
        """Tokens of an answer. A completion has a fixed length and no end."""
        return self.config.steps

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a terminal and a marker, 5 in all."""
        return by_character((*MARKERS, *TERMINALS))

    # --- making ------------------------------------------------------------------------------------------------

    def sample(self, split: str, indices: Indices, seed: int = 0) -> GrammarProblems:
        """A prompt ends anywhere between the middle of its string and the last place that leaves a whole answer."""
        check_split(split)
        indices = np.asarray(indices, dtype=np.int64)
        strings: dict[int, Array] = {}
        length_B = np.zeros(len(indices), dtype=np.int64)
        cut_B = np.zeros(len(indices), dtype=np.uint64)
        pending, attempt = list(range(len(indices))), 0
        # Draw until the string falls in the split; the number of draws is itself a function of the index.
        while pending:
            noise = self._noise(split, indices[pending], seed, attempt)
            ids, lengths = self.grammar.derive(noise[:, 1:])
            for row, string, length, cut in zip(pending, ids, lengths, noise[:, 0], strict=True):
                byte = hashlib.sha256(string[-length:].astype(np.uint8).tobytes()).digest()[0]
                if split_of(byte, _SPLIT_CLASSES) == split:
                    strings[row], length_B[row], cut_B[row] = string[-length:], length, cut
            pending, attempt = [row for row in pending if row not in strings], attempt + 1
        ids_BT = np.full((len(indices), length_B.max(initial=0)), PAD, dtype=np.int64)
        in_order = (strings[row] for row in range(len(indices)))
        ids_BT[last_places(ids_BT.shape[1], length_B)] = np.concatenate([*in_order, np.zeros(0, dtype=np.int64)])
        places_B = length_B - self.config.steps - length_B // 2 + 1
        prompt_B = length_B // 2 + (cut_B % places_B.astype(np.uint64)).astype(np.int64)
        return GrammarProblems(ids_BT=ids_BT, length_B=length_B, prompt_B=prompt_B)

    def _noise(self, split: str, index_B: Array, seed: int, attempt: int) -> NDArray[np.uint64]:
        """Uniform 64-bit integers ``[B, 1 + choices]``: a stream of its own for every index and attempt."""
        key = np.frombuffer(hashlib.sha256(f"{seed}:{split}".encode()).digest()[:16], dtype="<u8")
        # A stream counts in the first of the counter's four words.
        counters = np.array([[0, 0, attempt, index] for index in index_B], dtype=np.uint64)
        streams = [np.random.Philox(key=key, counter=counter) for counter in counters]
        return np.stack([stream.random_raw(1 + self.grammar.choices) for stream in streams])

    # --- printing ----------------------------------------------------------------------------------------------

    def rows(
        self, problems: GrammarProblems, prompt_format: PromptFormat | None = None, *, chain: bool = True
    ) -> dict[str, Tensor]:
        """Strings ``[B, T]`` with all their symbols and their end, padded on the left; the answer is to be given."""
        import torch

        assert chain, "the grammar has no chain to leave out"
        ids = np.pad(problems.ids_BT, ((0, 0), (0, 1)), constant_values=EOS)
        rest_B = problems.length_B + 1 - problems.prompt_B
        answer = last_places(ids.shape[1], rest_B) & ~last_places(ids.shape[1], rest_B - self.config.steps)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(last_places(ids.shape[1], problems.length_B + 1).astype(np.int64)),
            "answer_mask": torch.from_numpy(answer),
        }

    def prompts(self, problems: GrammarProblems, prompt_format: PromptFormat | None = None) -> tuple[Tensor, Tensor]:
        """The given beginnings: token ids ``[B, P]``, padded on the left, and their mask ``[B, P]``."""
        import torch

        width = int(problems.prompt_B.max(initial=0))
        mask = last_places(width, problems.prompt_B).astype(np.int64)
        return torch.from_numpy(problems.window(width, 0)), torch.from_numpy(mask)

    def spans(self, problems: GrammarProblems, prompt_format: PromptFormat | None = None) -> list[Spans]:
        """The tokens of each problem: the first half of the symbols are steps, the others the answer, without an end.

        Together they are what `grade` compares.
        """
        half, made = self.config.steps // 2, []
        for ids, length, given in zip(problems.ids_BT, problems.length_B, problems.prompt_B, strict=True):
            string = tuple(ids[len(ids) - length :].tolist())
            symbols = string[given : given + self.config.steps]
            steps = tuple((symbol,) for symbol in symbols[:half])
            made.append(Spans(prompt=string[:given], steps=steps, answer=symbols[half:]))
        return made

    def talker_rows(
        self, indices: Indices, seed: int = 0, split: str = "train", prompt_format: PromptFormat | None = None
    ) -> dict[str, Tensor]:
        """Strings, and of each 1 to ``steps`` tokens in a row, anywhere after the first: what a Talker learns.

        So there are chains of every length that is asked for later, and the end of the string is a token like others.
        What is learned of a string is a function of seed and index, as the string is.
        """
        import torch

        problems = self.sample(split, indices, seed)
        batch = self.rows(problems)
        width = batch["input_ids"].shape[1]
        mask = np.zeros((len(problems), width), dtype=np.bool_)
        for row, (index, length) in enumerate(zip(indices, problems.length_B.tolist(), strict=True)):
            generator = np.random.default_rng([seed, int(index)])
            count = int(generator.integers(1, self.config.steps + 1))
            first = width - length - 1 + int(generator.integers(1, length + 1 - count + 1))
            mask[row, first : first + count] = True
        return {**batch, "answer_mask": torch.from_numpy(mask)}

    def questions(self, problems: GrammarProblems) -> list[str]:
        return self.tokenizer.batch_decode(self.prompts(problems)[0], skip_special_tokens=True)

    def text(self, problems: GrammarProblems) -> list[str]:
        return self.tokenizer.batch_decode(problems.ids_BT.tolist(), skip_special_tokens=True)

    # --- grading -----------------------------------------------------------------------------------------------

    def answers(self, problems: GrammarProblems) -> Tensor:
        """The right completions ``[B, N]``."""
        import torch

        return torch.from_numpy(problems.window(0, self.config.steps))

    def valid(self, answers_BN: Tensor, problems: GrammarProblems) -> Tensor:
        """Whether prompt and completion begin *some* string of the language, ``[B]``.

        A string may go on in several ways, so an answer that does not match can still be valid. One that ends early,
        with end-of-sequence, is valid if the string is complete there. Fewer symbols are graded as they are.
        """
        import torch

        prompt_BP = self.prompts(problems)[0].numpy()
        symbols_BN = answers_BN[:, : self.config.steps].cpu().numpy()
        strings = np.concatenate([prompt_BP, symbols_BN], axis=1)
        valid_B = self.grammar.accepts_prefix(strings)
        ended = symbols_BN == EOS
        for step in range(symbols_BN.shape[1]):
            rows = ended[:, step] & ~ended[:, :step].any(axis=1)
            valid_B[rows] = self.grammar.accepts(strings[rows, : prompt_BP.shape[1] + step])
        return torch.from_numpy(valid_B)
