"""`adapter: goat` in axolotl: a plugin, named in a configuration's `plugins:` as `goat_axolotl.GoatPlugin`."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from peft import PeftModel, get_peft_model

from goat_peft import GoatConfig


class GoatPlugin(BasePlugin):
    """Builds a `GoatConfig` from `lora_r`, `lora_target_modules` and `lora_dropout`; the rest is as in the paper."""

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        """What makes axolotl accept the name."""
        return [AdapterCapabilities(name="goat")]

    def load_adapter(self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False) -> Any:
        """Return (model, config) for `adapter: goat`, None for what is not ours; without a model where a trainer wants the config alone."""
        if cfg.adapter != "goat":
            return None
        config = GoatConfig(
            r=cfg.lora_r or 8,
            target_modules="all-linear" if cfg.lora_target_linear else cfg.lora_target_modules,
            lora_dropout=cfg.lora_dropout or 0.0,
            task_type="CAUSAL_LM",
        )
        if config_only:
            return None, config
        if cfg.lora_model_dir:
            loaded = PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference)
            return loaded, loaded.active_peft_config
        return get_peft_model(model, config), config
