"""What PEFT promises of every tuner, on plain modules and transformers models."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import IDENTITY, MATRIX, X, base_of, build, sgd, trains
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from tiny import MLP, adapted, adapter_tensors, assert_same, seeded, settings
from torch import nn

from goat_peft import GoatConfig
from goat_peft.adapter import GoatLinear

# ---- initial state ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", IDENTITY)
def test_identity_at_the_start_and_not_with_init_weights_false(case: str) -> None:
    expected = base_of(case).eval()(X)
    torch.testing.assert_close(build(case).eval()(X=X), expected)
    assert not torch.allclose(build(case, init_weights=False).eval()(X=X), expected, atol=1e-4)


@pytest.mark.parametrize("case", MATRIX)
def test_attributes(case: str) -> None:
    model = build(case)
    targets = sorted({"lin0"} if MATRIX[case][1]["target_modules"] == "lin0" else MATRIX[case][1]["target_modules"])
    assert model.base_model.targeted_module_names == targets
    assert (
        model.active_adapter == "default"
        and model.active_adapters == ["default"]
        and model.base_model.prefix == "goat_"
    )
    for name in targets:
        layer = getattr(model.base_model.model, name)
        assert isinstance(layer, GoatLinear) and isinstance(layer, BaseTunerLayer)
        assert {"in_features", "out_features", "weight", "bias"} <= set(dir(layer))
        assert (layer.in_features, layer.out_features) == ((10, 16) if name == "lin0" else (16, 12))
        assert not layer.merged and not layer.disable_adapters
        assert "goat." in repr(layer)


def test_layer_and_model_status() -> None:
    model = build("both")
    model.add_adapter("other", settings(target_modules=["lin0"]))
    layers = {row.name: row for row in model.get_layer_status()}
    assert set(layers) == {"model.lin0", "model.lin1"}
    assert layers["model.lin0"].available_adapters == ["default", "other"] and layers[
        "model.lin1"
    ].available_adapters == ["default"]
    assert layers["model.lin0"].requires_grad == {"default": True, "other": False}
    status = model.get_model_status()
    assert (status.peft_types, status.adapter_model_type) == ({"default": "GOAT", "other": "GOAT"}, "GoatModel")
    assert (
        status.enabled
        and status.active_adapters == ["default"]
        and status.merged_adapters == []
        and status.num_adapter_layers == 2
    )
    assert status.trainable_params == sum(p.numel() for p in model.parameters() if p.requires_grad)


# ---- training --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MATRIX)
def test_only_and_all_adapter_parameters_are_updated(case: str) -> None:
    """With weight decay in the optimizer, which must reach nothing frozen."""
    model = build(case)
    before = copy.deepcopy(model)
    buffers = {name: t.clone() for name, t in model.named_buffers()}
    sgd(model)
    before_parameters = dict(before.named_parameters())
    for name, p in model.named_parameters():
        assert p.requires_grad == trains(name), name
        if trains(name):
            assert not torch.allclose(p, before_parameters[name], atol=1e-4, rtol=1e-4), name
        else:
            assert torch.equal(p, before_parameters[name]), name
    for name, t in model.named_buffers():
        assert torch.equal(t, buffers[name]), name


@pytest.mark.parametrize("case", MATRIX)
def test_parameters_and_outputs_after_loading(case: str, tmp_path: Path) -> None:
    model = build(case)
    sgd(model, lr=0.05)
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    loaded = PeftModel.from_pretrained(base_of(case), tmp_path)
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
    assert torch.equal(loaded(X=X), model(X=X))


@pytest.mark.parametrize("bias", ["none", "all", "goat_only"])
def test_biases_train_and_are_saved_as_asked(bias: str, tmp_path: Path) -> None:
    model = build("first", bias=bias)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sgd(model)
    moved = {name for name, p in model.named_parameters() if name.endswith("bias") and not torch.equal(p, before[name])}
    assert {name.split(".")[-2 if "base_layer" not in name else -3] for name in moved} == {
        "none": set(),
        "all": {"lin0", "lin1"},
        "goat_only": {"lin0"},
    }[bias]
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(base_of("first"), tmp_path)(X=X), model(X=X))
    if bias != "none":
        with pytest.raises(ValueError, match="only 1 adapter"):
            model.add_adapter("other", settings(target_modules=["lin0"], bias=bias))


# ---- disabling, merging, unloading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MATRIX)
def test_disable_adapters(case: str) -> None:
    base = base_of(case).eval()(X)
    model = build(case)
    sgd(model)
    changed = model(X=X)
    assert not torch.allclose(changed, base, atol=1e-4)
    with model.disable_adapter():
        assert torch.equal(model(X=X), base)
        with model.disable_adapter():
            assert torch.equal(model(X=X), base)
        assert torch.equal(model(X=X), base)
    assert torch.equal(model(X=X), changed)


@pytest.mark.parametrize("method", ["merge_and_unload", "merge_adapter"])
def test_merging_raises_with_the_reason_and_changes_nothing(method: str) -> None:
    model = build("both")
    sgd(model)
    expected = model(X=X)
    with pytest.raises(NotImplementedError, match="chosen per token by a router"):
        getattr(model, method)()
    assert torch.equal(model(X=X), expected)


@pytest.mark.parametrize("case", MATRIX)
def test_unload_gives_the_module_back(case: str) -> None:
    model = build(case)
    sgd(model)
    with model.disable_adapter():
        base = model(X=X)
    trained_head = (
        {"lin1": model.base_model.model.lin1.modules_to_save["default"]} if "modules_to_save" in MATRIX[case][1] else {}
    )
    bare = model.unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in bare.modules())
    assert not bare._forward_hooks and not bare._forward_pre_hooks
    if trained_head:
        assert bare.lin1 is not base_of(case).lin1
    else:
        assert torch.equal(bare(X), base)


# ---- several adapters ------------------------------------------------------------------------------------------------------------------


def test_multiple_active_adapters_add_up() -> None:
    model = build("first", init_weights=False)
    model.add_adapter("other", settings(target_modules=["lin0"], init_weights=False, num_experts=2))
    lin0 = model.base_model.model.lin0
    x = torch.randn(5, 10)
    alone = {}
    with model.disable_adapter():
        base = lin0(x)
    for name in ("default", "other"):
        model.set_adapter(name)
        alone[name] = lin0(x) - base
    model.base_model.set_adapter(["default", "other"])
    assert model.active_adapters == ["default", "other"]
    torch.testing.assert_close(lin0(x) - base, alone["default"] + alone["other"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone["default"], alone["other"])


def test_adding_an_adapter_keeps_what_trains() -> None:
    model = build("first")
    model.add_adapter("other", settings(target_modules=["lin0", "lin1"]))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"base_model.model.lin0.{kind}.default" for kind in ("goat_A", "goat_B", "goat_router")
    }
    model.set_adapter("other")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 6 and all(name.endswith(".other") for name in trained)
    model.set_requires_grad("default")
    assert sum(p.requires_grad for p in model.parameters()) == 9
    model.set_requires_grad(["default", "other"], requires_grad=False)
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("other", settings(target_modules=["lin0"]))


def test_adapters_on_different_modules() -> None:
    model = build("first", init_weights=False)
    model.add_adapter("other", settings(target_modules=["lin1"], init_weights=False))
    outputs = {}
    for name in ("default", "other", "default"):
        model.set_adapter(name)
        outputs.setdefault(name, model.eval()(X=X))
        assert torch.equal(model(X=X), outputs[name])
        assert model.base_model.active_adapters == [name]
    assert not torch.allclose(outputs["default"], outputs["other"])


@pytest.mark.parametrize("active", [True, False])
def test_delete_adapter(active: bool) -> None:
    model = build("both")
    model.add_adapter("gone", settings(target_modules=["lin0", "lin1"], init_weights=False))
    expected = model.eval()(X=X)
    if active:
        model.set_adapter("gone")
        with pytest.warns(UserWarning, match="(?i)active"):
            model.delete_adapter("gone")
    else:
        model.delete_adapter("gone")
    assert "gone" not in model.peft_config
    assert not [name for name in model.state_dict() if "gone" in name]
    for layer in (model.base_model.model.lin0, model.base_model.model.lin1):
        assert "gone" not in layer.configs and "gone" not in layer.pending
    assert torch.equal(model(X=X), expected)
    with pytest.raises(ValueError, match="gone"):
        model.delete_adapter("gone")


def test_another_tuner_beside_it_is_refused_cleanly() -> None:
    model = build("first")
    with pytest.raises((ValueError, TypeError)):
        model.add_adapter("lora", LoraConfig(target_modules=["lin0"]))
    assert list(model.peft_config) == ["default"]


def test_save_selected_adapters(tmp_path: Path) -> None:
    model = build("first")
    model.add_adapter("other", settings(target_modules=["lin0"]))
    model.save_pretrained(tmp_path, selected_adapters=["other"])
    assert (tmp_path / "other" / "adapter_model.safetensors").exists() and not (
        tmp_path / "adapter_model.safetensors"
    ).exists()
    with pytest.raises(ValueError, match="absent"):
        model.save_pretrained(tmp_path, selected_adapters=["absent"])


@pytest.mark.parametrize("name", ["goat", "goat_A", "lin0", "def"])
def test_adapter_names_that_look_like_parts_of_a_key(name: str, tmp_path: Path) -> None:
    model = get_peft_model(seeded(MLP), settings(target_modules=["lin0"], init_weights=False), adapter_name=name)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / name / "adapter_model.safetensors")
    assert set(tensors) - {"base_model.model.goat_digest"} == {
        f"base_model.model.lin0.{kind}"
        for kind in ("goat_A", "goat_B", "goat_router", "goat_scale", "goat_base_sample")
    }
    loaded = PeftModel.from_pretrained(seeded(MLP), tmp_path / name, adapter_name="else")
    assert torch.equal(loaded(X=X), model.eval()(X=X))


def test_state_dict_keys_carry_no_adapter_name() -> None:
    state = get_peft_model_state_dict(build("goat init"))
    assert set(state) - {"base_model.model.goat_digest"} == {
        f"base_model.model.lin{i}.goat_{kind}"
        for i in (0, 1)
        for kind in ("A", "B", "router", "residual_A", "residual_B", "scale", "base_sample")
    }


def test_existing_model_card_is_kept(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n")
    build("first").save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "My own words." in card and "library_name: peft" in card


# ---- which modules ---------------------------------------------------------------------------------------------------------------------


def names_of(**overrides: Any) -> set[str]:
    return set(adapted(**overrides).base_model.targeted_module_names)


def test_target_modules_by_list_expression_and_all_linear() -> None:
    every = names_of()
    assert (
        every == names_of(target_modules="all-linear")
        and len(every) == 14
        and not any("lm_head" in name for name in every)
    )
    assert names_of(target_modules=["q_proj"]) == {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)}
    assert names_of(target_modules=r".*layers\.1\.mlp\.(up|down)_proj") == {
        f"model.layers.1.mlp.{side}_proj" for side in ("up", "down")
    }
    assert names_of(target_modules=["q_proj", "v_proj"], layers_to_transform=[1]) == {
        f"model.layers.1.self_attn.{side}_proj" for side in "qv"
    }
    assert names_of(target_modules=["q_proj"], layers_to_transform=0, layers_pattern="layers") == {
        "model.layers.0.self_attn.q_proj"
    }
    assert names_of(exclude_modules=["down_proj"]) == {name for name in every if "down_proj" not in name}
    assert names_of(target_modules="all-linear", exclude_modules=r".*layers\.0.*") == {
        name for name in every if "layers.1" in name
    }


def test_modules_to_save_train_and_switch() -> None:
    model = build("with a trained module")
    head = model.base_model.model.lin1
    assert all(p.requires_grad for p in head.modules_to_save["default"].parameters())
    assert not any(p.requires_grad for p in head.original_module.parameters())


@pytest.mark.parametrize(
    ("module", "kind"),
    [(nn.Conv2d(3, 8, 3), "Conv2d"), (nn.Embedding(9, 8), "Embedding"), (nn.LayerNorm(8), "LayerNorm")],
)
def test_unsupported_modules_are_named(module: nn.Module, kind: str) -> None:
    model = nn.Sequential()
    model.add_module("it", module)
    with pytest.raises(ValueError, match=f"Target module 'it' is a {kind}, which is not supported.*nn.Linear"):
        get_peft_model(model, settings(target_modules=["it"]))


def test_unknown_and_missing_target_modules() -> None:
    with pytest.raises(ValueError, match="(?s)absent.*not found"):
        get_peft_model(seeded(MLP), settings(target_modules=["absent"]))
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        get_peft_model(seeded(MLP), settings())


# ---- copies and compilation ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["both", "goat init", "conv1d"])
def test_deepcopy_and_pickle(case: str) -> None:
    model = build(case)
    sgd(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X=X), model(X=X))
        assert_same(adapter_tensors(twin), adapter_tensors(model))
        sgd(twin, steps=1)
        assert not torch.equal(twin(X=X), model(X=X))


def test_torch_compile_gives_the_same_output_and_gradients() -> None:
    plain, compiled = build("goat init", top_k=2), build("goat init", top_k=2)
    optimised = torch.compile(compiled, backend="aot_eager")
    expected, found = plain.train()(X=X), optimised.train()(X=X)
    torch.testing.assert_close(found, expected)
    expected.sum().backward()
    found.sum().backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(other.grad, one.grad, msg=name)


def test_a_lazily_initialised_adapter_is_complete_before_it_is_saved() -> None:
    config = GoatConfig(**settings(target_modules=["lin0"]).to_dict())
    model = get_peft_model(seeded(MLP), config)
    assert all(t.any() for t in get_peft_model_state_dict(model).values())
