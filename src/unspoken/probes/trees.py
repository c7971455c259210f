"""What does a single chain look like, latent by latent, and where do latents lie? Pictures of the first seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unspoken.draw import clouds, trees
from unspoken.draw.formats import coefficient, count, joined, percent
from unspoken.draw.section import Block, Figure, Heading, Key, Legend, Panel, Paragraph, Section
from unspoken.evaluation.results import Results
from unspoken.probes.probe import Probe, System, Task, View
from unspoken.probes.tree_latents import TreeLatents, tree_latents
from unspoken.tasks.tree_search import FIRST_LETTER, LETTERS, searches_trees

if TYPE_CHECKING:
    from torch import Tensor


_UNCERTAIN = "most uncertain"
_DOTS_OF = 150  # problems whose latents are in the cloud


class TreesProbe(Probe):
    """A few chains taken apart, and names and latents on two principal components."""

    key = "trees"

    def applies(self, system: System, task: Task) -> bool:
        """Tree search by a Reasoner with its Talker, whose words are drawn beside its latents."""
        return searches_trees(task) and system.targets is not None and system.has_talker

    def measure(self, view: View) -> dict[str, Any] | None:
        """``examples`` and the ``plane``, of the first seed."""
        if not view.first_seed:
            return None
        latents = tree_latents(view)
        return {"examples": _examples(view, latents), "plane": _plane(latents)}

    def summarise(self, readings: Mapping[str, Sequence[dict[str, Any]]], *, baseline: str | None) -> dict[str, Any]:
        """Those of the first system: Talkers of one Reasoner have the same chains."""
        return next(iter(readings.values()))[0]

    def draw(self, summary: Any, results: Results) -> Section | None:
        keys = [
            Key("mass", "shade: coefficient of the name"),
            Key("right", "ring: right name"),
            Key("spoken", "dot: spoken name"),
        ]
        caption = (
            "Each tree is one latent of the chain, taken apart by least squares over the rows of all names; values "
            f"below {trees.SHOWN_FROM:g} are not written. Look for two shaded siblings: there the model was not certain."
        )
        blocks: list[Block] = [Legend(keys), *map(_example_figure, summary["examples"])]
        blocks.append(Paragraph(f"{caption} {_certainty(summary['examples'])}".strip(), "caption"))
        if summary["plane"]:
            blocks += [Heading("Where latents lie"), _cloud(summary["plane"])]
        return Section(self.key, "Chains, latent by latent", blocks)


def _examples(view: View, latents: TreeLatents) -> list[dict[str, Any]]:
    """The first problem that is right, the one with the most even mixture of two siblings, and two that are wrong."""
    import torch

    from unspoken.analysis.mixture import measure, siblings

    correct, below = view.graded.correct, slice(1, latents.task.config.depth)
    expected = siblings(latents.task, latents.problems)
    mixture = measure(latents.rollout[:, below], latents.targets.target_table, expected)
    # Where a latent holds neither sibling it is no mixture of them, however close they are.
    mixed = torch.minimum(mixture.right, mixture.other).max(dim=1).values
    picks: list[tuple[str, int]] = []
    right, wrong = correct.nonzero()[:, 0], (~correct).nonzero()[:, 0]
    if len(right):
        picks.append(("right", int(right[0])))
    picks.append((_UNCERTAIN, int(mixed.argmax())))
    picks += [("wrong", int(row)) for row in wrong[:2]]
    return [_example(view, latents, row, kind) for kind, row in picks]


def _example(view: View, latents: TreeLatents, row: int, kind: str) -> dict[str, Any]:
    """One problem with the coefficients of each latent over all names."""
    from unspoken.analysis.mixture import all_coefficients

    task, problems = latents.task, latents.problems
    coefficients = all_coefficients(latents.rollout[row, : task.config.depth], latents.targets.target_table)
    names = [LETTERS[token - FIRST_LETTER] for token in problems.names_BM[row]]
    return {
        "kind": kind,
        "heap": names,
        "route": [names[node] for node in task.route_nodes(problems.leaf_B)[row]],
        "spoken": task.words(view.graded.tokens[row]),
        "correct": bool(view.graded.correct[row]),
        "coefficients": [
            {LETTERS[index]: round(float(step[FIRST_LETTER + index]), 4) for index in range(len(LETTERS))}
            for step in coefficients
        ],
    }


def _plane(latents: TreeLatents) -> dict[str, Any]:
    """First two principal components of the name rows and of the latents of inner nodes, in rollout."""
    import torch

    from unspoken.analysis.mixture import name_rows
    from unspoken.placement import moved

    inner = slice(1, latents.task.config.depth - 1)
    points = latents.rollout[:_DOTS_OF, inner].reshape(-1, latents.rollout.shape[-1])
    answers = latents.task.answers(latents.problems)[:_DOTS_OF, inner].reshape(-1)
    rows = moved(name_rows(latents.targets.target_table), points.device)
    both = torch.cat([rows, points])
    centre = both.mean(dim=0)
    _, spread, axes = torch.linalg.svd(both - centre, full_matrices=False)
    explained = (spread**2 / (spread**2).sum())[:2]

    def on_plane(vector: Tensor) -> list[float]:
        return [round(value, 4) for value in ((vector - centre) @ axes[:2].T).tolist()]

    return {
        "explained": explained.tolist(),
        "names": {name: on_plane(row) for name, row in zip(LETTERS, rows, strict=True)},
        "predictions": [
            {"at": on_plane(point), "name": LETTERS[int(name) - FIRST_LETTER]}
            for point, name in zip(points, answers, strict=True)
        ],
    }


def _certainty(examples: Sequence[Mapping[str, Any]]) -> str:
    """How even the most even mixture of two siblings is, of the most uncertain problem."""
    entry = {example["kind"]: example for example in examples}.get(_UNCERTAIN)
    if entry is None:
        return ""
    evenness = [min(own, other) for own, other in _siblings(entry)]
    most = max(evenness, default=0.0)
    if most < trees.SHOWN_FROM:
        return "This model is certain everywhere: even in its most uncertain problem no sibling is worth drawing."
    step = evenness.index(most)
    own, other = _siblings(entry)[step]
    return (
        f"In the most uncertain problem latent {step + 2} holds {coefficient(own)} of the right child and "
        f"{coefficient(other)} of its sibling."
    )


def _siblings(entry: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Of every latent below the root the coefficients of the right child and of its sibling."""
    pairs = []
    for right, coefficients in list(zip(entry["route"], entry["coefficients"], strict=False))[1:]:
        node = entry["heap"].index(right)
        sibling = entry["heap"][node + 1 if node % 2 else node - 1]
        pairs.append((coefficients.get(right, 0.0), coefficients.get(sibling, 0.0)))
    return pairs


