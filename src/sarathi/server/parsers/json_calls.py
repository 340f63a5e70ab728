"""Calls whose arguments are JSON: objects with name and arguments, or a name before the JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sarathi.server.parsers.call_grammar import LarkRules, Schema
from sarathi.server.parsers.text_scanner import Reading, TextScanner
from sarathi.server.parsers.tool_call_parser import CallSink, NotACallError

_NAME = re.compile(r"[\w.:/\-]*")
_ARGUMENT_KEYS = ("arguments", "parameters")


class JsonArguments:
    """Arguments that are written as JSON."""

    def write_arguments(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of a call's arguments."""
        return write_json(arguments)

    def arguments_rule(self, rules: LarkRules, schema: Schema) -> str:
        """Return an expression for arguments that follow a schema."""
        return rules.json(schema)


@dataclass(frozen=True)
class JsonObjects(JsonArguments):
    """Objects such as `{"name": "f", "arguments": {}}`, or lists of them.

    Keys may be in any order, and others are skipped. OpenAI's form, with the call in `function`,
    and arguments that are the text of an object are understood, too. Without a marker, the name
    has to come first, and to be one of a tool.
    """

    bare: str = ""  # the brace or bracket that begins calls without a marker

    def read(self, scanner: TextScanner, calls: CallSink, begin: str) -> Reading[None]:
        bare = begin == self.bare
        if bare:
            scanner.at -= len(begin)
        yield from scanner.skip_space()
        is_list = yield from scanner.take("[")
        before = calls.num_calls
        while True:
            yield from scanner.skip_space()
            if is_list and (yield from scanner.take("]")):
                if calls.num_calls == before:
                    raise NotACallError
                return
            yield from _read_object(scanner, calls, bare)
            scanner.drop()
            yield from scanner.skip_space()
            yield from scanner.take(",", ";")
            if is_list:
                scanner.drop()
                continue
            yield from scanner.skip_space()
            if (yield from scanner.peek()) != "{":
                scanner.at = 0
                return


def read_json(text: str) -> Any:
    """Return the value of a JSON text; raise `ValueError` if it is none."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_json(value: Any) -> str:
    """Return a value as JSON, as models write it."""
    return json.dumps(value, ensure_ascii=False)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not in JSON")


def _read_object(
    scanner: TextScanner, calls: CallSink, bare: bool, inner: bool = False
) -> Reading[None]:
    """Read one call from its opening brace to the closing one; `inner` is in another's object."""
    if not (yield from scanner.take("{")):
        raise NotACallError
    before = calls.num_calls
    name: str | None = None
    arguments: str | None = None
    while True:
        yield from scanner.skip_space()
        if (yield from scanner.take("}")):
            break
        unnamed = bare and name is None
        key = yield from _read_string(scanner, ("name", "type", "function") if unnamed else None)
        yield from scanner.skip_space()
        if not (yield from scanner.take(":")):
            raise NotACallError
        yield from scanner.skip_space()
        is_object = (yield from scanner.peek()) == "{"
        if key == "function" and is_object and not inner and calls.num_calls == before:
            yield from _read_object(scanner, calls, bare, inner=True)
            scanner.drop()
        elif key in ("name", "function"):
            name = yield from _read_string(scanner, calls.tools if bare else None)
            if not name:
                raise NotACallError
        elif key == "type" and unnamed:
            yield from _read_string(scanner, ("function",))
        elif key not in _ARGUMENT_KEYS or calls.num_calls > before:
            if (yield from scanner.value()) is None:
                raise NotACallError
        elif name is not None and is_object:
            calls.begin(name)
            if (yield from scanner.value(calls.add)) is None:
                raise NotACallError
        else:
            arguments = yield from _read_arguments(scanner)
        yield from scanner.skip_space()
        yield from scanner.take(",")
    if calls.num_calls == before:
        if name is None:
            raise NotACallError
        calls.begin(name)
        calls.add("{}" if arguments is None else arguments)


def _read_arguments(scanner: TextScanner) -> Reading[str]:
    """Return arguments that cannot be handed on as they come."""
    value = yield from scanner.value()
    if value is None:
        raise NotACallError
    if value.startswith('"'):
        try:
            value = str(json.loads(value, strict=False)).strip()
        except ValueError:
            raise NotACallError from None
    if value in ("null", ""):
        return "{}"
    if not value.startswith("{"):
        raise NotACallError
    return value


def _read_string(scanner: TextScanner, among: Collection[str] | None = None) -> Reading[str]:
    """Return a JSON string; with `among`, one of these, found as soon as it can be none."""
    if among is not None:
        quoted = yield from scanner.take(*map(json.dumps, among))
    elif (yield from scanner.peek()) == '"':
        quoted = (yield from scanner.value()) or ""
    else:
        quoted = ""
    try:
        return str(json.loads(quoted, strict=False))
    except ValueError:
        raise NotACallError from None


@dataclass(frozen=True)
class NamedJson(JsonArguments):
    """A name, and after a separator the JSON of the arguments."""

    before_name: str = ""
    separators: tuple[str, ...] = ()  # of which each may follow, in this order
    with_call_id: str = ""  # the separator after which an id comes, which is dropped

    def read(self, scanner: TextScanner, calls: CallSink, begin: str) -> Reading[None]:
        yield from scanner.skip_space()
        if self.before_name and not (yield from scanner.take(self.before_name)):
            raise NotACallError
        name = yield from scanner.take_run(_NAME)
        if not name:
            raise NotACallError
        for separator in self.separators:
            if (yield from scanner.take(separator)) and separator == self.with_call_id:
                yield from scanner.take_run(_NAME)
        yield from scanner.skip_space()
        if (yield from scanner.peek()) != "{":
            raise NotACallError
        calls.begin(name)
        if (yield from scanner.value(calls.add)) is None:
            raise NotACallError


@dataclass(frozen=True)
class NamedOrObjects(JsonArguments):
    """What Mistral's versions write after the same marker: a list of objects, or a name."""

    objects: JsonObjects
    named: NamedJson

    def read(self, scanner: TextScanner, calls: CallSink, begin: str) -> Reading[None]:
        yield from scanner.skip_space()
        syntax = self.objects if (yield from scanner.peek()) in "[{" else self.named
        yield from syntax.read(scanner, calls, begin)
