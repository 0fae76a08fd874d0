"""GOAT on quantised bases: what it computes, what it leaves alone, and what comes back from disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, get_peft_model
from quantised_bases import KINDS, LINEARS, stored, tiny
from torch import nn

from goat_peft import GoatConfig
from goat_peft.adapter.layer import GoatLayer
from goat_peft.adapter.quantized import keep_trainable
from goat_peft.ops.reference import routed_experts_reference

IDS = torch.arange(24).reshape(2, 12) * 7 % 64


def adapted(kind: str, seed: int = 0, **settings: object) -> nn.Module:
    config = {"r": 8, "num_experts": 4, "top_k": 2, "target_modules": LINEARS, "task_type": "CAUSAL_LM"} | settings
    return get_peft_model(tiny(kind, seed), GoatConfig(**config))


def trained(model: nn.Module) -> nn.Module:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_experts_start_from_the_dequantised_weight(kind: str) -> None:
    """`s B A` of an expert is 1/rho of its segment of the SVD of the rounded weight, and not of the weight before rounding."""
    layer = next(m for m in adapted(kind).modules() if isinstance(m, GoatLayer) and m.name.endswith("up_proj"))
    base = layer.get_base_layer()
    rounded = base(torch.eye(64)).T.detach().double()  # what the base really multiplies by
    U, S, V = torch.linalg.svd(rounded, full_matrices=False)
    start, rank = 64 // 4, 2  # of the second expert
    wanted = U[:, start : start + rank] * S[start : start + rank] @ V[start : start + rank] / 10
    experts = layer.experts("default")
    found = experts.scale[1] * experts.B[:, rank : 2 * rank] @ experts.A[rank : 2 * rank]
    tolerance = 0.02 if kind == "int8" else 1e-4  # its forward rounds the input as well
    assert torch.linalg.norm(found.double() - wanted) < tolerance * torch.linalg.norm(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_are_the_bases_own_plus_the_reference(kind: str) -> None:
    layer = next(m for m in adapted(kind).modules() if isinstance(m, GoatLayer) and m.name.endswith("down_proj"))
    for tensors in (layer.goat_A, layer.goat_B, layer.goat_router):
        nn.init.normal_(tensors["default"], std=0.1)
    x, grad = torch.randn(2, 9, 128), torch.randn(2, 9, 64)
    own = x.clone().requires_grad_()
    base_output = layer.base_layer(own)
    (base_grad,) = torch.autograd.grad(base_output, own, grad)
    experts = layer.experts("default")
    inputs = [t.detach().double().requires_grad_() for t in (x, experts.A, experts.B, experts.router)]
    added, _ = routed_experts_reference(
        *inputs, experts.scale.double(), experts.residual_A.double(), experts.residual_B.double(), 2
    )
    wanted = list(torch.autograd.grad(added, inputs, grad.double()))
    wanted[0] += base_grad.double()

    given = x.clone().requires_grad_()
    output = layer(given)
    trained = [layer.goat_A["default"], layer.goat_B["default"], layer.goat_router["default"]]
    torch.testing.assert_close(output.double(), base_output.double() + added, rtol=1e-4, atol=1e-5)
    for found, want in zip(torch.autograd.grad(output, [given, *trained], grad), wanted, strict=True):
        torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given.detach(), x, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_stays_bit_for_bit(kind: str) -> None:
    base = tiny(kind).eval()
    with torch.no_grad():
        wanted = base(input_ids=IDS).logits
    before = stored(base)
    model = get_peft_model(base, GoatConfig(r=8, num_experts=4, target_modules=LINEARS, task_type="CAUSAL_LM"))
    trained(model)
    with torch.no_grad():
        changed = model(input_ids=IDS).logits
        with model.disable_adapter():
            disabled = model(input_ids=IDS).logits
        unloaded = model.unload()(input_ids=IDS).logits
    assert not torch.equal(changed, wanted)
    assert torch.equal(disabled, wanted) and torch.equal(unloaded, wanted)
    after = stored(base)
    assert before.keys() == after.keys() and len(before) >= 7
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_comes_back_bit_for_bit(kind: str, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    model = trained(adapted(kind))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny(kind), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_another_base_is_refused_and_the_one_before_rounding_is_not(kind: str, tmp_path: Path) -> None:
    adapted(kind).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trained on another base"):
        PeftModel.from_pretrained(tiny(kind, seed=1), tmp_path)
    other = "nf4" if kind == "torchao-int8" else "torchao-int8"
    pytest.importorskip("bitsandbytes" if other == "nf4" else "torchao")
    PeftModel.from_pretrained(tiny(other), tmp_path)  # the same weights, rounded otherwise


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(kind: str) -> None:
    grads = []
    for checkpointing in (False, True):
        model = adapted(kind).train()
        if checkpointing:
            model.base_model.model.gradient_checkpointing_enable()
        for _ in range(2):  # in the second forward layers may work in groups
            model.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_a_4_bit_base_passes_gradients_on_after_an_evaluation() -> None:
    """On CPUs with AVX-512 BF16 bitsandbytes rewrites 4-bit weights in the first forward without gradients, and passes none on from then."""
    pytest.importorskip("bitsandbytes")
    model = adapted("nf4")
    grads = []
    for _ in range(2):
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        first = next(p for p in model.parameters() if p.requires_grad)
        grads.append(first.grad.clone())
        model.zero_grad()
        with torch.no_grad():
            model.eval()(input_ids=IDS)
    assert torch.equal(*grads)


def test_rewritten_4_bit_weights_are_refused() -> None:
    linear = nn.Linear(4, 4)
    linear.support_avx512bf16_for_cpu = True
    keep_trainable(linear)
    assert linear.support_avx512bf16_for_cpu is False
    linear.weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    with pytest.raises(ValueError, match="load the base again and call"):
        keep_trainable(linear)
