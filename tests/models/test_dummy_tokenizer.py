"""The tokenizer of models that come without one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.bench.workload.prompt_text import write_prompts
from sarathi.bench.workload.workload import PlannedRequest
from sarathi.errors import ModelError
from sarathi.models.model import open_tokenizer
from sarathi.models.tokenizers.dummy_tokenizer import dummy_tokenizer
from sarathi.models.tokenizers.tokenizer import Tokenizer
from tests.tiny_models import save_tokenizer

LEAST = 245
SIZES = (LEAST, 256, 300, 1000, 5000, 32000)
TOKENIZERS = {size: dummy_tokenizer(size) for size in SIZES}
ENGLISH = (
    "The first of these two questions has an answer that most people know, and the other one can "
    "be found in the book which was written about the history of the river and its old bridges."
)


class Counter:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))


@pytest.mark.parametrize("size", SIZES)
def test_every_id_has_a_different_text(size: int) -> None:
    tokenizer = TOKENIZERS[size]
    assert tokenizer.vocab_size == size
    texts = [tokenizer.token_bytes(id_) for id_ in range(size)]
    assert all(texts)
    assert len(set(texts)) == size
    assert max(map(len, texts)) <= 12


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SIZES), st.text())
def test_any_text_comes_back(size: int, text: str) -> None:
    tokenizer = TOKENIZERS[size]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(0 <= id_ < size for id_ in ids)


@pytest.mark.parametrize(("size", "least"), [(LEAST, 1.0), (1000, 1.9), (32000, 2.3)])
def test_characters_of_english_per_token(size: int, least: float) -> None:
    assert len(ENGLISH) / len(TOKENIZERS[size].encode(ENGLISH)) >= least


def test_tokens_beyond_the_pairs_of_pairs_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sarathi.models.tokenizers.dummy_tokenizer._LETTERS", "eta")
    tokenizer = dummy_tokenizer(1000)
    assert tokenizer.vocab_size == 1000
    assert tokenizer.token(999) == "<999>"
    assert tokenizer.decode(tokenizer.encode("<999>")) == "<999>"


def test_a_vocabulary_too_small_for_all_bytes_is_refused() -> None:
    with pytest.raises(ModelError, match=r"vocab_size is 244, expected at least 245"):
        dummy_tokenizer(LEAST - 1)


@pytest.mark.parametrize("size", [LEAST, 32000])
def test_prompts_of_an_exact_length(size: int) -> None:
    counter = Counter(TOKENIZERS[size])
    lengths: Sequence[int] = (20, 21, 100, 1000)
    requests = [PlannedRequest(0.0, length, 1, index, 0) for index, length in enumerate(lengths)]
    texts = write_prompts(requests, counter, "salt", 1)
    assert [counter.count(text) for text in texts] == list(lengths)


def test_conversations_have_a_template() -> None:
    tokenizer = TOKENIZERS[1000]
    assert tokenizer.chat_template is not None
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    text = tokenizer.chat_template.render(messages)
    assert text == "system: be brief\nuser: hi\nassistant:"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_end_of_an_answer_is_a_token_that_is_no_text() -> None:
    tokenizer = TOKENIZERS[300]
    (eos,) = tokenizer.eos_ids
    assert tokenizer.token(eos) == "</s>"
    assert tokenizer.decode([eos]) == ""
    assert tokenizer.encode("</s>") == [eos]


def test_a_tokenizer_in_the_folder_is_used(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_tokenizer(tmp_path, "dummy").vocab_size == 1000
    save_tokenizer(tmp_path)
    assert open_tokenizer(tmp_path, "dummy").vocab_size == 256
