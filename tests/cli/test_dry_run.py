"""`sarathi serve --dry-run`: what it prints, and that a start would come out the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from sarathi.backends import model_instance
from sarathi.backends.openvino.openvino_executor import OpenVinoExecutor
from sarathi.cli.main import main
from sarathi.engine.config import EngineConfig
from sarathi.engine.startup import dry_run as module
from sarathi.engine.startup.dry_run import dry_run
from sarathi.engine.startup.load import load_engine
from sarathi.errors import ExecutorError
from sarathi.models.formats.huggingface_checkpoint import SafetensorsWeights
from tests.tiny_models import save_tiny

FREE = 2 * 10**7  # bytes


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama-tied")
    save_tiny("llama-tied", folder)
    return folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores, and not much memory."""
    monkeypatch.setattr(module, "available_memory", lambda: FREE)
    monkeypatch.setattr(module, "usable_cores", lambda: 4)


@pytest.mark.parametrize("kv_precision", [None, "u8"])
def test_a_start_takes_as_many_blocks(tiny: Path, kv_precision: str | None) -> None:
    config = EngineConfig(
        precision="f32",
        kv_precision=kv_precision,  # type: ignore[arg-type]
        kv_cache_memory=3 * 10**6,
        threads=1,
    )
    core, info = load_engine(tiny, config, lambda line: None)
    core.close()
    expected = dry_run(tiny, config)
    assert expected.cache is not None
    assert expected.cache.num_blocks == info.num_blocks
    assert expected.cache.block_size == info.block_size
    assert expected.cache.max_model_len == info.max_model_len
    assert (expected.precision, expected.kv_precision) == (info.precision, info.kv_precision)


@pytest.mark.usefixtures("machine")
def test_half_of_what_the_weights_leave_goes_to_keys_and_values(tiny: Path) -> None:
    found = dry_run(tiny, EngineConfig(precision="f32"))
    assert found.cache is not None
    assert found.cache.num_blocks == (FREE - found.weight_bytes) // 2 // found.block_bytes
    twice = dry_run(tiny, EngineConfig(precision="f32"), replicas=2)
    assert twice.cache is not None
    assert twice.cache.num_blocks == (FREE - 2 * found.weight_bytes) // 4 // found.block_bytes


@pytest.mark.usefixtures("machine")
def test_processes_share_layers_and_cores(tiny: Path) -> None:
    alone = dry_run(tiny, EngineConfig(precision="f32"))
    found = dry_run(tiny, EngineConfig(precision="f32", pp=3))
    assert [list(share.layers) for share in found.shares] == [[0], [1], [2]]
    assert found.block_bytes == alone.block_bytes
    assert (alone.threads, found.threads) == (4, 1)


@pytest.mark.usefixtures("machine")
def test_nothing_is_loaded(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loads(*args: object, **kwargs: object) -> None:
        raise AssertionError("loads something")

    monkeypatch.setattr(OpenVinoExecutor, "__init__", loads)
    monkeypatch.setattr(SafetensorsWeights, "part", loads)
    monkeypatch.setattr(SafetensorsWeights, "__getitem__", loads)
    assert main(["serve", str(tiny), "--dry-run", "--precision", "f32", "--pp", "3"]) == 0
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM" in printed
    assert "3 layers of 64, 4 heads, 2 key heads of 16, 256 tokens" in printed
    assert "F32, 32." in printed  # bits a parameter, the header among them
    assert "4 cores, 0.020 GB of memory free" in printed
    assert "3 stages x 1 rank, in f32, keys and values in f32; 1 thread each" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["worker", "1", "1", "0", "1", "to", "1", "4", "2"] in [row[:9] for row in rows]
    assert ["engine", "2", "0", "2", "to", "2", "4", "2"] in [row[:8] for row in rows]
    assert "activations" in printed


@pytest.mark.usefixtures("machine")
def test_on_a_cluster_each_stage_has_a_machine(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EngineConfig(precision="f32", pp=3)
    here = dry_run(tiny, config)
    found = dry_run(tiny, config, replicas=2, spread=True)
    assert here.cache is not None
    assert found.cache is not None
    assert found.cache.num_blocks > 2.9 * here.cache.num_blocks
    assert found.threads == 4
    options = "--ray", "--replicas", "2", "--pp", "3", "--threads", "2", "--precision", "f32"
    assert main(["serve", str(tiny), "--dry-run", *options]) == 0
    printed = capsys.readouterr().out
    assert "Ray: 2 placement groups of 3 bundles (3 times 2 CPUs)" in printed
    assert f"{found.cache.num_blocks} blocks" in printed


@pytest.mark.usefixtures("machine")
def test_ranks_share_heads(tiny: Path) -> None:
    found = dry_run(tiny, EngineConfig(executor="torch", device="cpu", tp=2))
    assert [(share.num_heads, share.num_kv_heads) for share in found.shares] == [(2, 1)] * 2
    assert found.precision == "f32"
    assert found.threads == 2


def test_a_start_is_refused_with_the_same_message(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (model_instance, module):
        monkeypatch.setattr(name, "available_memory", lambda: 1000)
    refusal = dry_run(tiny, EngineConfig(precision="f32")).refusal
    with pytest.raises(ExecutorError, match="the weights take") as caught:
        load_engine(tiny, EngineConfig(precision="f32"), lambda line: None)
    assert str(caught.value) == str(refusal)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pp", "2"), "3 layers cannot be shared out equally to 2 pipeline stages, only to 1, 3"),
        (("--max-model-len", "10000"), "at most 512"),
        (("--precision", "f32", "--kv-precision", "bf16"), "f32 or u8, not bf16"),
        (("--tp", "2"), "needs the executor torch"),
        (("--executor", "torch", "--tp", "8"), "4 heads cannot be shared out equally to 8 ranks"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    tiny: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    assert main(["serve", str(tiny), "--dry-run", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("options", "free", "message"),
    [
        (("--kv-cache-memory", "1kB"), FREE, "holds no block"),
        (
            ("--kv-cache-memory", "100kB", "--max-model-len", "400"),
            FREE,
            "too small for one request of max_model_len 400",
        ),
        ((), 1000, "the weights take 0.0 GB of memory"),
    ],
)
def test_missing_memory_is_reported_below_the_table_that_explains_it(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    free: int,
    message: str,
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: free)
    assert main(["serve", str(tiny), "--dry-run", *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "0 to 2" in printed.out
