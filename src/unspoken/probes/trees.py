"""What does a single chain look like, latent by latent, and where do latents lie? Pictures of the first seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unspoken.draw import clouds, trees
from unspoken.draw.chains import latent_name
from unspoken.draw.formats import coefficient, count, joined, percent
from unspoken.draw.section import Block, Examples, Figure, Heading, Key, Legend, Panel, Paragraph, Section
from unspoken.evaluation.results import Results
from unspoken.probes.examples import on_plane, with_first_rows
from unspoken.probes.probe import Probe, System, Task, View
from unspoken.probes.tree_latents import TreeLatents, tree_latents
from unspoken.tasks.tree_search import LETTERS, searches_trees

_UNCERTAIN = "most uncertain"
_SHOWN = 4  # chains that are not folded away


class TreesProbe(Probe):
    """A few chains taken apart, and names and latents on two principal components."""

    key = "trees"

    def applies(self, system: System, task: Task) -> bool:
        """Tree search by a Reasoner with its Talker, whose answer is drawn beside its latents."""
        return searches_trees(task) and system.targets is not None and system.has_talker

    def measure(self, view: View) -> dict[str, Any] | None:
        """``examples`` and the ``plane``, of the first seed."""
        if not view.first_seed:
            return None
        latents = tree_latents(view)
        picks = with_first_rows(_chosen(view, latents), view.graded.correct.tolist())
        examples = [_example(view, latents, row, kind) for kind, row in picks]
        return {"examples": examples, "plane": _plane(latents, [row for _, row in picks], examples)}

    def summarise(self, readings: Mapping[str, Sequence[dict[str, Any]]], *, baseline: str | None) -> dict[str, Any]:
        """Those of the first system: Talkers of one Reasoner have the same chains."""
        return next(iter(readings.values()))[0]

    def draw(self, summary: Any, results: Results) -> Section | None:
        keys = [
            Key("mass", "shade: coefficient of the name"),
            Key("right", "ring: right name"),
            Key("spoken", "dot: name in the answer"),
        ]
        caption = (
            "Each tree is one latent of the chain, taken apart by least squares over the rows of all names; values "
            f"below {trees.SHOWN_FROM:g} are not written. Look for two shaded siblings: there the model was not certain."
        )
        figures = [tree_figure(entry, str(index)) for index, entry in enumerate(summary["examples"])]
        blocks: list[Block] = [Legend(keys), Examples(figures[:_SHOWN], figures[_SHOWN:])]
        blocks.append(Paragraph(f"{caption} {_certainty(summary['examples'])}".strip(), "caption"))
        if summary["plane"]:
            blocks += [Heading("Where latents lie"), _cloud(summary["plane"], summary["examples"])]
        return Section(self.key, "Chains, latent by latent", blocks)


def _chosen(view: View, latents: TreeLatents) -> list[tuple[str, int]]:
    """The problem with the most even mixture of two siblings, the first one that is right, and two that are wrong."""
    import torch

    from unspoken.analysis.mixture import measure, siblings

    correct, below = view.graded.correct, slice(1, latents.task.config.depth)
    expected = siblings(latents.task, latents.problems)
    mixture = measure(latents.rollout[:, below], latents.targets.target_table, expected)
    # Where a latent holds neither sibling it is no mixture of them, however close they are.
    mixed = torch.minimum(mixture.right, mixture.other).max(dim=1).values
    right, wrong = correct.nonzero()[:, 0].tolist(), (~correct).nonzero()[:, 0].tolist()
    return [
        (_UNCERTAIN, int(mixed.argmax())),
        *(("right", row) for row in right[:1]),
        *(("wrong", row) for row in wrong[:2]),
    ]


def _example(view: View, latents: TreeLatents, row: int, kind: str) -> dict[str, Any]:
    """One problem with the coefficients of each latent over all names."""
    from unspoken.evaluation.examples import tree_example

    graded = view.graded
    return {
        "kind": kind,
        **tree_example(
            latents.task,
            latents.problems,
            row,
            latents=latents.rollout[row],
            targets=latents.targets,
            tokens=graded.tokens[row],
            correct=bool(graded.correct[row]),
        ),
    }


def _plane(latents: TreeLatents, rows: Sequence[int], examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """First two principal components of the name rows and the latents of the examples, which get their places ``at``."""
    from unspoken.analysis.mixture import name_rows

    depth = latents.task.config.depth
    chains = [latents.rollout[row, :depth] for row in rows]
    places, squares, explained = on_plane(chains, name_rows(latents.targets.target_table))
    for entry, at in zip(examples, places, strict=True):
        entry["at"] = at
    return {"explained": explained, "names": dict(zip(LETTERS, squares, strict=True))}


def _certainty(examples: Sequence[Mapping[str, Any]]) -> str:
    """How even the most even mixture of two siblings is, of the most uncertain problem."""
    entry = {example["kind"]: example for example in examples}.get(_UNCERTAIN)
    if entry is None:
        return ""
    evenness = [min(own, other) for own, other in _siblings(entry)]
    most = max(evenness)
    if most < trees.SHOWN_FROM:
        return (
            "This model is certain everywhere: even in its most uncertain problem no sibling has a coefficient of 0.05."
        )
    step = evenness.index(most)
    own, other = _siblings(entry)[step]
    return (
        f"In the most uncertain problem latent {step + 2} holds {coefficient(own)} of the right child and "
        f"{coefficient(other)} of its sibling."
    )


def _siblings(entry: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Of every latent below the root the coefficients of the right child and of its sibling."""
    pairs = []
    for right, coefficients in list(zip(entry["route"], entry["coefficients"], strict=True))[1:]:
        node = entry["heap"].index(right)
        sibling = entry["heap"][node + 1 if node % 2 else node - 1]
        pairs.append((coefficients.get(right, 0.0), coefficients.get(sibling, 0.0)))
    return pairs


