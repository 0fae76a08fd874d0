"""Save and load: exactly, without an SVD, and only onto the base the adapter belongs to."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from tiny import (
    adapted,
    adapter_tensors,
    assert_same,
    gradients,
    padded_batch,
    seeded,
    settings,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tiny_qwen2,
    train,
)
from torch import Tensor, nn

from goat_peft import GoatConfig

BATCH = padded_batch()
FILE = "adapter_model.safetensors"


@contextmanager
def no_decomposition() -> Iterator[None]:
    """Any SVD or eigen-decomposition raises."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a decomposition ran while loading")

    names = ("svd", "svdvals", "eigh", "eigvalsh", "qr")
    with (
        mock.patch.multiple(torch.linalg, **{name: refuse for name in names}),
        mock.patch.multiple(torch, svd=refuse, svd_lowrank=refuse, pca_lowrank=refuse),
    ):
        yield


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(**{name: t for name, t in BATCH.items() if name != "labels"}).logits


def trained(make: Callable[..., nn.Module] = tiny_llama, **overrides: object) -> PeftModel:
    model = adapted(make, **overrides)
    losses = train(model, BATCH if make is not tiny_bert else BATCH | {"labels": torch.tensor([0, 1, 2])})
    assert losses[-1] < losses[0]
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[PeftModel, Path]:
    """A trained adapter on the seeded Llama, and where it is saved. Do not change either."""
    torch.manual_seed(0)
    model = trained()
    path = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(path)
    return model, path


@pytest.fixture
def copied(saved: tuple[PeftModel, Path], tmp_path: Path) -> Path:
    """A copy of the saved adapter, to damage."""
    for file in saved[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(path / FILE)
    change(tensors)
    save_file(tensors, path / FILE)
    return path


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize(
    ("make", "overrides"),
    [
        (tiny_llama, {}),
        (tiny_gpt2, {"init_weights": "minor"}),
        (
            tiny_bert,
            {"expert_scaling": "singular", "target_modules": ["query", "value"], "modules_to_save": ["classifier"]},
        ),
        (tiny_qwen2, {"init_weights": "lora", "lora_dropout": 0.1}),
        (tiny_llama, {"init_weights": False, "bias": "all"}),
    ],
)
def test_trained_saved_and_loaded_gives_the_same_logits(
    make, overrides: dict, low_memory: bool, tmp_path: Path
) -> None:
    model = trained(make, **overrides)
    expected = logits(model)
    assert not torch.allclose(expected, logits(seeded(make)), atol=1e-3)
    model.save_pretrained(tmp_path)
    with no_decomposition():
        torch.manual_seed(12345)
        loaded = PeftModel.from_pretrained(seeded(make), tmp_path, low_cpu_mem_usage=low_memory)
        assert torch.equal(logits(loaded), expected)
    assert_same(adapter_tensors(loaded), adapter_tensors(model))


def test_file_holds_each_tensor_once(saved: tuple[PeftModel, Path]) -> None:
    model, path = saved
    tensors = load_file(path / FILE)
    assert tensors.pop("base_model.model.goat_digest").shape == (32,)
    layers = 2 * 7
    kinds = {"goat_A", "goat_B", "goat_router", "goat_residual_A", "goat_residual_B", "goat_scale", "goat_base_sample"}
    assert {name.rsplit(".", 1)[1] for name in tensors} == kinds
    assert len(tensors) == layers * len(kinds)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    assert (path / FILE).stat().st_size < size + 64 * 1024  # header alone on top
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == sum(
        t.numel() for name, t in tensors.items() if name.endswith(("goat_A", "goat_B", "goat_router"))
    )


def test_no_pickle_is_written(saved: tuple[PeftModel, Path]) -> None:
    assert {file.name for file in saved[1].iterdir()} <= {FILE, "adapter_config.json", "README.md"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("low_memory", [False, True])
def test_base_of_another_dtype_gets_the_same_adapter(
    saved: tuple[PeftModel, Path], dtype: torch.dtype, low_memory: bool
) -> None:
    model, path = saved
    loaded = PeftModel.from_pretrained(seeded(tiny_llama).to(dtype), path, low_cpu_mem_usage=low_memory)
    found = adapter_tensors(loaded)
    for name, tensor in adapter_tensors(model).items():
        assert torch.equal(found[name].double(), tensor.double()), name
        if dtype != torch.float64:
            assert found[name].dtype == tensor.dtype == torch.float32, name
    difference = (logits(loaded).double() - logits(model).double()).norm() / logits(model).double().norm()
    assert difference < 0.05


def test_two_adapters_switched_back_and_forth(saved: tuple[PeftModel, Path], tmp_path: Path) -> None:
    _, path = saved
    other = trained(init_weights="lora", r=4, num_experts=2, top_k=1, target_modules=["q_proj", "up_proj"])
    other.save_pretrained(tmp_path)
    expected = {"first": logits(saved[0]), "second": logits(other)}
    model = PeftModel.from_pretrained(seeded(tiny_llama), path, adapter_name="first")
    model.load_adapter(tmp_path, "second")
    for name in ("first", "second", "first", "second", "first"):
        model.set_adapter(name)
        assert torch.equal(logits(model), expected[name])
    assert not torch.equal(expected["first"], expected["second"])
    model.save_pretrained(tmp_path / "both")  # one folder each
    for name, folder in (("first", "first"), ("second", "second")):
        again = PeftModel.from_pretrained(seeded(tiny_llama), tmp_path / "both" / folder)
        assert torch.equal(logits(again), expected[name])


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_disable_and_unload_restore_the_base_bit_for_bit(make) -> None:
    base = seeded(make)
    expected = logits(base)
    weights = {name: t.clone() for name, t in base.state_dict().items()}
    model = trained(make)
    assert not torch.equal(logits(model), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(model), expected)
    bare = model.unload()
    assert torch.equal(logits(bare), expected)
    found = bare.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert not bare._forward_hooks and not bare._forward_pre_hooks


def test_is_trainable_continues_the_training(saved: tuple[PeftModel, Path]) -> None:
    model, path = saved
    frozen = PeftModel.from_pretrained(seeded(tiny_llama), path)
    assert not any(p.requires_grad for p in frozen.parameters())
    going_on = PeftModel.from_pretrained(seeded(tiny_llama), path, is_trainable=True)
    same = copy.deepcopy(model)
    names = {name for name, p in same.named_parameters() if p.requires_grad}
    assert {name for name, p in going_on.named_parameters() if p.requires_grad} == names
    assert train(going_on, BATCH, steps=3) == train(same, BATCH, steps=3)
    assert_same(adapter_tensors(going_on), adapter_tensors(same))


def test_deepcopy_and_pickle_after_a_training_step() -> None:
    model = adapted()
    model.train()(**BATCH).loss.backward()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin), logits(model))
        twin.train().zero_grad()
        twin.reset_expert_usage()
        twin(**BATCH).loss.backward()
        assert_same(gradients(twin), gradients(model))
        assert [row.tokens for row in twin.expert_usage()] == [21.0] * 14  # 9 + 7 + 5 tokens, in each of 14 linears


