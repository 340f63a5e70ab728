"""Two replicas of two stages each as actors: their answers, while actors are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from sarathi.engine.config import EngineConfig
from sarathi.engine.llm import LLM
from sarathi.fleet.engine_client import Generation
from sarathi.fleet.fleet import Fleet
from sarathi.fleet.ray.cluster import Cluster, place_replicas
from sarathi.fleet.ray.spawners import EngineSpawner
from sarathi.sampling.params import SamplingParams
from tests.tiny_models import save_tiny

PARAMS = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
PROMPTS = [[7, 30, 91, 14], [201, 5, 5, 66, 120], [88, 17, 42, 240, 33, 9]]
STAGES, REPLICAS, MOST_REPLICAS = 2, 2, 3
SECONDS = 60.0
ATTEMPTS = 5
T = TypeVar("T")


def configuration(stages: int) -> EngineConfig:
    return EngineConfig(
        precision="f32", threads=1, kv_cache_memory=2**22, max_model_len=512, pp=stages
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two layers, which two stages can share."""
    folder = tmp_path_factory.mktemp("model")
    save_tiny("llama", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": STAGES}))
    return folder


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[int]]:
    """The answers of a single process."""
    outputs = LLM(str(model), config=configuration(1)).generate(PROMPTS, PARAMS)
    return [output.outputs[0].token_ids for output in outputs]


class RayFleet:
    """A fleet on actors, and the event loop that it lives in."""

    def __init__(self, model: Path, cluster: Cluster) -> None:
        placement, config = place_replicas(
            configuration(STAGES), REPLICAS, cluster.nodes, cpus_per_rank=1
        )
        spawner = EngineSpawner(cluster, placement, None, timeout=20.0)
        self.lines: list[str] = []
        self.fleet = Fleet(model, config, REPLICAS, spawner=spawner, log=self.lines.append)
        self._loop = asyncio.new_event_loop()

    def run(self, work: Awaitable[T]) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(work, SECONDS))

    def close(self) -> None:
        self.run(self.fleet.stop())
        self._loop.close()

    async def start(self) -> None:
        self.fleet.start()
        await self.ready(REPLICAS)

    async def scale(self, replicas: int, drain_seconds: float | None = None) -> None:
        self.fleet.scale(replicas, drain_seconds)

    async def ready(self, count: int) -> None:
        """Wait until there are so many engines, all of them ready."""
        await until(lambda: [one.state for one in self.fleet.replicas] == ["ready"] * count)

    async def started(self) -> list[Generation]:
        """All prompts, well under way on every replica.

        They are started anew where some have nearly ended before others have begun: a replica may
        be slow in its first iterations, or where others have the processors.
        """
        for _ in range(ATTEMPTS):
            generations = await self._begun()
            if max(len(one.output_ids) for one in generations) < 300:
                assert all(one.requests for one in self.fleet.replicas), self.fleet.replicas
                return generations
            for generation in generations:
                generation.cancel()
        raise AssertionError("too fast to disturb")

    async def _begun(self) -> list[Generation]:
        generations = [self.fleet.submit(prompt, PARAMS) for prompt in PROMPTS]
        await until(lambda: all(len(one.output_ids) > 20 for one in generations))
        return generations


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


async def ended(generations: Sequence[Generation]) -> list[list[int]]:
    """The tokens as a reader gets them."""
    return [await read(generation) for generation in generations]


async def read(generation: Generation) -> list[int]:
    tokens: list[int] = []
    while True:
        for output in await generation.next():
            tokens.append(output.token)
            if output.finish_reason is not None:
                return tokens


async def actors_are(count: int) -> None:
    """Wait until there are so many: Ray ends them a little after the engine."""
    await until(lambda: len(actors()) == count)


def actors(kind: str = "") -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(f"ray::sarathi-{kind}"):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def ray_fleet(ray_cluster: Cluster, model: Path) -> Iterator[RayFleet]:
    running = RayFleet(model, ray_cluster)
    try:
        running.run(running.start())
        yield running
    finally:
        running.close()
    asyncio.run(asyncio.wait_for(actors_are(0), SECONDS))
    asyncio.run(asyncio.wait_for(until(lambda: is_free(ray_cluster)), SECONDS))


def is_free(cluster: Cluster) -> bool:
    return cluster.free()[0] == cluster.nodes[0].cpus


def test_stages_and_engines_are_actors(ray_fleet: RayFleet) -> None:
    assert len(actors("engine")) == len(actors("stage-0-rank-0")) == REPLICAS
    assert len(actors()) == REPLICAS * STAGES


def test_answers_are_those_of_the_single_process(
    ray_fleet: RayFleet, expected: list[list[int]]
) -> None:
    generations = ray_fleet.run(ray_fleet.started())
    assert ray_fleet.run(ended(generations)) == expected
    assert ray_fleet.fleet.resumed == 0


@pytest.mark.parametrize("target", ["stage-0-rank-0", "engine"])
def test_streams_go_on_when_an_actor_is_killed(
    ray_fleet: RayFleet, expected: list[list[int]], target: str
) -> None:
    fleet = ray_fleet.fleet
    restarts, resumed = fleet.restarts, fleet.resumed
    generations = ray_fleet.run(ray_fleet.started())
    actors(target)[0].kill()
    assert ray_fleet.run(ended(generations)) == expected
    assert fleet.resumed > resumed
    ray_fleet.run(ray_fleet.ready(REPLICAS))
    assert fleet.restarts == restarts + 1
    ray_fleet.run(actors_are(REPLICAS * STAGES))


def test_replicas_come_and_go_on_a_call(ray_fleet: RayFleet, expected: list[list[int]]) -> None:
    ray_fleet.run(ray_fleet.scale(MOST_REPLICAS))
    ray_fleet.run(ray_fleet.ready(MOST_REPLICAS))
    assert len(actors()) == MOST_REPLICAS * STAGES
    generations = ray_fleet.run(ray_fleet.started())
    ray_fleet.run(ray_fleet.scale(1, drain_seconds=0.0))
    assert ray_fleet.run(ended(generations)) == expected
    ray_fleet.run(ray_fleet.ready(1))
    ray_fleet.run(actors_are(STAGES))
