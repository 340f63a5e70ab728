"""Runs steps through torch: on CPUs and on NVIDIA GPUs, a stage or one rank's share of it."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sarathi.backends.executor import (
    Backend,
    DeviceMemory,
    ExecutorPart,
    ProgressCallback,
    check_step_for,
)
from sarathi.backends.registry import ExecutorOptions, KvPrecision, Precision
from sarathi.backends.runner import InlineRunner, Runner
from sarathi.backends.self_check import check_deterministic, check_model, checked_part
from sarathi.backends.step import Step, StepPart, join_parts
from sarathi.backends.torch import torch_devices as devices
from sarathi.backends.torch import torch_operations
from sarathi.backends.torch.attention_backend import (
    LayerCache,
    PlannedAttention,
    block_size,
    check_attention,
    choose_attention,
)
from sarathi.backends.torch.cuda_graphs import CudaGraph, DecodeGraphs, GraphMemory, graph_sizes
from sarathi.backends.torch.kernels import check_vocabulary, uses_triton
from sarathi.backends.torch.parameters import Parameters, ServedWeights
from sarathi.backends.torch.process_group import DistributedGroup, Rendezvous, SingleRank
from sarathi.backends.torch.step_inputs import (
    StepArrays,
    StepInputs,
    resolve_tokens,
    step_arrays,
    upload,
)
from sarathi.errors import ExecutorError
from sarathi.models.decoder import NORM, forward, forward_head, forward_layers
from sarathi.models.model import Model
from sarathi.models.rope import rope_tables
from sarathi.models.sharding import Shard, ShardedWeights, shard_config, shard_shapes, vocabulary
from sarathi.models.weights import Array
from sarathi.sampling.sampler import Sampler
from sarathi.scheduler.prefill import MAX_SCORED_ROWS
from sarathi.system.machine import available_memory, usable_cores

if TYPE_CHECKING:
    from sarathi.backends.torch.torch_sampler import TorchSampler

_PROMPT = 256  # tokens; enough for prefill tiles, for any number of heads
_CONTEXT = 4096  # tokens; the keys of a decode this long are split


def warm_up_steps(block_size: int, max_position: int) -> list[Step]:
    """Return a prompt, a prompt with a decode, and a decode, as far as `max_position` allows.

    Together they need every kernel once, so that none is compiled while requests wait. They read
    and write KV block 0 only.
    """
    prompt = _dummy_part(0, min(_PROMPT, max_position), block_size)
    decode = _dummy_part(min(_CONTEXT, max_position) - 1, 1, block_size)
    return [join_parts(parts, block_size) for parts in ([prompt], [prompt, decode], [decode])]


def largest_step(num_tokens: int, num_sequences: int, block_size: int) -> Step:
    """Return a step with as many tokens, divided among whole prompts, and as many rows of logits as
    possible. Like `warm_up_steps` it reads and writes KV block 0 only."""
    num_sequences = min(num_sequences, num_tokens)
    starts = np.linspace(0, num_tokens, num_sequences + 1).astype(int)
    step = join_parts([_dummy_part(0, new, block_size) for new in np.diff(starts)], block_size)
    return replace(step, sample_rows=np.arange(min(num_tokens, num_sequences + MAX_SCORED_ROWS)))


def _dummy_part(past: int, new: int, block_size: int) -> StepPart:
    return StepPart([0] * new, past, [0] * -(-(past + new) // block_size), samples=True)


logger = logging.getLogger(__name__)


class TorchExecutor:
    """See `backends.executor.Executor`. Several ranks execute the same steps at the same time,
    and likewise check themselves; the output is on rank 0."""

    def __init__(
        self,
        model: Model,
        options: ExecutorOptions,
        part: ExecutorPart,
        on_progress: ProgressCallback = lambda share: None,
    ) -> None:
        """Read the weights of the part; `on_progress` gets the share that has been read.

        Raises:
            ExecutorError: there is no such device, or it has too little memory.
            ModelError: the layers cannot be divided equally, or the checkpoint lacks a tensor.
        """
        self.config = config = model.config
        self.stage = part.stage
        self.shard = part.shard
        self.max_position = options.max_position
        self.device = process_device(options, part.local_rank)
        self.precision: Precision = options.precision or devices.default_precision(self.device.type)
        self.kv_precision: KvPrecision = self.precision
        self.int8_activations = False
        self.warnings: tuple[str, ...] = ()
        self.kernels = ""
        self.deterministic = options.deterministic
        self.num_blocks = 0
        self._options = options
        self._dtype = devices.DTYPES[self.precision]
        self._local = shard_config(config, self.shard.count)
        if self.device.type == "cpu":
            torch.set_num_threads(part.threads or usable_cores())
        if uses_triton(self.device):
            check_vocabulary(config.vocab_size)
        self._attention = choose_attention(
            self._local, self._dtype, self.device, self.deterministic
        )
        with _out_of_memory_error("the weights"):
            self._parameters = Parameters(
                ShardedWeights(model.weights, config, self.shard),
                shard_shapes(config, self.stage, self.shard),
                self._dtype,
                self.device,
                on_progress,
            )
        ropes = []
        for inv_freq in config.inv_freqs:
            cos, sin = map(torch.from_numpy, rope_tables(inv_freq, self.max_position))
            ropes.append((cos.to(self.device), sin.to(self.device)))
        self._rank = torch_operations.TensorParallelRank(
            config=self._local,
            vocabulary=vocabulary(config, self.shard),
            parameters=self._parameters,
            ropes=ropes,
            kernels=torch_operations.elementwise_kernels(self._local, self.device),
            group=part.group or SingleRank(),
            deterministic=self.deterministic,
        )
        self.block_size = self._attention.block_size
        self._caches: dict[int, LayerCache] = {}
        self._graphs: DecodeGraphs | None = None
        # The result of `pooled`, on the device, of the step that was launched last.
        self.launched_pooled: torch.Tensor | None = None

    @property
    def weight_bytes(self) -> int:
        return self._parameters.num_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block on this rank, over the layers of the stage."""
        elements = self.block_size * self._local.num_kv_heads * self._local.head_dim
        itemsize: int = self._dtype.itemsize
        return 2 * len(self.stage.layers) * elements * itemsize

    def allocate(self, num_blocks: int) -> None:
        """See `Executor`. On a GPU kernels are compiled, unless Triton's cache has them, and
        decodes are captured in graphs; each takes some seconds."""
        self._release()
        with _out_of_memory_error("the KV cache"), devices.computing(self.device):
            self._make_caches(num_blocks)
            if self.device.type == "cuda":
                self._warm_up()
                self._graphs = self._capture()

    def free_memory(self) -> DeviceMemory:
        """See `Executor`. An earlier cache is released. On a GPU the largest step is run to measure
        its memory, so all ranks call this together."""
        options, host = self._options, platform.node()
        self._release()
        if self.device.type == "cpu":
            return DeviceMemory(host, available_memory(), shared=True)

        sequences = max(options.max_batch_size, -(-options.max_tokens // self.max_position))
        step = largest_step(options.max_tokens, sequences, self.block_size)
        run_largest = partial(self.execute, step, self._any_hidden(step))
        self._make_caches(1)
        with _out_of_memory_error(f"a step of {options.max_tokens} tokens"):
            free = devices.free_memory(self.device, options.gpu_memory_utilization, run_largest)
        self._release()
        return DeviceMemory(f"GPU {self.device.index} of {host}", free, shared=False)

    def check(self) -> None:
        """See `Executor`. For a large model this checks attention and some of the layers. Several
        ranks check their attention alone: none has the weights for the reference."""
        with devices.computing(self.device):
            check_attention(self._attention, self._local, self._dtype, self.device)
        if self.shard.count == 1:
            stage, graphs = self.stage, self._graphs
            part = checked_part(self.config, stage)
            if part != stage:  # CUDA graphs contain all layers
                self.stage, self._graphs = part, None
            try:
                check_model(self, ServedWeights(self._parameters))
            finally:
                self.stage, self._graphs = stage, graphs
        if self.deterministic:
            check_deterministic(self)

    def warming_up(self) -> AbstractContextManager[None]:
        """See `Executor`: there is no memory to give back."""
        return nullcontext()

    def make_sampler(self) -> Sampler | TorchSampler:
        """See `Executor`: on GPUs the sampler runs there, too."""
        if not uses_triton(self.device):
            return Sampler(self.config.vocab_size)
        # Imported here: CPUs do without Triton.
        from sarathi.backends.torch.torch_sampler import TorchSampler

        sampler = TorchSampler(self.config.vocab_size, self.device)
        sampler.warm_up()
        return sampler

    def make_runner(self) -> Runner:
        sampler = self.make_sampler()
        if isinstance(sampler, Sampler):
            return InlineRunner(self, sampler)
        # Imported here: CPUs do without Triton.
        from sarathi.backends.torch.overlapped_runner import OverlappedRunner

        return OverlappedRunner(self, sampler)

    def logits(self, step: Step, received: Array | None = None) -> Any:
        with devices.computing(self.device):
            output = self.launch(step, received)
            if not uses_triton(self.device):
                return devices.as_array(output)
            if self.device.type == "cuda":
                output = output.clone()  # the next step may be replayed into the same memory
                torch.cuda.current_stream(self.device).synchronize()
            return output

    def execute(self, step: Step, received: Array | None = None) -> Array:
        """Run a step; see `Executor`. Ranks but the first have only their own columns of logits."""
        with devices.computing(self.device):
            output = devices.to_host(self.launch(step, received))
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
            return devices.as_array(output)

    def launch(
        self, step: Step, received: Array | None = None, last_tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Launch a step, within `devices.computing`, and return its output on the device, which
        need not have computed it yet. Otherwise as `execute`. Steps may refer to the token sampled
        last for each slot, int64, on the device."""
        check_step_for(self, step, num_slots=0 if last_tokens is None else len(last_tokens))
        arrays = step_arrays(step, self.block_size)
        if arrays.token_ids.min() >= 0:
            last_tokens = None  # all tokens are known
        hidden = self._received(len(step.token_ids), received)
        self.launched_pooled = None
        if (
            self._graphs is not None
            and self._graphs.accepts(arrays)
            and not (self.stage.last and len(step.pooled_rows))
        ):
            output = self._graphs.run(arrays, hidden, last_tokens)
            # Rows that are scored come after those to sample from, whatever their order.
            if self.stage.last and not np.array_equal(arrays.sample_rows, np.arange(len(output))):
                output = output[devices.to_device(arrays.sample_rows, self.device)]
            return output
        arrays = self._attention.prepare(arrays)
        inputs = upload(arrays, self.device)
        if last_tokens is not None:
            resolve_tokens(inputs.token_ids, last_tokens)
        planned = self._attention.plan(arrays, inputs)
        if not (self.stage.last and len(step.pooled_rows)):
            return self._forward(inputs, planned, hidden)
        ops = torch_operations.TorchOperations(self._rank, inputs, planned, self._caches, hidden)
        x = forward_layers(ops, self._local, self.stage)
        rows = devices.to_device(step.pooled_rows, self.device)
        self.launched_pooled = ops.norm(x[rows], NORM).float()
        return forward_head(ops, self._local, x)

    def pooled(self) -> Array:
        assert self.launched_pooled is not None, "the step had no pooled rows"
        with devices.computing(self.device):
            found = devices.to_host(self.launched_pooled)
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
            return devices.as_array(found)

    def _received(self, num_tokens: int, received: Array | None) -> torch.Tensor | None:
        """Return the previous stage's hidden states, or memory for them on ranks other than 0."""
        if self.stage.first:
            return None
        if received is not None:
            return devices.as_tensor(received, self._dtype).to(self.device)
        shape = (num_tokens, self.config.hidden_size)
        return torch.empty(shape, dtype=self._dtype, device=self.device)

    def _forward(
        self, inputs: StepInputs, planned: PlannedAttention, received: torch.Tensor | None
    ) -> torch.Tensor:
        ops = torch_operations.TorchOperations(self._rank, inputs, planned, self._caches, received)
        return forward(ops, self._local, self.stage)

    def _warm_up(self) -> None:
        """Compile all kernels; nothing may be compiled while a graph is captured."""
        for step in warm_up_steps(self.block_size, self.max_position):
            self.execute(step, self._any_hidden(step))

    def _any_hidden(self, step: Step) -> Array | None:
        """Return zeros for the hidden states of a step; None for the first stage."""
        if self.stage.first:
            return None
        shape = (len(step.token_ids), self.config.hidden_size)
        return devices.as_array(torch.zeros(shape, dtype=self._dtype))

    def _capture(self) -> DecodeGraphs | None:
        # Communication between ranks is not captured: that has never been tried.
        if self._rank.group.size > 1 or not self._attention.supports_graphs:
            return None
        memory = GraphMemory()

        def capture(arrays: StepArrays) -> CudaGraph:
            received = None if self.stage.first else self._received(len(arrays.contexts), None)
            return CudaGraph(
                arrays,
                self._forward,
                attention=self._attention,
                received=received,
                memory=memory,
            )

        try:
            return DecodeGraphs(
                graph_sizes(self._options.max_batch_size),
                capture,
                width=-(-self.max_position // self.block_size),
                block_size=self.block_size,
                spare_block=self.num_blocks,
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().split("\n", 1)[0]
            logger.warning("decodes run without CUDA graphs, which is slower: %s", reason)
            return None

    def _make_caches(self, num_blocks: int) -> None:
        # One more than requested, for the padding rows of CUDA graphs.
        shape = (num_blocks + 1, self.block_size, self._local.num_kv_heads, self._local.head_dim)
        # Zeroed, since a NaN in unused memory would survive masking.
        make = partial(torch.zeros, shape, dtype=self._dtype, device=self.device)
        self._caches = {layer: LayerCache(make(), make()) for layer in self.stage.layers}
        self.num_blocks = num_blocks

    def _release(self) -> None:
        self._graphs = None
        self._caches = {}
        self.num_blocks = 0
        devices.release_memory(self.device)


@contextmanager
def _out_of_memory_error(purpose: str) -> Iterator[None]:
    """Turn torch's errors of allocations into `ExecutorError`s that name the purpose."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ExecutorError(f"the GPU has no memory for {purpose}") from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise ExecutorError(f"this machine has no memory for {purpose}") from error


# Seconds that ranks wait for each other. In later stages that includes the time of those before,
# where a long prompt in one chunk takes its time. The engine notices sooner when a rank dies.
_RANK_TIMEOUT = 300.0
_CONNECT_TIMEOUT = 60.0  # seconds to reach rank 0, which runs already


class TorchBackend(Backend):
    """Executors on CPUs and GPUs, one for each rank of a stage."""

    def __init__(self, options: ExecutorOptions) -> None:
        self._options = options
        self._device = options.device or devices.default_device()

    @property
    def uses_gpu(self) -> bool:
        return self._device == "cuda"

    @property
    def gpu_names(self) -> tuple[str, ...]:
        return devices.gpu_names() if self.uses_gpu else ()

    @property
    def gpu_memory(self) -> tuple[int, ...]:
        share = self._options.gpu_memory_utilization
        return devices.gpu_memory(share) if self.uses_gpu else ()

    @property
    def int8_activations(self) -> bool:
        return False

    @property
    def block_size(self) -> int:
        return block_size(devices.find_device(self._device))

    def choose_precisions(self) -> tuple[Precision, KvPrecision]:
        precision = self._options.precision or devices.default_precision(self._device)
        return precision, precision

    def create_executor(
        self, model: Model, part: ExecutorPart, on_progress: ProgressCallback
    ) -> TorchExecutor:
        return TorchExecutor(model, self._options, part, on_progress)

    def open_rendezvous(self, host: str | None) -> Rendezvous:
        return Rendezvous.open(host or "127.0.0.1", _RANK_TIMEOUT)

    def init_process_group(
        self, rendezvous: Rendezvous | str, shard: Shard, local_rank: int
    ) -> DistributedGroup:
        if isinstance(rendezvous, str):
            rendezvous = Rendezvous.join(rendezvous, _CONNECT_TIMEOUT)
        device = process_device(self._options, local_rank)
        return DistributedGroup(rendezvous, shard.rank, shard.count, device, _RANK_TIMEOUT)


def process_device(options: ExecutorOptions, local_rank: int) -> torch.device:
    """Return the device of a process after checking that it can be used.

    GPUs are given round-robin, since a cluster shows each process only its own.
    """
    index = (options.first_gpu + local_rank) % max(1, devices.num_gpus())
    return devices.find_device(options.device, index)
