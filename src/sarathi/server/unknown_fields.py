"""Finds the fields of a JSON body that its struct does not have: msgspec skips them silently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Union

import msgspec
from msgspec import Raw, inspect

MAX_NAMES = 16  # that are reported of one body
_MAX_NAME = 64  # characters
# A body can consist of a million unknown fields, or of as many small objects. So many are looked
# at, which takes some 10 ms.
_MAX_KEYS = 20_000
_LARGE = 64 * 2**10  # bytes of such fields of one object, of which only one is named
_WHOLE = 2**20  # bytes of a body that is looked at as a whole

_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_ITEMS = msgspec.json.Decoder(list[Raw])
_UNKNOWN = re.compile(r"unknown field `(?P<name>.*?)`", re.DOTALL)
_UNPRINTABLE = re.compile(r"[^A-Za-z0-9_.$:@/+-]")  # in a list of names, in a log or a header


def unknown_fields(body: bytes, kind: type[msgspec.Struct], *, complete: bool) -> list[str]:
    """Return the paths of fields that the struct does not have, such as "messages.metadata".

    They are without indices, each once, shortened, and safe in a header. There are at most
    `MAX_NAMES`. The body must be one that decodes to `kind`.

    Args:
        complete: return at least one if there is any, however many others are in the body.
    """
    decoder = _known_fields_only(kind)
    if decoder is not None and (complete or len(body) <= _WHOLE):
        try:
            decoder.decode(body)
        except msgspec.ValidationError:
            pass
        else:
            return []
    search = _Search(complete)
    search.visit(Raw(body.lstrip()), (kind,), "")
    return list(search.found)


class _Search:
    def __init__(self, complete: bool) -> None:
        self.found: dict[str, None] = {}
        self._complete = complete
        self._num_keys = 0

    @property
    def _is_over(self) -> bool:
        if self._complete:
            return bool(self.found)
        return len(self.found) >= MAX_NAMES or self._num_keys > _MAX_KEYS

    def visit(self, value: Raw, kinds: tuple[type[msgspec.Struct], ...], path: str) -> None:
        """Look at one value, which may be an object of `kinds` or a list of such objects."""
        view = memoryview(value)
        if view[0] == ord("["):
            for item in _ITEMS.decode(value):
                self.visit(item, kinds, path)
                if self._is_over:
                    return
        elif view[0] == ord("{"):
            self._visit_object(value, view.nbytes, _shape(kinds), path)

    def _visit_object(self, value: Raw, size: int, shape: _Shape, path: str) -> None:
        prefix = f"{path}." if path else ""
        fields = shape.nested_fields(value) if size > _LARGE else {}
        if size - sum(memoryview(field).nbytes for field in fields.values()) > _LARGE:
            unknown = shape.first_unknown(value)
            if unknown is not None:
                self._add(prefix + unknown)
        else:
            fields = _FIELDS.decode(value)
        self._num_keys += 1 + len(fields)
        if not fields.keys() <= shape.names:
            for name in fields:
                if name not in shape.names:
                    self._add(prefix + name[:_MAX_NAME])
                    if self._is_over:
                        return
        for name, kinds in shape.nested.items():
            if name in fields:
                self.visit(fields[name], kinds, prefix + name)
                if self._is_over:
                    return

    def _add(self, path: str) -> None:
        self.found[_UNPRINTABLE.sub("?", path[:_MAX_NAME])] = None


@dataclass(frozen=True)
class _Shape:
    """The fields that an object may have."""

    names: frozenset[str]
    nested: Mapping[str, tuple[type[msgspec.Struct], ...]]  # fields that hold objects
    skipping: msgspec.json.Decoder[msgspec.Struct]  # decodes the nested, to undecoded values
    refusing: msgspec.json.Decoder[msgspec.Struct]  # the same for all fields, raises for others

    def nested_fields(self, value: Raw) -> dict[str, Raw]:
        """Return the fields of an object that hold objects, undecoded."""
        fields = msgspec.structs.astuple(self.skipping.decode(value))
        named = zip(self.nested, fields, strict=True)
        return {name: field for name, field in named if memoryview(field).nbytes}

    def first_unknown(self, value: Raw) -> str | None:
        """Return the name of the first unknown field; None if there is none."""
        try:
            self.refusing.decode(value)
        except msgspec.ValidationError as error:
            match = _UNKNOWN.search(str(error))
            return match["name"][:_MAX_NAME] if match else "?"
        return None


@cache
def _shape(kinds: tuple[type[msgspec.Struct], ...]) -> _Shape:
    nested: dict[str, tuple[type[msgspec.Struct], ...]] = {}
    for kind in kinds:
        info = _info(kind)
        for field in info.fields:
            held = nested.get(field.encode_name, ()) + _structs(field.type)
            nested[field.encode_name] = tuple(dict.fromkeys(held))
        if info.tag_field is not None:
            nested.setdefault(info.tag_field, ())
    holding = {name: held for name, held in nested.items() if held}
    return _Shape(
        frozenset(nested), holding, _raw_fields(holding, False), _raw_fields(nested, True)
    )


def _raw_fields(names: Iterable[str], forbid: bool) -> msgspec.json.Decoder[msgspec.Struct]:
    fields = [_field(index, name, Raw) for index, name in enumerate(names)]
    kind = msgspec.defstruct("Fields", fields, forbid_unknown_fields=forbid)
    return msgspec.json.Decoder(kind)


@cache
def _known_fields_only(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[msgspec.Struct] | None:
    """Return a decoder that raises for unknown fields, and does little else.

    None if a struct may hold others of its own type.
    """
    try:
        return msgspec.json.Decoder(_refusing_type(_info(kind), frozenset()))
    except RecursionError:
        return None


def _refusing_type(info: inspect.Type, outer: frozenset[type]) -> Any:
    """Return a type like `info` whose structs refuse unknown fields.

    Fields without structs are not decoded. Raises `RecursionError` for a struct of `outer`, those
    that `info` is part of.
    """
    if isinstance(info, inspect.Metadata):
        return _refusing_type(info.type, outer)
    structs = _structs(info)
    if not structs:
        return Raw
    if outer.intersection(structs):
        raise RecursionError
    match info:
        case inspect.StructType():
            inner = outer | {info.cls}
            fields = [
                _field(index, each.encode_name, _refusing_type(each.type, inner))
                for index, each in enumerate(info.fields)
            ]
            return msgspec.defstruct(
                info.cls.__name__,
                fields,
                forbid_unknown_fields=True,
                tag_field=info.tag_field,
                tag=info.tag,
            )
        case inspect.ListType() | inspect.VarTupleType():
            return list[_refusing_type(info.item_type, outer)]  # type: ignore[misc]
        case inspect.UnionType():
            types = (
                _refusing_type(each, outer) if _structs(each) else _plain_type(each)
                for each in info.types
            )
            return Union[tuple(types)]  # noqa: UP007
    raise TypeError(f"{info} in a request body")


def _plain_type(info: inspect.Type) -> Any:
    """Return a type for the other values of a union with structs."""
    match info:
        case inspect.Metadata():
            return _plain_type(info.type)
        case inspect.NoneType():
            return None
        case inspect.BoolType():
            return bool
        case inspect.IntType():
            return int
        case inspect.FloatType():
            return float
        case inspect.LiteralType():
            return type(info.values[0])
        case inspect.ListType() | inspect.VarTupleType():
            return list[Raw]
    return str


def _field(index: int, name: str, kind: Any) -> tuple[str, Any, Any]:
    return f"field_{index}", kind, msgspec.field(name=name, default=Raw())


def _info(kind: type[msgspec.Struct]) -> inspect.StructType:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return info


def _structs(info: inspect.Type) -> tuple[type[msgspec.Struct], ...]:
    """Return the structs that a type consists of, or that its lists hold."""
    match info:
        case inspect.Metadata():
            return _structs(info.type)
        case inspect.UnionType():
            return tuple(struct for each in info.types for struct in _structs(each))
        case inspect.ListType() | inspect.VarTupleType():
            return _structs(info.item_type)
        case inspect.StructType():
            return (info.cls,)
        case _:
            return ()
