"""The chains of one or two validation problems as they changed while a stage was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unspoken.draw.formats import count, percent
from unspoken.draw.section import Block, Fold, Frame, Frames, Paragraph, Section
from unspoken.evaluation.results import Results, label
from unspoken.probes.chains import largest_entropy, text_chain
from unspoken.probes.trees import tree_figure


def chains_section(results: Results) -> Section | None:
    """A slider for each stage of the first seed whose chains were written out and changed."""
    entries = results.get("training") or ()
    stages = entries[0]["stages"] if entries else {}
    changed = {name: curve for name, curve in stages.items() if curve.get("chains") and _changed(curve["chains"])}
    if not changed:
        return None
    blocks: list[Block] = [
        Fold(
            summary=label(name),
            remark=count(len(curve["chains"]), "validation"),
            blocks=[Frames(f"Step of {label(name)}", _frames(index, name, curve))],
            opened=not index,
        )
        for index, (name, curve) in enumerate(changed.items())
    ]
    caption = (
        "The chains of the first validation problems, written out at each validation while the stage was trained; of the first "
        "seed. Exact match is that of all validation problems at this step."
    )
    return Section("along-training", "One chain along training", [*blocks, Paragraph(caption, "caption")])


def _changed(chains: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
    """Whether latents differ; those that a stage does not train stay as they are."""
    first, *later = [[entry.get("coefficients", entry.get("steps")) for entry in examples] for examples in chains]
    return any(examples != first for examples in later)


def _frames(stage: int, name: str, curve: Mapping[str, Any]) -> list[Frame]:
    most = largest_entropy(entry for examples in curve["chains"] for entry in examples if "steps" in entry)
    frames = []
    for at, (step, rate, examples) in enumerate(
        zip(curve["steps"], curve["exact_match"], curve["chains"], strict=True)
    ):
        kept = ", the checkpoint that was kept" if step == curve["selected_step"] else ""
        drawn = [
            tree_figure(entry, f"{stage}.{at}.{index}")
            if "heap" in entry
            else text_chain(entry, key=f"{stage}.{at}.{index}", name=label(name), most=most)
            for index, entry in enumerate(examples)
        ]
        frames.append(Frame(f"step {step:,}, exact match {percent(rate, 1)}{kept}", drawn))
    return frames
