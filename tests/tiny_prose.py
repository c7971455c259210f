"""A small corpus of made-up sentences."""

from __future__ import annotations

from pathlib import Path
from random import Random

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
