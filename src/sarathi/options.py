"""Options, each declared once: an annotated field of a class, with its type, bounds and default.

    class Options(msgspec.Struct, frozen=True, kw_only=True):
        port: Annotated[int, Meta(ge=0, le=65535), Option("port to listen on")] = 8000

The class itself holds the values. From its declarations follow the arguments of the command line,
environment variables, the keys of a configuration file (`sarathi.cli.arguments`), validation
(`check_options`) and the tables of docs/configuration.md. A field whose type is another such class
has the options of that class; an `OptionGroup` among its annotations selects some of them and sets
the heading of `--help` under which they appear.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from sarathi.bounds import Bounds, bounds_of, check_bounds
from sarathi.units import MAX_SIZE, parse_duration, parse_size

REQUIRED: Any = inspect.Parameter.empty  # the default of an option that has to be given
MAX_NUMBER = 2**31 - 1


@dataclass(frozen=True)
class Option:
    """What an annotated field means to a user."""

    help: str
    default: str | None = None  # in words; None: the field's default, unless that is None
    group: str | None = None  # heading that starts here; None: that of the option before
    metavar: str | None = None  # None: follows from the type
    name: str | None = None  # without leading dashes; None: the field's name with dashes
    aliases: tuple[str, ...] = ()  # further names
    choices: Iterable[str] | None = None  # None: the values of a Literal, or any
    spellings: Mapping[str, str | None] | None = None  # other spelling to value
    alternative: str | None = None  # key of an option that overrides this one from a higher layer
    positional: bool = False  # an argument without a name, called by its metavar
    action: Any = None  # a subclass of `argparse.Action`; None: follows from the type


@dataclass(frozen=True)
class OptionGroup:
    """What a field takes from the class of options that is its type."""

    only: tuple[str, ...] | None = None  # fields; None: all
    group: str | None = None  # heading; None: those of the declarations
    layered: bool = False  # whether environment and configuration file count, too


LAYERED = OptionGroup(layered=True)


@dataclass(frozen=True)
class TextForm:
    """How the values of a type are written; declared where it is not as Python writes them."""

    # Raises ValueError for what is refused, with a message that is complete but for the option.
    parse: Callable[[str], Any]
    metavar: str
    format: Callable[[Any], str] = str
    accepted: str | None = None  # in words; None: follows from the bounds


@dataclass(frozen=True)
class Declaration:
    """One option of a class, resolved from the annotations of its field."""

    field: str
    option: Option
    value_type: Any  # the type without None and annotations; the item's type of a tuple
    default: Any  # or REQUIRED
    choices: tuple[str, ...] | None  # the accepted values where they can be listed
    form: TextForm  # of the type, if not declared
    is_list: bool
    group: str  # heading in help texts and documentation

    @property
    def names(self) -> tuple[str, ...]:
        """All names, without leading dashes; the first is the name in messages."""
        return (self.option.name or self.field.replace("_", "-"), *self.option.aliases)

    @property
    def key(self) -> str:
        """The first name as an identifier."""
        if self.option.positional:
            return self.option.metavar or self.field.upper()
        return self.names[0].replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"SARATHI_{self.key.upper()}"

    @property
    def metavar(self) -> str:
        """The stand-in for a value in help texts."""
        return self.option.metavar or self.form.metavar

    @property
    def default_text(self) -> str | None:
        """The default as users write it, or in words."""
        if self.option.default is not None:
            return self.option.default
        if self.default in (None, REQUIRED, ()):
            return None
        return self.form.format(self.default)


class Nested(NamedTuple):
    """A field of a class of options that holds another such class."""

    field: str
    cls: type
    section: OptionGroup


@cache
def members(cls: type) -> tuple[Declaration | Nested, ...]:
    """Return the options of a class and the classes that it holds, in the order of its fields."""
    defaults = inspect.signature(cls).parameters
    found: list[Declaration | Nested] = []
    group = ""
    for name, hint in get_type_hints(cls, include_extras=True).items():
        value_type, annotations = _unwrap(hint)
        if option := _first(annotations, Option):
            group = group if option.group is None else option.group
            found.append(_declaration(name, hint, option, defaults[name].default, group))
        elif hasattr(value_type, "__struct_fields__") or is_dataclass(value_type):
            section = _first(annotations, OptionGroup) or OptionGroup()
            found.append(Nested(name, value_type, section))
    return tuple(found)


def declarations(cls: type) -> tuple[Declaration, ...]:
    """Return the options of a class itself; fields without an `Option` are left out."""
    return tuple(each for each in members(cls) if isinstance(each, Declaration))


def changed(options: Any) -> list[str]:
    """Return the names of those options of the class itself that differ from their defaults."""
    return [
        f"--{each.names[0]}"
        for each in declarations(type(options))
        if getattr(options, each.field) != each.default
    ]


def parser_of(annotation: Any) -> Callable[[str], Any]:
    """Return the function that parses the values of a type; see `TextForm.parse`."""
    return _declaration("", annotation, Option(""), None, "").form.parse


def check_options(options: msgspec.Struct, error: Callable[[str, str], Exception]) -> None:
    """Raise `error(field, rest of the message)` for a value that its declaration refuses."""
    check_bounds(options, error)
    for each in declarations(type(options)):
        value = getattr(options, each.field)
        if each.choices is not None and value is not None and value not in each.choices:
            raise error(each.field, f"is {value!r}, expected one of {', '.join(each.choices)}")


def _declaration(name: str, hint: Any, option: Option, default: Any, group: str) -> Declaration:
    value_type, annotations = _unwrap(hint)
    is_list = get_origin(value_type) is tuple
    if is_list:
        hint = get_args(value_type)[0]
        value_type, inner = _unwrap(hint)
        annotations += inner
    choices = option.choices
    if choices is None and get_origin(value_type) is Literal:
        choices = get_args(value_type)
    choices = None if choices is None else tuple(choices)
    bounds = bounds_of(hint)
    if choices is not None:
        form = _form_of_choices(choices, option)
    else:
        form = _first(annotations, TextForm) or _form_of(value_type, bounds)
    if form.accepted is None and bounds is not None:
        form = replace(form, accepted=bounds.accepted)
    return Declaration(name, option, value_type, default, choices, form, is_list, group)


def _form_of_choices(choices: tuple[str, ...], option: Option) -> TextForm:
    spellings = option.spellings or {}

    def parse(text: str) -> str | None:
        if text in spellings:
            return spellings[text]
        if text not in choices:
            listed = ", ".join(map(repr, choices))
            raise ValueError(f"invalid choice: {text!r} (choose from {listed})")
        return text

    return TextForm(parse, "{" + ",".join(choices) + "}")


def _form_of(value_type: Any, bounds: Bounds | None) -> TextForm:
    if value_type is str:
        return TextForm(parse_text, "TEXT")
    convert, metavar, write = _CONVERSIONS[value_type]

    def parse(text: str) -> Any:
        with suppress(ValueError):
            value = convert(text)
            if bounds is None or bounds.admits(value):
                return value
        raise ValueError(f"{text!r} is not {metavar if bounds is None else bounds.accepted}")

    return TextForm(parse, metavar, write)


def _unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type without its annotations and without None, and the annotations."""
    if get_origin(hint) is Annotated:
        inner, annotations = _unwrap(hint.__origin__)
        return inner, (*hint.__metadata__, *annotations)
    if NoneType in get_args(hint):
        [inner] = [part for part in get_args(hint) if part is not NoneType]
        return _unwrap(inner)
    return hint, ()


