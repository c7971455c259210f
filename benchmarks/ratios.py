"""Ratios that must not get worse, measured again with few rounds: what continuous integration can afford to look at.

A ratio of two contenders that take turns in one process holds on a machine that is slow or shared; seconds do not. What
looks worse is measured again, since a busy moment passes and a loss does not. The last line is one JSON object with
the ratios that have become worse, by their path in ``results/benchmarks.json``; if there are any, the status is 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import latent_sft
import rollout
import training
from timing import PRECISION, ratio

RECORDED = Path(__file__).resolve().parent.parent / "results" / "benchmarks.json"
SLACK = 0.7  # of a recorded value, where higher is better; below that, something was lost
TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio that is watched.

    Attributes:
        path: of its recorded value in ``results/benchmarks.json``.
        measure: what it is now.
        higher: whether higher is better.
        slack: of the recorded value.
    """

    path: str
    measure: Callable[[], float]
    higher: bool = True
    slack: float = SLACK

    def worse(self, measured: float, recorded: float) -> bool:
        """Whether it is worse than its recorded value by more than the slack."""
        return measured < self.slack * recorded if self.higher else measured > recorded / self.slack


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
    # In float32, which processors without bfloat16 take, it is 8 to 9 in place of 11.3.
    Ratio(
        path="latent_sft/batched_over_published_loop",
        measure=batched_over_published_loop,
        slack=SLACK if PRECISION == "bf16" else 0.5,
    ),
    # A millisecond against some fifteen: whatever else the machine does weighs on one of them alone.
    Ratio(path="latent_sft/mask_on_device_over_host", measure=mask_on_device_over_host, slack=0.5),
    Ratio(path="rollout/batch_8/cached_over_uncached", measure=cached_over_uncached),
)


def look_up(results: dict[str, Any], path: str) -> float:
    """The recorded value of a ratio."""
    found: Any = results
    for part in path.split("/"):
        found = found[part]
    return float(found)


def lost(watched: Ratio, recorded: float) -> float | None:
    """A ratio that is worse every time it is measured, as it was the last time; None of any other."""
    for _ in range(TRIES):
        measured = watched.measure()
        print(f"{watched.path}: {measured}, recorded {recorded}", file=sys.stderr, flush=True)
        if not watched.worse(measured, recorded):
            return None
    return measured


def main() -> int:
    """Measure everything; the status to end with."""
    results = json.loads(RECORDED.read_text())
    found = {watched.path: lost(watched, look_up(results, watched.path)) for watched in WATCHED}
    worse = {path: value for path, value in found.items() if value is not None}
    print(json.dumps({"worse": worse}))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
