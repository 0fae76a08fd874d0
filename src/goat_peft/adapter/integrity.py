"""Is this the adapter that was saved, and nothing else?

Safetensors notices a file that was cut, not a bit that flipped. So a digest of all tensors travels among them, as the entry `goat_digest` of the state
dict: whichever library writes the file, and whichever config is at hand when it is read, it belongs to these tensors. `adapter_config.json` carries one
digest per setting that decides what the adapter computes. Both find damage and careless edits; they are no signature, and do not tell who wrote a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from .fingerprint import check_base
from .registration import PREFIX
from .together import whole_weights

if TYPE_CHECKING:
    from .config import GoatConfig

DIGEST = f"{PREFIX}digest"  # the entry: (32,) uint8
STORED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # dtypes that adapters are saved in
# What decides which function a saved adapter is. A list that changes gets a new number; files written with another are compared where both know a field.
SETTINGS_VERSION = 1
SETTINGS = (
    "r", "num_experts", "top_k", "router", "top_p", "shared_A", "shared_experts", "target_modules", "exclude_modules", "init_weights", "scaling", "eta",
    "rho", "expert_scaling", "lora_alpha", "bias", "modules_to_save", "layers_to_transform", "layers_pattern",
)  # fmt: skip
WHOLE = "base_model.model."
AS_IT_IS = "pass config=GoatConfig.from_pretrained(path, check_integrity=False)"


class Sealing(dict[str, Tensor]):
    """An adapter's state dict whose `items()` end with the digest of all tensors in it by then.

    PEFT puts trained modules and embeddings into the dict that the tuner gives it, then reads its items once, for the state dict that is saved.
    """

    def items(self) -> Any:
        """All entries; without a digest where a tensor is a shard, on meta or quantised, whose bits are not those that are written."""
        tensors = [tensor for tensor in self.values() if isinstance(tensor, Tensor)]
        if not tensors or any(tensor.is_meta or type(tensor.detach()) is not Tensor for tensor in tensors):
            return super().items()
        prefix = WHOLE if any(name.startswith(WHOLE) for name in self) else ""
        return (self | {f"{prefix}{DIGEST}": of_tensors(tensors)}).items()


def take_digest(state_dict: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
    """A state dict without its digest, and the digest; None too where the entry is not as it was made: something computed with all entries alike."""
    rest = {name: tensor for name, tensor in state_dict.items() if name.rpartition(".")[2] != DIGEST}
    found = [tensor for name, tensor in state_dict.items() if name not in rest]
    return rest, found[0] if len(found) == 1 and found[0].dtype == torch.uint8 and found[0].shape == (32,) else None


def of_tensors(tensors: Iterable[Tensor]) -> Tensor:
    """SHA-256, (32,) uint8, of tensors' dtypes, shapes and bits, whatever their names and order: PEFT renames them, and tied ones may be saved once."""
    parts = set()
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)} ".encode())
        if data.numel():
            digest.update(data.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        parts.add(digest.digest())
    return torch.frombuffer(bytearray(hashlib.sha256(b"".join(sorted(parts))).digest()), dtype=torch.uint8)


def of_settings(config: GoatConfig) -> dict[str, Any]:
    """What a saved config says of its settings: the list's version, and 8 hexadecimal digits for each field in it."""
    return {"version": SETTINGS_VERSION, "fields": {name: _of_value(getattr(config, name)) for name in SETTINGS}}


def changed_settings(config: GoatConfig, saved: dict[str, Any]) -> list[str]:
    """Names of the fields whose values are not those that `of_settings` saw.

    Raises `ValueError` for what it cannot have written.
    """
    fields = saved.get("fields")
    if not isinstance(fields, dict) or (saved.get("version") == SETTINGS_VERSION and set(fields) != set(SETTINGS)):
        raise ValueError(
            f"GoatConfig.settings_digest: holds no digest for each of the fields of version {SETTINGS_VERSION}; copy the file again from its source, "
            "or take settings_digest out of it."
        )
    found = of_settings(config)["fields"]
    return [name for name in SETTINGS if name in fields and fields[name] != found[name]]


def _of_value(value: Any) -> str:
    """The same for the same meaning: names and numbers in any order and container, whole numbers with a point or without."""
    if isinstance(value, list | tuple | set | frozenset):
        value = sorted(map(str, value))
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        value = float(value)
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def refuse_pickle(folder: Path) -> None:
    """Raise `ValueError` when a local folder's only weights are pickled, which PEFT would go on to read."""
    if (folder / WEIGHTS_NAME).exists() and not (folder / SAFETENSORS_WEIGHTS_NAME).exists():
        raise ValueError(
            f"Adapter folder {folder}: holds {WEIGHTS_NAME}, a pickle, and no {SAFETENSORS_WEIGHTS_NAME}; GOAT adapters are read from safetensors only. "
            "Ask its author for that file."
        )


def check_loaded_tensors(
    model: nn.Module,
    config: GoatConfig,
    adapter_name: str,
    state_dict: dict[str, Tensor],
    digest: Tensor | None,
    layer_cls: type[Any],
) -> None:
    """Refuse adapter tensors that are missing, not wanted, of another shape or kind, not finite, changed since they were saved, or for another base.

    Raises `ValueError` naming the first offender and what to do.
    """
    _check_places(model, config, adapter_name, state_dict, vouched=digest is not None or not config.check_integrity)
    samples: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, layer_cls) or adapter_name not in layer.goat_A:
            continue
        for kind in layer.adapter_layer_names + layer.other_param_names[:-1]:
            if adapter_name in getattr(layer, kind):
                own = getattr(layer, kind)[adapter_name]
                _check_tensor(adapter_name, name, kind, own, state_dict.get(f"{name}.{kind}.{adapter_name}"))
        if not layer.get_base_layer().weight.is_meta:
            with whole_weights([layer.get_base_layer()]):
                samples[name] = (state_dict[f"{name}.goat_base_sample.{adapter_name}"], layer.base_sample())
    if digest is not None and config.check_integrity and not torch.equal(of_tensors(state_dict.values()), digest.cpu()):
        raise ValueError(
            f"Adapter '{adapter_name}': its tensors are not those that were saved, a bit flipped or something changed them; copy the file again from its "
            f"source. To load it as it is, {AS_IT_IS}, and save the model again; a state dict that you changed yourself loads without its entry {DIGEST}."
        )
    if config.check_base_weights:
        check_base(adapter_name, samples)