def tree_figure(entry: Mapping[str, Any], key: str) -> Figure:
    """One chain as a tree for each latent.

    Args:
        entry: see `unspoken.evaluation.examples.tree_example`; its ``kind``, if it has one, is the title.
        key: names the chain in its section.
    """
    verdict = "right" if entry["correct"] else "wrong"
    kind = entry.get("kind", verdict)
    remark = f"route {''.join(entry['route'])}" + ("" if kind == verdict else f", answered {verdict}")
    return Figure(
        [_latent(entry, index, latent_name(key, index)) for index in range(len(entry["coefficients"]))],
        classes="example",
        title=f"{kind[:1].upper()}{kind[1:]}",
        remark=remark,
        strip=True,
        chain=key,
        words=[(word, latent_name(key, index)) for index, word in enumerate(entry["spoken"])],
    )


def _latent(entry: Mapping[str, Any], index: int, name: str) -> Panel:
    right, spoken = entry["route"][index], dict(enumerate(entry["spoken"])).get(index)
    step = trees.Step(heap=entry["heap"], coefficients=entry["coefficients"][index], right=right, spoken=spoken)
    remark = f"decoded as {spoken}" if spoken else "not decoded"
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
        latent=name,
    )


def _cloud(plane: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> Figure:
    explained = joined([percent(fraction, 1) for fraction in plane["explained"]])
    dots = list(_dots(examples))
    if "predictions" in plane:  # of other problems than the examples, in older results
        dots = [clouds.Dot(name=entry["name"], at=entry["at"]) for entry in plane["predictions"]]
        what = f"{count(len(dots), 'dot')}: latents that predict inner nodes in rollout, coloured by the right name"
    else:
        what = (
            f"{count(len(dots), 'dot')}: the latents of {count(len(examples), 'chain')}, coloured by the right name; a line joins "
            "those of a chain that is shown. Point at a latent, here or in its chain, to see it in both; a click shows its chain"
        )
    caption = (
        f"Squares: table rows of the names. {what}. Point at a letter to see its own. A dot on its square is a plain name; dots "
        f"between squares are mixtures. Two components of a wide space, which explain {explained} of it: distances here are only "
        "a hint."
    )
    label = "Names and predicted latents on two principal components"
    return Figure([Panel(drawing=clouds.named_cloud(plane["names"], dots, label=label))], caption, "beside")


def _dots(examples: Sequence[Mapping[str, Any]]) -> Iterator[clouds.Dot]:
    for index, entry in enumerate(examples):
        for step, (at, name) in enumerate(zip(entry.get("at", ()), entry["route"], strict=False)):
            hint = f"chain {index + 1}, latent {step + 1}, right is {name}"
            yield clouds.Dot(name=name, at=at, chain=str(index), latent=latent_name(str(index), step), hint=hint)
