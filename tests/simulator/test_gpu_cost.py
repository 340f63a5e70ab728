from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.simulator.cost_model import OVERHEADS, BatchShape, CostModel, EngineOverhead
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import DEVICES
from sarathi.simulator.gpu_cost import GpuCostModel
from sarathi.simulator.simulated_model import MODELS
from tests.simulator.deployments import cost, decodes, deployment, prompt

MISTRAL = cost()
EMPTY = BatchShape(0, 0, (), 0, 0)
PAPER = (
    ("mistral-7b", "a100", 1, 1),
    ("yi-34b", "a100-pairwise", 2, 1),
    ("llama2-70b", "a40", 4, 2),
    ("falcon-180b", "a100-pairwise", 4, 2),
)
chunks = st.lists(st.tuples(st.integers(0, 16000), st.integers(1, 2048)), max_size=3)


@st.composite
def shapes(draw: st.DrawFn) -> BatchShape:
    number = draw(st.integers(0, 128))
    context = draw(st.integers(number, number * 8192)) if number else 0
    parts = tuple(draw(chunks))
    ended = draw(st.integers(0, len(parts)))
    tokens = number + sum(length for _, length in parts)
    return BatchShape(number, context, parts, number + ended, tokens)


def total(model: GpuCostModel, shape: BatchShape) -> float:
    return sum(model.stages(shape))


@pytest.mark.parametrize(("name", "device", "tp", "pp"), PAPER)
@given(shape=shapes())
def test_stages_are_the_sums_of_their_terms(
    name: str, device: str, tp: int, pp: int, shape: BatchShape
) -> None:
    model = cost(name, device, tp=tp, pp=pp)
    stages = model.components(shape)
    assert [stage.compute for stage in stages] == pytest.approx(model.stages(shape))
    assert len(stages) == model.num_stages == pp
    assert [stage.send_recv for stage in stages] == [model.hop(shape)] * (pp - 1) + [0]


@given(shapes(), st.integers(1, 500))
def test_more_work_never_takes_less(shape: BatchShape, more: int) -> None:
    before = total(MISTRAL, shape)
    longer = shape._replace(chunks=(*shape.chunks, (0, more)), tokens=shape.tokens + more)
    assert total(MISTRAL, longer) > before
    if shape.num_decodes:
        assert total(MISTRAL, shape._replace(context=shape.context + more)) > before


def test_the_same_shape_takes_the_same_time() -> None:
    shape = BatchShape(3, 3000, ((0, 100),), 3, 103)
    assert MISTRAL.stages(shape) == MISTRAL.stages(shape) == cost().stages(shape)


def test_nothing_takes_no_time() -> None:
    for model in (MISTRAL, cost("llama2-70b", "a40", tp=4, pp=2)):
        assert total(model, EMPTY) == model.hop(EMPTY) == 0
        assert all(stage.compute == 0 for stage in model.components(EMPTY))


def test_it_is_what_the_simulator_asks_for() -> None:
    model: CostModel = MISTRAL
    assert model.num_stages == 1
    assert model.hop(prompt(100)) == 0


def test_a_token_more_than_256_costs_visibly_more() -> None:
    """The paper measured 32 %, of a model that it does not name."""
    for name, device, tp in (("mistral-7b", "a100", 1), ("yi-34b", "a100-pairwise", 2)):
        model = cost(name, device, tp=tp)
        assert 1.2 < total(model, prompt(257)) / total(model, prompt(256)) < 1.4


def test_two_workers_halve_the_matrix_products() -> None:
    one, two = cost("llama2-70b").components, cost("llama2-70b", tp=2).components
    for shape in (prompt(2048), decodes(32, 1000)):
        halved = two(shape)[0].linear / one(shape)[0].linear
        assert halved == pytest.approx(0.5, rel=0.05)
    assert one(prompt(2048))[0].all_reduce == 0
    assert two(prompt(2048))[0].all_reduce > 0


