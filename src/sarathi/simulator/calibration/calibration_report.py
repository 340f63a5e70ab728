"""The error table and the constants, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from sarathi.simulator.calibration.error_table import Constant, ErrorRow


def as_json(errors: Sequence[ErrorRow], constants: Sequence[Constant]) -> str:
    return json.dumps(
        {
            "errors": [asdict(row) for row in errors],
            "constants": [{**asdict(c), "difference": c.difference} for c in constants],
        },
        indent=2,
    )


def as_text(errors: Sequence[ErrorRow], constants: Sequence[Constant]) -> str:
    table = [("term", "device", "file", "rows", "used", "points", "median", "P90", "bias")]
    for row in errors:
        figures = (f"{row.median:.1%}", f"{row.p90:.1%}", f"{row.bias:+.1%}")
        named = (row.term, row.device, row.file, row.rows, row.used)
        table.append((*named, str(row.points), *figures))
    fits = [("device", "term", "constant", "project", "refitted", "difference")]
    for c in constants:
        figures = (f"{c.project:.4g}", f"{c.refitted:.4g}", f"{c.difference:+.1%}")
        fits.append((c.device, c.term, c.name, *figures))
    return "\n".join(
        (
            "Errors of the cost model: predicted over measured, less 1",
            "",
            *_aligned(table, numbers=4),
            "",
            "Constants of the project, and as a fit to these measurements gives them",
            "",
            *_aligned(fits, numbers=3),
        )
    )


def _aligned(rows: Sequence[tuple[str, ...]], numbers: int) -> list[str]:
    """
    Args:
        numbers: columns at the end that stand to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(widths) - numbers
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
