"""Check the simulator's cost model against measurements, and fit its constants anew."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="profiles of GPUs and networks, see docs/cost-model.md",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from sarathi.simulator.calibration import constants, error_table, report

    errors, fitted = error_table(args.data), constants(args.data)
    print(report.as_json(errors, fitted) if args.json else report.as_text(errors, fitted))
    return 0
