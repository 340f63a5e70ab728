"""A real model with windows, two rotary embeddings and mixed quantisation: llama.cpp's tokens."""

from __future__ import annotations

from sarathi.models.locate import locate
from sarathi.models.model import open_tokenizer
from sarathi.sampling.params import SamplingParams
from tests.backends.engines import engine, load, run

# Greedy continuations of llama.cpp (build 11434, on a CPU) of the same file, where each token was
# clearly ahead of the second: by 0.1 in log probability, in the last one by 0.05. They are answers
# of `llama-server -m FILE -c 4096` to `{"prompt": ..., "n_predict": 24, "temperature": 0}`.
CONTINUATIONS = {
    "def fibonacci(n):\n    ": ("if n == 0:\n        return 0\n    elif n == 1:\n        return 1"),
    "List of planets of the solar system in order from the Sun:": (
        "\n\n1. Mercury\n2. Venus\n3. Earth\n4. Mars\n5. Jupiter\n6. Saturn"
    ),
    "Once upon a time, in a village by the sea, there lived an old clockmaker who": (
        " was a master of the art of clock-making. He was a man of many talents, and he was a "
        "master"
    ),
    "The alphabet: A B C D E F": " G H I J K L M N O P Q R S T U V W X Y Z\n\nThe alphabet:",
    # 762 tokens, more than the window has.
    "".join(f"Box {i} holds {7 * i % 23} apples. " for i in range(1, 81)) + "Box 81 holds": (
        " 10 apples. Box 82 holds 10 apples. Box 83 holds 10 apples"
    ),
}
OUTPUT = 24


def test_greedy_continuations_equal_those_of_llama_cpp() -> None:
    path = locate("gemma3-270m").path
    tokenizer = open_tokenizer(path)
    prompts = [tokenizer.encode(text) for text in CONTINUATIONS]
    assert len(prompts[-1]) > 512 + OUTPUT
    executor = load(path, max_position=1024)
    outputs = run(
        engine(executor, budget=200), prompts, SamplingParams(max_tokens=OUTPUT, temperature=0)
    )
    found = [tokenizer.decode(output) for output in outputs]
    assert found == list(CONTINUATIONS.values())
