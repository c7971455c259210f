"""A full disk and too little memory, as the libraries report them and as a user reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faults import a_disk_that_can_fill
from safetensors import SafetensorError
from safetensors.torch import save_file

from unspoken.tasks.tokenizing import by_character
from unspoken.training.limits import explain_io_error, explain_oom, out_of_memory

LETTERS = [chr(code) for code in range(900, 1900)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) == expected


def test_too_little_memory_is_one_line_with_a_remedy() -> None:
    with pytest.raises(ValueError) as error, explain_oom("a stage with batch_size 8", "lower it"):  # noqa: PT011
        torch.empty(2**50)
    assert str(error.value) == "a stage with batch_size 8: out of memory; lower it"


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shape"), explain_oom("work", "remedy"):
        torch.zeros(2, 3).view(7)


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (lambda path: path.write_bytes(bytes(9000)), "File too large"),
        (lambda path: save_file({"weight": torch.zeros(9000)}, path), "File too large"),
        (lambda path: torch.save({"weight": torch.zeros(9000)}, path), ""),
        (
            lambda path: by_character(["[PAD]", "[EOS]", *map(chr, range(900, 1900))]).save_pretrained(path),
            "File too large",
        ),
    ],
    ids=["write", "safetensors", "torch.save", "tokenizers"],
)
def test_a_full_disk_is_the_same_line_whoever_writes(
    save: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    with (  # noqa: PT012
        a_disk_that_can_fill() as fill,
        pytest.raises(OSError, match="could not be written") as error,
        explain_io_error(tmp_path, RuntimeError, SafetensorError),
    ):
        fill(2000)
        save(tmp_path / "file")
    output = str(error.value)
    assert output.startswith(f"{tmp_path} could not be written (")
    assert reason in output
    assert "free space there, or give access, and run the same command again" in output
    assert "\n" not in output
