"""The folder of a capacity search: each run is saved in it before the next one starts."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from sarathi.bench.results import (
    PARTIAL,
    RESULT_NAME,
    Capacity,
    Run,
    load_run,
    run_name,
    save,
    write,
)
from sarathi.errors import BenchmarkError

LOG_NAME = "server.log"

_RUN_NAME = re.compile(
    r"run-(?P<rate>[0-9.e+-]+?)(?:-(?P<repeat>[2-9]|[1-9][0-9]{1,5}))?\.json\.gz"
)
_HASH_DIGITS = 12
_NAME_LENGTH = 60  # characters of what people read

logger = logging.getLogger(__name__)


class SearchStore:
    """A separate folder for each configuration, so that a search finds the runs of an earlier one
    with the same configuration.

    It holds `config.json`, a `run-RATE.json.gz` for each run (`run-RATE-2.json.gz` for the second
    at a rate, and so on), and `result.json` once the search is done. Runs are compressed, to a
    third: the times of a million tokens are 9 MB of digits.
    """

    def __init__(self, root: Path, name: str, configuration: Mapping[str, object]) -> None:
        """
        Args:
            root: the parent folder, made if needed.
            name: the readable part of the name of the folder, before a hash.
            configuration: everything that changes the outcome of a run.
        """
        canonical = msgspec.json.encode(configuration, order="deterministic")
        digest = hashlib.sha256(canonical).hexdigest()[:_HASH_DIGITS]
        self.folder = root / "-".join(filter(None, (_slug(name), digest)))
        self._configuration = msgspec.json.format(canonical)

    @property
    def log(self) -> Path:
        """The file for the output of a server that is started for the search."""
        return self.folder / LOG_NAME

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the folder for this process; the other methods need this context.

        Raises:
            BenchmarkError: the folder cannot be written, or another process writes to it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("wb")
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for partial in self.folder.glob(f"*{PARTIAL}"):
                    partial.unlink()
            except BlockingIOError:
                raise BenchmarkError(
                    f"another process is measuring the same into {self.folder}"
                ) from None
            except OSError as error:
                raise _unwritable(self.folder, error) from None
            write(self.folder / "config.json", self._configuration)
            yield

    def runs(self) -> Iterator[tuple[float, int, Run]]:
        """Yield rate, number and content of each run, those of one rate in order.

        One at a time, as they are large. An unreadable file is renamed, with a warning.
        """
        for _, repeat, path in sorted(self._numbered()):
            try:
                run = load_run(path)
            except BenchmarkError as error:
                self._set_aside(path, str(error))
                continue
            if run.rate is None or run_name(run.rate, repeat) != path.name:
                self._set_aside(path, f"{path} does not have the rate of its name")
                continue
            yield run.rate, repeat, run

    def load(self, rate: float, repeat: int) -> Run:
        """Read a run.

        Raises:
            BenchmarkError: the file is missing or damaged.
        """
        return load_run(self.folder / run_name(rate, repeat))

    def keep(self, rate: float, repeat: int, run: Run) -> None:
        """Save a run; it is on disk when this returns.

        Args:
            repeat: its number among the runs of this rate, from 0.

        Raises:
            BenchmarkError: it cannot be written.
        """
        save(self.folder / run_name(rate, repeat), run)

    def finish(self, capacity: Capacity) -> None:
        """Save the outcome of the search.

        Raises:
            BenchmarkError: it cannot be written.
        """
        save(self.folder / RESULT_NAME, capacity)

    def _numbered(self) -> Iterator[tuple[float, int, Path]]:
        for path in self.folder.iterdir():
            match = _RUN_NAME.fullmatch(path.name)
            if match is not None:
                try:
                    yield float(match["rate"]), int(match["repeat"] or 1) - 1, path
                except ValueError:  # "1.2.3", say
                    continue

    def _set_aside(self, path: Path, reason: str) -> None:
        aside = path.with_name(f"{path.name}.unreadable")
        try:
            path.replace(aside)
        except OSError as error:
            raise _unwritable(path, error) from None
        logger.warning("%s; it is now %s, and its rate may be measured again", reason, aside.name)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())[:_NAME_LENGTH].strip("-.")


def _unwritable(path: Path, error: OSError) -> BenchmarkError:
    return BenchmarkError(f"{path} cannot be written: {error.strerror or error}")
