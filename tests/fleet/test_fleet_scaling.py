"""More engines and fewer of them, while requests run."""

from __future__ import annotations

import pytest

from sarathi.fleet import engine_client as client
from tests.fleet.scripted_engines import World, play, read, received, tokens, until


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LIVENESS_SECONDS", 0.002)


def test_one_more_engine_takes_its_share() -> None:
    async def scene(world: World) -> None:
        [first] = await world.ready(0)
        world.submit(1)
        world.fleet.scale(2)
        assert world.states == ["ready", "starting"]
        [second] = await world.ready(1)
        world.submit(2)
        await received(first)
        [request] = await received(second)
        assert request.prompt_ids == [2]

    play(scene)


def test_the_replica_with_the_least_work_ends_after_its_requests() -> None:
    async def scene(world: World) -> None:
        busy, idle = await world.ready(0, 1)
        world.submit(1, length=500)
        answer = world.submit(2, max_tokens=2)
        await received(busy)
        await received(idle)
        idle.step()
        world.fleet.scale(1)
        assert world.states == ["ready", "draining"]
        world.submit(3)
        await received(busy, 2)
        assert not idle.was_shut_down
        idle.step()
        assert await read(answer) == tokens(2, 0, 2)
        await until(lambda: world.states == ["ready"])
        assert idle.was_shut_down
        assert len(idle.submitted) == 1
        assert (world.fleet.restarts, world.fleet.resumed) == (0, 0)

    play(scene, 2)


def test_an_engine_that_still_loads_goes_first() -> None:
    async def scene(world: World) -> None:
        [working] = await world.ready(1)
        loading = await world.engine(0)
        world.fleet.scale(1)
        await until(lambda: world.states == ["ready"])
        assert loading.ended() == "killed"
        assert working.ended() is None

    play(scene, 2)


def test_requests_that_outlast_the_drain_time_go_on_in_another_engine() -> None:
    async def scene(world: World) -> None:
        source, target = await world.ready(0, 1)
        answer = world.submit(1, max_tokens=3)
        await received(source)
        source.step()
        await until(lambda: len(answer.output_ids) == 1)
        world.submit(2, length=900)  # so that the other one has more work
        await received(target)
        world.fleet.scale(1, drain_seconds=0.01)
        [_, again] = await received(target, 2)
        assert again.output_ids == tokens(1, 0, 1)
        target.step()
        target.step()
        assert await read(answer) == tokens(1, 0, 3)
        assert world.fleet.resumed == 1
        await until(lambda: source.was_shut_down)
        assert source.cancelled == [again.id]

    play(scene, 2)


def test_an_engine_that_dies_while_it_drains_is_not_started_again() -> None:
    async def scene(world: World) -> None:
        busy, leaving = await world.ready(0, 1)
        world.submit(1, length=500)
        answer = world.submit(2, max_tokens=1)
        await received(leaving)
        world.fleet.scale(1)
        leaving.die()
        await received(busy, 2)
        busy.step()
        assert await read(answer) == [2000]
        await until(lambda: world.states == ["ready"])
        assert len(world.spawner.engines) == 2

    play(scene, 2)


def test_an_engine_that_is_needed_again_continues() -> None:
    async def scene(world: World) -> None:
        await world.ready(0, 1)
        world.submit(1)
        world.submit(2)
        world.fleet.scale(1)
        assert world.states.count("draining") == 1
        world.fleet.scale(2)
        assert world.states == ["ready", "ready"]
        assert len(world.spawner.engines) == 2

    play(scene, 2)


@pytest.mark.parametrize("count", [0, 9])
def test_the_number_of_replicas_has_bounds(count: int) -> None:
    async def scene(world: World) -> None:
        with pytest.raises(ValueError, match=f"replicas is {count}, expected 1 to 8"):
            world.fleet.scale(count)

    play(scene)
