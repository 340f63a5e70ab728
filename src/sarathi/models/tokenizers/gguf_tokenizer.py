"""The tokenizer in a GGUF file: byte-level BPE (`gpt2`) or SentencePiece BPE (`llama`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from sarathi.errors import ModelError
from sarathi.models.formats.gguf_file import GgufFile
from sarathi.models.tokenizers.chat_template import (
    DEFAULT,
    choose_templates,
    end_of_turn_ids,
    is_control,
    is_known_end,
)
from sarathi.models.tokenizers.huggingface_tokenizer import bos_eos_processor
from sarathi.models.tokenizers.tokenizer import Tokenizer

_TEMPLATE, _PRE = "tokenizer.chat_template", "tokenizer.ggml.pre"
_NO_PRE = (
    f" does not say how its tokenizer cuts text into words ({_PRE}), as files of old converters: a "
    "general rule is used, which may be another than the model's own and cost quality"
)
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # of the format's token types
_ENDS = ("eos", "eot", "eom")  # of a sequence, a turn, a message that calls a tool
_NAMED = ("bos", *_ENDS)
# Files do not record that a token includes the white space after it. With its SentencePiece
# vocabulary, the special tokens of Phi-3 do, all but these.
_PHI3_KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")
_MARKUP = re.compile(r"[<\[].+[>\]]")


# How byte-level BPE vocabularies split text into words. A GGUF file only names its rule in
# `tokenizer.ggml.pre`; the expressions are those that the models' own tokenizer.json files have.
# Each expression splits every piece that the ones before it left.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(digits: str) -> str:
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
    )


_RULES: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("default",): (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ("falcon",): (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    ("gpt-2", "mpt", "olmo", "jais", "trillion"): (_GPT2,),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): (
        r"\p{N}",
        _GPT2,
    ),
    ("llama-bpe", "llama-v3", "llama3", "falcon3", "dbrx", "smaug-bpe"): (_words(r"\p{N}{1,3}"),),
    ("qwen2", "stablelm2", "hunyuan", "megrez", "deepseek-r1-qwen"): (_words(r"\p{N}"),),
    ("tekken",): (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}",
    ),
    ("deepseek-coder",): (
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}",
    ),
}
_EXPRESSIONS = {name: rules for names, rules in _RULES.items() for name in names}
KNOWN_PRE_TOKENIZERS = tuple(_EXPRESSIONS)

# With these, whole words are looked up in the vocabulary before merges apply, and <s> comes first.
_WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "llama-v3", "llama3", "falcon3", "tekken"})


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """Read the tokenizer and chat template in the metadata of `file`.

    Raises `ModelError` for a vocabulary that is incomplete or of an unknown kind.
    """
    tokens = file.texts("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError(f"{file.path} has no vocabulary (tokenizer.ggml.tokens)")
    # Padding entries of some files repeat a text; the first one counts, as in llama.cpp.
    vocab: dict[str, int] = {}
    for index, token in enumerate(tokens):
        vocab.setdefault(token, index)
    types = _numbers(file, "tokenizer.ggml.token_type", len(tokens))
    match kind := file.text("tokenizer.ggml.model"):
        case "gpt2":
            inner, add_bos = _byte_level(file, vocab)
        case "llama":
            inner, add_bos = _sentencepiece(file, vocab, tokens), True
        case _:
            raise file.error(
                f"tokenizer.ggml.model is {kind!r}, supported are gpt2 "
                "(byte-level BPE) and llama (SentencePiece BPE)"
            )
    ids = {name: file.integer(f"tokenizer.ggml.{name}_token_id") for name in _NAMED}
    named = {name: i for name, i in ids.items() if i is not None and 0 <= i < len(tokens)}
    phi3 = kind == "llama" and file.text("general.architecture") == "phi3"
    # One call for all: the library rebuilds its matcher after each.
    inner.add_tokens(
        _added_tokens(tokens, types or [_NORMAL] * len(tokens), set(named.values()), phi3)
    )
    bos, eos = (tokens[named[name]] if name in named else None for name in ("bos", "eos"))
    inner.post_processor = bos_eos_processor(
        inner,
        bos if file.boolean("tokenizer.ggml.add_bos_token", add_bos) else None,
        eos if file.boolean("tokenizer.ggml.add_eos_token", False) else None,
    )
    # The template without a name is the default.
    sources = {
        key.removeprefix(_TEMPLATE).removeprefix(".") or DEFAULT: file.text(key) or ""
        for key in file
        if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")
    }
    template = choose_templates(sources, bos, eos)
    ends = [named[name] for name in _ENDS if name in named]
    return Tokenizer(
        inner,
        eos_ids=end_of_turn_ids(inner, ends, template),
        chat_template=template,
        warnings=() if kind != "gpt2" or _PRE in file else (f"{file.path}{_NO_PRE}",),
    )


def _byte_level(file: GgufFile, vocab: dict[str, int]) -> tuple[tokenizers.Tokenizer, bool]:
    name = file.text(_PRE) or "default"
    splitter = pre_tokenizer(name)
    if splitter is None:
        raise file.error(
            f"tokenizer.ggml.pre is {name!r}, known are {', '.join(KNOWN_PRE_TOKENIZERS)}"
        )
    # A merge is two tokens with a space between them; tokens write spaces as another letter.
    parts = [merge.partition(" ") for merge in file.texts("tokenizer.ggml.merges") or []]
    merges = [(left, right) for left, _, right in parts]
    whole_words_first = name in _WHOLE_WORDS_FIRST
    inner = _build(file, vocab, merges, ignore_merges=whole_words_first)
    inner.pre_tokenizer = splitter
    inner.decoder = decoders.ByteLevel()
    return inner, whole_words_first


def _sentencepiece(
    file: GgufFile, vocab: dict[str, int], tokens: list[str]
) -> tokenizers.Tokenizer:
    scores = _numbers(file, "tokenizer.ggml.scores", len(tokens))
    if scores is None:
        raise ModelError(f"{file.path} has no tokenizer.ggml.scores")
    unknown = file.integer("tokenizer.ggml.unknown_token_id", 0) or 0
    inner = _build(
        file,
        vocab,
        merges_from_scores(vocab, scores),
        unk_token=tokens[unknown] if unknown < len(tokens) else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    normalize: list[object] = [normalizers.Replace(" ", "▁")]
    decode = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.boolean("tokenizer.ggml.add_space_prefix", True):
        normalize.insert(0, normalizers.Prepend("▁"))
        decode.append(decoders.Strip(" ", 1, 0))
    inner.normalizer = normalizers.Sequence(normalize)
    inner.decoder = decoders.Sequence(decode)
    return inner


def merges_from_scores(vocab: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return the merges with which BPE joins by rank what SentencePiece joins by score.

    SentencePiece joins the adjacent pair whose union has the highest score, so each way to split
    a token into two tokens is a merge, ranked by the score of the whole.
    """
    merges = []
    for token, index in vocab.items():
        cuts = [
            (vocab[token[:at]], vocab[token[at:]])
            for at in range(1, len(token))
            if token[:at] in vocab and token[at:] in vocab
        ]
        merges += [(-scores[index], index, *cut) for cut in cuts]
    merges.sort()
    texts = {index: token for token, index in vocab.items()}
    return [(texts[left], texts[right]) for _, _, left, right in merges]