def _first(annotations: Iterable[Any], kind: type) -> Any:
    return next((each for each in annotations if isinstance(each, kind)), None)


def parse_text(text: str) -> str:
    """Return `text`, or raise ValueError if it cannot be sent to a process or over HTTP."""
    try:
        text.encode()
    except UnicodeEncodeError:  # Python makes lone surrogates of bytes that are not UTF-8
        raise ValueError("its bytes are not UTF-8") from None
    return text


def _parse_new_file(text: str) -> str:
    path = Path(parse_text(str(Path(text).absolute())))
    try:
        writable = not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK)
    except OSError:  # such as a name that is too long
        writable = False
    if not writable:
        raise ValueError(f"{text!r} is not a file that can be written")
    return str(path)


def _parse_existing_file(text: str) -> Path:
    path = Path(text)
    try:
        readable = path.is_file() and os.access(path, os.R_OK)
    except (OSError, ValueError):  # such as a name that is too long
        readable = False
    if not readable:
        raise ValueError(f"{text!r} is not a file that can be read")
    return path


def format_seconds(seconds: float) -> str:
    """Return a duration as users write it: in milliseconds below a second."""
    return f"{seconds:g}s" if seconds >= 1 or not seconds else f"{1000 * seconds:g}ms"


def _parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("true", "1", "yes", "on"):
        return True
    if lowered in ("false", "0", "no", "off"):
        return False
    raise ValueError


# How values of a type are parsed, called and written.
_CONVERSIONS: dict[Any, tuple[Callable[[str], Any], str, Callable[[Any], str]]] = {
    bool: (_parse_bool, "BOOL", lambda value: "on" if value else "off"),
    int: (int, "N", str),
    float: (float, "X", str),
    Path: (Path, "FILE", str),
}

# Types that several options have.
Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]
CountOrZero = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[
    float,
    msgspec.Meta(gt=0),
    TextForm(parse_duration, "DURATION", format_seconds, "a time above 0 and of at most a day"),
]
Size = Annotated[
    int,
    msgspec.Meta(ge=1, le=MAX_SIZE),
    TextForm(parse_size, "SIZE", accepted=f"a size of 1 to {MAX_SIZE} bytes"),
]
NewFile = Annotated[str, TextForm(_parse_new_file, "FILE", accepted="a file that can be written")]
ExistingFile = Annotated[
    Path, TextForm(_parse_existing_file, "FILE", accepted="a file that can be read")
]
LogLevel = Literal["debug", "info", "warning", "error"]
