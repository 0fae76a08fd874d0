"""Adapter folders that are damaged, or made by somebody who means harm: one clear error, nothing run, nothing silently wrong."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import fresh_base, load, logits
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from goat_peft import GoatConfig
from goat_peft.errors import UserError
from goat_peft.training.loading import load_adapter

FILE, CONFIG, PICKLE = "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"
ROUTER = "base_model.model.model.layers.0.self_attn.q_proj.goat_router"
NORM = "base_model.model.model.norm.weight"
EMBEDDING = "base_model.model.model.embed_tokens.weight"
DIGEST = "base_model.model.goat_digest"


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    """The same one-line error of PEFT's own way and of `goat`'s."""
    with pytest.raises(ValueError) as caught:
        load(folder)
    with pytest.raises(UserError) as ours:
        load_adapter(fresh_base(), folder)
    assert "\n" not in str(caught.value) and "\n" not in str(ours.value)
    assert str(caught.value) in str(ours.value) or "NaN" in str(ours.value)
    return str(caught.value)


def test_the_adapter_itself_loads_to_the_same_logits(saved: tuple[Path, Tensor]) -> None:
    assert torch.equal(logits(load(saved[0])), saved[1])
    assert torch.equal(logits(load_adapter(fresh_base(), saved[0])), saved[1])


@pytest.mark.parametrize("name", [ROUTER, NORM], ids=["expert", "trained module"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.flatten()[:-1].clone(), "has shape"),
        (lambda t: t.to(torch.int32), "holds int32, and its place float32"),
        (lambda t: t.to(torch.complex64), "holds complex64, and its place float32"),
        (lambda t: t * float("nan"), "NaN or infinite"),
        (lambda t: t + 1e-3, "not those that were saved"),
        (lambda t: t.double(), "not those that were saved"),
    ],
    ids=["shape", "integers", "complex", "nan", "changed", "dtype"],
)
def test_a_tensor_that_is_not_the_one_saved(copied: Path, name: str, change: Any, said: str) -> None:
    edit(copied, lambda tensors: tensors.update({name: change(tensors[name])}))
    assert said in refusal(copied) or (name == NORM and "not those that were saved" in refusal(copied))


def test_missing_tensors(copied: Path) -> None:
    edit(copied, lambda tensors: tensors.pop(ROUTER))
    assert "has no tensor goat_router for module" in refusal(copied)


def test_a_missing_trained_module(copied: Path) -> None:
    edit(copied, lambda tensors: tensors.pop(NORM))
    with pytest.raises(KeyError, match="norm"):
        load(copied)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_adapter(fresh_base(), copied)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("base_model.model.model.layers.7.self_attn.q_proj.goat_A", "has no place"),
        ("base_model.model.anything", "has no place"),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", "would replace a weight of the base"),
        ("base_model.model.model.layers.0.self_attn.v_proj.weight", "would replace a weight of the base"),
        ("base_model.model.model.norm.original_module.weight", "would replace a weight of the base"),
    ],
)
def test_tensors_that_an_adapter_does_not_hold(copied: Path, name: str, said: str) -> None:
    """PEFT alone drops the first ones without a word and loads the others over the base's weights."""
    edit(copied, lambda tensors: tensors.update({name: torch.zeros(16, 16)}))
    assert said in refusal(copied)


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.999])
def test_a_flipped_bit_anywhere_in_the_tensors(copied: Path, share: float) -> None:
    file = copied / FILE
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    flip(file, 8 * start + int(share * 8 * (len(content) - start)))
    assert any(said in refusal(copied) for said in ("not those that were saved", "NaN or infinite", "another base"))


