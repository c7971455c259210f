"""Single chains written out: the tokens of each latent beside the explicit chain, and latents on a plane."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unspoken.draw import chains, clouds
from unspoken.draw.formats import coefficient, count, joined, percent
from unspoken.draw.section import Block, Examples, Figure, Fold, Key, Legend, Panel, Paragraph, Section
from unspoken.evaluation.results import Results, explicit, label
from unspoken.probes.examples import on_plane, with_first_rows
from unspoken.probes.probe import Probe, System, Task, View

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN = 3  # chains of a system that are not folded away
_NAMES = 12  # rows of the table on the plane


class ChainsProbe(Probe):
    """Chains of the first test problems, of the first seed; two that end right and one that ends wrong come first."""

    key = "chains"

    def applies(self, system: System, task: Task) -> bool:
        return task.traits.has_chain

    def measure(self, view: View) -> dict[str, Any] | None:
        """``examples``, and the ``plane`` of latents; None of later seeds, and where chains have no tokens.

        Of explicit chains and of further ways to answer only the first three are kept.
        """
        import torch

        from unspoken.evaluation.examples import has_words

        answers = view.graded
        if not view.first_seed or not view.has_chain or not has_words(view.system, answers.chain):
            return None
        right, wrong = torch.where(answers.correct)[0], torch.where(~answers.correct)[0]
        picks = [("right", row) for row in right[:2].tolist()] + [("wrong", row) for row in wrong[:1].tolist()]
        reasons = view.as_trained and view.system.chain_kind != "tokens"
        if reasons:
            picks = with_first_rows(picks, answers.correct.tolist())
        examples = [{"kind": kind, **_written_out(view, row)} for kind, row in picks]
        return {"examples": examples, "plane": _laid_out(view, picks, examples) if reasons else None}

    def summarise(
        self, readings: Mapping[str, Sequence[dict[str, Any]]], *, baseline: str | None
    ) -> dict[str, Any] | None:
        """``examples`` of all systems, and ``planes`` by system."""
        first = {name: seeds[0] for name, seeds in readings.items()}
        return {
            "examples": [chain for reading in first.values() for chain in reading["examples"]],
            "planes": {name: reading["plane"] for name, reading in first.items() if reading["plane"] is not None},
        }

    def draw(self, summary: Any, results: Results) -> Section | None:
        entries, planes = summary["examples"], summary["planes"]
        if not entries:
            return None
        # One scale for all chains, so that columns of two of them can be compared.
        most = largest_entropy(entries)
        keys = [
            Key("shared", "also in the explicit piece below"),
            Key("unshared", "not there"),
            Key("c4 tall", "entropy of the latent"),
            Key("piece", "piece of the explicit chain"),
        ]
        blocks: list[Block] = [Legend(keys)]
        for index, name in enumerate(_most_informative_first(results, entries)):
            own = [entry for entry in entries if entry["system"] == name]
            step = "token" if explicit(results, name) else "latent"
            drawn = [
                text_chain(entry, key=f"{index}.{at}", name=label(name), most=most, step=step)
                for at, entry in enumerate(own)
            ]
            inside: list[Block] = [Examples(drawn[:_SHOWN], drawn[_SHOWN:])]
            if name in planes:
                inside.append(_plane(planes[name], own, str(index)))
            blocks.append(Fold(summary=label(name), remark=count(len(own), "chain"), blocks=inside, opened=not index))
        caption = (
            "A column is one latent: its most likely tokens with the weights that were fed back, and their entropy in nats, on one "
            "scale for all strips; of latents that point at rows, the coefficients of these. The band below, read along, is the "
            "explicit chain of the problem, cut where training cuts it; each piece stands under the latent in its place. Several "
            "blue tokens in one column are explicit tokens that share one latent."
        )
        blocks.append(Paragraph(caption, "caption"))
        return Section(self.key, "Chains, latent by latent", blocks)


def _written_out(view: View, row: int) -> dict[str, Any]:
    """One chain step by step, with the chunk of the explicit chain that each latent stands for."""
    from unspoken.evaluation.examples import text_example

    answers, tokenizer = view.graded, view.prompt_format.tokenizer
    problem = view.questions[row]
    explicit_chain = view.task.spans(view.problems.select([row]), view.prompt_format)[0].chain
    # Tokens that one latent stands for; unknown where nothing cut the chains that it learned from.
    rate = 1 if view.system.explicit else None if view.teacher is None else view.teacher.rate
    chunks = [explicit_chain[at : at + rate] for at in range(0, len(explicit_chain), rate)] if rate else []
    return {
        "system": view.system.name,
        "question": problem.question,
        "answer": problem.answer,
        "correct": bool(answers.correct[row]),
        **text_example(view.system, view.prompt_format, answers.chain, row, answers.tokens[row]),
        "chunks": [tokenizer.decode(list(chunk)) for chunk in chunks],
    }


def _laid_out(
    view: View, picks: Sequence[tuple[str, int]], examples: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """Adds ``at``, the places of its latents on a plane, to each example; the rows that are nearest to most of them."""
    import torch
    import torch.nn.functional as F

    from unspoken.reasoning.superposition import embedding_table

    chain, targets, lengths = view.graded.chain, view.system.targets, view.graded.chain.lengths
    latents = [chain.latents[row, : int(lengths[row])] for _, row in picks]
    if targets is not None:
        table = F.normalize(targets.target_table.float(), dim=-1)
        nearest: list[Tensor] = [targets.nearest_row(steps) for steps in latents]
    else:
        assert chain.support_ids is not None and chain.support_weights is not None
        table = embedding_table(view.system.model)
        best = chain.support_ids.gather(-1, chain.support_weights.argmax(dim=-1, keepdim=True))[..., 0]
        nearest = [best[row, : int(lengths[row])] for _, row in picks]
    every = torch.cat(nearest)
    if len(every) < 2:
        return None
    ids, counts = every.unique(return_counts=True)
    shown = ids[counts.argsort(descending=True, stable=True)[:_NAMES]]
    places, squares, explained = on_plane(latents, table[shown.to(table.device)])
    for entry, at in zip(examples, places, strict=True):
        entry["at"] = at
    names = [view.prompt_format.tokenizer.decode([token]) for token in shown.tolist()]
    return {"explained": explained, "names": dict(zip(names, squares, strict=True))}


def _most_informative_first(results: Results, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The systems: latents above explicit pieces, then latents alone, then explicit chains."""
    cut = {entry["system"] for entry in entries if entry["chunks"]}
    names = dict.fromkeys(entry["system"] for entry in entries)
    return sorted(names, key=lambda name: (explicit(results, name), name not in cut))


