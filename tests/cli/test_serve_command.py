"""What `sarathi serve` makes of its arguments, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from sarathi.cli.main import main
from sarathi.engine.config import EngineConfig
from sarathi.models.locate import Located
from sarathi.server.server_config import ServerConfig


def test_a_bad_option_is_refused_before_the_model_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked_for: list[str] = []

    def locate(name: str) -> Located:
        looked_for.append(name)
        return Located(Path(name), name)

    monkeypatch.setattr("sarathi.models.locate.locate", locate)
    assert main(["serve", "org/name", "--ttft-target", "2s"]) == 2
    assert "no effect on the order fcfs" in capsys.readouterr().err
    assert looked_for == []


@pytest.mark.parametrize("replicas", ["0", "-1", "257", "two", "9" * 5000])
def test_the_number_of_replicas_has_bounds(
    replicas: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "org/name", "--replicas", replicas])
    assert ended.value.code == 2
    assert "is not an integer at least 1 and at most 256" in capsys.readouterr().err


def test_a_key_given_twice_is_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, ...]] = []

    def serve(path: Path, engine: EngineConfig, config: ServerConfig) -> int:
        found.append(config.api_keys)
        return 0

    monkeypatch.setattr("sarathi.models.locate.locate", lambda name: Located(Path(name), name))
    monkeypatch.setattr("sarathi.server.run.serve", serve)
    keys = ("b", "a", "b")
    assert main(["serve", "org/name", *(f"--api-key={key}" for key in keys)]) == 0
    assert found == [("b", "a")]
