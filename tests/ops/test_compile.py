"""`torch.compile` sees the model as one graph on either path, and one dynamic graph serves all batch sizes and lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from peft import get_peft_model
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from transformers import LlamaConfig, LlamaForCausalLM

from goat_peft import GoatConfig
from goat_peft.ops import use_path
from goat_peft.ops.function import backward_op, forward_op


def _llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def _step(runner: Callable[..., Any], model: torch.nn.Module, **inputs: Tensor) -> list[Tensor]:
    """The loss and every gradient of one step, after which the model has none."""
    loss = runner(**inputs).loss
    loss.backward()
    found = [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]
    model.zero_grad()
    return found


def _assert_alike(found: list[Tensor], wanted: list[Tensor]) -> None:
    for graph, eager in zip(found, wanted, strict=True):
        torch.testing.assert_close(graph, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "backend"),
    [
        ("triton", "aot_eager"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("torch", "aot_eager"), ("torch", "inductor"), ("triton", "inductor"))
        ),
    ],
)
def test_one_graph_and_equal_gradients(path: str, backend: str, device: str) -> None:
    model = get_peft_model(_llama().to(device), GoatConfig(r=4, num_experts=2, top_k=1)).train()
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for batch, length in ((2, 9), (3, 12), (4, 15), (5, 12)):
        ids = torch.randint(0, 64, (batch, length), device=device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        with use_path(path):
            wanted = _step(model, model, **inputs)  # first: layers learn what they share
            _assert_alike(_step(compiled, model, **inputs), wanted)
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("path", ["torch", "triton"])
def test_what_a_graph_is_told_of_the_operator_is_true(path: str, members: int, device: str) -> None:
    """Shapes, dtypes and strides, forward and backward: a compiler plans its memory by them."""
    r, n, m, experts = 4, 16, 24, 2
    shapes = [(r, n)] * members + [(m, r)] * members + [(experts, n)] * members + [(experts,)] * members
    x, tensors = torch.randn(10, n, device=device), [torch.randn(shape, device=device) for shape in shapes]
    settings = (members, False, False, 1, 0.0, True)

    def told(operator: Callable[..., list[Tensor]], *inputs: Any) -> None:
        with FakeTensorMode() as fake:
            promised = operator(*tree_map_only(Tensor, fake.from_tensor, inputs))
        for one, other in zip(promised, operator(*inputs), strict=True):
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())

    with use_path(path):
        told(forward_op, x, tensors, None, None, *settings)
        found = forward_op(x, tensors, None, None, *settings)
        outputs, statistics, saved = found[:members], found[members], found[members + 1 :]
        told(backward_op, outputs, statistics.sum(1, keepdim=True), x, tensors, saved, None, None, *settings, True)


def test_layers_that_read_one_input_compute_together_in_a_graph_too(device: str) -> None:
    model = get_peft_model(_llama().to(device), GoatConfig(r=4, num_experts=2, top_k=1)).train()
    ids = torch.randint(0, 64, (2, 9), device=device)
    calls: list[int] = []

    def count(graph: torch.fx.GraphModule, example: list[object]) -> object:
        calls.append(sum("routed_linears" in str(node.target) for node in graph.graph.nodes))
        return make_boxed_func(graph)

    with use_path("triton"):
        model(input_ids=ids, labels=ids).loss.backward()  # q, k, v and gate, up are seen to read the same
        model.zero_grad()
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=count))
        found = [_step(runner, model, input_ids=ids, labels=ids) for runner in (model, compiled, compiled)]
    assert calls == [4, 4]  # q k v, o, gate up, down; forward and backward, compiled once
    for outcome in found[1:]:
        _assert_alike(outcome, found[0])
