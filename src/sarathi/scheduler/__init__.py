"""Who computes how many tokens, when, and in which KV blocks. Standard library only."""

from sarathi.scheduler.admission import AdmissionError
from sarathi.scheduler.batch import Batch, Slice
from sarathi.scheduler.budget.accuracy import Accuracy
from sarathi.scheduler.budget.latency_model import LatencyModel, Work
from sarathi.scheduler.budget.token_budget import Budget, FixedBudget, LatencyBudget
from sarathi.scheduler.kv.block_pool import BlockPool
from sarathi.scheduler.policy import POLICIES, Policy
from sarathi.scheduler.queue.order import ORDERS, Order
from sarathi.scheduler.request import FinishReason, Request, SchedulingParams, StopCriteria
from sarathi.scheduler.scheduler import Scheduler

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
    "Order",
    "Policy",
    "Request",
    "Scheduler",
    "SchedulingParams",
    "Slice",
    "StopCriteria",
    "Work",
]
