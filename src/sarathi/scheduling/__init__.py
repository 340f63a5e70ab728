"""Who computes how many tokens, when, and in which KV blocks. Standard library only."""

from sarathi.scheduling.batch import Batch, Slice
from sarathi.scheduling.blocks import BlockPool
from sarathi.scheduling.budget import FixedBudget, TokenBudget
from sarathi.scheduling.policy import POLICIES, Policy
from sarathi.scheduling.request import FinishReason, Limits, Request
from sarathi.scheduling.scheduler import AdmissionError, Scheduler

__all__ = [
    "AdmissionError",
    "Batch",
    "BlockPool",
    "FinishReason",
    "FixedBudget",
    "Limits",
    "POLICIES",
    "Policy",
    "Request",
    "Scheduler",
    "Slice",
    "TokenBudget",
]
