"""Who computes how many tokens, when, and in which KV blocks. Standard library only."""

from sarathi.scheduling.accuracy import Accuracy
from sarathi.scheduling.admission import AdmissionError
from sarathi.scheduling.batch import Batch, Slice
from sarathi.scheduling.blocks import BlockPool
from sarathi.scheduling.budget import Budget, FixedBudget, LatencyBudget
from sarathi.scheduling.latency_model import LatencyModel, Work
from sarathi.scheduling.order import ORDERS, Order
from sarathi.scheduling.policy import POLICIES, Policy
from sarathi.scheduling.request import FinishReason, Limits, Request, Terms
from sarathi.scheduling.scheduler import Scheduler

__all__ = [
    "ORDERS",
    "POLICIES",
    "Accuracy",
    "AdmissionError",
    "Batch",
    "BlockPool",
    "Budget",
    "FinishReason",
    "FixedBudget",
    "LatencyBudget",
    "LatencyModel",
    "Limits",
    "Order",
    "Policy",
    "Request",
    "Scheduler",
    "Slice",
    "Terms",
    "Work",
]
