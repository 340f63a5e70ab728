"""`sarathi generate`: complete prompts offline, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from sarathi.cli.arguments import ConfigFile
from sarathi.cli.local_engine import LocalEngine, Model
from sarathi.errors import UsageError
from sarathi.options import Option
from sarathi.sampling.params import SamplingParams

if TYPE_CHECKING:
    from sarathi.engine.llm import LLM, RequestOutput


class SamplingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen; `SamplingParams` checks the values."""

    max_tokens: Annotated[
        int, msgspec.Meta(ge=1), Option("most tokens of an output", group="sampling")
    ] = 128
    temperature: Annotated[float, Option("0 always takes the likeliest token")] = 1.0
    top_p: Annotated[float, Option("choose from the likeliest tokens with this share")] = 1.0
    top_k: Annotated[int, Option("choose from this many likeliest tokens", default="all")] = 0
    min_p: Annotated[float, Option("least probability, relative to the likeliest token's")] = 0.0
    seed: Annotated[int | None, Option("the same gives the same outputs")] = None
    n: Annotated[int, Option("outputs a prompt")] = 1
    stop: Annotated[
        tuple[str, ...], Option("text that ends an output; may be given several times")
    ] = ()
    ignore_eos: Annotated[bool, Option("go on where the model would end")] = False


class GenerateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    model: Model
    config: ConfigFile = None
    json: Annotated[bool, Option("a JSON object a line for each prompt")] = False
    prompt: Annotated[tuple[str, ...], Option("may be given several times", group="prompts")] = ()
    prompt_file: Annotated[
        Path | None,
        Option(
            "one prompt a line; in a .jsonl file a string, a list of token ids, or an object with "
            '"prompt"'
        ),
    ] = None
    chat: Annotated[bool, Option("each prompt is a user's message in the chat template")] = False
    sampling: SamplingOptions
    engine: LocalEngine


def run(options: GenerateOptions) -> int:
    """Print the outputs of all prompts; return the exit code."""
    params = SamplingParams(**msgspec.structs.asdict(options.sampling))
    prompts = [*options.prompt, *(_read(options.prompt_file) if options.prompt_file else [])]
    if not prompts:
        raise UsageError("there is nothing to do: give --prompt or --prompt-file")
    options.engine.log.configure()
    # Imported here, after the arguments have been checked: it takes a moment.
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    llm = options.engine.load(options.model, console)
    if options.chat:
        prompts = [_in_template(llm, prompt) for prompt in prompts]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("generating", total=len(prompts))
        results = llm.generate(prompts, params, on_finish=lambda *_: progress.advance(task))
    for result in results:
        if options.json:
            print(json.dumps(_as_json(result), ensure_ascii=False))
        else:
            print("\n".join((result.prompt or "") + output.text for output in result.outputs))
    return 0


def _in_template(llm: LLM, prompt: str | list[int]) -> list[int]:
    if not isinstance(prompt, str):
        raise UsageError("--chat takes prompts of text, not of token ids")
    try:
        return llm.render([{"role": "user", "content": prompt}])
    except ValueError as error:
        raise UsageError(str(error)) from error


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
    fields = ("text", "token_ids", "finish_reason")
    return {
        "prompt": result.prompt,
        "prompt_tokens": len(result.prompt_token_ids),
        "outputs": [{name: getattr(one, name) for name in fields} for one in result.outputs],
    }
