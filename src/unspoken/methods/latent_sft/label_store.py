"""Latent labels on disk: made once by stage 1, read by every epoch of stage 2 (Latent-SFT, arXiv 2510.15522).

A store is a folder of safetensors blocks, ``rank-00000/block-00000.safetensors`` and so on. Each holds a run of rows::

    offsets   int64   [rows + 1]    row i of the block owns the latents offsets[i] to offsets[i + 1]
    keys      int64   [rows, 2]     hash of the row's key, length of the key in bytes
    ids       int32   [latents, K]  superposition labels: token ids
    weights   float   [latents, K]  ... and their weights
    vectors   float   [latents, D]  hidden-state labels, instead of ids and weights

Training cannot notice a label that belongs to another problem. So the manifest records what the labels were made of and
a hash of every file, and every row holds a hash of its problem's key.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import shutil
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unspoken.backbone.folder import MANIFEST, read_manifest, verify, write_manifest
from unspoken.methods.latent_sft.labels import Label, LabelIdentity, differing_facts
from unspoken.methods.latent_sft.stages import LatentKind
from unspoken.storage import UNFINISHED, discard, make_folder, sync, write_bytes

_UNFINISHED, _RANK, _BLOCK = ".{}.unfinished", "rank-{:05d}", "block-{:05d}.safetensors"
_BLOCK_BYTES = 2**26  # labels held in memory at most, but for the last row of a block


def _key_entry(key: str) -> tuple[int, int]:
    text = key.encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True), len(text)


def _opened(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A block, mapped into memory (only the rows in use are read), and the facts in its header."""
    try:
        with safe_open(path, framework="pt") as block:
            facts = dict(json.loads(block.metadata()["labels"]))
            names = ("vectors",) if facts["latent"] == "hidden" else ("ids", "weights")
            return {name: block.get_tensor(name) for name in ("offsets", "keys", *names)}, facts
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); {remedy}") from None


