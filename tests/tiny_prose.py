"""A small corpus of made-up sentences, and a Reasoner with a Talker that decodes it without fault."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from tiny_models import tiny_pair
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.methods import catalogue
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.reasoning.picking import Sample, Sampler
from unspoken.reasoning.system import System
from unspoken.tasks.prose import PAD, ProseConfig, ProseTask

VOCABULARY, PRIME = 300, 4
# fmt: off
WORDS = [
    "river", "stone", "morning", "letter", "garden", "winter", "bridge", "silver", "candle", "harbour", "mountain",
    "shadow", "village", "yellow", "window", "under", "over", "behind", "slowly", "never", "always", "quietly",
    "carries", "follows", "opens", "watches", "remembers", "a", "the", "that", "every",
]
# fmt: on


def sentence(random: Random) -> str:
    """Five to fourteen words."""
    words = random.choices(WORDS, k=random.randint(5, 14))
    return f"{' '.join(words).capitalize()}{random.choice('.!?')}"


def paragraphs(count: int, seed: int = 0) -> list[str]:
    """One to four sentences each."""
    random = Random(seed)
    return [" ".join(sentence(random) for _ in range(random.randint(1, 4))) for _ in range(count)]


def corpus(folder: Path, count: int = 300) -> Path:
    """A file of paragraphs."""
    path = folder / "corpus.txt"
    path.write_text("\n\n".join(paragraphs(count)))
    return path


def prose_task(folder: Path) -> ProseTask:
    """The corpus as a task."""
    return ProseConfig(
        train=str(corpus(folder)), vocabulary=VOCABULARY, length=24, sentence_tokens=(14, 30), prime=PRIME
    ).build()


def pair_of(variant: str) -> JepaReasonerForCausalLM:
    """Untrained, for sentences of the task."""
    return tiny_pair(variant, vocabulary=VOCABULARY)


def system_of(model: JepaReasonerForCausalLM) -> System:
    """As it answers."""
    return catalogue.systems(model, stage=model.config.talker_kind, max_answer=32)[0]


def faithful(monkeypatch: pytest.MonkeyPatch, variant: str = "dual") -> JepaReasonerForCausalLM:
    """A Reasoner whose latents name the next token, and a Talker that gives what they name."""
    model = pair_of(variant)

    def read(ids: Tensor, mask: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(ids.roll(-1, dims=1), VOCABULARY).float()

    def speak(chain: LatentChain, *, sample: Sample | None = None) -> Tensor:
        scores = torch.nn.functional.one_hot(chain.latents.argmax(dim=-1), VOCABULARY).float()
        tokens = (sample or Sampler())(scores, torch.arange(len(chain)), 0)
        return torch.where(chain.mask, tokens, PAD)

    monkeypatch.setattr(model.reasoner, "read", read)
    monkeypatch.setattr(model, "speak", speak)
    return model
