"""`peft_config: {name: goat}` in LLaMA-Factory's v1 trainer: import this before its launcher starts."""

from __future__ import annotations

from typing import Any

from llamafactory.v1.plugins.model_plugins.peft import PeftPlugin, load_adapter
from peft import get_peft_model

from goat_peft import GoatConfig


@PeftPlugin("goat").register()
def goat_model(model: Any, config: Any, is_train: bool = False) -> Any:
    """Put a GOAT adapter on the model: the one at `adapter_name_or_path`, or a fresh one of rank `r`."""
    if config.get("adapter_name_or_path"):
        return load_adapter(model, config["adapter_name_or_path"], is_train)
    fresh = GoatConfig(
        r=config.get("r", 8),
        target_modules=config.get("target_modules", "all-linear"),
        lora_dropout=config.get("lora_dropout", 0.0),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, fresh)
