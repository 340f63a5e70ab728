"""Where files go that may be lost."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sarathi.errors import ModelError
from sarathi.system import cache_folder as cache
from sarathi.system.cache_folder import cache_folder, cached_file


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    cache._new_folder.cache_clear()
    cache._log_once.cache_clear()
    return folder


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id that has no account."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)


def is_private(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == os.geteuid()


class TestUsual:
    def test_the_user_can_choose_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
        assert cache_folder() == tmp_path / "mine" / "sarathi"
        assert cache_folder().is_dir()

    def test_in_the_home_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert cache_folder() == tmp_path / "home" / ".cache" / "sarathi"


@pytest.mark.usefixtures("homeless")
class TestNoHome:
    def test_a_private_temporary_folder(self, temporary: Path) -> None:
        folder = cache_folder()
        assert folder.parent == temporary
        assert is_private(folder)
        assert cache_folder() == folder

    def test_it_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            folder = cache_folder()
            cache_folder()
        (record,) = caplog.records
        assert str(folder) in record.getMessage()
        assert "XDG_CACHE_HOME" in record.getMessage()

    def test_one_that_others_can_write_is_not_trusted(self, temporary: Path) -> None:
        planted = cache_folder()
        planted.chmod(0o777)
        folder = cache_folder()
        assert folder != planted
        assert is_private(folder)
        assert cache_folder() == folder

    def test_nor_is_a_link(self, temporary: Path, tmp_path: Path) -> None:
        name = cache_folder()
        name.rmdir()
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        name.symlink_to(tmp_path / "elsewhere")
        assert cache_folder() != name
        name.unlink()
        name.symlink_to(tmp_path / "nowhere")
        assert cache_folder() != name

    def test_nor_is_a_file(self, temporary: Path) -> None:
        name = cache_folder()
        name.rmdir()
        name.write_text("")
        assert is_private(cache_folder())

    def test_nor_is_one_of_another_user(
        self, temporary: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = cache_folder()
        real = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: real + 1)
        (temporary / f"sarathi-cache-{real + 1}").mkdir(mode=0o700)
        assert cache_folder() not in (name, temporary / f"sarathi-cache-{real + 1}")

    def test_no_folder_at_all_names_the_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nothing() -> str:
            raise FileNotFoundError(2, "No usable temporary directory found")

        monkeypatch.setattr(tempfile, "gettempdir", nothing)
        with pytest.raises(ModelError, match="XDG_CACHE_HOME"):
            cache_folder()


class TestNotWritable:
    def test_an_empty_home_is_none(self, monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
        monkeypatch.setenv("HOME", "")
        assert cache_folder().parent == temporary

    @pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "HOME"])
    def test_a_folder_that_cannot_be_made(
        self,
        name: str,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        temporary: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv(name, str(tmp_path / "file"))
        assert cache_folder().parent == temporary
        assert str(tmp_path / "file") in caplog.text

    def test_a_folder_that_is_read_only(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, temporary: Path
    ) -> None:
        usual = tmp_path / "sarathi"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != usual)
        usual.mkdir()
        (usual / "a.json").write_text("as delivered")
        assert cache_folder().parent == temporary
        # Its files can be read nevertheless, until something newer replaces them.
        assert cached_file("a.json") == usual / "a.json"
        (cache_folder() / "a.json").write_text("newer")
        assert cached_file("a.json") == cache_folder() / "a.json"
        assert cached_file("b.json") == cache_folder() / "b.json"


@pytest.mark.skipif(
    not (hasattr(os, "geteuid") and os.geteuid() == 0), reason="only root can become nobody"
)
def test_a_process_without_an_account_has_a_cache() -> None:
    """As in a container that was given any user id."""
    look = (
        "import os; from sarathi.system.cache_folder import cache_folder; "
        "os.setuid(54321); print(cache_folder())"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        Path(temporary).chmod(0o777)
        environment = {"PATH": os.environ["PATH"], "TMPDIR": temporary}
        found = subprocess.run(
            [sys.executable, "-c", look], env=environment, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        assert found.stdout.strip() == f"{temporary}/sarathi-cache-54321"
        assert "XDG_CACHE_HOME" in found.stderr
