"""lm-eval: a few questions by log likelihood and by generation, through `local-completions`.

Usage: python lm_eval_tasks.py URL
"""

import json
import sys
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

QUESTIONS = [
    ("The capital of France is", ["Paris", "a banana", "seventeen"]),
    ("Two plus two is", ["four", "a river", "yesterday"]),
    ("At night the sky is", ["dark", "edible", "made of wood"]),
    ("Fish live in", ["water", "arithmetic", "books about law"]),
]
questions = Path("questions.jsonl").absolute()
questions.write_text(
    "\n".join(json.dumps({"question": q, "choices": c, "label": 0}) for q, c in QUESTIONS)
)
shared = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(questions)}},
    "test_split": "test",
    "doc_to_text": "{{question}}",
}
scored = {
    **shared,
    "task": "choose",
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}
generated = {
    **shared,
    "task": "complete",
    "output_type": "generate_until",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match"}],
}
rolling = {
    **shared,
    "task": "read",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}} {{choices[0]}}.",
    "metric_list": [{"metric": "word_perplexity"}],
}
results = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "model": "smollm2-135m",
        "base_url": f"{sys.argv[1]}/v1/completions",
        "num_concurrent": 2,
        "max_retries": 1,
    },
    tasks=[scored, generated, rolling],
    task_manager=TaskManager(),
    bootstrap_iters=0,
)
assert results["results"]["choose"]["acc,none"] >= 0.75, results["results"]
assert 1 < results["results"]["read"]["word_perplexity,none"] < 1e4, results["results"]
assert "exact_match,none" in results["results"]["complete"]
