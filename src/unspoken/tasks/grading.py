"""Graders of answers as texts: ours, by name, and a user's own function.

Every grader reads what is inside the last complete box of a text; a text without a box is wrong.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import threading
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unspoken.tasks.problems import ReasoningProblem

Grader: TypeAlias = Callable[[str, ReasoningProblem], bool]

_TIME_LIMIT = 5  # seconds for one comparison: a model may well write 9^{9^9}
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:e[-+]?\d{1,3})?|\.\d+(?:e[-+]?\d{1,3})?"
_NUMBER = re.compile(rf"([-+]?)({_DECIMAL})(?:/({_DECIMAL}))?%?", re.ASCII | re.IGNORECASE)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Words after a number are units, unless they say something about the number.
_COUNTED = re.compile(r"(?P<number>\S+(?:\s+\d+/\d+)?)(?P<words>(?:\s+[a-z]{2,}){0,3})", re.ASCII | re.IGNORECASE)
_NO_UNITS = {
    "pi",
    "percent",
    "dozen",
    "half",
    "hundred",
    "squared",
    "cubed",
    "plus",
    "minus",
    "times",
    "over",
    "and",
    "or",
}
_NO_UNITS |= {"to", "sqrt", "mod", "log", "ln", "exp", "sin", "cos", "tan"}
# Powers of powers, and factorials of large numbers: nobody can wait for their digits.
_TOWER = re.compile(r"(?:\^|\*\*)[^+\-,=]*(?:\^|\*\*)|(?:\^|\*\*)\s*[{(]?\s*\d{4,}|\d{4,}\s*!|!\s*[)}]*\s*!")
_CURRENCY = re.compile(r"^([-+]?)[$€£]")
_CHOICE = re.compile(r"[(\[]?([a-z]|\d{1,2})(?:[)\].:](?:\s.*)?)?", re.ASCII | re.DOTALL)
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def boxed(text: str) -> str | None:
    """The text inside the last complete ``\\boxed{...}``, whose braces balance; None if there is none."""
    for box in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        depth = 1
        for brace in re.compile(r"\\.|[{}]").finditer(text, box.end()):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)  # an escaped brace is not a brace
            if depth == 0:
                return text[box.end() : brace.start()]
    return None


@lru_cache(maxsize=2**16)
def _same_mathematics(given: str, answer: str) -> bool:
    """Whether two texts are the same, or mean the same number or expression."""
    given, answer = given.strip(), answer.strip()
    if given == answer:
        return True
    if _same_count(given, answer):
        return True
    if _TOWER.search(given) or _TOWER.search(answer):
        return False
    # Words are compared as they are: read as a product of letters, a word would equal its anagrams.
    if (given + answer).isalpha() and len(given) > 1 and len(answer) > 1:
        return False
    from math_verify import parse, verify

    # Math-Verify's time limit is a signal, which Python delivers to the main thread only.
    seconds = _TIME_LIMIT if threading.current_thread() is threading.main_thread() else None
    # Both are in a box: outside one Math-Verify would look for an answer among other words.
    right, read = (parse(f"\\boxed{{{text}}}", parsing_timeout=seconds) for text in (answer, given))
    return bool(verify(right, read, timeout_seconds=seconds))


def number_of(text: str) -> Fraction | None:
    """The number that a text is: ``-3``, ``1,234.50``, ``$18``, ``4/5``, ``2e3``, ``50%`` (which is 50); else None."""
    bare = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-").replace("\\", "").replace("{,}", ",")
    match = _NUMBER.fullmatch(_CURRENCY.sub(r"\1", bare.strip()))
    if match is None:
        return None
    sign, above, below = match.groups()
    try:
        value = Fraction(above.replace(",", "")) / Fraction((below or "1").replace(",", ""))
    except (ValueError, ZeroDivisionError):  # thousands of digits, or nothing to divide by
        return None
    return -value if sign == "-" else value


def _count(text: str) -> Fraction | None:
    """The number that a person writes: as `number_of`, and ``1 1/2``, ``2.88 million``, ``18 people``, ``73.``."""
    bare = re.sub(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}", r" \1 ", text).strip().removesuffix(".").rstrip()
    match = _COUNTED.fullmatch(bare)
    if match is None or "%" in bare:
        return None
    words = match["words"].lower().split()
    scale = _SCALES.get(words[0], 1) if words else 1
    if _NO_UNITS.intersection(words) or any(word in _SCALES for word in words[1:]):
        return None
    whole, _, part = match["number"].partition(" ")
    value, more = number_of(whole), number_of(part.strip() or "0")
    if value is None or more is None:
        return None
    return scale * (value - more if whole.startswith("-") else value + more)


def _same_count(given: str, answer: str) -> bool:
    """Whether a text is the number that the answer is, whatever it counts; an answer with a unit keeps it."""
    return number_of(answer) is not None and "%" not in answer and _count(given) == number_of(answer)


def plain(text: str) -> str:
    """A text in one spelling: without case, repeated spaces, variants of letters and a full stop at the end."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split()).removesuffix(".").rstrip()


def choice_of(text: str) -> str | None:
    """The label of a choice: ``B`` of "b", "(B)", "B." or "B) Paris"; None if there is none."""
    match = _CHOICE.fullmatch(text.strip().lower())
    return match[1].upper() if match else None


