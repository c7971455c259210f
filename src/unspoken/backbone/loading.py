"""Strict loading of every model, configuration and tokenizer, from a folder or the hub.

transformers only warns of missing weights, reads adapters and pickles in a folder, offers to run Python code from it,
and raises various errors for damaged files. Here each of these is a `FolderError` of one line. A folder with a manifest
is compared with it first. In a folder without one, a change that leaves a valid model goes unnoticed: other numbers in
the weights, another base of the positions, the tokenizer of another model (see docs/footguns.md).
"""

from __future__ import annotations

import copy
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)

from unspoken.architecture import MOST_LAYERS
from unspoken.backbone.around import from_config
from unspoken.backbone.folder import MANIFEST, check_keys, verify_published
from unspoken.storage import FolderError, one_line_error, read_json

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# Names on the hub to folders in its cache.
_snapshots: dict[str, Path] = {}
_SAFE = (".safetensors", ".safetensors.index.json")
# Keys that count what a model has many of: heads of attention, experts, labels.
_COUNTS = re.compile(r"layers?$|depth$|blocks?$|heads|experts|labels|stages|streams|codebooks")
_LARGEST_BUFFERS = 2**31  # numbers; masks over all positions are the largest
_RESTORE = "restore it, or remove and download it again"
_LOOK_AT = f"look at its {CONFIG_NAME}, restore it or choose another model"


def load_config(source: str | Path) -> PreTrainedConfig:
    """The configuration of a model.

    Args:
        source: a folder, or a name on the hub.

    Raises:
        ValueError: there is none, it is damaged or was changed, transformers does not know its kind of model, or it
            asks for code out of the folder or off the hub.
    """
    folder = _folder(source)
    settings = _json(folder / CONFIG_NAME)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if "auto_map" in settings:
            raise FolderError(_own_code(source))
        raise FolderError(
            f"{folder / CONFIG_NAME}: model_type is {kind!r}, which this version of transformers does not know; "
            "upgrade transformers, or choose another model"
        )
    _refuse_counts(folder / CONFIG_NAME, settings)
    for kernel in _downloads(settings):
        raise FolderError(
            f"{folder / CONFIG_NAME} asks for {kernel!r}, code off the hub, which is never run; remove that key"
        )
    with _one_line(source, folder, _LOOK_AT):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config.name_or_path = str(source)
    return config


