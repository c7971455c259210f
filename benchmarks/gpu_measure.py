"""What the GPU benchmarks measure on, and how: sizes, turns, and notes that survive whatever comes after them."""

from __future__ import annotations

import json
import statistics
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timing import interleaved
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from unspoken.training.shapes import published_shape

SHAPE = "HuggingFaceTB/SmolLM2-135M-Instruct"
Found = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        device: "cuda" or "cpu".
        smaller: of the model's configuration, what is not as published.
        product: rows and columns of the large matrix product.
        rows: of a training batch; the first number that fits into memory is taken.
        batches: of decoding and answering.
        prompt, steps: tokens before, and steps of, a chain that is timed.
        rounds: of every measurement.
    """

    device: str
    smaller: Found
    product: int
    rows: tuple[int, ...]
    batches: tuple[int, ...]
    prompt: int
    steps: int
    rounds: int

    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        config = published_shape(SHAPE)
        assert config is not None
        config.update({**self.smaller, "eos_token_id": None, "pad_token_id": 0})
        return config

    def model(self, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
        """The model with random weights."""
        torch.manual_seed(0)
        with torch.device(self.device):
            model = LlamaForCausalLM._from_config(self.config(), attn_implementation="sdpa", dtype=dtype)
        return model.eval()

    def ids(self, batch: int, length: int) -> Tensor:
        """Random prompts."""
        return torch.randint(4, self.config().vocab_size, (batch, length), device=self.device)


FULL = Size(
    device="cuda", smaller={}, product=8192, rows=(256, 128, 64), batches=(1, 32, 256), prompt=64, steps=64, rounds=5
)
_TOY_SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOY = Size(device="cpu", smaller=_TOY_SHAPE, product=64, rows=(4,), batches=(1, 2), prompt=5, steps=4, rounds=2)


# --- measuring -------------------------------------------------------------------------------------------------------


def text_of(error: BaseException) -> str:
    """What went wrong and where, for somebody who cannot try again."""
    where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-6:]]
    return f"{type(error).__name__}: {str(error)[:1500]} ({' < '.join(reversed(where))})"


class Notes:
    """What was found so far in one part; with all parts before it, it is printed after every entry."""

    def __init__(self, everything: Found, part: str) -> None:
        self._everything = everything
        self.found: Found = everything.setdefault(part, {})

    def add(self, name: str, measure: Callable[[], Any]) -> Any:
        """Measure something, or record why it cannot be measured."""
        try:
            self.found[name] = measure()
        except Exception as error:  # whatever it is, the next measurement may work
            self.found[name] = {"error": text_of(error)}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(json.dumps(self._everything), flush=True)
        return self.found[name]


def waited(device: str, call: Callable[[], object]) -> Callable[[], None]:
    """A call that returns when the device is done."""

    def call_and_wait() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return call_and_wait


def turns(size: Size, makers: dict[str, Callable[[], Callable[[], object]]]) -> tuple[dict[str, list[float]], Found]:
    """Seconds of contenders that take turns, and errors of those that cannot run."""
    able: dict[str, Callable[[], None]] = {}
    errors: Found = {}
    for name, make in makers.items():
        try:
            call = waited(size.device, make())
            call()
            able[name] = call
        except Exception as error:  # the others can still be compared
            errors[name] = {"error": text_of(error)}
    return interleaved(able, size.rounds), errors


def repeated(size: Size, call: Callable[[], object], rounds: int | None = None) -> float:
    """Median seconds of one call."""
    return statistics.median(interleaved({"": waited(size.device, call)}, rounds or size.rounds)[""])
