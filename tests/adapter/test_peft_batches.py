"""Dtypes, autocast, and batches that mix adapters."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from matrix import X, base_of, build
from peft import PeftModel, get_peft_model
from tiny import adapted, padded_batch, settings, tiny_llama, tiny_t5
from torch import nn

# ---- dtypes ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ["first", "goat init", "conv1d"])
def test_adapter_dtype(case: str, dtype: torch.dtype, autocast: bool, low_memory: bool, tmp_path: Path) -> None:
    def base() -> nn.Module:
        return base_of(case).to(dtype)

    config = build(case).peft_config["default"]
    expected = torch.float32 if autocast else dtype
    model = get_peft_model(base(), config, autocast_adapter_dtype=autocast)
    assert {p.dtype for name, p in model.named_parameters() if "goat_" in name} == {expected}
    assert model.eval()(X=X.to(dtype)).dtype == dtype and torch.isfinite(model(X=X.to(dtype))).all()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path, autocast_adapter_dtype=autocast, low_cpu_mem_usage=low_memory)
    assert {p.dtype for name, p in loaded.named_parameters() if "goat_" in name} == {expected}
    assert torch.equal(loaded(X=X.to(dtype)), model(X=X.to(dtype)))
    model.add_adapter("other", copy.deepcopy(config), autocast_adapter_dtype=autocast)
    assert {p.dtype for name, p in model.named_parameters() if name.endswith(".other")} == {expected}


def test_autocast_trains() -> None:
    model = adapted(router_aux_loss_coef=1.0).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**padded_batch()).loss
    loss.backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() and p.grad.any(), name
    exact = adapted(router_aux_loss_coef=1.0).train()(**padded_batch()).loss
    torch.testing.assert_close(loss.float(), exact, rtol=0.02, atol=0)


# ---- mixed batches ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [["lin0"], ["lin1"], ["lin0", "lin1"]])
def test_mixed_batch_rows_get_their_own_adapter(other: list[str]) -> None:
    model = build("first", init_weights=False)
    model.add_adapter("other", settings(target_modules=other, r=16, init_weights=False))
    model.eval()
    outputs = {}
    with model.disable_adapter():
        outputs["__base__"] = model(X=X)
    for name in ("default", "other"):
        model.set_adapter(name)
        outputs[name] = model(X=X)
    names = ["__base__", "default", "other"] * 3
    mixed = model(X=X, adapter_names=names)
    for i, name in enumerate(names):
        torch.testing.assert_close(mixed[i], outputs[name][i], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs["default"], outputs["other"], atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(model(X=X, adapter_names=names), outputs["__base__"])
    assert torch.equal(model(X=X), outputs["other"])  # the hooks are gone


def test_mixed_batch_errors() -> None:
    model = build("first").eval()
    with pytest.raises(
        ValueError, match="Length of `adapter_names` should be the same as the number of inputs, but got 2 and 9"
    ):
        model(X=X, adapter_names=["default", "__base__"])
    with pytest.raises(ValueError, match="non-existing adapter.*absent"):
        model(X=X, adapter_names=["absent"] * 9)
    with pytest.raises(ValueError, match="training mode"):
        model.train()(X=X, adapter_names=["default"] * 9)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("make", "scaling"), [(tiny_llama, 8.0), (tiny_t5, 300.0)])
def test_mixed_batch_generation(make, scaling: float, beams: int) -> None:
    model = adapted(make, init_weights=False, scaling=scaling)
    model.add_adapter("other", settings(init_weights=False, scaling=scaling))
    model.eval()
    batch = {name: t for name, t in padded_batch(side="left").items() if name != "labels"}
    kwargs = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams}
    alone = {}
    with model.disable_adapter():
        alone["__base__"] = model.generate(**batch, **kwargs)
    for name in ("default", "other"):
        model.set_adapter(name)
        alone[name] = model.generate(**batch, **kwargs)
    names = ["other", "__base__", "default"]
    mixed = model.generate(**batch, **kwargs, adapter_names=names)
    for i, name in enumerate(names):
        assert torch.equal(mixed[i], alone[name][i]), name
    assert len({tuple(tokens.flatten().tolist()) for tokens in alone.values()}) == 3
