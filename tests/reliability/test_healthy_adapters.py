"""Adapters that are whole, saved and loaded in the ways that people do it: none of the checks against damage refuses them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import fresh_base, load, logits
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from goat_peft import GoatConfig

FILE, CONFIG, DIGEST = "adapter_model.safetensors", "adapter_config.json", "base_model.model.goat_digest"


def goat(**settings: Any) -> GoatConfig:
    return GoatConfig(**({"r": 8, "num_experts": 4, "target_modules": ["q_proj"]} | settings))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=0)
    )


def bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(num_hidden_layers=1, hidden_size=16, intermediate_size=24, num_attention_heads=2, vocab_size=32)
    )


class Normed(nn.Module):
    """A linear, and what holds a count, whole numbers, truth values and infinities beside what it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16)
        self.norm.register_buffer("position_ids", torch.arange(4))
        self.norm.register_buffer("seen", torch.tensor([True, False]))
        self.norm.register_buffer("mask", torch.full((2, 2), -torch.inf))
        self.norm.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


def moved(model: nn.Module) -> nn.Module:
    """The model, as if some training had moved what is trained."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05)
    return model


@pytest.mark.parametrize(
    ("make", "name", "targets"), [(gpt2, "wte", ["c_attn"]), (bert, "word_embeddings", ["query"])], ids=["gpt2", "bert"]
)
def test_embeddings_saved_with_the_adapter(make: Any, name: str, targets: list[str], tmp_path: Path) -> None:
    """As PEFT saves them when the vocabulary grew: trained weights come back, under whatever name; damage to them is noticed."""
    model = get_peft_model(seeded(make), goat(target_modules=targets))
    embedding = next(module for path, module in model.named_modules() if path.endswith(name))
    embedding.weight.data.add_(1)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    loaded = PeftModel.from_pretrained(seeded(make), tmp_path)
    again = next(module for path, module in loaded.named_modules() if path.endswith(name))
    assert torch.equal(again.weight, embedding.weight)
    tensors = load_file(tmp_path / FILE)
    key = next(key for key in tensors if f"{name}.weight" in key)
    save_file(tensors | {key: tensors[key] + 1e-3}, tmp_path / FILE)
    with pytest.raises(ValueError, match="not those that were saved"):
        PeftModel.from_pretrained(seeded(make), tmp_path)


@pytest.mark.parametrize(
    "settings", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"target_modules": ["lm_head"]}]
)
def test_embeddings_that_the_adapter_trains_or_adapts(settings: dict[str, Any], tmp_path: Path) -> None:
    """PEFT saves them once more beside the adapter, under names of its own."""
    model = moved(get_peft_model(fresh_base(), goat(**settings)))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_buffers_of_any_kind_in_a_trained_module(tmp_path: Path) -> None:
    model = get_peft_model(seeded(Normed), goat(target_modules=["linear"], modules_to_save=["norm"]))
    model(torch.randn(8, 16))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(seeded(Normed), tmp_path)
    norm = loaded.base_model.model.norm.modules_to_save["default"]
    assert norm.num_batches_tracked == 1 and norm.mask.isinf().all() and norm.seen.tolist() == [True, False]
    key = "base_model.model.norm.position_ids"
    tensors = load_file(tmp_path / FILE)
    save_file(tensors | {key: tensors[key].float()}, tmp_path / FILE)
    with pytest.raises(ValueError, match="position_ids holds float32, and its place int64"):
        PeftModel.from_pretrained(seeded(Normed), tmp_path)


@pytest.mark.parametrize("kind", [tuple, list, set])
@pytest.mark.parametrize("names", [["up_proj", "q_proj", "k_proj"], ["k_proj", "up_proj", "q_proj"]])
def test_names_in_any_container_and_order(kind: type, names: list[str], tmp_path: Path) -> None:
    fields = {"target_modules": kind(names), "exclude_modules": kind(["x", "a"]), "modules_to_save": kind(["norm"])}
    config = goat(**fields, layers_to_transform=kind([0]), rho=5)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(written | {"target_modules": sorted(names), "rho": 5.0}))
    found = GoatConfig.from_pretrained(tmp_path)
    assert set(found.target_modules) == set(names) and found.rho == 5


@pytest.mark.parametrize("low_memory", [False, True])
def test_saved_twice_by_transformers_itself(low_memory: bool, tmp_path: Path) -> None:
    """It writes the config before the weights, and prefixes the names; its own loading has no place for the digest, and compares nothing."""
    model = fresh_base()
    model.add_adapter(goat())
    for _ in range(2):
        moved(model).save_pretrained(tmp_path)
    assert DIGEST in load_file(tmp_path / FILE)
    assert torch.equal(logits(load(tmp_path, low_cpu_mem_usage=low_memory)), logits(model))
    own = fresh_base()
    information = own.load_adapter(str(tmp_path))
    assert not information.missing_keys and {key.split(".")[0] for key in information.unexpected_keys} == {
        "goat_digest"
    }
    assert torch.equal(logits(own), logits(model))


def test_resumed_from_another_folder_than_the_config(copied: Path, saved: tuple[Path, Tensor], tmp_path: Path) -> None:
    """A trainer's checkpoint, a state dict, a second load: tensors are compared with their own digest, not with one that came earlier."""
    later = moved(load(copied, is_trainable=True))
    later.save_pretrained(tmp_path / "later")
    for place in (later, load(copied), get_peft_model(fresh_base(), GoatConfig.from_pretrained(copied))):
        place.load_adapter(tmp_path / "later", "default")
        assert torch.equal(logits(place), logits(load(tmp_path / "later")))
        set_peft_model_state_dict(place, load_file(copied / FILE))
        assert torch.equal(logits(place), saved[1])


