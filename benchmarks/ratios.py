"""Ratios that must not get worse, measured again with few rounds: what continuous integration can afford to look at.

A ratio of two contenders that take turns in one process holds on a machine that is slow or shared; seconds do not. The
last line is one JSON object: where a ratio stands in ``results/benchmarks.json``, and what it is now.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import latent_sft
import rollout
import training
from timing import ratio

SLACK = 0.7  # of a recorded value, where higher is better; above that, something was lost


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio that is watched.

    Attributes:
        path: of its recorded value in ``results/benchmarks.json``.
        measure: what it is now.
        higher: whether higher is better.
    """

    path: str
    measure: Callable[[], float]
    higher: bool = True


def sst_over_next_token() -> float:
    """Speed of a step of SST against one of next-token training."""
    seconds, _ = training.against_others(5)
    return ratio(seconds["next_token"], seconds["sst"])


def stage_two_over_fine_tuning() -> float:
    """Time of a step of stage 2 against one of fine-tuning."""
    seconds, _ = latent_sft.stage_two_against_tuning(5)
    return ratio(seconds["stage_two"], seconds["fine_tuning"])


def batched_over_published_loop() -> float:
    """Speed of answers from one cache against the published loop."""
    seconds = latent_sft.answering(1)
    return ratio(seconds["published"], seconds["batched"])


def mask_on_device_over_host() -> float:
    """Speed of the supervision mask made on the device against one filled on the host."""
    seconds = latent_sft.masking(5)
    return ratio(seconds["host"], seconds["device"])


def cached_over_uncached() -> float:
    """Speed of writing a chain with a cache against without one."""
    return rollout.against_uncached(rollout.build(), 8, 5)["cached_over_uncached"]


WATCHED = (
    Ratio(path="training/sst_over_next_token", measure=sst_over_next_token),
    Ratio(path="latent_sft/stage_two_over_fine_tuning", measure=stage_two_over_fine_tuning, higher=False),
    Ratio(path="latent_sft/batched_over_published_loop", measure=batched_over_published_loop),
    Ratio(path="latent_sft/mask_on_device_over_host", measure=mask_on_device_over_host),
    Ratio(path="rollout/batch_8/cached_over_uncached", measure=cached_over_uncached),
)


def worse(measured: float, recorded: float, *, higher: bool) -> bool:
    """Whether a ratio is worse than its recorded value by more than the slack."""
    return measured < SLACK * recorded if higher else measured > recorded / SLACK


def look_up(results: dict[str, Any], path: str) -> float:
    """The recorded value of a ratio."""
    found: Any = results
    for part in path.split("/"):
        found = found[part]
    return float(found)


def main() -> None:
    """Measure everything and print the JSON line."""
    print(json.dumps({watched.path: watched.measure() for watched in WATCHED}))


if __name__ == "__main__":
    main()
