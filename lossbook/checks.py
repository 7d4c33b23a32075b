"""Refusals of bad input: they say what was given, what is allowed, and the nearest name."""

from __future__ import annotations

import difflib
import numbers
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy

LARGEST = sys.float_info.max  # an integer beyond this has no float


def check_name(what: str, name: object, allowed: Iterable[str]) -> None:
    """Refuse, with a ValueError that gives the nearest name, a `name` that is not among `allowed`."""
    allowed = tuple(allowed)
    if name not in allowed:
        spelt = {str(one).lower(): str(one) for one in allowed}
        near = difflib.get_close_matches(str(name).lower(), spelt, n=1, cutoff=0.5)
        hint = f" Did you mean {spelt[near[0]]!r}?" if near else ""
        raise ValueError(f"unknown {what} {name!r}; allowed: {', '.join(map(str, allowed)) or 'none'}.{hint}")


def check_range(what: str, value: object, interval: str) -> None:
    """Refuse a value that is no finite number in an interval written as in mathematics, for example "(0, 1]"."""
    if not _inside(value, interval):
        raise ValueError(f"{what}={value!r} was given; allowed: a number in {interval}")


def _inside(value: object, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    if isinstance(value, numpy.floating):
        value = float(value)  # a narrower type would overflow at LARGEST
    # compared, not asked of `math`, so that torch.compile follows it for a number that changes
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
    above = number and (value > low or (interval[0] == "[" and value == low))
    below = number and (value < high or (interval[-1] == "]" and value == high))
    return bool(above and below)


def check_whole(what: str, value: object, interval: str) -> int:
    """The value, also NumPy's, as an int: `check_range` of a whole number, which a table of 64 bits can hold."""
    if not _inside(value, interval) or not isinstance(value, numbers.Integral) or value >= 2**63:
        raise ValueError(f"{what}={value!r} was given; allowed: a whole number in {interval}, below 2^63")
    return int(value)


def count_of_environment(name: str, most: int = sys.maxsize) -> int | None:
    """The whole number from 1 that an environment variable holds; None where it is not set. ValueError for another."""
    value = os.environ.get(name) or None
    if value is not None and not (value.isdecimal() and 0 < int(value) <= most):
        upwards = "" if most == sys.maxsize else f" to {most}"
        raise ValueError(f"{name}={value!r} was given; allowed: a whole number from 1{upwards}")
    return value and int(value)


def check_path(what: str, path: str | os.PathLike) -> Path:
    """The path, ~ and ~user written out; ValueError where there is no such user, or it cannot be printed or stored."""
    try:
        found = Path(path).expanduser()
        str(found).encode()
    except (RuntimeError, UnicodeEncodeError) as error:
        raise ValueError(
            f"{what}={str(path)!r} was given; allowed: a path in UTF-8, of a user there is ({error})"
        ) from error
    return found


def check_fields(given: object, names: Mapping[str, Iterable[str]], intervals: Mapping[str, str]) -> None:
    """`check_name` and `check_range` of the attributes of an object, by their name."""
    for name, allowed in names.items():
        check_name(name, getattr(given, name), allowed)
    for name, interval in intervals.items():
        check_range(name, getattr(given, name), interval)
