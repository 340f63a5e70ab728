"""The offline class over a tiny model."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sarathi import LLM, SamplingParams
from sarathi.engine.core import EngineCore
from sarathi.engine.llm import Prompt, RequestOutput
from sarathi.errors import ConfigError, ModelError
from sarathi.scheduler import AdmissionError, BlockPool, FixedBudget, Scheduler
from tests import tiny_models
from tests.engine.fake_pipeline import Pipeline

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_models.save_tiny("qwen2", folder)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(str(folder), precision="f32", kv_cache_memory=8 * 2**20, token_budget=16)


def close(stream: Iterator[str]) -> None:
    assert isinstance(stream, Generator)
    stream.close()


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts: list[Prompt] = ["a long prompt " * 5, "b", [5, 6, 7]]
    together = llm.generate(prompts, GREEDY)
    assert [result.prompt for result in together] == [prompts[0], "b", None]
    assert together[2].prompt_token_ids == [5, 6, 7]
    alone = [llm.generate(prompt, GREEDY)[0] for prompt in prompts]
    assert together == alone
    for result in together:
        [output] = result.outputs
        assert len(output.token_ids) == 6
        assert output.finish_reason == "length"
        assert output.text == llm.tokenizer.decode(output.token_ids)


def test_every_prompt_can_have_params_of_its_own(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in (2, 4)]
    results = llm.generate(["a", "b"], params)
    assert [len(result.outputs[0].token_ids) for result in results] == [2, 4]
    with pytest.raises(ValueError, match="2 prompts with 1"):
        llm.generate(["a", "b"], params[:1])


def test_n_outputs_differ_and_repeat_with_their_seed(llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, n=3, seed=3, ignore_eos=True)
    [first] = llm.generate("abc", params)
    [again] = llm.generate("abc", params)
    assert first == again
    assert [output.index for output in first.outputs] == [0, 1, 2]
    assert len({tuple(output.token_ids) for output in first.outputs}) == 3


def test_a_stop_string_ends_the_output_before_itself(llm: LLM) -> None:
    [plain] = llm.generate("abc", GREEDY)
    text = plain.outputs[0].text
    stop = text[2:4]
    [stopped] = llm.generate("abc", SamplingParams(max_tokens=6, temperature=0, stop=(stop,)))
    assert stopped.outputs[0].text == text[: text.index(stop)]
    assert stopped.outputs[0].finish_reason == "stop"


def test_logprobs_are_given_for_every_token(llm: LLM) -> None:
    [result] = llm.generate("abc", SamplingParams(max_tokens=3, temperature=0, logprobs=2))
    for token, entry in zip(result.outputs[0].token_ids, result.outputs[0].logprobs, strict=True):
        assert entry.rank == 1
        assert entry.top_ids[0] == token
        assert entry.top_logprobs[0] == entry.logprob < 0


def test_every_prompt_is_reported_when_it_is_complete(llm: LLM) -> None:
    seen: list[tuple[int, RequestOutput]] = []
    params = [SamplingParams(max_tokens=n, n=2, ignore_eos=True) for n in (6, 2)]
    results = llm.generate(["a", "b"], params, on_finish=lambda *found: seen.append(found))
    assert seen == [(1, results[1]), (0, results[0])]


def test_chat_uses_the_models_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    result = llm.chat(messages, GREEDY)
    expected = llm.tokenizer.encode("<user>hello\n<assistant>", add_special_tokens=False)
    assert result.prompt_token_ids == expected
    assert "".join(llm.stream_chat(messages, GREEDY)) == result.outputs[0].text


def test_an_abandoned_stream_leaves_nothing_behind(llm: LLM) -> None:
    stream = llm.stream_chat([{"role": "user", "content": "hello"}], GREEDY)
    next(stream)
    close(stream)
    assert not llm._core.has_work
    assert llm._core.stats.free_blocks == llm._core.stats.total_blocks


def test_one_impossible_prompt_refuses_all_and_computes_nothing(llm: LLM) -> None:
    impossible: list[Prompt] = ["fine", [5] * 512]
    with pytest.raises(AdmissionError, match="leaves no room"):
        llm.generate(impossible, GREEDY)
    assert not llm._core.has_work
    assert llm.generate("fine", GREEDY)[0].outputs[0].finish_reason == "length"


def test_a_token_id_outside_the_vocabulary_is_refused(llm: LLM) -> None:
    for bad in (-1, tiny_models.VOCAB_SIZE):
        with pytest.raises(AdmissionError, match="vocabulary"):
            llm.generate([[1, bad]], GREEDY)
    assert not llm._core.has_work


def test_an_unknown_model_is_an_error_that_names_what_is_accepted() -> None:
    with pytest.raises(ModelError, match=r"\.gguf"):
        LLM("no-such-model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": 513}, "at most 512"),
        ({"kv_cache_memory": 1}, "holds no block"),
        ({"kv_cache_memory": 80_000, "max_model_len": 500}, "too small for one request"),
        ({"token_budget": 0}, "token_budget is 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(str(folder), **options)


def test_a_small_cache_shortens_requests_rather_than_refusing_to_start(folder: Path) -> None:
    lines: list[str] = []
    small = LLM(str(folder), kv_cache_memory=80_000, precision="f32", on_progress=lines.append)
    assert small.info.max_model_len < 512
    assert any("limits requests" in line for line in lines)
    with pytest.raises(AdmissionError, match="leaves no room"):
        small.generate([[5] * small.info.max_model_len], GREEDY)
    room = SamplingParams(max_tokens=None, temperature=0, ignore_eos=True)
    [result] = small.generate([[5]], room)
    assert len(result.outputs[0].token_ids) == small.info.max_model_len - 1


def test_an_interrupted_iteration_leaves_nothing_behind(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(step: object) -> None:
        raise KeyboardInterrupt

    stream = llm.stream_chat([{"role": "user", "content": "hello"}], GREEDY)
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(llm._core._runner, "_executor", SimpleNamespace(execute=interrupt))
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    assert not llm._core.has_work
    assert llm._core.stats.free_blocks == llm._core.stats.total_blocks
    assert llm.generate("fine", GREEDY)[0].outputs[0].finish_reason == "length"


def test_a_closed_stream_leaves_nothing_under_way(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that a stop string ended, with several batches under way."""
    whole = llm.generate(["a", "b", "c"], GREEDY)
    executor = llm._core._runner._executor  # type: ignore[attr-defined]
    pool = BlockPool(8, llm.info.block_size)
    scheduler = Scheduler(
        pool, FixedBudget(16), max_batch_size=4, max_model_len=128, micro_batches=2
    )
    core = EngineCore(Pipeline(executor, 2), scheduler, ())
    monkeypatch.setattr(llm, "_core", core)
    stream = llm.stream_chat([{"role": "user", "content": "hello " * 8}], GREEDY)
    next(stream)
    core._schedule_ahead()
    assert any(request.in_flight for request in scheduler._requests.values())
    close(stream)
    assert not core.has_work
    assert pool.num_free == pool.num_blocks
    assert llm.generate(["a", "b", "c"], GREEDY) == whole


def test_a_stream_that_is_still_open_is_not_mixed_up_with_another_call(llm: LLM) -> None:
    stream = llm.stream_chat([{"role": "user", "content": "hello"}], GREEDY)
    first = next(stream)
    with pytest.raises(RuntimeError, match="still open"):
        llm.generate("x", GREEDY)
    assert (
        first + "".join(stream)
        == llm.chat([{"role": "user", "content": "hello"}], GREEDY).outputs[0].text
    )


@pytest.mark.parametrize("prompts", [[1.5], [["a"]], [1, "a"], [None]])
def test_a_prompt_of_another_type_is_refused(llm: LLM, prompts: list[object]) -> None:
    with pytest.raises(ValueError, match="prompt 0 is neither"):
        llm.generate(prompts, GREEDY)  # type: ignore[arg-type]
