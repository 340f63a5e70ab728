from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from sarathi.errors import ModelError
from sarathi.models.model import open_tokenizer
from tests.tiny_models import VOCAB_SIZE, save_tokenizer

_TEXT = "<a> <b>x<c> y<d>  <e>z</s> <f> <pad><s>"


def _write(folder: Path, files: dict[str, dict[str, Any]], added: list[Any] | None = None) -> None:
    save_tokenizer(folder)
    if added:
        file = str(folder / "tokenizer.json")
        inner = tokenizers.Tokenizer.from_file(file)
        inner.add_tokens(added)
        inner.save(file)
    for name, fields in files.items():
        path = folder / name
        if name == "tokenizer_config.json":
            fields = {**json.loads(path.read_text()), **fields}
        path.write_text(json.dumps(fields))


def _described(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, **flags}


_CASES: dict[str, dict[str, dict[str, Any]]] = {
    "extra, a list": {"tokenizer_config.json": {"extra_special_tokens": ["<b>", "<a>"]}},
    "extra, an object": {
        "tokenizer_config.json": {"extra_special_tokens": {"image_token": "<b>", "x": "<a>"}}
    },
    "additional": {"tokenizer_config.json": {"additional_special_tokens": ["<b>", "<a>"]}},
    "both lists": {
        "tokenizer_config.json": {
            "additional_special_tokens": ["<c>"],
            "extra_special_tokens": ["<b>"],
        }
    },
    "an object and a list": {
        "tokenizer_config.json": {
            "additional_special_tokens": ["<c>"],
            "extra_special_tokens": {"y": "<b>"},
        }
    },
    "an empty list": {
        "tokenizer_config.json": {"additional_special_tokens": ["<c>"], "extra_special_tokens": []}
    },
    "companion": {"special_tokens_map.json": {"additional_special_tokens": ["<a>", "<b>"]}},
    "companion counts": {
        "tokenizer_config.json": {"additional_special_tokens": ["<c>"], "pad_token": "<d>"},
        "special_tokens_map.json": {
            "additional_special_tokens": ["<a>"],
            "pad_token": {"content": "<pad>", "rstrip": True},
        },
    },
    "both lists in the companion": {
        "tokenizer_config.json": {"extra_special_tokens": ["<c>"]},
        "special_tokens_map.json": {"extra_special_tokens": ["<a>", "<c>"]},
    },
    "companion does not count": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {"256": _described("<a>", special=True)},
            "pad_token": "<pad>",
        },
        "special_tokens_map.json": {"pad_token": "<e>", "additional_special_tokens": ["<f>"]},
        "added_tokens.json": {"<b>": 257},
    },
    "ids": {"added_tokens.json": {"<b>": 257, "<a>": 256}},
    "ids of special ones": {
        "added_tokens.json": {"<b>": 257, "<a>": 256, "<pad>": 258},
        "tokenizer_config.json": {"extra_special_tokens": ["<b>"], "pad_token": "<pad>"},
    },
    "described": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "258": _described("<c>", rstrip=True, special=True),
                "256": _described("<a>", lstrip=True, special=False),
                "257": _described("<b>", single_word=True, special=True),
            }
        }
    },
    "described with other flags than in tokenizer.json": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "0": _described("<s>", rstrip=True, special=True),
                "1": _described("</s>", rstrip=True, special=False),
            }
        }
    },
    "described, not special, but named": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "256": _described("<a>", special=False),
                "257": _described("<b>", special=False),
            },
            "pad_token": "<b>",
            "mask_token": "<c>",
        }
    },
    "named by the model alone": {
        "tokenizer_config.json": {
            "think_token": "<a>",
            "extra_special_tokens": {"z": "<b>"},
            "pad_token": {"__type": "AddedToken", "content": "<pad>", "lstrip": True},
        }
    },
    "a well-known name among the model's own": {
        "tokenizer_config.json": {
            "extra_special_tokens": {"z": "<b>", "pad_token": "<a>"},
            "think_token": "<c>",
        }
    },
    "null in the companion": {
        "tokenizer_config.json": {"pad_token": "<pad>"},
        "special_tokens_map.json": {"pad_token": None},
    },
}


@pytest.mark.parametrize("files", _CASES.values(), ids=_CASES)
@pytest.mark.parametrize("added", [None, ["<b>"], [tokenizers.AddedToken("<f>", special=True)]])
def test_tokens_are_those_of_transformers(
    files: dict[str, dict[str, Any]], added: list[Any] | None, tmp_path: Path
) -> None:
    _write(tmp_path, files, added)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = open_tokenizer(tmp_path)
    ids = theirs(_TEXT)["input_ids"]
    assert ours.encode(_TEXT) == ids
    assert ours.vocab_size == len(theirs)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_tokens_of_the_companions_list_may_be_objects(tmp_path: Path) -> None:
    extra = [{"content": "<a>", "rstrip": True, "normalized": False}, "<b>"]
    _write(tmp_path, {"special_tokens_map.json": {"additional_special_tokens": extra}})
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.encode("<a>  <b>") == [VOCAB_SIZE, VOCAB_SIZE + 1]
    assert tokenizer.decode([VOCAB_SIZE, VOCAB_SIZE + 1]) == ""


def test_named_tokens_of_the_model_reach_its_template(tmp_path: Path) -> None:
    fields = {"chat_template": "{{ image_token }}", "extra_special_tokens": {"image_token": "<a>"}}
    _write(tmp_path, {"tokenizer_config.json": fields})
    template = open_tokenizer(tmp_path).chat_template
    assert template is not None
    assert template.render([]) == "<a>"


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("tokenizer_config.json", {"extra_special_tokens": "<a>"}, "extra_special_tokens is '<a>'"),
        ("tokenizer_config.json", {"extra_special_tokens": [3]}, "extra_special_tokens is"),
        ("tokenizer_config.json", {"extra_special_tokens": {"x": 3}}, "extra_special_tokens is"),
        ("tokenizer_config.json", {"additional_special_tokens": 3}, "additional_special_tokens is"),
        ("tokenizer_config.json", {"pad_token": "\ud800"}, "pad_token is .*valid Unicode"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": _described("<a>")}}, "decoder is"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"9" * 5000: _described("<a>")}},
            "added_tokens_decoder is",
        ),
        ("special_tokens_map.json", {"pad_token": []}, "special_tokens_map.json: pad_token is"),
        ("added_tokens.json", {"<a>": "256"}, "added_tokens.json: <a> is '256'"),
        ("added_tokens.json", {"\udc00": 256}, r"added_tokens\.json: \\udc00 is"),
    ],
)
def test_descriptions_that_cannot_be_used_are_named(
    name: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _write(tmp_path, {name: fields})
    with pytest.raises(ModelError, match=message):
        open_tokenizer(tmp_path)


def test_ids_of_special_tokens(tmp_path: Path) -> None:
    _write(tmp_path, {}, [tokenizers.AddedToken("<a>", special=True), "<b>"])
    tokenizer = open_tokenizer(tmp_path)
    found = tokenizer.special_id("<a>")
    assert found is not None
    assert tokenizer.token(found) == "<a>"
    assert tokenizer.decode([found]) == ""
    assert [tokenizer.special_id(text) for text in ("<b>", "a", "", "missing")] == [None] * 4
