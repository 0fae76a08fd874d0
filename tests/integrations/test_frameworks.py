"""The plugins for axolotl, ms-swift and LLaMA-Factory: what each hook hands over trains; the frameworks are stood in for, their names alone.

With a framework installed its own modules are used in the stand-ins' place.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from goat_peft import GoatConfig

HOME = Path(__file__).parents[2] / "integrations"


class Settings(dict):
    """A framework's settings: a missing key is None."""

    __getattr__ = dict.get


@dataclass
class Capabilities:
    name: str


@pytest.fixture
def base(tiny_llama_dir: Path) -> Callable[[], PreTrainedModel]:
    return lambda: AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Import a plugin's file where its framework's module offers the given names."""

    def load(file: str, framework: str, **names: Any) -> ModuleType:
        parts = framework.split(".")
        if importlib.util.find_spec(parts[0]) is None:
            for end in range(1, len(parts) + 1):
                monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
            for name, value in names.items():
                setattr(sys.modules[framework], name, value)
        spec = importlib.util.spec_from_file_location(Path(file).stem, HOME / file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def trains(model: PeftModel) -> None:
    """Every router and expert gets a gradient from the model's own loss."""
    ids = torch.randint(4, 20, (2, 9), generator=torch.Generator().manual_seed(0))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    parts = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert any("router" in name for name in parts)
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in parts.values())


def same_output(one: PeftModel, other: PeftModel) -> bool:
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        return torch.equal(one.eval()(input_ids=ids).logits, other.eval()(input_ids=ids).logits)


def test_axolotl(plugin: Callable, base: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    module = plugin(
        "axolotl/goat_axolotl.py", "axolotl.integrations.base", AdapterCapabilities=Capabilities, BasePlugin=object
    )
    ours = module.GoatPlugin()
    assert [found.name for found in ours.get_adapter_capabilities()] == ["goat"]
    assert ours.load_adapter(base(), Settings(adapter="lora", lora_r=8)) is None
    settings = Settings(adapter="goat", lora_r=16, lora_target_modules=["q_proj", "up_proj"], lora_dropout=0.0)
    model, config = ours.load_adapter(base(), settings)
    assert isinstance(config, GoatConfig) and config.r == 16
    assert {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith("base_layer")} == {
        "q_proj",
        "up_proj",
    }
    trains(model)
    assert ours.load_adapter(base(), settings, config_only=True)[0] is None
    model.save_pretrained(tmp_path)
    loaded, _ = ours.load_adapter(base(), Settings(settings, lora_model_dir=str(tmp_path)), inference=True)
    assert same_output(loaded, model) and not any(value.requires_grad for value in loaded.parameters())


def test_ms_swift(plugin: Callable, base: Callable[[], PreTrainedModel]) -> None:
    tuners: dict[str, Any] = {}
    plugin("ms_swift/goat_swift.py", "swift.tuner_plugin", PeftTuner=object, tuners_map=tuners)
    tuners = sys.modules["swift.tuner_plugin"].tuners_map
    model = tuners["goat"].prepare_model(SimpleNamespace(lora_rank=8, lora_dropout=0.0), base())
    assert model.active_peft_config.peft_type == "GOAT"
    trains(model)


def test_llama_factory(plugin: Callable, base: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    registered: dict[str, Any] = {}

    def register(name: str) -> SimpleNamespace:
        return SimpleNamespace(register=lambda: lambda function: registered.setdefault(name, function))

    module = plugin(
        "llamafactory/goat_llamafactory.py",
        "llamafactory.v1.plugins.model_plugins.peft",
        PeftPlugin=register,
        load_adapter=lambda model, path, is_train: PeftModel.from_pretrained(model, path, is_trainable=is_train),
    )
    model = module.goat_model(base(), {"name": "goat", "r": 8}, True)
    trains(model)
    model.save_pretrained(tmp_path)
    again = module.goat_model(base(), {"name": "goat", "adapter_name_or_path": str(tmp_path)}, True)
    assert same_output(again, model)
