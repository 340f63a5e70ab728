"""The schedulers of the paper, as rows of one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Policy:
    """How one iteration is put together. docs/policies.md shows the schedule of each row."""

    chunked: bool  # prompts are cut where the budget ends; otherwise they run whole
    hybrid: bool  # decodes and prompts share a batch; otherwise `first` with work runs alone
    first: Literal["decodes", "prefills", "alternate"]
    prompt_limit: Literal["budget", "model length", "none"]  # tokens of prompts in a batch
    reserves: Literal["prompt", "max length"]  # KV blocks reserved at admission

    @property
    def requires_budget(self) -> bool:
        """Whether a budget must be given."""
        return self.prompt_limit == "budget"

    @property
    def accepts_budget(self) -> bool:
        """Whether a budget may be given, in place of the policy's own limit."""
        return self.prompt_limit != "none"

    @property
    def stall_free(self) -> bool:
        """Whether every decode runs in every iteration, beside chunks of prompts.

        Only such a policy can aim at a time between tokens, reserve a share of every iteration for
        prompts, and cut prompts at positions that do not depend on what else there is to compute.
        """
        return self.chunked and self.hybrid and self.first == "decodes"


POLICIES: Mapping[str, Policy] = {
    "sarathi": Policy(
        chunked=True, hybrid=True, first="decodes", prompt_limit="budget", reserves="prompt"
    ),
    "vllm": Policy(
        chunked=False,
        hybrid=False,
        first="prefills",
        prompt_limit="model length",
        reserves="prompt",
    ),
    "orca": Policy(
        chunked=False, hybrid=True, first="decodes", prompt_limit="none", reserves="max length"
    ),
    "faster_transformer": Policy(
        chunked=False, hybrid=False, first="decodes", prompt_limit="none", reserves="max length"
    ),
    "hybrid_only": Policy(
        chunked=False, hybrid=True, first="decodes", prompt_limit="model length", reserves="prompt"
    ),
    "chunked_only": Policy(
        chunked=True, hybrid=False, first="alternate", prompt_limit="budget", reserves="prompt"
    ),
}
