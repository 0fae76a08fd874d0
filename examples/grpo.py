"""Reinforcement learning with TRL's GRPOTrainer. Its loss is made of log-probabilities alone, so `BalanceLossMixin` adds the balance loss.

python examples/grpo.py --model HuggingFaceTB/SmolLM2-135M-Instruct
"""

import argparse
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from goat_peft import BalanceLossMixin, GoatConfig

ROWS = [{"prompt": text} for text in ("The capital of France is", "The capital of Italy is", "Two and two make")]


def short(completions: list[str], **_: Any) -> list[float]:
    """Reward: the fewer different words, the better. Put your own here."""
    return [-float(len(set(text.split()))) for text in completions]


class GoatGRPOTrainer(BalanceLossMixin, GRPOTrainer):
    """GRPOTrainer whose loss holds the balance loss."""


def main() -> GRPOTrainer:
    """Train and save; returns the trainer."""
    parser = argparse.ArgumentParser(description="GRPOTrainer with GOAT")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", default="runs/example-grpo")
    parser.add_argument("--cpu", action="store_true", help="leave an accelerator alone")
    given = parser.parse_args()

    trainer = GoatGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(given.model),
        peft_config=GoatConfig(r=8, num_experts=4, top_k=2, task_type="CAUSAL_LM"),
        reward_funcs=short,
        train_dataset=Dataset.from_list(ROWS),
        args=GRPOConfig(
            output_dir=given.output,
            max_steps=given.steps,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_generations=4,
            max_completion_length=16,
            learning_rate=1e-3,
            logging_steps=5,
            save_strategy="no",
            report_to=[],
            bf16=False,
            use_cpu=given.cpu,
        ),
    )
    trainer.train()
    trainer.save_model(given.output)
    return trainer


if __name__ == "__main__":
    main()
