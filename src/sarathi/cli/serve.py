"""`sarathi serve`: the OpenAI API over HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec

from sarathi.cli.arguments import ConfigFile
from sarathi.cli.keys import ServerKeys
from sarathi.cli.local_engine import Model, locate_model
from sarathi.engine.config import EngineConfig
from sarathi.errors import UsageError
from sarathi.fleet.ray.ray_launch import RayOptions, on_ray
from sarathi.options import LAYERED, Option, changed
from sarathi.server.server_config import ServerConfig


class StartOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command does beside serving."""

    dry_run: Annotated[
        bool, Option("print what would run where and the memory it takes, and load nothing")
    ] = False


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    model: Model
    config: ConfigFile = None
    server: Annotated[ServerConfig, LAYERED]
    keys: Annotated[ServerKeys, LAYERED]
    start: Annotated[StartOptions, LAYERED]
    ray: Annotated[RayOptions, LAYERED]
    engine: Annotated[EngineConfig, LAYERED]


def run(options: ServeOptions) -> int:
    """Serve until interrupted; return the exit code."""
    engine, ray, keys = options.engine, options.ray, options.keys
    if not ray.enabled and (unused := changed(ray)):
        raise UsageError(f"{unused[0]} has no effect without --ray")
    config = replace(options.server, api_keys=keys.api_keys(), admin_keys=keys.admin_keys())
    if ray.enabled and engine.load_format == "dummy" and not Path(options.model).exists():
        raise UsageError(  # it would be in a cache of this machine
            "--load-format dummy with --ray needs the path of a config.json or of a folder with "
            f"one that all machines have, not {options.model}"
        )
    located = locate_model(options.model, engine.load_format)
    if options.start.dry_run:
        return _dry_run(located.path, engine, config.replicas, ray)

    # Imported here: a dry run and wrong arguments need no server.
    from sarathi.server.run import log, serve

    config = replace(config, served_name=config.served_name or located.served_name)
    if not ray.enabled:
        return serve(located.path, engine, config)

    with on_ray(ray, engine, config.replicas, located.hub_id, log) as (spawner, engine):
        # Actors begin in folders of their own.
        return serve(located.path.absolute(), engine, config, spawner)


def _dry_run(path: Path, engine: EngineConfig, replicas: int, ray: RayOptions) -> int:
    """Print what would run; raise `ConfigError` or `ExecutorError` where it would not start."""
    from sarathi.cli.dry_run_table import place_on_ray, print_dry_run
    from sarathi.engine.startup.dry_run import dry_run

    placement = None
    if ray.enabled:
        placement, engine = place_on_ray(engine, replicas, ray)
    found = dry_run(path, engine, replicas=replicas, spread=ray.enabled)
    print_dry_run(found, placement)
    if found.refusal is not None:
        raise found.refusal
    return 0
