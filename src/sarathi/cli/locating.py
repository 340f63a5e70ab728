"""The model that a command is given: a path, a hub id, or a name of a published model."""

from __future__ import annotations

from pathlib import Path

from sarathi.errors import ModelError, UsageError
from sarathi.models.load_format import LoadFormat
from sarathi.models.locate import Located


def locate_model(name: str, load_format: LoadFormat) -> Located:
    """Find a model, as `locate` does; with the format `dummy`, a configuration is enough.

    Raises:
        ModelError: there is no such model; says what is accepted.
    """
    # Imported here: not all commands need them.
    from sarathi.models import locate
    from sarathi.simulator.published_models import MODELS, config_folder

    if load_format == "dummy" and _is_published(name):
        return Located(config_folder(MODELS[name]), name)
    try:
        return locate.locate_config(name) if load_format == "dummy" else locate.locate(name)
    except ModelError as error:
        if load_format == "dummy":
            raise ModelError(f"{error}; or one of {', '.join(MODELS)}") from error
        if _is_published(name):
            raise ModelError(
                f"{error}; --load-format dummy serves random weights of the shape of {name}"
            ) from error
        raise


def check_shared(name: str, load_format: LoadFormat) -> None:
    """Check that the machines of a cluster can open a model, if it is the configuration alone.

    Raises:
        UsageError: it would be in a cache of this machine.
    """
    if load_format == "dummy" and not Path(name).exists():
        raise UsageError(
            f"--load-format dummy with --ray needs the path of a config.json or of a folder with "
            f"one that all machines have, not {name}"
        )


def _is_published(name: str) -> bool:
    """Whether it is the name of a model whose shape is known, and not a path."""
    from sarathi.simulator.published_models import MODELS

    return name in MODELS and not Path(name).exists()
