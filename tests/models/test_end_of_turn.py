from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from sarathi.errors import ModelError
from sarathi.models.model import open_tokenizer
from sarathi.models.tokenizers.tokenizer import Tokenizer
from tests.tiny_gguf import write_tokenizer_gguf
from tests.tiny_models import VOCAB_SIZE, byte_letters, save_tokenizer

_ENDS = [
    *("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>"),
    *("<end_of_turn>", "<|return|>", "<|call|>", "</s>", "<EOT>", "<|END_OF_TURN_TOKEN|>"),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>", "<|end\u2581of\u2581sentence|>"),
    *("<|end_of_sentence|>", "<\uff5cend_of_sentence\uff5c>", "<|EOT|>", "[|endofturn|]"),
]
# Of vocabularies in which they are no ordinary text, however a file types them.
_UNMISTAKABLE = [token for token in _ENDS if token.startswith(("<|", "<\uff5c"))]


def _folder(folder: Path, added: dict[str, bool], **settings: Any) -> Tokenizer:
    """The tokens `added` after the first ones, each special or not."""
    save_tokenizer(folder)
    file = str(folder / "tokenizer.json")
    inner = tokenizers.Tokenizer.from_file(file)
    inner.add_tokens(
        [
            tokenizers.AddedToken(token, special=special, normalized=False)
            for token, special in added.items()
        ]
    )
    inner.save(file)
    path = folder / "tokenizer_config.json"
    config = {"chat_template": None, "eos_token": "<s>", **settings}
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return open_tokenizer(folder)


def _gguf(folder: Path, added: dict[str, bool], kinds: tuple[int, int], **fields: Any) -> Tokenizer:
    """As `_folder`; `kinds` are the types of tokens that are special and that are not."""
    tokens = ["<s>", "</x>", *byte_letters()[: VOCAB_SIZE - 2], *added]
    types = [3, 3, *[1] * (VOCAB_SIZE - 2), *(kinds[not special] for special in added.values())]
    settings = {"pre": "qwen2", "token_type": types, "eos_token_id": 0, **fields}
    return open_tokenizer(write_tokenizer_gguf(folder / "m.gguf", "gpt2", tokens, **settings))


def _control_gguf(folder: Path, added: dict[str, bool], **fields: Any) -> Tokenizer:
    return _gguf(folder, added, (3, 1), **fields)


_FORMATS: list[Callable[..., Tokenizer]] = [_folder, _control_gguf]


@pytest.mark.parametrize("end", _ENDS)
def test_well_known_control_tokens_end_a_turn_and_are_hidden_in_a_gguf(
    end: str, tmp_path: Path
) -> None:
    tokenizer = _control_gguf(tmp_path, {"<tool>": True, end: True})
    assert tokenizer.eos_ids == (0, VOCAB_SIZE + 1)
    assert tokenizer.encode(f"a{end}b")[1:-1] == [VOCAB_SIZE + 1]
    assert tokenizer.decode(tokenizer.encode(f"a{end}b")) == "ab"


@pytest.mark.parametrize("end", [end for end in _ENDS if end != "</s>"])
def test_well_known_special_tokens_end_a_turn_in_a_folder(end: str, tmp_path: Path) -> None:
    tokenizer = _folder(tmp_path, {"<tool>": True, end: True})
    assert tokenizer.eos_ids == (0, 1, VOCAB_SIZE + 1)
    assert tokenizer.decode(tokenizer.encode(f"a{end}b")) == "ab"


@pytest.mark.parametrize("end", _UNMISTAKABLE)
@pytest.mark.parametrize("kind", [1, 4])
def test_files_that_call_a_control_token_normal_or_user_defined(
    kind: int, end: str, tmp_path: Path
) -> None:
    tokenizer = _gguf(tmp_path, {"<|x|>": False, end: False}, (3, kind))
    text = f"a<|x|>{end}b"
    ids = tokenizer.encode(text)
    assert ids[1:-1] == [VOCAB_SIZE, VOCAB_SIZE + 1]
    assert tokenizer.eos_ids == (0, VOCAB_SIZE + 1)
    # A token that users have defined is a part of the text, unless it ends it.
    assert tokenizer.decode(ids) == ("ab" if kind == 1 else "a<|x|>b")


def test_a_folder_that_does_not_call_its_end_special(tmp_path: Path) -> None:
    tokenizer = _folder(tmp_path, {"<|im_start|>": False, "<|im_end|>": False})
    assert tokenizer.eos_ids == (0, 1, VOCAB_SIZE + 1)
    assert tokenizer.decode(tokenizer.encode("<|im_start|>a<|im_end|>")) == "<|im_start|>a"


