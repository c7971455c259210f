"""A conversation with a model: every answer follows from all turns before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from unspoken.reasoning.system import System
from unspoken.reasoning.text_answers import TextAnswer


def converse(
    system: System, messages: Iterable[str], *, instruction: str = "", max_tokens: int | None = None
) -> Iterator[TextAnswer]:
    """Answer one message after another.

    Args:
        system: see `unspoken.load`.
        messages: of the user; the next one is taken when the last one is answered.
        instruction: the system turn at the start; empty for none.
        max_tokens: cap of each answer.

    Raises:
        ValueError: the model holds no conversations, or as `System.chat`.
    """
    try:
        system.texts.require_turns()
    except ValueError as error:
        raise ValueError(f"{error}, by 'unspoken generate'") from None
    turns = [{"role": "system", "content": instruction}]
    for message in messages:
        turns.append({"role": "user", "content": message})
        answer = system.chat(turns, max_tokens=max_tokens)
        turns.append({"role": "assistant", "content": answer.text})
        yield answer