def _build(
    file: GgufFile, vocab: dict[str, int], merges: list[tuple[str, str]], **options: object
) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, **options))
    except Exception as error:  # the library raises nothing more specific
        raise file.error(f"invalid vocabulary or merges: {error}") from error


def _added_tokens(
    tokens: Sequence[str], types: Sequence[float], named: Set[int], phi3: bool
) -> list[tokenizers.AddedToken]:
    """Return the tokens that are matched in text before it is split.

    Old converters marked all tokens as normal. A control token is then recognised by its form, for
    which there are fewer conditions if the file names the token.
    """
    added = []
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if not token or kind not in (_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED):
            continue
        looks_special = token[0] in "<[" and (
            is_control(token) or (index in named and _MARKUP.fullmatch(token) is not None)
        )
        if kind == _NORMAL and not looks_special:
            continue
        special = kind != _USER_DEFINED or (looks_special and is_known_end(token))
        rstrip = phi3 and token not in _PHI3_KEEPS_SPACE
        added.append(tokenizers.AddedToken(token, rstrip=rstrip, normalized=False, special=special))
    return added


def _numbers(file: GgufFile, key: str, count: int) -> list[float] | None:
    values = file.numbers(key)
    if values is None:
        return None
    if values.size != count:
        raise file.error(f"{key} has {values.size} entries for {count} tokens")
    finite: list[float] = np.nan_to_num(values.astype(np.float64)).tolist()
    return finite


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer | None:
    """Return the pre-tokenizer called `name` in GGUF files, or None if it is unknown."""
    expressions = _EXPRESSIONS.get(name)
    if expressions is None:
        return None
    splits = [pre_tokenizers.Split(Regex(each), "isolated") for each in expressions]
    to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, to_letters])