def _same(form: Callable[[str], object]) -> Callable[[str, str], bool]:
    """Whether two texts have one form, which is None of a text that cannot be an answer."""
    return lambda given, answer: form(given) is not None and form(given) == form(answer)


_GRADERS: dict[str, Callable[[str, str], bool]] = {
    "number": _same(number_of),
    "math": _same_mathematics,
    "string": _same(lambda text: plain(text) or None),
    "choice": _same(choice_of),
}


def check_name(name: str) -> None:
    """Refuse a name that is neither one of ours nor ``module:function``, by a ValueError; nothing is imported."""
    if name not in _GRADERS and not _FUNCTION.fullmatch(name):
        raise ValueError(f"grader is {name!r}; choose one of {', '.join(_GRADERS)}, or your own as module:function")


def answer_fault(name: str, answer: str) -> str | None:
    """Why a right answer could not be recognised by a grader of this name; None if it can."""
    if boxed(f"\\boxed{{{answer}}}") != answer:
        return f"the answer {answer!r} has braces that do not balance, so no box can hold it"
    if name == "number" and number_of(answer) is None:
        return f"the answer {answer!r} is not a number, which the grader 'number' needs"
    if name == "choice" and choice_of(answer) is None:
        return f"the answer {answer!r} is not a label such as B or (B), which the grader 'choice' needs"
    if not plain(answer):
        return f"the answer {answer!r} is blank"
    return None


def grader_of(name: str) -> Grader:
    """The grader of a name.

    A name like ``module:function`` imports the module and so runs it: use only recipes that you trust. Modules of the
    current folder are known too, after all that are installed.

    Raises:
        ValueError: there is no such grader, it cannot be imported, or it does not take an answer and a problem.
    """
    check_name(name)
    if name in _GRADERS:
        same = _GRADERS[name]
        return lambda given, problem: same(given, problem.answer)
    imported = _imported(name)

    def own(given: str, problem: ReasoningProblem) -> bool:
        try:
            right = imported(given, problem)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"grader {name!r} failed on problem {problem.key}: {reason}") from None
        if not isinstance(right, bool | np.bool_):
            raise ValueError(f"grader {name!r} gave {right!r} for problem {problem.key}; it must give True or False")
        return bool(right)

    return own


def _imported(name: str) -> Callable[[str, ReasoningProblem], Any]:
    """The function that ``module:function`` names."""
    module, _, function = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # it stays, since a function may import its neighbours later
    try:
        imported: Any = getattr(importlib.import_module(module), function)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"grader {name!r} cannot be imported ({reason}); start where {module} lies, or put its folder on PYTHONPATH"
        ) from None
    if not callable(imported):
        raise ValueError(f"grader {name!r} is {type(imported).__name__}; it must be a function of (answer, problem)")
    try:
        inspect.signature(imported).bind("", None)
    except TypeError as error:
        raise ValueError(f"grader {name!r} must be a function of (answer, problem): {error}") from None
    except ValueError:  # some functions written in C have no signature
        pass
    return imported


def name_of(function: Callable[..., Any]) -> str:
    """The name ``module:function`` by which a function is recorded and imported again.

    Raises:
        ValueError: it cannot be imported by a name, as a lambda or a function inside of another one.
    """
    module, qualified = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    name = f"{module}:{qualified}"
    if not _FUNCTION.fullmatch(name) or getattr(sys.modules.get(str(module)), qualified, None) is not function:
        raise ValueError(f"grader is {function!r}, which has no name to import it by; define it at the top of a module")
    return name


def graded(texts: Sequence[str], problems: Sequence[ReasoningProblem]) -> NDArray[np.bool_]:
    """Grade texts.

    A text is right if the content of its last box is the answer by the grader that its problem names:

    - "math": letter by letter, or in value as Math-Verify has it (so ``18.0``, ``\\frac{36}{2}`` and ``9*2`` all mean
      18, and numbers agree up to the sixth decimal place), or as a person writes a number (``18 dollars``, ``1 1/2``,
      ``2.88 million``). Powers of powers are compared letter by letter alone. A comparison that takes longer than five
      seconds is wrong; outside the main thread nothing limits it.
    - "number": the same number, exactly; see `number_of`.
    - "string": the same text, apart from case, spaces, the form of letters and a full stop at the end.
    - "choice": the same label; see `choice_of`.
    - ``module:function``: it returns True for the content of the box and the problem.

    A problem whose answer is not known has no right text.

    Args:
        texts: the full output for each problem, ``[B]``.
        problems: ``[B]``.

    Returns:
        ``[B]``, true where right.

    Raises:
        ValueError: there are not as many texts as problems, or the grader cannot be used.
    """
    if len(texts) != len(problems):
        raise ValueError(f"{len(texts)} texts for {len(problems)} problems; every problem needs one text")
    insides = [boxed(text) for text in texts]
    graders = {name: grader_of(name) for name in {problem.grader for problem in problems}}
    right = [
        inside is not None and bool(problem.answer) and graders[problem.grader](inside.strip(), problem)
        for inside, problem in zip(insides, problems, strict=True)
    ]
    return np.array(right, dtype=np.bool_)
