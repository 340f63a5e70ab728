"""On the same weights the engine generates exactly what `transformers` does, in any batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sarathi.backends.openvino.openvino_executor import OpenVinoExecutor
from sarathi.backends.reference import reference
from sarathi.backends.step import Step
from sarathi.backends.torch.torch_executor import TorchExecutor
from sarathi.errors import ExecutorError
from sarathi.models.decoder import whole_model
from sarathi.models.model import open_model
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import POLICIES
from tests import tiny_models
from tests.backends.engines import NUM_BLOCKS, engine, load, load_torch, run, run_staggered
from tests.tiny_gguf import write_gguf

LENGTHS = (1, 45, 100, 33)  # prompt tokens: some longer than a window, some than a block
OUTPUT = 50
TORCH_ONLY = ("gemma2",)  # scores are capped
GREEDY = SamplingParams(max_tokens=OUTPUT, temperature=0)


@dataclass
class Tiny:
    path: Path
    executor: OpenVinoExecutor | TorchExecutor
    model: Any  # of transformers
    prompts: list[list[int]]
    expected: list[list[int]]  # greedy continuations by transformers


def tiny(family: str, folder: Path) -> Tiny:
    torch.set_num_threads(1)  # models as small as these are slower on several
    tiny_models.save_tiny(family, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rng = np.random.default_rng(len(family))
    prompts = [rng.integers(2, tiny_models.VOCAB_SIZE, n).tolist() for n in LENGTHS]
    executor = load_torch(folder) if family in TORCH_ONLY else load(folder)
    return Tiny(folder, executor, model, prompts, [greedy(model, p) for p in prompts])


def executor_of(family: Tiny, library: str) -> OpenVinoExecutor | TorchExecutor:
    if library == "torch":
        return load_torch(family.path)
    if isinstance(family.executor, TorchExecutor):
        pytest.skip("OpenVINO refuses it")
    return family.executor


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """The plain loop: everything recomputed for every token, no cache."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(OUTPUT):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return found


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny("llama", tmp_path_factory.mktemp("model"))


class TestEveryFamily:
    def test_the_reference_equals_transformers(self, family: Tiny) -> None:
        served = open_model(family.path)
        for prompt in family.prompts:
            found = reference(served.config, whole_model(served.config), served.weights, prompt)
            np.testing.assert_allclose(found, logits(family.model, prompt), atol=2e-3)

    @pytest.mark.parametrize("library", ["openvino", "torch"])
    def test_logits_of_chunks_equal_transformers(self, family: Tiny, library: str) -> None:
        executor = executor_of(family, library)
        prompt = family.prompts[2]
        found = [
            executor.execute(chunk(prompt, start, stop)).copy()
            for start, stop in ((0, 7), (7, 39), (39, 40), (40, 100))
        ]
        expected = logits(family.model, prompt)
        np.testing.assert_allclose(np.concatenate(found), expected, atol=2e-3)

    @pytest.mark.parametrize("library", ["openvino", "torch"])
    def test_greedy_continuations_equal_transformers(self, family: Tiny, library: str) -> None:
        core = engine(executor_of(family, library), budget=32)
        assert run(core, family.prompts, GREEDY) == family.expected


@pytest.mark.parametrize(
    "name",
    [
        *("llama3", "llama-linear-rope", "qwen2", "qwen3-wide-heads", "phi3"),
        *("gemma", "gemma2", "gemma3", "falcon-7b", "falcon-40b"),
    ],
)
def test_a_gguf_file_has_the_outputs_of_the_folder_it_was_made_of(
    name: str, tmp_path: Path
) -> None:
    source = tiny(name, tmp_path)
    path = tmp_path / "model.gguf"
    write_gguf(tmp_path, path)
    executor = load_torch(path) if name in TORCH_ONLY else load(path)
    assert run(engine(executor, budget=32), source.prompts, GREEDY) == source.expected


def test_capped_scores_are_refused_by_openvino(tmp_path: Path) -> None:
    tiny_models.save_tiny("gemma2", tmp_path)
    with pytest.raises(ExecutorError, match=r"attn_logit_softcapping.*--executor torch"):
        load(tmp_path)


