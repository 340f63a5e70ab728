"""The commands that simulate, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sarathi.cli.main import main

LOAD = ["--prompt-lengths", "fixed:200", "--output-lengths", "fixed:20", "--warm-up", "0"]
MISTRAL = ["--model", "mistral-7b", "--device", "a100"]
TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
}


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert main(arguments) == code
    return json.loads(capsys.readouterr().out)


def test_a_run_has_the_fields_of_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    run = output(
        capsys, "simulate", *MISTRAL, *LOAD, "--rate", "5", "--num-requests", "50", "--json"
    )
    for name in ("ttft", "tbt", "max_gap"):
        assert 0 < run[name]["p50"] <= run[name]["p90"] <= run[name]["p99"]
    assert run["failures"] == {}
    assert run["output_tokens_per_second"] == pytest.approx(100, rel=0.1)
    assert run["request_rate"] == pytest.approx(5, rel=1e-6)


def test_the_same_seed_gives_the_same_run(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["simulate", *MISTRAL, "--workload", "sharegpt", "--rate", "2", "--json"]
    command += ["--num-requests", "60", "--tbt-target", "100ms"]
    one, same = (output(capsys, *command) for _ in range(2))
    other = output(capsys, *command, "--seed", "1")
    assert one["ttft"] == same["ttft"]
    assert one["ttft"] != other["ttft"]


def test_every_option_reaches_the_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    """Each changes some figure of the run."""
    command = ["simulate", "--model", "llama2-70b", "--device", "a100", "--tp", "4", "--json"]
    command += ["--prompt-lengths", "uniform:10,3000", "--output-lengths", "uniform:1,200"]
    command += ["--rate", "3", "--num-requests", "60", "--max-model-len", "4096"]
    command += ["--token-budget", "512"]

    def figures(*more: str) -> tuple[float, ...]:
        run = output(capsys, *command, *more)
        uses = run["simulation"]["replicas"]
        return (
            run["ttft"]["mean"],
            run["tbt"]["mean"],
            sum(use["kv_mean"] for use in uses),
            run["simulation"]["cost_per_million_tokens"],
        )

    usual = figures()
    assert figures() == usual
    for more in (
        ["--device", "h100"],
        ["--tp", "8"],
        ["--pp", "2"],
        ["--replicas", "2"],
        ["--pp", "2", "--nodes", "2"],
        ["--overhead", "paper"],
        ["--memory-utilization", "0.7"],
        ["--weight-bits", "4.25"],
        ["--price", "99"],
        ["--token-budget", "1024"],
        ["--max-batch-size", "3"],
        ["--max-model-len", "2000"],
        ["--in-order-share", "1"],
        ["--order", "slack", "--ttft-target", "1ms"],
        ["--max-prompt", "100"],
        ["--turns", "3"],
        ["--arrivals", "gamma:3"],
    ):
        assert figures(*more) != usual, more
    narrow = figures("--token-budget", "16")
    assert figures("--token-budget", "16", "--min-prefill-share", "0.9") != narrow
    assert figures("--policy", "chunked_only") != usual
    pipelined = figures("--pp", "2")
    assert figures("--pp", "2", "--nodes", "2") != pipelined
    routed = figures("--replicas", "2")
    assert figures("--replicas", "2", "--router", "least_work") != routed
    assert figures("--replicas", "2", "--router", "least_outstanding") != routed


def test_a_quantised_checkpoint_needs_the_bits_of_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {**TINY, "quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    command = ["simulate", "--model", str(tmp_path), "--device", "a100", *LOAD, "--rate", "5"]
    assert main(command) == 2
    assert "give --weight-bits" in capsys.readouterr().err
    assert output(capsys, *command, "--weight-bits", "4.25", "--json")["failures"] == {}


def test_a_gguf_file_is_refused_as_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\xbd\xff")
    command = ["simulate", "--model", str(tmp_path / "model.gguf"), "--device", "a100", *LOAD]
    assert main([*command, "--rate", "1"]) == 2
    assert "is a GGUF file, expected a config.json" in capsys.readouterr().err


def test_a_capacity_has_the_fields_of_the_search(capsys: pytest.CaptureFixture[str]) -> None:
    found = output(
        capsys,
        "capacity",
        "--simulate",
        *MISTRAL,
        *["--policy", "vllm", "--workload", "sharegpt", "--tbt-target", "100ms", "--json"],
        *["--requests-per-point", "100", "--point-duration", "10s"],
    )
    assert found["tbt_target"] == 0.1
    assert found["requests_per_point"] == 100
    rates = [point["rate"] for point in found["points"]]
    assert rates == sorted(rates)
    assert found["capacity"] in rates
    met = {point["rate"]: point["met"] for point in found["points"]}
    assert met[found["capacity"]]
    assert not all(met.values())


def test_chunks_take_more_than_whole_prompts_within_a_target(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The paper's claim, on a small search."""

    def capacity(*policy: str) -> float:
        found = output(
            capsys,
            *["capacity", "--simulate", *MISTRAL, "--workload", "sharegpt", "--json"],
            *["--tbt-target", "100ms", "--requests-per-point", "100", "--point-duration", "1s"],
            *["--resolution", "0.5", "--start-rate", "2", *policy],
        )
        return float(found["capacity"])

    chunked = capacity("--token-budget", "512")
    assert chunked > 1.5 * capacity("--policy", "vllm")
    assert capacity() > chunked  # the budget that follows from the target


