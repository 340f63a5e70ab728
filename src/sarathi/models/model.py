"""Open a model: configuration, weights and tokenizer, in either format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sarathi.errors import ModelError
from sarathi.models.formats.checkpoint_files import is_gguf, lfs_hint
from sarathi.models.locate import RANDOM_WEIGHTS, LoadFormat
from sarathi.models.model_config import ModelConfig
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.models.weights import Weights


@dataclass(frozen=True)
class Model:
    """The configuration and the weights of a checkpoint."""

    config: ModelConfig
    weights: Weights
    warnings: tuple[str, ...] = ()  # about its files, for the operator


def open_model(path: Path, load_format: LoadFormat = "auto") -> Model:
    """Open configuration and mapped weights of a Hugging Face folder or a GGUF file.

    All tensors are checked to be present, complete and of the right shape, and none but a head
    that may equal the embedding is read. With the format `dummy`, the path is a folder of which
    only config.json is read, and the weights are random.
    Raises `ModelError` for anything that cannot be served.
    """
    if load_format == "dummy":
        from sarathi.models.dummy_weights import DummyWeights
        from sarathi.models.formats import huggingface_checkpoint as huggingface

        config = huggingface.read_config(path)
        return Model(config, DummyWeights(config), (RANDOM_WEIGHTS,))
    # Either format is imported where it is used: both take start-up time.
    from sarathi.models.name_map import NamedWeights
    from sarathi.models.tensor_layout import check_layout, has_own_head

    if _is_gguf(path):
        from sarathi.models.formats.gguf_config import name_map, read_config
        from sarathi.models.formats.gguf_file import GgufFile
        from sarathi.models.formats.gguf_weights import GgufWeights

        file = GgufFile(path)
        config = read_config(file)
        weights = NamedWeights(GgufWeights(file, config), name_map(config))
    else:
        from sarathi.models.formats import huggingface_checkpoint as huggingface
        from sarathi.models.formats.packed_safetensors import open_weights

        config = huggingface.read_config(path)
        weights = NamedWeights(open_weights(path), huggingface.name_map(config))
        if config.tie_word_embeddings and has_own_head(weights):
            # As in transformers, the tensors count where the configuration contradicts them.
            config = replace(config, tie_word_embeddings=False)
    return Model(config, weights, check_layout(config, weights))


def open_tokenizer(path: Path, load_format: LoadFormat = "auto") -> Tokenizer:
    """Open tokenizer and chat template of a Hugging Face folder or a GGUF file; read no weights.

    With the format `dummy`, a folder without a tokenizer.json gets one for its vocabulary.
    """
    if load_format == "dummy" and not (path / "tokenizer.json").is_file():
        from sarathi.models.formats import huggingface_checkpoint as huggingface
        from sarathi.models.tokenizers.dummy_tokenizer import dummy_tokenizer

        return dummy_tokenizer(huggingface.read_config(path).vocab_size)
    if _is_gguf(path):
        from sarathi.models.formats.gguf_config import supported_architecture
        from sarathi.models.formats.gguf_file import GgufFile
        from sarathi.models.tokenizers.gguf_tokenizer import read_tokenizer

        file = GgufFile(path)
        try:
            return read_tokenizer(file)
        except ModelError:
            supported_architecture(file)  # an unsupported model is the better error
            raise

    from sarathi.models.tokenizers import huggingface_tokenizer

    return huggingface_tokenizer.read_tokenizer(path)


def _is_gguf(path: Path) -> bool:
    if path.is_dir():
        return False
    if is_gguf(path):
        return True
    raise ModelError(f"{path} is neither a folder nor a GGUF file{lfs_hint(path)}")
