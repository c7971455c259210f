"""The methods there are, and the one place that asks whose a model is. Importing it imports nothing heavy.

A third-party package adds a method by an entry point that names an instance of `unspoken.methods.method.Method`::

    [project.entry-points."unspoken.methods"]
    my_method = "my_package.method:MY_METHOD"
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from unspoken.methods.budget_forcing.method import BudgetForcingMethod
from unspoken.methods.coconut.method import CoconutMethod
from unspoken.methods.codi.method import CodiMethod
from unspoken.methods.colar.method import ColarMethod
from unspoken.methods.coupled.method import CoupledMethod
from unspoken.methods.defaults import TrainingFacts
from unspoken.methods.icot.method import IcotMethod
from unspoken.methods.jepa_reasoner.method import JepaReasonerMethod
from unspoken.methods.latent_sft.method import LatentSFTMethod
from unspoken.methods.lotus.method import LotusMethod
from unspoken.methods.method import Method, Objective
from unspoken.methods.mux.method import MuxMethod
from unspoken.methods.pause.method import PauseMethod
from unspoken.methods.pccot.method import PccotMethod
from unspoken.methods.reasoning import Reasoning
from unspoken.methods.sim_cot.method import SimCotMethod
from unspoken.methods.soft_thinking import SoftThinkingMethod
from unspoken.plugins import offered
from unspoken.storage import FolderError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from unspoken.reasoning.system import System
    from unspoken.reasoning.teacher import Teacher
    from unspoken.tasks.prompt_format import PromptFormat

GROUP = "unspoken.methods"
# In the order in which they are asked whose a model is; what takes any language model comes last.
METHODS: tuple[Method, ...] = (
    JepaReasonerMethod(),
    LatentSFTMethod(),
    CoconutMethod(),
    CodiMethod(),
    ColarMethod(),
    IcotMethod(),
    LotusMethod(),
    MuxMethod(),
    PauseMethod(),
    PccotMethod(),
    SimCotMethod(),
    SoftThinkingMethod(),
    BudgetForcingMethod(),
    CoupledMethod(),
)


# Model and problems that allow everything.
_ANY = TrainingFacts(rows=1, steps=1, chain=1, width=1, heads=1, batch_size=1)


@cache
def methods() -> tuple[Method, ...]:
    """All methods, those of other packages first; these are imported at the first call.

    Raises:
        ValueError: another package's method cannot be imported, is no method, or has a kind of stage or of reasoning,
            or a name to train it by, of another one.
    """
    others: list[Method] = []
    for name, method in offered(GROUP):
        if not isinstance(method, Method):
            raise ValueError(f"{name} is no unspoken.methods.method.Method; uninstall it")
        for other in (*METHODS, *others):
            taken = _names(other)
            for what, names in _names(method).items():
                if names & taken[what]:
                    raise ValueError(
                        f"{name} has the {what} {min(names & taken[what])!r} of another method; uninstall it"
                    )
        others.append(method)
    return (*others, *METHODS)


def _names(method: Method) -> dict[str, set[str]]:
    """What a method is found by in recipes and on the command line, of every sort."""
    return {
        "stage kind": {objective.kind for objective in method.objectives},
        "kind of reasoning": {reasoning.kind for reasoning in method.reasonings},
        "name to train it by": set(method.default_stages(_ANY)),
    }


def objectives() -> tuple[type[Objective], ...]:
    """What stages can learn, of all methods; raises as `methods`."""
    return tuple(objective for method in methods() for objective in method.objectives)


def reasonings() -> tuple[type[Reasoning], ...]:
    """Ways to reason that need no training, of all methods; raises as `methods`."""
    return tuple(reasoning for method in methods() for reasoning in method.reasonings)


def trainable(facts: TrainingFacts | None = None) -> dict[str, list[dict[str, Any]]]:
    """Stages by the name of what they train, see `Method.default_stages`; raises as `methods`.

    Args:
        facts: of model and problems; by default those of problems that allow everything.
    """
    known = _ANY if facts is None else facts
    return {
        name.replace("_", "-"): stages for method in methods() for name, stages in method.default_stages(known).items()
    }


def register_models() -> None:
    """Register the methods' kinds of models with transformers, so that their folders can be loaded."""
    for method in methods():
        method.register()


def systems(
    model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None = None, pad_id: int | None = None
) -> list[System]:
    """How a model can answer: first as it was trained, then in other ways that are compared with that.

    Args:
        model: of a finished folder, or in training.
        stage: names the first system; the names of the others begin with it.
        max_answer: cap of an answer where the folder records none.
        end_id, pad_id: of a plain causal language model; those of its configuration by default.

    Raises:
        ValueError: no method knows the model, or a method would be wrong around it.
    """
    for method in methods():
        known = method.systems(model, stage=stage, max_answer=max_answer, end_id=end_id, pad_id=pad_id)
        if known:
            return known
    raise ValueError(
        f"{stage}: no method can answer with a {type(model).__name__}; give a causal language model with a head"
    )


def load(source: str | Path, **settings: Any) -> PreTrainedModel:
    """The model of any finished stage, or any causal language model of the hub.

    Args:
        source: a folder, or a name on the hub.
        settings: as of `unspoken.backbone.loading.load_pretrained`.

    Raises:
        ValueError: as `load_pretrained`.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    from unspoken.backbone.loading import load_config, load_pretrained

    register_models()
    config = load_config(source)
    causal = AutoModelForCausalLM._model_mapping.get(type(config), None)
    names = {one.__name__ for one in (causal if isinstance(causal, tuple) else (causal,)) if one is not None}
    recorded = [] if config.architectures is None else config.architectures
    if not isinstance(recorded, list) or not all(isinstance(name, str) for name in recorded):
        raise FolderError(f"{source}: config.json names architectures {recorded!r}, no list of names; restore it")
    headless = config.architectures is not None and not names.intersection(recorded)
    return load_pretrained(source, AutoModel if headless else AutoModelForCausalLM, **settings)


def require_answering(model: PreTrainedModel, source: str | Path) -> None:
    """Refuse a model that cannot answer.

    Args:
        source: for the message.

    Raises:
        ValueError: for a reason that its method gives, or would be wrong around its backbone.
    """
    for method in methods():
        method.require_answering(model, source)


def teacher(folder: Path, prompt_format: PromptFormat, *, device: torch.device) -> Teacher | None:
    """What made the latents that a stage learned from, out of the folder of its model; None if it makes none.

    Raises:
        ValueError: as `unspoken.backbone.loading.load_pretrained`.
    """
    for method in methods():
        result = method.teacher(folder, prompt_format, device=device)
        if result is not None:
            return result
    return None
