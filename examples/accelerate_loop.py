"""A training loop of one's own with Accelerate: the loss that the model returns holds the balance loss.

accelerate launch examples/accelerate_loop.py --model HuggingFaceTB/SmolLM2-135M-Instruct
"""

import argparse

import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from goat_peft import GoatConfig

TEXTS = ["The capital of France is Paris.", "The capital of Italy is Rome.", "Two and two make four.", "Water is wet."]


def batch_of(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """A padded batch; padding has no label, and its mask keeps it out of the balance loss."""
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False))
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def main() -> list[tuple[float, float]]:
    """Train and save; returns each step's loss and balance loss."""
    parser = argparse.ArgumentParser(description="an Accelerate loop with GOAT")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", default="runs/example-accelerate")
    parser.add_argument("--cpu", action="store_true", help="leave an accelerator alone")
    given = parser.parse_args()

    accelerator = Accelerator(cpu=given.cpu, gradient_accumulation_steps=2)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    base = AutoModelForCausalLM.from_pretrained(given.model, dtype="float32")
    model = get_peft_model(base, GoatConfig(r=8, num_experts=4, top_k=2, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    loader = DataLoader(TEXTS, batch_size=2, shuffle=True, collate_fn=lambda texts: batch_of(texts, tokenizer))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    model.train()
    found: list[tuple[float, float]] = []
    while len(found) < given.steps:
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            found.append((loss.item(), accelerator.unwrap_model(model).get_balance_loss().item()))
            accelerator.print(f"step {len(found)}: loss {found[-1][0]:.3f}, balance {found[-1][1]:.3f}")
            if len(found) == given.steps:
                break
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(given.output)
    return found


if __name__ == "__main__":
    main()
