"""What is simulated, apart from what is made of it: jobs that processes can exchange."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sarathi.metrics import Summary
from sarathi.simulator.experiments.settings import (
    Dataset,
    Options,
    Place,
    System,
    setup_of,
    workload_of,
)
from sarathi.simulator.run import SimulatedLoad, simulated_run


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

    place: Place
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
