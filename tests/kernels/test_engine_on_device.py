"""The engine as it runs on a GPU: Triton kernels, sampling on the device, overlapped scheduling."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sarathi.backends.executor import ExecutorPart
from sarathi.backends.reference import reference
from sarathi.backends.registry import ExecutorOptions
from sarathi.backends.step import StepError, StepPart, join_parts
from sarathi.backends.torch.overlapped_runner import OverlappedRunner
from sarathi.backends.torch.parameters import ServedWeights
from sarathi.backends.torch.torch_executor import TorchExecutor
from sarathi.engine.core import EngineCore
from sarathi.engine.messages import TokenOutput
from sarathi.models.decoder import whole_model
from sarathi.models.model import open_model
from sarathi.sampling.grammar import choice, lark, regex
from sarathi.sampling.logprobs import ScoredRows
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import NO_TOKEN, Sampler
from sarathi.scheduler import BlockPool, FixedBudget, Scheduler
from tests import tiny_models
from tests.grammar_vocabulary import END, PatientMasks, decode

FAMILIES = ("qwen2-sliding", "qwen3-wide-heads", "gemma2", "gemma3-scaled", "falcon-180b")
NUM_BLOCKS = 8
LENGTHS = (1, 15, 3)  # prompt tokens: in several chunks, longer than a window
OUTPUT = 3


def load(folder: Path, device: torch.device) -> TorchExecutor:
    model = open_model(folder)
    device_name: Any = device.type
    options = ExecutorOptions(max_position=128, max_tokens=128, precision="f32", device=device_name)
    executor = TorchExecutor(model, options, ExecutorPart(whole_model(model.config)))
    executor.allocate(NUM_BLOCKS)
    return executor


def engine(executor: TorchExecutor, eos_ids: tuple[int, ...] = ()) -> EngineCore:
    runner = executor.make_runner()
    assert isinstance(runner, OverlappedRunner)
    scheduler = Scheduler(
        BlockPool(NUM_BLOCKS, executor.block_size),
        FixedBudget(12),
        max_batch_size=8,
        max_model_len=128,
        look_ahead=True,
    )
    return EngineCore(runner, scheduler, eos_ids)


def generate(
    core: EngineCore, prompts: list[list[int]], params: list[SamplingParams]
) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name, (prompt, wanted) in enumerate(zip(prompts, params, strict=True)):
        core.submit(name, prompt, wanted, arrival=float(name))
        found[name] = []
    while core.has_work:
        outputs, failures = core.step()
        assert not failures
        for output in outputs:
            found[output.id].append(output.token)
    assert core.stats.free_blocks == core.stats.total_blocks
    return found


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(2, tiny_models.VOCAB_SIZE, n).tolist() for n in LENGTHS]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_generates_what_transformers_does(
    family: str, tmp_path: Path, device: torch.device
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    tiny_models.save_tiny(family, tmp_path, num_layers=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    def expected(prompt: list[int]) -> list[int]:
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(OUTPUT):
                logits = model(torch.tensor([ids]), use_cache=False).logits
                ids.append(int(logits[0, -1].argmax()))
        return ids[len(prompt) :]

    greedy = SamplingParams(max_tokens=OUTPUT, temperature=0)
    core = engine(load(tmp_path, device))
    found = generate(core, prompts(), [greedy] * len(LENGTHS))
    assert list(found.values()) == [expected(prompt) for prompt in prompts()]


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> TorchExecutor:
    folder = tmp_path_factory.mktemp("model")
    tiny_models.save_tiny("llama-biases", folder, num_layers=1)
    return load(folder, device)


def test_tokens_are_those_that_the_host_would_sample(executor: TorchExecutor) -> None:
    """Penalties count tokens that the host has not seen yet when the next step is launched."""
    params = [
        SamplingParams(max_tokens=4, seed=3, temperature=2.0, presence_penalty=2.0),
        SamplingParams(max_tokens=4, seed=4, temperature=2.0, top_p=0.9, min_tokens=3),
        SamplingParams(max_tokens=4, temperature=0, repetition_penalty=3.0),
    ]
    eos = (5,)
    found = generate(engine(executor, eos), prompts(), params)
    for prompt, wanted, tokens in zip(prompts(), params, found.values(), strict=True):
        assert tokens == on_host(executor, prompt, wanted, eos, len(tokens))


def on_host(
    executor: TorchExecutor,
    prompt: list[int],
    params: SamplingParams,
    eos_ids: tuple[int, ...],
    count: int,
) -> list[int]:
    """Return what the host would sample from the logits of numpy."""
    weights = ServedWeights(executor._parameters)
    sampler = Sampler(executor.config.vocab_size)
    sampler.grammars = PatientMasks()
    slot = sampler.open(params, prompt, eos_ids)
    ids = list(prompt)
    while len(ids) - len(prompt) < count:
        logits = reference(executor.config, executor.stage, weights, ids)[-1:]
        ids.append(int(sampler.sample(logits, np.array([slot])).tokens[0]))
    return ids[len(prompt) :]


def test_grammars_are_followed_by_steps_that_are_launched_ahead(executor: TorchExecutor) -> None:
    params = [
        SamplingParams(max_tokens=9, temperature=0, grammar=regex("(ab|c){2,3}x")),
        SamplingParams(max_tokens=4, temperature=0, ignore_eos=True),
        SamplingParams(max_tokens=9, seed=3, temperature=2.0, grammar=choice(["yes", "no"])),
    ]
    core = engine(executor, (END,))
    core.runner.sampler_slots.grammars = PatientMasks()
    found = generate(core, prompts(), params)
    for prompt, wanted, tokens in zip(prompts(), params, found.values(), strict=True):
        assert tokens == on_host(executor, prompt, wanted, (END,), len(tokens))
    assert found[0][-1] == found[2][-1] == END
    assert re.fullmatch("(ab|c){2,3}x", decode(found[0]))
    assert decode(found[2]) in ("yes", "no")


def test_a_grammar_that_fails_or_is_cancelled_in_flight_harms_no_other(
    executor: TorchExecutor,
) -> None:
    core = engine(executor, (END,))
    core.runner.sampler_slots.grammars = PatientMasks()
    wanted = SamplingParams(max_tokens=9, temperature=0, grammar=regex("[ab]{4}"))
    broken = SamplingParams(max_tokens=9, temperature=0, grammar=lark("start: foo"))
    for name, params in enumerate((wanted, broken, wanted)):
        core.submit(name, prompts()[0], params, arrival=float(name))
    outputs: dict[int, list[int]] = {0: [], 2: [], 3: []}
    failures = []
    while core.has_work:
        outcome = core.step()
        failures += outcome.failures
        for output in outcome.outputs:
            outputs[output.id].append(output.token)
        if len(outputs[2]) == 2 and not outputs[3]:
            core.cancel(2)
            core.submit(3, prompts()[0], wanted, arrival=3.0)
            outputs[2].append(END)
    [failure] = failures
    assert failure.id == 1
    assert "unknown name" in failure.message
    assert len(outputs[2]) == 3
    assert outputs[3] == outputs[0] == on_host(executor, prompts()[0], wanted, (END,), 5)
    assert core.stats.free_blocks == core.stats.total_blocks


def test_prompts_that_are_scored_and_pooled_beside_decodes(executor: TorchExecutor) -> None:
    """Their rows come with those that are sampled, of steps that look ahead, and steps without."""
    weights = ServedWeights(executor._parameters)
    params = [
        SamplingParams(max_tokens=6, temperature=0),
        SamplingParams(max_tokens=0, prompt_logprobs=2),
        SamplingParams(max_tokens=0, pooling="mean"),
        SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=0, logprobs=1),
        SamplingParams(max_tokens=0, pooling="last"),
    ]
    asked = [*prompts()[:1], *[prompt * 3 for prompt in prompts()[1:]], *prompts()[1:]]
    core = engine(executor)
    for name, (prompt, wanted) in enumerate(zip(asked, params, strict=True)):
        core.submit(name, prompt, wanted, arrival=float(name))
    outputs: list[TokenOutput] = []
    while core.has_work:
        outputs += core.step().outputs
    sampler = Sampler(executor.config.vocab_size)
    for name, (prompt, wanted) in enumerate(zip(asked, params, strict=True)):
        own = [output for output in outputs if output.id == name]
        assert sum(output.token != NO_TOKEN for output in own) == wanted.max_tokens
        if wanted.prompt_logprobs is not None:
            logits = reference(executor.config, executor.stage, weights, prompt)[:-1]
            counts = np.full(len(logits), wanted.prompt_logprobs)
            expected = sampler.score(logits, ScoredRows(np.array(prompt[1:]), counts))
            found = [entry for output in own for entry in output.prompt_logprobs or ()]
            assert [each.top_ids for each in found] == [each.top_ids for each in expected]
            for one, other in zip(found, expected, strict=True):
                assert one.rank == other.rank
                assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
                assert one.top_logprobs == pytest.approx(other.top_logprobs, abs=1e-3)
        if wanted.pooling is not None:
            states = reference(executor.config, executor.stage, weights, prompt, with_head=False)
            pooled = states.mean(axis=0) if wanted.pooling == "mean" else states[-1]
            assert own[-1].embedding is not None
            vector = np.frombuffer(own[-1].embedding, "<f4")
            np.testing.assert_allclose(vector, pooled / np.linalg.norm(pooled), atol=1e-3)


def test_a_third_step_under_way_is_refused(executor: TorchExecutor) -> None:
    runner = executor.make_runner()
    step = join_parts([StepPart([3], 0, [0], samples=True)], executor.block_size)
    for _ in range(2):
        assert runner.is_free
        runner.submit(step)
    with pytest.raises(StepError, match="2 steps are in flight"):
        runner.submit(step)
    assert runner.wait(5.0)
    assert runner.result().stages[0].busy >= 0
    runner.abandon()
    assert runner.is_free
    assert not runner.wait(0.0)


def test_a_token_of_a_slot_that_is_not_there_is_refused(executor: TorchExecutor) -> None:
    runner = executor.make_runner()
    assert isinstance(runner, OverlappedRunner)
    step = join_parts([StepPart([-1 - 10_000], 0, [0], samples=True)], executor.block_size)
    with pytest.raises(StepError, match="token_ids"):
        runner.submit(step)
    assert runner.is_free
