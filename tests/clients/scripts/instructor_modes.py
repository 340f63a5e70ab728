"""instructor: a pydantic model through tools, through JSON, and through a JSON schema.

Usage: python instructor_modes.py URL
"""

import sys
from typing import Literal

import instructor
import openai
from instructor.core.exceptions import InstructorError
from pydantic import BaseModel


class Size(BaseModel):
    """How large an animal is."""

    size: Literal["small", "large"]


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON):
    client = instructor.from_openai(
        openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0), mode=mode
    )
    question = {"role": "user", "content": "How large is a mouse? Use the key size."}
    try:
        answer = client.chat.completions.create(
            model="smollm2-135m",
            messages=[question],
            response_model=Size,
            max_retries=0,
            max_tokens=64,
            temperature=0,
        )
    except InstructorError:
        # JSON mode leaves the keys to the model, and this one is small.
        assert mode is instructor.Mode.JSON
    else:
        assert isinstance(answer, Size)
