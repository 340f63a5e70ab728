"""Read the tokenizer of a folder in the Hugging Face layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import tokenizers
from tokenizers import processors

from sarathi.errors import ModelError
from sarathi.models.formats.checkpoint_files import lfs_hint
from sarathi.models.json_fields import Fields
from sarathi.models.tokenizers.added_tokens import add_tokens
from sarathi.models.tokenizers.chat_template import DEFAULT, ChatTemplate, choose_templates
from sarathi.models.tokenizers.end_of_turn import end_of_turn_ids
from sarathi.models.tokenizers.tokenizer import Tokenizer


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json` and what `tokenizer_config.json` and its companions add to it.

    Raises `ModelError` if a file is missing, invalid or of a kind that is not supported.
    """
    inner = _load(folder)
    config = Fields.read_optional(folder / "tokenizer_config.json")
    special = add_tokens(inner, folder, config)
    _set_post_processor(inner, config, special)
    template = _chat_template(folder, config, special)
    eos_id = inner.token_to_id(special["eos_token"]) if "eos_token" in special else None
    named = [*_named_ends(folder), *([] if eos_id is None else [eos_id])]
    return Tokenizer(inner, eos_ids=end_of_turn_ids(inner, named, template), chat_template=template)


def _named_ends(folder: Path) -> Iterator[int]:
    """Yield what `config.json` and `generation_config.json` name; often only the latter has all."""
    for name in ("config.json", "generation_config.json"):
        yield from Fields.read_optional(folder / name).token_ids("eos_token_id")


def _load(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        hint = (
            "; it has only the SentencePiece file tokenizer.model: load the folder with "
            "transformers' AutoTokenizer and save it again with save_pretrained to convert it"
            if (folder / "tokenizer.model").is_file()
            else ""
        )
        raise ModelError(f"{folder} has no tokenizer.json{hint}")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise ModelError(f"cannot read {path}: {error}{lfs_hint(path)}") from error


def _set_post_processor(
    inner: tokenizers.Tokenizer, config: Fields, special: Mapping[str, str]
) -> None:
    # The tokenizer.json decides, except for the class whose checkpoints were made for a library
    # that rebuilt the post-processor from these fields.
    is_llama = config.text("tokenizer_class", "") in ("LlamaTokenizer", "LlamaTokenizerFast")
    if not is_llama or not ("add_bos_token" in config or "add_eos_token" in config):
        return
    inner.post_processor = bos_eos_processor(
        inner,
        special.get("bos_token") if config.boolean("add_bos_token", False) else None,
        special.get("eos_token") if config.boolean("add_eos_token", False) else None,
    )


def bos_eos_processor(
    inner: tokenizers.Tokenizer, bos: str | None, eos: str | None
) -> processors.PostProcessor:
    """Return what adds `bos` before and `eos` after every text, where given."""
    pieces = [token for token in (bos, "$A", eos) if token is not None]
    named = {token: inner.token_to_id(token) for token in (bos, eos) if token is not None}
    try:
        return processors.TemplateProcessing(single=pieces, special_tokens=list(named.items()))
    except Exception as error:  # the library raises nothing more specific
        raise ModelError(f"the tokenizer cannot add {', '.join(named)}: {error}") from error


def _chat_template(folder: Path, config: Fields, special: Mapping[str, str]) -> ChatTemplate | None:
    others = {n: t for n, t in special.items() if n not in ("bos_token", "eos_token")}
    sources = _template_files(folder)
    if not sources:
        # `transformers` reads the last one for processors of images alone.
        for fields in (config, Fields.read_optional(folder / "chat_template.json")):
            if "chat_template" in fields:
                sources = _template_field(fields)
                break
    return choose_templates(sources, special.get("bos_token"), special.get("eos_token"), others)


def _template_files(folder: Path) -> dict[str, str]:
    """Return the templates in separate files, by name; if there are any, no field counts."""
    files = {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files[DEFAULT] = folder / "chat_template.jinja"
    sources = {}
    for name, path in files.items():
        try:
            sources[name] = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"cannot read {path}: {error}") from error
    return sources


def _template_field(fields: Fields) -> dict[str, str]:
    """Return the templates in a field: a string, a list of objects, or an object by name."""
    value = fields.value("chat_template")
    if isinstance(value, str):
        return {DEFAULT: value}
    expected = "a string, or a list of objects with name and template"
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    if not isinstance(value, list):
        raise fields.wrong("chat_template", expected)
    sources = {}
    for item in value:
        name = item.get("name") if isinstance(item, Mapping) else None
        template = item.get("template") if isinstance(item, Mapping) else None
        if not isinstance(name, str) or not isinstance(template, str):
            raise fields.wrong("chat_template", expected)
        sources[name] = template
    return sources
