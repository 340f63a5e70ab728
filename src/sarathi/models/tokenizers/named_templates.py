"""Models with several chat templates: which one is for what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from sarathi.models.tokenizers.chat_template import ChatTemplate

DEFAULT, TOOLS = "default", "tool_use"  # the names that `transformers` looks for
_NONE: Mapping[str, str] = MappingProxyType({})


def choose_templates(
    sources: Mapping[str, str],
    bos_token: str | None,
    eos_token: str | None,
    special_tokens: Mapping[str, str] = _NONE,
) -> ChatTemplate | None:
    """The templates of `sources`, by name; None if there is none.

    Where none is the default one, whichever is there was made for something else: then messages
    without tools are refused. `special_tokens` are those with other names than bos and eos.
    """
    sources = {name: source for name, source in sources.items() if source}
    if not sources:
        return None
    return ChatTemplate(
        sources.get(DEFAULT) or _refusal(sources),
        bos_token=bos_token or "",
        eos_token=eos_token or "",
        tool_source=sources.get(TOOLS),
        special_tokens=special_tokens,
    )


def _refusal(sources: Mapping[str, str]) -> str:
    message = (
        "the model has several chat templates and none is named default: it has "
        f"{', '.join(sources)}"
    )
    return f"{{{{ raise_exception({json.dumps(message)}) }}}}"
