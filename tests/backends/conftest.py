"""Models that several tests of backends load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny_models


@pytest.fixture(scope="module")
def sliding_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mistral with sliding windows."""
    folder = tmp_path_factory.mktemp("model")
    tiny_models.save_tiny("mistral-sliding", folder)
    return folder
