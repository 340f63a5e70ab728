"""Does a rank of several read from storage what it needs of a checkpoint, once, and nothing else?

A checkpoint of 2 GB is written to the disk that holds the temporary folder (TMPDIR) and dropped
from the page cache before each rank reads its share, in a separate process. What comes from
storage is counted by the kernel (read_bytes of /proc/self/io). It reads pages, and those that hold
columns of two ranks are read by both, so a rank reads more than it needs. For comparison: page
faults alone, around which the kernel reads ahead, without requests for what is needed.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perf.report import Figure, rounds, show
from sarathi.models.decoder import whole_model
from sarathi.models.formats import checkpoint_files as files
from sarathi.models.formats.huggingface_checkpoint import read_config
from sarathi.models.model import open_model
from sarathi.models.sharding import Shard, ShardedWeights, shard_shapes
from sarathi.models.tensor_layout import expected_shapes

_RANKS = 2
_WIDTH = 2  # bytes of a bfloat16
_CHUNK = 1 << 24  # bytes
_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 5,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Load:
    """What one rank did."""

    needed: int  # bytes of its tensors
    in_pages: int  # bytes of the pages of the file that contain any of them
    read: int  # bytes that came from storage
    seconds: float


def write_checkpoint(folder: Path) -> int:
    """Bytes of the file. It has no holes, which would not be read from storage."""
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    config = read_config(folder)
    header, end = {}, 0
    for name, shape in expected_shapes(config, whole_model(config)).items():
        start, end = end, end + int(np.prod(shape)) * _WIDTH
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as the safetensors library writes it
    values = np.random.default_rng(0).bytes(_CHUNK)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for at in range(0, end, _CHUNK):
            file.write(values[: end - at])
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(text) + end


def drop_from_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def in_memory(path: Path) -> int:
    """Bytes of the pages of a file that are in the page cache."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), pages
        )
        del start
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
        return mmap.PAGESIZE * int((np.ctypeslib.as_array(pages) & 1).sum())


def read_share(folder: Path, rank: int, requests: bool) -> None:
    """Body of a rank's process: reads every tensor and prints the fields of `Load`."""
    pages = np.zeros(-(-(folder / "model.safetensors").stat().st_size // mmap.PAGESIZE), np.bool_)
    request = files.request

    def noted(mapping: mmap.mmap, start: int, size: int) -> None:
        pages[start // mmap.PAGESIZE : (start + size - 1) // mmap.PAGESIZE + 1] = True
        if requests:
            request(mapping, start, size)

    files.request = noted
    before = _read_bytes()
    begin = time.perf_counter()
    model = open_model(folder)
    shard = Shard(rank, _RANKS)
    share = ShardedWeights(model.weights, model.config, shard)
    needed = 0
    for name in shard_shapes(model.config, whole_model(model.config), shard):
        needed += share[name].copy().nbytes
    seconds = time.perf_counter() - begin
    in_pages = mmap.PAGESIZE * int(pages.sum())
    print(json.dumps([needed, in_pages, _read_bytes() - before, seconds]))


def load(folder: Path, ranks: list[int], requests: bool = True) -> Load:
    """Ranks that begin at once with nothing in memory, added up; seconds of the slowest."""
    path = folder / "model.safetensors"
    drop_from_cache(path)
    if left := in_memory(path):
        print(f"{left / 1e6:.1f} MB of the file could not be dropped from the page cache")
    command = [sys.executable, "-m", "perf.sharded_load", str(folder), str(int(requests))]
    running = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in ranks
    ]
    printed = [process.communicate()[0] for process in running]
    needed, in_pages, read, seconds = zip(*map(json.loads, printed), strict=True)
    return Load(sum(needed), sum(in_pages), sum(read), max(seconds))


def main() -> None:
    if not sys.platform.startswith("linux"):
        print("Sharded load: what comes from storage is only counted on Linux")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_checkpoint(folder)
        runs = [([rank], True) for rank in range(_RANKS)]
        runs += [(list(range(_RANKS)), True), ([0], False)]
        *alone, together, faults = [
            load(folder, ranks, requests) for ranks, requests in rounds(runs, "loading")
        ]
    figures = [Figure("checkpoint", size / 1e6, "MB")]
    for rank, one in enumerate(alone):
        figures += [
            Figure(f"rank {rank} needs", one.needed / 1e6, "MB"),
            Figure("  read from storage", one.read / 1e6, "MB"),
            Figure("  read / pages that hold it", one.read / one.in_pages, "", 1.01),
            Figure("  read / needed", one.read / one.needed, "", 1.1),
            Figure("  time", one.seconds, "s"),
        ]
    figures += [
        Figure("both ranks at once, read / checkpoint", together.read / size, "", 1.01),
        Figure("  time", together.seconds, "s"),
        Figure("rank 0 by page faults alone, read / needed", faults.read / faults.needed),
        Figure("  time", faults.seconds, "s"),
    ]
    of_o_proj, of_down_proj = (
        _CONFIG[width] * _WIDTH // _RANKS for width in ("hidden_size", "intermediate_size")
    )
    note = (
        f"What is read but not needed shares a page of {mmap.PAGESIZE} bytes with what is: a row "
        f"of o_proj has {of_o_proj} bytes for each rank, one of down_proj {of_down_proj}. Ranks of "
        "one machine share the page cache, and there nothing is read twice."
    )
    show(f"Loading a checkpoint on {_RANKS} ranks", figures, note)


def _read_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise KeyError("read_bytes")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        read_share(Path(sys.argv[1]), int(sys.argv[3]), sys.argv[2] == "1")
    else:
        main()
