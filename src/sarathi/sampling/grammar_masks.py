"""Which tokens the grammars of requests allow next, computed while the model computes.

A sampled token goes to a thread, which computes the mask for the next one outside of Python's
global lock. Grammars whose masks take long, and those that are still being compiled, have another
thread, so that they never delay the masks of others.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sarathi.sampling.grammar import Grammar
from sarathi.sampling.grammar_compiler import compile_grammar, raise_error

if TYPE_CHECKING:
    import llguidance

# Longer masks go to the other thread, and sampling does not wait for them.
SLOW_SECONDS = 0.004
_DISTRUSTED = 32  # tokens for which a grammar counts as slow after such a mask
_REPLAYED = 16  # tokens at a time, so that other threads run in between
_MAX_COMPILED = 64  # grammars that are kept
_LONGEST_JOB = 10.0  # seconds; far more than any takes
# The upper bounds of the logits of 8 tokens, for each byte of a mask.
_BOUNDS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1,
    np.float32(np.inf),
    np.float32(-np.inf),
)


class Matcher:
    """The state of a grammar after some tokens; not thread-safe."""

    def __init__(self, inner: llguidance.LLMatcher, vocab_size: int) -> None:
        self._inner = inner
        self._vocab_size = vocab_size

    def consume(self, tokens: Sequence[int]) -> None:
        """Go on after tokens; `GrammarError` if the grammar does not allow one of them."""
        if self._inner.is_stopped() and not self._inner.is_error():
            return  # what follows a complete output can only be its end
        for start in range(0, len(tokens), _REPLAYED):
            self._inner.consume_tokens(list(tokens[start : start + _REPLAYED]))
        raise_error(self._inner)

    def rollback(self, count: int) -> None:
        """Go back to before the last `count` tokens; `ValueError` if there were fewer."""
        self._inner.rollback(count)
        if self._inner.is_error():
            raise ValueError(f"cannot take back {count} tokens: {self._inner.get_error()}")

    def mask(self) -> NDArray[np.int32]:
        """Return a bit for each token: whether it may come next.

        Of a complete output, these are the tokens that end a sequence. `GrammarError` if that is
        too complex to find out.
        """
        words = np.zeros(-(-self._vocab_size // 32), np.int32)
        self._inner.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        raise_error(self._inner)
        return words

    def copy(self) -> Matcher:
        """Return an independent one in the same state."""
        return Matcher(self._inner.deep_copy(), self._vocab_size)


class GrammarMask:
    """The tokens that may come next in one output."""

    def __init__(self, grammar: Grammar, barred_ids: Sequence[int]) -> None:
        self.grammar = grammar
        self.error: str | None = None  # why the output cannot go on
        self.distrusted = 1  # tokens until it is not slow any more; the first takes compiling
        self.ready = False  # whether `words` are those of the next token, or `error` is set
        self.closed = False
        self.words: NDArray[np.int32] = np.empty(0, np.int32)  # a bit for each token
        self.matcher: Matcher | None = None
        self._barred_ids = np.asarray(barred_ids, np.int64)

    @property
    def slow(self) -> bool:
        """Whether the next mask may take long."""
        return self.distrusted > 0

    def compute(self) -> None:
        """Make the mask of the next token."""
        assert self.matcher is not None
        words = self.matcher.mask()
        if len(self._barred_ids):
            without = clear_bits(words, self._barred_ids)
            # Only tokens that end the sequence: the grammar is complete.
            words = without if without.any() else words
        self.words = words

    def allows(self, token: int) -> bool:
        """Return whether a token may come next."""
        word, bit = divmod(token, 32)
        return word < len(self.words) and bool(int(self.words[word]) >> bit & 1)

    def only_allows(self, ids: NDArray[np.int64]) -> bool:
        """Return whether no other tokens than `ids` may come next."""
        return not clear_bits(self.words, ids).any()

    def bounds(self, vocab_size: int) -> NDArray[np.float32]:
        """Return an upper bound of each logit: infinity, or minus infinity for a barred token.

        Takes as long for every mask.
        """
        bounds = _BOUNDS.take(self.words.view(np.uint8), axis=0, mode="clip").reshape(-1)
        missing = vocab_size - len(bounds)
        if missing > 0:
            return np.pad(bounds, (0, missing), constant_values=-np.inf)
        return bounds[:vocab_size]

    @property
    def failure(self) -> str | None:
        """Why no token can be chosen, if that is due to the grammar."""
        if self.error is not None:
            return f"the output cannot follow its grammar: {self.error}"
        return None if self.words.any() else "the grammar allows no token here"


def clear_bits(words: NDArray[np.int32], ids: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return a copy of a mask without some tokens."""
    cleared = words.copy()
    bits = np.left_shift(np.uint32(1), (ids & 31).astype(np.uint32))
    np.bitwise_and.at(cleared.view(np.uint32), ids >> 5, ~bits)
    return cleared


