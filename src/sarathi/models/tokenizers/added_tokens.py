"""The tokens that the files beside a tokenizer.json add to it.

Several generations of files describe them, and repeat and contradict each other. The order of
precedence and the numbering are those of `PreTrainedTokenizerBase` and `TokenizersBackend` in
`transformers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from sarathi.models.json_fields import Fields

_NAMES = (
    *("bos_token", "eos_token", "unk_token", "sep_token"),
    *("pad_token", "cls_token", "mask_token"),
)
_EXTRA, _OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ID = re.compile(r"[0-9]{1,10}")


def add_tokens(inner: tokenizers.Tokenizer, folder: Path, config: Fields) -> dict[str, str]:
    """Add them to `inner`, and return the text of each token with a name (`bos_token`, ...).

    `config` is `tokenizer_config.json`. Where it describes the added tokens itself, the older files
    `special_tokens_map.json` and `added_tokens.json` do not count; where it does not, the former
    counts before it.
    """
    described = config.object("added_tokens_decoder")
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
    values: dict[str, tuple[Fields, Any]] = {}
    own: dict[str, tuple[Fields, Any]] = {}
    for fields in sources:
        for name, value in fields.data.items():
            if name in _NAMES:
                values[name] = (fields, value)
            elif name.endswith("_token") and isinstance(value, str | Mapping):
                own[name] = (fields, value)
    for fields in sources:
        value = fields.data.get(_EXTRA)
        if isinstance(value, Mapping):
            own.update({name: (fields, token) for name, token in value.items()})
    tokens = {}
    for name, (fields, value) in [
        *((name, values[name]) for name in _NAMES if name in values),
        *own.items(),
    ]:
        if value is not None:
            field = name if name in fields.data else _EXTRA
            tokens[name] = _as_special(_token(fields, field, value, special=True))
    return tokens


def _extra(config: Fields, companion: Fields) -> Iterator[AddedToken]:
    """Yield the tokens of the lists.

    First those of the configuration under the new name or else the old one, then those of the
    companion under the new name; if there are none, those under the old.
    """
    own = _EXTRA if config.data.get(_EXTRA) else _OLD_EXTRA
    lists = [each for each in ((config, own), (companion, _EXTRA)) if _is_list(*each)]
    if not lists:
        lists = [(companion if _OLD_EXTRA in companion else config, _OLD_EXTRA)]
    for fields, name in lists:
        for value in fields.value(name, []) if _is_list(fields, name) else []:
            yield _token(fields, name, value, special=True)


def _is_list(fields: Fields, name: str) -> bool:
    value = fields.value(name)
    if value is None or (name == _EXTRA and isinstance(value, Mapping)):
        return False
    if not isinstance(value, list):
        raise fields.wrong(name, "a list of tokens")
    return True


def _from_ids(fields: Fields, special: Iterable[str]) -> Iterator[tuple[int, AddedToken]]:
    """Yield the tokens of `added_tokens.json`, which has an id for each text."""
    for text, index in fields.data.items():
        if isinstance(index, bool) or not isinstance(index, int):
            raise fields.wrong(text, "a token id")
        yield index, _token(fields, text, text, special=text in special)


def _from_descriptions(
    config: Fields, described: Mapping[str, Any]
) -> Iterator[tuple[int, AddedToken]]:
    name = "added_tokens_decoder"
    for key, value in described.items():
        if not _ID.fullmatch(key) or not isinstance(value, Mapping):
            raise config.wrong(name, "an object of objects with the field content, by token id")
        yield int(key), _token(config, name, value, special=False)


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
