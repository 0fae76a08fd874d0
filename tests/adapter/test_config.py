"""GoatConfig: every bad field names itself, its value and a remedy; presets; round trips."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftType, get_peft_config, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from goat_peft import GoatConfig, GoatModel
from goat_peft.adapter.registration import extend_peft_type, register

BAD = [
    ("r", 7, "multiple of num_experts=8, for example 8"),
    ("r", 0, "at least 1"),
    ("r", 8.0, "whole number"),
    ("r", True, "whole number"),
    ("num_experts", 0, "at least 1"),
    ("num_experts", "8", "whole number"),
    ("top_k", 0, "from 1 to num_experts=8"),
    ("top_k", 9, "from 1 to num_experts=8"),
    ("top_k", 1.5, "whole number"),
    ("init_weights", "pissa", "goat, principal, minor, random, lora"),
    ("init_weights", None, "goat, principal, minor, random, lora"),
    ("init_weights", ["goat"], "goat, principal, minor, random, lora"),
    ("init_router", "ones", "kaiming, zero"),
    ("init_router", "zero", "router='softmax'"),
    ("scaling", "theorem", "paper, lora, rslora or a positive number"),
    ("scaling", 0.0, "positive number"),
    ("scaling", -2, "positive number"),
    ("scaling", float("nan"), "positive number"),
    ("scaling", True, "positive number"),
    ("eta", 0, "positive number"),
    ("eta", "1", "positive number"),
    ("rho", -1.0, "positive number"),
    ("rho", float("inf"), "positive number"),
    ("lora_alpha", 0, "positive number"),
    ("lora_dropout", 1.0, "at least 0 and below 1"),
    ("lora_dropout", -0.1, "at least 0 and below 1"),
    ("router_aux_loss_coef", -1e-3, "0 or more"),
    ("router_aux_loss_coef", None, "0 or more"),
    ("router_aux_loss_reduction", "max", "mean, sum"),
    ("expert_scaling", "none", "uniform, singular"),
    ("bias", "lora_only", "none, all, goat_only"),
    ("layers_pattern", "layers", "needs layers_to_transform"),
    ("format_version", 2, "upgrade goat-peft"),
]


@pytest.mark.parametrize(("name", "value", "remedy"), BAD)
def test_a_bad_field_names_itself_its_value_and_the_remedy_in_one_line(name: str, value: Any, remedy: str) -> None:
    with pytest.raises(ValueError) as caught:
        GoatConfig(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"GoatConfig.{name}={value!r}: ") and remedy in message and "\n" not in message


@pytest.mark.parametrize("init_weights", ["lora", False])
def test_singular_scaling_needs_segments(init_weights: Any) -> None:
    with pytest.raises(ValueError, match="GoatConfig.expert_scaling='singular': .*set init_weights to goat"):
        GoatConfig(expert_scaling="singular", init_weights=init_weights)


def test_layers_to_transform_needs_a_list() -> None:
    with pytest.raises(ValueError, match="GoatConfig.layers_to_transform=.*list of names"):
        GoatConfig(target_modules="all-linear", layers_to_transform=[0])


def test_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="experts"):
        GoatConfig(experts=8)


def test_every_field_of_its_own_has_a_help_text() -> None:
    inherited = {field.name for field in dataclasses.fields(PeftConfig)}
    for field in dataclasses.fields(GoatConfig):
        if field.name not in inherited:
            assert len(field.metadata["help"]) > 30, field.name


def test_expert_rank_and_normalised_fields() -> None:
    config = GoatConfig(r=32, target_modules=["q", "v", "q"], exclude_modules=["v"], init_weights=True)
    assert config.expert_rank == 4 and config.target_modules == {"q", "v"} and config.exclude_modules == {"v"}
    assert config.init_weights == "goat" and config.uses_residual
    assert not GoatConfig(init_weights="lora").uses_residual


def test_save_and_load_give_the_same_config(tmp_path: Path) -> None:
    config = GoatConfig(
        r=16, num_experts=4, top_k=3, init_weights="minor", scaling=2.5, target_modules=["q"], layers_to_transform=[0, 2], layers_pattern="layers",
        modules_to_save=["head"], expert_scaling="singular", router_aux_loss_reduction="sum", bias="goat_only", task_type="CAUSAL_LM",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    for load in (GoatConfig.from_pretrained, PeftConfig.from_pretrained):
        loaded = load(tmp_path)
        assert type(loaded) is GoatConfig
        assert loaded == config and loaded.to_dict() == config.to_dict()
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "GOAT" and saved["format_version"] == 1
    assert GoatConfig(**saved) == config
    assert get_peft_config(saved) == config


def test_the_check_of_the_base_is_decided_at_each_loading(tmp_path: Path) -> None:
    GoatConfig(check_base_weights=False).save_pretrained(tmp_path)
    assert GoatConfig.from_pretrained(tmp_path).check_base_weights
    assert not GoatConfig.from_pretrained(tmp_path, check_base_weights=False).check_base_weights


# ---- presets ---------------------------------------------------------------------------------------------------------------------------


def test_paper_preset() -> None:
    config = GoatConfig.from_preset("paper")
    assert (config.num_experts, config.top_k, config.scaling, config.eta, config.rho) == (8, 2, "paper", 1.0, 10.0)
    assert (config.init_weights, config.router_aux_loss_coef, config.router_aux_loss_reduction) == (
        "goat",
        1e-3,
        "mean",
    )
    assert config.lora_dropout == 0.05


def test_released_preset() -> None:
    """alpha / d, and a balance loss k times the paper's, summed over layers."""
    config = GoatConfig.from_preset("released")
    assert (config.scaling, config.router_aux_loss_coef, config.router_aux_loss_reduction) == ("lora", 2e-3, "sum")
    assert GoatConfig.from_preset("released", top_k=4).router_aux_loss_coef == pytest.approx(4e-3)
    assert GoatConfig.from_preset("released", router_aux_loss_coef=0.5).router_aux_loss_coef == 0.5


