"""In a launch of several processes, initial values can be computed once and be the same in all of them, bit for bit: ask for it by `initialize_together`.

The SVD of a layer is done by one process, the layers shared out between processes, and broadcast; what is drawn at random comes from the first. This is
asked for, and not done wherever there is a process group, since the processes wait for one another: a model that only one of them makes, to score or
export it, must not wait for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from peft.config import PeftConfig
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from .config import GoatConfig
    from .layer import GoatLayer

Found = TypeVar("Found")

_asked_for = False

# Settings that no initial value follows from, or that show in the layers' names and sizes.
_OTHER = {entry.name for entry in fields(PeftConfig)} | {
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias", "lora_dropout", "router_aux_loss_coef",
    "router_aux_loss_reduction", "check_base_weights", "check_integrity", "format_version", "weights_digest", "settings_digest",
}  # fmt: skip


@contextmanager
def initialize_together() -> Iterator[None]:
    """Inside the context, adapters that are added get their initial values from all processes of the launch at once: one SVD for each layer.

    Every process has to add the same adapters in it, or those that do wait for the others. Changes nothing where there is no process group. If it
    fails in one process, it raises in all.
    """
    global _asked_for
    before, _asked_for = _asked_for, True
    try:
        yield
    finally:
        _asked_for = before


def processes() -> int:
    """How many processes train together."""
    launched = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if launched else 1


def whole(parameters: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """Context in which parameters are whole that DeepSpeed ZeRO-3 has parted among processes; all of them must enter it."""
    parted = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not parted:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parted, modifier_rank=None)


def whole_weights(layers: Iterable[nn.Module]) -> AbstractContextManager[Any]:
    """`whole` for the weights of these base linears."""
    return whole(layer.weight for layer in layers)  # type: ignore[misc]


def together_wanted() -> bool:
    """Whether adapters that are added now are initialised by all processes of a launch at once."""
    return _asked_for and processes() > 1


def initialize_layers(layers: list[GoatLayer], adapter_name: str, together: bool) -> Iterator[GoatLayer]:
    """`layer.initialize` for all `layers`; yields those that are done. By this process alone, or `together` with the others, which all come here.

    Together: where processes hold other layers or settings than the first, each works for itself; where they hold other weights, as when only the
    first has read them, the first computes all.
    """
    if not together:
        yield from _each(layers, lambda layer: layer.initialize(adapter_name))
        return
    plans = _in_all(lambda: _plan(layers, adapter_name))
    if not _alike(plans):
        failures: list[Exception] = []

        def alone(layer: GoatLayer) -> None:
            try:
                if not failures:  # else only gathered, which the other processes wait for
                    layer.initialize(adapter_name)
            except Exception as error:  # noqa: BLE001 - raised below, in all processes
                failures.append(error)

        yield from _each(layers, alone)
        _in_all(lambda: _raise_first(failures))
        return
    if not layers:
        return
    config = layers[0].configs[adapter_name]
    # Segments drawn at random come from the first process, as all other draws do.
    shared_out = config.uses_residual and config.init_weights != "random" and _hold_the_same(layers)
    own = distributed.get_rank()
    for start in range(0, len(layers), processes()):
        some = layers[start : start + processes()]
        owners = list(range(len(some))) if shared_out else [0] * len(some)

        def compute(some: list[GoatLayer] = some, owners: list[int] = owners) -> None:
            for owner, layer in zip(owners, some, strict=True):
                layer.initialize(adapter_name, computes=owner == own)

        with whole_weights(layer.get_base_layer() for layer in some):
            _in_all(compute)
        for owner, layer in zip(owners, some, strict=True):
            _spread(layer, adapter_name, owner)
            yield layer


def _each(layers: list[GoatLayer], work: Callable[[GoatLayer], None]) -> Iterator[GoatLayer]:
    """Do `work` on one layer after the other, its base weight whole meanwhile."""
    for layer in layers:
        with whole_weights([layer.get_base_layer()]):
            work(layer)
        yield layer


def _raise_first(failures: list[Exception]) -> None:
    if failures:
        raise failures[0]


def _plan(layers: list[GoatLayer], adapter_name: str) -> list[Any]:
    """What has to be the same in all processes for them to share the work."""
    return [
        (layer.name, layer.in_features, layer.out_features, str(layer.goat_A[adapter_name].dtype), _settings(layer.configs[adapter_name]))
        for layer in layers
    ]  # fmt: skip


def _settings(config: GoatConfig) -> dict[str, Any]:
    """Every setting that initial values may depend on; a new one counts until it is said not to."""
    return {entry.name: getattr(config, entry.name) for entry in fields(config) if entry.name not in _OTHER}


def _in_all(work: Callable[[], Found]) -> list[Found]:
    """What `work` returns in each process; where it raises in one, all of them raise, so that none waits for an answer that does not come."""
    failure, mine = None, None
    try:
        mine = work()
    except Exception as error:  # noqa: BLE001 - raised again once the others know
        failure = error
    told = None if failure is None else f"{type(failure).__name__}: {failure}"
    found: list[Any] = [None] * processes()
    distributed.all_gather_object(found, (told, mine))
    if failure is not None:
        raise failure
    for rank, (what, _) in enumerate(found):
        if what is not None:
            raise RuntimeError(f"Adding the adapter failed in process {rank}: {what}")
    return [value for _, value in found]


def _alike(values: list[Any]) -> bool:
    return all(value == values[0] for value in values)


def _hold_the_same(layers: list[GoatLayer]) -> bool:
    """Whether all processes hold the same base weights, as far as samples of them tell."""
    if any(hasattr(layer.get_base_layer().weight, "ds_id") for layer in layers):
        return True  # parts of one weight
    return _alike(_in_all(lambda: [layer.base_sample().tolist() for layer in layers]))


def _spread(layer: GoatLayer, adapter_name: str, owner: int) -> None:
    """Give every process the factors of process `owner`, and what was drawn by the first."""
    residual = layer.configs[adapter_name].uses_residual
    for name in (*layer.adapter_layer_names, "goat_scale", "goat_base_sample"):
        tensors = getattr(layer, name)
        if adapter_name in tensors:
            computed = residual and name in ("goat_A", "goat_B", "goat_scale")
            _broadcast(tensors[adapter_name].data, owner if computed else 0)
    if residual:
        layer.goat_residual_A[adapter_name].copy_(layer.goat_A[adapter_name].data)
        layer.goat_residual_B[adapter_name].copy_(layer.goat_B[adapter_name].data)


def _broadcast(tensor: Tensor, source: int) -> None:
    """Overwrite `tensor` with that of process `source`, through a device that the processes can talk over."""
    reached = str(distributed.get_backend_config())  # such as "cpu:gloo,cuda:nccl"
    if f"{tensor.device.type}:" in reached:
        distributed.broadcast(tensor, source)
        return
    carried = tensor.to(torch.accelerator.current_accelerator())
    distributed.broadcast(carried, source)
    tensor.copy_(carried)
