from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers, trainers

from sarathi.errors import ModelError
from sarathi.models.locate import locate
from sarathi.models.model import open_tokenizer
from sarathi.models.tokenizers.gguf_tokenizer import (
    KNOWN_PRE_TOKENIZERS,
    merges_from_scores,
    pre_tokenizer,
)
from sarathi.models.tokenizers.tokenizer import Tokenizer
from tests.sample_texts import TEXTS
from tests.tiny_gguf import write_tokenizer_gguf
from tests.tiny_models import byte_letters


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return locate("smollm2-135m").path


@pytest.fixture(scope="module")
def smollm2_of_transformers(smollm2: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_encodes_as_transformers_does(
    text: str, smollm2: Path, smollm2_of_transformers: Any
) -> None:
    tokenizer = open_tokenizer(smollm2)
    ids = tokenizer.encode(text)
    assert ids == smollm2_of_transformers(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


# Some bytes never occurred in the training of SmolLM2 and are not in its vocabulary.
_IN_VOCABULARY = st.one_of(
    st.characters(min_codepoint=0x20, max_codepoint=0x3FFFF, exclude_categories=["Cs"]),
    st.sampled_from(["\n", "\t", "\r", "  ", "<|im_end|>"]),
)


@given(parts=st.lists(_IN_VOCABULARY, max_size=40))
def test_smollm2_gives_back_any_text(parts: list[str], smollm2_tokenizer: Tokenizer) -> None:
    text = "".join(parts)
    ids = smollm2_tokenizer.encode(text)
    assert smollm2_tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2: Path) -> Tokenizer:
    return open_tokenizer(smollm2)


def test_smollm2_chat_is_that_of_transformers(smollm2: Path, smollm2_of_transformers: Any) -> None:
    tokenizer = open_tokenizer(smollm2)
    messages = [
        {"role": "user", "content": "What is <b>?"},
        {"role": "assistant", "content": "é"},
        {"role": "user", "content": "x"},
    ]
    assert tokenizer.chat_template is not None
    for prompt in (True, False):
        expected = smollm2_of_transformers.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
        assert tokenizer.chat_template.render(messages, prompt) == expected


def test_smollm2_splits_numbers_into_digits(smollm2: Path) -> None:
    tokenizer = open_tokenizer(smollm2)
    assert [tokenizer.token(i) for i in tokenizer.encode("x12³")] == ["x", "1", "2", "³"]


_SPLITS = {
    "gpt-2": ["it", "'s", " 1234", " $", "x", " ", " y"],
    "smollm": ["it", "'s", " ", "1", "2", "3", "4", " $", "x", " ", " y"],
    "llama-bpe": ["it", "'s", " ", "123", "4", " $", "x", " ", " y"],
    "qwen2": ["it", "'s", " ", "1", "2", "3", "4", " $", "x", " ", " y"],
    "tekken": ["it", "'s", " ", "1", "2", "3", "4", " $", "x", " ", " y"],
    "default": ["it", "'", "s", " ", "123", "4", " ", "$", "x", " ", " y"],
    "falcon": ["it", "'", "s", " ", "123", "4", " ", "$", "x", " ", " y"],
    "deepseek-coder": ["it", "'", "s", " ", "1", "2", "3", "4", " $", "x", " ", " y"],
}


@pytest.mark.parametrize("name", _SPLITS)
def test_words_of_each_rule(name: str) -> None:
    splitter = pre_tokenizer(name)
    assert splitter is not None
    words = [word.replace("Ġ", " ") for word, _ in splitter.pre_tokenize_str("it's 1234 $x  y")]
    assert words == _SPLITS[name]


@pytest.mark.parametrize("name", KNOWN_PRE_TOKENIZERS)
@given(text=st.text(max_size=30))
def test_no_rule_loses_text(name: str, text: str) -> None:
    splitter = pre_tokenizer(name)
    assert splitter is not None
    letters = {letter: byte for byte, letter in enumerate(byte_letters())}
    words = "".join(word for word, _ in splitter.pre_tokenize_str(text))
    assert bytes(letters[letter] for letter in words) == text.encode()


_CORPUS = [
    "the quick brown fox jumps over the lazy dog and the other dogs",
    "a sentence about sentences, with commas, and numbers 1 2 3 10 100",
    "some more text: there and then, here and when; whether the weather",
] * 3


def _trained() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges of a small vocabulary in the manner of Llama 2."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    inner.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    model = json.loads(inner.to_str())["model"]
    pieces = sorted(model["vocab"], key=lambda token: model["vocab"][token])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return tokens, [(left, right) for left, right in model["merges"]]


def _llama2_gguf(path: Path, tokens: list[str], **fields: Any) -> Path:
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    scores = [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)]
    special = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return write_tokenizer_gguf(
        path, "llama", tokens, token_type=types, scores=scores, **{**special, **fields}
    )


