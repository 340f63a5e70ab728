"""Where the weights of a model come from."""

from __future__ import annotations

from typing import Literal

# auto: the tensors of a checkpoint, in whichever format its path holds. dummy: random values of
# the shapes that a config.json describes; no file with tensors is needed or read.
LoadFormat = Literal["auto", "dummy"]

RANDOM_WEIGHTS = "random weights (--load-format dummy): answers are meaningless"
