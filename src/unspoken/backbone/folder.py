"""Published folders: all weights are there, no others, and no file was changed.

``run.json`` is written last, after the files it lists are on disk, so a folder without it is not finished. It holds a
hash of each file and a digest of its other entries.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel

from unspoken.storage import UNFINISHED, FolderError, discard, read_json, sync, write_json

MANIFEST = "run.json"

# Files that nothing reads: anything else that a manifest does not list is refused.
_HARMLESS = (".*", "*.md", "LICENSE*", "NOTICE*", "CITATION*", "*.html", "*.png", "*.jpg", "*.svg", "*.pdf", "*.log")
# Sub-folders of which transformers reads files.
_READ_TOO = ("additional_chat_templates", "custom_generate")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
# Keys of a manifest that its digest leaves out: the hashes, which are checked one by one, and the digest itself.
_UNDIGESTED = ("files", "digest")
# Hashes by device, inode, size and the times of the last changes.
_hashes: dict[tuple[int, ...], str] = {}


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _known_hash(path: Path) -> str:
    """As `file_hash`, computed once a process for each state of the file: weights may be many gigabytes."""
    before, begun = _state(path), time.time_ns()
    if before in _hashes:
        return _hashes[before]
    digest = file_hash(path)
    # A file system's clock has steps: a change just after another may leave the same times, so a young file is read
    # again.
    if _state(path) == before and begun - max(before[3:]) > 2e9:
        _hashes[before] = digest
    return digest


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Sync every file of the folder, then write the manifest with their hashes, itself atomically."""
    # What a kill left of a file must not be listed.
    for stray in folder.rglob(UNFINISHED):
        discard(stray)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    for path in files:
        sync(path)
    hashes = {str(path.relative_to(folder)): file_hash(path) for path in files}
    digested = {name: value for name, value in content.items() if name not in _UNDIGESTED}
    write_json(folder / MANIFEST, {**digested, "files": hashes, "digest": _digest(digested)})


def _digest(content: Mapping[str, Any]) -> str:
    # Twice, since JSON makes lists of tuples and strings of all keys.
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished folder.

    Raises:
        ValueError: there is none, it is not JSON, or it was changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FolderError(f"{folder} is not a finished folder: it has no {MANIFEST}")
    manifest: dict[str, Any] = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise FolderError(f"{path} is damaged: it lists no files")
    # Older folders have no digest.
    digested = {name: value for name, value in manifest.items() if name not in _UNDIGESTED}
    if "digest" in manifest and manifest["digest"] != _digest(digested):
        raise FolderError(f"{path} was changed after it was written (its digest differs); restore it or train again")
    return manifest


def remove(folder: Path) -> None:
    """Remove a folder, its manifest first, so that a kill leaves none that looks finished; of a link the link alone."""
    if not folder.is_symlink():
        (folder / MANIFEST).unlink(missing_ok=True)
    discard(folder)


