"""Latent labels on disk: made once by stage 1, read by every epoch of stage 2 (Latent-SFT, arXiv 2510.15522).

A store is a folder of flat arrays, one shard a writing rank, little-endian and without headers::

    rank-00000/offsets.bin   int64   [rows + 1]    row i owns the slots offsets[i] to offsets[i + 1]
    rank-00000/keys.bin      uint64  [rows, 2]     hash of the row's key, length of the key in bytes
    rank-00000/ids.bin       int32   [slots, K]    superposition labels: token ids
    rank-00000/weights.bin   float   [slots, K]    ... and their weights
    rank-00000/vectors.bin   float   [slots, D]    hidden-state labels, instead of ids and weights

A label that does not belong to its problem trains without complaint, so the manifest says what the labels were made
of, every file has a hash there, and every row says whose it is.

Axes: N latents of a problem, K entries of a label, D latent width, V vocabulary.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from unspoken.backbone.folder import MANIFEST, read_manifest, verify, write_manifest
from unspoken.reasoning.latents import Readout
from unspoken.storage import sync, write_json

LatentKind = Literal["superposition", "hidden"]

_PROGRESS = "progress.json"
_BLOCK_BYTES = 2**26  # labels held in memory at most, but for the last row of a block
_TOLERANCE = 0.01  # of the sum of weights: what bfloat16, or float16 over a whole vocabulary, rounds away


@dataclass(frozen=True, kw_only=True)
class LabelIdentity:
    """What a store of labels was made of. Labels of another identity are other labels, however alike.

    Attributes:
        data: fingerprint of the word problems.
        split, seed: which of them, and the seed of whatever was drawn on the way.
        tokenizer: hash of the tokenizer.
        rate: chain tokens a latent stands for (the compression rate r).
        latent: distributions over the vocabulary, or hidden states.
        width: numbers stored a latent: K entries of a superposition (V if top_k is None), or D of a hidden state.
        top_k: entries kept of a superposition, None for the whole vocabulary.
        temperature: of the softmax over the vocabulary.
        readout: the table that made the logits, the language-model head or the input embeddings.
        encoder, decoder: fingerprints of the models.
        precision: of the stored weights or vectors.
    """

    data: str
    split: str
    seed: int
    tokenizer: str
    rate: int
    latent: LatentKind = "superposition"
    width: int
    top_k: int | None
    temperature: float = 1.0
    readout: Readout = "head"
    encoder: str
    decoder: str
    precision: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.rate < 1 or self.width < 1:
            raise ValueError(f"rate is {self.rate} and width {self.width}; both are at least 1")
        if self.latent == "superposition" and self.top_k is not None and self.width > self.top_k:
            raise ValueError(f"width is {self.width}, but top_k keeps {self.top_k} entries; make the width that number")

    def difference(self, other: LabelIdentity) -> str | None:
        """The first facts that differ, with this identity's value and then the other's; None if all agree."""
        return _difference(asdict(self), asdict(other))


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    differing = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    return ", ".join(f"{name} is {found.get(name)!r}, not {wanted.get(name)!r}" for name in differing[:3]) or None


@dataclass(frozen=True, kw_only=True)
class Label:
    """The latents that one problem's reasoning is taught to say.

    Attributes:
        ids, weights: ``[N, K]``, a distribution a latent, None for hidden-state labels.
        vectors: ``[N, D]``, a hidden state a latent, None for superposition labels.
    """

    ids: Int[Tensor, "N K"] | None = None
    weights: Float[Tensor, "N K"] | None = None
    vectors: Float[Tensor, "N D"] | None = None


# --- layout ----------------------------------------------------------------------------------------------------------


def _share(rows: int, rank: int, world: int) -> range:
    return range(rows * rank // world, rows * (rank + 1) // world)


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.unfinished")


def _shard(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}"


def _arrays(identity: LabelIdentity, rows: int, slots: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """File name, type and shape of every array of a shard with so many rows and slots."""
    number = np.dtype(identity.precision).newbyteorder("<")
    per_slot = (slots, identity.width)
    shared = {"offsets.bin": (np.dtype("<i8"), (rows + 1,)), "keys.bin": (np.dtype("<u8"), (rows, 2))}
    if identity.latent == "hidden":
        return {**shared, "vectors.bin": (number, per_slot)}
    return {**shared, "ids.bin": (np.dtype("<i4"), per_slot), "weights.bin": (number, per_slot)}


def _sizes(identity: LabelIdentity, rows: int, slots: int) -> dict[str, int]:
    arrays = _arrays(identity, rows, slots)
    return {name: dtype.itemsize * math.prod(shape) for name, (dtype, shape) in arrays.items()}


def _key_entry(key: str) -> tuple[int, int]:
    text = key.encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"), len(text)


# --- writing ---------------------------------------------------------------------------------------------------------


class LabelWriter:
    """Writes one rank's share of the rows, in order, so that a kill at any instant loses at most one block.

    The rows lie in a hidden folder beside ``folder`` until rank 0 publishes them. A new writer with the same arguments
    continues after the last block on disk::

        writer = LabelWriter(folder, identity, rows=len(problems), rank=rank, world=world)
        for row in range(writer.next_row, writer.share.stop):
            writer.append(problems[row].key, ids, weights)
        writer.finish()
        ...  # wait for all ranks
        if rank == 0:
            writer.publish()

    Args:
        folder: where the finished store will appear.
        identity: what the labels are made of.
        rows: number of rows of all ranks together.
        rank, world: this writer and the number of writers; rank r writes the r-th contiguous share of the rows.
        rows_a_block: rows held in memory before they are forced to disk; fewer where they are large.

    Raises:
        ValueError: the store exists already, or an unfinished one was begun with other facts or is damaged.
    """

    def __init__(
        self,
        folder: Path,
        identity: LabelIdentity,
        *,
        rows: int,
        rank: int = 0,
        world: int = 1,
        rows_a_block: int = 256,
    ) -> None:
        if rows < 0 or not 0 <= rank < world or rows_a_block < 1:
            raise ValueError(
                f"cannot write {rows} rows in blocks of {rows_a_block} as rank {rank} of {world}; "
                "ranks count from 0 and a block has at least one row"
            )
        if folder.exists():
            raise ValueError(f"{folder} exists already; open it, or remove it to write its labels again")
        self.folder = folder
        self.identity = identity
        self.rank = rank
        self.share = _share(rows, rank, world)
        self._facts = {**asdict(identity), "rows": rows, "ranks": world}
        self._world = world
        self._rows_a_block = rows_a_block
        self._unfinished = _unfinished(folder)
        self._own = _shard(self._unfinished, rank)
        self._waiting: list[dict[str, NDArray[Any]]] = []
        self._waiting_bytes = 0
        # Another rank's shard tells as well as this one's that the folder was begun with something else.
        for shard in sorted(self._unfinished.glob("rank-*")):
            self._recorded(shard)
        recorded = self._recorded(self._own)
        if recorded is None:
            self._begin()
        else:
            self._rows, self._slots = recorded
            self._drop_torn_tail()
        self._end = self._slots

    @staticmethod
    def forget(folder: Path, *, unless: int) -> None:
        """Remove an unfinished store that another number of writers began, since they share the rows out otherwise."""
        for path in _unfinished(folder).glob(f"rank-*/{_PROGRESS}"):
            try:
                ranks = json.loads(path.read_text())["labels"]["ranks"]
            except (ValueError, KeyError, TypeError):
                continue  # a new writer says what is wrong with it
            if ranks != unless:
                shutil.rmtree(_unfinished(folder))
                return

    @property
    def next_row(self) -> int:
        """The first row still to be appended; ``share.stop`` if there is none."""
        return self.share.start + self._rows + len(self._waiting)

    def append(self, key: str, ids: Tensor, weights: Tensor) -> None:
        """Add the superposition label of row `next_row`.

        Args:
            key: the problem's row key.
            ids: ``[N, K]``, token ids.
            weights: ``[N, K]``, their probabilities.

        Raises:
            ValueError: the store holds hidden states, all rows are there, or the label is no distribution of width K.
            OSError: the disk refused a block. What was recorded before it stays good.
        """
        self._admit(key, "superposition")
        if ids.shape != weights.shape or ids.is_floating_point():
            self._refuse(key, f"ids are {_describe(ids)} and weights {_describe(weights)}; give integers [N, K] twice")
        low, high = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
        if low < 0 or high >= 2**31:
            self._refuse(key, f"ids reach from {low} to {high}; token ids are in [0, 2^31)")
        numbers = self._numbers(key, "weights", weights)
        sums_N = numbers.sum(axis=1, dtype=np.float64)
        if (numbers < 0).any() or (abs(sums_N - 1) > _TOLERANCE).any():
            self._refuse(key, "the weights of each latent must be probabilities: none negative, and 1 in sum")
        self._add(key, {"ids.bin": ids.detach().cpu().numpy(), "weights.bin": numbers})

    def append_vectors(self, key: str, vectors: Tensor) -> None:
        """Add the hidden-state label of row `next_row`.

        Args:
            key: the problem's row key.
            vectors: ``[N, D]``.

        Raises:
            ValueError: the store holds superpositions, all rows are there, or the vectors are not finite and D wide.
            OSError: the disk refused a block. What was recorded before it stays good.
        """
        self._admit(key, "hidden")
        self._add(key, {"vectors.bin": self._numbers(key, "vectors", vectors)})

    def finish(self) -> None:
        """Force the last rows of this rank to disk.

        Raises:
            ValueError: rows are missing; the message names the first.
            OSError: the disk refused the block. What was recorded before it stays good.
        """
        if self.next_row != self.share.stop:
            raise ValueError(
                f"{self.folder}: rank {self.rank} cannot finish before rows {self.next_row} to {self.share.stop - 1} "
                "are appended"
            )
        self._flush()

    def publish(self) -> None:
        """Write the manifest and give the folder its name: the work of rank 0, once every rank has finished.

        Raises:
            ValueError: another rank than 0 asks, or a rank has not finished; the message names it.
        """
        if self.rank != 0:
            raise ValueError(f"{self.folder}: rank {self.rank} cannot publish; leave it to rank 0")
        slots = []
        for rank in range(self._world):
            wanted = len(_share(self._facts["rows"], rank, self._world))
            rows, slots_of_rank = self._recorded(_shard(self._unfinished, rank)) or (-1, 0)
            if rows != wanted:
                raise ValueError(
                    f"{self.folder}: rank {rank} has recorded {max(rows, 0)} of its {wanted} rows; "
                    "let every rank finish before publishing"
                )
            slots.append(slots_of_rank)
        # What a kill left of an earlier manifest must not be listed in this one.
        for stray in self._unfinished.rglob(".*.tmp"):
            stray.unlink()
        content = {"identity": asdict(self.identity), "rows": self._facts["rows"], "ranks": self._world, "slots": slots}
        write_manifest(self._unfinished, content)
        self._unfinished.rename(self.folder)
        sync(self.folder.parent)

    def _admit(self, key: str, latent: LatentKind) -> None:
        if self.identity.latent != latent:
            method = "append_vectors" if self.identity.latent == "hidden" else "append"
            raise ValueError(f"{self.folder} holds {self.identity.latent} labels; add them with {method}")
        if self.next_row >= self.share.stop:
            raise ValueError(
                f"{self.folder}: there is no row left for {key!r}; rank {self.rank} of {self._world} "
                f"writes {len(self.share)} rows from row {self.share.start} on"
            )

    def _refuse(self, key: str, problem: str) -> NoReturn:
        raise ValueError(f"{self.folder}: label of row {self.next_row} ({key!r}): {problem}")

    def _numbers(self, key: str, name: str, values: Tensor) -> NDArray[Any]:
        if values.dim() != 2 or values.shape[1] != self.identity.width or not values.is_floating_point():
            self._refuse(key, f"{name} are {_describe(values)}; give floats [N, {self.identity.width}]")
        # Looked at after the cast: float16 turns into infinity what is large.
        stored = values.detach().to("cpu", getattr(torch, self.identity.precision))
        if not stored.isfinite().all():
            self._refuse(key, f"{name} are not all finite in {self.identity.precision}")
        return stored.numpy()

    def _add(self, key: str, per_slot: dict[str, NDArray[Any]]) -> None:
        self._end += len(next(iter(per_slot.values())))
        row = {"offsets.bin": [self._end], "keys.bin": [_key_entry(key)], **per_slot}
        types = _arrays(self.identity, 0, 0)
        # Copies: the caller may fill the same tensors with the next row before the block is full.
        self._waiting.append({name: np.array(values, dtype=types[name][0]) for name, values in row.items()})
        self._waiting_bytes += sum(values.nbytes for values in self._waiting[-1].values())
        if len(self._waiting) >= self._rows_a_block or self._waiting_bytes >= _BLOCK_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Rows first, record second: what the record counts is on disk."""
        if not self._waiting:
            return
        for name, size in _sizes(self.identity, self._rows, self._slots).items():
            with (self._own / name).open("r+b") as file:
                # At the recorded size and not at the end, where a refused block may have left a piece.
                file.seek(size)
                for row in self._waiting:
                    file.write(row[name].tobytes())
                file.flush()
                os.fsync(file.fileno())
        self._record(self._rows + len(self._waiting), self._end)
        self._waiting.clear()
        self._waiting_bytes = 0

    def _record(self, rows: int, slots: int) -> None:
        write_json(self._own / _PROGRESS, {"labels": self._facts, "written_rows": rows, "written_slots": slots})
        self._rows, self._slots = rows, slots

    def _recorded(self, shard: Path) -> tuple[int, int] | None:
        """Rows and slots of a shard that are safely on disk; None if it was not begun."""
        path = shard / _PROGRESS
        if not path.is_file():
            return None
        remedy = f"remove {self._unfinished} to start again"
        try:
            record = json.loads(path.read_text())
            begun, rows, slots = record["labels"], record["written_rows"], record["written_slots"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); {remedy}") from None
        difference = _difference(begun, self._facts)
        if difference:
            raise ValueError(f"{self._unfinished} was begun with other labels: {difference}; finish those or {remedy}")
        return rows, slots

    def _begin(self) -> None:
        self._own.mkdir(parents=True, exist_ok=True)
        for name, size in _sizes(self.identity, 0, 0).items():
            (self._own / name).write_bytes(bytes(size))  # no rows: nothing but the zero that the first row starts at
            sync(self._own / name)
        self._record(0, 0)
        sync(self._unfinished)
        sync(self._unfinished.parent)

    def _drop_torn_tail(self) -> None:
        for name, size in _sizes(self.identity, self._rows, self._slots).items():
            path = self._own / name
            if not path.is_file() or path.stat().st_size < size:
                raise ValueError(
                    f"{path} has lost some of its {size} recorded bytes; remove {self._unfinished} to start again"
                )
            os.truncate(path, size)


