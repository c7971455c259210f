"""What a published folder promises: every weight is there, none is foreign, and no file was changed.

``run.json`` is written last, after the files it lists are on disk, so a folder without it is not finished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel

from unspoken.storage import sync, write_json

MANIFEST = "run.json"


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Sync every file of the folder, then write the manifest with their hashes, itself atomically."""
    # What a kill or a full disk left of an earlier one must not be listed.
    (folder / f".{MANIFEST}.tmp").unlink(missing_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    for path in files:
        sync(path)
    hashes = {str(path.relative_to(folder)): file_hash(path) for path in files}
    write_json(folder / MANIFEST, {**content, "files": hashes})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished folder.

    Raises:
        ValueError: there is none, or it is not JSON.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} is not a finished folder: it has no {MANIFEST}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{path} is damaged: it lists no files")
    return manifest


def remove(folder: Path) -> None:
    """Remove a folder; what a kill leaves of it no longer says that it is finished."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def verify(folder: Path) -> dict[str, Any]:
    """Compare every listed file with its hash and return the manifest.

    Raises:
        ValueError: a file is missing, truncated or changed; the message names it.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing, but {folder / MANIFEST} lists it")
        if file_hash(path) != expected:
            raise ValueError(
                f"{path} was truncated or changed after it was written (its hash differs from {MANIFEST}); "
                "restore it or train again"
            )
    return manifest


class StrictLoading(PreTrainedModel):
    """``from_pretrained`` that refuses what the library only warns about."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """As the library's, but strict.

        Raises:
            ValueError: a weight is missing, unexpected or wrongly shaped, or a file differs from the manifest.
        """
        folder = Path(str(pretrained_model_name_or_path))
        if (folder / MANIFEST).is_file():
            verify(folder)
        wants_info = kwargs.pop("output_loading_info", False)
        # Let wrongly shaped weights through to the check below: the library's own error does not name them.
        kwargs["ignore_mismatched_sizes"] = True
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            keys = sorted(str(key) for key in info.get(problem) or ())
            if keys:
                raise ValueError(f"{folder}: {problem.replace('_', ' ')} in the weights: {', '.join(keys)}")
        return (model, info) if wants_info else model  # type: ignore[return-value]
