"""An engine on another machine: its connection and its clock."""

from __future__ import annotations

import asyncio
import socket
import time
from urllib.parse import urlsplit

import pytest

from sarathi.engine import messages
from sarathi.engine.messages import ClockReading, EngineConnection, EngineListener
from sarathi.fleet import engine_client as client
from sarathi.fleet.engine_client import ClockOffset
from tests.fleet.scripted_engines import World, play, received, until


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


def test_the_arrival_is_sent_in_the_time_of_the_engine() -> None:
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


def test_the_largest_difference_between_clocks_is_nearest() -> None:
    offset = ClockOffset()
    assert offset.seconds == 0.0
    for theirs, ours in ((90.0, 100.5), (91.0, 101.0), (92.0, 102.2)):
        offset.add(theirs, ours)
    assert offset.seconds == -10.0
    for second in range(100):  # it has drifted
        offset.add(92.0 + second, 102.5 + second)
    assert offset.seconds == -10.5


def test_others_that_connect_and_disconnect_are_not_the_engine() -> None:
    async def scene() -> None:
        listener = EngineListener("127.0.0.1")
        parts = urlsplit(listener.endpoint)
        lost = asyncio.create_task(listener.lost())
        connect_briefly(parts.hostname, parts.port)
        engine = EngineConnection(listener.endpoint)
        assert await asyncio.to_thread(engine.wait_connected)
        engine.socket.send(b"hello")
        assert await listener.receive() == b"hello"
        connect_briefly(parts.hostname, parts.port)
        second = EngineConnection(listener.endpoint)
        await asyncio.sleep(0.1)
        second.close()
        await asyncio.sleep(0.1)
        assert not lost.done()
        assert not engine.is_lost()
        engine.close()
        await asyncio.wait_for(lost, 5)
        listener.close()

    asyncio.run(scene())


def connect_briefly(host: str | None, port: int | None) -> None:
    with socket.create_connection((host, port)):
        time.sleep(0.05)


def test_an_engine_notices_that_its_peer_has_disconnected() -> None:
    async def scene() -> None:
        listener = EngineListener("127.0.0.1")
        engine = EngineConnection(listener.endpoint)
        assert engine.remote
        assert await asyncio.to_thread(engine.wait_connected)
        assert not engine.is_lost()
        listener.close()
        deadline = time.monotonic() + 5
        while not engine.is_lost():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert engine.is_lost()
        engine.close()

    asyncio.run(scene())


def test_an_engine_does_not_wait_for_ever_for_its_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(messages, "_CONNECT_SECONDS", 0.05)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        engine = EngineConnection(f"tcp://127.0.0.1:{unused.getsockname()[1]}")
        assert not engine.wait_connected()
        engine.close()


def test_on_one_machine_the_network_is_not_used() -> None:
    async def scene() -> None:
        listener = EngineListener(None)
        engine = EngineConnection(listener.endpoint)
        assert listener.endpoint.startswith("ipc://")
        assert engine.wait_connected()
        assert not engine.is_lost()
        engine.close()
        listener.close()

    asyncio.run(scene())