def test_a_flipped_bit_is_let_through_when_asked_and_then_signed_anew(copied: Path) -> None:
    edit(copied, lambda tensors: tensors.update({ROUTER: tensors[ROUTER] + 1e-3}))
    with pytest.raises(ValueError, match=r"pass config=GoatConfig.from_pretrained\(path, check_integrity=False\)"):
        load(copied)
    config = GoatConfig.from_pretrained(copied, check_integrity=False)
    there = logits(load(copied, config=config))
    load(copied, config=GoatConfig.from_pretrained(copied, check_integrity=False)).save_pretrained(copied)
    assert torch.equal(logits(load(copied)), there)
    assert "check_integrity" not in json.loads((copied / CONFIG).read_text())


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 3), ("eta", 0.5), ("target_modules", ["q_proj"]), ("modules_to_save", None), ("scaling", 2.0)],
)
def test_settings_edited_after_saving(copied: Path, name: str, value: Any) -> None:
    """The error names the field; a digest of it that is gone or another one's is noticed too."""
    fields = json.loads((copied / CONFIG).read_text())
    (copied / CONFIG).write_text(json.dumps(fields | {name: value}))
    assert f"GoatConfig.{name}=" in refusal(copied)
    with pytest.raises(ValueError, match=f"GoatConfig.{name}="):
        PeftConfig.from_pretrained(copied)
    digests = fields["settings_digest"]["fields"]
    for changed in ({k: v for k, v in digests.items() if k != name}, digests | {name: "00000000"}):
        settings_digest = fields["settings_digest"] | {"fields": changed}
        (copied / CONFIG).write_text(json.dumps(fields | {"settings_digest": settings_digest}))
        said = refusal(copied)
        assert "GoatConfig.settings_digest" in said if name not in changed else f"GoatConfig.{name}=" in said


def test_edited_settings_are_let_through_when_asked_and_then_kept(copied: Path) -> None:
    fields = json.loads((copied / CONFIG).read_text())
    (copied / CONFIG).write_text(json.dumps(fields | {"top_k": 3}))
    GoatConfig.from_pretrained(copied, check_integrity=False).save_pretrained(copied)
    assert load(copied).peft_config["default"].top_k == 3


@pytest.mark.parametrize("name", [EMBEDDING, "base_model.model.lm_head.weight"])
def test_embeddings_that_nothing_says_were_saved(copied: Path, name: str) -> None:
    """Of the base's own shape they would replace its weights without a sign, and stay after `unload`."""
    edit(copied, lambda tensors: (tensors.update({name: torch.ones(32, 16)}), tensors.pop(DIGEST)))
    assert "would replace a weight of the base, and nothing in it says" in refusal(copied)
    model = load(copied, config=GoatConfig.from_pretrained(copied, check_integrity=False))
    assert (dict(model.named_parameters())[name] == 1).all()


def test_an_adapter_trained_on_from_a_loaded_one_is_saved_and_loaded_again(copied: Path, tmp_path: Path) -> None:
    model = load(copied, is_trainable=True)
    with torch.no_grad():
        dict(model.named_parameters())[f"{ROUTER.replace('router', 'B')}.default"].add_(0.1)
    model.save_pretrained(tmp_path / "next")
    again = load(tmp_path / "next")
    assert torch.equal(logits(again), logits(model))
    # A state dict of one's own has no digest to agree with; one that came with its digest has to.
    own = load_file(copied / FILE)
    own[f"{ROUTER.replace('router', 'B')}"] += 1
    with pytest.raises(ValueError, match="loads without its entry goat_digest"):
        set_peft_model_state_dict(again, own)
    assert torch.equal(logits(again), logits(model))
    set_peft_model_state_dict(again, {name: tensor for name, tensor in own.items() if name != DIGEST})
    assert not torch.equal(logits(again), logits(model))


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("way", ["torch", "pickle"])
def test_pickled_weights_are_not_read(copied: Path, tmp_path: Path, way: str) -> None:
    target = tmp_path / "executed"
    (copied / FILE).unlink()
    if way == "torch":
        torch.save({"x": Bomb(target)}, copied / PICKLE)
    else:
        (copied / PICKLE).write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(ValueError, match="a pickle, and no adapter_model.safetensors"):
        load(copied)
    with pytest.raises(ValueError, match="a pickle, and no adapter_model.safetensors"):
        get_peft_model(fresh_base(), GoatConfig(target_modules=["q_proj"])).load_adapter(copied, "second")
    with pytest.raises(UserError, match="has no adapter_model.safetensors"):
        load_adapter(fresh_base(), copied)
    # Past our check, with a config read by PEFT's own class, PEFT opens the file and torch refuses to run what is in it.
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights"):
        PeftModel.from_pretrained(fresh_base(), copied, config=PeftConfig.from_pretrained(copied))
    assert not target.exists()


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1, -1000])
def test_truncated_and_garbled_files(copied: Path, size: int) -> None:
    content = (copied / FILE).read_bytes()
    for damaged in (content[:size], b"\xff" * 8 + content[8:], b"\x00" * len(content), content + b"more"):
        (copied / FILE).write_bytes(damaged)
        with pytest.raises(UserError, match="the file is broken"):
            load_adapter(fresh_base(), copied)


