"""Runs steps through torch: on CPUs and on NVIDIA GPUs, a stage or one rank's share of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from sarathi.backends.executor import ProgressCallback
from sarathi.backends.registry import GPU_MEMORY_UTILIZATION, Device, KvPrecision, Precision
from sarathi.backends.self_check import check_deterministic, check_model, checked_part
from sarathi.backends.step import Step, StepPart, check_step, join_parts
from sarathi.backends.torch.attention_backend import LayerCache, PlannedAttention, choose_attention
from sarathi.backends.torch.attention_check import check_attention
from sarathi.backends.torch.cuda_graphs import CudaGraph, DecodeGraphs, GraphMemory, graph_sizes
from sarathi.backends.torch.kernels import check_vocabulary, uses_triton
from sarathi.backends.torch.parameters import Parameters, ServedWeights
from sarathi.backends.torch.process_group import ProcessGroup, SingleRank
from sarathi.backends.torch.step_inputs import (
    StepArrays,
    StepInputs,
    resolve_tokens,
    step_arrays,
    upload,
)
from sarathi.backends.torch.torch_devices import (
    DTYPES,
    as_array,
    as_tensor,
    default_precision,
    find_device,
    free_memory,
    release_memory,
    to_device,
    to_host,
)
from sarathi.backends.torch.torch_operations import (
    Rotary,
    TensorParallelRank,
    TorchOperations,
    elementwise_kernels,
)
from sarathi.errors import ExecutorError
from sarathi.models.decoder import Stage, forward, whole_model
from sarathi.models.model_config import ModelConfig
from sarathi.models.sharding import Shard, ShardedWeights, shard_config, shard_shapes, vocabulary
from sarathi.models.weights import Array, Weights
from sarathi.sampling.sampler import Sampler, StepSampler
from sarathi.system.machine import usable_cores

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
    """Return a step with as many tokens and sampled rows as possible, of whole prompts.

    Like `warm_up_steps` it reads and writes KV block 0 only.

    Args:
        num_tokens: divided among the sequences.
    """
    num_sequences = min(num_sequences, num_tokens)
    starts = np.linspace(0, num_tokens, num_sequences + 1).astype(int)
    return join_parts([_dummy_part(0, new, block_size) for new in np.diff(starts)], block_size)


def _dummy_part(past: int, new: int, block_size: int) -> StepPart:
    return StepPart([0] * new, past, [0] * -(-(past + new) // block_size), samples=True)


logger = logging.getLogger(__name__)


class TorchExecutor:
    """See `backends.executor.Executor`. Several ranks execute the same steps at the same time,
    and likewise check themselves; the output is on rank 0.

    Raises:
        ExecutorError: there is no such device, or it has too little memory.
        ModelError: the layers cannot be divided equally, or the checkpoint lacks a tensor.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        stage: Stage | None = None,
        shard: Shard | None = None,
        group: ProcessGroup | None = None,
        max_position: int,
        precision: Precision | None = None,
        device: Device | None = None,
        device_index: int = 0,
        num_threads: int | None = None,
        deterministic: bool = False,
        max_batch_size: int = 128,
        on_progress: ProgressCallback = lambda share: None,
    ) -> None:
        """Read the weights.

        Args:
            config: the whole model's; likewise `weights`, of which only this rank's share is read.
            stage: the layers to compute; None for all.
            shard: this rank's share of them; None for all of it.
            group: the ranks of the stage, `shard.count` of them; None for a single one.
            max_position: tokens, prompt and output together, of the longest sequence.
            precision: None for `default_precision`.
            device: None for a GPU if there is one.
            device_index: which GPU.
            num_threads: of the whole process, on a CPU; None for one a core.
            deterministic: whether logits must not depend on what else is in a step.
            max_batch_size: up to which decodes are captured in graphs, on a GPU.
            on_progress: called with the share of the weights that has been read.
        """
        self.config = config
        self.stage = stage or whole_model(config)
        self.shard = shard or Shard()
        self.max_position = max_position
        self.device = find_device(device, device_index)
        self.precision: Precision = precision or default_precision(self.device.type)
        self.kv_precision: KvPrecision = self.precision
        self.deterministic = deterministic
        self.num_blocks = 0
        self._dtype = DTYPES[self.precision]
        self._local = shard_config(config, self.shard.count)
        self._max_batch_size = max_batch_size
        if self.device.type == "cpu":
            torch.set_num_threads(num_threads or usable_cores())
        if uses_triton(self.device):
            check_vocabulary(config.vocab_size)
        self._attention = choose_attention(self._local, self._dtype, self.device, deterministic)
        with _out_of_memory_error("the weights"):
            self._parameters = Parameters(
                ShardedWeights(weights, config, self.shard),
                shard_shapes(config, self.stage, self.shard),
                self._dtype,
                self.device,
                on_progress,
            )
        self._rank = TensorParallelRank(
            config=self._local,
            vocabulary=vocabulary(config, self.shard),
            parameters=self._parameters,
            rotary=Rotary(config, max_position, self.device),
            kernels=elementwise_kernels(self._local, self.device),
            group=group or SingleRank(),
            deterministic=deterministic,
        )
        self.block_size = self._attention.block_size
        self._caches: dict[int, LayerCache] = {}
        self._graphs: DecodeGraphs | None = None

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
        with _out_of_memory_error("the KV cache"), self.computing():
            self._make_caches(num_blocks)
            if self.device.type == "cuda":
                self._warm_up()
                self._graphs = self._capture()

    def free_memory(
        self,
        max_tokens: int,
        max_batch_size: int,
        gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION,
    ) -> int:
        """Return the bytes that are left for the KV cache; an earlier one is released.

        On a GPU the largest step is run to measure its memory, so all ranks call this together.

        Args:
            max_tokens: of a step.
            max_batch_size: sequences of a step.
            gpu_memory_utilization: share of a GPU's memory that may be used, weights included.
        """

        def run_largest() -> None:
            num_sequences = max(max_batch_size, -(-max_tokens // self.max_position))
            step = largest_step(max_tokens, num_sequences, self.block_size)
            hidden = torch.zeros((max_tokens, self.config.hidden_size), dtype=self._dtype)
            self.execute(step, None if self.stage.first else as_array(hidden))

        self._release()
        if self.device.type == "cuda":
            self._make_caches(1)
        with _out_of_memory_error(f"a step of {max_tokens} tokens"):
            free = free_memory(self.device, gpu_memory_utilization, run_largest)
        self._release()
        return free

    def check(self) -> None:
        """See `Executor`. For a large model this checks attention and some of the layers. Several
        ranks check their attention alone: none has the weights for the reference."""
        with self.computing():
            check_attention(self._attention, self._local, self._dtype, self.device)
        if self.shard.count == 1:
            with self._computing_only(checked_part(self.config, self.stage)):
                check_model(self, ServedWeights(self._parameters))
        if self.deterministic:
            check_deterministic(self)

    @contextmanager
    def _computing_only(self, part: Stage) -> Iterator[None]:
        """Compute some of the layers only; CUDA graphs contain all of them."""
        stage, graphs = self.stage, self._graphs
        if part != stage:
            self.stage, self._graphs = part, None
        try:
            yield
        finally:
            self.stage, self._graphs = stage, graphs

    def warming_up(self) -> AbstractContextManager[None]:
        """See `Executor`: there is no memory to give back."""
        return nullcontext()

    def make_sampler(self) -> StepSampler:
        """See `Executor`: on GPUs the sampler runs there, too."""
        if not uses_triton(self.device):
            return Sampler(self.config.vocab_size)
        # Imported here: CPUs do without Triton.
        from sarathi.backends.torch.torch_sampler import TorchSampler

        sampler = TorchSampler(self.config.vocab_size, self.device)
        sampler.warm_up()
        return sampler

    def logits(self, step: Step, received: Array | None = None) -> Any:
        with self.computing():
            output = self.launch(step, received)
            if not uses_triton(self.device):
                return as_array(output)
            if self.device.type == "cuda":
                output = output.clone()  # the next step may be replayed into the same memory
                torch.cuda.current_stream(self.device).synchronize()
            return output

    def execute(self, step: Step, received: Array | None = None) -> Array:
        """Run a step; see `Executor`. Ranks but the first have only their own columns of logits."""
        with self.computing():
            output = to_host(self.launch(step, received))
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
            return as_array(output)

    def launch(
        self,
        step: Step,
        received: Array | None = None,
        last_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Launch a step, within `computing`, and return its output on the device.

        The device need not have computed it yet. Otherwise as `execute`.

        Args:
            last_tokens: the token sampled last for each slot, int64, on the device; for steps that
                refer to them.
        """
        num_slots = 0 if last_tokens is None else len(last_tokens)
        check_step(
            step,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            vocab_size=self.config.vocab_size,
            max_position=self.max_position,
            num_slots=num_slots,
        )
        arrays = step_arrays(step, self.block_size)
        if arrays.token_ids.min() >= 0:
            last_tokens = None  # all tokens are known
        hidden = self._received(len(step.token_ids), received)
        if self._graphs is not None and self._graphs.accepts(arrays):
            output = self._graphs.run(arrays, hidden, last_tokens)
            if self.stage.last and len(arrays.sample_rows) < len(output):
                output = output[to_device(arrays.sample_rows, self.device)]
            return output
        arrays = self._attention.prepare(arrays)
        inputs = upload(arrays, self.device)
        if last_tokens is not None:
            resolve_tokens(inputs.token_ids, last_tokens)
        return self._forward(inputs, self._attention.plan(arrays, inputs), hidden)

    def _received(self, num_tokens: int, received: Array | None) -> torch.Tensor | None:
        """Return the previous stage's hidden states, or memory for them on ranks other than 0."""
        if self.stage.first:
            return None
        if received is not None:
            return as_tensor(received, self._dtype).to(self.device)
        shape = (num_tokens, self.config.hidden_size)
        return torch.empty(shape, dtype=self._dtype, device=self.device)

    def _forward(
        self, inputs: StepInputs, planned: PlannedAttention, received: torch.Tensor | None
    ) -> torch.Tensor:
        ops = TorchOperations(self._rank, inputs, planned, self._caches, received)
        return forward(ops, self._local, self.stage)

    def _warm_up(self) -> None:
        """Compile all kernels; nothing may be compiled while a graph is captured."""
        for step in warm_up_steps(self.block_size, self.max_position):
            hidden = None
            if not self.stage.first:
                shape = (len(step.token_ids), self.config.hidden_size)
                hidden = as_array(torch.zeros(shape, dtype=self._dtype))
            self.execute(step, hidden)

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
                graph_sizes(self._max_batch_size),
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

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let the calling thread compute: it need not be the one that has loaded the model."""
        with torch.inference_mode():
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            yield

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
        release_memory(self.device)


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
