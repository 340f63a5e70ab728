"""Serve a model over the OpenAI API."""

from __future__ import annotations

import argparse
from pathlib import Path

from sarathi.cli.engine_options import (
    add_engine_arguments,
    add_model_argument,
    duration,
    engine_config,
    positive,
    utf8,
)
from sarathi.cli.keys import add_server_key_arguments, admin_keys, api_keys
from sarathi.cli.ray_options import add_ray_arguments, ray_options
from sarathi.engine.config import DEFAULT_DRAIN_SECONDS, MAX_REPLICAS, EngineConfig
from sarathi.fleet.ray.ray_launch import RayOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser, type=utf8)
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="(default: %(default)s; 0: any)")
    add_server_key_arguments(parser)
    parser.add_argument(
        "--drain-timeout",
        type=_drain_timeout,
        default=DEFAULT_DRAIN_SECONDS,
        metavar="DURATION",
        help="how long open requests may take to end when the server is stopped; after it they "
        f"end with an error (default: {DEFAULT_DRAIN_SECONDS:g}s; 0: at once)",
    )
    parser.add_argument(
        "--served-model-name",
        type=utf8,
        metavar="NAME",
        help="what clients call the model (default: its file, folder or hub name)",
    )
    parser.add_argument(
        "--replicas",
        type=_replicas,
        default=1,
        metavar="N",
        help="engines that share the requests, each with the whole model (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would run where and the memory it takes, and load nothing",
    )
    add_engine_arguments(parser)
    add_ray_arguments(parser)


def run(args: argparse.Namespace) -> int:
    # Imported here: the other commands need no server.
    from sarathi.cli.locating import check_shared, locate_model

    engine = engine_config(args)  # checked before the model is downloaded
    keys, admin = api_keys(args), admin_keys(args)
    ray = ray_options(args)
    if ray is not None:
        check_shared(args.model, engine.load_format)
    located = locate_model(args.model, engine.load_format)
    if args.dry_run:
        return _dry_run(located.path, engine, args.replicas, ray)

    from sarathi.server.run import ServerConfig, log, serve

    config = ServerConfig(
        host=args.host,
        port=args.port,
        api_keys=keys,
        admin_keys=admin,
        drain_seconds=args.drain_timeout,
        served_name=args.served_model_name or located.served_name,
        replicas=args.replicas,
    )
    if ray is None:
        return serve(located.path, engine, config)

    from sarathi.fleet.ray.ray_launch import on_ray

    with on_ray(ray, engine, args.replicas, located.hub_id, log) as (spawner, engine):
        # Actors begin in folders of their own.
        return serve(located.path.absolute(), engine, config, spawner)


def _dry_run(path: Path, engine: EngineConfig, replicas: int, ray: RayOptions | None) -> int:
    """
    Raises:
        ConfigError, ExecutorError: the start would be refused.
    """
    from sarathi.cli.print_dry_run import placed, print_dry_run
    from sarathi.engine.startup.dry_run import dry_run

    placement = None
    if ray is not None:
        placement, engine = placed(engine, replicas, ray)
    found = dry_run(path, engine, replicas=replicas, spread=ray is not None)
    print_dry_run(found, placement)
    if found.refusal is not None:
        raise found.refusal
    return 0


def _drain_timeout(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0s") else duration(text)


def _replicas(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_REPLICAS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_REPLICAS}")
    return value


def _port(text: str) -> int:
    if text == "0":
        return 0
    port = positive(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port, expected 0 to 65535")
    return port
