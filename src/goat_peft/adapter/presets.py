"""Named settings of `GoatConfig`, each with its source. Fields a preset does not name keep the config's defaults."""

from collections.abc import Callable, Mapping
from typing import Any

PAPER: dict[str, Any] = {
    "num_experts": 8,
    "top_k": 2,
    "init_weights": "goat",
    "scaling": "paper",
    "eta": 1.0,
    "rho": 10.0,
    "router_aux_loss_coef": 1e-3,
    "router_aux_loss_reduction": "mean",
    "lora_dropout": 0.05,
}


def paper(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's settings (METHOD section 3): theorem scaling, balance coefficient 1e-3."""
    return PAPER | dict(overrides)


def released(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' released code (METHOD section 1, last paragraph): scale `alpha / d`; its balance loss is `k` times the paper's and summed over
    layers. What it does by accident (padding counted, the residual rounded into a bfloat16 base) is not reproduced.
    """
    chosen = PAPER | {"scaling": "lora", "router_aux_loss_reduction": "sum"} | dict(overrides)
    if "router_aux_loss_coef" not in overrides:
        chosen["router_aux_loss_coef"] = PAPER["router_aux_loss_coef"] * chosen["top_k"]
    return _with_alpha(chosen)


def _with_alpha(chosen: dict[str, Any]) -> dict[str, Any]:
    """Alpha is twice the total rank in every setting of the paper (METHOD section 3), so that `alpha / d` is 16 for 8 experts."""
    return {"lora_alpha": 2 * chosen.get("r", 8)} | chosen


def soft(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Every expert for every token, weighted by a softmax whose router starts from zero: the start is the base, token by token, and each expert's mean
    weight times `alpha / d` is the 2 of a LoRA. The segments are smaller than the paper's (rho 100), and there is no load to balance.
    """
    chosen = {"router": "softmax", "init_router": "zero", "scaling": "lora", "rho": 100.0, "router_aux_loss_coef": 0.0}
    return _with_alpha(PAPER | chosen | dict(overrides))


def soft_zero(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`soft` with every B = 0 instead of segments of the weight: no decomposition and no residual. docs/evidence.md has what it does."""
    return soft({"init_weights": "lora"} | dict(overrides))


BASELINE: dict[str, Any] = PAPER | {
    "init_weights": "lora",
    "scaling": "lora",
    "router_aux_loss_coef": 0.0,
}


def molora(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """MoLoRA (arXiv 2309.05444) as METHOD section 2 has it: Kaiming A, zero B, 2 of 8 experts, scale `alpha / d`; its paper has no balance loss."""
    return _with_alpha(BASELINE | dict(overrides))


def hydralora(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """HydraLoRA (arXiv 2404.19245) as METHOD section 2 counts it: one A of rank d, a B per expert, softmax over all experts, no balance loss."""
    return _with_alpha(BASELINE | {"router": "softmax", "shared_A": True} | dict(overrides))


def adamole(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """AdaMoLE (arXiv 2405.00361): experts above a learned threshold, else as MoLoRA. It trains with a balance loss; the coefficient 1e-3 is GOAT's."""
    chosen = BASELINE | {"router": "threshold", "router_aux_loss_coef": PAPER["router_aux_loss_coef"]} | dict(overrides)
    return _with_alpha(chosen)


ONE_EXPERT: dict[str, Any] = {
    "num_experts": 1,
    "top_k": 1,
    "scaling": "lora",
    "rho": 1.0,
    "router_aux_loss_coef": 0.0,
}


def milora(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """MiLoRA (arXiv 2406.09044): the smallest singular triplets move from the weight into one LoRA, scale `alpha / r`."""
    return ONE_EXPERT | {"init_weights": "minor"} | dict(overrides)


def pissa(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """PiSSA (arXiv 2404.02948) as one of our segments: the largest singular triplets, in full, scale `alpha / r`."""
    return ONE_EXPERT | {"init_weights": "principal"} | dict(overrides)


PRESETS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "paper": paper,
    "released": released,
    "soft": soft,
    "soft-zero": soft_zero,
    "molora": molora,
    "hydralora": hydralora,
    "adamole": adamole,
    "milora": milora,
    "pissa": pissa,
}
