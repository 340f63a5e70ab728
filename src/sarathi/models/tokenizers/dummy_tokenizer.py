"""A tokenizer for random weights, built in code.

It is a byte-level BPE (Sennrich et al., 2016) whose merges are not learnt but enumerated: common
words letter by letter, then pairs of letters, then pairs of pairs, frequent letters first. So
English takes a token for every two to three characters, any other text is possible, every id has a
short text of its own, and nothing has to be downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TypeVar

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Inner

from sarathi.errors import ModelError
from sarathi.models.tokenizers.chat_template import ChatTemplate
from sarathi.models.tokenizers.tokenizer import Tokenizer, byte_letters

BOS, EOS = "<s>", "</s>"
_SPECIAL = (BOS, EOS)
# Of English, the most frequent first.
_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
_WORDS = (
    "the of and to a in is that for it as was with be by on not he this are or his from at which "
    "but have an had they you were their one all we can her has there been if more when will "
    "would who so no what about up out into than them some time could these two may then do first "
    "any my now such like our over me even most made after also did many before must through years "
    "where much your way well down should because each just those people how too little state good "
    "very make world still see own work long here get both between life being under never day same "
    "another know while last might us great old year off come since against right use used take"
)
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# No UTF-8 text has these bytes.
_IMPOSSIBLE = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))

T = TypeVar("T")


def dummy_tokenizer(vocab_size: int) -> Tokenizer:
    """Build a tokenizer of exactly `vocab_size` tokens; `ModelError` if these are too few."""
    letters = byte_letters()
    alphabet = [letters[byte] for byte in range(256) if byte not in _IMPOSSIBLE]
    least = len(_SPECIAL) + len(alphabet)
    if vocab_size < least:
        raise ModelError(
            f"vocab_size is {vocab_size}, expected at least {least} for random weights without a "
            "tokenizer.json: a token for each byte of UTF-8 text, and the special ones"
        )
    merges = list(islice(_merges(letters[ord(" ")]), vocab_size - least))
    tokens = [*_SPECIAL, *alphabet, *(first + second for first, second in merges)]
    # No text has these; only a vocabulary larger than all known ones needs any.
    tokens += [f"<{index}>" for index in range(len(tokens), vocab_size)]
    inner = Inner(models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    return Tokenizer(
        inner,
        eos_ids=(_SPECIAL.index(EOS),),
        chat_template=ChatTemplate(_TEMPLATE, bos_token=BOS, eos_token=EOS),
    )


def _merges(space: str) -> Iterator[tuple[str, str]]:
    """Yield what BPE joins, by rank, each with another result; `space` is the letter for one."""
    known: set[str] = set()
    begins = [space + letter for letter in _LETTERS]
    pairs = ["".join(pair) for pair in _frequent_first(_LETTERS, _LETTERS)]
    words = (space + word for word in _WORDS.split())
    prefixes = ((word[:end], word[end]) for word in words for end in range(1, len(word)))
    twos = ((two[0], two[1]) for two in (*begins, *pairs))
    fours = _frequent_first(_interleaved(begins, pairs), pairs)
    for first, second in chain(prefixes, twos, fours):
        if first + second not in known:
            known.add(first + second)
            yield first, second


def _interleaved(few: Sequence[str], many: Sequence[str]) -> list[str]:
    """Merge both, with one of the `few` before every second of the `many`."""
    mixed: list[str] = []
    left = iter(few)
    for index, item in enumerate(many):
        if not index % 2:
            mixed += islice(left, 1)
        mixed.append(item)
    return mixed


def _frequent_first(firsts: Sequence[T], seconds: Sequence[T]) -> Iterator[tuple[T, T]]:
    """Yield all pairs, those of early items of both first."""
    for total in range(len(firsts) + len(seconds) - 1):
        for index in range(max(0, total - len(seconds) + 1), min(total + 1, len(firsts))):
            yield firsts[index], seconds[total - index]