# ---- other ways in ---------------------------------------------------------------------------------------------------------------------


def test_transformers_load_adapter(saved: tuple[PeftModel, Path]) -> None:
    model, path = saved
    bare = seeded(tiny_llama)
    base_logits = logits(bare)
    with no_decomposition():
        bare.load_adapter(str(path))
        assert torch.equal(logits(bare), logits(model))
    bare.disable_adapters()
    assert torch.equal(logits(bare), base_logits)
    bare.enable_adapters()
    assert torch.equal(logits(bare), logits(model))


def test_transformers_load_adapter_onto_another_base(saved: tuple[PeftModel, Path]) -> None:
    bare = seeded(tiny_llama, seed=7)
    bare.load_adapter(str(saved[1]))
    with pytest.raises(ValueError, match="trained on another base"):
        logits(bare)


def test_transformers_add_adapter_twice_trains_and_saves(tmp_path: Path) -> None:
    """Each call injects anew; one balance loss and one set of statistics must serve both adapters."""
    bare = seeded(tiny_llama)
    bare.add_adapter(settings(router_aux_loss_coef=1.0), adapter_name="one")
    bare.add_adapter(settings(router_aux_loss_coef=1.0, num_experts=2, target_modules=["q_proj"]), adapter_name="two")
    for name in ("one", "two"):
        bare.set_adapter(name)
        bare.train()
        with_aux = bare(**BATCH).loss
        bare.eval()
        assert with_aux.item() - bare(**BATCH).loss.item() > 0.9  # the balance loss is about 1, once
    bare.set_adapter("one")
    losses = train(bare, BATCH, steps=5)
    assert losses[-1] < losses[0]
    bare.save_pretrained(tmp_path)
    loaded = seeded(tiny_llama)
    loaded.load_adapter(str(tmp_path))
    assert torch.equal(logits(loaded), logits(bare))


def test_inject_and_set_state_dict(saved: tuple[PeftModel, Path]) -> None:
    model, _ = saved
    state = get_peft_model_state_dict(model)
    for low_memory in (False, True):
        bare = inject_adapter_in_model(settings(), seeded(tiny_llama), low_cpu_mem_usage=low_memory)
        result = set_peft_model_state_dict(bare, state, low_cpu_mem_usage=low_memory)
        assert not result.unexpected_keys and not [key for key in result.missing_keys if "goat" in key]
        assert torch.equal(logits(bare), logits(model))


def test_one_config_initialises_two_models(tmp_path: Path) -> None:
    config = settings()
    first = get_peft_model(seeded(tiny_llama), config)
    first.save_pretrained(tmp_path)
    second = get_peft_model(seeded(tiny_llama, seed=5), config)
    for model in (first, second):
        for name, tensor in adapter_tensors(model).items():
            assert tensor.any(), name
    assert not torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(logits(second), logits(seeded(tiny_llama, seed=5)))


