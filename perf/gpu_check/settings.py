"""What is measured: the real shapes, and tiny ones that a processor computes in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from sarathi.simulator.simulated_model import MODELS, SimulatedModel, llama_fields


@dataclass(frozen=True)
class Settings:
    """Sizes of all measurements."""

    name: str
    model: SimulatedModel
    # b. ceilings
    copied_bytes: int
    matrix_size: int  # rows and columns of both factors
    # c. attention: numbers of tokens
    prompt: int  # of a whole prompt
    chunk: int  # of one that continues a prompt
    hybrid_decodes: int
    hybrid_context: int  # of each of them
    # d. engine
    decode_batches: tuple[int, ...]
    goal_batch: int  # the batch whose iteration time has a goal
    idle_batch: int  # the batch during which the GPU should not idle
    decode_context: int  # tokens
    iterations: int  # that are timed for each batch
    prompt_budgets: tuple[int, ...]  # tokens of an iteration
    num_prompts: int
    # e. experiment
    max_model_len: int
    max_batch_size: int
    token_budget: int  # of `sarathi` with a fixed budget
    prompt_scale: float  # of the lengths that the preset samples
    output_scales: tuple[float, ...]  # in order of preference: less is taken where time is short
    load_shares: tuple[float, ...]  # of the estimated capacity
    point_seconds: float  # that a policy is measured at a rate, where there is time
    most_requests: int  # of a point


FULL = Settings(
    name="full",
    model=MODELS["mistral-7b"],
    copied_bytes=1 << 30,
    matrix_size=8192,
    prompt=4096,
    chunk=512,
    hybrid_decodes=32,
    hybrid_context=2048,
    decode_batches=(1, 32, 64, 128),
    goal_batch=32,
    idle_batch=64,
    decode_context=1024,
    iterations=50,
    prompt_budgets=(512, 2048),
    num_prompts=16,
    max_model_len=8192,
    max_batch_size=128,
    token_budget=512,
    prompt_scale=1.0,
    output_scales=(1.0, 0.5, 0.25, 0.125),
    load_shares=(0.5, 0.8, 1.0),
    point_seconds=20.0,
    most_requests=512,
)
TINY = Settings(
    name="tiny",
    model=SimulatedModel.from_fields(
        "tiny",
        llama_fields(2, 64, heads=4, kv_heads=2, intermediate=96, vocab=512, max_position=512),
    ),
    copied_bytes=1 << 22,
    matrix_size=256,
    prompt=128,
    chunk=48,
    hybrid_decodes=4,
    hybrid_context=64,
    decode_batches=(1, 2, 4),
    goal_batch=2,
    idle_batch=4,
    decode_context=48,
    iterations=8,
    prompt_budgets=(64, 128),
    num_prompts=3,
    max_model_len=512,
    max_batch_size=8,
    token_budget=64,
    prompt_scale=0.04,
    output_scales=(0.02,),
    load_shares=(0.5, 0.8, 1.0),
    point_seconds=0.5,
    most_requests=8,
)
