"""Finds the fields of a JSON body that its struct does not have: msgspec skips them silently."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import msgspec
from msgspec import Raw, inspect

MAX_NAMES = 16  # that are reported of one body
_MAX_NAME = 64  # characters
# A body can consist of a million unknown fields, or of as many small objects. So many are looked
# at, which takes some 10 ms.
_MAX_KEYS = 20_000
_LARGE = 64 * 2**10  # bytes of unknown fields of one object, of which only one is named

_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_ITEMS = msgspec.json.Decoder(list[Raw])
_UNKNOWN = re.compile(r"unknown field `(?P<name>.*?)`", re.DOTALL)
_UNPRINTABLE = re.compile(r"[^A-Za-z0-9_.$:@/+-]")  # in a list of names, in a log or a header


def unknown_fields(body: bytes, kind: type[msgspec.Struct], *, complete: bool) -> list[str]:
    """Return the paths of fields that the struct does not have, such as "messages.metadata".

    They are without indices, each once, shortened, and safe in a header. There are at most
    `MAX_NAMES`. The body must be one that decodes to `kind`.

    Args:
        complete: look until there is one, however long that takes.
    """
    search = _Search(complete)
    search.visit(Raw(body), (kind,), "")
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
        first = next((byte for byte in view if byte not in b" \t\r\n"), 0)
        if first == ord("["):
            for item in _ITEMS.decode(value):
                self.visit(item, kinds, path)
                if self._is_over:
                    return
        elif first == ord("{"):
            self._visit_object(value, view.nbytes, _shape(kinds), path)

    def _visit_object(self, value: Raw, size: int, shape: _Shape, path: str) -> None:
        prefix = f"{path}." if path else ""
        fields: Mapping[str, Raw]
        if size > _LARGE and (known := shape.known(value, size)) is not None:
            fields, first_unknown = known
            self._add(prefix + first_unknown)
        else:
            fields = _FIELDS.decode(value)
        self._num_keys += 1 + len(fields)
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
    skipping: msgspec.json.Decoder[msgspec.Struct]  # decodes the fields, to undecoded values
    refusing: msgspec.json.Decoder[msgspec.Struct]  # the same, but raises for others

    def known(self, value: Raw, size: int) -> tuple[dict[str, Raw], str] | None:
        """Return the known fields of an object and the name of an unknown one.

        None if the unknown fields are not that large, so that all of them can be decoded.
        """
        fields = msgspec.structs.asdict(self.skipping.decode(value))
        if size - sum(memoryview(field).nbytes for field in fields.values()) <= _LARGE:
            return None
        try:
            self.refusing.decode(value)
        except msgspec.ValidationError as error:
            match = _UNKNOWN.search(str(error))
            return fields, match["name"][:_MAX_NAME] if match else "?"
        return None  # that much is white space


@cache
def _shape(kinds: tuple[type[msgspec.Struct], ...]) -> _Shape:
    nested: dict[str, tuple[type[msgspec.Struct], ...]] = {}
    for kind in kinds:
        info = inspect.type_info(kind)
        assert isinstance(info, inspect.StructType)
        for field in info.fields:
            held = nested.get(field.encode_name, ()) + _structs(field.type)
            nested[field.encode_name] = tuple(dict.fromkeys(held))
        if info.tag_field is not None:
            nested.setdefault(info.tag_field, ())
    fields = [
        (f"field_{index}", Raw, msgspec.field(name=name, default=Raw()))
        for index, name in enumerate(nested)
    ]
    skipping, refusing = (
        msgspec.json.Decoder(msgspec.defstruct("Fields", fields, forbid_unknown_fields=forbid))
        for forbid in (False, True)
    )
    holding = {name: held for name, held in nested.items() if held}
    return _Shape(frozenset(nested), holding, skipping, refusing)


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