def _example_figure(entry: Mapping[str, Any]) -> Figure:
    verdict = "right" if entry["correct"] else "wrong"
    remark = f"route {''.join(entry['route'])}, spoken {''.join(entry['spoken']) or 'nothing'}"
    return Figure(
        [_latent(entry, index) for index in range(len(entry["coefficients"]))],
        classes="example",
        title=f"{entry['kind'][:1].upper()}{entry['kind'][1:]}",
        remark=remark if entry["kind"] == verdict else f"{remark}, {verdict}",
        strip=True,
    )


def _latent(entry: Mapping[str, Any], index: int) -> Panel:
    right, spoken = entry["route"][index], dict(enumerate(entry["spoken"])).get(index)
    step = trees.Step(heap=entry["heap"], coefficients=entry["coefficients"][index], right=right, spoken=spoken)
    remark = f"spoken {spoken or 'nothing'}"
    if spoken is not None and spoken not in entry["heap"]:
        remark += ", not in this tree"
    if spoken != right:
        remark += f"; right is {right}"
    if (other := step.outside()) is not None:
        remark += f"; outside the tree {other[0]} {coefficient(other[1])}"
    return Panel(
        drawing=trees.draw(step, label=f"Latent {index + 1}: {remark}"),
        below=(str(index + 1), remark),
        width=trees.size(step.depth)[0],
        classes="" if spoken == right else "miss",
    )


def _cloud(plane: Mapping[str, Any]) -> Figure:
    explained = joined([percent(fraction, 1) for fraction in plane["explained"]])
    many = count(len(plane["predictions"]), "dot")
    caption = (
        f"Squares: table rows of the names. {many}: latents that predict inner nodes in rollout, coloured by the right "
        "name; point at a letter to see its own. A dot on its square is a plain name; dots between squares are "
        f"mixtures. Two components of a wide space, which explain {explained} of it: distances here are only a hint."
    )
    dots = [(entry["name"], entry["at"]) for entry in plane["predictions"]]
    label = "Names and predicted latents on two principal components"
    return Figure([Panel(drawing=clouds.named_cloud(plane["names"], dots, label=label))], caption, "beside")