def largest_entropy(entries: Iterable[Mapping[str, Any]]) -> float:
    """Of all latents of some chains; 1 where none has an entropy above 0."""
    return max((step["entropy"] or 0.0 for entry in entries for step in entry["steps"]), default=0.0) or 1.0


def text_chain(entry: Mapping[str, Any], *, key: str, name: str, most: float, step: str = "latent") -> chains.Chain:
    """One chain as columns of tokens.

    Args:
        entry: see `unspoken.evaluation.examples.text_example`; its ``kind``, if it has one, is the title.
        key: names the chain in its section.
        name: of the system.
        most: entropy of the highest bar.
        step: what a step is.
    """
    verdict = "right" if entry["correct"] else "wrong"
    kind, length = entry.get("kind", verdict), count(len(entry["steps"]), step)
    remark = length if kind == verdict else f"{verdict}, {length}"
    return chains.Chain(
        key=key,
        title=f"{kind[:1].upper()}{kind[1:]}",
        remark=remark,
        label=f"{name}, {kind}: {remark}",
        question=entry["question"],
        response=entry["response"],
        answer=entry["answer"],
        steps=entry["steps"],
        pieces=entry.get("chunks", ()),
        decoded=entry.get("decoded", ()),
        most=most,
    )


def _plane(plane: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], key: str) -> Figure:
    explained = joined([percent(fraction, 1) for fraction in plane["explained"]])
    caption = (
        f"Squares: the rows of the table that are nearest to most latents. Dots: the latents of {count(len(entries), 'chain')}, "
        "in the colour of their nearest row; a line joins those of a chain that is shown. Point at a latent, here or in its "
        f"chain, to see it in both; a click shows its chain. Two components explain {explained} of the variance: distances are "
        "only a hint."
    )
    label = "Latents and table rows on two principal components"
    return Figure(
        [Panel(drawing=clouds.named_cloud(plane["names"], list(_dots(entries, key)), label=label))], caption, "beside"
    )


def _dots(entries: Sequence[Mapping[str, Any]], key: str) -> Iterator[clouds.Dot]:
    for index, entry in enumerate(entries):
        chain = f"{key}.{index}"
        for step, (at, reading) in enumerate(zip(entry["at"], entry["steps"], strict=True)):
            text, weight = reading["tokens"][0]
            hint = f"chain {index + 1}, latent {step + 1}: {chains.visible(text)} {coefficient(weight)}"
            yield clouds.Dot(name=text, at=at, chain=chain, latent=chains.latent_name(chain, step), hint=hint)
