"""`--tuner_type goat` in ms-swift: give this file's path to `--external_plugins`."""

from __future__ import annotations

from typing import Any

from peft import PeftModel, get_peft_model
from swift.tuner_plugin import PeftTuner, tuners_map

from goat_peft import GoatConfig


class GoatTuner(PeftTuner):
    """Builds a `GoatConfig` from `--lora_rank` and `--lora_dropout` on every linear; saving and loading are PEFT's."""

    @staticmethod
    def prepare_model(args: Any, model: Any) -> PeftModel:
        """Put a fresh adapter on the model."""
        config = GoatConfig(
            r=args.lora_rank, lora_dropout=args.lora_dropout, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return get_peft_model(model, config)


tuners_map["goat"] = GoatTuner
