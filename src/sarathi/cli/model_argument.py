"""The model that a command runs: a path, a hub id, or the name of a published model."""

from __future__ import annotations

import argparse
from pathlib import Path

from sarathi.cli.arguments import argument_type
from sarathi.errors import ModelError, UsageError
from sarathi.models.locate import LoadFormat, Located
from sarathi.options import parse_text


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, which `locate_model` finds."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=argument_type(parse_text),
        help="a folder in the Hugging Face layout, a .gguf file, a hub id (org/name), "
        "or smollm2-135m",
    )


def locate_model(name: str, load_format: LoadFormat) -> Located:
    """Find a model, as `locate` does; with the format `dummy`, a configuration is enough.

    Raises:
        ModelError: there is no such model; the message says what is accepted.
    """
    # Imported here: `--help` needs none of them.
    from sarathi.models import locate
    from sarathi.simulator.published_models import MODELS, config_folder

    is_published = name in MODELS and not Path(name).exists()
    if load_format == "dummy" and is_published:
        return Located(config_folder(MODELS[name]), name)
    try:
        return locate.locate_config(name) if load_format == "dummy" else locate.locate(name)
    except ModelError as error:
        if load_format == "dummy":
            raise ModelError(f"{error}; or one of {', '.join(MODELS)}") from error
        if is_published:
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
