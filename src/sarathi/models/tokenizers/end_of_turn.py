"""Which tokens end a turn of the model, recognised by what they mean.

Files name one such token, or some, or the one of the base model; the answer to a chat then runs
on into further turns. So the names in the files are put together with what the
model's own chat template writes after an answer, and with the ends that are well known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import tokenizers

from sarathi.models.tokenizers.chat_template import ChatTemplate
from sarathi.models.tokenizers.work_limit import WorkLimit

# As people write text, nobody writes this: what looks so is a token of the model's own, however a
# file describes it. The bars of DeepSeek are U+FF5C.
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
    """Whether a token's text alone tells that it is no text, as in `<|im_end|>`."""
    return _CONTROL_SHAPE.fullmatch(text) is not None


def is_known_end(text: str) -> bool:
    return text in _KNOWN_ENDS


def end_of_turn_ids(
    inner: tokenizers.Tokenizer, named: Iterable[int], template: ChatTemplate | None
) -> tuple[int, ...]:
    """Ids after which the model's turn is complete: the `named` ones first.

    A well-known end counts where it is a special token or looks like nothing else: `</s>` may be
    text as well.
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
    """The special token that the template writes right after what the model has said."""
    messages = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": _ANSWER},
    ]
    try:
        text = template.render_within(WorkLimit(_PROBE_SECONDS), messages, False)
    except ValueError:  # made for other messages than these
        return None
    _, answered, rest = text.rpartition(_ANSWER)
    following = [token for token in special if answered and token and rest.startswith(token)]
    return max(following, key=len, default=None)
