"""Preference training with TRL's DPOTrainer. Its loss is made of log-probabilities alone, so `BalanceLossMixin` adds the balance loss.

python examples/dpo.py --model HuggingFaceTB/SmolLM2-135M-Instruct
"""

import argparse

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from goat_peft import BalanceLossMixin, GoatConfig

ROWS = [
    {"prompt": "The capital of France is", "chosen": " Paris.", "rejected": " Lyon, I think."},
    {"prompt": "The capital of Italy is", "chosen": " Rome.", "rejected": " Milan, I think."},
    {"prompt": "Two and two make", "chosen": " four.", "rejected": " five, or so."},
    {"prompt": "Water freezes at", "chosen": " zero degrees Celsius.", "rejected": " ten degrees."},
]


class GoatDPOTrainer(BalanceLossMixin, DPOTrainer):
    """DPOTrainer whose loss holds the balance loss; the reference is the model with its adapter off."""


def main() -> DPOTrainer:
    """Train and save; returns the trainer."""
    parser = argparse.ArgumentParser(description="DPOTrainer with GOAT")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", default="runs/example-dpo")
    parser.add_argument("--cpu", action="store_true", help="leave an accelerator alone")
    given = parser.parse_args()

    trainer = GoatDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(given.model),
        peft_config=GoatConfig(r=8, num_experts=4, top_k=2, task_type="CAUSAL_LM"),
        train_dataset=Dataset.from_list(ROWS),
        args=DPOConfig(
            output_dir=given.output,
            max_steps=given.steps,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
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
