"""Engines that die: their requests go on, and they are restarted."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarathi.errors import ConfigError
from sarathi.fleet import engine_client as client
from sarathi.fleet.engine_client import EngineError, Generation, RequestLostError
from sarathi.fleet.fleet import RestartPolicy
from sarathi.sampling.sampler import NO_TOKEN
from tests.fleet.scripted_engines import ScriptedEngine, World, play, read, received, tokens, until


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LIVENESS_SECONDS", 0.002)


def test_a_request_continues_after_the_engine_has_died() -> None:
    async def scene(world: World) -> None:
        [engine] = await world.ready(0)
        answer = world.submit(7)
        [before] = await received(engine)
        engine.step()
        engine.step()
        assert await read(answer, 2) == tokens(7, 0, 2)
        engine.die()
        [engine] = await world.ready(1)
        [again] = await received(engine)
        assert again == msgspec.structs.replace(before, output_ids=tokens(7, 0, 2))
        for _ in range(3):
            engine.step()
        assert await read(answer) == tokens(7, 2, 5)
        assert (world.fleet.restarts, world.fleet.resumed) == (1, 1)
        latencies = world.fleet.latencies
        assert latencies.time_to_first_token.count == 1
        assert latencies.time_between_tokens.count == 4
        assert latencies.requests["length"] == 1
        assert any("exit status 9; starting it again, 1 open" in line for line in world.lines)

    play(scene)


def test_tokens_that_are_not_read_yet_are_not_computed_again() -> None:
    async def scene(world: World) -> None:
        [engine] = await world.ready(0)
        answer = world.submit(7)
        await received(engine)
        for _ in range(3):
            engine.step()
        engine.die()
        [engine] = await world.ready(1)
        [again] = await received(engine)
        assert again.output_ids == tokens(7, 0, 3)
        engine.step()
        engine.step()
        assert await read(answer) == tokens(7, 0, 5)

    play(scene)


def test_log_probabilities_of_the_prompt_are_not_computed_again() -> None:
    async def scene(world: World) -> None:
        [engine] = await world.ready(0)
        answer = world.submit(7)
        [before] = await received(engine)
        engine.score(3)
        [scored] = await answer.next()
        assert (scored.token, len(scored.prompt_logprobs or ())) == (NO_TOKEN, 3)
        assert not answer.has_first_token
        engine.score(2)
        engine.die()
        [engine] = await world.ready(1)
        [again] = await received(engine)
        assert again == msgspec.structs.replace(before, num_scored=5)
        latencies = world.fleet.latencies
        assert latencies.time_to_first_token.count == 0
        engine.score(0, "length")
        rest = await answer.next()
        while rest[-1].finish_reason is None:
            rest += await answer.next()
        *more, end = rest
        assert [len(output.prompt_logprobs or ()) for output in more] == [2]
        assert (end.token, end.finish_reason) == (NO_TOKEN, "length")
        assert answer.ended
        assert answer.output_ids == []
        assert (latencies.output_tokens, latencies.requests["length"]) == (0, 1)

    play(scene)


def test_a_resumed_request_counts_as_work_until_its_next_token() -> None:
    async def scene(world: World) -> None:
        [engine] = await world.ready(0)
        answer = world.submit(1, length=900)
        await received(engine)
        engine.step()
        await read(answer, 1)
        engine.die()
        [engine] = await world.ready(1)
        await received(engine)
        before = world.fleet._dispatcher.work(0)
        engine.step()
        await read(answer, 1)
        # A millisecond a token, of which there were 901.
        assert before - world.fleet._dispatcher.work(0) == pytest.approx(0.902)

    play(scene)


def test_requests_wait_while_the_only_engine_is_started_again() -> None:
    async def scene(world: World) -> None:
        [engine] = await world.ready(0)
        engine.die()
        await world.engine(1)
        first, second, third = [world.submit(n, max_tokens=1) for n in (1, 2, 3)]
        second.cancel()
        [engine] = await world.ready(1)
        assert [request.prompt_ids for request in await received(engine, 2)] == [[1], [3]]
        engine.step()
        assert await read(first) == [1000]
        assert await read(third) == [3000]
        assert world.fleet.resumed == 0
        assert world.fleet.latencies.requests["cancelled"] == 1

    play(scene)


def test_with_two_engines_no_request_waits_for_the_dead_one() -> None:
    async def scene(world: World) -> None:
        engines = await world.ready(0, 1)
        answers = [world.submit(n) for n in (1, 2)]
        for engine in engines:
            await received(engine)
            engine.step()
        dead, alive = engines
        [lost] = dead.submitted
        dead.die()
        [_, again] = await received(alive, 2)
        assert again.id == lost.id
        for _ in range(4):
            alive.step()
        assert [await read(answer) for answer in answers] == [tokens(1, 0, 5), tokens(2, 0, 5)]
        await world.ready(2)
        assert world.states == ["ready", "ready"]

    play(scene, 2)


def test_a_request_that_engines_die_of_is_given_up() -> None:
    async def scene(world: World) -> None:
        [engine] = await world.ready(0)
        poison = world.submit(1)
        for death in range(3):
            if death == 2:
                bystander = world.submit(2, max_tokens=1)
            await received(engine, 2 if death == 2 else 1)
            engine.die()
            [engine] = await world.ready(death + 1)
        with pytest.raises(RequestLostError, match="died 3 times while it had this request"):
            await read(poison)
        [request] = await received(engine)
        assert request.prompt_ids == [2]
        engine.step()
        assert await read(bystander) == [2000]
        assert world.fleet.error is None
        assert world.fleet.latencies.requests["failed"] == 1

    play(scene)


def has_tokens(generation: Generation, count: int) -> bool:
    return len(generation.output_ids) >= count


def test_tokens_that_came_before_a_request_is_given_up_can_be_read() -> None:
    async def scene(world: World) -> None:
        [engine] = await world.ready(0)
        poison = world.submit(1)
        for death in range(3):
            await received(engine)
            engine.step()
            await until(partial(has_tokens, poison, death + 1))
            engine.die()
            [engine] = await world.ready(death + 1)
        assert await read(poison, 3) == tokens(1, 0, 3)
        with pytest.raises(RequestLostError):
            await read(poison)

    play(scene)


def test_an_engine_that_never_gets_ready_again_is_given_up() -> None:
    async def scene(world: World) -> None:
        [engine] = await world.ready(0)
        answer = world.submit(1)
        engine.die()
        waiting: list[Generation] = [answer]
        for start in range(1, 6):
            engine = await world.engine(start)
            if start == 1:
                waiting.append(world.submit(2))
            engine.fail("no memory", bad_input=start % 2 == 0)
        assert await world.fleet.failed() == "no memory"
        for request in waiting:
            with pytest.raises(EngineError, match="no memory"):
                await read(request)
        with pytest.raises(EngineError, match="no memory"):
            world.submit(3)
        with pytest.raises(EngineError, match="no memory"):
            world.fleet.scale(1)
        assert len(world.spawner.engines) == 6
        assert world.states == ["failed"]

    play(scene)


def test_after_success_failures_are_counted_from_zero() -> None:
    async def scene(world: World) -> None:
        index = 0
        for _ in range(2):
            [engine] = await world.ready(index)
            engine.die()
            for _ in range(4):
                index += 1
                (await world.engine(index)).die()
            index += 1
        await world.ready(index)
        assert world.fleet.error is None
        assert world.fleet.restarts == 10

    play(scene)


def test_while_one_engine_lives_another_may_be_given_up() -> None:
    async def scene(world: World) -> None:
        dead, _ = await world.ready(0, 1)
        dead.die()
        for start in range(2, 7):
            (await world.engine(start)).die()
        await until(lambda: "failed" in world.states)
        assert world.fleet.error is None
        world.submit(1)
        world.fleet.scale(2)  # a new one in its place
        await world.ready(7)
        assert world.states == ["ready", "ready"]

    play(scene, 2)


@pytest.mark.parametrize("bad_input", [True, False])
def test_a_model_that_cannot_be_loaded_at_first_fails_at_once(bad_input: bool) -> None:
    async def scene(world: World) -> None:
        with pytest.raises(EngineError, match="still loading"):
            world.submit(1)
        (await world.engine(0)).fail("no such model", bad_input=bad_input)
        with pytest.raises(EngineError, match="no such model"):
            await world.fleet.loaded()
        assert world.fleet.bad_input is bad_input
        assert len(world.spawner.engines) == 1

    play(scene)


def test_of_several_one_that_refuses_the_input_fails_all() -> None:
    async def scene(world: World) -> None:
        (await world.engine(1)).fail("no such option", bad_input=True)
        with pytest.raises(EngineError, match="no such option"):
            await world.fleet.loaded()
        assert world.fleet.bad_input

    play(scene, 2)


def test_of_several_one_that_crashes_while_it_loads_is_started_again() -> None:
    async def scene(world: World) -> None:
        (await world.engine(1)).die()
        await world.ready(0, 2)
        assert world.states == ["ready", "ready"]

    play(scene, 2)


def test_an_engine_that_cannot_even_be_spawned() -> None:
    async def scene(world: World) -> None:
        with pytest.raises(EngineError, match="no room"):
            await world.fleet.loaded()
        assert world.fleet.bad_input

    async def run() -> None:
        world = World()
        world.spawner.refusal = ConfigError("no room")
        world.fleet.start()
        await scene(world)
        await world.fleet.stop()

    asyncio.run(run())


def test_the_delay_between_starts_grows_to_a_limit_and_the_first_death_costs_nothing() -> None:
    policy = RestartPolicy(initial_delay=0.5, max_delay=30.0)
    delays = [policy.delay(failures) for failures in (-1, 0, 1, 2, 3, 7, 100_000)]
    assert delays == [0.0, 0.0, 0.5, 1.0, 2.0, 30.0, 30.0]


def test_a_refused_request_fails_alone() -> None:
    async def scene(world: World) -> None:
        [engine] = await world.ready(0)
        answer = world.submit(1)
        await received(engine)
        engine.refuse(0, "too long")
        with pytest.raises(EngineError, match="too long"):
            await read(answer)
        answer.cancel()
        assert world.fleet.latencies.requests["failed"] == 1
        assert world.fleet.error is None

    play(scene)


def test_stopping_fails_open_requests_and_ends_the_engines() -> None:
    async def scene(world: World) -> None:
        engines = await world.ready(0, 1)
        answer = world.submit(1)
        await world.fleet.stop()
        with pytest.raises(EngineError, match="shutting down"):
            await read(answer)
        assert all(engine.was_shut_down for engine in engines)

    play(scene, 2)


events = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 6)),  # tokens
    st.tuples(st.sampled_from(["step", "die", "ready"]), st.integers(0, 3)),
    st.tuples(st.just("cancel"), st.integers(0, 10)),
    st.tuples(st.just("scale"), st.integers(1, 3)),
    st.tuples(st.just("pause"), st.just(0)),
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the same for all examples
)
@given(st.lists(events, max_size=40))
def test_no_token_is_lost_or_repeated_in_any_order_of_events(script: list[Any]) -> None:
    async def scene(world: World) -> None:
        await world.ready(0)
        answers: list[Generation] = []
        cancelled: set[int] = set()

        def living() -> list[ScriptedEngine]:
            return [engine for engine in world.spawner.engines if engine.ended() is None]

        for event, value in script:
            if event == "submit":
                answers.append(world.submit(len(answers) + 1, max_tokens=value))
            elif event == "cancel" and value < len(answers):
                answers[value].cancel()
                cancelled.add(value)
            elif event == "scale":
                world.fleet.scale(value)
            elif event == "pause":
                await asyncio.sleep(0.01)
            elif engines := living():
                engine = engines[value % len(engines)]
                if event == "die":
                    engine.die()
                elif event == "step" and engine.is_ready:
                    engine.step()
                elif event == "ready" and not engine.is_ready:
                    engine.ready()
            await asyncio.sleep(0)
        open_ones = {n for n in range(len(answers)) if n not in cancelled}
        while any(not answers[n].ended for n in open_ones):
            assert world.fleet.error is None
            for engine in living():
                if engine.is_ready:
                    engine.step()
                else:
                    engine.ready()
            await asyncio.sleep(0.001)
        for number, answer in enumerate(answers):
            whole = tokens(number + 1, 0, answer.params.max_tokens or 0)
            if number in open_ones:
                try:
                    assert await read(answer) == whole
                    continue
                except RequestLostError:
                    assert answer.deaths == 3
            assert answer.output_ids == whole[: len(answer.output_ids)]

    play(scene, restart_policy=RestartPolicy(1000, 0.001, 0.001))
