"""Arguments, environment variables, a file and documentation follow from declared options."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from sarathi.cli.arguments import ConfigFile, layered_options, parse_options
from sarathi.cli.local_engine import LogOptions
from sarathi.cli.main import main
from sarathi.cli.options_table import options_tables
from sarathi.cli.serve import ServeOptions
from sarathi.engine.config import EngineConfig
from sarathi.errors import UsageError
from sarathi.options import LAYERED, Count, Option, OptionGroup, Seconds, changed


class Options(Struct, frozen=True, kw_only=True):
    """All that a new set of options needs."""

    width: Annotated[Count, Option("of the page", group="page", aliases=("columns",))] = 80
    delay: Annotated[Seconds | None, Option("before it", default="none, 100% of the time")] = None
    color: Annotated[Literal["red", "blue"], Option("of the text")] = "red"
    border: Annotated[bool, Option("around it", name="show-border")] = True
    share: Annotated[float, Meta(gt=0, le=1), Option("that is filled")] = 1.0
    line: Annotated[tuple[str, ...], Option("of text; may be given several times")] = ()


class Layers(Struct, frozen=True, kw_only=True):
    config: ConfigFile = None
    options: Annotated[Options, LAYERED]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "options.yaml"


def read(*argv: str, file: Path | None = None) -> Options:
    words = [*argv, *([] if file is None else ["--config", str(file)])]
    return parse_options(Layers, words).options


def test_the_command_line() -> None:
    assert read() == Options()
    words = ["--columns=3", "--delay", "50ms", "--color=blue", "--no-show-border", "--share", "1"]
    found = read(*words, "--line", "a", "--line", "b")
    assert found == Options(
        width=3,
        delay=0.05,
        color="blue",
        border=False,
        line=("a", "b"),
    )


def test_the_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    printed = capsys.readouterr().out
    assert "page:" in printed
    assert "of the page (default: 80)" in printed
    assert "before it (default: none, 100% of the time)" in printed
    assert "--color {red,blue}" in printed
    assert "--show-border, --no-show-border" in printed


def test_wrong_values_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read("--width", "0")
    assert ended.value.code == 2
    assert "argument --width/--columns: '0' is not an integer at" in capsys.readouterr().err


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARATHI_WIDTH", "5")
    monkeypatch.setenv("SARATHI_SHOW_BORDER", "off")
    monkeypatch.setenv("SARATHI_LINE", "a b")
    assert read() == Options(width=5, border=False, line=("a b",))
    monkeypatch.setenv("SARATHI_WIDTH", "wide")
    with pytest.raises(UsageError, match="SARATHI_WIDTH: 'wide' is not an integer"):
        read()


def test_a_file(file: Path) -> None:
    file.write_text("columns: 5\ndelay: 0.5\nshow_border: false\nline: [a, 7]\ncolor:\n")
    assert read(file=file) == Options(
        width=5,
        delay=0.5,
        border=False,
        line=("a", "7"),
    )
    file.write_text("# nothing\n")
    assert read(file=file) == Options()


def test_the_command_line_precedes_the_environment_and_that_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("width: 1\nshare: 0.1\ncolor: blue\n")
    monkeypatch.setenv("SARATHI_WIDTH", "2")
    monkeypatch.setenv("SARATHI_SHARE", "0.2")
    assert read("--width", "3", file=file) == Options(width=3, share=0.2, color="blue")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widht: 3", "widht is not an option here, expected one of color, delay, line, share, "),
        ("width: 0", "width: '0' is not an integer at least 1 and at most"),
        ("width: true", "width: 'true' is not an integer"),
        ("color: green", "color: invalid choice: 'green' .choose from 'red', 'blue'"),
        ("show-border: maybe", "show-border: 'maybe' is not true or false"),
        ("delay: soon", "delay: is 'soon', expected seconds as a number"),
        ("width: [1, 2]", r"width is \[1, 2\], expected a single value"),
        ("width: 1\ncolumns: 2", "columns and width are the same option"),
        ("- width", "is not a mapping"),
        ("width: 1: 2", "is not YAML"),
    ],
)
def test_wrong_files_are_refused_with_key_and_accepted_values(
    file: Path, text: str, message: str
) -> None:
    file.write_text(text)
    with pytest.raises(UsageError, match=f"{file}.*{message}"):
        read(file=file)


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "smollm2-135m", "--config", str(tmp_path / "none")]) == 2
    assert "none cannot be read: No such file" in capsys.readouterr().err


class Page(Struct, frozen=True, kw_only=True):
    source: Annotated[str, Option("a text", positional=True, metavar="SOURCE")]
    others: Annotated[tuple[str, ...], Option("more", positional=True, metavar="OTHER")] = ()
    width: Annotated[int, Option("its own")] = 0
    text: Annotated[Options, OptionGroup(only=("color", "border"), group="other")]


def test_a_class_holds_a_part_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    found = parse_options(Page, ["a", "b", "--width", "3", "--color", "blue"])
    text = Options(color="blue")
    assert found == Page(source="a", others=("b",), width=3, text=text)
    assert parse_options(Page, ["a"]) == Page(source="a", text=Options())
    assert changed(text) == ["--color"]
    for words, message in (([], "required: SOURCE"), (["a", "--share", "1"], "unrecognized")):
        with pytest.raises(SystemExit):
            parse_options(Page, words)
        assert message in capsys.readouterr().err


def test_only_classes_that_are_layered_take_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SARATHI_COLOR", "blue")
    assert parse_options(Page, ["a"]).text.color == "red"


def test_what_kubernetes_sets_for_a_service_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARATHI_WIDTH", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("SARATHI_LINE", "tcp://10.0.0.1:8000")
    assert read() == Options(line=("tcp://10.0.0.1:8000",))
    monkeypatch.setenv("SARATHI_WIDTH", "tcp:8000")
    with pytest.raises(UsageError, match="SARATHI_WIDTH: 'tcp:8000' is not an integer"):
        read()


def test_the_port_is_not_that_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARATHI_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("SARATHI_HOST", "::1")
    server = parse_options(ServeOptions, ["smollm2-135m"]).server
    assert (server.port, server.host) == (8000, "::1")


def engine(*argv: str) -> EngineConfig:
    return parse_options(ServeOptions, ["smollm2-135m", *argv]).engine


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (["--max-num-batched-tokens", "64"], {"token_budget": 64}),
        (["--max-num-seqs", "3"], {"max_batch_size": 3}),
        (["--dtype", "float32"], {"precision": "f32"}),
        (["--dtype", "bfloat16"], {"precision": "bf16"}),
        (["--dtype", "half"], {"precision": "f16"}),
        (["--precision", "float16"], {"precision": "f16"}),
        (["--dtype", "auto"], {}),
        (["--executor", "torch", "--tensor-parallel-size", "2"], {"executor": "torch", "tp": 2}),
        (["--pipeline-parallel-size", "2"], {"pp": 2}),
        (["--no-enable-prefix-caching"], {"prefix_caching": False}),
    ],
)
def test_names_and_values_of_vllm(words: list[str], fields: dict[str, object]) -> None:
    assert engine(*words) == EngineConfig(**fields)  # type: ignore[arg-type]


def test_a_default_on_the_command_line_precedes_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SARATHI_PRECISION", "f32")
    assert engine().precision == "f32"
    assert engine("--dtype", "auto").precision is None


def test_an_option_from_a_file_is_checked_with_the_others(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("ttft-target: 2s\n")
    assert main(["serve", "smollm2-135m", "--config", str(file)]) == 2
    assert "ttft_target has no effect on the order fcfs" in capsys.readouterr().err


def test_a_file_names_a_row_of_a_table(file: Path) -> None:
    file.write_text("policy: vllm\n")
    assert engine("--config", str(file)).policy == "vllm"


@pytest.mark.parametrize(("words", "level"), [((), "WARNING"), (("--log-level", "debug"), "DEBUG")])
def test_the_level_of_the_log(words: tuple[str, ...], level: str) -> None:
    logger = logging.getLogger("sarathi")
    before = logger.level
    try:
        parse_options(LogOptions, words).configure()
        assert logging.getLevelName(logger.level) == level
    finally:
        logger.setLevel(before)


def test_the_documentation_lists_every_option_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    assert options_tables() in page, "run python -m sarathi.cli.options_table docs/configuration.md"
    for each in layered_options(ServeOptions):
        row = next(row for row in page.splitlines() if row.startswith(f"| `--{each.names[0]}`"))
        assert f"| `{each.variable}` | {each.default_text or 'none'} |" in row
