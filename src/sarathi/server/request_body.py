"""Reading request bodies: sizes, JSON, types and bounds, and the errors that name a field."""

from __future__ import annotations

import gc
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, TypeVar

import msgspec
from msgspec import inspect
from starlette.requests import Request

from sarathi.server.responses import ApiError, invalid, missing
from sarathi.units import parse_duration

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

# Fields that hold anything need no more than this, while millions of objects in them, or numbers of
# many digits, would take seconds to read.
MAX_OPEN_FIELD = 64 * 2**10  # bytes of JSON

Body = TypeVar("Body", bound=msgspec.Struct)
Value = TypeVar("Value")


class ModelRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A body that may name the model."""

    model: str | None = None


def only(*values: object) -> msgspec.Meta:
    """Return the annotation of an unsupported field: these values and null ask for nothing."""
    return msgspec.Meta(extra={"only": values})


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body of a request; raise `ApiError` if it is empty or larger than `limit` bytes."""
    too_large = ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")
    length = request.headers.get("content-length", "0").lstrip("0")
    if length.isdecimal() and (len(length) > len(str(limit)) or int(length) > limit):
        raise too_large
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    if not size:
        raise ApiError(400, "The body is empty, expected JSON.", code="invalid_json")
    return b"".join(parts)


def decode(body: bytes, kind: type[Body]) -> Body:
    """Decode a JSON body; raise `ApiError`, status 400, naming the field at fault."""
    # Millions of new objects make Python's collector look at all of them again and again, which
    # takes four times as long as reading them, and blocks the event loop. None is garbage.
    gc.disable()
    try:
        if len(body) > MAX_OPEN_FIELD:
            _check_open_fields(body, kind)
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid(f"The body is not valid JSON: {reason}", code="invalid_json") from None
    finally:
        gc.enable()
    for name, accepted in _unsupported_fields(kind).items():
        value = getattr(request, name)
        if value is not None and not any(
            type(value) is type(harmless) and value == harmless for harmless in accepted
        ):
            raise unsupported(name, accepted)
    return request


def value_or(value: Value | None, default: Value) -> Value:
    """Return the value of an optional field, or the default where it is null."""
    return default if value is None else value


def seconds(field: str, duration: float | str | None) -> float | None:
    """Return the seconds of a field that holds a duration; raise `ApiError` if it is none."""
    try:
        return None if duration is None else parse_duration(duration)
    except ValueError as error:
        raise invalid(f"{field} {error}.", field) from None


def check_token_ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise `ApiError`, status 400, for token ids that the vocabulary does not have."""
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise invalid(f"{field} has the token id {wrong}, expected 0 to {vocab_size - 1}.", field)


def unsupported(field: str, accepted: Sequence[object] = ()) -> ApiError:
    """Return the error for a field that would change the output but is not supported."""
    values = " or ".join(msgspec.json.encode(value).decode() for value in accepted)
    hint = f"; the only value accepted is {values}" if values else ""
    return invalid(f"{field} is not supported{hint}.", field, code="unsupported_parameter")


@cache
def _unsupported_fields(kind: type[msgspec.Struct]) -> Mapping[str, Sequence[object]]:
    """Return the fields of a body that are annotated with `only`, and the values they accept."""
    return {
        field.name: field.type.extra["only"]
        for field in _fields(kind)
        if isinstance(field.type, inspect.Metadata) and field.type.extra is not None
    }


@cache
def _open_fields(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Return a struct of the fields of a body that hold anything, undecoded."""
    names = [field.name for field in _fields(kind) if _is_open(field.type)]
    return msgspec.defstruct(
        "OpenFields", [(name, msgspec.Raw, msgspec.Raw(b"")) for name in names]
    )


def _fields(kind: type[msgspec.Struct]) -> Sequence[inspect.Field]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return info.fields


def _is_open(info: inspect.Type) -> bool:
    if isinstance(info, inspect.Metadata):
        return _is_open(info.type)
    if isinstance(info, inspect.UnionType):
        return any(map(_is_open, info.types))
    return isinstance(info, (inspect.AnyType, inspect.DictType))


def _check_open_fields(body: bytes, kind: type[msgspec.Struct]) -> None:
    """Raise `ApiError` naming a field that holds anything and is too large."""
    fields = msgspec.json.decode(body, type=_open_fields(kind))
    for name in fields.__struct_fields__:
        size = len(bytes(getattr(fields, name)))
        if size > MAX_OPEN_FIELD:
            raise invalid(f"{name} has {size} bytes, expected at most {MAX_OPEN_FIELD}.", name)


_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>.*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$")


def _invalid_field(message: str) -> ApiError:
    """Return the error for a body that msgspec has refused with `message`."""
    path = ""
    at = _PATH.search(message)
    if at:
        path = at["path"].replace("[...]", "")
        message = message[: at.start()]
    if unknown := _UNKNOWN.match(message):
        field = f"{path}.{unknown['name']}".lstrip(".")[:100]
        return invalid(f"Unknown field {field!r}.", field, code="unknown_parameter")
    if absent := _MISSING.match(message):
        return missing(f"{path}.{absent['name']}".lstrip("."))
    message = message.replace("`", "").replace(" | null", "")
    return invalid(f"{path or 'The body'}: {message}.", path or None, code="invalid_type")
