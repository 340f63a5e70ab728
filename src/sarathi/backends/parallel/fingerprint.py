"""Whether processes that load a model for themselves have found the same one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib import metadata

import sarathi
from sarathi.models.decoder import whole_model
from sarathi.models.model import Model
from sarathi.models.tensor_layout import expected_shapes


def fingerprint(model: Model) -> str:
    """A hash of the configuration, and of the tensors' shapes and types: not of their values."""
    config = dataclasses.asdict(model.config)
    # Machines may differ in the last bit of what they reckon from the checkpoint's numbers.
    config["inv_freq"] = [f"{value:.9g}" for value in config["inv_freq"]]
    tensors = {
        name: (shape, str(model.weights.stored_dtype(name)))
        for name, shape in expected_shapes(model.config, whole_model(model.config)).items()
    }
    text = json.dumps([config, tensors], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def versions(executor: str) -> str:
    """Of this project and of the library that computes, whose package has the executor's name."""
    try:
        found = metadata.version(executor)
    except metadata.PackageNotFoundError:  # installed in another way, such as a system package
        found = "unknown"
    return f"sarathi {sarathi.__version__}, {executor} {found}"
