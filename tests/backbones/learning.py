"""Training steps of the library around a model, compared with what transformers makes of the same rows, with gradients.

Each function takes a folder of the hub, lets the library build a stage of a recipe on it, and returns the comparisons.

Axes: B batch, T places of a row, N latents, M supervised tokens, D width, V vocabulary, K entries of a superposition.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from chains import RAGGED, prompts, reads_rows
from hub import LATENTS, ROWS, Hub, random_words
from torch import Tensor, nn
from transformers import PreTrainedModel
from truth import CLOSE, Agreement, gradient_of, hidden, mixture_error, relative, scores, superposition, table

from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.coconut.objective import batch_of
from unspoken.methods.coconut.stages import Coconut, Row
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.jepa_reasoner.stages import SST
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.stages import Stage1, Stage2
from unspoken.methods.method import Batch, Objective
from unspoken.methods.rows import Kind, Rows, compact_rows
from unspoken.reasoning.engine import StopRule

# A change that must not be seen may move an output by rounding alone.
LEAK = 1e-5


def _learner(hub: Hub) -> PreTrainedModel:
    """A copy of the truth in which every parameter learns, also those that its family keeps fixed."""
    return copy.deepcopy(hub.truth).requires_grad_(True)


def _gradients(
    found: Agreement,
    check: str,
    ours: tuple[Tensor, nn.Module],
    theirs: tuple[Tensor, nn.Module],
    *,
    table: bool = True,
) -> None:
    """Compare the gradients of two values by the parameters that learn in our model, which has the same names."""
    (value, model), (true_value, truth) = ours, theirs
    left_out = None if table else model.get_input_embeddings().weight
    mine = {
        name: weight for name, weight in model.named_parameters() if weight.requires_grad and weight is not left_out
    }
    expected = {name: weight for name, weight in truth.named_parameters() if name in mine}
    found.gradients(check, gradient_of(value, mine), gradient_of(true_value, expected))


def _step(model: PreTrainedModel, objective: Objective, batch: Batch) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """Outputs, loss and terms of one training step."""
    made = []

    def forward(**inputs: Any) -> Any:
        made.append(model(**inputs))
        return made[-1]

    loss, terms = objective.loss(forward, batch)
    (outputs,) = made
    return outputs, loss, terms


def coconut(hub: Hub) -> Agreement:
    """A training step of Coconut, with its gradient."""
    found = Agreement()
    model = hub.built("coconut").train()
    assert isinstance(model, CoconutModel)
    objective = hub.recipe.stage("coconut").objective
    assert isinstance(objective, Coconut)
    reads_rows(found, hub, model.decoder)
    _coconut_step(found, hub, model, objective, hub.batch("coconut"), "")
    rows = [
        Row(prompt=tuple(prompt.tolist()), latents=count, end=hub.prompt_format.markers.end, text=spans.answer)
        for prompt, spans, count in zip(prompts(hub), hub.spans, RAGGED, strict=True)
    ]
    _coconut_step(found, hub, model, objective, batch_of(rows, 0), "ragged ")
    return found


def _coconut_step(
    found: Agreement, hub: Hub, model: CoconutModel, objective: Coconut, batch: dict[str, Tensor], label: str
) -> None:
    outputs, loss, _ = _step(model, objective, batch)
    truth = _learner(hub).train()
    losses = []
    for row in range(ROWS):
        prompt = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        text = batch["text_ids"][row][batch["text_mask"][row].bool()]
        target = batch["target_mask"][row][: len(text)]
        whole = table(truth, prompt)
        for step in range(int(batch["latent_mask"][row].sum())):
            whole = torch.cat([whole, hidden(truth, whole)[-1:]])
            found.compare(f"{label}latents", outputs.latents[row, step], whole[-1])
        true = scores(truth, torch.cat([whole, table(truth, text)]))[-len(text) :]
        found.compare(f"{label}scores", outputs.logits[row, : len(text)], true)
        losses.append(F.cross_entropy(true[:-1][target[1:]], text[1:][target[1:]], reduction="none"))
    true_loss = torch.cat(losses).mean()
    found.compare(f"{label}loss", loss, true_loss)
    _gradients(found, f"{label}gradient", (loss, model.decoder), (true_loss, truth))


# --- Latent-SFT --------------------------------------------------------------------------------------------------


def compressing(hub: Hub) -> Agreement:
    """Stage 1: latents out of an explicit chain, and what the decoder makes of them."""
    found = Agreement()
    model = hub.built("one").eval()
    assert isinstance(model, LatentSFTModel)
    model.train_only(encoder=True, decoder=True)
    reads_rows(found, hub, model.decoder)
    batch, objective = hub.batch("one"), Stage1(train="union")
    outputs, _, terms = _step(model, objective, batch)
    encoder, decoder = _learner(hub), _learner(hub)
    learned = _summaries(encoder, batch["encoder"], model.compress)
    found.compare("summaries", outputs.summaries, torch.stack([states[-1] for states, _ in learned]))
    with torch.no_grad():
        labels = list(model.labels(batch["encoder"]))
        weights, ids = (torch.cat([label[part] for label in labels]) for part in (0, 1))
    for slot, (_, scored) in enumerate(learned):
        found.note("labels", mixture_error(scored[-1], weights[slot], ids[slot]))
    top_k = model.config.latent_shape.top_k
    latents = torch.stack([superposition(decoder, scored[-1], top_k) for _, scored in learned])
    found.compare("latents", model.latents(batch["encoder"]), latents)
    true, true_loss = _compact(decoder, batch["decoder"], latents)
    apart = batch["decoder"].kind[:, :-1][batch["decoder"].target[:, 1:]] == Kind.TEXT
    mine = outputs.before_targets[~apart]
    found.compare("outputs", mine, true)
    found.compare("loss of the answer", terms["final_loss"], true_loss)
    _leaks(found, model, batch)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(mine.shape, generator=generator)
    value, true_value = (mine * direction).sum(), (true * direction).sum()
    # A head that is tied to the encoder's table would take part in the truth, but the decoder's makes the latents.
    _gradients(found, "gradient of the encoder", (value, model.encoder), (true_value, encoder.base_model), table=False)
    _gradients(found, "gradient of the decoder", (value, model.decoder), (true_value, decoder))
    _reloads(found, hub, model, lambda again: again.summaries(batch["encoder"]))
    return found


def _summaries(encoder: PreTrainedModel, rows: Rows, compress: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Outputs and scores of each slot's row: prompt, text and the slot, with the slots before it hidden."""
    read = []
    for row in range(ROWS):
        for slot in rows.slots[row].nonzero()[:, 0].tolist():
            seen = rows.kind[row, : slot + 1] != Kind.LATENT
            seen[-1] = True
            vectors = torch.where(
                rows.slots[row, : slot + 1, None], compress.detach(), table(encoder, rows.ids[row, : slot + 1])
            )
            read.append((hidden(encoder, vectors, seen), scores(encoder, vectors, seen)))
    return read


