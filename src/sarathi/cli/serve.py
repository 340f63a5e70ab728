"""`sarathi serve`: the OpenAI API over HTTP."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec

from sarathi.cli.arguments import build, option_name
from sarathi.cli.engine_arguments import add_engine_arguments, engine_config
from sarathi.cli.keys import ServerKeys
from sarathi.cli.model_argument import add_model_argument, check_shared, locate_model
from sarathi.engine.config import EngineConfig
from sarathi.errors import UsageError
from sarathi.fleet.ray.ray_options import RayOptions
from sarathi.options import Option, declarations
from sarathi.server.server_config import ServerConfig


class StartOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command does beside serving."""

    dry_run: Annotated[
        bool, Option("print what would run where and the memory it takes, and load nothing")
    ] = False


OPTIONS = (ServerConfig, ServerKeys, StartOptions, RayOptions)  # beside those of the engine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_model_argument(parser)
    add_engine_arguments(parser, *OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; return the exit code."""
    engine = engine_config(args)  # checked before the model is downloaded
    keys = build(ServerKeys, args)
    config = replace(
        build(ServerConfig, args), api_keys=keys.api_keys(), admin_keys=keys.admin_keys()
    )
    ray = _ray_options(args)
    if ray is not None:
        check_shared(args.model, engine.load_format)
    located = locate_model(args.model, engine.load_format)
    if build(StartOptions, args).dry_run:
        return _dry_run(located.path, engine, config.replicas, ray)

    # Imported here: a dry run and wrong arguments need no server.
    from sarathi.server.run import log, serve

    config = replace(config, served_name=config.served_name or located.served_name)
    if ray is None:
        return serve(located.path, engine, config)

    from sarathi.fleet.ray.ray_launch import on_ray

    with on_ray(ray, engine, config.replicas, located.hub_id, log) as (spawner, engine):
        # Actors begin in folders of their own.
        return serve(located.path.absolute(), engine, config, spawner)


def _ray_options(args: argparse.Namespace) -> RayOptions | None:
    """Return the options of a Ray cluster, None without `--ray`.

    Raises:
        UsageError: an option has no effect without it.
    """
    options = build(RayOptions, args)
    if options.enabled:
        return options
    for each in declarations(RayOptions):
        if getattr(options, each.field) != each.default:
            name = option_name(RayOptions, each.field)
            raise UsageError(f"{name} has no effect without --ray")
    return None


def _dry_run(path: Path, engine: EngineConfig, replicas: int, ray: RayOptions | None) -> int:
    """Print what would run.

    Raises:
        ConfigError, ExecutorError: the start would be refused.
    """
    from sarathi.cli.dry_run_table import place_on_ray, print_dry_run
    from sarathi.engine.startup.dry_run import dry_run

    placement = None
    if ray is not None:
        placement, engine = place_on_ray(engine, replicas, ray)
    found = dry_run(path, engine, replicas=replicas, spread=ray is not None)
    print_dry_run(found, placement)
    if found.refusal is not None:
        raise found.refusal
    return 0
