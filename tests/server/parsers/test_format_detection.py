"""Formats are found by what templates of model families have in common."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from sarathi.models.tokenizers.chat_template import ChatTemplate
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.server.parsers.format_detection import detect_formats, model_formats
from sarathi.server.parsers.reasoning_parser import REASONING_FORMATS
from sarathi.server.parsers.tool_formats import TOOL_FORMATS

DEEPSEEK = "{{ '<\uff5ctool\u2581call\u2581begin\uff5c>' }}{{ '<\uff5ctool\u2581sep\uff5c>' }}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ '<tool_call>' }}{{ call | tojson }}", ("hermes", "none")),
        ("{{ '<tool_call>' }}{{ '<think>\\n\\n</think>' }}", ("hermes", "qwen3")),
        ("{{ '<tool_call>\\n<function=' + call.name }}", ("qwen3_coder", "none")),
        ("{{ '<|python_tag|>' }}{{ '\"parameters\": dictionary' }}", ("llama3_json", "none")),
        ("{{ '<|python_start|>' }}", ("pythonic", "none")),
        ("Use [func_name1(params_name1=value)].", ("pythonic", "none")),
        ("{{ '[TOOL_CALLS] [' }}", ("mistral", "none")),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}[THINK]", ("mistral_named", "mistral")),
        ("{{ '<|tool|>' }}{{ '<|/tool|>' }}{{ '<|tool_call|>' }}{{ '<|/tool_call|>' }}",
         ("phi4_mini_json", "none")),
        ("{{ '<|tool_call|>' }}Here is my thought process:", ("granite", "granite")),
        (DEEPSEEK + "{{ '```json' }}</think>", ("deepseek_v3", "deepseek_r1")),
        (DEEPSEEK + "</think>", ("deepseek_v31", "deepseek_r1")),
        ("{{ '<start_function_call>call:' }}{{ '<escape>' }}", ("functiongemma", "none")),
        ("{{ '<|tool_call>call:' }}{{ '<|channel>' }}", ("gemma4", "gemma4")),
        ("You are SmolLM.", ("smollm", "none")),
        ("{{ '<|START_THINKING|>' }}", ("hermes", "command_r")),
        ("{{ message.content }}", ("hermes", "none")),
    ],
)  # fmt: skip
def test_formats_by_template(template: str, expected: tuple[str, str]) -> None:
    assert detect_formats(template, ()) == expected


def test_a_vocabulary_with_both_markers_reasons() -> None:
    assert detect_formats("", {"<think>": 1, "</think>": 2}) == ("hermes", "qwen3")
    assert detect_formats("", {"<think>": 1}) == ("hermes", "none")


class FakeTokenizer:
    added_tokens = ()

    def __init__(self, chat_template: ChatTemplate | None) -> None:
        self.chat_template = chat_template


def formats(template: ChatTemplate | None, *options: str):
    return model_formats(cast("Tokenizer", FakeTokenizer(template)), *options)


def test_options_come_before_what_the_template_shows() -> None:
    template = ChatTemplate("{{ '<tool_call></think>' }}")
    assert formats(template).names == ("hermes", "qwen3")
    assert formats(template, "mistral", "none").names == ("mistral", "none")
    assert formats(template, "mistral", "none").reasoning is None
    assert formats(template, "none").tools is None
    assert formats(None).names == ("none", "none")
    both = ChatTemplate("{{ '[TOOL_CALLS]' }}", tool_source="{{ '</think>' }}")
    assert formats(both).names == ("mistral", "qwen3")


def test_names_of_formats_that_are_found_exist() -> None:
    template = ChatTemplate("")
    for tools in TOOL_FORMATS:
        assert formats(template, tools).tools is TOOL_FORMATS[tools]
    for reasoning in REASONING_FORMATS:
        assert formats(template, "auto", reasoning).reasoning is REASONING_FORMATS[reasoning]


def test_the_documentation_names_every_format() -> None:
    text = (Path(__file__).parents[3] / "docs" / "tools-and-reasoning.md").read_text()
    tables = text.partition("## Formats of reasoning")
    for table, names in ((tables[0], TOOL_FORMATS), (tables[2], REASONING_FORMATS)):
        rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
        listed = {name.strip(" `") for row in rows for name in row.split(",")}
        assert names.keys() <= listed
