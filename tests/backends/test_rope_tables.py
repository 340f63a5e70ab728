from __future__ import annotations

import numpy as np
import pytest

from sarathi.errors import ExecutorError
from sarathi.models import rope


def test_angles_are_exact_far_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope, "_CHUNK", 1000)  # several pieces
    frequencies = (1.0, 0.01, 1e-6)
    cos, sin = rope.rope_tables(frequencies, 123_456)
    position = 123_455
    for index, frequency in enumerate(frequencies):
        assert cos[position, index] == np.float32(np.cos(position * frequency))
        assert sin[position, index] == np.float32(np.sin(position * frequency))
    assert cos.shape == (123_456, 3)
    assert cos.dtype == np.float32


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ExecutorError, match=r"1000000000 positions take 512.0 GB.*--max-model-len"):
        rope.rope_tables((1.0,) * 64, 10**9)
