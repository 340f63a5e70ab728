"""An engine on another machine: whether it is there, and what its clock shows."""

from __future__ import annotations

import asyncio
import socket
import time
from urllib.parse import urlsplit

import pytest
from scripted_engines import World, play, received, until

from sarathi.engine import connection
from sarathi.engine.connection import EngineConnection, Listener
from sarathi.engine.messages import ClockReading
from sarathi.fleet import engine_client as client
from sarathi.fleet.clock_offset import ClockOffset


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LIVENESS_SECONDS", 0.002)


def test_a_remote_engine_is_launched_without_a_parent() -> None:
    async def scene(world: World) -> None:
        launch = (await world.engine(0)).launch
        assert launch.parent is None
        assert launch.config.engines_here == 1  # the machine is not ours to share

    play(scene, 2, host="127.0.0.1")


def test_a_connection_that_is_lost_is_a_death() -> None:
    async def scene(world: World) -> None:
        [engine] = await world.ready(0)
        world.submit(1)
        await received(engine)
        engine._socket.close()  # while the process seems to live
        engine._how = None
        await until(lambda: len(world.spawner.engines) == 2)
        assert "connection to the engine process was lost" in world.lines[-1]
        [engine] = await world.ready(1)
        await received(engine)

    play(scene, host="127.0.0.1")


def test_the_arrival_is_told_in_the_time_of_the_engine() -> None:
    async def scene(world: World) -> None:
        [engine] = await world.ready(0)
        for late in (0.5, 0.0, 0.3):
            engine.send(ClockReading(time.monotonic() + 5000 - late))
        engine.step()
        await until(lambda: world.fleet.stats is not None and world.fleet.stats.iterations > 0)
        before = time.monotonic()
        world.submit(1)
        after = time.monotonic()
        [request] = await received(engine)
        assert before - 0.25 <= request.arrival - 5000 <= after

    play(scene, host="127.0.0.1")


def test_the_most_that_a_clock_was_told_to_be_ahead_is_nearest() -> None:
    offset = ClockOffset()
    assert offset.seconds == 0.0
    for theirs, ours in ((90.0, 100.5), (91.0, 101.0), (92.0, 102.2)):
        offset.tell(theirs, ours)
    assert offset.seconds == -10.0
    for second in range(100):  # it has drifted
        offset.tell(92.0 + second, 102.5 + second)
    assert offset.seconds == -10.5


def test_strangers_who_knock_and_go_are_not_the_engine() -> None:
    async def scene() -> None:
        listener = Listener("127.0.0.1")
        parts = urlsplit(listener.endpoint)
        lost = asyncio.create_task(listener.lost())
        knock(parts.hostname, parts.port)
        engine = EngineConnection(listener.endpoint)
        assert await asyncio.to_thread(engine.reached)
        engine.socket.send(b"hello")
        assert await listener.receive() == b"hello"
        knock(parts.hostname, parts.port)
        second = EngineConnection(listener.endpoint)
        await asyncio.sleep(0.1)
        second.close()
        await asyncio.sleep(0.1)
        assert not lost.done()
        assert not engine.lost()
        engine.close()
        await asyncio.wait_for(lost, 5)
        listener.close()

    asyncio.run(scene())


def knock(host: str | None, port: int | None) -> None:
    with socket.create_connection((host, port)):
        time.sleep(0.05)


def test_an_engine_notices_that_the_other_end_has_gone() -> None:
    async def scene() -> None:
        listener = Listener("127.0.0.1")
        engine = EngineConnection(listener.endpoint)
        assert engine.remote
        assert await asyncio.to_thread(engine.reached)
        assert not engine.lost()
        listener.close()
        deadline = time.monotonic() + 5
        while not engine.lost():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert engine.lost()
        engine.close()

    asyncio.run(scene())


def test_an_engine_does_not_wait_for_ever_for_the_other_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "_CONNECT_SECONDS", 0.05)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        engine = EngineConnection(f"tcp://127.0.0.1:{nobody.getsockname()[1]}")
        assert not engine.reached()
        engine.close()


def test_on_one_machine_nothing_is_asked_of_the_network() -> None:
    async def scene() -> None:
        listener = Listener(None)
        engine = EngineConnection(listener.endpoint)
        assert listener.endpoint.startswith("ipc://")
        assert engine.reached()
        assert not engine.lost()
        engine.close()
        listener.close()

    asyncio.run(scene())
