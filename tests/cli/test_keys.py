"""Keys from options, files and the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from msgspec import Struct

from sarathi.cli.arguments import parse_options
from sarathi.cli.keys import ClientKey, ServerKeys
from sarathi.cli.main import main
from sarathi.errors import UsageError
from sarathi.options import LAYERED

LENGTHS = ("--prompt-lengths", "fixed:9", "--output-lengths", "fixed:9")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SARATHI_API_KEY", "SARATHI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


def server(*argv: str) -> ServerKeys:
    class Options(Struct):
        keys: Annotated[ServerKeys, LAYERED]

    return parse_options(Options, argv).keys


def client(*argv: str) -> str | None:
    return parse_options(ClientKey, argv).read()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("one\n\n  two \r\n")
    return path


class TestOfAServer:
    def test_none(self) -> None:
        assert server().api_keys() == server().admin_keys() == ()

    def test_the_environment_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SARATHI_API_KEY", "k")
        monkeypatch.setenv("SARATHI_ADMIN_KEY", "root")
        assert server().api_keys() == ("k",)
        assert server().admin_keys() == ("root",)

    def test_a_file_has_one_a_line(self, key_file: Path) -> None:
        assert server("--api-key-file", str(key_file)).api_keys() == ("one", "two")

    def test_options_and_file_together(self, key_file: Path) -> None:
        args = server("--api-key", "zero", "--api-key", "one", "--api-key-file", str(key_file))
        assert args.api_keys() == ("zero", "one", "two")

    def test_options_go_before_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SARATHI_API_KEY", "k")
        assert server("--api-key", "given").api_keys() == ("given",)

    @pytest.mark.parametrize("value", ["", "  "])
    def test_an_empty_variable_does_not_open_the_server(
        self, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SARATHI_API_KEY", value)
        with pytest.raises(UsageError, match="SARATHI_API_KEY"):
            server().api_keys()

    @pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\n", b"\0" * 99])
    def test_a_file_without_keys_does_not_either(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "keys"
        path.write_bytes(content)
        with pytest.raises(UsageError, match="--api-key-file"):
            server("--api-key-file", str(path)).api_keys()

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="No such file"):
            server("--admin-key-file", str(tmp_path / "none")).admin_keys()


class TestOfAClient:
    def test_none(self) -> None:
        assert client() is None

    def test_each_place(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("SARATHI_API_KEY", "k")
        path = tmp_path / "key"
        path.write_text("filed\n")
        assert client() == "k"
        assert client("--api-key", "given") == "given"
        assert client("--api-key-file", str(path)) == "filed"

    def test_a_file_with_several_keys_is_not_for_a_client(self, key_file: Path) -> None:
        with pytest.raises(UsageError, match="2 keys"):
            client("--api-key-file", str(key_file))


@pytest.mark.parametrize(
    "command",
    [
        ["serve", "smollm2-135m"],
        ["chat"],
        ["bench", "--rate", "1", *LENGTHS],
        ["capacity", "--tbt-target", "1s", *LENGTHS],
    ],
)
def test_every_command_names_what_is_wrong_with_a_key_file(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--api-key-file", "/nowhere"]) == 2
    assert "/nowhere cannot be read" in capsys.readouterr().err
