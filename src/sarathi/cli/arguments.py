"""Command-line arguments, environment variables and the configuration file, from declared options.

The namespace that argparse makes has only what was given, under the key of each option.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sarathi.errors import UsageError
from sarathi.options import REQUIRED, Declaration, declarations

_T = TypeVar("_T")
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "FILE"}


def add_options(
    parser: argparse.ArgumentParser,
    *classes: type,
    only: Collection[str] | None = None,
    group: str | None = None,
) -> None:
    """Add an argument for each declared option.

    Args:
        classes: declare the options.
        only: the names of the fields to add; None for all.
        group: heading in the help text; None for that of each declaration.
    """
    for cls in classes:
        for each in declarations(cls):
            if only is None or each.field in only:
                _add_option(parser, each, each.group if group is None else group)


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, which `fill_in` reads."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.yaml",
        help="options that the command line and the environment leave out, by their names, such "
        "as `max-batch-size: 64`",
    )


def fill_in(args: argparse.Namespace, *classes: type) -> None:
    """Set options that the command line leaves out: from the environment, then from `--config`.

    Args:
        classes: declare the options; others are unknown to the file.

    Raises:
        UsageError: the file cannot be read, or an option is unknown or has a wrong value.
    """
    options = [each for cls in classes for each in declarations(cls)]
    path = getattr(args, "config", None)
    layers = [_environment_values(options), [] if path is None else _file_values(options, path)]
    for layer in layers:
        given = {each.key for each in options if hasattr(args, each.key)}
        for option, value in layer:
            if option.key not in given and option.option.alternative not in given:
                setattr(args, option.key, value)


def given_options(args: argparse.Namespace, cls: type) -> dict[str, Any]:
    """Return the options of a class that have been given, by the names of their fields."""
    return {
        each.field: getattr(args, each.key) for each in declarations(cls) if hasattr(args, each.key)
    }


def build(cls: Callable[..., _T], args: argparse.Namespace) -> _T:
    """Make an instance of a class from the options that have been given and its defaults."""
    assert isinstance(cls, type)
    return cls(**given_options(args, cls))  # type: ignore[no-any-return]


def option_name(cls: type, field: str) -> str:
    """Return the option of a field as it is written on the command line."""
    return next(f"--{each.names[0]}" for each in declarations(cls) if each.field == field)


def _add_option(parser: argparse.ArgumentParser, declared: Declaration, group: str) -> None:
    option = declared.option
    default = declared.default_text
    text = option.help if default is None else f"{option.help} (default: {default})"
    details: dict[str, Any] = {
        "dest": declared.key,
        "default": argparse.SUPPRESS,
        "help": text.replace("%", "%%"),
        "required": declared.default is REQUIRED,
    }
    if declared.value_type is bool:
        details["action"] = argparse.BooleanOptionalAction
    else:
        details["type"] = argument_type(declared.parse)
        details["metavar"] = metavar(declared)
        details["action"] = "append" if declared.is_list else "store"
    flags = [f"--{name}" for name in declared.names]
    _group(parser, group).add_argument(*flags, **details)


def metavar(declared: Declaration) -> str:
    """Return the stand-in for a value in help texts."""
    if declared.option.metavar is not None:
        return declared.option.metavar
    if declared.choices is not None:
        return "{" + ",".join(declared.choices) + "}"
    return declared.form.metavar if declared.form is not None else _METAVARS[declared.value_type]


def argument_type(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Return a parser as a `type` of argparse, which prints the message of its ValueError."""

    def argument(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return argument


def _group(parser: argparse.ArgumentParser, title: str) -> argparse._ActionsContainer:
    if not title:
        return parser
    groups = (group for group in parser._action_groups if group.title == title)
    return next(groups, None) or parser.add_argument_group(title)


def _environment_values(options: Iterable[Declaration]) -> Iterator[tuple[Declaration, Any]]:
    for option in options:
        text = os.environ.get(option.variable)
        if text is not None:
            yield option, _parsed(option, [text], f"{option.variable}: ")


def _file_values(options: Iterable[Declaration], path: Path) -> Iterator[tuple[Declaration, Any]]:
    by_name = {name: each for each in options for name in (*each.names, each.field)}
    seen: dict[Declaration, str] = {}
    for key, value in _read_yaml(path).items():
        option = by_name.get(str(key)) or by_name.get(str(key).replace("_", "-"))
        if option is None:
            accepted = ", ".join(sorted({each.names[0] for each in by_name.values()}))
            raise UsageError(f"{path}: {key} is not an option here, expected one of {accepted}")
        if option in seen:
            raise UsageError(f"{path}: {key} and {seen[option]} are the same option")
        seen[option] = str(key)
        if value is None:
            continue
        values = value if isinstance(value, list) and option.is_list else [value]
        if any(isinstance(each, (dict, list)) for each in values):
            raise UsageError(f"{path}: {key} is {value!r}, expected a single value")
        yield option, _parsed(option, [_as_text(each) for each in values], f"{path}: {key}: ")


def _read_yaml(path: Path) -> dict[Any, Any]:
    import yaml  # takes a moment, and most commands have no file

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--config {path} cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:  # empty, or nothing but comments
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a mapping, expected a line `option: value` for each")
    return content


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parsed(option: Declaration, texts: list[str], place: str) -> Any:
    try:
        values = [option.parse(text) for text in texts]
    except ValueError as error:
        raise UsageError(f"{place}{error}") from None
    return values if option.is_list else values[0]
