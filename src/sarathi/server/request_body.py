"""Reading request bodies: sizes, JSON, types and bounds, and the errors that name a field."""

from __future__ import annotations

import gc
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Raw, inspect
from starlette.requests import Request

from sarathi.server.responses import ApiError, invalid, missing
from sarathi.server.unknown_fields import unknown_fields
from sarathi.units import parse_duration

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

# Fields that hold anything need no more than this, while millions of objects in them, or numbers of
# many digits, would take seconds to read.
MAX_OPEN_FIELD = 64 * 2**10  # bytes of JSON
MAX_TOOLS = 2**20  # bytes of JSON; agents have a hundred tools

Body = TypeVar("Body", bound=msgspec.Struct)
Value = TypeVar("Value")


class ModelRequest(msgspec.Struct, kw_only=True):
    """A body that may name the model."""

    model: str | None = None


class SharedFields(ModelRequest, kw_only=True):
    """Fields that several APIs have under the same name."""

    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    # For the scheduler; see `generation_request.scheduling_params`.
    priority: Int32 | None = None
    ttft_target: float | str | None = None
    tbt_target: float | str | None = None


def only(*values: object) -> msgspec.Meta:
    """Return the annotation of an unsupported field: these values and null ask for nothing."""
    # `typing` takes equal annotations for the same, and 1 equals true; their JSON differs.
    return msgspec.Meta(extra={"only": values, "json": msgspec.json.encode(values)})


def max_json(size: int) -> msgspec.Meta:
    """Return the annotation of a field that holds anything, of at most `size` bytes of JSON."""
    return msgspec.Meta(extra={"max_json": size})


# A field that has no effect here: its value may be anything, and is skipped.
NoEffect = Raw
NOT_GIVEN = Raw()


def is_given(value: Raw) -> bool:
    """Return whether an undecoded field is present and not null."""
    return bytes(value) not in (b"", b"null")


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body of a request, decompressed.

    Raises:
        ApiError: it is empty or larger than `limit` bytes, which counts it both as it is sent and
            decompressed; or its encoding is not supported.
    """
    too_large = ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")
    length = request.headers.get("content-length", "0").lstrip("0")
    if length.isdecimal() and (len(length) > len(str(limit)) or int(length) > limit):
        raise too_large
    decompressor = _decompressor(request.headers.get("content-encoding", ""))
    parts = []
    received = size = 0
    async for part in request.stream():
        received += len(part)
        if decompressor is not None and part:
            try:
                part = decompressor.decompress(part, limit - size + 1)
            except zlib.error:
                raise _damaged() from None
            if decompressor.unused_data:
                raise _damaged()
        size += len(part)
        if max(size, received) > limit:
            raise too_large
        parts.append(part)
    if not received:
        raise ApiError(400, "The body is empty, expected JSON.", code="invalid_json")
    if decompressor is not None and not decompressor.eof:
        raise _damaged()
    return b"".join(parts)


def _decompressor(encoding: str) -> zlib._Decompress | None:
    """Return what decodes an encoding of a body; raise `ApiError`, status 415, for an unknown one.

    None: there is nothing to decode.
    """
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip" | "deflate":
            return zlib.decompressobj(zlib.MAX_WBITS | 32)  # reads the headers of both
    raise ApiError(
        415,
        f"The content encoding {encoding!r:.50} is not supported; gzip and deflate are.",
        code="unsupported_media_type",
        headers={"Accept-Encoding": "gzip, deflate"},
    )


def _damaged() -> ApiError:
    return invalid("The body is not what its content encoding says.", code="invalid_encoding")


def decode(body: bytes, kind: type[Body], *, strict: bool = True) -> tuple[Body, list[str]]:
    """Decode a JSON body; raise `ApiError`, status 400, naming the field at fault.

    Also return the names of fields that the struct does not have and that have been ignored; see
    `unknown_fields`.

    Args:
        strict: refuse unknown fields and other JSON types than those of the fields. Otherwise
            whole numbers may be written 256.0, and numbers and booleans as strings.
    """
    # Millions of new objects make Python's collector look at all of them again and again, which
    # takes four times as long as reading them, and blocks the event loop. None is garbage.
    gc.disable()
    try:
        if len(body) > MAX_OPEN_FIELD:
            _check_open_fields(body, kind)
        request = msgspec.json.decode(body, type=kind, strict=strict)
        ignored = unknown_fields(body, kind, complete=strict)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid(f"The body is not valid JSON: {reason}", code="invalid_json") from None
    finally:
        gc.enable()
    if strict and ignored:
        raise _unknown_field(ignored[0])
    for name, accepted in _unsupported_fields(kind).items():
        value = getattr(request, name)
        if value is not None and not any(_same(value, harmless) for harmless in accepted):
            raise unsupported(name, accepted)
    return request, ignored


def _same(value: object, other: object) -> bool:
    numbers = type(value) in (int, float) and type(other) in (int, float)
    return value == other and (numbers or type(value) is type(other))


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


def unsupported_type(path: str, kind: str | None, reason: str) -> ApiError:
    """Return the error for an object of a request whose type is not supported."""
    message = f"{path}.type {kind!r:.50} is not supported: {reason}."
    return invalid(message, f"{path}.type", code="unsupported_parameter")


@cache
def _unsupported_fields(kind: type[msgspec.Struct]) -> Mapping[str, Sequence[object]]:
    """Return the fields of a body that are annotated with `only`, and the values they accept."""
    extras = {field.name: _extra(field) for field in _fields(kind)}
    return {name: extra["only"] for name, extra in extras.items() if "only" in extra}


@cache
def _open_fields(kind: type[msgspec.Struct]) -> tuple[type[msgspec.Struct], Mapping[str, int]]:
    """Return the fields of a body that hold anything: a struct of them, undecoded, and limits."""
    limits = {
        field.encode_name: _extra(field).get("max_json", MAX_OPEN_FIELD)
        for field in _fields(kind)
        if _is_open(field.type) or "max_json" in _extra(field)
    }
    return msgspec.defstruct("OpenFields", [(name, Raw, Raw()) for name in limits]), limits


def _fields(kind: type[msgspec.Struct]) -> Sequence[inspect.Field]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return info.fields


def _extra(field: inspect.Field) -> Mapping[str, Any]:
    return (field.type.extra or {}) if isinstance(field.type, inspect.Metadata) else {}


def _is_open(info: inspect.Type) -> bool:
    if isinstance(info, inspect.Metadata):
        return _is_open(info.type)
    if isinstance(info, inspect.UnionType):
        return any(map(_is_open, info.types))
    return isinstance(info, (inspect.AnyType, inspect.DictType))


def _check_open_fields(body: bytes, kind: type[msgspec.Struct]) -> None:
    """Raise `ApiError` naming a field that holds anything and is too large."""
    struct, limits = _open_fields(kind)
    fields = msgspec.json.decode(body, type=struct)
    for name, limit in limits.items():
        size = memoryview(getattr(fields, name)).nbytes
        if size > limit:
            raise invalid(f"{name} has {size} bytes, expected at most {limit}.", name)


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
        return _unknown_field(f"{path}.{unknown['name']}".lstrip(".")[:100])
    if absent := _MISSING.match(message):
        return missing(f"{path}.{absent['name']}".lstrip("."))
    message = message.replace("`", "").replace(" | null", "")
    return invalid(f"{path or 'The body'}: {message}.", path or None, code="invalid_type")


def _unknown_field(path: str) -> ApiError:
    return invalid(f"Unknown field {path!r}.", path, code="unknown_parameter")
