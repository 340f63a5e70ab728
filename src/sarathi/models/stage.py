"""Which part of the decoder is computed in one place."""

from __future__ import annotations

from dataclasses import dataclass

from sarathi.errors import ModelError
from sarathi.models.model_config import ModelConfig


@dataclass(frozen=True)
class Stage:
    """Consecutive layers: all of them, or those of one stage of a pipeline."""

    layers: range
    first: bool = True  # embeds the tokens; otherwise it gets what the stage before computed
    last: bool = True  # gives logits; otherwise the activations after its layers


def whole(config: ModelConfig) -> Stage:
    """The decoder in one piece."""
    return Stage(range(config.num_layers))


def split(config: ModelConfig, num_stages: int) -> tuple[Stage, ...]:
    """Stages of equally many layers.

    Raises:
        ModelError: the layers cannot be shared out equally.
    """
    num_layers = config.num_layers
    if num_layers % num_stages:
        possible = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
        raise ModelError(
            f"{num_layers} layers cannot be shared out equally to {num_stages} pipeline stages, "
            f"only to {', '.join(map(str, possible))}"
        )
    each = num_layers // num_stages
    return tuple(
        Stage(range(i * each, (i + 1) * each), first=i == 0, last=i == num_stages - 1)
        for i in range(num_stages)
    )