@pytest.mark.parametrize(
    "text",
    [
        # Unlike SentencePiece, transformers adds no space before a text that begins with one.
        *(text for text in TEXTS if not text.startswith(" ")),
        "the other fox, then",
        "wheather 2 4 8 unseen ÿ",
    ],
)
def test_sentencepiece_vocabulary_encodes_as_transformers_does(text: str, tmp_path: Path) -> None:
    tokens, merges = _trained()
    theirs = transformers.LlamaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        legacy=True,
        add_bos_token=True,
    )
    ours = open_tokenizer(_llama2_gguf(tmp_path / "m.gguf", tokens))
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def _join_by_score(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's definition: join the leftmost of the best adjacent pairs until none is."""
    parts = list(text)
    while True:
        pairs = [
            (-scores[left + right], at)
            for at, (left, right) in enumerate(pairwise(parts))
            if left + right in scores
        ]
        if not pairs:
            return parts
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@given(
    pieces=st.sets(st.text("abc", min_size=2, max_size=4), max_size=12),
    texts=st.lists(st.text("abc", max_size=12), max_size=4),
    random=st.randoms(use_true_random=False),
)
def test_merges_from_scores_join_what_sentencepiece_joins(
    pieces: set[str], texts: list[str], random: Any
) -> None:
    # As in a trained vocabulary, a piece scores less than the pieces it is joined from, and is
    # joined from two pieces in one way only.
    tokens = ["a", "b", "c"]
    for piece in sorted(pieces, key=lambda piece: (len(piece), random.random())):
        cuts = [at for at in range(1, len(piece)) if {piece[:at], piece[at:]} <= set(tokens)]
        if len(cuts) == 1:
            tokens.append(piece)
    vocab = {token: index for index, token in enumerate(tokens)}
    scores = [-float(index) for index in range(len(tokens))]
    merges = merges_from_scores(vocab, scores)
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    for text in texts:
        expected = _join_by_score(text, dict(zip(tokens, scores, strict=True)))
        assert inner.encode(text).tokens == expected


def test_sentencepiece_switches(tmp_path: Path) -> None:
    tokens, _ = _trained()
    plain = open_tokenizer(_llama2_gguf(tmp_path / "a.gguf", tokens))
    bare = open_tokenizer(
        _llama2_gguf(tmp_path / "b.gguf", tokens, add_space_prefix=False, add_bos_token=False)
    )
    ended = open_tokenizer(_llama2_gguf(tmp_path / "c.gguf", tokens, add_eos_token=True))
    the, spaced_the = plain.encode("the")[1:], plain.encode(" the")[1:]
    assert plain.encode("the")[0] == 1
    assert plain.decode(the) == "the"
    assert plain.decode(spaced_the) == " the"
    assert plain.encode("<s>the</s> the") == [1, 1, *the, 2, *spaced_the]
    assert bare.encode(" the") == the
    assert bare.decode(the) == " the"
    assert ended.encode("the") == [1, *the, 2]
    assert ended.encode("the", add_special_tokens=False) == the


_PHI3_TOKENS = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|placeholder1|>"]
# As in the published folder: white space behind these is part of them, unlike behind the others.
_PHI3_STRIPS = ["</s>", "<|user|>", "<|assistant|>", "<|end|>", "<|placeholder1|>"]


@pytest.mark.parametrize(
    "text",
    [
        "<|user|>\nHi<|end|>\n<|assistant|>\n",
        "<|user|>   the fox<|end|>\n\n\t<|assistant|> dogs</s> \n and",
        "<s> the<|endoftext|> the<|endoftext|>\n the<unk> the",
        "<|placeholder1|>\n",
    ],
)
def test_control_tokens_of_phi3_swallow_white_space_as_in_its_folder(
    text: str, tmp_path: Path
) -> None:
    pieces, merges = _trained()
    tokens = [*pieces, *_PHI3_TOKENS]
    vocab = {token: index for index, token in enumerate(pieces)}
    model = tokenizers.models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True)
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.add_tokens(
        [
            tokenizers.AddedToken(
                token, rstrip=token in _PHI3_STRIPS, normalized=False, special=token != "</s>"
            )
            for token in ("<unk>", "<s>", "</s>", *_PHI3_TOKENS)
        ]
    )
    types = [2, 3, 4, *[6] * 256, *[1] * (len(pieces) - 259), *[3] * len(_PHI3_TOKENS)]
    scores = [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)]
    path = write_tokenizer_gguf(
        *(tmp_path / "m.gguf", "llama", tokens),
        arch="phi3",
        token_type=types,
        scores=scores,
        bos_token_id=1,
        unknown_token_id=0,
        add_bos_token=False,
    )
    expected = inner.encode(text).ids
    assert open_tokenizer(path).encode(text) == expected
    assert "<0x0A>" not in [tokens[i] for i in expected[:2]]


