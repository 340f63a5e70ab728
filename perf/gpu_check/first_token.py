"""Load a model and generate one token, printing when each step begins.

Usage: python -m perf.gpu_check.first_token FOLDER full|tiny cuda|cpu
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    """Print a JSON array of a name and a time of `time.monotonic` for every step."""
    path, size, device = sys.argv[1:]
    # Imports are part of what is measured, as they are for the command line.
    import torch

    from perf.gpu_check.loaded import engine_config
    from perf.gpu_check.settings import FULL, TINY
    from sarathi.engine.llm import LLM
    from sarathi.sampling.params import SamplingParams

    settings = TINY if size == TINY.name else FULL
    _mark("opening the model")
    llm = LLM(path, config=engine_config(settings, torch.device(device)), on_progress=_mark)
    _mark("generating a token")
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    [result] = llm.generate([list(range(3, 19))], params)
    assert len(result.outputs[0].token_ids) == 1
    _mark("first token")


def _mark(name: str) -> None:
    print(json.dumps([name, time.monotonic()]), flush=True)


if __name__ == "__main__":
    main()
