"""The contract of PEFT's MetaMathQA comparison, held by the shipped experiment folders on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from goat_peft import GoatConfig
from goat_peft.adapter.layer import GoatLayer

HOME = Path(__file__).parents[2] / "integrations" / "peft_method_comparison"
EXPERIMENTS = sorted(path.parent for path in HOME.glob("experiments/*/*/adapter_config.json"))
# What a training_params.json may change.
TRAINING = {
    "model_id", "dtype", "max_seq_length", "batch_size", "batch_size_eval", "max_steps", "eval_steps", "compile", "use_gc",
    "query_template", "seed", "grad_norm_clip", "optimizer_type", "optimizer_kwargs", "lr_scheduler", "use_amp",
    "autocast_adapter_dtype", "generation_kwargs", "attn_implementation", "init_kv_cache_prefix",
}  # fmt: skip
TEXTS = ["question : is the film good ? the correct answer is answer1", "the plot was very dull", "a great story"]


@pytest.fixture
def base(tiny_llama_dir: Path) -> Callable[..., PreTrainedModel]:
    return lambda dtype=torch.float32: AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=dtype)


@pytest.fixture
def batch(tiny_llama_dir: Path) -> dict[str, torch.Tensor]:
    """A right-padded batch; padding is left out of the loss but for the first end of text, as the harness does."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    tokenizer.pad_token = tokenizer.eos_token
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    labels = padded["input_ids"].clone()
    for index, row in enumerate(rows):
        labels[index, len(row) + 1 :] = -100
    return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"], "labels": labels}


def items(batch: dict[str, torch.Tensor]) -> int:
    return int(batch["attention_mask"].sum())


