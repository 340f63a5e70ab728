"""Chat templates: from messages to the text of a prompt, within a bound on the work.

A template also shows which tokens end a turn of the model.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
import tokenizers
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sarathi.errors import ModelError

_YIELD_EVERY = 0.001  # seconds of work between two pauses
_PAUSE = 0.0001  # seconds; long enough for another thread to get the interpreter lock


class WorkLimitError(ValueError):
    """The work took too long, or its result became too large."""


class WorkCancelledError(Exception):
    """The work was cancelled: its result is no longer needed."""


class WorkLimit:
    """A limit in seconds from the first `check` on, which another thread can end earlier.

    The work has to call `check` often, which also pauses now and then, so that pure Python work
    does not hold the interpreter lock against the event loop for its switch interval of 5 ms.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline: float | None = None
        self._next_pause = 0.0
        self._cancelled = False

    def cancel(self) -> None:
        """Make the next `check` raise `WorkCancelledError`; any thread may call this."""
        self._cancelled = True

    def check_cancelled(self) -> None:
        """Raise `WorkCancelledError` if `cancel` was called."""
        if self._cancelled:
            raise WorkCancelledError

    def check(self) -> None:
        """Raise `WorkLimitError` if the time is over, `WorkCancelledError` after `cancel`."""
        self.check_cancelled()
        now = time.perf_counter()
        if self._deadline is None:
            self._deadline = now + self._seconds
            self._next_pause = now + _YIELD_EVERY
        elif now > self._deadline:
            raise WorkLimitError(f"it takes more than {self._seconds:g} seconds")
        elif now > self._next_pause:
            time.sleep(_PAUSE)
            self._next_pause = time.perf_counter() + _YIELD_EVERY


