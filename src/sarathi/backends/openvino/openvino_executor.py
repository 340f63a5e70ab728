"""Runs steps on the CPU through OpenVINO."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import ml_dtypes
import numpy as np
import numpy.typing as npt
import openvino as ov

from sarathi.backends.executor import (
    Backend,
    DeviceMemory,
    ExecutorPart,
    ProgressCallback,
    check_step_for,
)
from sarathi.backends.footprint import u8_group
from sarathi.backends.openvino.compressed_products import uses_int8_activations
from sarathi.backends.openvino.decoder_graph import (
    HIDDEN,
    INPUTS,
    build_graph,
    cache_inputs,
)
from sarathi.backends.openvino.native_kernels import Computation, choose_kernels
from sarathi.backends.quantization import (
    Forms,
    Shapes,
    activation_group,
    rounds_activations,
    served_forms,
)
from sarathi.backends.registry import ExecutorOptions, KvPrecision, Precision
from sarathi.backends.runner import InlineRunner, Runner
from sarathi.backends.self_check import check_deterministic, check_model
from sarathi.backends.step import Step, with_padding_sequence
from sarathi.backends.weight_store import WeightStore
from sarathi.errors import ExecutorError
from sarathi.models.model import Model
from sarathi.models.quantized import IntegerForm
from sarathi.models.tensor_layout import expected_shapes
from sarathi.models.weights import Array
from sarathi.sampling.sampler import Sampler
from sarathi.system.huge_pages import collapse_resident_memory
from sarathi.system.machine import available_memory, usable_cores

BLOCK_SIZE = 32  # tokens; the only size that the CPU plugin's paged attention takes
_DTYPES: Mapping[Precision, npt.DTypeLike] = {
    "f32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
}
_FROM_BYTES = 32 << 20  # of weights, from which on huge pages are worth the time to make them
_CAPABILITIES: Mapping[Precision, str] = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


@cache
def _core() -> ov.Core:
    """Return the one core of this process, which is never destroyed.

    Each core's CPU plugin replaces the stack for signal handlers of the thread that makes it, and
    puts the one before it back when it is destroyed (openvinotoolkit/openvino#11894). With a second
    core, or in another thread, that one may be gone, and the next signal kills the process.
    """
    return ov.Core()


def default_precision() -> Precision:
    """Return bf16 or f16 where the processor computes in them, otherwise f32."""
    return next(p for p in ("bf16", "f16", "f32") if p in supported_precisions())


def supported_precisions() -> tuple[Precision, ...]:
    """Return the precisions in which this processor computes."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(p for p, capability in _CAPABILITIES.items() if capability in capabilities)


@cache
def supports_int8_activations() -> bool:
    """Return whether this processor multiplies int8 activations with compressed weights."""
    properties: dict[str, object] = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}
    return uses_int8_activations(_core(), IntegerForm(8, 32), 256, properties)


def may_round(options: ExecutorOptions) -> bool:
    """Return whether activations and KV cache may be rounded to 8 bits where that is faster: unless
    f32 or a deterministic engine was asked for."""
    return options.precision != "f32" and not options.deterministic


def choose_precisions(options: ExecutorOptions) -> tuple[Precision, KvPrecision]:
    """Return the precisions of weights and KV cache: where none is given, the fastest, and u8 if
    the cache may be rounded.

    Raises:
        ExecutorError: the processor lacks the first, or cannot combine it with the second.
    """
    supported = supported_precisions()
    precision = options.precision or default_precision()
    if precision not in supported:
        raise ExecutorError(
            f"this processor does not compute in {precision}, only in {', '.join(supported)}"
        )
    kv_precision = options.kv_precision or ("u8" if may_round(options) else precision)
    if kv_precision not in (precision, "u8"):
        raise ExecutorError(
            f"with {precision} weights the KV cache can be {precision} or u8, not {kv_precision}"
        )
    return precision, kv_precision


