"""A LightningModule around a GOAT model: the loss that the model returns holds the balance loss. Needs `pip install lightning`.

python examples/lightning_loop.py --model HuggingFaceTB/SmolLM2-135M-Instruct
"""

import argparse

import lightning
import torch
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from goat_peft import GoatConfig

TEXTS = ["The capital of France is Paris.", "The capital of Italy is Rome.", "Two and two make four.", "Water is wet."]


class Tuned(lightning.LightningModule):
    """A causal language model with routed experts."""

    def __init__(self, name: str) -> None:
        super().__init__()
        base = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
        self.model = get_peft_model(base, GoatConfig(r=8, num_experts=4, top_k=2, task_type="CAUSAL_LM"))

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Task loss and balance loss together; the latter is logged alone, without its coefficient, as well."""
        loss: torch.Tensor = self.model(**batch).loss
        self.log("loss", loss, prog_bar=True)
        self.log("balance_loss", self.model.get_balance_loss(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the adapter."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def main() -> lightning.Trainer:
    """Train and save; returns the trainer."""
    parser = argparse.ArgumentParser(description="Lightning with GOAT")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", default="runs/example-lightning")
    parser.add_argument("--cpu", action="store_true", help="leave an accelerator alone")
    given = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def collate(texts: list[str]) -> dict[str, torch.Tensor]:
        batch = dict(tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False))
        return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    module = Tuned(given.model).train()
    trainer = lightning.Trainer(
        max_steps=given.steps,
        accelerator="cpu" if given.cpu else "auto",
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        enable_checkpointing=False,
        logger=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, DataLoader(TEXTS, batch_size=2, shuffle=True, collate_fn=collate))
    module.model.save_pretrained(given.output)
    return trainer


if __name__ == "__main__":
    main()
