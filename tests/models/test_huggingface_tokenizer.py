from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from sarathi.errors import ModelError
from sarathi.models.model import open_tokenizer
from tests.sample_texts import TEXTS
from tests.tiny_models import save_tokenizer, truncate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": [1, 5]}')
    return tmp_path


def _configure(folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_folder_encodes_as_transformers_does(text: str, folder: Path) -> None:
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = open_tokenizer(folder)
    assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text)) == text
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [99]),
        ({"add_bos_token": True}, [99]),
        ({"add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"}, [0, 99]),
        ({"add_bos_token": False, "tokenizer_class": "LlamaTokenizer"}, [99]),
        ({"add_eos_token": True, "tokenizer_class": "LlamaTokenizer"}, [99, 1]),
    ],
)
def test_switches_for_bos_and_eos_count_for_llama_tokenizers(
    changes: dict[str, Any], expected: list[int], folder: Path
) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["add_bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **changes}))
    assert open_tokenizer(folder).encode("a") == expected


def test_tokens_that_only_the_config_describes_are_added(folder: Path) -> None:
    described = {"256": {"content": "<think>", "special": False}, "257": {"content": "<pad>"}}
    _configure(folder, added_tokens_decoder=described, pad_token="<pad>")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = open_tokenizer(folder)
    assert ours.encode("a<think><pad>") == theirs("a<think><pad>")["input_ids"]
    assert 256 in ours.encode("<think>")


def test_eos_ids_are_all_that_any_file_names(folder: Path) -> None:
    _configure(folder, eos_token="<s>")
    assert open_tokenizer(folder).eos_ids == (1, 5, 0)


def test_truncation_of_the_training_is_not_applied(folder: Path) -> None:
    path = folder / "tokenizer.json"
    inner = tokenizers.Tokenizer.from_file(str(path))
    inner.enable_truncation(3)
    inner.enable_padding(length=20)
    inner.save(str(path))
    assert len(open_tokenizer(folder).encode("abcdefgh")) == 8


def test_lone_surrogates_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        open_tokenizer(folder).encode("a\ud800")


def _as_jinja(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("jinja {{ bos_token }}")


def _as_json(folder: Path) -> None:
    _configure(folder, chat_template=None)
    (folder / "chat_template.json").write_text('{"chat_template": "json {{ bos_token }}"}')


def _as_named(folder: Path) -> None:
    templates = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "default {{ bos_token }}"},
    ]
    _configure(folder, chat_template=templates)


def _as_object(folder: Path) -> None:
    _configure(folder, chat_template={"tool_use": "tools", "default": "object {{ bos_token }}"})


def _as_files(folder: Path) -> None:
    _as_jinja(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        (_as_jinja, "jinja <s>"),
        (_as_json, "json <s>"),
        (_as_named, "default <s>"),
        (_as_object, "object <s>"),
        (_as_files, "jinja <s>"),
    ],
)
def test_chat_templates_are_read_from_every_file(
    store: Callable[[Path], None], expected: str, folder: Path
) -> None:
    store(folder)
    template = open_tokenizer(folder).chat_template
    assert template is not None
    assert template.render([]) == expected


def _only_for_tools(folder: Path) -> None:
    _configure(folder, chat_template=[{"name": "tool_use", "template": "tools"}])


def _only_a_file_for_tools(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")


@pytest.mark.parametrize("store", [_only_for_tools, _only_a_file_for_tools])
def test_a_chat_without_tools_needs_the_default_template(
    store: Callable[[Path], None], folder: Path
) -> None:
    store(folder)
    template = open_tokenizer(folder).chat_template
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "x"}]
    assert template is not None
    with pytest.raises(ValueError, match="several chat templates and none is named default"):
        template.render(messages)
    with pytest.raises(ValueError, match="default"):
        theirs.apply_chat_template(messages, tokenize=False)
    tools: list[Any] = [{"type": "function"}]
    assert template.render(messages, tools=tools) == "tools"
    assert theirs.apply_chat_template(messages, tools=tools, tokenize=False) == "tools"


def _as_field_and_json(folder: Path) -> None:
    _configure(folder, chat_template="field")
    (folder / "chat_template.json").write_text('{"chat_template": "json"}')


def _as_field_and_jinja(folder: Path) -> None:
    _as_field_and_json(folder)
    _as_jinja(folder)


def _as_named_twice(folder: Path) -> None:
    templates = [{"name": n, "template": f"the {n}"} for n in ("tool_use", "default", "default")]
    _configure(folder, chat_template=templates)


@pytest.mark.parametrize("store", [_as_field_and_json, _as_field_and_jinja, _as_named_twice])
def test_templates_given_twice_count_as_in_transformers(
    store: Callable[[Path], None], folder: Path
) -> None:
    store(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    template = open_tokenizer(folder).chat_template
    assert template is not None
    messages = [{"role": "user", "content": "x"}]
    assert template.render(messages) == theirs.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("store", [_as_named, _as_object, _as_files])
def test_template_for_tools(store: Callable[[Path], None], folder: Path) -> None:
    store(folder)
    template = open_tokenizer(folder).chat_template
    assert template is not None
    assert template.render([], tools=[{"type": "function"}]) == "tools"


def test_a_folder_may_have_no_chat_template(folder: Path) -> None:
    _configure(folder, chat_template=None)
    assert open_tokenizer(folder).chat_template is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chat_template": "{% for %}"}, "chat template is invalid"),
        ({"chat_template": [{"name": "default"}]}, "chat_template"),
        ({"chat_template": 3}, "chat_template is 3"),
        ({"chat_template": {"default": 3}}, "chat_template"),
        ({"eos_token": 3}, "eos_token is 3"),
        ({"added_tokens_decoder": {"1": 3}}, "added_tokens_decoder"),
        ({"add_bos_token": "yes", "tokenizer_class": "LlamaTokenizer"}, "add_bos_token is 'yes'"),
    ],
)
def test_tokenizer_config_that_cannot_be_used(
    changes: dict[str, Any], message: str, folder: Path
) -> None:
    _configure(folder, **changes)
    with pytest.raises(ModelError, match=message):
        open_tokenizer(folder)


@pytest.mark.parametrize("size", [0, 1, 100, 1000])
def test_truncated_tokenizer(size: int, folder: Path) -> None:
    truncate(folder / "tokenizer.json", folder / "tokenizer.json", size)
    with pytest.raises(ModelError, match=r"cannot read .*tokenizer\.json"):
        open_tokenizer(folder)


def test_sentencepiece_files_alone_are_refused_with_advice(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(ModelError, match=r"tokenizer\.model.*save_pretrained"):
        open_tokenizer(folder)
