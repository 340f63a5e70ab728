"""What is simulated, apart from what is made of it: jobs that processes can exchange."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sarathi.simulator.reproduction.settings import (
    Dataset,
    Options,
    System,
    Testbed,
    setup_of,
    workload_of,
)
from sarathi.simulator.simulated_run import SimulatedLoad, simulated_run
from sarathi.telemetry import Summary


class Job(Hashable, Protocol):
    """Equal jobs are done once, whichever experiments ask for them."""

    @property
    def title(self) -> str: ...

    def run(self) -> Any: ...


Results = Mapping[Job, Any]


def work(job: Job) -> Any:
    """For processes, which find functions by their module."""
    return job.run()


@dataclass(frozen=True)
class RateJob:
    """One run at one rate."""

    place: Testbed
    system: System
    dataset: Dataset
    rate: float  # requests per second
    options: Options

    @property
    def title(self) -> str:
        return (
            f"{self.place.title}, {self.dataset.name}, {self.system.title}, "
            f"batch {self.system.max_batch}, {self.rate:g}/s"
        )

    def run(self) -> Summary:
        options = self.options
        return simulated_run(
            setup_of(self.place, self.system, self.dataset.max_total),
            SimulatedLoad(
                workload_of(self.dataset, options.traces), options.requests, 0, options.seed
            ),
            self.rate,
            self.title,
            most_records=1,
        ).summary