def test_config_from_a_saved_one_initialises_on_first_use(saved: tuple[PeftModel, Path], tmp_path: Path) -> None:
    fields = json.loads((saved[1] / "adapter_config.json").read_text())
    for used_before_saving in (True, False):
        model = get_peft_model(seeded(tiny_llama), GoatConfig(**fields))
        expected = get_peft_model(seeded(tiny_llama), settings())
        if used_before_saving:
            assert not torch.equal(logits(model), logits(seeded(tiny_llama)))
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(seeded(tiny_llama), tmp_path)
        found, made = adapter_tensors(loaded), adapter_tensors(expected)
        assert_same(
            {n: t for n, t in found.items() if "router" not in n}, {n: t for n, t in made.items() if "router" not in n}
        )
        assert all(t.any() for t in found.values())


# ---- refusals --------------------------------------------------------------------------------------------------------------------------


def refusal(path: Path, base: nn.Module, error: type[Exception] = ValueError, **kwargs: object) -> str:
    with pytest.raises(error) as caught:
        PeftModel.from_pretrained(base, path, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_base_of_another_shape_is_refused(saved: tuple[PeftModel, Path]) -> None:
    message = refusal(saved[1], seeded(tiny_llama, hidden_size=64))
    assert "goat_A" in message and "(8, 32)" in message and "(8, 64)" in message and "q_proj" in message


def test_base_with_fewer_layers_is_refused(saved: tuple[PeftModel, Path]) -> None:
    shorter = seeded(tiny_llama)
    shorter.model.layers = shorter.model.layers[:1]
    message = refusal(saved[1], shorter)
    assert "layers.1." in message and "no place in this base" in message


def test_base_with_other_weights_is_refused_unless_told_otherwise(saved: tuple[PeftModel, Path]) -> None:
    _, path = saved
    message = refusal(path, seeded(tiny_llama, seed=9))
    assert "trained on another base" in message and "14 of 14" in message and "check_base_weights=False" in message
    config = GoatConfig.from_pretrained(path, check_base_weights=False)
    assert PeftModel.from_pretrained(seeded(tiny_llama, seed=9), path, config=config)


@torch.no_grad()
def test_a_fine_tuned_sibling_is_refused_and_rounding_is_not(saved: tuple[PeftModel, Path]) -> None:
    sibling = seeded(tiny_llama)
    weight = sibling.model.layers[1].mlp.up_proj.weight
    weight += 0.05 * weight.std() * torch.randn_like(weight)
    message = refusal(saved[1], sibling)
    assert "1 of 14" in message and "layers.1.mlp.up_proj" in message
    rounded = seeded(tiny_llama)
    for parameter in rounded.parameters():
        parameter.copy_(parameter.bfloat16())
    assert PeftModel.from_pretrained(rounded, saved[1])


def test_missing_tensor_is_refused(copied: Path) -> None:
    name = "base_model.model.model.layers.1.self_attn.k_proj.goat_residual_B"
    message = refusal(edit(copied, lambda tensors: tensors.pop(name)), seeded(tiny_llama))
    assert "goat_residual_B" in message and "layers.1.self_attn.k_proj" in message


def test_wrong_shape_is_refused(copied: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.k_proj.goat_router"
    message = refusal(edit(copied, lambda t: t.update({name: torch.zeros(5, 32)})), seeded(tiny_llama))
    assert "goat_router" in message and "(5, 32)" in message and "(4, 32)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["goat_A", "goat_residual_A", "goat_scale", "goat_base_sample"])
def test_damaged_values_are_refused(copied: Path, kind: str, value: float) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors[f"base_model.model.model.layers.0.self_attn.k_proj.{kind}"].view(-1)[1] = value

    message = refusal(edit(copied, damage), seeded(tiny_llama))
    assert kind in message and "NaN or infinite" in message and "layers.0.self_attn.k_proj" in message


@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_truncated_file_is_refused(copied: Path, keep: float) -> None:
    content = (copied / FILE).read_bytes()
    (copied / FILE).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(Exception, match="(?i)safetensors|header|incomplete|deserial") as caught:
        PeftModel.from_pretrained(seeded(tiny_llama), copied)
    assert "\n" not in str(caught.value)


def test_format_of_a_later_version_is_refused(copied: Path) -> None:
    fields = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(fields | {"format_version": 99}))
    assert "upgrade goat-peft" in refusal(copied, seeded(tiny_llama))


def test_another_number_of_experts_in_the_config_is_refused(copied: Path) -> None:
    fields = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(fields | {"num_experts": 2}))
    assert "GoatConfig.num_experts=2: is not the value" in refusal(copied, seeded(tiny_llama))
    (copied / "adapter_config.json").write_text(json.dumps(fields | {"num_experts": 2, "settings_digest": None}))
    assert "goat_router" in refusal(copied, seeded(tiny_llama))


def test_adding_to_a_quiet_model_prints_no_warning_about_keys(
    saved: tuple[PeftModel, Path], recwarn: pytest.WarningsRecorder
) -> None:
    PeftModel.from_pretrained(seeded(tiny_llama), saved[1])
    assert not [w for w in recwarn if "missing" in str(w.message).lower()]
