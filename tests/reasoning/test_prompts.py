"""What a decoder reads first, in small whole numbers."""

from __future__ import annotations

import struct
import zlib

import pytest
import torch
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.reasoning.prompts import prompt_inputs, prompt_key, prompt_keys

PROMPTS = torch.tensor([[0, 1, 2], [3, 4, 5]])
MASK = torch.tensor([[0, 1, 1], [1, 1, 1]])


def vectors(numbers: Tensor) -> Tensor:
    return numbers[..., None].float()


def given(*rows: list[int], steps: int) -> LatentChain:
    """Latents that are numbers; what stands after a row's end is 99."""
    latents = torch.tensor([row + [99] * (steps - len(row)) for row in rows]).view(len(rows), steps)
    mask = torch.arange(steps)[None] < torch.tensor([len(row) for row in rows])[:, None]
    return LatentChain(latents=vectors(latents), mask=mask, stop=torch.zeros(len(rows), dtype=torch.long))


def read(mask: Tensor | None, chain: LatentChain | None) -> tuple[list[list[float]], list[int]]:
    inputs, lengths = prompt_inputs(vectors(PROMPTS), mask, chain)
    return inputs[..., 0].tolist(), lengths


def test_prompts_alone_are_read_as_they_are() -> None:
    assert read(None, None) == (PROMPTS.tolist(), [3, 3])
    assert read(MASK, None) == (PROMPTS.tolist(), [2, 3])
    assert read(MASK.bool(), None) == read(MASK, None)


def test_latents_come_right_after_their_prompt_and_end_in_the_last_column() -> None:
    for mask, lengths in ((None, [4, 5]), (MASK, [3, 5])):
        rows, found = read(mask, given([7], [8, 9], steps=2))
        assert found == lengths
        assert [row[-length:] for row, length in zip(rows, lengths, strict=True)] == [
            [0, 1, 2, 7][-lengths[0] :],
            [3, 4, 5, 8, 9],
        ]
        assert [len(row) for row in rows] == [5, 5]
        assert 99 not in rows[0]
    # Chains of one length stand as they are.
    assert read(None, given([7, 6], [8, 9], steps=2)) == ([[0, 1, 2, 7, 6], [3, 4, 5, 8, 9]], [5, 5])
    assert read(MASK, given([], [], steps=0)) == (PROMPTS.tolist(), [2, 3])


@pytest.mark.parametrize("wrong", [[[1, 1, 0], [1, 1, 1]], [[1, 1, 1], [1, 0, 1]], [[0, 1, 1], [0, 0, 0]]])
@pytest.mark.parametrize("chain", [None, given([7], [8], steps=1)])
def test_a_mask_with_a_hole_is_refused(wrong: list[list[int]], chain: LatentChain | None) -> None:
    with pytest.raises(ValueError, match="padded on the left: a row of attention_mask has a zero after a one"):
        read(torch.tensor(wrong), chain)


def test_a_prompt_has_the_checksum_of_its_tokens() -> None:
    # CRC-32 of whole numbers of eight bytes.
    expected = [zlib.crc32(struct.pack("<2q", 1, 2)), zlib.crc32(struct.pack("<3q", 3, 4, 5))]
    assert [prompt_key([1, 2]), prompt_key((3, 4, 5))] == expected
    assert prompt_keys(PROMPTS, MASK) == expected
    assert prompt_keys(PROMPTS, None)[0] == prompt_key([0, 1, 2]) != expected[0]
