"""`sarathi generate`: complete prompts offline, without a server."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sarathi.cli.engine_arguments import (
    LogOptions,
    add_engine_arguments,
    configure_log,
    engine_config,
)
from sarathi.cli.model_argument import add_model_argument, locate_model
from sarathi.errors import UsageError
from sarathi.sampling.params import SamplingParams

if TYPE_CHECKING:
    from sarathi.engine.llm import RequestOutput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_model_argument(parser)
    source = parser.add_argument_group("prompts")
    source.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="may be given several times"
    )
    source.add_argument(
        "--prompt-file",
        type=Path,
        metavar="FILE",
        help="one prompt a line; in a .jsonl file a string, a list of token ids, or an object with "
        '"prompt"',
    )
    source.add_argument(
        "--chat", action="store_true", help="each prompt is a user's message in the chat template"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--max-tokens", type=int, default=128, help="(default: %(default)s)")
    sampling.add_argument("--temperature", type=float, default=1.0, help="(default: %(default)s)")
    sampling.add_argument("--top-p", type=float, default=1.0)
    sampling.add_argument("--top-k", type=int, default=0)
    sampling.add_argument("--min-p", type=float, default=0.0)
    sampling.add_argument("--seed", type=int)
    sampling.add_argument("--n", type=int, default=1, help="outputs a prompt")
    sampling.add_argument("--stop", action="append", default=[], metavar="TEXT")
    sampling.add_argument("--ignore-eos", action="store_true")
    parser.add_argument("--json", action="store_true", help="a JSON object a line for each prompt")
    add_engine_arguments(parser, LogOptions)


def run(args: argparse.Namespace) -> int:
    """Print the outputs of all prompts; return the exit code."""
    params = SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        seed=args.seed,
        n=args.n,
        stop=tuple(args.stop),
        ignore_eos=args.ignore_eos,
    )
    config = engine_config(args)
    prompts = [*args.prompt, *(_read(args.prompt_file) if args.prompt_file else [])]
    if not prompts:
        raise UsageError("there is nothing to do: give --prompt or --prompt-file")

    configure_log(args)
    # Imported here, after the arguments have been checked: it takes a moment.
    from rich.console import Console
    from rich.progress import Progress

    from sarathi.engine.llm import LLM

    console = Console(stderr=True)
    # Not under the status line: a download has its own progress bar.
    path = locate_model(args.model, config.load_format).path
    with console.status("loading") as status:
        llm = LLM(str(path), config=config, report=status.update)
    if args.chat:
        prompts = [_in_template(llm, prompt) for prompt in prompts]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("generating", total=len(prompts))
        results = llm.generate(prompts, params, on_finish=lambda *_: progress.advance(task))
    for result in results:
        print(json.dumps(_as_json(result), ensure_ascii=False) if args.json else _as_text(result))
    return 0


def _in_template(llm: Any, prompt: str | list[int]) -> list[int]:
    if not isinstance(prompt, str):
        raise UsageError("--chat takes prompts of text, not of token ids")
    try:
        ids: list[int] = llm.render([{"role": "user", "content": prompt}])
    except ValueError as error:
        raise UsageError(str(error)) from error
    return ids


def _read(path: Path) -> list[str | list[int]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_parse(f"{path}:{number}", line) for number, line in numbered]


def _parse(source: str, line: str) -> str | list[int]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{source} is not JSON: {error}") from error
    if isinstance(value, dict):
        value = value.get("prompt")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return value
    raise UsageError(f"{source} has no prompt: expected a string, token ids, or an object")


def _as_json(result: RequestOutput) -> dict[str, Any]:
    return {
        "prompt": result.prompt,
        "prompt_tokens": len(result.prompt_token_ids),
        "outputs": [
            {
                "text": output.text,
                "token_ids": output.token_ids,
                "finish_reason": output.finish_reason,
            }
            for output in result.outputs
        ],
    }


def _as_text(result: RequestOutput) -> str:
    return "\n".join((result.prompt or "") + output.text for output in result.outputs)
