"""The protocols of a backend: the executor that runs steps, and what makes executors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sarathi.backends.registry import KvPrecision, Precision
from sarathi.backends.runner import Runner
from sarathi.backends.step import Step, check_step
from sarathi.models.decoder import Stage
from sarathi.models.model import Model
from sarathi.models.model_config import ModelConfig
from sarathi.models.sharding import Shard
from sarathi.models.weights import Array
from sarathi.sampling.sampler import StepSampler

if TYPE_CHECKING:
    from sarathi.backends.torch.process_group import ProcessGroup, Rendezvous

ProgressCallback = Callable[[float], None]  # gets the share of the weights that has been read


class Executor(Protocol):
    """A loaded model, or one stage of it, or one rank's share of a stage. `allocate` gives it a KV
    cache, then `execute` runs steps."""

    config: ModelConfig  # of the whole model
    stage: Stage
    max_position: int  # tokens, prompt and output together, of the longest sequence
    precision: Precision
    kv_precision: KvPrecision
    kernels: str  # what computes, for the operator; empty where there is no choice
    int8_activations: bool  # whether products round them
    block_size: int  # tokens of a KV block
    num_blocks: int  # of the KV cache; 0 before `allocate`
    warnings: tuple[str, ...]  # about how it computes, for the operator

    @property
    def block_bytes(self) -> int:
        """Bytes that one KV block occupies here, over all layers."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights here, as served."""

    def allocate(self, num_blocks: int) -> None:
        """Allocate a KV cache of `num_blocks` blocks, which replaces an earlier one."""

    def check(self) -> None:
        """Compare what it computes with plain arithmetic, before any request is served, in a KV
        cache of `self_check.NUM_BLOCKS` blocks, whose content is lost.

        Raises:
            ExecutorError: they differ by more than rounding explains, or logits depend on what
                else is in a step although they must not.
        """

    def free_memory(self) -> DeviceMemory:
        """Return the memory for the KV cache. All ranks of a stage call this together."""

    def warming_up(self) -> AbstractContextManager[None]:
        """Return a context for the first steps, which gives back memory that only these need."""

    def make_sampler(self) -> StepSampler:
        """Make a sampler for the results of `logits`."""

    def make_runner(self) -> Runner:
        """Make a runner of steps, for an executor that has the whole model."""

    def logits(self, step: Step, received: Array | None = None) -> Any:
        """Run a step of the last stage; as `execute`, but the logits stay where `make_sampler`'s
        sampler reads them, and the next step does not overwrite them."""

    def execute(self, step: Step, received: Array | None = None) -> Array:
        """Run a step.

        Args:
            received: hidden states of the previous stage, [tokens, hidden_size]; None for the
                first stage, and for ranks that get them from their rank 0.

        Returns:
            Logits of the sampled rows, float32 [S, vocab_size], or the hidden states for the next
            stage, [tokens, hidden_size]. The memory is the executor's own and is overwritten by
            the next step.

        `StepError`, with nothing run, if the step is malformed.
        """

    def pooled(self) -> Array:
        """Return the final hidden states of the pooled rows of the step that was run last, float32
        [P, hidden_size], from the last stage."""


def check_step_for(executor: Executor, step: Step, num_slots: int = 0) -> None:
    """Raise `StepError` unless an executor can run a step; see `check_step`."""
    check_step(
        step,
        num_blocks=executor.num_blocks,
        block_size=executor.block_size,
        vocab_size=executor.config.vocab_size,
        max_position=executor.max_position,
        num_slots=num_slots,
    )


class DeviceMemory(NamedTuple):
    """The memory that a KV cache is put into."""

    name: str  # of a machine, or of a device in it
    free: int  # bytes
    shared: bool  # whether other processes use it, too, so that not all of it may be taken


@dataclass(frozen=True)
class ExecutorPart:
    """The part of a model that one process computes, and its rank among the processes."""

    stage: Stage
    shard: Shard = Shard()  # noqa: RUF009 - immutable
    group: ProcessGroup | None = None  # the ranks of the stage; None for a single one
    local_rank: int = 0  # number of this process among those of the engine on this machine
    threads: int | None = None  # to compute with; None for one a core


class Backend(Protocol):
    """A factory of executors for fixed options; `registry.load_backend` calls it with these."""

    @property
    def uses_gpu(self) -> bool:
        """Whether executors here compute on a GPU."""

    @property
    def gpu_names(self) -> tuple[str, ...]:
        """The names of all GPUs here; none where CPUs compute."""

    @property
    def gpu_memory(self) -> tuple[int, ...]:
        """Bytes of each GPU that weights and KV cache may use; none where CPUs compute."""

    @property
    def block_size(self) -> int:
        """Tokens of a KV block of an executor here."""

    @property
    def int8_activations(self) -> bool:
        """Whether products with integer weights compute in int8 here: the processor can, and
        neither f32 nor a deterministic engine was asked for."""

    def choose_precisions(self) -> tuple[Precision, KvPrecision]:
        """Return the precisions of weights and KV cache that an executor here will have;
        `ExecutorError` if the machine does not compute in that of the options."""

    def create_executor(
        self, model: Model, part: ExecutorPart, on_progress: ProgressCallback
    ) -> Executor:
        """Load a part of a model; `on_progress` is called from any thread.

        Raises:
            ExecutorError: the machine cannot run it, or has too little memory.
            ModelError: the checkpoint does not contain what its configuration requires.
        """

    def open_rendezvous(self, host: str | None) -> Rendezvous:
        """Open, on rank 0, the address through which the ranks of a stage connect.

        Others reach this process under `host`; None: all are on this machine. `ExecutorError` if
        it cannot listen there.
        """
        raise NotImplementedError("the registry says that a stage has one rank")

    def init_process_group(
        self, rendezvous: Rendezvous | str, shard: Shard, local_rank: int
    ) -> ProcessGroup:
        """Return the group of all ranks of a stage, once they have connected through what
        `open_rendezvous` has returned, or its address; `ExecutorError` if one does not in time."""
        raise NotImplementedError("the registry says that a stage has one rank")
