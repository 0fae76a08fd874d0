"""Models and processors: the base that a recipe names, and what a run saved."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel, TaskType
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig, set_seed
from transformers.utils import logging as transformers_logging

from ..adapter.quantized import keep_trainable
from ..errors import UserError, first_line
from ..recipes import ModelSettings, Recipe
from ..recipes.schema import METHODS
from ..tasks import Processor, Task, resolve_path


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")  # type: ignore[return-value]


def locate(settings: ModelSettings) -> str:
    """Return what `from_pretrained` takes: a folder for a local or `package:` name, else the hub name as it is."""
    if settings.name.startswith(("package:", ".", "/", "~")) or Path(settings.name).is_dir():
        return str(resolve_path(settings.name, "model.name"))
    return settings.name


def load_processor(settings: ModelSettings, task: Task) -> Processor:
    """Load what turns the task's rows into the model's inputs."""
    keys = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    return _load(settings, "tokenizer or image processor", lambda path: task.load_processor(path, keys))


def load_base(settings: ModelSettings, task: Task, processor: Processor) -> nn.Module:
    """Load the base model with the task's head; the padding token of a tokenizer becomes the model's."""
    keys: dict[str, Any] = {
        "dtype": settings.dtype,
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    if settings.quantize is not None:
        keys["quantization_config"] = quantization_config(settings, task)
    model = _load(settings, "model", lambda path: task.load_model(path, keys))
    keep_trainable(model)
    padding = getattr(processor, "pad_token_id", None)
    if padding is not None and getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = padding
    return model


def quantization_config(settings: ModelSettings, task: Task) -> BitsAndBytesConfig | TorchAoConfig:
    """How transformers is to quantise the linears, all but the head; raise `UserError` where the library for it is missing.

    nf4 is QLoRA's: blocks of 64 weights, their scales quantised again; it computes in the dtype that the rest is loaded in.
    """
    library = "torchao" if settings.quantize == "torchao-int8" else "bitsandbytes"
    if find_spec(library) is None:
        raise UserError(f"model.quantize={settings.quantize}: needs {library}; pip install 'goat-peft[quantized]'")
    # transformers finds a language model's head by itself, and takes a classifier's for another linear.
    heads = None if task.peft_type == TaskType.CAUSAL_LM else list(SEQ_CLS_HEAD_NAMES)
    if settings.quantize == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if settings.dtype == "auto" else getattr(torch, settings.dtype),
            llm_int8_skip_modules=heads,
        )
    if settings.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=heads)


def load_trained(recipe: Recipe, run: Path, task: Task, processor: Processor) -> nn.Module:
    """Load what a run saved: its adapter on the recipe's base, or the whole model."""
    # What the base's files lack and no adapter trains, such as a pooler, is drawn again as the run drew it.
    set_seed(recipe.training.seed)
    if (run / "model").is_dir():
        if METHODS[recipe.method.name].changes_modules:
            return _load_rebuilt(recipe, run, task, processor)
        local = recipe.model.model_copy(update={"name": str((run / "model").resolve()), "revision": None})
        check_weights(run / "model", "model.safetensors", sharded=True)
        return load_base(local, task, processor)
    return load_adapter(load_base(recipe.model, task, processor), run / "adapter")


def _load_rebuilt(recipe: Recipe, run: Path, task: Task, processor: Processor) -> nn.Module:
    """Build the method's modules on the recipe's base again, then fill them with what the run saved."""
    check_weights(run / "model", "model.safetensors")
    base = load_base(recipe.model, task, processor)
    model = METHODS[recipe.method.name].build(base, recipe.method, task.peft_type)
    load_model(model, run / "model" / "model.safetensors")
    return in_recipe_dtype(model, recipe.model)


def in_recipe_dtype(model: nn.Module, settings: ModelSettings) -> nn.Module:
    """Cast a whole trained model's weights, float32 while training, to the dtype that it is loaded in when scored again.

    In place. `auto` leaves them: the saved model's own dtype is float32. Buffers keep their dtype.
    """
    if settings.dtype != "auto":
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(getattr(torch, settings.dtype))
    return model


def load_adapter(base: nn.Module, adapter: Path) -> nn.Module:
    """Put a saved adapter on a base model; a broken file, or one that does not fit, gives a `UserError`."""
    check_weights(adapter, "adapter_model.safetensors")
    _check_finite(adapter / "adapter_model.safetensors")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            return PeftModel.from_pretrained(base, str(adapter))
    except Exception as error:  # whatever PEFT trips over in a file that anybody may have written
        raise UserError(
            f"adapter={adapter}: cannot be loaded onto {type(base).__name__} ({first_line(error)}); "
            "use the base model it was trained on, or train again"
        ) from error


def _check_finite(file: Path) -> None:
    """Raise `UserError` for a tensor with a value that is no number; PEFT looks at none but GOAT's."""
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no mapping
            tensor = tensors.get_tensor(name)
            if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                raise UserError(
                    f"adapter={file}: tensor {name} holds NaN or infinite values; copy the file again from its source or train again"
                )


def check_weights(folder: Path, name: str, sharded: bool = False) -> None:
    """Raise `UserError` when a safetensors file is missing or broken."""
    file = folder / name
    files = [file] if file.is_file() else sorted(folder.glob("*.safetensors")) if sharded else []
    if not files:
        raise UserError(f"adapter={folder}: has no {name}; give a run's folder or the folder of a saved adapter")
    for path in files:
        try:
            with safe_open(path, "pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"adapter={path}: the file is broken ({first_line(error)}); copy it again from its source or train again"
            ) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence notices about fresh heads and the libraries' own progress bars, which would break up a run's single bar."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    data_bars = datasets.are_progress_bars_disabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if not data_bars:
            datasets.enable_progress_bars()


def _load(settings: ModelSettings, what: str, load: Any) -> Any:
    """Call `load` with the model's place and explain failures."""
    try:
        return load(locate(settings))
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(
            f"model.name={settings.name}: no {what} could be loaded ({first_line(error)}); "
            "give a hub name, a local folder, or package:NAME/folder"
        ) from error
