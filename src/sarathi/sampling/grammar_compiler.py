"""Compile grammars with llguidance, for a model's tokenizer or only to check them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np

from sarathi.errors import ModelError
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.grammar import Grammar, GrammarError

if TYPE_CHECKING:
    import llguidance

MAX_GRAMMAR_BYTES = 512 * 2**10  # the tools of agents have 100 KB of schemas
# They bound the time and the memory of compiling and of each mask, to about 50 ms and 10 MB.
_LIMITS = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 100_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
_HAS_OPTIONS = re.compile(r"^\s*%llguidance\b", re.MULTILINE)
_ESCAPES = re.compile(r"\\(?:x\{([0-9a-f]{1,4})\}|u([0-9a-f]{4})|(.))")
_CHECKED_TOKENS = 2  # some faults show only after the first token
_MAX_REASON = 500  # characters
_NO_OUTPUT = "no output can follow it"
# Parts of the library's messages: where something is in the text that was made of a schema or a
# regular expression, and that text, with line numbers.
_REWRITTEN = re.compile(
    r"^at \d+\(\d+\): (?=invalid regex)|^at \d+\(\d+\): failed to compile JSON schema: "
    r"|^ *\d+ \| .*$|^ *\^ *\n*\Z|<non-verbose/>",
    re.MULTILINE,
)


def compile_grammar(grammar: Grammar, tokenizer: llguidance.LLTokenizer) -> llguidance.LLMatcher:
    """Return a matcher at the beginning of an output; `GrammarError` with the reason if it cannot
    be made."""
    import llguidance

    if len(grammar.lark.encode("utf-8", "replace")) > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"it is longer than {MAX_GRAMMAR_BYTES // 2**10} KiB")
    limits = llguidance.LLParserLimits(**_LIMITS)  # type: ignore[arg-type]
    try:
        matcher = llguidance.LLMatcher(
            tokenizer, _with_beginning(grammar, tokenizer), log_level=0, limits=limits
        )
    except UnicodeEncodeError:
        raise GrammarError("it is not valid Unicode") from None
    raise_error(matcher)
    return matcher


def _with_beginning(grammar: Grammar, tokenizer: llguidance.LLTokenizer) -> str:
    """Return a grammar with any text before it, up to the marker."""
    lark = _with_options(grammar.lark, tokenizer)
    if not grammar.after:
        return lark
    ids = tokenizer.tokenize_str(grammar.after, parse_special=True)
    if len(ids) == 1 and tokenizer.is_special_token(ids[0]):
        beginning = f"start: /(.|\\n)*/ <[{ids[0]}]> @answer\n"
    else:
        marker = json.dumps(grammar.after)
        beginning = f"start: before @answer\nbefore[suffix={marker}]: /(.|\\n)*/\n"
    # As a grammar of its own, the answer keeps its rules, whatever their names are.
    parts = [
        {"lark_grammar": beginning},
        {"name": "answer", "lark_grammar": lark},
    ]
    return json.dumps({"grammars": parts})


def _with_options(lark: str, tokenizer: llguidance.LLTokenizer) -> str:
    """Return a grammar that does not force tokens if it contains the text of a special one.

    Where one text alone can follow, the library forces the tokens that the tokenizer makes of it:
    the special token, which it then does not accept. Without forcing masks take longer.
    """
    if _HAS_OPTIONS.search(lark) or not _mentions_special_token(lark, tokenizer):
        return lark
    return '%llguidance {"no_forcing": true}\n' + lark


def _mentions_special_token(lark: str, tokenizer: llguidance.LLTokenizer) -> bool:
    """Return whether the text of a special token is in a grammar, as far as it is not in parts."""
    text = _ESCAPES.sub(lambda m: m[3] or chr(int(m[1] or m[2], 16)), lark)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return any(map(tokenizer.is_special_token, tokenizer.tokenize_str(text)))


def raise_error(matcher: llguidance.LLMatcher) -> None:
    """Raise `GrammarError` if a matcher cannot go on."""
    if matcher.is_error():
        raise _error(matcher.get_error())


def _error(message: str) -> GrammarError:
    reason = _REWRITTEN.sub("", message).strip()
    reason = _NO_OUTPUT if reason == "NoExtensionBias" else reason
    return GrammarError(reason if len(reason) <= _MAX_REASON else reason[:_MAX_REASON] + "...")


def check_syntax(lark: str) -> None:
    """Raise `GrammarError`, with the reason, for a grammar that is malformed for any tokenizer."""
    import llguidance

    fault = llguidance.LLMatcher.validate_grammar(llguidance.LLMatcher.grammar_from_lark(lark))
    if fault:
        raise _error(fault)


def check_grammar(grammar: Grammar, tokenizer: Tokenizer) -> None:
    """Raise `GrammarError`, with the reason, for a grammar that is malformed or too complex.

    Takes up to a tenth of a second, mostly outside of Python's global lock: not for an event loop.
    """
    try:
        matcher = compile_grammar(grammar, tokenizer.bytes_for_grammars)
    except ModelError as error:
        raise GrammarError(str(error)) from None
    for _ in range(_CHECKED_TOKENS):
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        raise_error(matcher)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        if matcher.is_stopped() or not len(allowed):
            return
        matcher.consume_token(int(allowed[0]))
        raise_error(matcher)
