"""Outcomes in hexadecimal, by hand, and what names a list of problems."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from unspoken.evaluation.outcomes import compared, fingerprint_of, outcomes_of, packed, unpacked


def test_a_problem_is_a_bit_and_the_first_one_is_the_highest() -> None:
    right = np.array([1, 0, 0, 0, 0, 0, 0, 1, 0, 1], dtype=float)
    assert packed(right) == "8140"
    assert unpacked("8140", 10).tolist() == right.tolist()
    assert packed(np.array([0.5, 0.51])) == "40"
    assert unpacked("81", 8).sum() == 2
    assert packed(np.zeros(0)) == "" and unpacked("", 0).tolist() == []
    for text, problems in (("81", 9), ("8140", 8), ("8", 4)):
        with pytest.raises(ValueError, match="is damaged"):
            unpacked(text, problems)


def test_problems_are_named_by_their_content_in_order() -> None:
    inner = b"".join(hashlib.sha256(text).digest() for text in (b"one", b"two"))
    assert fingerprint_of([b"one", b"two"]) == hashlib.sha256(inner).hexdigest()[:16]
    assert len({fingerprint_of(names) for names in ([b"one", b"two"], [b"two", b"one"], [b"onetwo"])}) == 3


def test_an_entry_of_a_test_set() -> None:
    spent = {"latent_steps": 2.0, "sequential_passes": 4.0, "flops": 8.0, "seconds_batched": 0.5, "seconds_alone": 1.0}
    cost = compared(spent)
    assert cost == {"latent_steps": 2.0, "sequential_passes": 4.0, "flops": 8.0, "seconds": 0.5}
    right = {"cot": [np.ones(3), np.zeros(3)]}
    assert outcomes_of("name", right, {"cot": cost}) == {
        "problems": 3,
        "fingerprint": "name",
        "right": {"cot": ["e0", "00"]},
        "cost": {"cot": cost},
    }
    assert outcomes_of("name", {}, {})["problems"] == 0
