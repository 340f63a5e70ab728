"""What the commands that run an engine share: the model, and the engine in their own process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from sarathi.engine.config import EngineConfig
from sarathi.errors import ModelError
from sarathi.models.locate import LoadFormat, Located
from sarathi.options import LAYERED, LogLevel, Option

if TYPE_CHECKING:
    from rich.console import Console

    from sarathi.engine.llm import LLM


Model = Annotated[
    str,
    Option(
        "a folder in the Hugging Face layout, a .gguf file, a hub id (org/name), "
        "smollm2-135m or gemma3-270m",
        metavar="MODEL",
        positional=True,
    ),
]


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a command that runs an engine in its own process logs."""

    log_level: Annotated[LogLevel, Option("least severity of what is logged")] = "warning"

    def configure(self) -> None:
        """Write what is logged to standard error, from the level on."""
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("sarathi").setLevel(self.log_level.upper())


class LocalEngine(msgspec.Struct, frozen=True, kw_only=True):
    """The options of an engine in the process of the command."""

    log: Annotated[LogOptions, LAYERED]
    config: Annotated[EngineConfig, LAYERED]

    def load(self, model: str, console: Console) -> LLM:
        """Start an engine, with its progress on the console; raise as `locate_model` and `LLM`."""
        # Imported here: it takes a moment, and `--help` and wrong arguments need no engine.
        from sarathi.engine.llm import LLM

        # Not under the status line: a download has its own progress bar.
        path = locate_model(model, self.config.load_format).path
        with console.status("loading") as status:
            return LLM(str(path), config=self.config, on_progress=status.update)


def locate_model(name: str, load_format: LoadFormat) -> Located:
    """Find a model, as `locate` does; with the format `dummy`, a configuration is enough.

    Raises:
        ModelError: there is no such model; the message says what is accepted.
    """
    # Imported here: `--help` needs none of them.
    from sarathi.models import locate
    from sarathi.simulator.simulated_model import MODELS, config_folder

    is_published = name in MODELS and not Path(name).exists()
    if load_format == "dummy" and is_published:
        return Located(config_folder(MODELS[name]), name)
    try:
        return locate.locate_config(name) if load_format == "dummy" else locate.locate(name)
    except ModelError as error:
        remedy = f"or one of {', '.join(MODELS)}"
        if is_published:
            remedy = f"--load-format dummy serves random weights of the shape of {name}"
        elif load_format != "dummy":
            raise
        raise ModelError(f"{error}; {remedy}") from error