def test_embedding_first_and_head_last() -> None:
    first, last = cost("llama2-70b", "a40", tp=4, pp=2).components(decodes(8, 100))
    assert first.embedding > 0 == last.embedding
    assert last.head > 0 == first.head
    assert first.send_recv > 0 == last.send_recv


def test_only_rows_that_sample_a_token_need_the_head() -> None:
    model = cost("llama3-8b")
    assert model.components(prompt(512))[0].head == 0
    ended = prompt(512, samples=1)
    (stage,) = model.components(ended)
    assert stage.head > 128256 * 4096 * 2 / DEVICES["a100"].bandwidth
    assert total(model, ended) == pytest.approx(total(model, prompt(512)) + stage.head)


def test_layers_that_remain_go_to_the_first_stages() -> None:
    model = cost("qwen2.5-7b", "a40", pp=3)
    assert model.deployment.stage_layers == (10, 9, 9)
    first, second, _ = model.components(prompt(512))
    assert first.linear == pytest.approx(second.linear * 10 / 9)


def with_window(window: int, layers: int) -> GpuCostModel:
    """Mistral with a sliding window in some of its layers."""
    model = MODELS["mistral-7b"]
    windows = (window,) * layers + (0,) * (32 - layers)
    model = replace(model, config=replace(model.config, sliding_windows=windows))
    return GpuCostModel(Deployment(model=model, device=DEVICES["a100"]), OVERHEADS["none"])


def test_a_window_bounds_the_keys_of_attention() -> None:
    windowed = with_window(4096, 32)
    for near in (prompt(512, 1024), decodes(8, 4000)):
        assert windowed.stages(near) == pytest.approx(MISTRAL.stages(near))
    deep = windowed.components(prompt(512, 30000))[0].attention_prefill
    assert deep == pytest.approx(windowed.components(prompt(512, 60000))[0].attention_prefill)
    assert total(windowed, decodes(8, 9000)) == total(windowed, decodes(8, 4096))


def test_a_window_in_half_of_the_layers_saves_half() -> None:
    half, whole = with_window(1000, 16), with_window(1000, 32)
    for deep in (prompt(2048, 8000), prompt(6000), decodes(16, 5000)):
        saved = total(MISTRAL, deep) - total(half, deep)
        assert saved > 0
        assert total(MISTRAL, deep) - total(whole, deep) == pytest.approx(2 * saved)


def test_overhead_is_apart_and_counts_sequences_and_workers() -> None:
    engine = EngineOverhead("e", iteration=1, distributed=10, sequence=0.1, prompt_token=0.001)
    shape = BatchShape(5, 500, ((0, 100), (7, 50)), 5, 155)
    assert GpuCostModel(deployment(), engine).overhead(shape) == pytest.approx(1 + 0.7 + 0.15)
    two = GpuCostModel(deployment(tp=2), engine)
    assert two.overhead(shape) == pytest.approx(1 + 10 + 0.7 + 0.15)
    assert two.stages(shape) == cost(tp=2).stages(shape)
    assert MISTRAL.overhead(shape) == 0


def test_the_published_engine_is_slower_over_ray() -> None:
    paper = OVERHEADS["paper"]
    assert paper.seconds(4, 0, workers=1) == pytest.approx(1.2e-3)
    assert paper.seconds(4, 0, workers=2) == pytest.approx(7.5e-3)


def test_published_figures_of_whole_models() -> None:
    """Decodes of CodeLlama-34B on two A100 in Vidur's profiles, whose contexts are not stated; and
    the linear layers of Yi-34B in the paper's artifact."""
    model = cost("codellama-34b", tp=2)
    for number, measured in ((8, 29.4e-3), (64, 34.5e-3), (128, 41.6e-3)):
        assert total(model, decodes(number, 1000)) == pytest.approx(measured, rel=0.1)
    yi = cost("yi-34b", "a100-pairwise", tp=2)
    assert yi.components(prompt(1024))[0].linear == pytest.approx(160.9e-3, rel=0.05)
