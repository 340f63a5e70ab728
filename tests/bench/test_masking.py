"""What is shown of a command."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sarathi.bench.target import Launched, mask_secrets
from sarathi.errors import BenchmarkError


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("vllm serve m --api-key K --port 80", "vllm serve m --api-key *** --port 80"),
        ("x --api_key='a b' y", "x --api_key=*** y"),
        ("x --api-key a\\ b y", "x --api-key *** y"),
        ("x --hf-token  k", "x --hf-token  ***"),
        ("x --API-KEY=k", "x --API-KEY=***"),
        ('env HF_TOKEN=q VLLM_API_KEY="a b" x', "env HF_TOKEN=*** VLLM_API_KEY=*** x"),
        ('sh -c "x --api-key K"', 'sh -c "x --api-key ***"'),
        ("x --api-key -K --api-key L", "x --api-key *** --api-key ***"),
    ],
)
def test_keys_are_masked(command: str, shown: str) -> None:
    assert mask_secrets(command) == shown


@pytest.mark.parametrize(
    "command",
    [
        "sarathi serve m --token-budget 512 --tokenizer t --max-tokens 5 --port 8100",
        "x --api-key",
        "serve token secret 'a  b'",
    ],
)
def test_all_else_is_as_it_was_typed(command: str) -> None:
    assert mask_secrets(command) == command


def test_messages_of_a_server_that_cannot_be_started_have_no_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = tmp_path / "file" / "server.log"
    launched = Launched("true --api-key K3Y", "http://127.0.0.1:1", log)
    with pytest.raises(BenchmarkError, match=r"'true --api-key \*\*\*' cannot be started"):
        launched.__enter__()


@pytest.mark.parametrize("part", ["-", "--api-key", "-token ", "a", "'a'", '"', "\\"])
def test_long_commands_take_no_time(part: str) -> None:
    before = time.process_time()
    mask_secrets(f"x --api-key {part * 5000}")
    assert time.process_time() - before < 0.1