@pytest.mark.parametrize(
    "edit",
    [
        {"base_model_name_or_path": "elsewhere", "revision": "main", "inference_mode": False},
        {"task_type": None, "peft_version": "0.99", "lora_dropout": 0.1},
        {"router_aux_loss_coef": 0.5, "router_aux_loss_reduction": "sum"},
        {"lora_alpha": 16.0, "eta": 1, "target_modules": ["up_proj", "q_proj"]},
        {"a_field_of_a_later_version": {"a": 1}},
    ],
    ids=lambda edit: next(iter(edit)),
)
@pytest.mark.filterwarnings("ignore:Unexpected keyword")
def test_what_decides_nothing_is_free_to_edit(copied: Path, saved: tuple[Path, Tensor], edit: dict[str, Any]) -> None:
    fields = json.loads((copied / CONFIG).read_text())
    (copied / CONFIG).write_text(json.dumps(fields | edit))
    assert torch.equal(logits(load(copied)), saved[1])


def test_a_later_default_and_a_later_list_of_fields(copied: Path, saved: tuple[Path, Tensor]) -> None:
    fields = json.loads((copied / CONFIG).read_text())
    later = {"version": 2, "fields": fields["settings_digest"]["fields"] | {"sparsity": "01234567"}}
    (copied / CONFIG).write_text(json.dumps(fields | {"settings_digest": later}))
    assert torch.equal(logits(load(copied)), saved[1])
    assert set(fields["settings_digest"]["fields"]) <= set(fields)  # every value is written, those at their default too


def test_configs_made_from_others_carry_no_digest(copied: Path) -> None:
    config = GoatConfig.from_pretrained(copied)
    assert not [name for name in config.to_dict() if "digest" in name]
    for other in (GoatConfig(**(config.to_dict() | {"r": 16})), dataclasses.replace(config, r=16)):
        assert other.r == 16 and other.num_experts == config.num_experts


def test_adapters_from_before_there_were_digests(copied: Path, saved: tuple[Path, Tensor]) -> None:
    tensors = load_file(copied / FILE)
    assert tensors.pop(DIGEST).shape == (32,)
    save_file(tensors, copied / FILE)
    fields = json.loads((copied / CONFIG).read_text())
    del fields["settings_digest"]
    (copied / CONFIG).write_text(json.dumps(fields))
    assert torch.equal(logits(load(copied)), saved[1])


def test_saved_in_another_dtype(copied: Path, tmp_path: Path) -> None:
    """The digest is of what is written; one that was rounded with all the rest is no digest any more."""
    model = load(copied).bfloat16()
    model.save_pretrained(tmp_path / "rounded")
    rounded = load(tmp_path / "rounded").state_dict()
    state = {name: tensor.bfloat16() for name, tensor in get_peft_model_state_dict(load(copied)).items()}
    other = load(copied)
    set_peft_model_state_dict(other, state)
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in other.state_dict().items() if "goat_" in name)


def test_damage_beside_a_config_does_not_keep_it_from_being_saved(copied: Path) -> None:
    (copied / FILE).write_bytes(b"no tensors")
    GoatConfig.from_pretrained(copied).save_pretrained(copied)