def _compact(decoder: PreTrainedModel, rows: Rows, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs before the targets that are no chunk text, from rows without it, and the loss of marker and answer."""
    before, losses, used = [], [], 0
    for row in range(ROWS):
        kept = (rows.real[row] & (rows.kind[row] != Kind.TEXT)).nonzero()[:, 0]
        slots = rows.slots[row, kept]
        vectors = table(decoder, rows.ids[row, kept])
        vectors = vectors.masked_scatter(slots[:, None], latents[used : used + int(slots.sum())])
        used += int(slots.sum())
        states, scored = hidden(decoder, vectors), scores(decoder, vectors)
        # In the full row the next token of a latent may be chunk text.
        follows = rows.target[row, (kept + 1).clamp(max=rows.ids.shape[1] - 1)]
        follows[-1] = False
        before.append(states[follows])
        final = (rows.target[row, kept] & (rows.kind[row, kept] == Kind.FINAL)).nonzero()[:, 0]
        losses.append(F.cross_entropy(scored[final - 1], rows.ids[row, kept[final]], reduction="none"))
    return torch.cat(before), torch.cat(losses).mean()


@torch.no_grad()
def _leaks(found: Agreement, model: LatentSFTModel, batch: dict[str, Rows]) -> None:
    """Other words in one chunk's text change what follows them in the chunk, and nothing else."""
    rows = batch["decoder"]
    row = int(rows.length.argmax())
    text = (rows.kind == Kind.TEXT) & (rows.chunk == 1) & (torch.arange(ROWS)[:, None] == row)
    changed = replace(rows, ids=rows.ids.masked_scatter(text, random_words(int(text.sum()), seed=11)))
    before = model(decoder=rows, encoder=batch["encoder"]).before_targets
    after = model(decoder=changed, encoder=batch["encoder"]).before_targets
    sees = text[:, :-1][rows.target[:, 1:]]
    found.note("leak", relative(after[~sees], before[~sees]) * CLOSE / LEAK)
    found.note("chunk text that sees nothing", 0.0 if relative(after[sees], before[sees]) > CLOSE else float("inf"))


@torch.no_grad()
def _reloads(found: Agreement, hub: Hub, model: PreTrainedModel, read: Callable[[PreTrainedModel], Tensor]) -> None:
    """The model means the same after it went to disk and back."""
    folder = hub.folder / "again"
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    found.compare("reload", read(again), read(model))


def autonomous(hub: Hub) -> Agreement:
    """Stage 2: a training step on labels, with its gradient."""
    hub.built("one")  # a recipe gets to stage 2 through stage 1 alone
    found, truth = Agreement(), _learner(hub)
    model, objective = hub.built("two").train(), Stage2(noise=None)
    assert isinstance(model, LatentSFTModel)
    shape = model.config.latent_shape
    reads_rows(found, hub, model.decoder)
    rows = compact_rows(hub.spans, hub.prompt_format.markers, rate=shape.rate, pad_id=0)
    slots = int(rows.slots.sum())
    weights = torch.rand(slots, shape.top_k, generator=torch.Generator().manual_seed(1)).softmax(dim=-1)
    ids = torch.stack([random_words(shape.top_k, seed=slot) for slot in range(slots)])
    batch = {"decoder": rows, "weights": weights, "ids": ids}
    loss, terms = objective.loss(model, batch)
    losses, divergences, used = [], [], 0
    for row in range(ROWS):
        real, here = rows.real[row], rows.slots[row][rows.real[row]]
        count = int(here.sum())
        taught, support = weights[used : used + count], ids[used : used + count]
        used += count
        vectors = table(truth, rows.ids[row, real])
        mixtures = torch.einsum("nk,nkd->nd", taught, table(truth, support))
        scored = scores(truth, vectors.masked_scatter(here[:, None], mixtures)).log_softmax(dim=-1)
        judged = rows.target[row][real].nonzero()[:, 0]
        losses.append(-scored[judged - 1, rows.ids[row, real][judged]])
        before = scored[here.nonzero()[:, 0] - 1].gather(-1, support)
        divergences.append((taught * (taught.log() - before)).sum(dim=-1).mean())
    spoken, silent = torch.cat(losses).mean(), torch.stack(divergences).mean()
    found.compare("loss of the answer", terms["token_loss"], spoken)
    found.compare("loss of the latents", terms["latent_loss"], silent)
    _gradients(found, "gradient", (loss, model.decoder), (spoken + silent, truth))
    return found


# --- JEPA-Reasoner -----------------------------------------------------------------------------------------------


def predicting(hub: Hub) -> Agreement:
    """A step of SST with its gradient, and chains of the Reasoner's own latents."""
    found, truth = Agreement(), _learner(hub)
    model, objective = hub.built("sst").train(), SST()
    assert isinstance(model, JepaReasonerModel)
    batch = hub.batch("sst")
    outputs, loss, _ = _step(model, objective, batch)
    losses = []
    for row in range(ROWS):
        real = batch["attention_mask"][row].bool()
        ids, chosen = batch["input_ids"][row][real], batch["answer_mask"][row][real][1:]
        latents = F.normalize(hidden(truth, ids), dim=-1)
        found.compare("latents", outputs.latents[row][real], latents)
        rows = outputs.target_table[ids[1:][chosen]]
        losses.append(1 - F.cosine_similarity(latents[:-1][chosen], rows, dim=-1))
    true_loss = objective.k * torch.cat(losses).mean()
    found.compare("loss", loss, true_loss)
    _gradients(found, "gradient", (loss, model.backbone), (true_loss, truth.base_model))
    model.eval()
    _own_chains(found, hub, model)
    _reloads(found, hub, model, lambda again: again(batch["input_ids"]).latents)
    return found


@torch.no_grad()
def _own_chains(found: Agreement, hub: Hub, model: JepaReasonerModel) -> None:
    """A chain equals the row of its prompt and its latents, at the mean norm with which tokens enter the blocks."""
    truth, stop = hub.truth, StopRule(max_latents=LATENTS, fixed=True)
    norm = table(truth, torch.arange(len(truth.get_input_embeddings().weight))).norm(dim=-1).mean()
    found.compare("norm of a latent", torch.as_tensor(model.scale), norm)
    ids, mask = hub.prompt_format.prompts(hub.problems)
    longest = int(mask.sum(dim=1).argmax())
    for label, rows, chain in (
        ("alone", [longest], model.reason(ids[longest : longest + 1], None, stop)),
        ("batch", list(range(ROWS)), model.reason(ids, mask, stop)),
    ):
        for place, row in enumerate(rows):
            prompt, latents = torch.tensor(hub.spans[row].prompt), chain.latents[place]
            whole = torch.cat([table(truth, prompt), latents * norm])
            outputs = hidden(truth, whole)[len(prompt) - 1 : -1]
            outputs[0] = hidden(truth, prompt)[-1]
            found.steps(f"{label} chains", relative(latents, F.normalize(outputs, dim=-1)))


LEARNING: dict[str, Callable[[Hub], Agreement]] = {
    "Coconut": coconut,
    "Latent-SFT, stage 1": compressing,
    "Latent-SFT, stage 2": autonomous,
    "JEPA-Reasoner": predicting,
}
