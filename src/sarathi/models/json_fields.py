"""Typed access to the fields of a JSON object, with errors that name file, field and value."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sarathi.errors import ModelError
from sarathi.models.formats.checkpoint_files import lfs_hint
from sarathi.models.model_config import MAX_NUMBER, MIN_NUMBER

_LARGEST = 2**31 - 1
_NUMBER = f"a number from {MIN_NUMBER:g} to {MAX_NUMBER:g}"


@dataclass(frozen=True)
class Fields:
    """One JSON object and its origin (for messages).

    A field that is null counts as absent, as it does in Hugging Face configurations. Getters
    return `default` for an absent field and raise `ModelError` for a field of the wrong type. They
    record which fields were read, so that none is overlooked (`refuse_unread`).
    """

    data: Mapping[str, Any]
    origin: str
    _read: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Read the object in a JSON file; `ModelError` if it is missing, invalid or no object."""
        try:
            data = json.loads(path.read_bytes())
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{path} is not valid JSON: {error}{lfs_hint(path)}") from error
        if not isinstance(data, dict):
            raise ModelError(f"{path} holds a JSON {type(data).__name__}, expected an object")
        return cls(data, path.name)

    @classmethod
    def read_optional(cls, path: Path) -> Fields:
        """Read it likewise; there are no fields if there is no such file."""
        return cls.read(path) if path.is_file() else cls({}, path.name)

    def __contains__(self, name: str) -> bool:
        return self._get(name) is not None

    def refuse_unread(self, is_harmless: Callable[[str, Any], bool]) -> None:
        """Raise `ModelError` for a field that was not read, unless it is known to be harmless.

        It might change what the model computes.
        """
        for name, value in self.data.items():
            if name not in self._read and not is_harmless(name, value):
                raise ModelError(
                    f"{self._describe(name)}, which is not supported; if it is known not to change "
                    "the model, remove it from the file"
                )

    def is_null(self, name: str) -> bool:
        """Return whether the field is present and null, for where this differs from absence."""
        return name in self.data and self._get(name) is None

    def value(self, name: str, default: Any = None) -> Any:
        """Return the field as it is, where no typed getter fits."""
        value = self._get(name)
        return default if value is None else value

    def wrong(self, name: str, expected: str) -> ModelError:
        """Return the error that a field is not what is `expected`."""
        return ModelError(f"{self._describe(name)}, expected {expected}")

    def _describe(self, name: str) -> str:
        value = repr(self.data.get(name))
        shown = value if len(value) <= 80 else value[:77] + "..."
        # Any text can be a name; a lone surrogate could not be printed.
        return f"{self.origin}: {name.encode('utf-8', 'backslashreplace').decode()} is {shown}"

    def _get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return self.data.get(name, default)

    def required(self, name: str, maximum: int = _LARGEST) -> int:
        """Return an integer from 1 to `maximum`; `ModelError` without it."""
        if name not in self:
            raise ModelError(f"{self.origin}: {name} is missing")
        return self.integer(name, 0, maximum)

    def integer(self, name: str, default: int, maximum: int = _LARGEST) -> int:
        """Return an integer from 1 to `maximum`, or the default."""
        expected = f"an integer from 1 to {maximum}"
        return int(self._typed(name, default, expected, lambda v: _is_size(v, maximum)))

    def optional_size(self, name: str, default: int) -> int:
        """Return a size, or 0 for none, which published files write as null, 0 or -1."""
        value = self._get(name, default)
        if value is None or (value in (0, -1) and not isinstance(value, bool)):
            return 0
        if not _is_size(value, _LARGEST):
            raise self.wrong(name, f"an integer from 1 to {_LARGEST}, or null, 0 or -1 for none")
        return int(value)

    def number(self, name: str, default: float | None = None) -> float:
        if default is None and name not in self:
            raise self.wrong(name, _NUMBER)
        return float(self._typed(name, default, _NUMBER, _is_number))

    def boolean(self, name: str, default: bool) -> bool:
        """Return true or false."""
        return bool(self._typed(name, default, "true or false", lambda v: isinstance(v, bool)))

    def text(self, name: str, default: str) -> str:
        """Return a string."""
        return str(self._typed(name, default, "a string", lambda v: isinstance(v, str)))

    def object(self, name: str) -> Fields | None:
        """Return the fields of an object, None without it."""
        value = self._typed(name, None, "an object", lambda v: isinstance(v, dict))
        return None if value is None else Fields(value, f"{self.origin}: {name}")

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Return the ids of a field with one or a list of them, none if absent; -1 means none."""
        value = self._get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= -1 for i in ids):
            raise self.wrong(name, "a token id or a list of token ids")
        return tuple(i for i in ids if i >= 0)

    def _typed(self, name: str, default: Any, expected: str, fits: Callable[[Any], bool]) -> Any:
        """Return the field if it fits, or `default` if it is absent."""
        value = self._get(name)
        if value is None:
            return default
        if not fits(value):
            raise self.wrong(name, expected)
        return value


def _is_size(value: Any, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= maximum


def _is_number(value: Any) -> bool:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return numeric and MIN_NUMBER <= value <= MAX_NUMBER
