"""What a launch with a sharding engine (FSDP2, DeepSpeed) changes in a run: precision, and where the weights are.

Accelerate's launcher says which engine a launch uses. An engine told to train in bfloat16 would round the experts and routers to it, which stay
float32; so autocast is put around the model's own forward instead, as it is in one process.
"""

from __future__ import annotations

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ..adapter.together import whole
from ..errors import UserError
from ..recipes.schema import Training
from ..tasks import processes


def shards() -> bool:
    """Whether this launch spreads weights or optimiser state over its processes."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def check_precision(settings: Training) -> None:
    """Raise `UserError` where float16 cannot be trained in: on a CPU, and under an engine, whose loss scale would round the experts."""
    if settings.fp16 and not torch.accelerator.is_available():
        raise UserError("training.fp16=True: needs a GPU; on a CPU use training.bf16=true or neither")
    if settings.fp16 and shards():
        raise UserError(
            "training.fp16=True: works in one process and with ddp; with fsdp2, zero2 and zero3 use training.bf16=true"
        )


def check_graphs(settings: Training) -> None:
    """Raise `UserError` where steps cannot be captured: with several processes or an engine."""
    if not settings.cuda_graphs:
        return
    if processes.count() > 1 or shards():
        raise UserError(
            "training.cuda_graphs=True: works in one process without an engine; set it to false for this launch"
        )


def autocast_inside(model: nn.Module) -> None:
    """Make the model's own forward run in bfloat16 autocast, inside whatever an engine wraps around it."""
    device = next(model.parameters()).device.type
    model.forward = torch.autocast(device, torch.bfloat16)(model.forward)


def whole_trained_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict of what is trained, and of every buffer, whole and on the CPU; every process of the launch must call this.

    The frozen base is left out: nothing that is saved holds it.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with whole(trained):
        state = {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}
        return {name: _whole(tensor).detach().cpu().clone() for name, tensor in state.items()}


def let_go() -> None:
    """Models loaded from now on are whole again, whatever the engine did to those before."""
    unset_hf_deepspeed_config()


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
