"""What a plan counts against what really happens: activations of real steps on this machine, in real tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from goat_peft import GoatConfig
from goat_peft.adapter import GoatLayer
from goat_peft.ops import use_path
from goat_peft.ops.paths import HAS_TRITON
from goat_peft.planning.estimate import _flops
from goat_peft.planning.live import LiveMemory
from goat_peft.planning.step import Workload, prepare, run_for_sizes

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {
    "tiny": (64, 128, 1, 97, 2, 17),
    "middle": (192, 512, 3, 1000, 3, 48),
}  # width, inner, layers, vocabulary, batch, length


def llama(size: str) -> nn.Module:
    width, inner, layers, vocabulary, *_ = SIZES[size]
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=vocabulary, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def adapter(method: str) -> Any:
    if method == "lora":
        return LoraConfig(r=8, target_modules=LINEARS)
    return GoatConfig(r=8, num_experts=4, top_k=2, target_modules=LINEARS)


def workload(size: str, checkpointing: bool = False) -> Workload:
    *_, batch, length = SIZES[size]
    ids = ((batch, length), torch.long)
    return Workload({"input_ids": ids, "labels": ids}, batch, batch * length, length, False, checkpointing, "full")


def really_saved(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Bytes of the distinct storages that a real forward keeps for its backward, without weights and inputs; each in blocks of 512, as CUDA has them."""
    fixed = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), *inputs.values())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs).loss.backward()
    return sum(-(-t.untyped_storage().nbytes() // 512) * 512 for address, t in kept.items() if address not in fixed)


@pytest.mark.parametrize(
    ("size", "method", "path"),
    [
        ("tiny", "lora", "torch"),
        ("tiny", "goat", "torch"),
        pytest.param("middle", "goat", "torch", marks=pytest.mark.slow),
        pytest.param("middle", "lora", "torch", marks=pytest.mark.slow),
        pytest.param("tiny", "goat", "triton", marks=pytest.mark.slow),
    ],
)
def test_activations_are_those_that_a_real_forward_keeps(
    size: str, method: str, path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention is eager in both: the fused kernel of a GPU cannot run here."""
    if path == "triton" and not HAS_TRITON:
        pytest.skip("Triton is not installed")
    torch.manual_seed(0)
    real = get_peft_model(llama(size), adapter(method))
    work = workload(size)
    prepare(real, work)
    inputs = {name: torch.randint(0, 90, shape) for name, (shape, _) in work.inputs.items()}
    with use_path(path):
        real(**inputs).loss.backward()  # learns what layers share
        wanted = really_saved(real, inputs)

    monkeypatch.setattr("goat_peft.planning.step._ATTENTION", "eager")
    monkeypatch.setattr("goat_peft.planning.step.AttentionInterface.register", lambda *_: None)
    with torch.device("meta"):
        planned = get_peft_model(llama(size), adapter(method))
    for layer in planned.modules():
        if isinstance(layer, GoatLayer):
            layer.pending.clear()
    found = run_for_sizes(planned, work, path).saved
    assert found == pytest.approx(wanted, rel=0.03)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_gradients_live_through_the_next_micro_batch_where_they_accumulate() -> None:
    def step(accumulates: bool) -> tuple[Any, int]:
        with torch.device("meta"):
            model = llama("tiny")
        size = sum(-(-4 * p.numel() // 512) * 512 for p in model.parameters())
        return run_for_sizes(model, replace(workload("tiny"), accumulates=accumulates)), size

    (once, gradients), (several, _) = step(False), step(True)
    assert several.saved == once.saved  # activations alone
    assert once.peak + 0.5 * gradients < several.peak <= once.peak + gradients


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_that_torch_counts(method: str, checkpointing: bool) -> None:
    """A frozen linear takes 4 operations a weight and token and 2 more when it runs again, one that trains 6 and 2."""
    torch.manual_seed(0)
    base = llama("middle")
    model = base if method == "full" else get_peft_model(base, adapter("lora"))
    work = replace(workload("middle", checkpointing), bf16=False)
    prepare(model, work)
    if method == "lora":
        base.enable_input_require_grads()
    inputs = {name: torch.randint(0, 90, shape) for name, (shape, _) in work.inputs.items()}
    with FlopCounterMode(display=False) as counter:
        model(**inputs).loss.backward()
    # Run again, a block ends before its last linear where nothing is saved of that.
    assert _flops(model, work, base.config) == pytest.approx(counter.get_total_flops(), rel=0.04)


def test_live_memory_follows_tensors() -> None:
    with LiveMemory() as memory:
        first = torch.ones(1000)
        view = first[10:]
        second = torch.ones(2000) + 1  # one made and gone
        assert memory.current == 4096 + 8192 and memory.peak == 4096 + 2 * 8192
        del first
        assert memory.current == 4096 + 8192  # the view still needs it
        del view, second
        assert memory.current == 0
        memory.restart()
        assert memory.peak == 0


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_what_changes_memory_and_how() -> None:
    def run(checkpointing: bool = False, loss: str = "full") -> Any:
        with torch.device("meta"):
            model = get_peft_model(llama("tiny"), adapter("goat"))
        for layer in model.modules():
            if isinstance(layer, GoatLayer):
                layer.pending.clear()
        return run_for_sizes(model, replace(workload("tiny", checkpointing), loss=loss))

    plain = run()
    assert run(checkpointing=True).saved < 0.7 * plain.saved
    assert run(loss="fused").saved < plain.saved  # no logits, of which the full loss keeps the logarithms
    assert plain.saved < plain.peak


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_layer_norm_under_autocast_is_as_wide_as_on_a_gpu() -> None:
    """There autocast computes it in float32; on a CPU, where the shapes run, it would not."""
    config = BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128
    )
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
    seen = []
    model.bert.encoder.layer[0].output.LayerNorm.register_forward_hook(lambda m, a, output: seen.append(output.dtype))
    ids, labels = ((2, 8), torch.long), ((2,), torch.long)
    run_for_sizes(model, Workload({"input_ids": ids, "labels": labels}, 2, 16, 8, True, False, "full"))
    assert set(seen) == {torch.float32}
