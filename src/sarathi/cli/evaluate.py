"""`sarathi evaluate`: how well a model predicts a text, and what its precision costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import msgspec
from msgspec import Meta

from sarathi.backends.registry import Precision
from sarathi.cli.arguments import ConfigFile
from sarathi.cli.local_engine import LogOptions, Model, locate_model
from sarathi.engine.config import EngineConfig
from sarathi.errors import UsageError
from sarathi.options import LAYERED, MAX_NUMBER, Count, Option, OptionGroup, declarations

if TYPE_CHECKING:
    from rich.table import Table

    from sarathi.engine.text_evaluation import Evaluation, ServedText

_BUILTIN = "builtin"
_WIDTH = 132  # characters: rather wrapped by the terminal than cut off
# What a model is served with, but for what follows from the windows, and other processes.
_ENGINE_OPTIONS = tuple(
    each.field
    for each in declarations(EngineConfig)
    if each.group in ("model and memory", "execution")
    and each.field
    not in (
        *("max_model_len", "kv_cache_memory", "gpu_memory_utilization", "prefix_caching"),
        *("pp", "tp"),
    )
)


class EvaluateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    model: Model
    config: ConfigFile = None
    text: Annotated[
        str, Option("what is to be predicted: a UTF-8 file, or builtin", metavar="FILE|builtin")
    ] = _BUILTIN
    reference: Annotated[
        Precision | None,
        Option(
            "precision of the unquantised weights to compare with; none to compare with nothing",
            choices=(*get_args(Precision), "none"),
            spellings={"none": None},
        ),
    ] = "f32"
    window: Annotated[
        int,
        Meta(ge=2, le=MAX_NUMBER),
        Option("the text is cut into pieces, which are predicted separately", metavar="TOKENS"),
    ] = 512
    max_tokens: Annotated[
        Count | None, Option("use only the beginning of the text", default="all", metavar="TOKENS")
    ] = None
    token_budget: Annotated[
        Count,
        Option(
            "tokens of an iteration, several windows together; at most about 128 have an effect",
            aliases=("max-num-batched-tokens",),
            metavar="TOKENS",
        ),
    ] = 128
    json: Annotated[bool, Option("print one JSON object")] = False
    log: Annotated[LogOptions, LAYERED]
    engine: Annotated[EngineConfig, OptionGroup(only=_ENGINE_OPTIONS, layered=True)]


def run(options: EvaluateOptions) -> int:
    """Print the perplexity and the distance from the reference; return the exit code."""
    text = _read(options.text)
    options.log.configure()
    # Imported here, after the arguments have been checked: it takes a moment.
    from rich.console import Console

    from sarathi.engine.text_evaluation import (
        builtin_text,
        cut_into_windows,
        evaluate,
        reference_config,
    )
    from sarathi.models.model import open_model, open_tokenizer

    config = msgspec.structs.replace(options.engine, token_budget=options.token_budget)
    console = Console(stderr=True)
    located = locate_model(options.model, config.load_format)
    with console.status("reading") as status:
        model = open_model(located.path, config.load_format)
        if options.window > (longest := model.config.max_position):
            raise UsageError(
                f"--window is {options.window} tokens, but the model was made for at most {longest}"
            )
        tokenizer = open_tokenizer(located.path, config.load_format)
        for warning in (*model.warnings, *tokenizer.warnings):
            console.print(f"warning: {warning}", markup=False, soft_wrap=True)
        windows = cut_into_windows(
            tokenizer,
            builtin_text() if text is None else text,
            options.window,
            options.max_tokens,
        )
        if not windows:
            what = "it has" if options.max_tokens != 1 else "--max-tokens leaves"
            raise UsageError(f"{options.text} is too short: {what} less than 2 tokens")
        reference = options.reference and reference_config(config, options.reference)
        found = evaluate(model, windows, config, reference, on_progress=status.update)
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        output = Console(highlight=False, markup=False)
        output.width = max(output.width, _WIDTH)
        output.print(_table(located.served_name, found))
    return 0


def _read(name: str) -> str | None:
    """Return the text of a file; None for the built-in one."""
    if name == _BUILTIN:
        return None
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8: {error}") from None
    except (OSError, ValueError) as error:  # the latter for a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--text {name} cannot be read ({reason}), expected a file or {_BUILTIN}"
        ) from None
    if not text.strip():
        raise UsageError(f"{name} is empty, expected a text")
    return text


def _table(name: str, found: Evaluation) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    columns = ("precision", "quantisation", "KV cache", "tokens", "perplexity")
    for column in ("", *columns, "KL mean", "KL P99", "top-1 equal", "tokens/s"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)

    def add(label: str, served: ServedText, *distances: str) -> None:
        precisions = served.precision, served.quantization, served.kv_precision
        figures = str(found.tokens), f"{served.perplexity:.4g}"
        table.add_row(label, *precisions, *figures, *distances, f"{served.tokens_per_second:.0f}")

    none = ("-",) * 3
    divergence = found.divergence
    distances = divergence and (
        f"{divergence.kl_mean:.3g}",
        f"{divergence.kl_p99:.3g}",
        f"{divergence.top1_agreement:.2%}",
    )
    add(name, found.model, *(distances or none))
    if found.reference is not None:
        add("reference", found.reference, *none)
    return table