def load_tokenizer(source: str | Path, **settings: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Args:
        source: a folder, or a name on the hub.
        settings: passed on, for instance ``padding_side``.

    Raises:
        ValueError: there is none, a file of it is damaged or was changed, or it asks for code.
    """
    folder = _folder(source)
    with _one_line(source, folder, "look at its tokenizer.json and its configurations, restore what was changed"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, **_pinned(source, folder), **settings
        )
        tokenizer("1 + 1 \N{SNOWMAN}")  # fails where tokenizer and vocabulary do not belong together
    return tokenizer


def load_answer_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that answers: it names the end of an answer, and pads on the left.

    Raises:
        ValueError: as `load_tokenizer`, or nothing ends an answer.
    """
    tokenizer = load_tokenizer(source, padding_side="left")
    if tokenizer.eos_token_id is None:
        raise FolderError(f"{source}: its tokenizer has no end-of-sequence token; restore tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_pretrained(source: str | Path, auto: Any = AutoModelForCausalLM, **settings: Any) -> PreTrainedModel:
    """A model with all its weights and no others.

    Args:
        source: a folder, or a name on the hub.
        auto: the class, or auto class, of transformers that reads it.
        settings: passed on: ``dtype``, ``attn_implementation``, ``device_map`` and so on.

    Raises:
        ValueError: as `load_config`; or a file differs from the manifest, is damaged or not listed; a weight is
            missing, unexpected, wrongly shaped or not finite; there are no safetensors; or it is an adapter alone.
    """
    config, folder = load_config(source), _folder(source)
    if os.path.lexists(folder / MANIFEST):
        verify_published(folder)
    _refuse_adapters(source, folder)
    weights = _weights(source, folder, config)
    with _one_line(source, folder, _LOOK_AT), _no_table():
        _refuse_giants(_shards(weights), auto, config)
        # The configuration is passed on, since its own "attn_implementation" would overrule the caller's.
        model, info = auto.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # `check_keys` names them
            output_loading_info=True,
            **_pinned(source, folder),
            **settings,
        )
    check_keys(source, info)
    # transformers silently replaces a file that it cannot read.
    if os.path.lexists(folder / GENERATION_CONFIG_NAME):
        _json(folder / GENERATION_CONFIG_NAME)
    if not getattr(model, "is_quantized", False):
        _refuse_integers(_shards(weights), model)
    _refuse_infinite(source, model)
    assert isinstance(model, PreTrainedModel)
    return model


# --- files ------------------------------------------------------------------------------------------------------------


def _folder(source: str | Path) -> Path:
    """The folder, its files but for the weights compared with the manifest; of a name on the hub, that of the cache.

    Raises:
        ValueError: there is nothing of that name, or a file differs from the manifest.
    """
    folder = Path(source)
    if folder.is_dir():
        if os.path.lexists(folder / MANIFEST):
            verify_published(folder, weights=False)
        return folder
    if os.path.lexists(folder):
        raise FolderError(f"{folder} is a file; give the folder of a model, with config.json and model.safetensors")
    if isinstance(source, Path) or not _HUB_NAME.fullmatch(source):
        raise FolderError(f"there is no folder {source}; give one with config.json and model.safetensors")
    known = _snapshots.get(source)
    if known is not None and (known / CONFIG_NAME).is_file():
        return known
    with _one_line(source, None, "give a folder, or a model's name while the hub can be reached"):
        config = cached_file(source, CONFIG_NAME)
    if config is None:
        raise FolderError(f"{source} has no {CONFIG_NAME} on the hub; choose a model of transformers")
    _snapshots[source] = Path(config).parent
    return _snapshots[source]


def _pinned(source: str | Path, folder: Path) -> dict[str, Any]:
    """The cached commit of a name on the hub, so that all files are of one commit and fewer requests are sent."""
    return {} if Path(source).is_dir() else {"revision": folder.name}


def _weights(source: str | Path, folder: Path, config: PreTrainedConfig) -> Path:
    """The file of the weights, or the index of several; from the hub it is downloaded here.

    Raises:
        ValueError: there is none, or more than one.
    """
    local = Path(source).is_dir()
    for shard in sorted(folder.glob("shard-*-model-*.safetensors")):
        raise FolderError(
            f"{shard} is of a distributed checkpoint, which cannot be loaded; save the model with save_pretrained"
        )
    chosen = getattr(config, "transformers_weights", None)
    files = []
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) if chosen is None else (str(chosen),):
        with _one_line(source, folder, _RESTORE):
            path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **_pinned(source, folder))
        files += [] if path is None else [Path(path)]
        if files and not local:
            break
    if not files and local and not list(folder.glob("*.bin")):
        raise FolderError(f"{folder / SAFE_WEIGHTS_NAME} is missing; {_RESTORE}")
    if not files or not files[0].name.endswith(_SAFE):
        raise FolderError(
            f"{source} has no {SAFE_WEIGHTS_NAME}; a pickle (pytorch_model.bin) is never read, since it can run code: "
            "convert one that you trust, AutoModelForCausalLM.from_pretrained(OLD, use_safetensors=False)"
            ".save_pretrained(NEW)"
        )
    if len(files) > 1:
        raise FolderError(
            f"{folder} holds both {files[0].name} and {files[1].name}; remove the one that is not the model's"
        )
    for file in _shards(files[0]) if local else ():
        if not file.is_file():
            raise FolderError(f"{file} is missing, but {files[0]} lists it; {_RESTORE}")
    return files[0]


def _shards(weights: Path) -> list[Path]:
    """The files that hold the tensors."""
    if weights.suffix != ".json":
        return [weights]
    places = _json(weights).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FolderError(f"{weights} is damaged: it lists no weights; {_RESTORE}")
    return [weights.parent / name for name in sorted(set(map(str, places.values())))]


# --- refusals ---------------------------------------------------------------------------------------------------------


def _refuse_adapters(source: str | Path, folder: Path) -> None:
    with _one_line(source, folder, _RESTORE):
        adapter = find_adapter_config_file(str(source), **_pinned(source, folder))
    if adapter is not None:
        raise FolderError(
            f"{source} is an adapter ({adapter}), and adapters cannot be loaded; merge it into its base model and save "
            "that (merge_and_unload and save_pretrained of peft)"
        )


