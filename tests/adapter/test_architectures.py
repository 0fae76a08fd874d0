"""Tiny random models of six families: two training steps, generation where there is any, save, load, equal outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import (
    adapted,
    padded_batch,
    seeded,
    tiny_bert,
    tiny_clip_vision,
    tiny_gpt2,
    tiny_llama,
    tiny_qwen2,
    tiny_t5,
)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from goat_peft.adapter import GoatLinear

FAMILIES = {
    # adapted linears, without the output head: per block and in total
    "gpt2": (tiny_gpt2, 2 * 4),
    "bert": (tiny_bert, 2 * 6 + 1),  # and the pooler
    "llama": (tiny_llama, 2 * 7),
    "qwen2": (tiny_qwen2, 2 * 7),
    "clip-vision": (tiny_clip_vision, 2 * 6),
    "t5": (tiny_t5, 2 * 6 + 2 * 10),
}


def batch_for(family: str) -> dict[str, Tensor]:
    if family == "clip-vision":
        return {"pixel_values": torch.randn(3, 3, 16, 16)}
    batch = padded_batch(side="left" if family in ("gpt2", "llama", "qwen2") else "right")
    return batch | {"labels": torch.tensor([0, 1, 2])} if family == "bert" else batch


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The model's loss; for the headless CLIP tower a distance from the target 1, with the balance loss as a custom loop adds it."""
    output = model(**batch)
    return output.loss if "labels" in batch else (output.pooler_output - 1).pow(2).mean() + model.get_aux_loss()


@torch.no_grad()
def output_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    output = model.eval()(**batch)
    return output.logits if "labels" in batch else output.pooler_output


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_generate_save_load(family: str, tmp_path: Path) -> None:
    make, linears = FAMILIES[family]
    # the task type keeps the classification head out of "every linear" and trains it in full
    model, batch = adapted(make, task_type="SEQ_CLS" if family == "bert" else None), batch_for(family)
    layers = [module for module in model.modules() if isinstance(module, GoatLinear)]
    assert len(layers) == linears == len(model.base_model.targeted_module_names)
    assert all(isinstance(layer.base_layer, Conv1D) == (family == "gpt2") for layer in layers)

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    model.train()
    losses = []
    for _ in range(2):
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert loss_of(model, batch).item() < losses[0]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != ("goat_" in name or "modules_to_save" in name), name

    expected = output_of(model, batch)
    assert not torch.allclose(expected, output_of(seeded(make), batch), atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(seeded(make), tmp_path)
    assert torch.equal(output_of(loaded, batch), expected)

    if family in ("gpt2", "llama", "qwen2", "t5"):
        asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
        for beams in (1, 2):
            told = model.generate(**asked, max_new_tokens=5, do_sample=False, num_beams=beams)
            assert torch.equal(loaded.generate(**asked, max_new_tokens=5, do_sample=False, num_beams=beams), told)
        cached = model.generate(**asked, max_new_tokens=5, do_sample=False, use_cache=True)
        assert torch.equal(cached, model.generate(**asked, max_new_tokens=5, do_sample=False, use_cache=False))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_published_share_of_parameters(family: str) -> None:
    """r (m + n) for the experts and E n for the router, per linear; nothing else trains."""
    model = adapted(FAMILIES[family][0])
    layers = [module for module in model.modules() if isinstance(module, GoatLinear)]
    expected = sum(8 * (layer.in_features + layer.out_features) + 4 * layer.in_features for layer in layers)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert model.get_nb_trainable_parameters()[0] == expected
