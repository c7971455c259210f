"""Single chains written out: the tokens of each latent beside the explicit chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unspoken.draw import chains
from unspoken.draw.formats import count
from unspoken.draw.section import Block, Fold, Key, Legend, Paragraph, Section
from unspoken.evaluation.results import Results, explicit, label
from unspoken.probes.probe import Probe, System, Task, View

_TOKENS = 5  # of a latent that are shown


class ChainsProbe(Probe):
    """Chains of two problems answered rightly and one answered wrongly, of the first seed."""

    key = "chains"

    def applies(self, system: System, task: Task) -> bool:
        return task.traits.has_chain

    def measure(self, view: View) -> list[dict[str, Any]] | None:
        """None of later seeds, and where chains have no tokens."""
        import torch

        answers = view.graded
        if not view.first_seed or not view.has_chain or answers.chain.support_ids is None:
            return None
        right, wrong = torch.where(answers.correct)[0], torch.where(~answers.correct)[0]
        return [_written_out(view, row) for row in [*right[:2].tolist(), *wrong[:1].tolist()]]

    def summarise(self, readings: Mapping[str, Sequence[list[dict[str, Any]]]], *, baseline: str | None) -> Any:
        return [chain for seeds in readings.values() for chain in seeds[0]]

    def draw(self, entries: Any, results: Results) -> Section | None:
        # One scale for all chains, so that columns of two of them can be compared.
        most = max((step["entropy"] for entry in entries for step in entry["steps"]), default=0.0) or 1.0
        keys = [
            Key("shared", "also in the explicit piece below"),
            Key("unshared", "not there"),
            Key("c4 tall", "entropy of the latent"),
            Key("piece", "piece of the explicit chain"),
        ]
        blocks: list[Block] = [Legend(keys)]
        for index, name in enumerate(_most_informative_first(results, entries)):
            own = [_chain(results, entry, most) for entry in entries if entry["system"] == name]
            blocks.append(Fold(summary=label(name), remark=count(len(own), "chain"), blocks=own, opened=not index))
        caption = (
            "A column is one latent: its most likely tokens with the weights that were fed back, and their entropy in nats, on one "
            "scale for all strips. The band below, read along, is the explicit chain of the problem, cut where training cuts it; each "
            "piece stands under the latent in its place. Several blue tokens in one column are explicit tokens that share one latent."
        )
        blocks.append(Paragraph(caption, "caption"))
        return Section(self.key, "Chains, latent by latent", blocks)


def _written_out(view: View, row: int) -> dict[str, Any]:
    """One chain step by step, with the chunk of the explicit chain that each latent stands for."""
    from unspoken.analysis.superposition import entropy

    answers, tokenizer = view.graded, view.prompt_format.tokenizer
    problem = view.questions[row]
    chain = answers.chain
    assert chain.support_ids is not None and chain.support_weights is not None
    explicit_chain = view.task.spans(view.problems.select([row]), view.prompt_format)[0].chain
    # Tokens that one latent stands for; unknown where nothing cut the chains that it learned from.
    rate = 1 if view.system.explicit else None if view.teacher is None else view.teacher.rate
    chunks = [explicit_chain[at : at + rate] for at in range(0, len(explicit_chain), rate)] if rate else []
    steps = []
    for weights, ids in zip(chain.support_weights[row], chain.support_ids[row], strict=True):
        pairs = [[tokenizer.decode([int(t)]), round(float(w), 4)] for w, t in zip(weights, ids, strict=True)]
        steps.append({"tokens": pairs[:_TOKENS], "entropy": round(float(entropy(weights)), 4)})
    correct = bool(answers.correct[row])
    return {
        "system": view.system.name,
        "kind": "right" if correct else "wrong",
        "question": problem.question,
        "answer": problem.answer,
        "response": view.prompt_format.decode(answers.tokens[row : row + 1])[0],
        "correct": correct,
        "steps": steps[: int(chain.lengths[row])],
        "chunks": [tokenizer.decode(list(chunk)) for chunk in chunks],
    }


def _most_informative_first(results: Results, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The systems: latents above explicit pieces, then latents alone, then explicit chains."""
    cut = {entry["system"] for entry in entries if entry["chunks"]}
    names = dict.fromkeys(entry["system"] for entry in entries)
    return sorted(names, key=lambda name: (explicit(results, name), name not in cut))


def _chain(results: Results, entry: Mapping[str, Any], most: float) -> chains.Chain:
    verdict = "right" if entry["correct"] else "wrong"
    length = count(len(entry["steps"]), "token" if explicit(results, entry["system"]) else "latent")
    remark = length if entry["kind"] == verdict else f"{verdict}, {length}"
    return chains.Chain(
        title=f"{entry['kind'][:1].upper()}{entry['kind'][1:]}",
        remark=remark,
        label=f"{label(entry['system'])}, {entry['kind']}: {remark}",
        question=entry["question"],
        response=entry["response"],
        answer=entry["answer"],
        steps=entry["steps"],
        pieces=entry["chunks"],
        most=most,
    )
