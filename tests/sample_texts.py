"""Texts that tell tokenizers apart."""

from __future__ import annotations

TEXTS = [
    "",
    "Hello world",
    " leading and trailing ",
    "a 12345 b 1,000.50 in 2024",
    "two  spaces\n\nand\t\ttabs   \n   end",
    "don't I'LL we've they're",
    "你好,世界 한국어 日本語 ภาษาไทย",
    "emoji 🎉👩‍👩‍👧 and naïve café",
    "<|im_start|>user\nhi<|im_end|>\n",
    "def f(x):\n    return x ** 2  # ok\r\n",
    "https://example.org/a?b=c&d=%20",
]