def verify(folder: Path, *, weights: bool = True) -> dict[str, Any]:
    """Compare every listed file with its hash and return the manifest.

    Args:
        weights: also hash the weights, which takes one or two seconds a gigabyte, once a process.

    Raises:
        ValueError: a file is missing, truncated or changed, or there is one that the manifest does not list and that
            would change what the model answers; the message names it.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise FolderError(f"{path} is missing, but {folder / MANIFEST} lists it; restore it or train again")
        if not weights and path.suffix == ".safetensors":
            continue
        if _known_hash(path) != expected:
            raise FolderError(
                f"{path} was truncated or changed after it was written (its hash differs from {MANIFEST}); "
                "restore it or train again"
            )
    for path in _unlisted(folder, manifest["files"]):
        raise FolderError(
            f"{path} came into a finished folder later: {folder / MANIFEST} does not list it, and it could change what "
            "the model answers; remove it, or save the changed model under a new name"
        )
    return manifest


def _unlisted(folder: Path, listed: Mapping[str, str]) -> Iterator[Path]:
    """Unlisted files that something might read, in the folder and in two of its sub-folders."""
    inside = (path for name in _READ_TOO for path in folder.glob(f"{name}/*"))
    for path in sorted((*folder.iterdir(), *inside)):
        harmless = path.parent == folder and any(fnmatchcase(path.name, pattern) for pattern in _HARMLESS)
        is_listed = path == folder / MANIFEST or str(path.relative_to(folder)) in listed
        if not (harmless or is_listed or path.is_dir()):
            yield path


def verify_published(folder: Path, *, weights: bool = True) -> dict[str, Any]:
    """As `verify`, of a folder from which a model is loaded: it holds no pickle, as checkpoints of training do.

    Raises:
        ValueError: as `verify`, or there is a pickle, listed or not.
    """
    manifest = verify(folder, weights=weights)
    for path in sorted({*folder.iterdir(), *(folder / name for name in manifest["files"])}):
        if path.suffix in _PICKLES:
            raise FolderError(
                f"{path} is a pickle, which can run code, and a finished folder holds none; load the folder of a "
                "finished stage, or remove the file and save the model anew"
            )
    return manifest


def check_keys(source: str | Path, info: Mapping[str, Any]) -> None:
    """Refuse weights that do not fit their configuration.

    Args:
        source: folder or name on the hub, for the message.
        info: of ``from_pretrained`` with ``output_loading_info``; it does not list weights that transformers allows
            to be missing (tied weights, ``_keys_to_ignore_on_load_missing``).

    Raises:
        ValueError: a weight is missing, unexpected or wrongly shaped; the message names the first few.
    """
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(_described(key) for key in info.get(problem) or ())
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise FolderError(
                f"{source}: config.json and the weights do not belong together, restore the one that was changed: "
                f"{problem.replace('_', ' ')} in the weights: {', '.join(keys[:5])}{more}"
            )


def _described(key: Any) -> str:
    if isinstance(key, str):
        return key
    name, stored, configured = key
    return f"{name} ({list(stored)} in the weights, {list(configured)} by config.json)"


class StrictLoading(PreTrainedModel):
    """``from_pretrained`` that refuses what transformers only warns about."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """As ``from_pretrained`` of transformers, but strict.

        Raises:
            ValueError: a weight is missing, unexpected or wrongly shaped, or a file differs from the manifest.
        """
        folder = Path(str(pretrained_model_name_or_path))
        if os.path.lexists(folder / MANIFEST):
            verify_published(folder)
        wants_info = kwargs.pop("output_loading_info", False)
        # Let wrongly shaped weights through to the check below: the error of transformers does not name them.
        kwargs["ignore_mismatched_sizes"] = True
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        check_keys(folder, info)
        return (model, info) if wants_info else model  # type: ignore[return-value]


# --- atomic folders ---------------------------------------------------------------------------------------------------


def numbered(folder: Path, prefix: str) -> list[Path]:
    """Finished sub-folders ``prefix-N`` in the order of N; unfinished ones are not counted."""
    numbers = {entry: entry.name.removeprefix(f"{prefix}-") for entry in folder.glob(f"{prefix}-*")}
    finished = [
        entry
        for entry, number in numbers.items()
        if number.isdecimal() and (entry / MANIFEST).is_file() and not entry.is_symlink()
    ]
    return sorted(finished, key=lambda entry: int(numbers[entry]))


def publish(staging: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Turn a staged folder into a finished one with a single rename."""
    write_manifest(staging, manifest)
    if os.path.lexists(final):
        remove(final)
    staging.replace(final)
    sync(final.parent)


def clear(folder: Path) -> None:
    """Remove files that a stage needs only while it runs."""
    for leftover in (*folder.glob("checkpoint-*"), *folder.glob("best-*"), *folder.glob(".*")):
        if leftover.is_dir() or leftover.is_symlink():
            remove(leftover)
