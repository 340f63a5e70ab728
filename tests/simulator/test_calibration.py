from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sarathi.cli import calibrate
from sarathi.cli.arguments import parse_options
from sarathi.errors import SimulationError
from sarathi.simulator.calibration import ErrorRow, constants, error_table
from sarathi.simulator.calibration import measurements as data
from sarathi.simulator.calibration.studies import LINE, search
from sarathi.simulator.devices import DEVICES
from sarathi.simulator.setup import HELD_OUT, describe_accuracy, known_error
from tests.simulator.deployments import cost, decodes, deployment, prompt

BESIDE = Path(__file__).parents[2].parent / "shared" / "calibration"
A100 = DEVICES["a100"]
DATA = Path(os.environ.get("SARATHI_CALIBRATION", BESIDE))
with_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no measurements in {DATA}")


@pytest.fixture(scope="module")
def table() -> list[ErrorRow]:
    return error_table(DATA)


def held_out(table: list[ErrorRow], term: str) -> list[ErrorRow]:
    found = [row for row in table if row.term.startswith(term) and row.used == "held out"]
    assert found
    return found


@with_data
def test_linear_layers_are_within_a_tenth_where_nothing_was_fitted(table: list[ErrorRow]) -> None:
    for row in held_out(table, "linear"):
        assert row.median < 0.10
        assert row.p90 < 0.20
        assert abs(row.bias) < 0.05


@with_data
def test_attention_is_within_fifteen_percent(table: list[ErrorRow]) -> None:
    for row in held_out(table, "attention"):
        assert row.median < 0.15


@with_data
def test_fractions_of_another_device_are_a_fair_guess(table: list[ErrorRow]) -> None:
    borrowed = [row for row in table if row.used == "borrowed"]
    assert {row.device for row in borrowed} == {"a40", "h100"}
    assert all(row.median < 0.15 for row in borrowed)


@with_data
def test_prompts_of_the_papers_engine_end_to_end(table: list[ErrorRow]) -> None:
    (row,) = held_out(table, "yi-34b TP2, one prompt")
    assert row.points == 7
    assert row.median < 0.1
    assert row.p90 < 0.15


@with_data
def test_the_stated_errors_are_those_of_the_table(table: list[ErrorRow]) -> None:
    found = {
        (row.device, row.term): (row.median, row.p90)
        for row in table
        if row.used == "held out" and not row.file.startswith("osdi")
    }
    assert found.keys() == HELD_OUT.keys()
    for key, errors in HELD_OUT.items():
        assert errors == pytest.approx(found[key], abs=0.001), key


@with_data
def test_the_projects_constants_are_those_of_a_fit() -> None:
    for constant in constants(DATA):
        assert abs(constant.difference) < 0.02, constant


@with_data
@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_prints_both_tables(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    options = ["--data", str(DATA), *(["--json"] if as_json else [])]
    assert calibrate.run(parse_options(calibrate.CalibrateOptions, options)) == 0
    printed = capsys.readouterr().out
    if as_json:
        found = json.loads(printed)
        assert {"errors", "constants"} == found.keys()
        assert found["errors"][0]["points"] > 1000
    else:
        assert "a100_codellama-34b_linear.csv" in printed
        assert "gemm_compute" in printed


@with_data
def test_the_first_batch_of_an_engine_is_left_out() -> None:
    prompts = [prompt for _, prompt, _ in data.iterations(DATA / "osdi" / "figure-2_prefill.csv")]
    assert prompts == [128, 512, 1024, 2048, 4096, 8192, 16384]


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"cannot read .*a100_llama3-8b_linear.csv"):
        error_table(tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a100_llama3-8b_linear.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(SimulationError, match="is not such a profile"):
        data.layers(file)


def test_several_measurements_count_by_their_median(tmp_path: Path) -> None:
    file = tmp_path / "network.csv"
    rows = [f"{t},2,2,{size},send_recv" for size in (1000, 2000) for t in (1, 9, 2)]
    header = "time_stats.send_recv.median,num_workers,devices_per_node,size,collective"
    file.write_text("\n".join([header, *rows]))
    assert [time.seconds for time in data.messages(file)] == [2e-3, 2e-3]


def test_a_fit_finds_what_the_measurements_were_made_of() -> None:
    times = [
        data.MessageTime(2, 2, size, i, 2e-5 + size / 3e9)
        for i, size in enumerate(2**n for n in range(10, 27))
    ]
    found = LINE.fit(A100, times)
    assert found["latency"] == pytest.approx(2e-5, rel=0.01)
    assert found["bandwidth"] == pytest.approx(3e9, rel=0.01)


def test_an_outlier_does_not_pull_a_fit() -> None:
    times = [data.MessageTime(2, 2, s, 0, 1e-5 + s / 1e9) for s in range(10000, 500000, 10000)]
    spoilt = [*times, data.MessageTime(2, 2, 250000, 0, 1.0)]
    assert LINE.fit(A100, spoilt)["bandwidth"] == pytest.approx(1e9, rel=0.01)


def test_a_search_finds_a_minimum_over_orders_of_magnitude() -> None:
    target = np.log(np.array([3e-6, 7e9]))
    found = search(lambda x: float(np.sum((np.log(x) - target) ** 2)), (1e-3, 1e6))
    assert found == pytest.approx([3e-6, 7e9], rel=0.01)


def test_errors_are_known_by_share_of_the_time() -> None:
    linear, decoding = HELD_OUT["a100", "linear"][0], HELD_OUT["a100", "attention_decode"][0]
    shallow, deep = (known_error(cost(), decodes(32, context)) for context in (10, 50000))
    assert linear < shallow.median < deep.median < decoding
    assert shallow.unmeasured == deep.unmeasured == 0


def test_what_was_never_measured_is_called_unknown() -> None:
    borrowed = known_error(cost(device="l4"), prompt(512))
    assert borrowed.unmeasured == 1
    assert "unknown" in str(borrowed)
    no_attention = known_error(cost("llama2-70b", "h100", tp=4), decodes(32, 4096))
    assert 0.1 < no_attention.unmeasured < 0.5
    assert describe_accuracy(deployment()).startswith("time on the GPU: off by ")
