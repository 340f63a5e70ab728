"""Read the tokenizer of a Hugging Face folder, with the tokens that other files add to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
from tokenizers import AddedToken, processors

from sarathi.errors import ModelError
from sarathi.models.formats.checkpoint_files import lfs_hint
from sarathi.models.json_fields import Fields
from sarathi.models.tokenizers.chat_template import (
    DEFAULT,
    ChatTemplate,
    choose_templates,
    end_of_turn_ids,
)
from sarathi.models.tokenizers.tokenizer import Tokenizer

_NAMES = (
    *("bos_token", "eos_token", "unk_token", "sep_token"),
    *("pad_token", "cls_token", "mask_token"),
)
_EXTRA, _OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_DECODER = "added_tokens_decoder"
_ID = re.compile(r"[0-9]{1,10}")


def add_tokens(inner: tokenizers.Tokenizer, folder: Path, config: Fields) -> dict[str, str]:
    """Add tokens to `inner`, and return the text of each one with a name (`bos_token`, ...).

    Several generations of files describe them, and contradict each other. `config` is
    `tokenizer_config.json`. Where it describes the added tokens itself, the older files
    `special_tokens_map.json` and `added_tokens.json` do not count; where it does not, the former
    counts before it. Precedence and numbering are those of `PreTrainedTokenizerBase` and
    `TokenizersBackend` in `transformers`.
    """
    described = config.object(_DECODER)
    companion = Fields({}, "special_tokens_map.json")
    if described is None:
        companion = Fields.read_optional(folder / companion.origin)
    named = _named((config, companion))
    extra = list(_extra(config, companion))
    texts = {token.content for token in named.values()}
    special = texts | {token.content for token in extra}
    tokens = dict(inner.get_added_tokens_decoder())
    known = {token.content: token for token in tokens.values()}
    if described is None:
        older = Fields.read_optional(folder / "added_tokens.json")
        tokens = {**dict(_from_ids(older, special)), **tokens}
    else:
        tokens = dict(_from_descriptions(config, described.data))
    wanted = {}
    for _, token in sorted(tokens.items(), key=lambda item: item[0]):
        wanted[token.content] = _as_special(token) if token.content in texts else token
    for token in (*map(_as_special, named.values()), *extra):
        if token.content not in known:
            wanted.setdefault(token.content, token)
    # One call for all: the library rebuilds its matcher after each.
    inner.add_tokens(
        [token for text, token in wanted.items() if repr(known.get(text)) != repr(token)]
    )
    return {name: token.content for name, token in named.items()}


def _named(sources: Iterable[Fields]) -> dict[str, AddedToken]:
    """Return the tokens with a name: the well-known ones first, then the model's own."""
    found: dict[str, tuple[Fields, str, Any]] = {}
    for fields in sources:
        for name, value in fields.data.items():
            own = name.endswith("_token") and isinstance(value, str | Mapping)
            if own or name in _NAMES:
                found[name] = (fields, name, value)
    for fields in sources:
        value = fields.data.get(_EXTRA)
        if isinstance(value, Mapping):
            found.update({name: (fields, _EXTRA, token) for name, token in value.items()})
    tokens = {}
    for name in dict.fromkeys((*filter(found.__contains__, _NAMES), *found)):
        fields, field, value = found[name]
        if value is not None:
            tokens[name] = _as_special(_token(fields, field, value, special=True))
    return tokens


def _extra(config: Fields, companion: Fields) -> Iterator[AddedToken]:
    """Yield the tokens of the lists.

    First those of the configuration under the new name or else the old one, then those of the
    companion under the new name; if there are none, those under the old.
    """
    own = _EXTRA if config.data.get(_EXTRA) else _OLD_EXTRA
    lists = [(config, own), (companion, _EXTRA)]
    if all(_listed(*each) is None for each in lists):
        lists = [(companion if _OLD_EXTRA in companion else config, _OLD_EXTRA)]
    for fields, name in lists:
        for value in _listed(fields, name) or ():
            yield _token(fields, name, value, special=True)


def _listed(fields: Fields, name: str) -> list[Any] | None:
    value = fields.value(name)
    if value is None or (name == _EXTRA and isinstance(value, Mapping)):
        return None
    if not isinstance(value, list):
        raise fields.wrong(name, "a list of tokens")
    return value


def _from_ids(fields: Fields, special: Iterable[str]) -> Iterator[tuple[int, AddedToken]]:
    """Yield the tokens of `added_tokens.json`, which has an id for each text."""
    for text, index in fields.data.items():
        if isinstance(index, bool) or not isinstance(index, int):
            raise fields.wrong(text, "a token id")
        yield index, _token(fields, text, text, special=text in special)


def _from_descriptions(
    config: Fields, described: Mapping[str, Any]
) -> Iterator[tuple[int, AddedToken]]:
    for key, value in described.items():
        if not _ID.fullmatch(key) or not isinstance(value, Mapping):
            raise config.wrong(_DECODER, "an object of objects with the field content, by token id")
        yield int(key), _token(config, _DECODER, value, special=False)


def _token(fields: Fields, name: str, value: Any, special: bool) -> AddedToken:
    """Return the token that a field describes; `special` is its default for that flag."""
    content = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(content, str):
        raise fields.wrong(name, "a string or an object with the field content")
    given = value if isinstance(value, Mapping) else {}
    flags = {flag: bool(given[flag]) for flag in _FLAGS if flag in given}
    try:
        return AddedToken(content, **{"special": special, **flags})
    except UnicodeEncodeError as error:
        raise fields.wrong(name, "valid Unicode") from error


def _as_special(token: AddedToken) -> AddedToken:
    return AddedToken(**{**token.__getstate__(), "special": True})


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
    named: list[int] = []
    for name in ("config.json", "generation_config.json"):  # often only the latter names all ends
        named += Fields.read_optional(folder / name).token_ids("eos_token_id")
    if eos_id is not None:
        named.append(eos_id)
    return Tokenizer(inner, eos_ids=end_of_turn_ids(inner, named, template), chat_template=template)


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


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


def _template_field(fields: Fields) -> dict[str, str]:
    """Return the templates in a field: a string, a list of objects, or an object by name."""
    value = fields.value("chat_template")
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    try:
        named = msgspec.convert(value, list[_NamedTemplate])
    except msgspec.ValidationError as error:
        expected = "a string, or a list of objects with name and template"
        raise fields.wrong("chat_template", expected) from error
    return {each.name: each.template for each in named}
