"""Model configuration from a folder in the Hugging Face layout."""

from __future__ import annotations

from pathlib import Path

from sarathi.models.families import ARCHITECTURES
from sarathi.models.formats.harmless_fields import is_harmless_field
from sarathi.models.json_fields import Fields
from sarathi.models.model_config import ModelConfig
from sarathi.models.name_map import NameMap

_BY_MODEL_TYPE = {family.model_type: name for name, family in ARCHITECTURES.items()}


def read_config(folder: Path) -> ModelConfig:
    """Return the model that the `config.json` of `folder` describes.

    Absent fields take the defaults of the `transformers` library. Raises `ModelError` naming the
    field for anything that is missing, of the wrong type, not supported, or not known.
    """
    fields = Fields.read(folder / "config.json")
    architecture = _architecture(fields)
    if "quantization_config" in fields:
        raise fields.wrong(
            "quantization_config", "none: unquantised safetensors or a GGUF file are supported"
        )
    config = ARCHITECTURES[architecture].read_config(fields, architecture)
    fields.refuse_unread(is_harmless_field)
    return config


def name_map(config: ModelConfig) -> NameMap:
    """Return where checkpoints of `config` keep their tensors."""
    named = ARCHITECTURES[config.architecture].name_map
    return NameMap() if named is None else named(config)


def _architecture(fields: Fields) -> str:
    names = fields.value("architectures")
    model_type = fields.text("model_type", "")
    if not names:
        names = [_BY_MODEL_TYPE.get(model_type, model_type)]
    if not isinstance(names, list) or names[0] not in tuple(ARCHITECTURES):
        field = "architectures" if fields.data.get("architectures") else "model_type"
        supported = ARCHITECTURES if field == "architectures" else _BY_MODEL_TYPE
        raise fields.wrong(field, f"one of {', '.join(supported)}")
    name = str(names[0])
    if model_type and _BY_MODEL_TYPE.get(model_type) != name:
        # transformers selects the class by this one.
        raise fields.wrong(
            "model_type", f"{ARCHITECTURES[name].model_type}, for architectures {name}"
        )
    return name
