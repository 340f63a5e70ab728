"""The arguments of the commands that run an engine."""

from __future__ import annotations

import argparse
import logging
from typing import Annotated

import msgspec

from sarathi.cli.arguments import add_config_argument, add_options, build, given_options
from sarathi.engine.config import EngineConfig
from sarathi.errors import UsageError
from sarathi.options import LogLevel, Option


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a command that runs an engine in its own process logs."""

    log_level: Annotated[LogLevel, Option("least severity of what is logged")] = "warning"


def add_engine_arguments(parser: argparse.ArgumentParser, *others: type) -> None:
    """Add the options of an engine and of other classes, and what may take their place.

    Args:
        others: classes of options that precede those of the engine.
    """
    add_config_argument(parser)
    add_options(parser, *others, EngineConfig)
    parser.set_defaults(layered=(*others, EngineConfig))
    parser.epilog = (
        "Each option can also be set by an environment variable, such as SARATHI_TBT_TARGET for "
        "--tbt-target, or in the file of --config. The command line has precedence over the "
        "environment, and the environment over the file."
    )


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """Return the configuration of the engine.

    Raises:
        UsageError: an option has no effect.
        ConfigError: options exclude each other.
    """
    config = build(EngineConfig, args)
    if "ttft_target" in given_options(args, EngineConfig) and config.order != "slack":
        raise UsageError(f"--ttft-target has no effect on --order {config.order}: omit it")
    return config


def configure_log(args: argparse.Namespace) -> None:
    """Write what is logged to standard error, from the level of `LogOptions` on."""
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("sarathi").setLevel(build(LogOptions, args).log_level.upper())
