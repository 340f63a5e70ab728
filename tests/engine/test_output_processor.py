from __future__ import annotations

import codecs
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.engine.messages import TokenOutput
from sarathi.engine.output_processor import Delta, OutputText
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler.request import FinishReason

END = b"<end>"  # the text of the token that ends a request, which must never be seen


class PieceTokenizer:
    """Token i is the i-th of the byte strings given; special ones add no text."""

    def __init__(self, pieces: Sequence[bytes], special: Sequence[str] = ()) -> None:
        self.special = special
        self.pieces = [*pieces, *[b""] * len(special)]

    def special_id(self, text: str) -> int | None:
        first = len(self.pieces) - len(self.special)
        return first + self.special.index(text) if text in self.special else None

    def stream(
        self,
        skip_special_tokens: bool = True,
        prompt_ids: Sequence[int] = (),
        visible_ids: frozenset[int] = frozenset(),
    ) -> PieceStream:
        return PieceStream(self.pieces, prompt_ids)


class PieceStream:
    def __init__(self, pieces: Sequence[bytes], prompt_ids: Sequence[int]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.push(prompt_ids)

    def push(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(b"".join(self._pieces[i] for i in ids))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


def outputs(count: int, last: FinishReason | None = None) -> list[TokenOutput]:
    finish: list[FinishReason | None] = [None] * (count - 1) + [last]
    return [TokenOutput(0, token, reason) for token, reason in enumerate(finish)]


def assembled(
    pieces: Sequence[bytes],
    params: SamplingParams,
    last: FinishReason | None = "length",
    step: int = 1,
) -> tuple[str, OutputText, list[str]]:
    """The text of all pieces, pushed `step` at a time, and the text of each push."""
    text = OutputText(PieceTokenizer(pieces), params)
    tokens = outputs(len(pieces), last)
    parts = [text.push(tokens[at : at + step]).text for at in range(0, len(tokens), step)]
    return "".join(parts), text, parts


def cut(text: str, stop: Sequence[str], include: bool, barred: int = 0) -> tuple[str, int | None]:
    """The part of `text` that is released, and the end of the stop string that ended it."""
    for end in range(barred + 1, len(text) + 1):
        lengths = [len(one) for one in stop if text[:end].endswith(one)]
        if lengths:
            return text[: end if include else end - max(lengths)], end
    return text, None


def split(data: bytes, points: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[a:b] for a, b in itertools.pairwise(edges)] or [b""]


# Few characters, so that stop strings occur, overlap and nearly occur; two have several bytes.
texts = st.text("abé🙂", max_size=30) | st.text("ab", max_size=40)
stop_strings = st.text("abé🙂", min_size=1, max_size=5) | st.text("ab", min_size=1, max_size=9)
stops = st.lists(stop_strings, min_size=1, max_size=4)
cuts = st.lists(st.integers(0, 200), max_size=60)


@given(texts, stops, cuts, st.booleans(), st.integers(1, 4))
def test_text_is_cut_at_the_first_stop_string_however_it_is_tokenised(
    text, stop, points, include, step
):
    pieces = split(text.encode(), points)
    params = SamplingParams(max_tokens=None, stop=tuple(stop), include_stop_str_in_output=include)
    got, assembly, _ = assembled(pieces, params, step=step)
    expected, end = cut(text, stop, include)
    assert got == expected
    assert assembly.finish_reason == ("length" if end is None else "stop")


@given(texts, stops, cuts)
def test_the_token_that_completes_the_stop_string_is_the_last_that_counts(text, stop, points):
    pieces = split(text.encode(), points)
    _, assembly, _ = assembled(pieces, SamplingParams(max_tokens=None, stop=tuple(stop)))
    _, end = cut(text, stop, False)
    ends = [len(b"".join(pieces[: count + 1])) for count in range(len(pieces))]
    size = len(text.encode()) if end is None else len(text[:end].encode())
    assert assembly.num_tokens == 1 + next(i for i, reach in enumerate(ends) if reach >= size)


@given(texts, stops, cuts)
def test_the_last_delta_names_the_stop_string(text, stop, points):
    pieces = split(text.encode(), points)
    assembly = OutputText(PieceTokenizer(pieces), SamplingParams(max_tokens=None, stop=tuple(stop)))
    deltas = [assembly.push([token]) for token in outputs(len(pieces), "length")]
    _, end = cut(text, stop, False)
    ended_by = [one for one in stop if end is not None and text[:end].endswith(one)]
    if ended_by:
        last = assembly.num_tokens - 1  # what was pushed after it is dropped
        assert deltas[last].stop_string == max(ended_by, key=len)
    else:
        assert {delta.stop_string for delta in deltas} == {None}


@given(texts, stops, cuts)
def test_no_more_is_held_back_than_could_begin_a_stop_string(text, stop, points):
    pieces = split(text.encode(), points)
    assembly = OutputText(PieceTokenizer(pieces), SamplingParams(max_tokens=None, stop=tuple(stop)))
    seen, data = "", b""
    for token, piece in enumerate(pieces):
        seen += assembly.push([TokenOutput(0, token)]).text
        data += piece
        if assembly.finish_reason is not None:
            return
        whole = data.decode(errors="ignore")
        held = max(
            (n for one in stop for n in range(1, len(one)) if whole.endswith(one[:n])), default=0
        )
        assert seen == whole[: len(whole) - held]


@given(texts, stops, cuts, st.integers(0, 20))
def test_stop_strings_complete_before_min_tokens_are_text(text, stop, points, min_tokens):
    pieces = split(text.encode(), points)
    params = SamplingParams(max_tokens=None, stop=tuple(stop), min_tokens=min_tokens)
    early = b"".join(pieces[: max(min_tokens - 1, 0)]).decode(errors="ignore")
    if min_tokens > len(pieces):
        early = text
    got, _, _ = assembled(pieces, params)
    assert got == cut(text, stop, False, barred=len(early))[0]


@given(texts, cuts, st.integers(1, 4))
def test_without_stop_strings_all_text_comes_out(text, points, step):
    pieces = split(text.encode(), points)
    got, assembly, _ = assembled(pieces, SamplingParams(max_tokens=None), step=step)
    assert got == text
    assert assembly.num_tokens == len(pieces)
    assert assembly.finish_reason == "length"


@pytest.mark.parametrize("include", [False, True])
def test_the_token_that_ends_a_request_has_no_text(include):
    params = SamplingParams(stop_token_ids=(2,), include_stop_str_in_output=include)
    got, assembly, _ = assembled([b"one", b" two", END], params, last="stop")
    assert got == "one two"
    assert assembly.finish_reason == "stop"
    assert assembly.num_tokens == 3


def test_a_last_token_that_reached_the_limit_has_text():
    got, _, _ = assembled([b"one", b" two"], SamplingParams(), last="length")
    assert got == "one two"


def test_held_text_comes_out_when_the_request_ends_otherwise():
    params = SamplingParams(stop=("wolf",))
    got, _, parts = assembled([b"a w", b"ol", END], params, last="stop")
    assert parts == ["a ", "", "wol"]
    assert got == "a wol"


def test_half_a_character_at_the_end_is_a_replacement_character():
    got, _, _ = assembled(["é".encode()[:1]], SamplingParams())
    assert got == "\N{REPLACEMENT CHARACTER}"


def test_nothing_after_the_end_is_emitted_or_counted():
    text = OutputText(PieceTokenizer([b"a.", b"b", b"c"]), SamplingParams(stop=(".",)))
    assert text.push(outputs(2)).text == "a"
    late = text.push([TokenOutput(0, 2)])
    assert (late.text, late.token_ids, late.finish_reason) == ("", [], "stop")
    assert text.num_tokens == 1


def test_logprobs_come_with_their_tokens_and_the_offsets_of_their_text():
    pieces = [b"ab", "é".encode()[:1], "é".encode()[1:], b"c"]
    text = OutputText(PieceTokenizer(pieces), SamplingParams(logprobs=0))
    at = TokenLogprobs(-0.5, 1, [], [])
    delta = text.push([TokenOutput(0, token, None, at) for token in range(4)])
    assert delta.text == "abéc"
    assert delta.logprobs == [at] * 4
    assert delta.offsets == [0, 2, 2, 3]


def test_logprobs_are_dropped_when_not_asked_for():
    text = OutputText(PieceTokenizer([b"a"]), SamplingParams())
    delta = text.push([TokenOutput(0, 0, None, TokenLogprobs(-0.5, 1, [], []))])
    assert delta.logprobs == []
    assert delta.offsets == []


def test_the_text_continues_the_prompt():
    pieces = ["é".encode()[:1], "é".encode()[1:]]
    text = OutputText(PieceTokenizer(pieces), SamplingParams(), prompt_ids=[0])
    assert text.push([TokenOutput(0, 1)]).text == "é"


@pytest.mark.parametrize("step", [1, 2, 9])
@pytest.mark.parametrize(
    ("ids", "fields", "text", "count"),
    [
        ([0, 3, 1], {"stop": ("<x>",)}, "a", 2),
        ([0, 4, 1, 3, 1], {"stop": ("<x>",)}, "ab", 4),
        ([0, 4, 1, 3, 1], {"stop": ("<x>", "b")}, "a", 3),
        ([0, 3, 1], {"stop": ("<x>",), "include_stop_str_in_output": True}, "a<x>", 2),
        ([0, 3, 1, 3, 0], {"stop": ("<x>",), "min_tokens": 3}, "ab", 4),
        ([0, 3, 1, 3, 0], {"stop": ("<x>",), "min_tokens": 2}, "a", 2),
        ([0, 1, 3], {"stop": ("<x>", "bc")}, "ab", 3),  # what may begin a stop string comes out
        ([2, 3], {"stop": ("<x>",)}, "\ufffd", 2),
    ],
)
def test_a_stop_string_that_is_a_hidden_special_token(ids, fields, text, count, step):
    tokenizer = PieceTokenizer([b"a", b"b", b"\xc3"], ["<x>", "<y>"])
    assembly = OutputText(tokenizer, SamplingParams(max_tokens=None, **fields))
    tokens = [TokenOutput(0, token, None) for token in ids]
    deltas = [assembly.push(tokens[at : at + step]) for at in range(0, len(tokens), step)]
    assert "".join(delta.text for delta in deltas) == text
    assert assembly.num_tokens == count
    assert assembly.finish_reason == "stop"


def test_a_visible_special_token_is_text():
    tokenizer = PieceTokenizer([b"a"], ["<x>"])
    assembly = OutputText(tokenizer, SamplingParams(stop=("<x>",)), (), frozenset({1}))
    assert assembly.push([TokenOutput(0, 1, None)]).finish_reason is None


def test_log_probabilities_of_a_prompt_come_with_the_first_token_or_the_end():
    found = [TokenLogprobs(-float(index), 1, [], []) for index in range(4)]
    pieces = [b"a", b"b"]
    text = OutputText(PieceTokenizer(pieces), SamplingParams(prompt_logprobs=0))
    scored = [TokenOutput(0, prompt_logprobs=found[:2]), TokenOutput(0, prompt_logprobs=found[2:])]
    assert text.push(scored[:1]) == Delta("", [], [], [], None)
    first, second = outputs(2, "length")
    delta = text.push([scored[1], first])
    assert (delta.text, delta.token_ids, delta.prompt_logprobs) == ("a", [0], found)
    assert text.push([second]).prompt_logprobs == ()
    assert (text.num_tokens, text.finish_reason) == (2, "length")

    text = OutputText(PieceTokenizer(pieces), SamplingParams(max_tokens=0, prompt_logprobs=0))
    delta = text.push([*scored, TokenOutput(0, finish_reason="length")])
    assert delta == Delta("", [], [], [], "length", None, found)
    assert text.num_tokens == 0