def _refuse_counts(path: Path, settings: Any, name: str = "") -> None:
    """Lists of this length are made as soon as a configuration is read."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            _refuse_counts(path, value, str(key))
    elif isinstance(settings, list):
        for value in settings:
            _refuse_counts(path, value, name)
    elif isinstance(settings, int | float) and _COUNTS.search(name) and not settings <= MOST_LAYERS:
        raise FolderError(f"{path}: {name} is {settings}, and no model has more than {MOST_LAYERS}; {_RESTORE}")


def _refuse_giants(files: list[Path], auto: Any, config: PreTrainedConfig) -> None:
    """transformers allocates every weight before it compares shapes: with a digit too many, memory runs out."""
    if not all(file.is_file() for file in files):
        return  # not yet downloaded
    held, tensors = 0, 0
    for file in files:
        with safe_open(file, framework="pt") as opened:
            shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
        held, tensors = held + sum(map(math.prod, shapes)), tensors + len(shapes)
    # Quantised weights are packed, the smallest sixteen to a number, and have scales beside them.
    most = held * (4 if getattr(config, "quantization_config", None) is None else 32)
    needed = Counter[str]()

    def count(kind: str, _: Any, __: str, tensor: Tensor | None) -> None:
        needed[kind] += 0 if tensor is None else tensor.numel()
        needed["tensors"] += kind == "weights"
        if needed["weights"] > most or needed["tensors"] > 4 * tensors + 1000 or needed["buffers"] > _LARGEST_BUFFERS:
            raise FolderError(
                f"{files[0].parent / CONFIG_NAME} describes a model of {needed['weights']} weights or more, but there "
                f"are {held}; restore the one that was changed"
            )

    # While it is being built, since a model of so many layers takes as long as it likes.
    hooks = (
        register_module_parameter_registration_hook(partial(count, "weights")),
        register_module_buffer_registration_hook(partial(count, "buffers")),
    )
    try:
        with torch.device("meta"):
            from_config(auto, copy.deepcopy(config), dtype=torch.float32)
    finally:
        for hook in hooks:
            hook.remove()


def _refuse_integers(files: list[Path], model: PreTrainedModel) -> None:
    """A damaged header may call the bytes of a float an integer, which transformers would cast."""
    expected = model.state_dict()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                weight = expected.get(name, expected.get(f"{model.base_model_prefix}.{name}"))
                dtype = opened.get_slice(name).get_dtype()
                if weight is not None and weight.is_floating_point() and not dtype.startswith(("F", "BF")):
                    raise FolderError(f"{file} holds {name} as {dtype}, but floating point is expected; restore it")


def _refuse_infinite(source: str | Path, model: PreTrainedModel) -> None:
    for name, weight in model.state_dict().items():
        # A finite sum proves finite values in one pass. Types of one byte belong to quantised models.
        if not weight.is_floating_point() or weight.element_size() == 1 or weight.is_meta:
            continue
        if not torch.isfinite(weight.sum()) and not torch.isfinite(weight).all():
            raise FolderError(f"{source}: {name} holds values that are not finite; restore the weights or train again")


def _downloads(settings: Any, *, chooses: bool = False) -> Iterator[str]:
    """Kernels on the hub, which a configuration may name as the implementation of attention or of experts."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from _downloads(value, chooses=chooses or "_implementation" in name)
    elif isinstance(settings, list):
        for value in settings:
            yield from _downloads(value, chooses=chooses)
    elif chooses and isinstance(settings, str) and "/" in settings:
        yield settings


# --- errors in one line -----------------------------------------------------------------------------------------------


@contextmanager
def _one_line(source: str | Path, folder: Path | None, remedy: str) -> Iterator[None]:
    """Turn an error of transformers, of any type, into one that names the damaged file."""
    with one_line_error(f"{source} cannot be loaded", remedy, lambda error: isinstance(error, torch.OutOfMemoryError)):
        try:
            yield
        except (FolderError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if "trust_remote_code" in str(error):
                raise FolderError(_own_code(source)) from error
            if folder is not None:
                _name_the_damage(folder)
            raise


@contextmanager
def _no_table() -> Iterator[None]:
    """Suppress the table of wrong weights that transformers logs; `check_keys` names them in one line."""
    log = logging.getLogger("transformers.modeling_utils")

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)


def _own_code(source: str | Path) -> str:
    return (
        f"{source} needs Python code of its own (auto_map), which is never run; choose a model that transformers "
        "knows without it"
    )


def _name_the_damage(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        _json(path)
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise FolderError(f"{path} is damaged: {error}; {_RESTORE}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path, _RESTORE)
    except FileNotFoundError:
        raise FolderError(f"{path} is missing; give the folder of a model, or restore it") from None
    except OSError as error:
        raise FolderError(f"{path} cannot be read: {error}; {_RESTORE}") from None
    if not isinstance(content, dict):
        raise FolderError(f"{path} is damaged: it holds no JSON object; {_RESTORE}")
    return content
