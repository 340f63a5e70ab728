"""Writes the tables of options: `python -m sarathi.cli.options_table docs/configuration.md`."""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path

from sarathi.cli.arguments import layered_options
from sarathi.cli.serve import ServeOptions
from sarathi.options import Declaration

_MARKED = re.compile(r"(<!-- options -->\n).*?(<!-- end of options -->)", re.DOTALL)


def options_tables() -> str:
    """Return the options of `sarathi serve`, a Markdown table for each heading."""
    return "\n".join(
        "\n".join(
            [
                f"### {(group or 'server').capitalize()}\n",
                "| option | environment | default | values | meaning |",
                "|---|---|---|---|---|",
                *map(_row, members),
                "",
            ]
        )
        for group, members in groupby(layered_options(ServeOptions), lambda each: each.group)
    )


def _row(declared: Declaration) -> str:
    names = ", ".join(f"`--{name}`" for name in declared.names)
    choices = declared.choices
    if choices is not None:
        values = ", ".join(f"`{choice}`" for choice in choices)
    elif declared.value_type is bool:
        values = f"on, or `--no-{declared.names[0]}`: off"
    else:
        values = ": ".join(filter(None, (declared.metavar, declared.form.accepted)))
    variable = f"`{declared.variable}`"
    cells = (names, variable, declared.default_text or "none", values, declared.option.help)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the tables into the files named on the command line, between their marks."""
    for path in map(Path, sys.argv[1:]):
        text, found = _MARKED.subn(
            lambda marks: f"{marks[1]}\n{options_tables()}\n{marks[2]}", path.read_text()
        )
        if not found:
            sys.exit(f"{path} has no marks for the tables")
        path.write_text(text)


if __name__ == "__main__":
    main()
