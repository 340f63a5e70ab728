"""The tokens that end a turn of the model.

Files name one such token, or some, or that of the base model; the answer to a chat would then
continue into further turns. So the tokens that the files name are combined with the one that the
model's chat template writes after an answer, and with those that are well known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import tokenizers

from sarathi.models.tokenizers.chat_template import ChatTemplate
from sarathi.models.tokenizers.work_limit import WorkLimit

# Texts do not contain this form: it is a special token, however a file describes it. The bars of
# DeepSeek are U+FF5C.
_CONTROL_SHAPE = re.compile(r"<([|\uff5c])[^<>|\uff5c\s]+\1>")

_KNOWN_ENDS = frozenset(
    {
        *("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
        *("<|eot|>", "<|eom|>", "<|end|>", "<|return|>", "<|call|>", "<|end_of_turn|>"),
        *("<|EOT|>", "<|END_OF_TURN_TOKEN|>", "[|endofturn|]", "[EOT]", "<EOT>", "\u2581<EOT>"),
        *("<end_of_turn>", "<end_of_utterance>", "</s>", "<eos>", "[EOS]"),
        *(
            f"<{bar}end{gap}of{gap}sentence{bar}>"
            for bar in ("|", "\uff5c")
            for gap in ("_", "\u2581", " ")
        ),
    }
)
# Where a vocabulary has all of these, the last ends a message, after which the turn may go on.
_HARMONY = ("<|return|>", "<|call|>", "<|end|>")

_QUESTION, _ANSWER = "What is 6 times 7?", "6-times-7-is-42"
_PROBE_SECONDS = 0.25  # templates take a hundredth of that


def is_control(text: str) -> bool:
    """Return whether a token's form shows that it is a control token, as `<|im_end|>`."""
    return _CONTROL_SHAPE.fullmatch(text) is not None


def is_known_end(text: str) -> bool:
    """Return whether a token's text is well known as the end of a turn."""
    return text in _KNOWN_ENDS


def end_of_turn_ids(
    inner: tokenizers.Tokenizer, named: Iterable[int], template: ChatTemplate | None
) -> tuple[int, ...]:
    """Return the ids that complete the model's turn, the `named` ones first.

    A well-known end counts if it is a special token or has the form of one: `</s>` may be text.
    """
    special = {
        token.content: index
        for index, token in inner.get_added_tokens_decoder().items()
        if token.special or is_control(token.content)
    }
    known = {text: special.get(text) for text in _KNOWN_ENDS}
    for text in filter(is_control, _KNOWN_ENDS):
        known[text] = inner.token_to_id(text)
    if all(known[text] is not None for text in _HARMONY):
        del known[_HARMONY[-1]]
    after_answer = None if template is None else _token_after_answer(template, special)
    found = [
        *named,
        *([] if after_answer is None else [special[after_answer]]),
        *sorted(index for index in known.values() if index is not None),
    ]
    return tuple(dict.fromkeys(found))


def _token_after_answer(template: ChatTemplate, special: Iterable[str]) -> str | None:
    """Return the special token that the template writes after the model's answer."""
    messages = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": _ANSWER},
    ]
    try:
        text = template.render_within(WorkLimit(_PROBE_SECONDS), messages, False)
    except ValueError:  # made for other messages than these
        return None
    _, found, after = text.rpartition(_ANSWER)
    following = [token for token in special if found and token and after.startswith(token)]
    return max(following, key=len, default=None)
