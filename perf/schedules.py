"""The schedules of the same arrivals by all policies: the figure of the paper, by the scheduler.

No model and no clock: a column is an iteration, and its width on a real machine grows with the
number of tokens in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from sarathi.scheduler import POLICIES, BlockPool, FixedBudget, Request, Scheduler, StopCriteria

BUDGET = 4  # tokens
# Name, iteration of arrival, prompt tokens, output tokens.
ARRIVALS = (("A", 0, 2, 6), ("B", 0, 2, 6), ("C", 2, 7, 3), ("D", 2, 2, 3))

Cell = tuple[str, str]  # request, what it does in an iteration


def iterations(policy: str) -> Iterator[list[Cell]]:
    """Yield what each request that has arrived and not ended does, per iteration."""
    row = POLICIES[policy]
    scheduler = Scheduler(
        BlockPool(100, block_size=1),
        FixedBudget(BUDGET) if row.requires_budget else None,
        max_batch_size=4,
        max_model_len=10,
        prefix_caching=False,
        policy=row,
    )
    names = [name for name, *_ in ARRIVALS]
    number = 0
    while scheduler.has_work or number == 0:
        for index, (_, arrival, prompt, output) in enumerate(ARRIVALS):
            if arrival == number:
                scheduler.add(Request(index, range(prompt), StopCriteria(output), float(arrival)))
        waiting = [*scheduler.running.requests(), *scheduler.waiting.requests()]
        batch = scheduler.schedule(0.0)
        assert batch is not None
        done = {
            part.request.id: "d" if number < batch.num_decodes else str(part.length)
            for number, part in enumerate(batch.slices)
        }
        yield [(names[request.id], done.get(request.id, ".")) for request in waiting]
        scheduler.complete(batch, [1] * len(batch.sampling), 0.0)
        number += 1


def drawing(policy: str) -> str:
    """Return a row per request: `d` a decode, a number so many prompt tokens, `.` a wait."""
    columns = [dict(cells) for cells in iterations(policy)]
    lines = [policy]
    for name, *_ in ARRIVALS:
        row = "  ".join(column.get(name, " ") for column in columns)
        lines.append(f"  {name}  {row}".rstrip())
    return "\n".join(lines)


def main() -> None:
    print("\n\n".join(drawing(policy) for policy in POLICIES))


if __name__ == "__main__":
    main()