def balance_by_hand(model: PeftModel, batch: dict[str, torch.Tensor]) -> float:
    """METHOD section 1: the mean over adapted layers of sum_i f_i P_i, over tokens that are no padding."""
    inputs: dict[str, torch.Tensor] = {}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, GoatLayer)}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]), prepend=True)
        for name, module in layers.items()
    ]
    with torch.no_grad():
        model.eval()(**batch)
    for hook in hooks:
        hook.remove()
    model.train()
    weights = dict(model.named_parameters())
    values = []
    for name in layers:
        router = next(value for key, value in weights.items() if key.startswith(name + ".") and "router" in key)
        logits = inputs[name][batch["attention_mask"].bool()].float() @ router.float().T
        tokens, experts = logits.shape
        counts = torch.bincount(logits.topk(2, -1).indices.flatten(), minlength=experts)
        values.append((experts / (2 * tokens) * counts * logits.softmax(-1).mean(0)).sum().item())
    return sum(values) / len(values)


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda path: path.name)
def test_an_experiment_s_files_are_what_the_harness_reads(folder: Path) -> None:
    assert folder.parent.name == "goat" and folder.parent.parent.name == "experiments"
    config = PeftConfig.from_pretrained(str(folder))
    assert isinstance(config, GoatConfig) and (config.r, config.num_experts, config.top_k) == (32, 8, 2)
    targets = "all-linear" if "all-linear" in folder.name else {"q_proj", "v_proj"}
    meant = GoatConfig(r=32, target_modules=targets, task_type="CAUSAL_LM").to_dict()
    assert config.to_dict() == meant, "the file says something else than a fresh configuration"
    parameters = folder / "training_params.json"
    assert not parameters.is_file() or set(json.loads(parameters.read_text())) <= TRAINING


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda path: path.name)
def test_the_loop_on_the_model_s_own_loss_alone(
    folder: Path, base: Callable[..., PreTrainedModel], batch: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with torch.inference_mode():
        before = base()(**batch, num_items_in_batch=items(batch)).loss
    torch.manual_seed(0)
    model = get_peft_model(base(), PeftConfig.from_pretrained(str(folder)), autocast_adapter_dtype=True)
    model.train()
    with model.disable_adapter(), torch.inference_mode():
        assert torch.equal(model(**batch, num_items_in_batch=items(batch)).loss, before)
    outputs = model(**batch, num_items_in_batch=items(batch))
    shifted = batch["labels"][:, 1:]
    text = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), shifted.flatten(), reduction="sum")
    carried = (outputs.loss - text / items(batch)).item()
    # The harness' number of items counts every token, the loss only labels that follow one; the balance loss is scaled as the text's is.
    share = (shifted != -100).sum().item() / items(batch)
    assert carried == pytest.approx(1e-3 * share * balance_by_hand(model, batch), rel=1e-3)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**batch, num_items_in_batch=items(batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with model.disable_adapter(), torch.inference_mode():
        assert torch.equal(model(**batch, num_items_in_batch=items(batch)).loss, before), "training changed the base"

    model.eval()
    with torch.inference_mode():
        logits = model(**{key: batch[key] for key in ("input_ids", "attention_mask")}, pad_token_id=3).logits
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(), tmp_path).eval()
    with torch.inference_mode():
        assert torch.equal(again(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, logits)


def test_the_fields_of_a_result_in_the_harness_dtype(
    base: Callable[..., PreTrainedModel], batch: dict[str, torch.Tensor], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    config = PeftConfig.from_pretrained(str(EXPERIMENTS[0]))
    model = get_peft_model(base(torch.bfloat16), config, autocast_adapter_dtype=True)
    trainable, everything = model.get_nb_trainable_parameters()
    # 8 experts of rank 4 for inputs and outputs of 32, and a router of 8 x 32, on q and v of two layers.
    assert trainable == 4 * (32 * (32 + 32) + 8 * 32)
    assert everything > trainable
    model(**batch, num_items_in_batch=items(batch)).loss.backward()
    model.save_pretrained(tmp_path)
    assert (tmp_path / SAFETENSORS_WEIGHTS_NAME).stat().st_size >= 4 * trainable
    logged = {key: list(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    assert json.loads(json.dumps(logged))["peft_type"] == "GOAT"

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    tokenizer.pad_token = tokenizer.eos_token
    asked = tokenizer.pad(tokenizer(TEXTS), return_tensors="pt", padding_side="left")
    with torch.inference_mode():
        written = model.eval().generate(
            input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], max_new_tokens=2, pad_token_id=3
        )
    assert len(tokenizer.batch_decode(written, skip_special_tokens=True)) == len(TEXTS)


HARNESS = """
import argparse, json, os
from neighbour import RESULTS
from peft import PeftConfig

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-v", action="store_true")
    parser.add_argument("path")
    given = parser.parse_args()
    assert len(given.path.split(os.sep)) == 3 and given.path.startswith("experiments"), given.path
    config = PeftConfig.from_pretrained(given.path)
    with open(RESULTS, "w") as file:
        json.dump({"type": type(config).__name__, "verbose": given.v}, file)
"""


@pytest.fixture
def wrapper(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    spec = importlib.util.spec_from_file_location("run_goat", HOME / "run_goat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(HOME)  # both are put back afterwards
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["run_goat.py"])
    return module.main


def test_the_wrapper_starts_the_harness_as_it_wants_to_be_started(
    wrapper: Callable[[list[str]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.py").write_text(HARNESS)
    (tmp_path / "neighbour.py").write_text(f"RESULTS = {str(tmp_path / 'result.json')!r}\n")
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)
    wrapper([str(tmp_path), "-v", "experiments/goat/llama-3.2-3B-rank32/"])
    sys.modules.pop("neighbour", None)
    assert json.loads((tmp_path / "result.json").read_text()) == {"type": "GoatConfig", "verbose": True}


@pytest.mark.parametrize(
    ("harness", "experiment", "told"),
    [(None, "experiments/goat/llama-3.2-3B-rank32", "holds no run.py"), ("", "experiments/goat/none", "choose from")],
)
def test_the_wrapper_says_what_is_missing(
    wrapper: Callable[[list[str]], None],
    harness: str | None,
    experiment: str,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if harness is not None:
        (tmp_path / "run.py").write_text("")
    with pytest.raises(SystemExit):
        wrapper([str(tmp_path), experiment])
    assert told in capsys.readouterr().err