@pytest.mark.parametrize("overrides", [{}, {"r": 32}, {"num_experts": 4}])
def test_soft_preset(overrides: dict[str, int]) -> None:
    """Every expert, none preferred, and together at the start the scale of a LoRA whose alpha is twice its rank."""
    config = GoatConfig.from_preset("soft", **overrides)
    assert (config.router, config.init_router, config.init_weights, config.rho) == ("softmax", "zero", "goat", 100.0)
    assert config.router_aux_loss_coef == 0 and config.scaling == "lora"
    assert config.lora_alpha / (config.r / config.num_experts) / config.num_experts == 2


def test_soft_zero_is_soft_without_segments() -> None:
    found, like = GoatConfig.from_preset("soft-zero", r=16), GoatConfig.from_preset("soft", r=16, init_weights="lora")
    assert found.to_dict() == like.to_dict() and not found.uses_residual
    base = nn.Linear(16, 12)
    x = torch.randn(3, 16)
    start = base(x)
    model = get_peft_model(nn.Sequential(base), GoatConfig.from_preset("soft-zero", target_modules=["0"])).eval()
    assert torch.equal(model(x), start)


def test_presets_take_overrides_and_check_them() -> None:
    config = GoatConfig.from_preset("paper", r=32, target_modules=["q_proj"])
    assert config.r == 32 and config.target_modules == {"q_proj"}
    with pytest.raises(ValueError, match="GoatConfig.top_k=9"):
        GoatConfig.from_preset("paper", top_k=9)
    with pytest.raises(ValueError, match="preset='papers': must be one of paper, released"):
        GoatConfig.from_preset("papers")


# ---- registration ----------------------------------------------------------------------------------------------------------------------


def test_registered_with_peft() -> None:
    assert PeftType.GOAT == "GOAT" and PeftType("GOAT") is PeftType.GOAT and PeftType["GOAT"] is PeftType.GOAT
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.GOAT] is GoatConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.GOAT] is GoatModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.GOAT] == "goat_"
    assert GoatConfig().peft_type is PeftType.GOAT


def test_registering_again_changes_nothing() -> None:
    members = list(PeftType)
    assert extend_peft_type("GOAT") is PeftType.GOAT
    register(GoatConfig, GoatModel)
    assert list(PeftType) == members and members.count(PeftType.GOAT) == 1
    assert PeftType.LORA.value == "LORA" and PeftType("LORA") is PeftType.LORA


def test_steps_aside_where_peft_ships_a_goat(monkeypatch: pytest.MonkeyPatch) -> None:
    class Theirs:
        pass

    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.GOAT, Theirs)
    register(GoatConfig, GoatModel)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.GOAT] is Theirs
