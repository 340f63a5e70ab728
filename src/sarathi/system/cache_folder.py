"""The cache folder, for files that can be recreated: scratch files and measurements."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from sarathi.errors import ModelError

_NAME = "sarathi"
_ADVICE = "set XDG_CACHE_HOME to a folder that can be written"

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder that this project writes to; create it if it does not exist.

    It is `sarathi` in XDG_CACHE_HOME, or else in `.cache` of the home folder. A user id without an
    account has no home, and a container may be read-only: then a private temporary folder is used
    instead, which is logged once. `ModelError` if there is none for temporary files either.
    """
    usual, reason = _usual_folder(), "there is no home folder"
    if usual is not None:
        try:
            usual.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"{usual} cannot be made ({error.strerror})"
        else:
            if os.access(usual, os.W_OK | os.X_OK):
                return usual
            reason = f"{usual} cannot be written"
    folder = _temporary_folder()
    _log_once(f"{reason}: the cache is in {folder}; {_ADVICE} to have it there")
    return folder


def cached_file(name: str) -> Path:
    """Return the path from which to read a file of the cache; `name` is relative to the folder.

    The usual folder may be read-only and contain it, as in the image of a container. A file in the
    temporary folder that is used instead is newer. `ModelError` as from `cache_folder`.
    """
    path, usual = cache_folder() / name, _usual_folder()
    if usual is not None and not path.exists() and (usual / name).exists():
        return usual / name
    return path


def replace_file(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file atomically: a reader, such as another process, finds the old or the new one.

    The folder is created if it does not exist. `OSError` if the file cannot be written; nothing is
    left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _usual_folder() -> Path | None:
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / _NAME
    if os.environ.get("HOME") == "":  # which would mean the root folder
        return None
    try:
        return Path.home() / ".cache" / _NAME
    except RuntimeError:  # neither HOME nor an account
        return None


def _temporary_folder() -> Path:
    user = os.geteuid() if hasattr(os, "geteuid") else "user"
    try:
        folder = Path(tempfile.gettempdir()) / f"{_NAME}-cache-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        # Another user could have made a folder of that name.
        return folder if _is_private(folder) else _new_folder()
    except FileExistsError:  # a file, or a broken link
        return _new_folder()
    except OSError as error:
        raise ModelError(
            f"no folder for scratch files can be had ({error.strerror}); {_ADVICE}"
        ) from error


@cache
def _new_folder() -> Path:
    """Make a folder for this process alone."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_NAME}-cache-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_private(folder: Path) -> bool:
    """Return whether it is a folder that only this user can read."""
    if not hasattr(os, "geteuid"):
        return True  # where the folder for temporary files is the user's own
    found = folder.lstat()
    others = stat.S_IMODE(found.st_mode) & 0o077
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not others


@cache
def _log_once(line: str) -> None:
    logger.warning("%s: %s", _NAME, line)
