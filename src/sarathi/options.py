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
from dataclasses import dataclass, is_dataclass
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
    """How the values of a type are written, where it is not as Python writes them."""

    parse: Callable[[str], Any]  # raises ValueError, with a complete message, for what is refused
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
    form: TextForm | None
    bounds: Bounds | None
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
    def choices(self) -> tuple[str, ...] | None:
        """The accepted values where they can be listed."""
        if self.option.choices is not None:
            return tuple(self.option.choices)
        return get_args(self.value_type) if get_origin(self.value_type) is Literal else None

    @property
    def default_text(self) -> str | None:
        """The default as users write it, or in words."""
        if self.option.default is not None:
            return self.option.default
        if self.default is None or self.default is REQUIRED or self.default == ():
            return None
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        return self.form.format(self.default) if self.form is not None else f"{self.default}"

    @property
    def accepted(self) -> str:
        """The accepted values in words, or nothing."""
        words = None if self.form is None else self.form.accepted
        return words or ("" if self.bounds is None else self.bounds.accepted)

    def parse(self, text: str) -> Any:
        """Return the value that a text stands for.

        Raises:
            ValueError: with a message that is complete but for the option's name.
        """
        choices = self.choices
        if choices is not None:
            spellings = self.option.spellings or {}
            if text in spellings:
                return spellings[text]
            if text not in choices:
                listed = ", ".join(map(repr, choices))
                raise ValueError(f"invalid choice: {text!r} (choose from {listed})")
            return text
        if self.form is not None:
            return self.form.parse(text)
        if self.value_type is str:
            return parse_text(text)
        try:
            value = _PARSERS[self.value_type](text)
        except ValueError:
            value = None
        if value is None or (self.bounds is not None and not self.bounds.admits(value)):
            raise ValueError(f"{text!r} is not {self.accepted}")
        return value


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
        option = _first(annotations, Option)
        if option is not None:
            group = group if option.group is None else option.group
            found.append(_declaration(name, hint, option, defaults[name].default, group))
        elif isinstance(value_type, type) and (
            issubclass(value_type, msgspec.Struct) or is_dataclass(value_type)
        ):
            found.append(
                Nested(name, value_type, _first(annotations, OptionGroup) or OptionGroup())
            )
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
    """Return the function that parses the values of a type, as `Declaration.parse` does."""
    return _declaration("", annotation, Option(""), None, "").parse


def check_options(options: msgspec.Struct, error: Callable[[str, str], Exception]) -> None:
    """Raise an error unless every field has a value that its declaration accepts.

    Args:
        error: makes the exception from the field's name and the rest of the message.
    """
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
    form = _first(annotations, TextForm)
    return Declaration(name, option, value_type, default, form, bounds_of(hint), is_list, group)


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
    """Return `text` if it can be encoded, to be sent to the engine process or over HTTP.

    Raises:
        ValueError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # Python makes lone surrogates of bytes that are not UTF-8
        raise ValueError("its bytes are not UTF-8") from None
    return text


def parse_new_file(text: str) -> str:
    """Return the absolute path of a file that can be written.

    Raises:
        ValueError: it cannot.
    """
    path = Path(parse_text(str(Path(text).absolute())))
    try:
        writable = os.access(path if path.exists() else path.parent, os.W_OK)
        is_folder = path.is_dir()
    except OSError:  # such as a name that is too long
        writable = is_folder = False
    if is_folder or not writable:
        raise ValueError(f"{text!r} is not a file that can be written")
    return str(path)


def parse_existing_file(text: str) -> Path:
    """Return the path of a file that can be read.

    Raises:
        ValueError: it cannot.
    """
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


_PARSERS: dict[Any, Callable[[str], Any]] = {bool: _parse_bool, int: int, float: float, Path: Path}

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
NewFile = Annotated[str, TextForm(parse_new_file, "FILE", accepted="a file that can be written")]
ExistingFile = Annotated[
    Path, TextForm(parse_existing_file, "FILE", accepted="a file that can be read")
]
LogLevel = Literal["debug", "info", "warning", "error"]
