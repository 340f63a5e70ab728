"""`sarathi plan` as a user types it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from sarathi.cli import plan
from sarathi.cli.arguments import parse_options
from sarathi.errors import BenchmarkError, SimulationError, UsageError
from sarathi.simulator.devices import DEVICES

LOAD = ("--prompt-lengths", "fixed:200", "--output-lengths", "fixed:20", "--max-model-len", "512")
QUICK = ("--requests-per-point", "30", "--warm-up", "2", *LOAD)
MISTRAL = ("--model", "mistral-7b", "--rate", "0.5", "--tbt-target", "100ms")
Printed = pytest.CaptureFixture[str]


def run(*options: str) -> int:
    return plan.run(parse_options(plan.PlanOptions, options))


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan") / "plan.html"


@pytest.fixture(scope="module")
def found(page: Path) -> dict[str, Any]:
    """What is printed of two devices, each tried in a process of its own."""
    devices = ("--devices", "l4:0.5,a100:9", "--tp", "1,3", "--pp", "1", "--explore", "all")
    printed = io.BytesIO()
    text = io.TextIOWrapper(printed, write_through=True)  # it closes what is below when it goes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", text)
        options = (*devices, *QUICK, "--ttft-target", "2s", "--json", "--report", str(page))
        assert run(*MISTRAL, *options) == 0
    [line] = printed.getvalue().splitlines()
    fields: dict[str, Any] = json.loads(line)
    return fields


def test_json_holds_the_plans_and_what_was_left_out(found: dict[str, Any]) -> None:
    assert (found["model"], found["rate"]) == ("mistral-7b", 0.5)
    assert (found["tbt_target"], found["ttft_target"], found["delay_target"]) == (0.1, 2.0, 2.0)
    assert found["workload"]["prompt-lengths"] == "fixed:200"
    first, second = found["plans"]
    assert [first[name] for name in ("device", "tp", "pp", "replicas", "devices")] == [
        *("l4", 1, 1, 1, 1)
    ]
    assert (second["device"], second["cost_per_hour"]) == ("a100", 9.0)
    assert (first["cost_per_hour"], first["token_budget"]) == (0.5, None)
    assert first["cost_per_million_tokens"] == pytest.approx(0.5 / 3600 / (0.5 * 220) * 1e6)
    assert (first["capacity"], first["capacity_is_at_least"]) == (0.5, True)
    assert 0 < first["tbt_p99"] <= 0.1
    assert 0 < first["ttft_p50"] <= first["ttft_p90"]
    assert (first["confirmed"], first["on_tbt_front"]) == (True, True)
    assert first["accuracy"]
    assert {(one["device"], one["tp"], one["kind"]) for one in found["rejected"]} == {
        ("l4", 3, "does not fit"),
        ("a100", 3, "does not fit"),
    }
    assert all("tp is 3, expected a divisor" in one["reason"] for one in found["rejected"])


def test_the_page_has_the_plot_and_the_tables(found: dict[str, Any], page: Path) -> None:
    assert found
    text = page.read_text()
    for part in (
        "Hardware for mistral-7b",
        "1 x l4 TP1",
        "1 x a100 TP1",
        "What more money buys",
        "P90 TTFT 2 s",
        "Use of the simulated hardware",
        "Simulated, not measured",
        "how far it is off is unknown",
        "tp is 3, expected a divisor",
    ):
        assert part in text, part
    assert (page.parent / "plan-figures" / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_is_listed_with_its_arithmetic(capsys: Printed) -> None:
    options = ("--model", "llama2-70b", "--rate", "0.1", "--tbt-target", "1s", "--tp", "1")
    assert run(*options, "--devices", "l4:0.5", "--token-budgets", "512,1024", *QUICK) == 1
    printed = capsys.readouterr().out
    assert "nothing serves 0.1 requests a second within the targets" in printed
    for budget in (512, 1024):
        assert f"l4 TP1 budget {budget}" in printed
    assert "does not fit" in printed
    assert "22.00 GiB x 0.9 = 19.80 GiB - weights 128.48" in printed


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("a101:2", "'a101:2' is no device, expected NAME or NAME:DOLLARS_PER_HOUR with one of"),
        ("a100:", "the price in 'a100:' is '', expected dollars an hour above 0"),
        ("a100:cheap", "the price in 'a100:cheap' is 'cheap', expected dollars an hour above 0"),
        ("a100:0", "the price in 'a100:0' is '0', expected dollars an hour above 0"),
        ("a100:-1", "the price in 'a100:-1' is '-1', expected dollars an hour above 0"),
        ("a100:nan", "the price in 'a100:nan' is 'nan', expected dollars an hour above 0"),
        ("a100:1:2", "the price in 'a100:1:2' is '1:2', expected dollars an hour above 0"),
        ("l4", "'l4' has no price, and there is no default for l4: expected l4:DOLLARS_PER_HOUR"),
        ("a100,h100,a100:1", "'a100,h100,a100:1' has a100 twice"),
        ("a100,", "'' is no device"),
    ],
)
def test_a_wrong_price_is_refused_with_what_is_accepted(
    devices: str, message: str, capsys: Printed
) -> None:
    with pytest.raises(SystemExit) as exit_code:
        run(*MISTRAL, "--devices", devices, *LOAD)
    assert exit_code.value.code == 2
    assert f"argument --devices: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--tp", "1,two"),
        ("--pp", "0"),
        ("--token-budgets", "512,-1"),
        ("--explore", "0.5"),
        ("--explore", "nan"),
        ("--rate", "0"),
        ("--max-devices", "0"),
    ],
)
def test_a_wrong_option_is_named(option: str, value: str, capsys: Printed) -> None:
    with pytest.raises(SystemExit) as exit_code:
        run(*MISTRAL, "--devices", "a100", *LOAD, option, value)
    assert exit_code.value.code == 2
    assert f"argument {option}: " in capsys.readouterr().err


def test_what_cannot_be_planned_is_refused_before_anything_is_simulated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sarathi.simulator.plan.planner.run_all", None)
    devices = ("--devices", "a100")
    with pytest.raises(UsageError, match="--arrivals trace cannot be planned for"):
        run(*MISTRAL, *devices, *LOAD, "--arrivals", "trace")
    with pytest.raises(UsageError, match="--max-devices 1 is fewer than any product"):
        run(*MISTRAL, *devices, *LOAD, "--max-devices", "1", "--tp", "2")
    with pytest.raises(SimulationError, match="model is gpt-5, expected one of"):
        run("--model", "gpt-5", *MISTRAL[2:], *devices, *LOAD)
    with pytest.raises(BenchmarkError):
        run(*MISTRAL, *devices, "--prompt-lengths", "fixed:0")


def test_a_price_of_its_own_may_be_left_out(capsys: Printed) -> None:
    assert run(*MISTRAL, "--devices", "a100", "--tp", "1", "--pp", "1", *QUICK) == 0
    price = DEVICES["a100"].price
    assert price is not None
    printed = capsys.readouterr().out
    [row] = [line for line in printed.splitlines() if line.startswith("1 x a100 TP1 *")]
    assert row.split()[5:8] == ["target", "1", f"{price:.2f}"]
    assert f"cheapest: 1 x a100 TP1, 1 device, ${price:.2f} an hour" in printed
    assert "accuracy of a100 TP1: " in printed
