"""The configuration of engines in a fleet, and the sums of their statistics."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from sarathi.engine.config import EngineConfig, share_of_machine
from sarathi.engine.startup.load import executor_options
from sarathi.fleet import engine_client as client
from tests.fleet.scripted_engines import INFO, STATS, World, play, until


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LIVENESS_SECONDS", 0.002)


def test_counters_outlive_engines_and_states_do_not() -> None:
    async def scene(world: World) -> None:
        engines = await world.ready(0, 1)
        for engine in engines:
            engine.step(STATS)
        await until(lambda: world.fleet.stats is not None and world.fleet.stats.iterations == 80)
        both = world.fleet.stats
        assert both is not None
        assert (both.running, both.total_blocks, both.prompt_tokens) == (2, 100, 400)
        assert (both.model_error_median, both.stage_busy) == (0.02, [2.0])
        engines[0].die()
        await until(lambda: world.states.count("ready") == 1)
        after = world.fleet.stats
        assert after is not None
        assert (after.iterations, after.prompt_tokens, after.stage_busy) == (80, 400, [2.0])
        assert (after.running, after.total_blocks) == (1, 50)
        await world.ready(2)
        now = world.fleet.stats
        assert now is not None
        assert (now.iterations, now.total_blocks) == (80, 50 + INFO.num_blocks)
        world.fleet.scale(1)
        await until(lambda: len(world.states) == 1)
        assert world.fleet.stats is not None
        assert world.fleet.stats.iterations == 80

    play(scene, 2)


def test_later_engines_keep_the_limits_that_requests_rely_on() -> None:
    async def scene(world: World) -> None:
        first = await world.engine(0)
        assert first.launch.config.max_model_len is None
        assert first.launch.config.tbt_target is None
        [first] = await world.ready(0)
        first.die()
        second = await world.engine(1)
        assert second.launch.config.max_model_len == INFO.max_model_len
        assert second.launch.config.tbt_target == INFO.tbt_target

    play(scene)


def test_the_shortest_length_holds() -> None:
    async def scene(world: World) -> None:
        for index, length in enumerate((800, 500, 900)):
            engine = await world.engine(index)
            engine.ready(msgspec.structs.replace(INFO, max_model_len=length))
            await world.until_ready(index + 1)
        assert world.fleet.info is not None
        assert world.fleet.info.max_model_len == 500

    play(scene, 3)


def test_the_first_target_holds() -> None:
    """It was logged, with its reason, before the others had measured their speed."""

    async def scene(world: World) -> None:
        reasons = ((800, 0.1, "first"), (500, 0.2, "second"))
        for index, (length, target, reason) in enumerate(reasons):
            measured = msgspec.structs.replace(
                INFO, max_model_len=length, tbt_target=target, tbt_target_reason=reason
            )
            (await world.engine(index)).ready(measured)
            await world.until_ready(index + 1)
        info = world.fleet.info
        assert info is not None
        assert (info.max_model_len, info.tbt_target, info.tbt_target_reason) == (500, 0.1, "first")

    play(scene, 2)


def test_engines_on_one_machine_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sarathi.engine.config.usable_cores", lambda: 8)

    async def scene(world: World) -> None:
        config = (await world.engine(1)).launch.config
        assert (config.threads, config.engines_here) == (2, 2)

    play(scene, 2, config=EngineConfig(pp=2))

    async def alone(world: World) -> None:
        config = (await world.engine(0)).launch.config
        assert (config.threads, config.engines_here) == (None, 1)

    play(alone, 1)


def test_engines_on_one_machine_begin_with_other_gpus() -> None:
    config = EngineConfig(executor="torch", pp=2, tp=2)
    first_gpus = [
        executor_options(share_of_machine(config, 3, number), 512).first_gpu for number in range(3)
    ]
    assert first_gpus == [0, 4, 8]


def test_each_engine_writes_files_of_its_own() -> None:
    async def scene(world: World) -> None:
        (await world.engine(1)).die()
        configs = [(await world.engine(index)).launch.config for index in range(3)]
        assert [config.iteration_log for config in configs] == [
            "/tmp/log.jsonl",
            "/tmp/log.1.jsonl",
            "/tmp/log.2.jsonl",
        ]
        assert {config.trace for config in configs} == {None}

    play(scene, 2, config=EngineConfig(iteration_log="/tmp/log.jsonl"))


def test_prompts_that_begin_alike_go_to_the_same_engine() -> None:
    async def scene(world: World) -> None:
        engines = await world.ready(0, 1, 2)
        for family in (1, 2, 3, 2, 1, 3, 3):
            answer = world.submit(family, max_tokens=1, length=400)
            while not answer.output_ids:
                await asyncio.sleep(0.001)
                for engine in engines:
                    engine.step()
        prompts = [{request.prompt_ids[0] for request in engine.submitted} for engine in engines]
        assert sorted(map(sorted, prompts)) == [[1], [2], [3]]

    play(scene, 3)