class GrammarMasks:
    """The masks of all requests of an engine, and the threads that compute them.

    Its methods are for the thread of the engine.
    """

    def __init__(self, make_tokenizer: Callable[[], llguidance.LLTokenizer]) -> None:
        """Start nothing yet; `prepare` and the first grammar do.

        `make_tokenizer` is then called in a thread; it may raise `ModelError`.
        """
        self._compiler = _Compiler(make_tokenizer)
        self._done = threading.Condition()  # a mask is ready
        self._fast: _Jobs | None = None
        self._slow: _Jobs | None = None

    def open(
        self, grammar: Grammar, output_ids: Sequence[int] = (), barred_ids: Sequence[int] = ()
    ) -> GrammarMask:
        """Return the mask of an output, which is computed in a thread.

        Args:
            output_ids: tokens that it has already.
            barred_ids: allowed only where the grammar allows nothing else.
        """
        self.prepare()
        assert self._slow is not None
        mask = GrammarMask(grammar, barred_ids)
        self._slow.put((self._compiler.begin, mask, output_ids))
        return mask

    def prepare(self) -> None:
        """Start to make the tokenizer, if that has not been done yet.

        It takes up to a second, in which no other thread runs: better while there are no requests.
        """
        if self._slow is None:
            self._fast, self._slow = self._start("grammar-masks"), self._start("grammars")
            unused = GrammarMask(Grammar(""), ())
            self._slow.put((self._compiler.prepare, unused, ()))

    def append(self, mask: GrammarMask, token: int) -> None:
        """Compute the mask after one more token."""
        mask.ready = False
        jobs = self._slow if mask.slow else self._fast
        assert jobs is not None
        jobs.put((advance, mask, (token,)))

    def wait(self, masks: Iterable[GrammarMask], seconds: float, *, slow: bool) -> float:
        """Wait until masks are ready; return for how many seconds.

        Those that take long are waited for only if `slow`, those that have failed never.
        """
        missing = [
            mask
            for mask in masks
            if not mask.ready and mask.error is None and (slow or not mask.slow)
        ]
        if not missing:
            return 0.0
        start = time.monotonic()
        with self._done:
            self._done.wait_for(lambda: all(mask.ready for mask in missing), seconds)
        return time.monotonic() - start

    def _start(self, name: str) -> _Jobs:
        jobs: _Jobs = SimpleQueue()
        thread = threading.Thread(target=_run, args=(jobs, self._done), name=name, daemon=True)
        thread.start()
        weakref.finalize(self, _stop, jobs, thread)
        return jobs


_Job = tuple[Callable[[GrammarMask, Sequence[int]], None], GrammarMask, Sequence[int]]
_Jobs = SimpleQueue[_Job | None]


def _run(jobs: _Jobs, done: threading.Condition) -> None:
    """Do jobs until there is None, in a thread."""
    while (job := jobs.get()) is not None:
        function, mask, tokens = job
        if not mask.closed:
            try:
                function(mask, tokens)
            except BaseException as error:  # panics of the library, too, end one request only
                mask.error = str(error) or type(error).__name__
        with done:
            mask.ready = True
            done.notify_all()
        del job, function, mask  # an idle thread keeps no request


def _stop(jobs: _Jobs, thread: threading.Thread) -> None:
    """Drop the jobs and end their thread: a process must not exit while it is in native code."""
    with suppress(Empty):
        while True:
            jobs.get_nowait()
    jobs.put(None)
    if thread is not threading.current_thread():  # garbage may be collected in any
        thread.join(_LONGEST_JOB)


def advance(mask: GrammarMask, tokens: Sequence[int]) -> None:
    """Consume tokens, and compute the mask of the next one."""
    assert mask.matcher is not None
    start = time.monotonic()
    mask.matcher.consume(tokens)
    mask.compute()
    if time.monotonic() - start > SLOW_SECONDS:
        mask.distrusted = _DISTRUSTED
    elif mask.distrusted:
        mask.distrusted -= 1


class _Compiler:
    """Compiles grammars; the latest are kept. For one thread."""

    def __init__(self, make_tokenizer: Callable[[], llguidance.LLTokenizer]) -> None:
        self._make_tokenizer = make_tokenizer
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, Matcher] = OrderedDict()

    def prepare(self, mask: GrammarMask, tokens: Sequence[int]) -> None:
        """Make the tokenizer, for a mask that nobody waits for."""
        self._tokenizer = self._make_tokenizer()

    def begin(self, mask: GrammarMask, tokens: Sequence[int]) -> None:
        """Compile the grammar of a mask, and compute the mask after `tokens`."""
        matcher = self._compiled.pop(mask.grammar, None)
        if matcher is None:
            matcher = self._compile(mask.grammar)
        self._compiled[mask.grammar] = matcher
        if len(self._compiled) > _MAX_COMPILED:
            self._compiled.popitem(last=False)
        mask.matcher = matcher.copy()
        advance(mask, tokens)

    def _compile(self, grammar: Grammar) -> Matcher:
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        inner = compile_grammar(grammar, self._tokenizer)
        matcher = Matcher(inner, self._tokenizer.vocab_size)
        matcher.mask()  # copies have what it has found out
        return matcher
