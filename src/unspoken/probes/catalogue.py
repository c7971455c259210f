"""The probes there are, in the order of their sections on a page.

A third-party package adds a probe by an entry point that names an instance of `unspoken.probes.probe.Probe`::

    [project.entry-points."unspoken.probes"]
    my_probe = "my_package.probe:MY_PROBE"
"""

from __future__ import annotations

from functools import cache

from unspoken.plugins import offered
from unspoken.probes.calibration import CalibrationProbe
from unspoken.probes.chains import ChainsProbe
from unspoken.probes.claims import ClaimsProbe
from unspoken.probes.controls import ControlsProbe
from unspoken.probes.corruption import CorruptionProbe
from unspoken.probes.difficulty import DifficultyProbe
from unspoken.probes.forced_symbols import ForcedSymbolsProbe
from unspoken.probes.forced_tokens import ForcedTokensProbe
from unspoken.probes.geometry import GeometryProbe
from unspoken.probes.latent_noise import LatentNoiseProbe
from unspoken.probes.mixture import MixtureProbe
from unspoken.probes.next_token import NextTokenProbe
from unspoken.probes.pass_at_k import PassAtKProbe
from unspoken.probes.probe import Probe
from unspoken.probes.resampled_answers import ResampledAnswersProbe
from unspoken.probes.steps import StepsProbe
from unspoken.probes.superposition import SuperpositionProbe
from unspoken.probes.symbols import SymbolsProbe
from unspoken.probes.token_noise import TokenNoiseProbe
from unspoken.probes.trees import TreesProbe

GROUP = "unspoken.probes"
PROBES: tuple[Probe, ...] = (
    ClaimsProbe(),
    SymbolsProbe(),
    TokenNoiseProbe(),
    LatentNoiseProbe(),
    ForcedSymbolsProbe(),
    StepsProbe(),
    ControlsProbe(),
    ResampledAnswersProbe(),
    MixtureProbe(),
    TreesProbe(),
    CalibrationProbe(),
    DifficultyProbe(),
    PassAtKProbe(),
    ForcedTokensProbe(),
    ChainsProbe(),
    SuperpositionProbe(),
    GeometryProbe(),
    CorruptionProbe(),
    NextTokenProbe(),
)


@cache
def probes() -> tuple[Probe, ...]:
    """All probes, those of other packages last; these are imported at the first call.

    Raises:
        ValueError: another package's probe cannot be imported, is no probe, or has the key of another one.
    """
    every = list(PROBES)
    for name, probe in offered(GROUP):
        if not isinstance(probe, Probe):
            raise ValueError(f"{name} is no unspoken.probes.probe.Probe; uninstall it")
        if probe.key in {other.key for other in every}:
            raise ValueError(f"{name} has the key {probe.key!r} of another one; uninstall it")
        every.append(probe)
    return tuple(every)


def default_probes() -> list[Probe]:
    """Those that are measured without being asked for."""
    return [probe for probe in probes() if not probe.optional]


def optional_probe(key: str) -> Probe:
    """The probe of a key that is measured only where it is asked for.

    Raises:
        ValueError: there is none.
    """
    every = {probe.key: probe for probe in probes() if probe.optional}
    if key not in every:
        raise ValueError(f"there is no optional probe {key!r}; choose from {', '.join(every)}")
    return every[key]