class LabelWriter:
    """Writes the rows of one rank, in order, so that a kill at any instant loses at most one block.

    The blocks lie in a hidden folder beside ``folder`` until rank 0 publishes them. A new writer with the same
    arguments continues after the last block on disk::

        writer = LabelWriter(folder, identity, rows=len(problems), rank=rank, world=world)
        for row in range(writer.next_row, writer.own_rows.stop):
            writer.append(problems[row].key, ids, weights)
        writer.finish()
        ...  # wait for all ranks
        if rank == 0:
            writer.publish()

    Args:
        folder: where the finished store will appear.
        identity: what the labels are made of.
        rows: number of rows of all ranks together.
        rank, world: this writer and the number of writers; rank r writes the r-th contiguous range of rows.
        rows_per_block: rows held in memory before they are forced to disk; fewer where they are large.

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
        rows_per_block: int = 256,
    ) -> None:
        assert rows >= 0 and 0 <= rank < world and rows_per_block > 0, (
            "ranks count from 0, a block has at least one row"
        )
        if folder.exists():
            raise ValueError(f"{folder} exists already; open it, or remove it to write its labels again")
        self.folder, self.identity, self.rank = folder, identity, rank
        self._bounds = [rows * rank // world for rank in range(world + 1)]
        self.own_rows = range(*self._bounds[rank : rank + 2])
        self._facts = {**asdict(identity), "rows": rows, "ranks": world}
        self._rows_per_block = rows_per_block
        self._unfinished = folder.with_name(_UNFINISHED.format(folder.name))
        self._waiting: list[tuple[tuple[int, int], dict[str, Tensor]]] = []
        self._waiting_bytes = 0
        # The blocks of every rank show whether the folder was begun with other labels.
        recorded = {path: self._recorded(path) for path in sorted(self._unfinished.glob("rank-*"))}
        self._own = self._unfinished / _RANK.format(rank)
        make_folder(folder.parent, self._own)
        for stray in self._own.glob(UNFINISHED):  # what a kill left of a block
            discard(stray)
        sync(self._unfinished)
        sync(self._unfinished.parent)
        self._blocks, self._rows = recorded.get(self._own, (0, 0))

    @staticmethod
    def forget(folder: Path, *, unless: int) -> None:
        """Remove an unfinished store of another number of writers, whose ranks wrote other ranges of rows."""
        unfinished = folder.with_name(_UNFINISHED.format(folder.name))
        for path in unfinished.glob("rank-*/block-*"):
            with suppress(ValueError, KeyError):  # a new writer names what is wrong with the block
                if _opened(path, "")[1]["ranks"] != unless:
                    shutil.rmtree(unfinished)
                    return

    @property
    def next_row(self) -> int:
        """The first row still to be appended; ``own_rows.stop`` if there is none."""
        return self.own_rows.start + self._rows + len(self._waiting)

    def append(self, key: str, ids: Tensor, weights: Tensor) -> None:
        """Add the label of row `next_row`, the problem with this key: token ids and probabilities, ``[N, K]`` each.

        Raises:
            ValueError: the label is not as it should be.
            OSError: the disk refused a block. What was recorded before it stays good.
        """
        self._add(key, "superposition", ids, weights)

    def append_vectors(self, key: str, vectors: Tensor) -> None:
        """As `append`, for hidden states ``[N, D]``."""
        self._add(key, "hidden", vectors)

    def finish(self) -> None:
        """Force the last rows of this rank to disk, once all are appended.

        Raises:
            OSError: the disk refused the block. What was recorded before it stays good.
        """
        first, last = self.next_row, self.own_rows.stop - 1
        assert first > last, f"rank {self.rank} cannot finish before rows {first} to {last} are appended"
        self._flush()

    def publish(self) -> None:
        """Write the manifest and give the folder its name: the work of rank 0, once every rank has finished.

        Raises:
            ValueError: a rank has not finished; the message names it.
        """
        assert self.rank == 0, f"rank {self.rank} cannot publish"
        rows, world = self._facts["rows"], self._facts["ranks"]
        for rank in range(world):
            begun, expected = self._unfinished / _RANK.format(rank), self._bounds[rank + 1] - self._bounds[rank]
            _, recorded = self._recorded(begun)
            if recorded != expected or not begun.is_dir():
                raise ValueError(
                    f"{self.folder}: rank {rank} has recorded {recorded} of its {expected} rows; "
                    "let every rank finish before publishing"
                )
        write_manifest(self._unfinished, {"identity": asdict(self.identity), "rows": rows, "ranks": world})
        self._unfinished.rename(self.folder)
        sync(self.folder.parent)

    def _recorded(self, folder: Path) -> tuple[int, int]:
        """Blocks and rows that a rank has on disk."""
        remedy, rows = f"remove {self._unfinished} to start again", 0
        if old := list(folder.glob("*.bin")):
            raise ValueError(f"{old[0]} is a label file of an older version; {remedy}")
        # A block gets its name when all of it is on disk, so one that is missing before the last was lost.
        blocks = len(list(folder.glob("block-*")))
        for index in range(blocks):
            block, facts = _opened(folder / _BLOCK.format(index), remedy)
            if difference := differing_facts(facts, self._facts):
                raise ValueError(f"{folder.parent} was begun with other labels: {difference}; finish those or {remedy}")
            rows += len(block["keys"])
        return blocks, rows

    def _add(self, key: str, latent: LatentKind, *label: Tensor) -> None:
        assert self.identity.latent == latent, f"the store holds {self.identity.latent} labels"
        assert self.next_row < self.own_rows.stop, f"no row left for {key!r}: rank {self.rank} writes {self.own_rows}"
        try:
            # Copies: the caller may fill the same tensors with the next row before the block is full.
            stored = (self.identity.stored_vectors if latent == "hidden" else self.identity.stored_superposition)(
                *label
            )
        except ValueError as error:
            raise ValueError(f"{self.folder}: label of row {self.next_row} ({key!r}): {error}") from None
        self._flush(least=self._rows_per_block)  # what the disk refused before, so that every block has the same rows
        self._waiting.append((_key_entry(key), stored))
        self._waiting_bytes += 24 + sum(values.nbytes for values in stored.values())  # 24 for its key and offset
        self._flush(least=self._rows_per_block)

    def _flush(self, least: int = 1) -> None:
        """Write the waiting rows as a block, if there are ``least`` of them or they take much memory."""
        if len(self._waiting) < least and self._waiting_bytes < _BLOCK_BYTES:
            return
        keys, latents = zip(*self._waiting, strict=True)
        tensors = {name: torch.cat([row[name] for row in latents]) for name in latents[0]}
        ends = itertools.accumulate(len(next(iter(row.values()))) for row in latents)
        tensors |= {"keys": torch.tensor(keys), "offsets": torch.tensor([0, *ends])}
        content = save(tensors, metadata={"labels": json.dumps(self._facts)})
        write_bytes(self._own / _BLOCK.format(self._blocks), content)
        self._blocks, self._rows = self._blocks + 1, self._rows + len(keys)
        self._waiting.clear()
        self._waiting_bytes = 0


class LabelStore:
    """A published store, mapped into memory and read a row at a time. Made by `open`, which checks it.

    ``store[i, key]`` is row i, provided that it was written for this key.
    """

    def __init__(self, folder: Path, identity: LabelIdentity, blocks: tuple[str, ...]) -> None:
        self.folder, self.identity, self._names = folder, identity, blocks
        self._blocks = [_opened(folder / name, "restore it or write the labels again")[0] for name in blocks]
        self._starts = [0, *itertools.accumulate(len(block["keys"]) for block in self._blocks)]

    @classmethod
    def open(cls, folder: Path, expected: LabelIdentity) -> LabelStore:
        """Check a published store, all of it, and map it.

        Raises:
            ValueError: it is unfinished, holds other labels than expected, or a file is missing, truncated or changed.
        """
        manifest = read_manifest(folder)
        if any(name.endswith(".bin") for name in manifest["files"]):
            raise ValueError(f"{folder} holds labels of an older version (flat .bin files); write the labels again")
        identity, rows = manifest.get("identity"), manifest.get("rows")
        if not isinstance(identity, dict) or not isinstance(rows, int):
            raise ValueError(
                f"{folder / MANIFEST} is damaged or is not the manifest of a label store (bad identity or rows); "
                "write the labels again"
            )
        if difference := differing_facts(identity, asdict(expected)):
            raise ValueError(f"{folder} holds other labels: {difference}; write the labels that this run needs")
        # Mapped before they are hashed: a large store that was copied halfway is refused at once.
        store = cls(folder, expected, tuple(sorted(name for name in manifest["files"] if "/block-" in name)))
        if len(store) != rows:
            raise ValueError(f"{folder / MANIFEST} is damaged: it lists blocks of {len(store)} rows instead of {rows}")
        verify(folder)
        return store

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row_and_key: tuple[int, str]) -> Label:
        """Ids as int64, weights and vectors as float32, whatever the precision on disk.

        Raises:
            IndexError: there is no such row.
            ValueError: the row was written for another key.
        """
        row, key = row_and_key
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside {self.folder}, a store of {len(self)} rows")
        at = bisect.bisect_right(self._starts, row) - 1
        block, local = self._blocks[at], row - self._starts[at]
        if tuple(block["keys"][local].tolist()) != _key_entry(key):
            raise ValueError(
                f"{self.folder}: row {row} was not written for {key!r}; the problems were reordered or changed since, "
                "so restore them or write the labels again"
            )
        latents = slice(*block["offsets"][local : local + 2].tolist())
        if self.identity.latent == "hidden":
            return Label(vectors=block["vectors"][latents].to(torch.float32, copy=True))
        weights = block["weights"][latents].to(torch.float32, copy=True)
        return Label(ids=block["ids"][latents].to(torch.int64), weights=weights)

    def rounded(self, weights: Tensor) -> Tensor:
        """Weights as float32 that the precision on disk can hold."""
        return weights.to(getattr(torch, self.identity.precision)).float()

    def __reduce__(self) -> tuple[type[LabelStore], tuple[Path, LabelIdentity, tuple[str, ...]]]:
        # A worker that is spawned, not forked, maps the files itself; pickled arrays would carry their content.
        return LabelStore, (self.folder, self.identity, self._names)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of latents N of every row ``[rows]``."""
        return np.concatenate([np.empty(0, np.int64), *(np.diff(block["offsets"].numpy()) for block in self._blocks)])
