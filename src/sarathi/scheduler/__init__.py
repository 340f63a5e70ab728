"""The scheduler: which requests compute how many tokens in an iteration, in which KV blocks.

Start with `scheduler.py` (one iteration) and `policy.py` (the paper's schedulers as rows of a
table); `prefill.py` and `running.py` choose prompts and decodes. Subpackages: `queue/` (waiting
requests, their order, tenants), `budget/` (token budget, latency model), `kv/` (block pool, prefix
cache).
Standard library only; every package may import the names below.
"""

from sarathi.scheduler.batch import DEFERRED, Batch, Slice
from sarathi.scheduler.budget.latency_model import Accuracy, LatencyModel, Work
from sarathi.scheduler.budget.token_budget import Budget, FixedBudget, LatencyBudget
from sarathi.scheduler.kv.block_pool import BlockPool
from sarathi.scheduler.policy import POLICIES, Policy
from sarathi.scheduler.queue.waiting_queue import ORDERS, Order
from sarathi.scheduler.request import FinishReason, Request, SchedulingParams, StopCriteria
from sarathi.scheduler.scheduler import AdmissionError, Scheduler

__all__ = [
    "DEFERRED",
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
