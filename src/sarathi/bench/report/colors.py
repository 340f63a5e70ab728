"""Colours by their meaning, for light and dark backgrounds.

Those of labels follow the palette of Okabe and Ito, which readers with any kind of colour vision
can distinguish; the lightest are darkened on white. With more labels than colours, markers differ.
"""

from __future__ import annotations

LABELS = (  # light, dark
    ("#0067a5", "#58b1ea"),
    ("#d1570c", "#f98c4e"),
    ("#00866a", "#2fc39c"),
    ("#b4568e", "#e69fc8"),
    ("#b07c00", "#eec04a"),
    ("#4a4fb0", "#a3a7f5"),
    ("#7a5c45", "#c9a98f"),
)
_ROLES = {
    "surface": ("#ffffff", "#171b21"),
    "page": ("#f5f6f8", "#0f1216"),
    "ink": ("#1b222c", "#e4e8ee"),
    "muted": ("#5c6675", "#9aa5b4"),
    "line": ("#dce0e6", "#2e3641"),
    "target": ("#b00f3a", "#ff7a9c"),
    "stall": ("#f2b8a2", "#7d3a24"),
    "bad": ("#a3123a", "#ff8aa6"),
    "bad-surface": ("#fdecef", "#3a1620"),
    "warn": ("#7a5200", "#f0c060"),
    "warn-surface": ("#fdf4dc", "#352a10"),
    "good": ("#0b6b4f", "#4fd1a5"),
}

LIGHT = {name: light for name, (light, _) in _ROLES.items()}
NAMES = _ROLES | {f"label-{i}": both for i, both in enumerate(LABELS)}

INK, MUTED, LINE, SURFACE = LIGHT["ink"], LIGHT["muted"], LIGHT["line"], LIGHT["surface"]
TARGET, STALL = LIGHT["target"], LIGHT["stall"]

_MARKERS = "osD^vPX"


def colour(index: int) -> str:
    """Return the colour of the label at this index, on a light background."""
    return LABELS[index % len(LABELS)][0]


def marker(index: int) -> str:
    """Return the marker of the label at this index."""
    return _MARKERS[(index + index // len(LABELS)) % len(_MARKERS)]


def definitions(dark: bool) -> str:
    """Return all colours as CSS variables."""
    return "".join(f"--{name}:{both[dark]};" for name, both in NAMES.items())