class TestTheBatchDoesNotMatter:
    @pytest.mark.parametrize("budget", [1, 7, 32, 100, 10**9])
    def test_for_any_token_budget(self, llama: Tiny, budget: int) -> None:
        assert run(engine(llama.executor, budget=budget), llama.prompts, GREEDY) == llama.expected

    @pytest.mark.parametrize("policy", POLICIES)
    def test_for_any_policy(self, llama: Tiny, policy: str) -> None:
        core = engine(llama.executor, budget=32, policy=policy)
        assert run(core, llama.prompts, GREEDY) == llama.expected

    @pytest.mark.parametrize("seed", range(3))
    def test_for_any_placement_of_blocks(self, llama: Tiny, seed: int) -> None:
        core = engine(llama.executor, budget=32, shuffle=seed)
        assert run(core, llama.prompts, GREEDY) == llama.expected

    def test_alone_or_one_after_the_other(self, llama: Tiny) -> None:
        core = engine(llama.executor, max_batch_size=1)
        assert run(core, llama.prompts, GREEDY) == llama.expected

    def test_when_requests_come_while_others_run(self, llama: Tiny) -> None:
        core = engine(llama.executor, budget=16)
        arrivals = {index * 5: [prompt] for index, prompt in enumerate(llama.prompts)}
        outputs = run_staggered(core, arrivals, GREEDY)
        assert [outputs[index] for index in range(len(outputs))] == llama.expected

    def test_after_preemptions(self, llama: Tiny) -> None:
        prompts = [prompt * (30 // len(prompt) + 1) for prompt in llama.prompts]
        prompts = [prompt[:30] for prompt in prompts]
        long = SamplingParams(max_tokens=70, temperature=0)
        roomy = engine(llama.executor)
        tight = engine(llama.executor, budget=32, num_blocks=7)
        assert run(tight, prompts, long) == run(roomy, prompts, long)
        assert roomy.stats.preemptions == 0
        assert tight.stats.preemptions > 0
        assert tight.stats.free_blocks == tight.stats.total_blocks

    def test_after_another_request_was_cancelled(self, llama: Tiny) -> None:
        core = engine(llama.executor, budget=16)
        core.submit(100, list(range(2, 200)), GREEDY, arrival=-1.0)
        for _ in range(3):
            core.step()
        core.cancel(100)
        assert run(core, llama.prompts, GREEDY) == llama.expected

    def test_after_a_prefix_that_another_request_computed(self, llama: Tiny) -> None:
        common = llama.prompts[2][:70]
        prompts = [common + prompt[:9] for prompt in llama.prompts]
        arrivals = {index * 4: [prompt] for index, prompt in enumerate(prompts)}
        core = engine(llama.executor, budget=32)
        outputs = run_staggered(core, arrivals, GREEDY)
        alone = run(engine(llama.executor, prefix_caching=False), prompts, GREEDY)
        assert [outputs[index] for index in range(len(prompts))] == alone
        assert core.stats.cached_tokens == 64 * (len(prompts) - 1)

    def test_however_prompts_share_an_iteration(self, llama: Tiny) -> None:
        core = engine(llama.executor, budget=32, in_order_share=0.5, fair=True)
        assert run(core, llama.prompts, GREEDY) == llama.expected

    def test_seeded_samples_do_not_depend_on_the_batch(self, llama: Tiny) -> None:
        params = SamplingParams(max_tokens=OUTPUT, temperature=1.0, top_p=0.9, seed=5)
        alone = [run(engine(llama.executor), [p], params)[0] for p in llama.prompts]
        together = run(engine(llama.executor, budget=7), llama.prompts, params)
        assert together == alone
        assert together != llama.expected


def chunk(prompt: list[int], start: int, stop: int) -> Step:
    """Tokens `start` to `stop` of a lone sequence, all rows sampled, in backward blocks."""
    blocks = [NUM_BLOCKS - 1 - index for index in range(-(-stop // 32))]
    return Step(
        token_ids=np.array(prompt[start:stop]),
        positions=np.arange(start, stop),
        query_starts=np.array([0, stop - start], np.int32),
        past_lens=np.array([start], np.int32),
        block_ids=np.array(blocks, np.int32),
        block_starts=np.array([0, len(blocks)], np.int32),
        sample_rows=np.arange(stop - start),
    )
