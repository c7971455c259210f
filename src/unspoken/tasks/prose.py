"""Plain text: what the language models of JEPA-Reasoner are pretrained on (C4 and WikiText in the paper), and single
sentences, which the Talker decodes in the ablation of its appendix C.

A corpus is made of documents: the paragraphs of a file, or the rows of a data set on the Hugging Face hub. A document
belongs to exactly one split, by its hash. There are two kinds of rows: *texts* are cut at one length from the
concatenation of all documents, with an end-of-sequence after each, so that nothing is padding; *sentences* are single
sentences between two end-of-sequence tokens. Files are read into memory and shuffled anew in every epoch; data sets on
the hub are streamed, never stored, and read forwards.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import count, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unspoken.ranges import require_value
from unspoken.tasks.files import HUB_NAME, epoch_order, hub_rows
from unspoken.tasks.spans import Spans
from unspoken.tasks.task import Grades, Indices, ProblemList, Task, Traits, check_split, digest, exact_tokens, split_of
from unspoken.tasks.tokenizing import EOS_TOKEN, PAD_TOKEN, byte_pairs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from unspoken.tasks.prompt_format import PromptFormat

Row: TypeAlias = NDArray[np.int64]
Kind = Literal["texts", "sentences"]

PAD, EOS = range(2)
MARKERS = (PAD_TOKEN, EOS_TOKEN)
PYTHON_HELP = "python-help"

_SPLIT_CLASSES = 16  # fourteen for training, one for validation, one for test
_BLANK_LINES = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(]*[A-Z])")
_TOKENIZER_DOCUMENTS = 10_000  # enough for merges that are all frequent
_SHUFFLED_TOGETHER = 10_000  # rows of a stream, which is too long to be shuffled as a whole
_LONGEST = 1024  # positions that a recipe's models are built for


@dataclass(frozen=True, kw_only=True)
class ProseConfig:
    """Which texts, and how they are cut."""

    kind: ClassVar[str] = "prose"

    # A text file in UTF-8 whose documents are parted by blank lines; ``owner/name[:config]``, a data set on the hub
    # whose rows have a field "text" (``allenai/c4:en``, ``Salesforce/wikitext:wikitext-103-raw-v1``); "python-help",
    # the reference that every Python brings along and the only choice that needs nothing; or a list of these, whose
    # documents are read in turn.
    train: str | tuple[str, ...]
    # Entries of the byte-pair tokenizer that is trained on the training documents, two markers and all 256 bytes among
    # them.
    vocabulary: int = 4096
    length: int = 128  # tokens of a text
    # The fewest and the most tokens of a sentence; shorter and longer ones are left out.
    sentence_tokens: tuple[int, ...] = (16, 40)
    prime: int = 10  # first tokens of a sentence that the ablation gives to a Dual-Talker; 10 in the paper

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("train is empty; name a file, a data set on the hub, or a list of them")
        require_value(
            self, "vocabulary", lambda value: 258 <= value <= 2**16, f"from 258 (2 markers and 256 bytes) to {2**16}"
        )
        if not 2 <= self.length <= _LONGEST:
            raise ValueError(f"length is {self.length}; it must lie between 2 and {_LONGEST}")
        if len(self.sentence_tokens) != 2 or not self.sentence_tokens[0] <= self.sentence_tokens[1] < _LONGEST - 1:
            raise ValueError(
                f"sentence_tokens is {list(self.sentence_tokens)}; it must be two numbers, the smaller first, "
                f"below {_LONGEST - 1}"
            )
        if not 0 <= self.prime < self.sentence_tokens[0]:
            raise ValueError(
                f"prime is {self.prime} and the shortest sentence has {self.sentence_tokens[0]} tokens; "
                "a sentence must go on after its prime"
            )

    @property
    def traits(self) -> Traits:
        """All that is read is learned; a Talker learns single sentences."""
        sentence = sum(self.sentence_tokens) / 2 + 1
        return Traits(
            own_vocabulary=True,
            has_chain=False,
            has_lengths=False,
            answerable=False,
            continues=True,
            selected_by="loss",
            row_tokens=(0, self.length),
            talker_tokens=(sentence + 1, sentence),
            vocabulary_size=self.vocabulary,
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """The names in ``train``."""
        return (self.train,) if isinstance(self.train, str) else self.train

    def build(self) -> ProseTask:
        """Reads all files. As long as they do not change, the task is the same object."""
        return _task(self, tuple(_read(source) for source in self.sources))


@lru_cache(maxsize=2)
def _task(config: ProseConfig, texts: tuple[str | None, ...]) -> ProseTask:
    """Cached, since training builds the task often, and its tokenizer takes seconds to train."""
    return ProseTask(config, texts)


class ProseTask(Task):
    """Makes texts and sentences.

    Args:
        texts: what each source holds, or None for a stream.
    """

    def __init__(self, config: ProseConfig, texts: tuple[str | None, ...]) -> None:
        self.config = config
        self._texts = texts
        self._streams: dict[tuple[Kind, str, int], _Stream] = {}
        self._encoded_once: dict[tuple[Kind, str], list[Row]] = {}

    @property
    def streamed(self) -> bool:
        """Whether a source is on the hub, so that the number of rows is unknown."""
        return None in self._texts

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the settings and of the files' content, or of the names of data sets on the hub."""
        digests = [None if text is None else hashlib.sha256(text.encode()).hexdigest() for text in self._texts]
        names = [source for source, text in zip(self.config.sources, self._texts, strict=True) if text is None]
        return digest({"kind": self.config.kind, **asdict(self.config), "train": names, "digests": digests})

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Byte-level byte pairs (Sennrich et al., 2016), learned from the first 10,000 training documents.

        Every text can be written, and there are exactly ``config.vocabulary`` entries.
        """
        documents = islice(self._documents("train"), _TOKENIZER_DOCUMENTS)
        # The space makes a sentence the same tokens alone and after another one.
        return byte_pairs(documents, self.config.vocabulary, MARKERS, prefix_space=True, what="training documents")

    # --- rows ----------------------------------------------------------------------------------------------------

    def size(self, split: str, kind: Kind = "texts") -> int | None:
        """How many different rows a split has; None if it is streamed."""
        check_split(split)
        if self.streamed:
            return None
        known = self._known(kind, split)
        return len(known) if kind == "sentences" else sum(map(len, known)) // self.config.length

    def sample(self, split: str, indices: Indices, seed: int = 0, *, kind: Kind = "texts") -> ProblemList[Row]:
        """The rows with the given indices, a pure function of (configuration, seed, split, kind, index).

        Training rows never end: an epoch follows the other, each in its own order. Reading is forwards: a row after
        the last one read costs the rows between them, an earlier one all rows from the start.

        Args:
            kind: "texts" of ``length`` tokens, or "sentences" between two ends.

        Raises:
            ValueError: there is no such split, or it has no rows of this kind.
            IndexError: an index lies outside a validation or test split that is not streamed.
        """
        size = self.size(split, kind)
        if split != "train":
            seed = 0  # all seeds are measured on the same rows
            if size and any(not 0 <= index < size for index in indices):
                raise IndexError(f"the {split} split has {size} {kind}, and not all of {list(indices)} are among them")
        stream = self._streams.setdefault(
            (kind, split, seed),
            _Stream(f"the {split} split has no {kind}", lambda epoch: self._rows(kind, split, seed, epoch)),
        )
        return ProblemList(stream.take(indices))

    def first(self, split: str, most: int, *, kind: Kind = "texts") -> ProblemList[Row]:
        """The first rows of a split: ``most`` of them, or all where there are fewer; raises as `sample`."""
        size = self.size(split, kind)
        return self.sample(split, range(most if size is None else max(1, min(most, size))), kind=kind)

    def rows(
        self, problems: Sequence[Row], prompt_format: PromptFormat | None = None, *, chain: bool = True
    ) -> dict[str, Tensor]:
        """Rows of either kind ``[B, T]``, padded on the left.

        The answer is every token but the first, which has nothing before it to be predicted from.
        """
        import torch

        assert chain, "prose has no chain to leave out"
        width = max(map(len, problems))
        ids = np.full((len(problems), width), PAD, dtype=np.int64)
        for number, row in enumerate(problems):
            ids[number, width - len(row) :] = row
        # 1 at the first token of each row, 0 and less on what pads it.
        position = np.arange(1, width + 1) - width + np.array([len(row) for row in problems])[:, None]
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy((position > 0).astype(np.int64)),
            "answer_mask": torch.from_numpy(position > 1),
        }

    def spans(self, problems: Sequence[Row], prompt_format: PromptFormat | None = None) -> list[Spans]:
        """The tokens of each row: the first is the prompt, and all others follow."""
        rows = [tuple(row.tolist()) for row in problems]
        return [Spans(prompt=row[:1], steps=(), answer=row[1:]) for row in rows]

    def prompts(self, problems: Sequence[Row], prompt_format: PromptFormat | None = None) -> tuple[Tensor, Tensor]:
        """The first token of each row ``[B, 1]``, and a mask of ones."""
        import torch

        ids = torch.tensor([[int(row[0])] for row in problems])
        return ids, torch.ones_like(ids)

    def talker_rows(
        self, indices: Indices, seed: int = 0, split: str = "train", prompt_format: PromptFormat | None = None
    ) -> dict[str, Tensor]:
        """Single sentences between two ends: what a Talker learns."""
        return self.rows(self.sample(split, indices, seed, kind="sentences"))

    def questions(self, problems: Sequence[Row]) -> list[str]:
        return [self.text(row) for row in problems]

    def grade(self, answers: Tensor | Sequence[str], problems: Sequence[Row]) -> Grades:
        """Which tokens after the first are those of the text; what follows a row's end is ignored.

        Graded token by token where all rows have one length, as texts have.
        """
        import torch

        counts = torch.tensor([len(row) - 1 for row in problems], dtype=torch.long)
        right = torch.full((len(problems), int(counts.max()) if len(counts) else 0), PAD)
        for number, row in enumerate(problems):
            right[number, : len(row) - 1] = torch.from_numpy(row[1:])
        equal = exact_tokens(answers, right, filler=PAD)
        after = (torch.arange(right.shape[1])[None] >= counts[:, None]).to(equal.device)
        return Grades(correct=(equal | after).all(dim=1), per_symbol=None if bool(after.any()) else equal)

    def text(self, ids: Sequence[int] | Row | Tensor) -> str:
        tokenizer: Any = self.tokenizer
        text: str = tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)
        return text.strip()

    def _rows(self, kind: Kind, split: str, seed: int, epoch: int) -> Iterator[Row]:
        """One epoch, in its order."""
        if self.streamed:
            encoded = self._encoded(kind, self._documents(split, seed, epoch))
        else:
            known = self._known(kind, split)
            order = epoch_order(seed, epoch, len(known)).tolist() if split == "train" else range(len(known))
            encoded = (known[index] for index in order)
        return encoded if kind == "sentences" else self._packed(encoded)

    def _known(self, kind: Kind, split: str) -> list[Row]:
        """The tokens of all documents or sentences in files, each once, in the order of the files."""
        if (kind, split) not in self._encoded_once:
            every = self._encoded(kind, self._documents(split))
            self._encoded_once[kind, split] = list({row.tobytes(): row for row in every}.values())
        return self._encoded_once[kind, split]

    def _encoded(self, kind: Kind, documents: Iterator[str]) -> Iterator[Row]:
        tokenizer: Any = self.tokenizer.backend_tokenizer
        tokenizer.encode_special_tokens = True  # what looks like a marker in a text is text
        least, most = self.config.sentence_tokens
        complete = kind == "texts"
        pieces = documents if complete else (sentence for text in documents for sentence in _SENTENCE_END.split(text))
        while some := list(islice(pieces, 64)):
            for piece in tokenizer.encode_batch(some, add_special_tokens=False):
                if complete:
                    yield np.array([*piece.ids, EOS], dtype=np.int64)
                elif least <= len(piece.ids) <= most:
                    yield np.array([EOS, *piece.ids, EOS], dtype=np.int64)

    def _packed(self, documents: Iterator[Row]) -> Iterator[Row]:
        """Pieces of the concatenated documents; the rest at the end of an epoch is dropped."""
        rest = np.zeros(0, dtype=np.int64)
        for document in documents:
            rest = np.concatenate([rest, document])
            while len(rest) >= self.config.length:
                yield rest[: self.config.length]
                rest = rest[self.config.length :]

    # --- documents -----------------------------------------------------------------------------------------------

    def _documents(self, split: str, seed: int = 0, epoch: int = 0) -> Iterator[str]:
        """The documents of a split, those of several sources in turn until each has ended, on one line each."""
        order = [seed, epoch] if split == "train" else None
        streams = [
            _stream(source, order) if text is None else iter(_BLANK_LINES.split(text))
            for source, text in zip(self.config.sources, self._texts, strict=True)
        ]
        for together in zip_longest(*streams):
            for document in together:
                plain = " ".join((document or "").split())
                if plain and split_of(hashlib.sha256(plain.encode()).digest()[0], _SPLIT_CLASSES) == split:
                    yield plain


class _Stream:
    """The rows of one epoch after the other, read forwards.

    Args:
        fault: what is wrong if an epoch has no rows.
        epoch: the rows of an epoch, given its number.
    """

    def __init__(self, fault: str, epoch: Callable[[int], Iterator[Row]]) -> None:
        self._fault = fault
        self._epoch = epoch
        self._next = 0
        self._rows = self._endless()

    def take(self, indices: Indices) -> list[Row]:
        """The rows with the given numbers, in any order."""
        taken: dict[int, Row] = {}
        for index in sorted({int(index) for index in indices}):
            if index < self._next:
                self._next, self._rows = 0, self._endless()
            while self._next <= index:
                taken[index] = next(self._rows)
                self._next += 1
        return [taken[int(index)] for index in indices]

    def _endless(self) -> Iterator[Row]:
        for number in count():
            empty = True
            for row in self._epoch(number):
                empty = False
                yield row
            if empty:
                raise ValueError(f"{self._fault}; give more text, or shorter rows by task.length or sentence_tokens")


def _read(source: str) -> str | None:
    """The text of a source, or None if it is on the hub."""
    if source == PYTHON_HELP:
        from pydoc_data.topics import topics

        return "\n\n".join(topics.values())
    if Path(source).is_file():
        try:
            return Path(source).read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {source}: {error}; it must be text in UTF-8") from None
    if Path(source).suffix == ".txt" or not HUB_NAME.fullmatch(source):
        raise ValueError(
            f"there is no file {source}; give a text file by task.train, {PYTHON_HELP!r}, or owner/name[:config] on "
            "the hub"
        )
    return None


def _stream(source: str, order: list[int] | None) -> Iterator[str]:
    """The texts of a data set on the hub, as they come or shuffled as far as a buffer allows."""
    rows = hub_rows(source, "train", streaming=True)
    if order is not None:
        (drawn,) = np.random.SeedSequence(order).generate_state(1)
        rows = rows.shuffle(seed=int(drawn), buffer_size=_SHUFFLED_TOGETHER)
    for row in rows:
        if not isinstance(row.get("text"), str):
            raise ValueError(f"{source}: a row has the fields {', '.join(row)}, but no field 'text' that holds text")
        yield row["text"]
