"""How numbers are written, the same on a terminal and on a page."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

# What moves the cursor, starts a command of the terminal, turns the direction of writing or cannot be encoded.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MINUS = "−"
NO_VALUE = "–"
# What stands for signs of ours on a terminal that has none of them.
_ASCII = str.maketrans("−–—‘’“”·×±│─┌┐└┘├┤┬┴┼", "---''\"\".x~|-+++++++++")


def escaped(text: object) -> str:
    """A text as it stands, control characters but tab and line feed by their numbers: ``\\x1b``."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def _similar(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end].translate(_ASCII)
    return signs.encode("ascii", "backslashreplace").decode(), error.end


def write_every_sign(stream: object) -> None:
    """Let a stream write what its encoding lacks: by a similar sign, or else by number, ``\\u2228``."""
    codecs.register_error("unspoken", _similar)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="unspoken")


def percent(rate: float, digits: int = 2) -> str:
    """``0.9987`` as ``99.87 %``."""
    return f"{bare_percent(rate, digits)} %"


def bare_percent(rate: float, digits: int = 2) -> str:
    """``0.9987`` as ``99.87``, for columns of per cents."""
    return signed_minus(f"{100 * rate:.{digits}f}")


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign unless it rounds to zero."""
    text = f"{100 * difference:+.1f}"
    return text[1:] if float(text) == 0 else signed_minus(text)


def p_value(p: float) -> str:
    """``p = 0.03`` or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def bare_p_value(p: float) -> str:
    """``0.03`` or ``< 0.001``, for columns whose head is p."""
    return p_value(p).removeprefix("p = ").removeprefix("p ")


def quantity(number: float, digits: int = 3) -> str:
    """A large number to three digits with k, M or G: ``298 k``, ``42.5 M``."""
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # Rounding must not print "1000 k" where "1.00 M" is meant.
        if abs(number) >= factor * (1 - 0.5 * 10**-digits):
            return f"{_significant(number / factor, digits)} {unit}"
    return _significant(number, digits)


def duration(seconds: float) -> str:
    """``54 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def coefficient(value: float, digits: int = 2) -> str:
    """A plain number with a true minus sign and no negative zero."""
    return signed_minus(f"{value:.{digits}f}")


def count(number: int, singular: str, plural: str | None = None) -> str:
    """``1 seed``, ``3 seeds``, ``1,000 problems``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def steps(number: float) -> str:
    """A mean number of steps: whole numbers without a fraction."""
    return f"{number:.0f}" if abs(number - round(number)) < 0.005 else f"{number:.2f}"


def joined(words: list[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def signed_minus(text: str) -> str:
    """Typographic minus; a zero that rounding left negative loses its sign."""
    if text.startswith("-"):
        return text[1:] if not text.strip("-0. ") else MINUS + text[1:]
    return text


def _significant(number: float, digits: int) -> str:
    digits_before = len(f"{abs(number):.0f}")
    return signed_minus(f"{number:,.{max(0, digits - digits_before)}f}")


@dataclass(frozen=True)
class Format:
    """How a number is written, alone and as an interval: ``98.00 %`` and ``97.79 – 99.24``."""

    write: Callable[[float], str]
    unit: str = ""
    between: str = " – "

    def __call__(self, value: float) -> str:
        """The number with its unit."""
        return self.write(value) + self.unit

    def interval(self, low: float, high: float) -> str:
        """Both ends without the unit."""
        return f"{self.write(low)}{self.between}{self.write(high)}"


PERCENT = Format(bare_percent, " %")
PERCENT_1 = Format(partial(bare_percent, digits=1), " %")
BARE_PERCENT_1 = Format(partial(bare_percent, digits=1))
POINTS = Format(points, between=" to ")
TWO_DECIMALS = Format(coefficient)
THREE_DECIMALS = Format(partial(coefficient, digits=3))
ONE_DECIMAL = Format(partial(coefficient, digits=1))
STEPS = Format(steps)
# To three digits and no more than two decimals, without the unit.
MILLISECONDS = Format(lambda seconds: _significant(1000 * seconds, 3))
MEGAFLOPS = Format(lambda flops: _significant(flops / 1e6, 3))
QUANTITY = Format(quantity)
P_VALUE = Format(bare_p_value)