class OpenVinoExecutor:
    """See `Executor`: a compiled model. The processor chooses the precision where none is given."""

    def __init__(
        self,
        model: Model,
        options: ExecutorOptions,
        part: ExecutorPart,
        on_progress: ProgressCallback = lambda share: None,
    ) -> None:
        """Compile the model; `on_progress` gets the share of the weights that has been read.

        Raises:
            ExecutorError: the processor lacks the precision, or cannot combine it with the cache's.
            ModelError: the checkpoint does not contain what its configuration requires.
        """
        self.config = model.config
        if model.config.attention_soft_cap:
            raise ExecutorError(
                "attn_logit_softcapping: OpenVINO's paged attention does not cap scores; "
                "--executor torch computes this model"
            )
        self.stage = part.stage
        self.block_size = BLOCK_SIZE
        self.max_position = options.max_position
        self.precision, self.kv_precision = choose_precisions(options)
        self.deterministic = options.deterministic
        self.num_blocks = 0
        # The compiled model reads the weights in place: they live as long as it does.
        shapes = expected_shapes(self.config, self.stage)
        forms = served_forms(model, options.quantization)
        int8 = may_round(options) and supports_int8_activations()
        group = activation_group(forms, shapes) if int8 else 0
        self._properties = self._plugin_properties(part.threads or usable_cores(), group)
        self.warnings = self._check_activations(forms, shapes, group)
        dtype = _DTYPES[self.precision]
        self.weights = WeightStore(model.weights, shapes, dtype, forms, on_progress)
        self._native, self.kernels = choose_kernels(
            options.kernels,
            Computation(
                self.config,
                self.precision,
                self.kv_precision,
                forms=[form for name, form in forms.items() if name in shapes],
                may_round=may_round(options),
                plugin_rounds=group > 0,
                weight_bytes=self.weight_bytes,
            ),
        )
        self.int8_activations = group > 0 or self._native.matmul is not None
        self._compiled = self._compile()
        self._request = self._compiled.create_infer_request()
        self._used = [n for port in self._compiled.inputs for n in port.names if n in INPUTS]
        self._caches: list[ov.Tensor] = []
        self._inputs: dict[str, Array] = {}  # the memory of the input tensors

    def _plugin_properties(self, num_threads: int, activation_group: int) -> dict[str, object]:
        group = u8_group(self.config.head_dim)
        alone = self.stage.first and self.stage.last
        return {
            "INFERENCE_PRECISION_HINT": self.precision,
            "KV_CACHE_PRECISION": self.kv_precision,
            # Of u8: scales by channel are more exact, but attention of decodes takes 10 % longer.
            "KEY_CACHE_QUANT_MODE": "BY_TOKEN",
            "KEY_CACHE_GROUP_SIZE": group,
            "VALUE_CACHE_GROUP_SIZE": group,
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": num_threads,
            # The plugin binds threads to the first cores, the same ones in every process: several
            # processes would share them and leave other cores idle.
            "ENABLE_CPU_PINNING": alone and num_threads >= usable_cores(),
            # Activations that share an int8 scale in products with compressed weights; 0: none do.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": activation_group,
        }

    def _check_activations(
        self, forms: Forms, shapes: Shapes, activation_group: int
    ) -> tuple[str, ...]:
        """Return warnings about forms for which activations should be int8 and are not."""
        used = {
            (form, shape[1])
            for name, shape in shapes.items()
            if (form := forms.get(name)) and rounds_activations(form, activation_group)
        }
        return tuple(
            f"products with {form} weights of {columns} columns do not use int8 activations on "
            "this processor: large batches are slower than they could be"
            for form, columns in sorted(used, key=str)
            if not uses_int8_activations(_core(), form, columns, self._properties)
        )

    def _compile(self) -> ov.CompiledModel:
        config, weights = self.config, self.weights
        with weights.dropping_pages():  # both copy them
            graph = build_graph(config, self.stage, weights, self.max_position, self._native)
            return _core().compile_model(graph, "CPU", self._properties)

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block over all layers, scales of quantised ones included."""
        return sum(
            int(np.prod(shape)) * dtype.bitwidth // 8 for _, dtype, shape in self._cache_layouts()
        )

    def allocate(self, num_blocks: int) -> None:
        """See `Executor`. The operating system provides the pages as they are first used."""
        self._caches = []
        with_spare = num_blocks + self.deterministic
        for name, dtype, shape in self._cache_layouts():
            # Zeroed, since a NaN in unused memory would survive masking.
            memory = np.zeros(int(np.prod(shape)) * with_spare * dtype.bitwidth // 8, np.uint8)
            cache = ov.Tensor(memory, ov.Shape([with_spare, *shape]), dtype)
            self._request.set_tensor(name, cache)
            self._caches.append(cache)
        self.num_blocks = num_blocks

    def check(self) -> None:
        check_model(self, self.weights)
        if self.deterministic:
            check_deterministic(self)

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """See `Executor`: kernels pack their weights at their first use."""
        with self.weights.dropping_pages():
            yield
        if self.weight_bytes >= _FROM_BYTES:
            collapse_resident_memory()  # a decode reads all packed weights

    @property
    def weight_bytes(self) -> int:
        return self.weights.num_bytes

    def free_memory(self) -> DeviceMemory:
        return DeviceMemory(platform.node(), available_memory(), shared=True)

    def make_sampler(self) -> Sampler:
        return Sampler(self.config.vocab_size)

    def make_runner(self) -> Runner:
        return InlineRunner(self, self.make_sampler())

    def logits(self, step: Step, received: Array | None = None) -> npt.NDArray[np.float32]:
        return self.execute(step, received).copy()

    def execute(self, step: Step, received: Array | None = None) -> npt.NDArray[np.float32]:
        """Run a step; see `Executor`."""
        check_step_for(self, step)
        num_tokens = len(step.token_ids)
        if self.deterministic and num_tokens == 1:
            # A single token is computed by other kernels, whose sums round differently.
            step = with_padding_sequence(step, self.num_blocks)
            if received is not None:
                received = np.concatenate([received, received])
        for name in self._used:
            value = received if name == HIDDEN else getattr(step, name)
            self._set_input(name, np.asarray(value, INPUTS[name][0]))
        self._request.infer()
        output: npt.NDArray[np.float32] = self._request.get_output_tensor(0).data
        return output if self.stage.last else output[:num_tokens]

    def pooled(self) -> npt.NDArray[np.float32]:
        output: npt.NDArray[np.float32] = self._request.get_output_tensor(1).data
        return output.copy()

    def _set_input(self, name: str, value: Array) -> None:
        """Write into the previous step's tensor where the shape is the same: decodes mostly."""
        memory = self._inputs.get(name)
        if memory is not None and memory.shape == value.shape:
            memory[...] = value
            return
        memory = self._inputs[name] = value.copy()
        self._request.set_tensor(name, ov.Tensor(memory, shared_memory=True))

    def _cache_layouts(self) -> list[tuple[str, ov.Type, tuple[int, ...]]]:
        """Return name, element type and block shape of every layer's keys and values."""
        layouts = []
        for layer in self.stage.layers:
            for name in cache_inputs(layer):
                port = self._compiled.input(name)
                dims = list(port.get_partial_shape())[1:]
                shape = tuple(dim.get_length() for dim in dims)
                layouts.append((name, port.get_element_type(), shape))
        return layouts


class OpenVinoBackend(Backend):
    """Executors on the CPU, one for each stage."""

    uses_gpu = False
    gpu_names = ()
    gpu_memory = ()
    block_size = BLOCK_SIZE

    def __init__(self, options: ExecutorOptions) -> None:
        self._options = options

    @property
    def int8_activations(self) -> bool:
        return may_round(self._options) and supports_int8_activations()

    def choose_precisions(self) -> tuple[Precision, KvPrecision]:
        return choose_precisions(self._options)

    def create_executor(
        self, model: Model, part: ExecutorPart, on_progress: ProgressCallback
    ) -> OpenVinoExecutor:
        return OpenVinoExecutor(model, self._options, part, on_progress)
