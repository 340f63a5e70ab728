"""What runs steps: all layers of a model, or one stage's, or one rank's share of them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from sarathi.backends.options import KvPrecision, Precision
from sarathi.backends.step import Step
from sarathi.models.decoder import Stage
from sarathi.models.model_config import ModelConfig
from sarathi.models.weights import Array
from sarathi.sampling.sampler import StepSampler


class Executor(Protocol):
    """A loaded model. `allocate` gives it a KV cache, then `execute` runs steps."""

    config: ModelConfig  # of the whole model
    stage: Stage
    max_position: int  # tokens, prompt and output together, of the longest sequence
    precision: Precision
    kv_precision: KvPrecision
    block_size: int  # tokens of a KV block
    num_blocks: int  # that it has; 0 before `allocate`

    @property
    def block_bytes(self) -> int:
        """Bytes that one KV block occupies here, over all layers."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights here, as served."""

    def allocate(self, num_blocks: int) -> None:
        """Make room for so many KV blocks, in place of those there were."""

    def check(self) -> None:
        """Compare what it computes with plain arithmetic, before anyone is served.

        Needs a KV cache of `self_check.NUM_BLOCKS` blocks, whose content is lost.

        Raises:
            ExecutorError: they differ by more than rounding explains, or logits depend on what
                else is in a step although they must not.
        """

    def warming_up(self) -> AbstractContextManager[None]:
        """For the first steps: memory that only these need is given back while it lasts."""

    def make_sampler(self) -> StepSampler:
        """Make what samples from `logits`."""

    def logits(self, step: Step, received: Array | None = None) -> Any:
        """Run a step of the last stage; as `execute`, but the logits stay where `make_sampler`'s
        sampler reads them, and the next step does not overwrite them."""

    def execute(self, step: Step, received: Array | None = None) -> Array:
        """Run a step.

        Args:
            received: what the stage before has computed, [tokens, hidden_size]; None for the first
                stage, and for ranks to which their first one passes it on.

        Returns:
            Logits of the sampled rows, float32 [S, vocab_size], or the activations for the next
            stage, [tokens, hidden_size]. The memory is the executor's own and is overwritten by
            the next step.

        Raises:
            StepError: the step is malformed; nothing has been run.
        """
