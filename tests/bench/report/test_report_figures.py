from __future__ import annotations

import msgspec
import pytest

from sarathi.bench.report.chart import render
from sarathi.bench.report.figures import drawings
from sarathi.bench.report.figures.iterations import window
from sarathi.bench.report.measured import CapacityWithRuns, ReportData
from sarathi.bench.results import Run
from sarathi.telemetry.iteration_log import IterationLine, StageSpan
from tests.bench.report.sample_runs import capacity, line, log, record, run


def names(
    runs: tuple[Run, ...] = (),
    searches: tuple[CapacityWithRuns, ...] = (),
    iterations: tuple[IterationLine, ...] = (),
) -> set[str]:
    return {drawing.name for drawing in drawings(ReportData(runs, searches, iterations))}


OF_A_RUN = {"tbt", "tokens", "in-flight", "ttft-by-prompt"}


def test_there_are_the_figures_for_which_there_are_data() -> None:
    assert names((run(),)) == OF_A_RUN
    assert names((run("a"), run("b"))) == {*OF_A_RUN, "latency"}
    assert names((run("a", 1.0), run("a", 2.0))) == {*OF_A_RUN, "latency-by-rate"}
    assert names(searches=(capacity(),)) == {*OF_A_RUN, "latency-by-rate", "capacity"}
    assert names(iterations=tuple(log())) == {"iterations"}


def test_runs_that_were_stopped_are_in_no_line() -> None:
    assert "latency-by-rate" in names(searches=(capacity(rates=(1.0, 4.0)),))
    assert "latency-by-rate" not in names(searches=(capacity(rates=(1.0, 4.0), stopped=[4.0]),))


def test_answers_of_one_token_have_no_gaps_to_show() -> None:
    requests = [record(i, (), prompt_tokens=10 * i + 1) for i in range(5)]
    assert names((run(of=requests),)) == {"in-flight", "ttft-by-prompt"}


def test_prompts_of_one_length_make_no_scatter_plot() -> None:
    assert "ttft-by-prompt" not in names((run(of=[record(i) for i in range(5)]),))


def drawn(name: str, measured: ReportData) -> str:
    [drawing] = [drawing for drawing in drawings(measured) if drawing.name == name]
    return render(drawing).wide


def test_the_longest_gap_is_written_beside_it() -> None:
    requests = [record(0, [0.05] * 20), record(1, [0.05] * 10 + [0.777] + [0.05] * 10)]
    assert "777 ms without a token" in drawn("tokens", ReportData((run(of=requests),), (), ()))


def test_stalls_are_gaps_above_the_target_or_far_above_the_median() -> None:
    requests = [record(gaps=[0.05] * 20 + [0.15, 0.3])]

    def stalls(*searches: CapacityWithRuns) -> str:
        found = drawings(ReportData((run(of=requests),), searches, ()))
        [tokens] = [drawing for drawing in found if drawing.name == "tokens"]
        return tokens.alternative

    assert "1 stalls" in stalls()
    search = capacity(target=0.1)
    assert "2 stalls" in stalls(CapacityWithRuns(search.capacity))


@pytest.mark.parametrize("label", ["$\\frac{a$", "_under", "<b>&", "two\nlines", "tab\x00", "二"])
def test_any_label_is_written_as_it_is(label: str) -> None:
    svg = drawn("tbt", ReportData((run(label),), (), ()))
    shown = label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = shown.replace("\n", " ").replace("\x00", " ")
    assert f"{shown}: P50" in svg


def test_colours_are_those_of_the_page() -> None:
    svg = drawn("tbt", ReportData((run("a"), run("b")), (), ()))
    assert "var(--label-0)" in svg
    assert "var(--label-1)" in svg
    assert "#" not in svg.replace("url(#", "").replace('href="#', "")


def test_the_same_data_make_the_same_figure() -> None:
    measured = ReportData((run(),), (), ())
    assert drawn("tokens", measured) == drawn("tokens", measured)


def test_a_curve_of_many_gaps_is_small() -> None:
    requests = [record(i, [0.03 + 1e-5 * j + 1e-4 * i for j in range(500)]) for i in range(100)]
    assert len(drawn("tbt", ReportData((run(of=requests),), (), ()))) < 60_000


def test_a_short_log_is_shown_whole() -> None:
    lines = log(100)
    assert window(lines) == lines


def test_of_a_long_log_ten_seconds_around_the_longest_iteration_are_shown() -> None:
    lines = log(1000)
    shown = window(lines)
    assert lines[500] in shown
    assert 9.8 <= shown[-1].offset + shown[-1].duration - shown[0].offset <= 10
    assert abs(shown[0].offset + shown[-1].offset - 2 * lines[500].offset) <= 0.1
    [figure] = drawings(ReportData((), (), tuple(lines)))
    assert "with 1,000 iterations, these are 9.97 s around the longest" in figure.caption


def test_iterations_of_a_pipeline_overlap() -> None:
    spans = [StageSpan(0.02, 0.0), StageSpan(0.02, 0.01)]
    one_stage = tuple(line(0.02 * i, 0.02) for i in range(20))
    pipeline = tuple(
        msgspec.structs.replace(line(0.02 * i, 0.045), stages=spans) for i in range(20)
    )
    captions = []
    for lines in (one_stage, pipeline):
        [figure] = drawings(ReportData((), (), lines))
        render(figure)
        captions.append("one in each stage" in figure.caption)
    assert captions == [False, True]


def test_a_window_holds_few_enough_iterations_and_may_be_at_an_end() -> None:
    lines = [line(0.001 * i, 0.0005) for i in range(3000)]
    lines[0] = line(0.0, 0.0009)
    assert window(lines) == lines[:600]


def test_one_iteration_longer_than_the_window_is_shown_alone() -> None:
    lines = [line(0, 0.1), line(1, 60.0), line(62, 0.1)]
    assert window(lines) == lines[1:2]
