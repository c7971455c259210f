"""With a vocabulary of 131,072 no table of scores exists in full: peak memory of a process, and the same results."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch import Tensor

from unspoken.methods.latent_sft.objective import divergences, token_losses
from unspoken.reasoning import superposition
from unspoken.reasoning.superposition import choose, distribution, heaviest, mix, superpose

VOCABULARY = 131_072
# One float32 table of these scores is 300 MiB, and a plain chain of operations holds several of them.
POSITIONS, WIDTH = 600, 8
PIECE = 2**24  # numbers; smaller than the package's, so that fewer positions make many pieces
ALLOWED = 4 * 4 * PIECE  # bytes of four pieces in float32: 256 MiB

WORK = {
    "superpositions of few entries": """
        superpose(hidden, readout, table, top_k=10).sum().backward()
    """,
    "labels of few entries": """
        with torch.no_grad():
            distribution(hidden, readout, 10, 1.0)
    """,
    "full superpositions that are given": """
        table = table.bfloat16()
        ids = torch.arange(len(table)).expand(len(hidden), -1)
        weights = torch.full((1, 1), 1 / len(table)).expand(len(hidden), len(table))
        with torch.no_grad():
            mix(weights, ids, table)
    """,
    "losses of tokens": """
        token_losses(hidden, readout, torch.zeros(len(hidden), dtype=torch.long)).sum().backward()
    """,
    "losses of few entries": """
        ids = torch.arange(10).expand(len(hidden), 10)
        divergences(hidden, readout, torch.full(ids.shape, 0.1), ids).sum().backward()
    """,
}


# What is imported is imported once: each work is done by a fork of the process that has it.
SCRIPT = f"""
import json, os, resource, sys, torch
from unspoken.reasoning import superposition
from unspoken.reasoning.superposition import distribution, mix, superpose
from unspoken.methods.latent_sft.objective import divergences, token_losses

def grown(work):
    superposition.NUMBERS = {PIECE}
    hidden = torch.randn({POSITIONS}, {WIDTH}, requires_grad=True)
    readout, table = torch.randn({VOCABULARY}, {WIDTH}), torch.randn({VOCABULARY}, {WIDTH})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    exec(work, {{**globals(), "hidden": hidden, "readout": readout, "table": table}})
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

torch.set_num_threads(1)
for name, work in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        print(json.dumps([name, grown(work)]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def peaks() -> dict[str, int]:
    """Bytes that a process needs for each work on top of its imports and its inputs."""
    work = {name: textwrap.dedent(lines) for name, lines in WORK.items()}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(work)], capture_output=True, text=True, check=True, timeout=240
    )
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maximum memory is counted in KiB on Linux alone")
@pytest.mark.parametrize("name", WORK)
def test_the_memory_of_a_process_stays_below_four_pieces(name: str, peaks: dict[str, int]) -> None:
    assert 0 < peaks[name] < ALLOWED


# --- the same results ------------------------------------------------------------------------------------------------


def made(top_k: int) -> list[Tensor]:
    """Superpositions, labels and losses with their gradients, of the same numbers every time."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden, readout, table = drawn(20, 4).requires_grad_(), drawn(30, 4), drawn(30, 4)
    weights, ids = distribution(hidden, readout, top_k, 0.7)
    latents = superpose(hidden, readout, table, top_k=top_k, temperature=0.7)
    given = mix(weights, ids, table)
    losses = [divergences(hidden, readout, weights.detach(), ids), token_losses(hidden, readout, ids[:, 0])]
    outcomes = [weights, latents, given, *losses]
    return [
        ids,
        *outcomes,
        *(torch.autograd.grad(one.square().sum(), hidden, retain_graph=True)[0] for one in outcomes),
    ]


@pytest.mark.parametrize("numbers", [30, 95, 300])
@pytest.mark.parametrize("top_k", [1, 5, 30])
def test_pieces_make_what_one_piece_makes(top_k: int, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = made(top_k)
    monkeypatch.setattr(superposition, "NUMBERS", numbers)
    for actual, expected in zip(made(top_k), complete, strict=True):
        torch.testing.assert_close(actual, expected)


def test_what_fits_is_made_at_once_and_to_the_last_bit() -> None:
    hidden, readout, table = torch.randn(20, 4), torch.randn(30, 4), torch.randn(30, 4)
    weights, ids = distribution(hidden, readout, 5, 0.7)
    expected: Any = choose(hidden @ readout.T, 5, 0.7)
    assert torch.equal(weights, expected[0])
    assert torch.equal(ids, expected[1])
    assert torch.equal(mix(weights, ids, table), torch.einsum("nk,nkd->nd", weights, table[ids]))


def test_a_chain_records_the_heaviest_entries_alone() -> None:
    weights = torch.rand(3, 1000).softmax(dim=-1)
    ids = torch.stack([torch.randperm(1000) for _ in range(3)])
    remaining, places = heaviest(weights, ids)
    assert remaining.shape == places.shape == (3, superposition.RECORDED)
    assert (remaining[:, :-1] >= remaining[:, 1:]).all()
    dense = torch.zeros(3, 1000).scatter(1, ids, weights)
    assert torch.equal(dense.gather(1, places), remaining)
    assert remaining.sum() > 3 * superposition.RECORDED / 1000
    # A view would keep all of it in memory.
    assert remaining.untyped_storage().nbytes() == remaining.numel() * 4
    few = heaviest(weights[:, :5], ids[:, :5])
    assert torch.equal(few[0], weights[:, :5])
