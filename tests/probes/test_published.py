"""Numbers that pages show as the paper's are those that it prints (JEPA-Reasoner, arXiv 2512.19171v3)."""

from __future__ import annotations

import pytest

from unspoken.evaluation.outcomes import JEPA_REASONER
from unspoken.probes import latent_noise, token_noise
from unspoken.probes.paper import PAPER

# Wrong tokens; then at each of four steps the Transformer and the Reasoner.
TOKEN_NOISE = """
0.00 .9230 .9191 .9181 .7405 .6185 .5722 .6861 .6646
0.05 .8748 .8506 .7867 .6703 .5281 .5242 .6140 .6130
0.10 .7996 .7688 .6958 .6109 .4857 .4797 .5600 .5708
0.15 .7543 .7256 .6273 .5678 .4514 .4581 .5273 .5451
0.20 .7092 .6797 .5868 .5336 .4316 .4428 .5005 .5195
0.25 .6742 .6426 .5643 .5021 .4129 .4152 .4704 .5039
0.30 .6402 .6061 .5442 .4919 .4010 .4201 .4521 .4865
"""
# Sigma over the largest entry; the Reasoner, and Coconut.
LATENT_NOISE = """
0    .4588 .3740
0.05 .4681 .3688
0.10 .4643 .3650
0.15 .4468 .3629
"""


def numbers(table: str) -> list[list[float]]:
    return [[float(cell) for cell in line.split()] for line in table.strip().splitlines()]


def test_wrong_tokens_in_the_prompt() -> None:
    rows = [[rate, *(value for pair in pairs for value in pair)] for rate, pairs in token_noise.PAPER.items()]
    assert rows == numbers(TOKEN_NOISE)
    assert [*token_noise.RATES] == [row[0] for row in rows]


def test_noise_on_latents() -> None:
    reasoner, coconut = latent_noise.PAPER[JEPA_REASONER], latent_noise.PAPER["coconut"]
    assert [[level, reasoner[level], coconut[level]] for level in reasoner] == numbers(LATENT_NOISE)
    assert [*latent_noise.FRACTIONS] == [*reasoner] == [*coconut]


def test_tree_search() -> None:
    assert (PAPER.exact_match, PAPER.major, PAPER.rank) == pytest.approx((0.9987, 0.9989, 0.0172), abs=1e-12)
    assert PAPER.parameters == 42_000_000