def _check_tensor(adapter_name: str, module: str, kind: str, own: Tensor, found: Tensor | None) -> None:
    if found is None:
        raise ValueError(
            f"Adapter '{adapter_name}': the file has no tensor {kind} for module '{module}'; it is incomplete or from another model."
        )
    if found.shape != own.shape:
        raise ValueError(
            f"Adapter '{adapter_name}': tensor {kind} of module '{module}' has shape {tuple(found.shape)}, this base and config need "
            f"{tuple(own.shape)}; load it on the base it was trained on."
        )


def _check_places(
    model: nn.Module, config: GoatConfig, adapter_name: str, state_dict: dict[str, Tensor], vouched: bool
) -> None:
    """Refuse tensors without a place, those that would take the place of a weight of the base, and those of a kind that the place does not hold.

    PEFT drops the first and loads the others. Embeddings it saves of its own accord where the vocabulary grew, or when asked; `vouched` says that
    the tensors came with a digest, so that these were saved with the adapter.
    """
    places = _places(model)
    wrappers = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)
    )
    embeddings = _embedding_names(model)
    for key, tensor in state_dict.items():
        name = key if key in places else key.removeprefix(WHOLE)
        parts = name.split(".")
        embedding = name.startswith(embeddings) or key.startswith(embeddings)
        if embedding and vouched and "modules_to_save" in parts and name not in places:
            continue  # PEFT saves a trained embedding twice, once under a name that it has no use for
        if name not in places or (parts[-1].startswith(PREFIX) and parts[-1] != adapter_name):
            raise ValueError(
                f"Adapter '{adapter_name}': the file's tensor {key} has no place in this base and config; load it on the base it was trained on."
            )
        own = len(parts) > 1 and parts[-2].startswith(PREFIX) and parts[-1] == adapter_name
        bias = config.bias != "none" and parts[-1] == "bias"
        module = name.startswith(wrappers) and "original_module" not in parts
        if not (own or bias or module or (embedding and vouched)):
            way = (
                f"nothing in it says that the embeddings were saved with the adapter. To let them replace the base's, {AS_IT_IS}"
                if embedding
                else "GOAT adapters hold none. Take the tensor out, or save the adapter again"
            )
            raise ValueError(
                f"Adapter '{adapter_name}': the file's tensor {key} would replace a weight of the base, and {way}."
            )
        _check_kind(adapter_name, key, tensor, places[name], own)


def _check_kind(adapter_name: str, key: str, tensor: Tensor, place: Tensor, own: bool) -> None:
    """Refuse a dtype of another class than the place's, and values that are no numbers where something is trained; a buffer may hold infinities."""
    found, wanted = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, place.dtype))
    if tensor.dtype not in STORED if own else _dtype_class(tensor.dtype) != _dtype_class(place.dtype):
        raise ValueError(
            f"Adapter '{adapter_name}': tensor {key} holds {found}, and its place {wanted}; the file is damaged, copy it again from its source."
        )
    if (own or isinstance(place, nn.Parameter)) and tensor.dtype in STORED and not torch.isfinite(tensor).all():
        raise ValueError(
            f"Adapter '{adapter_name}': tensor {key} holds NaN or infinite values; the file is damaged, copy it again from its source."
        )


def _dtype_class(dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "complex" if dtype.is_complex else "integer"


def _places(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, and what trained modules save beside them (quantised ones do)."""

    def all_of() -> Iterator[tuple[str, Tensor]]:
        yield from model.named_parameters(remove_duplicate=False)
        for name, module in model.named_modules(remove_duplicate=False):
            prefix = f"{name}." if name else ""
            for buffer, tensor in module._buffers.items():
                if tensor is not None and buffer not in module._non_persistent_buffers_set:
                    yield f"{prefix}{buffer}", tensor
            if isinstance(module, AuxiliaryTrainingWrapper):
                for key, value in module.state_dict(prefix=prefix, keep_vars=True).items():
                    if isinstance(value, Tensor):
                        yield key, value

    return dict(all_of())


def _embedding_names(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names under which PEFT saves a transformers model's embeddings."""
    layers = []
    for method in ("get_input_embeddings", "get_output_embeddings"):
        try:
            layers.append(getattr(model, method)())
        except (AttributeError, NotImplementedError):  # no transformers model, or one without
            continue
    return tuple(
        f"{name}."
        for name, module in model.named_modules(remove_duplicate=False)
        if any(module is layer for layer in layers)
    )
