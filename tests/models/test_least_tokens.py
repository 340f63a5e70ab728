"""A bound on the number of tokens that needs no tokenising."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from sarathi.models.locate import locate
from sarathi.models.model import open_tokenizer
from sarathi.models.tokenizers.tokenizer import Tokenizer
from tests import tiny_models

SMOLLM2 = open_tokenizer(locate("smollm2-135m").path)


@given(st.text() | st.text(alphabet=" \n=-", min_size=50, max_size=500))
def test_no_text_has_fewer_tokens(text: str) -> None:
    assert SMOLLM2.least_tokens(text) <= len(SMOLLM2.encode(text))


def test_a_text_of_megabytes_has_many() -> None:
    assert SMOLLM2.least_tokens("x" * 8 * 10**6) > 50_000


@pytest.mark.parametrize(
    ("normalizer", "least"),
    [(None, 100), (tokenizers.normalizers.NFC(), 25), (tokenizers.normalizers.Strip(), 0)],
)
def test_the_normalizer_counts(
    normalizer: tokenizers.normalizers.Normalizer | None, least: int, tmp_path: Path
) -> None:
    tiny_models.save_tokenizer(tmp_path)
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    if normalizer is not None:
        inner.normalizer = normalizer
    longest = len("</s>")
    assert Tokenizer(inner).least_tokens("x" * 100 * longest) == least