def _describe(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"


# --- reading ---------------------------------------------------------------------------------------------------------


class LabelStore:
    """A published store, mapped into memory and read a row at a time. Made by `open`, which checks it.

    ``store[i, key]`` is row i, provided that it was written for this key.
    """

    def __init__(self, folder: Path, identity: LabelIdentity, rows: int, slots: tuple[int, ...]) -> None:
        self.folder = folder
        self.identity = identity
        self._rows = rows
        self._slots = slots
        shares = [_share(rows, rank, len(slots)) for rank in range(len(slots))]
        self._starts = [share.start for share in shares]
        self._shards = [
            {
                name: _mapped(_shard(folder, rank) / name, dtype, shape)
                for name, (dtype, shape) in _arrays(identity, len(share), slots[rank]).items()
            }
            for rank, share in enumerate(shares)
        ]

    @classmethod
    def open(cls, folder: Path, expected: LabelIdentity) -> LabelStore:
        """Check a published store, all of it, and map it.

        Raises:
            ValueError: it is unfinished, holds other labels than expected, or a file is missing, truncated or changed.
        """
        manifest = read_manifest(folder)
        identity: Any = manifest.get("identity")
        rows: Any = manifest.get("rows")
        slots: Any = manifest.get("slots")
        whole = isinstance(identity, dict) and isinstance(slots, list) and manifest.get("ranks") == len(slots) > 0
        if not whole or not all(isinstance(count, int) for count in (rows, *slots)):
            raise ValueError(
                f"{folder / MANIFEST} is damaged or no manifest of labels: see identity, rows, ranks, slots"
            )
        difference = _difference(identity, asdict(expected))
        if difference:
            raise ValueError(f"{folder} holds other labels: {difference}; write the labels that this run needs")
        # Sizes before hashes: a large store that was copied halfway is refused at once.
        for rank, slots_of_rank in enumerate(slots):
            rows_of_rank = len(_share(rows, rank, len(slots)))
            for name, size in _sizes(expected, rows_of_rank, slots_of_rank).items():
                path = _shard(folder, rank) / name
                if str(path.relative_to(folder)) not in manifest["files"]:
                    raise ValueError(f"{folder / MANIFEST} is damaged: it lists no hash of {path}")
                found = path.stat().st_size if path.is_file() else 0
                if found != size:
                    raise ValueError(
                        f"{path} has {found} bytes instead of {size}; restore it or write the labels again"
                    )
        verify(folder)
        return cls(folder, expected, rows, tuple(slots))

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, place: tuple[int, str]) -> Label:
        """Ids as int64, weights and vectors as float32, whatever the precision on disk.

        Raises:
            IndexError: there is no such row.
            ValueError: the row was written for another key.
        """
        row, key = place
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside {self.folder}, a store of {len(self)} rows")
        rank = bisect.bisect_right(self._starts, row) - 1
        shard, local = self._shards[rank], row - self._starts[rank]
        if tuple(shard["keys.bin"][local].tolist()) != _key_entry(key):
            raise ValueError(
                f"{self.folder}: row {row} was not written for {key!r}; the problems were reordered or changed since, "
                "so restore them or write the labels again"
            )
        slots = slice(*shard["offsets.bin"][local : local + 2].tolist())
        if self.identity.latent == "hidden":
            return Label(vectors=_copied(shard["vectors.bin"][slots], np.float32))
        return Label(
            ids=_copied(shard["ids.bin"][slots], np.int64), weights=_copied(shard["weights.bin"][slots], np.float32)
        )

    def __reduce__(self) -> tuple[type[LabelStore], tuple[Path, LabelIdentity, int, tuple[int, ...]]]:
        # A worker that is spawned, not forked, maps the files itself; a pickled memory map would carry their content.
        return LabelStore, (self.folder, self.identity, self._rows, self._slots)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of latents N of every row ``[rows]``."""
        return np.concatenate([np.diff(shard["offsets.bin"]) for shard in self._shards])


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if 0 in shape:  # an empty file cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)


def _copied(values: NDArray[Any], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=dtype))
