"""Supervised fine-tuning with TRL's SFTTrainer as it is: the log-probabilities it asks the model for carry the balance loss.

python examples/sft.py --model HuggingFaceTB/SmolLM2-135M-Instruct
"""

import argparse

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from goat_peft import GoatConfig

# Your data in this form: https://huggingface.co/docs/trl/dataset_formats
ROWS = [
    {"prompt": "The capital of France is", "completion": " Paris."},
    {"prompt": "The capital of Italy is", "completion": " Rome."},
    {"prompt": "Two and two make", "completion": " four."},
    {"prompt": "Water freezes at", "completion": " zero degrees Celsius."},
]


def main() -> SFTTrainer:
    """Train and save; returns the trainer."""
    parser = argparse.ArgumentParser(description="SFTTrainer with GOAT")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", default="runs/example-sft")
    parser.add_argument("--cpu", action="store_true", help="leave an accelerator alone")
    given = parser.parse_args()

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(given.model),
        peft_config=GoatConfig(r=8, num_experts=4, top_k=2, task_type="CAUSAL_LM"),
        train_dataset=Dataset.from_list(ROWS),
        args=SFTConfig(
            output_dir=given.output,
            max_steps=given.steps,
            per_device_train_batch_size=2,
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
