"""Output of a real model under random schemas: it parses, and is valid."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from sarathi.engine.llm import LLM
from sarathi.sampling.grammar import json_schema
from sarathi.sampling.params import SamplingParams

SCHEMAS = 500
WORDS = (
    "name",
    "age",
    "é",
    "a b",
    "<|im_end|>",
    'quo"te',
    "\\",
    "x/y",
    "日本",
    "id",
    "value",
    "tags",
    "",
)


class SchemaMaker:
    """Makes schemas whose outputs are short."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def schema(self, depth: int = 2) -> dict[str, Any]:
        kinds = [self.integer, self.number, self.string, self.enum, self.const, self.plain]
        if depth:
            kinds += [self.object, self.object, self.array, self.any_of]
        made: dict[str, Any] = self._random.choice(kinds)(depth)
        return made

    def object(self, depth: int) -> dict[str, Any]:
        names = self._random.sample(WORDS, self._random.randint(0, 3))
        return {
            "type": "object",
            "properties": {name: self.schema(depth - 1) for name in names},
            "required": [name for name in names if self._random.random() < 0.6],
            "additionalProperties": False,
        }

    def array(self, depth: int) -> dict[str, Any]:
        least = self._random.randint(0, 2)
        most = least + self._random.randint(0, 2)
        items = self.schema(depth - 1)
        return {"type": "array", "items": items, "minItems": least, "maxItems": most}

    def any_of(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.schema(depth - 1) for _ in range(self._random.randint(1, 3))]}

    def integer(self, depth: int) -> dict[str, Any]:
        least = self._random.randint(-2000, 2000)
        return {
            "type": "integer",
            "minimum": least,
            "maximum": least + self._random.randint(0, 500),
        }

    def number(self, depth: int) -> dict[str, Any]:
        limit = self._random.randint(1, 50)
        return {"type": "number", "multipleOf": 0.25, "minimum": -limit, "exclusiveMaximum": limit}

    def string(self, depth: int) -> dict[str, Any]:
        if self._random.random() < 0.3:
            return {"type": "string", "pattern": self._random.choice(["^[A-Z]{2,4}$", "^a+b?$"])}
        if self._random.random() < 0.3:
            return {"type": "string", "format": self._random.choice(["date", "ipv4"])}
        least = self._random.randint(0, 3)
        return {
            "type": "string",
            "minLength": least,
            "maxLength": least + self._random.randint(0, 9),
        }

    def enum(self, depth: int) -> dict[str, Any]:
        values = [*WORDS, 0, -1.5, None, True, [1, {"a": None}]]
        return {"enum": self._random.sample(values, self._random.randint(1, 4))}

    def const(self, depth: int) -> dict[str, Any]:
        return {"const": self._random.choice([*WORDS, 17, False, {"a": [1, 2]}])}

    def plain(self, depth: int) -> dict[str, Any]:
        return {"type": self._random.choice(["boolean", "null"])}


@pytest.mark.slow
def test_greedy_output_is_valid_under_random_schemas() -> None:
    maker = SchemaMaker(20)
    schemas = [maker.schema() for _ in range(SCHEMAS)]
    llm = LLM("smollm2-135m", max_batch_size=64, max_model_len=512)
    params = [
        SamplingParams(temperature=0, max_tokens=256, grammar=json_schema(schema))
        for schema in schemas
    ]
    outputs = llm.generate(["An example in JSON: "] * SCHEMAS, params)
    for schema, result in zip(schemas, outputs, strict=True):
        [output] = result.outputs
        assert output.finish_reason == "stop", (schema, output.text)
        jsonschema.Draft202012Validator(schema).validate(json.loads(output.text))
