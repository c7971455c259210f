"""Colours with one meaning on the whole page.

Blue is the Reasoner and the right name, orange the baseline and the other name, green the Talker and what is measured
over all nodes. Where systems are many each has a colour of its own, the baseline orange again.
"""

from __future__ import annotations

from unspoken.evaluation.outcomes import COUPLED, JEPA_REASONER
from unspoken.evaluation.results import Results, reasoners

SERIES = ("c1", "c2", "c3", "c4", "c5", "c6")
BASELINE_COLOUR = "c2"
# Where a system is named by its method, its colour is the same in every run.
_NAMED = {JEPA_REASONER: "c1", f"{JEPA_REASONER}, nearest row": "c3", COUPLED: BASELINE_COLOUR, "coconut": "c4"}


def system_colours(results: Results) -> dict[str, str]:
    """The colour of every system, latent reasoners first; where colours run out, lines dash."""
    systems = results["systems"]
    if JEPA_REASONER in systems:
        return {name: _NAMED.get(name, BASELINE_COLOUR if name == results["baseline"] else "c1") for name in systems}
    others = dict.fromkeys([*reasoners(results), *systems])
    others.pop(results["baseline"], None)
    free = [colour for colour in SERIES if colour != BASELINE_COLOUR]
    free += [f"{colour} dashed" for colour in free]
    colours = {name: free[index % len(free)] for index, name in enumerate(others)}
    return {name: colours.get(name, BASELINE_COLOUR) for name in systems}
