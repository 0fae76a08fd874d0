"""Expert usage: what it counts, and when."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import adapted, padded_batch, settings, token_batch
from torch import Tensor, nn

from goat_peft.adapter import GoatLinear
from goat_peft.adapter.routing import ExpertUsage


def brute_force(model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, dict[str, object]]:
    """Counts, probabilities and entropies of every counted token, one token at a time, by layer."""
    found: dict[str, dict[str, object]] = {}
    for batch in batches:
        seen: list[tuple[str, GoatLinear, Tensor]] = []
        handles = [
            module.register_forward_pre_hook(lambda m, args, seen=seen: seen.append((m.name, m, args[0].detach())))
            for module in model.modules()
            if isinstance(module, GoatLinear)
        ]
        model.eval()
        with torch.no_grad():
            model(**batch)
        for handle in handles:
            handle.remove()
        for name, layer, x in seen:
            row = found.setdefault(name, {"tokens": 0, "counts": [0] * 4, "p": [0.0] * 4, "entropy": 0.0})
            for token, kept in zip(x.flatten(0, -2), batch["attention_mask"].flatten().tolist(), strict=True):
                if not kept:
                    continue
                p = (layer.goat_router["default"].detach() @ token).softmax(0).tolist()
                row["tokens"] += 1
                for expert in sorted(range(4), key=lambda i: -p[i])[:2]:
                    row["counts"][expert] += 1
                row["p"] = [total + one for total, one in zip(row["p"], p, strict=True)]
                row["entropy"] -= sum(one * math.log(one) for one in p)
    return found


def check(usage: list[ExpertUsage], expected: dict[str, dict[str, object]]) -> None:
    assert [row.layer for row in usage] == list(expected) and len(usage) == 14
    for row in usage:
        hand = expected[row.layer]
        tokens = hand["tokens"]
        assert row.adapter == "default" and row.tokens == tokens
        assert row.share == pytest.approx([count / (2 * tokens) for count in hand["counts"]])
        assert sum(row.share) == pytest.approx(1)
        assert row.mean_probability == pytest.approx([total / tokens for total in hand["p"]], rel=1e-4)
        assert row.entropy == pytest.approx(hand["entropy"] / tokens, rel=1e-4)
        assert 0 < row.entropy <= math.log(4) + 1e-6


BATCHES = [padded_batch(seed=1), token_batch(rows=2, length=5, seed=2), padded_batch(seed=3, side="left")]


def test_training_counts_by_itself_and_leaves_padding_out() -> None:
    model = adapted()
    expected = brute_force(model, BATCHES)
    assert {row["tokens"] for row in expected.values()} == {21 + 10 + 21}
    model.train()
    for batch in BATCHES:
        model(**batch)
    check(model.expert_usage(), expected)


def test_eval_counts_only_inside_the_context() -> None:
    model = adapted()
    expected = brute_force(model, BATCHES)
    assert model.expert_usage() == []
    with torch.no_grad(), model.track_expert_usage():
        for batch in BATCHES:
            model(**batch)
    model(**BATCHES[0])
    check(model.expert_usage(), expected)


def test_checkpointing_counts_once() -> None:
    model = adapted()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    expected = brute_force(model, BATCHES[:1])
    model.train()
    model(**BATCHES[0]).loss.backward()
    check(model.expert_usage(), expected)


def test_generation_counts_each_token_once_per_layer() -> None:
    model = adapted().eval()
    asked = {name: padded_batch(side="left")[name] for name in ("input_ids", "attention_mask")}
    with model.track_expert_usage():
        model.generate(**asked, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    # the prompt's 21 tokens and, the last one being read by nobody, 3 new ones in each of 3 rows
    assert {row.tokens for row in model.expert_usage()} == {21 + 3 * 3}


def test_reset() -> None:
    model = adapted().train()
    model(**BATCHES[0])
    model.reset_expert_usage()
    assert model.expert_usage() == []
    expected = brute_force(model, BATCHES[1:2])
    model.train()
    model(**BATCHES[1])
    check(model.expert_usage(), expected)


def test_mixed_batches_count_each_adapter_s_rows() -> None:
    model = adapted()
    model.add_adapter("other", settings(num_experts=8))
    batch = padded_batch()
    with model.eval().track_expert_usage(), torch.no_grad():
        model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            adapter_names=["other", "__base__", "default"],
        )
    assert {(row.adapter, row.tokens) for row in model.expert_usage()} == {("other", 9.0), ("default", 5.0)}


def test_a_deleted_adapter_is_forgotten_and_its_name_free() -> None:
    model = adapted().train()
    model(**BATCHES[0])
    model.add_adapter("other", settings())
    model.set_adapter("other")
    model.delete_adapter("default")
    assert model.expert_usage() == []
    assert model.get_aux_loss().item() == 0
    model.add_adapter("default", settings(num_experts=8))
    model.set_adapter("default")
    model(**BATCHES[0])
    assert {len(row.share) for row in model.expert_usage()} == {8}


def test_usage_costs_no_gradient_and_changes_no_output() -> None:
    model = adapted()
    batch = token_batch()
    with torch.no_grad():
        plain = model.eval()(**batch).logits
        with model.track_expert_usage():
            assert torch.equal(model(**batch).logits, plain)