def test_user_defined_tokens_are_found_in_text_and_shown(tmp_path: Path) -> None:
    tokens = [*byte_letters(), "<tool>", "<end>"]
    path = write_tokenizer_gguf(
        tmp_path / "m.gguf", "gpt2", tokens, pre="qwen2", token_type=[1] * 256 + [4, 3]
    )
    tokenizer = open_tokenizer(path)
    ids = tokenizer.encode("a<tool>b<end>")
    assert ids == [ord("a"), 256, ord("b"), 257]
    assert tokenizer.decode(ids) == "a<tool>b"


def test_the_architecture_is_named_before_the_tokenizer(tmp_path: Path) -> None:
    for model, fields in (("t5", {}), ("gpt2", {"pre": "unheard-of"})):
        path = write_tokenizer_gguf(
            tmp_path / "m.gguf", model, byte_letters(), arch="mamba", **fields
        )
        with pytest.raises(ModelError, match="architecture is 'mamba', supported are llama"):
            open_tokenizer(path)


def test_tokenizers_of_other_architectures_can_be_used_alone(tmp_path: Path) -> None:
    path = write_tokenizer_gguf(
        tmp_path / "m.gguf", "gpt2", byte_letters(), arch="mamba", pre="qwen2"
    )
    assert len(open_tokenizer(path).encode("ab")) == 2


def test_files_that_do_not_name_their_rule_are_read_with_a_warning(tmp_path: Path) -> None:
    named = write_tokenizer_gguf(tmp_path / "a.gguf", "gpt2", byte_letters(), pre="default")
    plain = write_tokenizer_gguf(tmp_path / "b.gguf", "gpt2", byte_letters())
    assert open_tokenizer(named).warnings == ()
    (warning,) = open_tokenizer(plain).warnings
    assert "b.gguf does not say how" in warning
    tokens, _ = _trained()
    assert open_tokenizer(_llama2_gguf(tmp_path / "c.gguf", tokens)).warnings == ()


def test_templates_of_a_file(tmp_path: Path) -> None:
    def template(**templates: str) -> Any:
        writer = {f"chat_template{name}": source for name, source in templates.items()}
        path = write_tokenizer_gguf(
            tmp_path / "m.gguf", "gpt2", byte_letters(), pre="qwen2", **writer
        )
        return open_tokenizer(path).chat_template

    tools = [{"type": "function"}]
    assert template() is None
    assert template(**{"": ""}) is None
    both = template(**{"": "plain", ".tool_use": "tools"})
    assert (both.render([]), both.render([], tools=tools)) == ("plain", "tools")
    alone = template(**{".tool_use": "tools", ".rag": "'}}\""})
    assert alone.render([], tools=tools) == "tools"
    with pytest.raises(ValueError, match="none is named default: it has tool_use, rag"):
        alone.render([])


def test_llama3_looks_up_whole_words_and_begins_with_bos(tmp_path: Path) -> None:
    tokens = [*byte_letters(), "hello", "<bos>"]
    path = write_tokenizer_gguf(
        tmp_path / "m.gguf",
        "gpt2",
        tokens,
        pre="llama-bpe",
        token_type=[1] * 257 + [3],
        bos_token_id=257,
    )
    assert open_tokenizer(path).encode("hello") == [257, 256]


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ("gpt2", {"pre": "unheard-of"}, "pre is 'unheard-of', known are default"),
        ("bert", {}, "model is 'bert', supported are gpt2"),
        ("llama", {}, r"no tokenizer\.ggml\.scores"),
        ("llama", {"scores": [0.0]}, "scores has 1 entries for 256 tokens"),
        ("gpt2", {"pre": "qwen2", "token_type": [1]}, "token_type has 1 entries"),
        ("gpt2", {"pre": "qwen2", "merges": ["a zz"]}, "invalid vocabulary or merges"),
        ("gpt2", {"pre": "qwen2", "eos_token_id": "x"}, "eos_token_id is not an integer"),
        ("gpt2", {"pre": "qwen2", "merges": [1, 2]}, "merges is not a list of strings"),
    ],
)
def test_gguf_vocabularies_that_cannot_be_used(
    model: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_tokenizer_gguf(tmp_path / "m.gguf", model, byte_letters(), **fields)
    with pytest.raises(ModelError, match=message):
        open_tokenizer(path)
