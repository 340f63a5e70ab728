"""Checks and messages that follow from the annotated types of a msgspec struct.

msgspec checks types and `msgspec.Meta` bounds when it decodes a struct, but not when Python code
constructs one, and its messages do not show the value. A struct declares the bounds of a field
once, in its type, and calls `check_bounds(self, error)` in `__post_init__`:

    class Options(msgspec.Struct):
        n: Annotated[int, msgspec.Meta(ge=1, le=128)] = 1

        def __post_init__(self) -> None:
            check_bounds(self, OptionError)

`Options(n=0)` then raises OptionError("n", "is 0, expected an integer at least 1 and at most 128").
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect


@dataclass(frozen=True)
class Bounds:
    """The values that a type accepts."""

    accepted: str  # "an integer at least 1 and at most 128"; of a Literal, its values sorted
    admits: Callable[[Any], bool]
    # What is wrong with a value that is not admitted: "is 0, expected an integer at least 1"
    explain: Callable[[Any], str]


def check_bounds(struct: msgspec.Struct, error: Callable[[str, str], Exception]) -> None:
    """Raise `error(field, rest of the message)` for a value that the field's type refuses."""
    for name, bounds in field_bounds(type(struct)).items():
        value = getattr(struct, name)
        if not bounds.admits(value):
            raise error(name, bounds.explain(value))


@cache
def field_bounds(struct_type: type[msgspec.Struct]) -> Mapping[str, Bounds]:
    """Return the bounds of each field of a struct; fields that `bounds_of` skips are left out."""
    info = inspect.type_info(struct_type)
    assert isinstance(info, inspect.StructType)
    found = {field.name: _bounds(field.type) for field in info.fields}
    return {name: bounds for name, bounds in found.items() if bounds is not None}


def bounds_of(annotation: Any) -> Bounds | None:
    """Return the bounds of a type such as `Annotated[int, msgspec.Meta(ge=1)] | None`.

    It is int, float, bool, str, a Literal, a sequence or mapping of these, or the union of one of
    these with None; of any other type, the result is None. Numbers must be finite, and a bool is no
    integer. An int is accepted where a float is expected.
    """
    return _bounds(inspect.type_info(annotation))


def _bounds(info: inspect.Type) -> Bounds | None:
    if isinstance(info, inspect.Metadata):
        return _bounds(info.type)
    if isinstance(info, inspect.UnionType):
        return _optional(info)
    if isinstance(info, (inspect.IntType, inspect.FloatType)):
        return _number(info)
    if isinstance(info, inspect.BoolType):
        return _scalar("true or false", lambda value: type(value) is bool)
    if isinstance(info, inspect.LiteralType):
        values = frozenset(info.values)
        accepted = f"one of {', '.join(map(str, info.values))}"
        return _scalar(accepted, lambda value: type(value) in (str, int) and value in values)
    if isinstance(info, inspect.StrType):
        return _text(info)
    if isinstance(info, (inspect.ListType, inspect.VarTupleType)):
        item = _bounds(info.item_type) or _ANYTHING
        accepted = f"a sequence, each item {item.accepted}"
        # A string is a sequence too, but its characters are not meant.
        return _collection((tuple, list), accepted, info.max_length, item, None)
    if isinstance(info, inspect.DictType):
        key, item = (_bounds(each) or _ANYTHING for each in (info.key_type, info.value_type))
        accepted = f"a mapping from {key.accepted} to {item.accepted}"
        return _collection(Mapping, accepted, info.max_length, item, key)
    return None


def _scalar(accepted: str, admits: Callable[[Any], bool]) -> Bounds:
    return Bounds(accepted, admits, lambda value: f"is {value!r}, expected {accepted}")


def _optional(info: inspect.UnionType) -> Bounds | None:
    others = [each for each in info.types if not isinstance(each, inspect.NoneType)]
    bounds = _bounds(others[0]) if len(others) == 1 else None
    if bounds is None:
        return None
    admits = bounds.admits
    return Bounds(bounds.accepted, lambda value: value is None or admits(value), bounds.explain)


def _number(info: inspect.IntType | inspect.FloatType) -> Bounds:
    relations = {
        "greater than": info.gt,
        "at least": info.ge,
        "less than": info.lt,
        "at most": info.le,
    }
    words = [f"{relation} {bound}" for relation, bound in relations.items() if bound is not None]
    whole = isinstance(info, inspect.IntType)
    accepted = " ".join(["an integer" if whole else "a number", " and ".join(words)]).rstrip()
    # Closed bounds, so that two comparisons do. Those of floats are finite, which excludes NaN,
    # infinity and integers too large to be floats.
    low, high = (-math.inf, math.inf) if whole else (-sys.float_info.max, sys.float_info.max)
    if info.ge is not None:
        low = info.ge
    if info.gt is not None:
        low = info.gt + 1 if whole else math.nextafter(info.gt, math.inf)
    if info.le is not None:
        high = info.le
    if info.lt is not None:
        high = info.lt - 1 if whole else math.nextafter(info.lt, -math.inf)
    # type() and not isinstance for integers, because a bool is one by inheritance.
    if whole:
        return _scalar(accepted, lambda value: type(value) is int and low <= value <= high)
    return _scalar(
        accepted,
        lambda value: (isinstance(value, float) or type(value) is int) and low <= value <= high,
    )


def _text(info: inspect.StrType) -> Bounds:
    least = info.min_length or 0
    most = sys.maxsize if info.max_length is None else info.max_length
    accepted = "a non-empty string" if least else "a string"
    if least > 1:
        accepted += f" of at least {least} characters"
    if info.max_length is not None:
        accepted += f" of at most {most} characters"
    return _scalar(accepted, lambda value: isinstance(value, str) and least <= len(value) <= most)


def _collection(
    kinds: Any, accepted: str, max_length: int | None, item: Bounds, key: Bounds | None
) -> Bounds:
    """Return the bounds of a sequence, or of a mapping with bounds of its keys."""

    def problem(value: Any) -> str | None:
        if not isinstance(value, kinds):
            return f"is {value!r}, expected {accepted}"
        if max_length is not None and len(value) > max_length:
            return f"has {len(value)} entries, expected at most {max_length}"
        if key is not None:
            for each in value:
                if not key.admits(each):
                    return f"has the key {each!r}, expected {key.accepted}"
            value = value.values()
        return next((item.explain(each) for each in value if not item.admits(each)), None)

    return Bounds(
        accepted, lambda value: problem(value) is None, lambda value: problem(value) or ""
    )


_ANYTHING = _scalar("any value", lambda value: True)