def test_a_target_that_nothing_meets_has_no_capacity(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["capacity", "--simulate", *MISTRAL, *LOAD, "--tbt-target", "1ms", "--json"]
    found = output(capsys, *command, "--requests-per-point", "20", "--point-duration", "1s", code=1)
    assert found["capacity"] is None


def test_any_configuration_can_be_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    command = ["simulate", "--device", "l4", *LOAD, "--rate", "5", "--num-requests", "5", "--json"]
    for name in (str(tmp_path), str(tmp_path / "config.json")):
        assert output(capsys, *command, "--model", name)["requests"] == 5


def test_figures_can_be_saved_for_a_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    saved, page = tmp_path / "run.json", tmp_path / "page.html"
    command = ["simulate", *MISTRAL, *LOAD, "--rate", "5", "--num-requests", "30"]
    assert main([*command, "--save", str(saved), "--report", str(tmp_path / "own.html")]) == 0
    assert "time to first token" in capsys.readouterr().out
    assert main(["report", str(saved), "--output", str(page)]) == 0
    assert "mistral-7b a100 sarathi" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--model", "no-model", "--device", "a100", *LOAD], "expected one of mistral"),
        (["simulate", "--model", "mistral-7b", "--device", "z9", *LOAD], "expected one of a100"),
        (["simulate", "--model", "mistral-7b", *LOAD], "--device is missing"),
        (["simulate", *MISTRAL, "--rate", "1"], "lengths are missing"),
        (["simulate", *MISTRAL, *LOAD], "--rate is missing"),
        (["simulate", *MISTRAL, "--tp", "5", "--rate", "1", *LOAD], "tp is 5, expected"),
        (["simulate", *MISTRAL, "--pp", "99", "--rate", "1", *LOAD], "pp is 99, expected 1 to 32"),
        (
            ["simulate", "--model", "falcon-180b", "--device", "a100", "--rate", "1", *LOAD],
            "does not fit",
        ),
        (
            ["simulate", *MISTRAL, "--rate", "1", *LOAD, "--token-budget", "0"],
            "an integer at least 1",
        ),
        (["capacity", "--tbt-target", "1s", "--device", "a100", *LOAD], "needs --simulate"),
        (
            ["capacity", "--simulate", "--url", "http://a", *MISTRAL, "--tbt-target", "1s", *LOAD],
            "--url and --simulate exclude each other",
        ),
        (
            ["capacity", "--simulate", "--api", "chat", *MISTRAL, "--tbt-target", "1s", *LOAD],
            "--api and --simulate exclude each other",
        ),
        (
            ["capacity", "--simulate", "--fresh", *MISTRAL, "--tbt-target", "1s", *LOAD],
            "--fresh and --simulate exclude each other",
        ),
        (["capacity", "--simulate", "--tbt-target", "1s", *LOAD], "--model is missing"),
        (["calibrate"], "either MODEL or --data"),
        (["calibrate", "smollm2-135m", "--data", "x"], "either MODEL or --data"),
        (
            ["simulate", "--model", "m", "--device", "this-cpu", "--tp", "2", "--rate", "1", *LOAD],
            "tp is 2, expected 1",
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as error:  # argparse
        code = int(error.code or 0)
    assert code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


def test_an_unknown_machine_is_to_be_measured_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = ["simulate", "--model", "smollm2-135m", "--device", "this-cpu", "--rate", "1", *LOAD]
    assert main(command) == 2
    assert "sarathi calibrate smollm2-135m" in capsys.readouterr().err