def test_links_lead_to_weights_or_to_an_error(copied: Path, saved: tuple[Path, Tensor], tmp_path: Path) -> None:
    """The Hub's own cache is made of links, so they are followed; what they lead to has to be this adapter all the same."""
    (copied / FILE).unlink()
    (copied / FILE).symlink_to(saved[0] / FILE)
    assert torch.equal(logits(load_adapter(fresh_base(), copied)), saved[1])
    secret = tmp_path / "secret"
    secret.write_text("the secret itself")
    for target in (secret, Path("/dev/zero"), tmp_path / "absent", tmp_path):
        (copied / FILE).unlink()
        (copied / FILE).symlink_to(target)
        with pytest.raises(UserError) as caught:
            load_adapter(fresh_base(), copied)
        assert "secret itself" not in str(caught.value)
    (copied / FILE).unlink()
    os.mkfifo(copied / FILE)  # opening it would wait for ever
    with pytest.raises(UserError, match="has no adapter_model"):
        load_adapter(fresh_base(), copied)


def test_other_methods_adapters_with_nan_or_missing_tensors_are_refused_by_goat(tmp_path: Path) -> None:
    from peft import LoraConfig

    get_peft_model(fresh_base(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert load_adapter(fresh_base(), tmp_path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    edit(tmp_path, lambda tensors: tensors.update({name: tensors[name] * float("nan")}))
    with pytest.raises(UserError, match=r"lora_B.weight holds NaN"):
        load_adapter(fresh_base(), tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match="missing adapter keys"):
        load_adapter(fresh_base(), tmp_path)


def test_a_base_with_code_of_its_own_runs_none(tmp_path: Path) -> None:
    """An adapter may name any folder as its base: nothing in it is run."""
    from goat_peft.recipes import ModelSettings, load_task
    from goat_peft.tasks import bind
    from goat_peft.training.loading import load_base, load_processor

    target = tmp_path / "executed"
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "modeling_evil.py").write_text(
        f"open({str(target)!r}, 'w').close()\nclass Evil: pass\nclass EvilConfig: pass\n"
    )
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    where = {name: "modeling_evil.EvilConfig" if name == "AutoConfig" else "modeling_evil.Evil" for name in names}
    (evil / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": where}))
    (evil / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["modeling_evil.Evil", None]}})
    )
    task, settings = bind(load_task("gsm8k")), ModelSettings(name=str(evil))
    for load_it in (lambda: load_processor(settings, task), lambda: load_base(settings, task, None)):
        with pytest.raises(UserError, match="model.name="):
            load_it()
    assert not target.exists()


def test_the_wrong_base_is_noticed(saved: tuple[Path, Tensor]) -> None:
    with pytest.raises(ValueError, match="trained on another base"):
        PeftModel.from_pretrained(fresh_base(seed=9), saved[0])
    with pytest.raises(UserError, match="trained on another base"):
        load_adapter(fresh_base(seed=9), saved[0])


def test_copies_load(saved: tuple[Path, Tensor], tmp_path: Path) -> None:
    """A folder that moved, with what people put beside an adapter, is the same adapter."""
    place = Path(shutil.copytree(saved[0], tmp_path / "moved"))
    (place / "notes.txt").write_text("mine")
    (place / PICKLE).write_bytes(b"an old file beside the safetensors")
    assert torch.equal(logits(load(place)), saved[1])


@pytest.mark.parametrize("named", [None, 5, [], {}, "", "\x00", "../../etc", "package:os/../..", "/dev/zero"])
def test_a_base_that_cannot_be_one_is_a_line_and_exit_2(
    copied: Path, named: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from goat_peft.cli import main

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "1 + 1", "answer": "#### 2"}) + "\n")
    fields = json.loads((copied / CONFIG).read_text())
    (copied / CONFIG).write_text(json.dumps(fields | {"base_model_name_or_path": named}))
    settings = [f"task.data.test={{path: {rows}}}", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(copied), "--task", "gsm8k", *settings])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and len(said) == 1
