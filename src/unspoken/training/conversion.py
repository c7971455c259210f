"""A causal language model as a model of a method that was never trained: what its first stage starts from."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError
from transformers import PreTrainedModel

from unspoken.backbone.folder import publish
from unspoken.backbone.loading import load_answer_tokenizer, load_config, load_pretrained
from unspoken.methods.catalogue import methods
from unspoken.methods.method import Context, Lineage
from unspoken.storage import discard, new_folder
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.spans import END, OPEN
from unspoken.tasks.task import Traits
from unspoken.training.limits import explain_io_error
from unspoken.training.recipe import Evaluation, Stage
from unspoken.training.settings import nearest


def converted(source: str | Path, to: str) -> tuple[PreTrainedModel, PromptFormat]:
    """The model, with the weights of a causal language model and fresh ones where the method has more; its format.

    Its chains stand between ``<think>`` and ``</think>``.

    Args:
        source: a folder, or a name on the hub.
        to: name of a method.

    Raises:
        ValueError: the model cannot be read, nothing makes a model of that method out of it, or the method would be
            wrong around it.
    """
    name = to.replace("-", "_")
    known = {method.name: method.untrained for method in methods() if method.untrained is not None}
    objective = known.get(name)
    if objective is None:
        raise ValueError(f"no model is converted to {to!r} without training; {nearest(name, list(known))}")
    caps = Evaluation()
    prompt_format = PromptFormat(tokenizer=load_answer_tokenizer(source))
    context = Context(
        lineage=Lineage(settings=Stage(name=name, objective=objective, steps=1)),
        traits=Traits(markers=(OPEN, END)),
        make_task=_nothing_learned,
        prompt_format=prompt_format,
        base=partial(load_pretrained, source),
        backbone_config=partial(load_config, source),
        talker=None,
        talker_config=_nothing_learned,
        pretrained=True,
        attention="sdpa",
        max_latents=caps.max_latents,
        max_answer=caps.max_answer,
        batch_size=caps.batch_size,
    )
    return objective.exported(objective.build(None, context)).eval(), prompt_format


def _nothing_learned(*_: object) -> NoReturn:
    raise AssertionError("a model is converted without problems and without a Talker")


def save_converted(model: PreTrainedModel, prompt_format: PromptFormat, source: str | Path, folder: Path) -> None:
    """Publish a converted model with its tokenizer and hashes of its files; a ValueError if the folder exists."""
    if os.path.lexists(folder):
        raise ValueError(f"{folder} exists; choose another folder, or remove it")
    with explain_io_error(folder, SafetensorError), ExitStack() as ends:
        staging = new_folder(folder)
        ends.callback(discard, staging)
        model.save_pretrained(staging)
        prompt_format.tokenizer.save_pretrained(staging)
        publish(staging, folder, {"converted_from": str(source)})
