"""Command-line arguments, environment variables and the configuration file, from declared options.

The namespace that argparse makes has only what was given, under the key of each option.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from sarathi.errors import UsageError
from sarathi.options import (
    REQUIRED,
    Declaration,
    Nested,
    Option,
    OptionGroup,
    declarations,
    members,
)

_T = TypeVar("_T")
# What Kubernetes sets SARATHI_PORT to, in every pod, for a Service named `sarathi`.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://.*", re.DOTALL)
_LAYERS = (
    "Each option can also be set by an environment variable, such as SARATHI_TBT_TARGET for "
    "--tbt-target, or in the file of --config. The command line has precedence over the "
    "environment, and the environment over the file."
)
ConfigFile = Annotated[
    Path | None,
    Option(
        "options that the command line and the environment leave out, by their names, such "
        "as `max-batch-size: 64`",
        name="config",
        metavar="FILE.yaml",
    ),
]


def add_options(
    parser: argparse.ArgumentParser, cls: type, section: OptionGroup | None = None
) -> argparse.ArgumentParser:
    """Add an argument for each option of a class and of those that it holds; return the parser."""
    section = section or OptionGroup()
    for each in members(cls):
        if isinstance(each, Nested):
            add_options(parser, each.cls, each.section)
        elif section.only is None or each.field in section.only:
            _add_option(parser, each, each.group if section.group is None else section.group)
            if each.key == "config":
                parser.epilog = _LAYERS
    return parser


def parse_options(cls: type[_T], argv: Sequence[str]) -> _T:
    """Return the options of the command line `argv`; raise as `read_options`."""
    return read_options(cls, add_options(argparse.ArgumentParser(), cls).parse_args(argv))


def read_options(cls: type[_T], args: argparse.Namespace) -> _T:
    """Return options from the command line, then the environment, `--config` and the defaults.

    Raises:
        UsageError: the file cannot be read, or an option is unknown or has a wrong value.
        ConfigError: options exclude each other.
    """
    options = list(layered_options(cls))
    path = getattr(args, "config", None)
    layers = [_environment_values(options), [] if path is None else _file_values(options, path)]
    for layer in layers:
        given = {each.key for each in options if hasattr(args, each.key)}
        for option, value in layer:
            if option.key not in given and option.option.alternative not in given:
                setattr(args, option.key, value)
    return _build(cls, args, OptionGroup())


def layered_options(cls: type) -> Iterator[Declaration]:
    """Yield those options that the environment and a configuration file can set."""
    for each in members(cls):
        if isinstance(each, Nested):
            layered = declarations if each.section.layered else layered_options
            yield from layered(each.cls)


def _build(cls: type[_T], args: argparse.Namespace, section: OptionGroup) -> _T:
    values: dict[str, Any] = {}
    declared: type = cls
    for each in members(declared):
        if isinstance(each, Nested):
            values[each.field] = _build(each.cls, args, each.section)
        elif hasattr(args, each.key) and (section.only is None or each.field in section.only):
            value = getattr(args, each.key)
            values[each.field] = tuple(value) if each.is_list else value
    return cls(**values)


def _add_option(parser: argparse.ArgumentParser, declared: Declaration, group: str) -> None:
    option = declared.option
    default = declared.default_text
    text = option.help if default is None else f"{option.help} (default: {default})"
    details: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    required = declared.default is REQUIRED
    if declared.value_type is bool:
        details["action"] = argparse.BooleanOptionalAction
    else:
        details["type"] = _argument_type(declared)
        details["metavar"] = declared.metavar
    if option.positional:
        flags = [declared.key]
        if declared.is_list or not required:
            details["nargs"] = "?" if not declared.is_list else "+" if required else "*"
    else:
        flags = [f"--{name}" for name in declared.names]
        details |= {"dest": declared.key, "required": required}
        if declared.is_list:
            details["action"] = option.action or "append"
    _group(parser, group).add_argument(*flags, **details)


def _argument_type(declared: Declaration) -> Any:
    def argument(text: str) -> Any:
        try:
            return declared.form.parse(text)
        except ValueError as error:  # of which argparse would not print the message
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
        if text is None or (option.value_type in (int, float) and _SERVICE_LINK.fullmatch(text)):
            continue
        yield option, _parsed(option, [text], f"{option.variable}: ")


def _file_values(options: Iterable[Declaration], path: Path) -> Iterator[tuple[Declaration, Any]]:
    by_name = {name: each for each in options for name in (*each.names, each.field)}
    seen: dict[str, str] = {}
    for key, value in _read_yaml(path).items():
        option = by_name.get(str(key)) or by_name.get(str(key).replace("_", "-"))
        if option is None:
            accepted = ", ".join(sorted({each.names[0] for each in by_name.values()}))
            raise UsageError(f"{path}: {key} is not an option here, expected one of {accepted}")
        if option.key in seen:
            raise UsageError(f"{path}: {key} and {seen[option.key]} are the same option")
        seen[option.key] = str(key)
        if value is None:
            continue
        values = value if isinstance(value, list) and option.is_list else [value]
        if any(isinstance(each, (dict, list)) for each in values):
            raise UsageError(f"{path}: {key} is {value!r}, expected a single value")
        texts = [str(each).lower() if isinstance(each, bool) else str(each) for each in values]
        yield option, _parsed(option, texts, f"{path}: {key}: ")


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


def _parsed(option: Declaration, texts: list[str], place: str) -> Any:
    try:
        values = [option.form.parse(text) for text in texts]
    except ValueError as error:
        raise UsageError(f"{place}{error}") from None
    return values if option.is_list else values[0]
