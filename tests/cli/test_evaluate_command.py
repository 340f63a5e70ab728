"""`sarathi evaluate` as a user types it: its table, its JSON, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sarathi.cli.main import main
from tests.tiny_models import save_tiny

_TEXT = "The quick brown fox jumps over the lazy dog, 12345 times a day. " * 5  # 320 bytes
_F32 = ("--precision", "f32", "--threads", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny("llama", folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(_TEXT)
    return path


def evaluated(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    assert main(["evaluate", *map(str, args), "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_precision_is_compared_with_another(
    tiny: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*_F32, "--kv-precision", "u8", "--window", 100)
    found = evaluated(capsys, tiny, "--text", text, *options)
    assert (found["tokens"], found["windows"]) == (len(_TEXT) - 4, 4)
    precisions = [
        (found[name]["precision"], found[name]["kv_precision"]) for name in ("model", "reference")
    ]
    assert precisions == [("f32", "u8"), ("f32", "f32")]
    assert found["model"]["perplexity"] == pytest.approx(found["reference"]["perplexity"], rel=0.1)
    assert 0 < found["divergence"]["kl_mean"] < found["divergence"]["kl_p99"] < 0.5
    assert 0.5 < found["divergence"]["top1_agreement"] <= 1


def test_without_a_reference(tiny: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (*_F32, "--reference", "none", "--max-tokens", 50, "--max-num-batched-tokens", 7)
    found = evaluated(capsys, tiny, "--text", text, *options)
    assert (found["tokens"], found["windows"]) == (49, 1)
    assert (found["reference"], found["divergence"]) == (None, None)


def test_the_table_has_a_row_for_each(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--max-tokens", "100", "--window", "50")
    assert main(["evaluate", str(tiny), *_F32, *options]) == 0
    heading, _, *rows = filter(str.strip, capsys.readouterr().out.splitlines())
    for column in ("precision", "quantisation", "KV cache", "perplexity", "KL P99", "tokens/s"):
        assert column in heading
    served, reference = (row.split() for row in rows)
    assert served[:5] == [tiny.name, "f32", "none", "f32", "98"]
    assert served[6:9] == ["0", "0", "100.00%"]
    assert reference[:6] == ["reference", *served[1:6]]
    assert reference[6:9] == ["-", "-", "-"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--text", "nowhere.txt"), "--text nowhere.txt cannot be read (No such file"),
        (("--text", "."), "--text . cannot be read (Is a directory"),
        (("--window", "513"), "--window is 513 tokens, but the model was made for at most 512"),
        (("--window", "1"), "--window: '1' is not an integer"),
        (("--max-tokens", "1"), "builtin is too short: --max-tokens leaves less than 2 tokens"),
        (("--max-tokens", "0"), "--max-tokens: '0' is not an integer"),
        (("--token-budget", "0"), "--token-budget/--max-num-batched-tokens: '0' is not an integer"),
        (("--reference", "int8"), "--reference: invalid choice: 'int8'"),
        (("--tp", "2"), "unrecognized arguments: --tp 2"),
    ],
)
def test_bad_options_are_refused(
    tiny: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, str(tiny), *options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"x", "is too short: it has less than 2 tokens"),
        (b"fine, then \xff\xfe", "is not UTF-8: "),
    ],
)
def test_bad_texts_are_refused(
    tiny: Path, tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    assert f"{path} {message}" in refused(capsys, str(tiny), "--text", str(path))


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    try:
        code: object = main(["evaluate", *args])
    except SystemExit as error:  # of argparse
        code = error.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    return printed.err.strip().splitlines()[-1]


def test_help_needs_no_engine() -> None:
    look = (
        "import sys; from sarathi.cli.main import main\n"
        "try: main(['evaluate', '--help'])\n"
        "except SystemExit: print([m for m in ('openvino', 'torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    assert "--max-num-batched-tokens" in found.stdout
