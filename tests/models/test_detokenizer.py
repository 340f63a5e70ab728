from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from sarathi.errors import ModelError
from sarathi.models.locate import locate
from sarathi.models.model import open_tokenizer
from sarathi.models.tokenizers.tokenizer import Tokenizer
from tests.tiny_models import save_tokenizer

_WORDS = ["▁", "▁the", "▁▁", "é", "▁日本", "a", "🎉"]


def _sentencepiece() -> tokenizers.Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_WORDS]
    inner = tokenizers.Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True)
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(["<s>", "</s>"])
    return inner


_SENTENCEPIECE = _sentencepiece()
_WORD_IDS = range(259, 259 + len(_WORDS))
_SMOLLM2 = open_tokenizer(locate("smollm2-135m").path)


def _streamed(tokenizer: Tokenizer, pushes: list[list[int]], skip: bool) -> str:
    stream = tokenizer.stream(skip_special_tokens=skip)
    return "".join([*(stream.push(ids) for ids in pushes), stream.flush()])


_PUSHES = st.lists(st.lists(st.integers(0, 300), max_size=4), max_size=12)


@given(_PUSHES, st.booleans())
def test_pieces_of_sentencepiece_tokens_join_to_the_decoded_text(
    pushes: list[list[int]], skip: bool
) -> None:
    tokenizer = Tokenizer(_SENTENCEPIECE)
    assert _streamed(tokenizer, pushes, skip) == tokenizer.decode(list(chain(*pushes)), skip)


@given(st.lists(st.lists(st.integers(0, 50_000), max_size=4), max_size=12), st.booleans())
def test_pieces_of_byte_level_tokens_join_to_the_decoded_text(
    pushes: list[list[int]], skip: bool
) -> None:
    assert _streamed(_SMOLLM2, pushes, skip) == _SMOLLM2.decode(list(chain(*pushes)), skip)


@given(ids=st.lists(st.integers(0, 255), max_size=20), skip=st.booleans())
def test_byte_level_decoding_is_that_of_the_tokenizers_library(
    byte_level: Path, ids: list[int], skip: bool
) -> None:
    library = tokenizers.Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    assert open_tokenizer(byte_level).decode(ids, skip) == library.decode(ids, skip)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte-level")
    save_tokenizer(folder)
    (folder / "config.json").write_text('{"eos_token_id": 1}')
    return folder


@given(st.lists(st.one_of(st.sampled_from(_WORD_IDS), st.text(max_size=3)), max_size=12))
def test_sentencepiece_decoding_is_that_of_the_tokenizers_library(
    parts: list[int | str],
) -> None:
    ids: list[int] = []
    for part in parts:
        ids += [part] if isinstance(part, int) else [3 + byte for byte in part.encode()]
    assert Tokenizer(_SENTENCEPIECE).decode(ids) == _SENTENCEPIECE.decode(ids)


def test_incomplete_characters_are_held_back() -> None:
    stream = Tokenizer(_SENTENCEPIECE).stream()
    pieces = [stream.push([3 + byte]) for byte in "é🎉x".encode()]
    assert pieces == ["", "é", "", "", "", "🎉", "x"]
    assert stream.flush() == ""


def test_an_incomplete_character_at_the_end_is_replaced() -> None:
    stream = Tokenizer(_SENTENCEPIECE).stream()
    assert stream.push([3 + byte for byte in "🎉".encode()[:3]]) == ""
    assert stream.flush() == "\ufffd"


def test_invalid_bytes_do_not_hold_back_what_follows() -> None:
    stream = Tokenizer(_SENTENCEPIECE).stream()
    pieces = [stream.push([3 + 0xFF]) for _ in range(100)]
    assert pieces == ["\ufffd"] * 100
    assert stream.push([3 + ord("x")]) == "x"


def test_the_first_space_is_dropped_only_where_a_text_begins() -> None:
    tokenizer = Tokenizer(_SENTENCEPIECE)
    the = 260
    alone, after_bos, after_prompt = (
        tokenizer.stream(prompt_ids=prompt) for prompt in ([], [1], [1, the])
    )
    assert alone.push([the]) + alone.push([the]) == "the the"
    assert after_bos.push([the]) == "the"
    assert after_prompt.push([the]) == " the"
    assert tokenizer.token(the) == " the"


def test_a_character_that_the_prompt_began_is_completed() -> None:
    first, second = (3 + byte for byte in "é".encode())
    stream = Tokenizer(_SENTENCEPIECE).stream(prompt_ids=[259, first])
    assert stream.push([second]) == "é"


def test_special_tokens_appear_only_on_request() -> None:
    tokenizer = Tokenizer(_SENTENCEPIECE)
    assert tokenizer.stream().push([1, 264, 2]) == "a"
    assert tokenizer.stream(skip_special_tokens=False).push([1, 264, 2]) == "<s>a</s>"


def test_bytes_of_tokens() -> None:
    tokenizer = Tokenizer(_SENTENCEPIECE)
    assert tokenizer.token_bytes(3 + 0xAB) == b"\xab"
    assert tokenizer.token(3 + 0xAB) == "\ufffd"
    assert tokenizer.token_bytes(263) == " 日本".encode()
    assert tokenizer.token_bytes(2) == b"</s>"
    assert _SMOLLM2.token_bytes(2) == b"<|im_end|>"
    ids = _SMOLLM2.encode(" 🎉日")
    assert b"".join(map(_SMOLLM2.token_bytes, ids)) == " 🎉日".encode()


def test_ids_outside_the_vocabulary() -> None:
    tokenizer = Tokenizer(_SENTENCEPIECE)
    assert tokenizer.decode([264, 10**6, 264]) == "aa"
    for wrong in (-1, 2**70):
        with pytest.raises(ValueError, match="is no token id"):
            tokenizer.decode([wrong])


def test_an_unknown_decoder_is_refused() -> None:
    inner = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    inner.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match=r"decoder is not supported.*WordPiece"):
        Tokenizer(inner)