DEFAULT, TOOLS = "default", "tool_use"  # names of templates that `transformers` looks for
_NONE: Mapping[str, str] = MappingProxyType({})
RENDER_SECONDS = 2.0  # of one prompt; thousands of messages take less
_MAX_LENGTH = 16 * 2**20  # characters of a prompt, or of the result of one multiplication
_MAX_POWER_BITS = 4096
_WORK_LIMIT = "sarathi.work_limit"  # templates cannot name, and so not replace, such a variable


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template in the dialect of Hugging Face models.

    `tool_source` is what some models use instead of `source` when tools are offered. Raises
    `ModelError` if a template is no valid Jinja.
    """

    source: str
    bos_token: str = ""
    eos_token: str = ""
    tool_source: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # others, by name

    def __post_init__(self) -> None:
        try:
            _ = self._templates
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template is invalid: {error}") from error

    @cached_property
    def _templates(self) -> tuple[jinja2.Template, jinja2.Template]:
        """The templates for messages without and with tools."""
        plain = _environment().limited(self.source)
        source = self.tool_source
        return plain, plain if source is None else _environment().limited(source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """Render the prompt for `messages`: encode it without adding special tokens again.

        `extra` reaches the template as variables (`enable_thinking`, ...). Raises `ValueError`
        with the template's own message if it refuses the messages, fails on them, or does not come
        to an end within `RENDER_SECONDS`.
        """
        limit = WorkLimit(RENDER_SECONDS)
        return self.render_within(limit, messages, add_generation_prompt, tools, **extra)

    def render_within(
        self,
        limit: WorkLimit,
        messages: Sequence[Mapping[str, Any]],
        /,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """Render within a limit that the caller may cancel, which raises `WorkCancelledError`."""
        named = {"bos_token": self.bos_token, "eos_token": self.eos_token, **self.special_tokens}
        variables = {
            **{name: token for name, token in named.items() if token},
            "documents": None,
            **extra,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            _WORK_LIMIT: limit,
        }
        template = self._templates[bool(tools)]
        try:
            limit.check()
            return _joined(template.generate(variables), limit)
        except WorkCancelledError:
            raise
        except Exception as error:
            # A template is a program of the model's author, which may fail in any way.
            raise ValueError(str(error) or type(error).__name__) from error


def _joined(pieces: Iterable[str], limit: WorkLimit) -> str:
    """Join `pieces`, which may be endless."""
    kept, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > _MAX_LENGTH:
            raise WorkLimitError(f"it makes more than {_MAX_LENGTH} characters")
        limit.check()
        kept.append(piece)
    return "".join(kept)


def choose_templates(
    sources: Mapping[str, str],
    bos_token: str | None,
    eos_token: str | None,
    special_tokens: Mapping[str, str] = _NONE,
) -> ChatTemplate | None:
    """Return the template of `sources`, which are by name; None if there is none.

    If none is the default one, messages without tools are refused: the others have another use.
    `special_tokens` are those with other names than bos and eos.
    """
    sources = {name: source for name, source in sources.items() if source}
    if not sources:
        return None
    return ChatTemplate(
        sources.get(DEFAULT) or _refusal(sources),
        bos_token=bos_token or "",
        eos_token=eos_token or "",
        tool_source=sources.get(TOOLS),
        special_tokens=special_tokens,
    )


def _refusal(sources: Mapping[str, str]) -> str:
    message = (
        "the model has several chat templates and none is named default: it has "
        f"{', '.join(sources)}"
    )
    return f"{{{{ raise_exception({json.dumps(message)}) }}}}"


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with bounds on time and on the size of results of operators.

    Everything that repeats (loops, their conditions, macros) first checks the limit.
    """

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            if (
                isinstance(left, int)
                and isinstance(right, int)
                and left.bit_length() * right > _MAX_POWER_BITS
            ):
                raise WorkLimitError(f"a power has more than {_MAX_POWER_BITS} bits")
        else:
            for sequence, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(sequence, str | list | tuple):
                    length = len(sequence) * times
                    if length > _MAX_LENGTH:
                        raise WorkLimitError(
                            f"a product has a length of {length}, at most {_MAX_LENGTH} is allowed"
                        )
        return super().call_binop(context, operator, left, right)

    def check_work(self, context: Context) -> bool:
        """Check the limit; templates call this, see `limited`. True, for use in conditions."""
        limit: WorkLimit = context.parent[_WORK_LIMIT]
        limit.check()
        return True

    def limited(self, source: str) -> jinja2.Template:
        """Compile `source` with calls of `check_work` wherever it repeats something."""
        tree = self.parse(source)

        def check() -> nodes.Call:
            method = nodes.EnvironmentAttribute("check_work")
            return nodes.Call(method, [nodes.ContextReference()], [], None, None)

        for macro in tree.find_all(nodes.Macro):
            macro.body.insert(0, nodes.ExprStmt(check()))
        for loop in tree.find_all(nodes.For):
            loop.body.insert(0, nodes.ExprStmt(check()))
            if loop.test is not None:
                loop.test = nodes.And(check(), loop.test)
        tree.set_environment(self)
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, LoopControlExtension],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def parse_template(source: str) -> nodes.Template:
    """Return the syntax tree of a template that is known to be valid."""
    return _environment().parse(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which models were not trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


# Texts do not contain this form: it is a special token, however a file describes it. The bars of
# DeepSeek are U+FF5C.
_CONTROL_SHAPE = re.compile(r"<([|\uff5c])[^<>|\uff5c\s]+\1>")

_KNOWN_ENDS = frozenset(
    {
        *("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
        *("<|eot|>", "<|eom|>", "<|end|>", "<|return|>", "<|call|>", "<|end_of_turn|>"),
        *("<|EOT|>", "<|END_OF_TURN_TOKEN|>", "[|endofturn|]", "[EOT]", "<EOT>", "\u2581<EOT>"),
        *("<end_of_turn>", "<end_of_utterance>", "</s>", "<eos>", "[EOS]"),
        *(
            f"<{bar}end{gap}of{gap}sentence{bar}>"
            for bar in ("|", "\uff5c")
            for gap in ("_", "\u2581", " ")
        ),
    }
)
# Where a vocabulary has all of these, the last ends a message, after which the turn may go on.
_HARMONY = ("<|return|>", "<|call|>", "<|end|>")

_ANSWER = "6-times-7-is-42"
_PROBE_SECONDS = 0.25  # templates take a hundredth of that


def is_control(text: str) -> bool:
    """Return whether a token's form shows that it is a control token, as `<|im_end|>`."""
    return _CONTROL_SHAPE.fullmatch(text) is not None


def is_known_end(text: str) -> bool:
    """Return whether a token's text is well known as the end of a turn."""
    return text in _KNOWN_ENDS


def end_of_turn_ids(
    inner: tokenizers.Tokenizer, named: Iterable[int], template: ChatTemplate | None
) -> tuple[int, ...]:
    """Return the ids that complete the model's turn, the `named` ones first.

    Files name one, or some, or that of the base model; an answer would then continue into further
    turns. So the one that the template writes after an answer and well-known ones are added. A
    well-known end counts if it is a special token or has the form of one: `</s>` may be text.
    """
    special = {
        token.content: index
        for index, token in inner.get_added_tokens_decoder().items()
        if token.special or is_control(token.content)
    }
    known = {text: special.get(text) for text in _KNOWN_ENDS}
    for text in filter(is_control, _KNOWN_ENDS):
        known[text] = inner.token_to_id(text)
    if all(known[text] is not None for text in _HARMONY):
        del known[_HARMONY[-1]]
    after_answer = None if template is None else _token_after_answer(template, special)
    found = [
        *named,
        *([] if after_answer is None else [special[after_answer]]),
        *sorted(index for index in known.values() if index is not None),
    ]
    return tuple(dict.fromkeys(found))


def _token_after_answer(template: ChatTemplate, special: Iterable[str]) -> str | None:
    """Return the special token that the template writes after the model's answer."""
    turns = {"user": "What is 6 times 7?", "assistant": _ANSWER}
    messages = [{"role": role, "content": content} for role, content in turns.items()]
    try:
        text = template.render_within(WorkLimit(_PROBE_SECONDS), messages, False)
    except ValueError:  # made for other messages than these
        return None
    _, found, after = text.rpartition(_ANSWER)
    following = [token for token in special if found and token and after.startswith(token)]
    return max(following, key=len, default=None)
