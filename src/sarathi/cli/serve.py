"""Serve a model over the OpenAI API."""

from __future__ import annotations

import argparse

from sarathi.cli.options import (
    add_engine_arguments,
    add_model_argument,
    engine_config,
    positive,
    utf8,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser, type=utf8)
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="(default: %(default)s; 0: any)")
    parser.add_argument(
        "--api-key",
        type=_api_key,
        action="append",
        default=[],
        metavar="KEY",
        help="clients must send it as a bearer token; may be given several times",
    )
    parser.add_argument(
        "--served-model-name",
        type=utf8,
        metavar="NAME",
        help="what clients call the model (default: its file, folder or hub name)",
    )
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    # Imported here: the other commands need no server.
    from sarathi.models.locate import locate
    from sarathi.server.run import ServerConfig, serve

    engine = engine_config(args)  # checked before the model is downloaded
    located = locate(args.model)
    config = ServerConfig(
        host=args.host,
        port=args.port,
        api_keys=tuple(dict.fromkeys(args.api_key)),
        served_name=args.served_model_name or located.served_name,
    )
    return serve(located.path, engine, config)


def _api_key(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the key is empty, expected at least one character")
    return utf8(text)


def _port(text: str) -> int:
    if text == "0":
        return 0
    port = positive(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port, expected 0 to 65535")
    return port