@pytest.mark.parametrize("text", ["</s>", "<end_of_turn>", "<EOT>", "[EOS]"])
def test_what_may_be_ordinary_text_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    tokenizer = _control_gguf(tmp_path, {text: False})
    assert tokenizer.eos_ids == (0,)
    assert len(tokenizer.encode(text)) == len(text)


@pytest.mark.parametrize("name", ["eos", "eot", "eom"])
@pytest.mark.parametrize("text", ["</s>", "[END]"])
def test_named_tokens_that_are_called_normal(name: str, text: str, tmp_path: Path) -> None:
    tokenizer = _control_gguf(tmp_path, {text: False}, **{f"{name}_token_id": VOCAB_SIZE})
    assert VOCAB_SIZE in tokenizer.eos_ids
    assert tokenizer.decode(tokenizer.encode(f"a{text}b")) == "ab"


def test_an_end_that_is_a_word_stays_a_word(tmp_path: Path) -> None:
    tokenizer = _control_gguf(tmp_path, {}, eos_token_id=2 + ord("."))
    assert tokenizer.eos_ids == (2 + ord("."),)
    assert tokenizer.decode(tokenizer.encode("a.b")) == "a.b"


def test_files_without_types_have_control_tokens(tmp_path: Path) -> None:
    tokens = [*byte_letters(), "<|eot_id|>"]
    path = write_tokenizer_gguf(tmp_path / "m.gguf", "gpt2", tokens, pre="qwen2")
    tokenizer = open_tokenizer(path)
    assert tokenizer.encode("<|eot_id|>") == [256]
    assert tokenizer.eos_ids == (256,)


@pytest.mark.parametrize("identity", [2**32 - 1, 100_000])
def test_ids_that_no_token_has_name_nothing(identity: int, tmp_path: Path) -> None:
    tokenizer = _control_gguf(tmp_path, {}, eot_token_id=identity, bos_token_id=identity)
    assert tokenizer.eos_ids == (0,)


@pytest.mark.parametrize("open_", _FORMATS)
def test_the_end_of_a_message_is_no_end_of_a_turn(
    open_: Callable[..., Tokenizer], tmp_path: Path
) -> None:
    tokenizer = open_(tmp_path, {"<|end|>": True, "<|return|>": True, "<|call|>": True})
    assert VOCAB_SIZE not in tokenizer.eos_ids
    assert {VOCAB_SIZE + 1, VOCAB_SIZE + 2} <= set(tokenizer.eos_ids)


def test_ids_of_all_files_and_of_the_named_token(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9, -1]}')
    assert _folder(tmp_path, {}).eos_ids == (7, 9, 0, 1)


@pytest.mark.parametrize("value", [[1, "a"], -2, True, 1.5, {}])
def test_ids_that_are_none_are_refused(value: Any, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id is"):
        _folder(tmp_path, {})


_TURN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}END{% endfor %}"


@pytest.mark.parametrize("open_", _FORMATS)
@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (_TURN.replace("END", "<turn|end>"), True),
        (_TURN.replace("END", "<turn|end><|user|>"), True),
        (_TURN.replace("END", "{{ '<turn|end>' if m.role == 'assistant' }}"), True),
        (_TURN.replace("END", "{{ '<turn|end>' if m.role == 'user' }}"), False),
        (_TURN.replace("END", "\n<turn|end>"), False),  # of the next turn, it may be
        (_TURN.replace("END", ""), False),
        # Whatever a template does wrong is none of the tokenizer's business.
        ("{{ raise_exception('no') }}<turn|end>", False),
        ("{{ messages[7].content }}<turn|end>", False),
        ("{% for i in range(9999) %}{% for i in range(9999) %}{% endfor %}{% endfor %}", False),
        ("<turn|end>", False),
    ],
)
def test_what_the_template_writes_after_an_answer_ends_a_turn(
    template: str, ends: bool, open_: Callable[..., Tokenizer], tmp_path: Path
) -> None:
    added = {"<turn|end>": True, "<|user|>": True, "<turn": True}
    tokenizer = open_(tmp_path, added, chat_template=template)
    assert (VOCAB_SIZE in tokenizer.eos_ids) == ends
    assert not {VOCAB_SIZE + 1, VOCAB_SIZE + 2} & set(tokenizer.eos_ids)
