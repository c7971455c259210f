"""Chat templates are programs that come with models of strangers, so they are rendered within limits.

transformers renders them with jinja2 in a sandbox without imports, files and attributes, but a template can still run
for ever and fill the memory. Here a watcher thread stops it, in whatever thread it is rendered.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import nodes

DATE = "26 Jul 2024"  # in every prompt whose template prints the day
SECONDS = 5.0  # templates of the hub take milliseconds
GIBIBYTES = 1.0  # that the process may grow by meanwhile
_LARGEST = 10**5  # number in a template; ``range`` of the sandbox has the same limit
_STATM = Path("/proc/self/statm")


class _Exceeded(BaseException):
    """Derives from BaseException so that ``except Exception`` in jinja2 or transformers cannot swallow it."""


def render(
    tokenizer: Any,
    turns: Sequence[Mapping[str, Any]],
    template: str | None = None,
    *,
    refused: str = "these turns",
    **settings: Any,
) -> str:
    """Turns of a chat as one text.

    Args:
        tokenizer: whose template it is.
        turns: mappings with ``role`` and ``content``.
        template: in place of the tokenizer's own.
        refused: names the turns in the message.
        settings: of ``apply_chat_template``, for instance ``add_generation_prompt``.

    Raises:
        ValueError: the template is none, refuses the turns, or takes more than five seconds or a gibibyte.
    """
    try:
        source = tokenizer.get_chat_template() if template is None else template
        if prints_date(source):
            # Labels and resumed runs need the same prompts every day.
            source = f"{{% macro strftime_now(format) %}}{DATE}{{% endmacro %}}{source}"
        with _limited():
            _refuse_large_numbers(source)
            text = tokenizer.apply_chat_template(turns, chat_template=source, tokenize=False, **settings)
    except _Exceeded:
        message = f"takes more than {SECONDS:.0f} seconds or {GIBIBYTES:.0f} GiB for one prompt"
    except MemoryError:
        message = "takes more memory than there is"
    except Exception as error:  # whatever a program raises
        message = f"refuses {refused} ({' '.join(str(error).split()) or type(error).__name__})"
    else:
        return str(text)
    raise ValueError(f"the tokenizer's chat template {message}; set its chat_template to null or to one that takes it")


def prints_date(template: str | None) -> bool:
    """Whether a template asks for the day."""
    return template is not None and "strftime_now" in template


def _refuse_large_numbers(source: str) -> None:
    """One operation on them could fill the memory before the watcher looks."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    tree = _compile_jinja_template(source).environment.parse(source)
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, int | float) and abs(constant.value) > _LARGEST:
            raise ValueError(f"it holds the number {constant.value}, and templates count to {_LARGEST}")
    if tree.find(nodes.Pow) is not None:
        raise ValueError("it raises to a power")


def _resident() -> int:
    """Bytes of memory that the process holds; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


@contextmanager
def _limited() -> Iterator[None]:
    """Raise `_Exceeded` in this thread once it takes too long or too much."""
    thread, done, lock = ctypes.c_ulong(threading.get_ident()), threading.Event(), threading.Lock()
    began, before = time.monotonic(), _resident()

    def watch() -> None:
        while not done.wait(0.05):
            if time.monotonic() - began > SECONDS or _resident() - before > GIBIBYTES * 2**30:
                with lock:
                    if not done.is_set():
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_Exceeded))
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        with lock:
            done.set()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)  # one that has not been raised yet
