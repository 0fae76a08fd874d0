"""The balance loss: its value, what it does not count, and its gradient, in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hand import hand_gradients, hand_losses
from tiny import (
    MLP,
    adapted,
    assert_same,
    gradients,
    padded_batch,
    settings,
    tiny_bert,
    tiny_clip_vision,
    tiny_llama,
    tiny_t5,
    token_batch,
)
from torch import Tensor, nn

from goat_peft.adapter.routing import layer_balance_loss
from goat_peft.ops.reference import balance_loss_reference

CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def loss_parts(model: nn.Module, batch: dict[str, Tensor]) -> tuple[float, float]:
    """The loss in training mode, and in eval mode."""
    model.train()
    training = model(**batch).loss.item()
    model.eval()
    return training, model(**batch).loss.item()


# ---- value -----------------------------------------------------------------------------------------------------------------------------


def test_value_by_hand() -> None:
    """Two experts, one active, three tokens: p = (3/4, 1/4), (3/4, 1/4), (1/4, 3/4)."""
    log3 = math.log(3)
    logits = torch.tensor([[log3, 0], [log3, 0], [0, log3]], dtype=torch.float64)
    p = logits.softmax(-1).sum(0)
    statistics = torch.tensor([[*p.tolist(), 2, 1, 0.0, 3]], dtype=torch.float64)
    expected = (2 / 3 * 2) * (7 / 12) + (2 / 3 * 1) * (5 / 12)
    assert layer_balance_loss(statistics, top_k=1).item() == pytest.approx(expected)
    assert balance_loss_reference(logits, top_k=1).item() == pytest.approx(expected)


@pytest.mark.parametrize(("E", "k"), [(2, 1), (8, 2), (8, 8)])
def test_one_at_perfect_balance_and_more_when_collapsed(E: int, k: int) -> None:
    tokens = 40 * E
    balanced = torch.cat([torch.full((E,), tokens / E), torch.full((E,), tokens * k / E), torch.tensor([0.0, tokens])])
    assert layer_balance_loss(balanced[None], k).item() == pytest.approx(1.0)
    p = torch.zeros(E)
    p[:k] = 1 / k
    collapsed = torch.cat([p * tokens, (p > 0) * float(tokens), torch.tensor([0.0, tokens])])
    assert layer_balance_loss(collapsed[None], k).item() == pytest.approx(E / k)


def test_all_experts_active_is_always_balanced() -> None:
    model = adapted(top_k=4).train()
    model(**token_batch())
    assert model.get_balance_loss().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_training_loss_is_task_plus_coefficient_times_balance_and_eval_is_the_task(reduction: str) -> None:
    model = adapted(router_aux_loss_coef=0.5, router_aux_loss_reduction=reduction)
    batch = padded_batch()
    task, aux = hand_losses(model, batch)
    assert aux.item() > (0.9 if reduction == "mean" else 0.9 * 14)
    training, evaluated = loss_parts(model, batch)
    assert evaluated == pytest.approx(task.item(), rel=1e-5)
    assert training == pytest.approx(task.item() + 0.5 * aux.item(), rel=1e-5)


def test_custom_loops_get_the_same_term() -> None:
    model = adapted(router_aux_loss_coef=0.5).train()
    batch = padded_batch()
    _, aux = hand_losses(model, batch)
    model.train()
    output = model(**batch)
    assert model.get_aux_loss().item() == pytest.approx(0.5 * aux.item(), rel=1e-5)
    assert model.get_balance_loss().item() == pytest.approx(aux.item(), rel=1e-5)
    assert not model.get_balance_loss().requires_grad
    without = {name: t for name, t in batch.items() if name != "labels"}
    output = model(**without)
    assert output.loss is None
    (output.logits.sum() * 0 + model.get_aux_loss()).backward()
    expected = torch.autograd.grad(
        0.5 * hand_losses(model, batch)[1], [p for n, p in model.named_parameters() if "goat_router" in n]
    )
    found = [p.grad for n, p in model.named_parameters() if "goat_router" in n]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_aux_loss_is_zero_before_and_without_a_training_forward() -> None:
    model = adapted()
    assert model.get_aux_loss().item() == 0
    model.train()(**token_batch())
    assert model.get_aux_loss().item() > 0
    model.eval()(**token_batch())
    assert model.get_aux_loss().item() == 0


def test_coefficient_zero_changes_nothing() -> None:
    training, evaluated = loss_parts(adapted(router_aux_loss_coef=0.0), token_batch())
    assert training == evaluated


def test_a_disabled_adapter_adds_nothing() -> None:
    model = adapted(router_aux_loss_coef=1.0)
    with model.disable_adapter():
        training, evaluated = loss_parts(model, token_batch())
    assert training == evaluated


def test_two_active_adapters_each_add_their_own() -> None:
    model = adapted(router_aux_loss_coef=0.5)
    model.add_adapter("other", settings(num_experts=8, top_k=1, router_aux_loss_coef=2.0, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    batch = token_batch()
    task, aux = hand_losses(model, batch, adapter="default")
    _, other = hand_losses(model, batch, adapter="other")
    training, _ = loss_parts(model, batch)
    assert training == pytest.approx(task.item() + 0.5 * aux.item() + 2.0 * other.item(), rel=1e-5)


@pytest.mark.parametrize("labelled_as", ["dict", "tuple", "positional"])
def test_every_kind_of_output_and_call_carries_it(labelled_as: str) -> None:
    model = adapted(router_aux_loss_coef=1.0).base_model.model.train()  # the transformers model itself
    batch = padded_batch()
    expected = model(**batch).loss
    if labelled_as == "dict":
        found = model(**batch)["loss"]
    elif labelled_as == "tuple":
        found = model(**batch, return_dict=False)[0]
    else:
        found = model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss
    torch.testing.assert_close(found, expected)
    assert expected.item() - model.eval()(**batch).loss.item() > 0.9


def test_models_without_a_loss_of_their_own() -> None:
    model = adapted(MLP, target_modules=["lin0", "lin1"], router_aux_loss_coef=1.0).train()
    output = model(X=torch.randn(5, 10))
    assert isinstance(output, Tensor)
    assert model.get_aux_loss().item() > 0.9


def test_inputs_without_tokens_are_counted_one_by_one() -> None:
    model = adapted(tiny_clip_vision).train()
    model(pixel_values=torch.randn(2, 3, 16, 16))
    assert {row.tokens for row in model.expert_usage()} == {10.0}  # 2 images of 4 patches and a class token


# ---- padding ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "side"), [(tiny_llama, "left"), (tiny_llama, "right"), (tiny_bert, "right")]
)  # not BERT on the left: its pooler reads the first token, whatever it is
def test_padding_changes_nothing(make, side: str) -> None:
    model = adapted(make, router_aux_loss_coef=1.0).train()
    short = token_batch(rows=2, length=6)
    if make is tiny_bert:
        short["labels"] = torch.tensor([0, 2])
    model(**short)
    expected = model.get_balance_loss().item()

    gap = torch.zeros(2, 5, dtype=torch.long)
    order = [gap, None] if side == "left" else [None, gap]

    def pad(values: Tensor, fill: int) -> Tensor:
        return torch.cat([values if part is None else part + fill for part in order], dim=1)

    long = {"input_ids": pad(short["input_ids"], 0), "attention_mask": pad(short["attention_mask"], 0)}
    long["labels"] = short["labels"] if make is tiny_bert else pad(short["labels"], -100)
    positions = torch.arange(6).expand(2, 6)
    if side == "left":
        long["position_ids"] = pad(positions, 0)
    model(**long)
    assert model.get_balance_loss().item() == pytest.approx(expected, rel=1e-5)
    del long["attention_mask"]
    model(**long)
    assert model.get_balance_loss().item() != pytest.approx(expected, rel=1e-5)  # the mask is what tells


@pytest.mark.parametrize("decoder_mask", [False, True])
@pytest.mark.parametrize("lengths", [(6, 4), (5, 5)])
def test_padding_changes_nothing_in_an_encoder_decoder(lengths: tuple[int, int], decoder_mask: bool) -> None:
    """Encoder, decoder and cross-attention each count their own tokens, also where both are padded to one length."""
    model = adapted(tiny_t5, router_aux_loss_coef=1.0).train()
    source, target = lengths
    ids, labels = token_batch(2, source)["input_ids"], token_batch(2, target, seed=4)["labels"]
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    expected = model.get_balance_loss().item()
    model.reset_expert_usage()
    gap = torch.zeros(2, 3, dtype=torch.long)
    batch = {
        "input_ids": torch.cat([ids, gap], 1),
        "attention_mask": torch.cat([torch.ones_like(ids), gap], 1),
        "labels": torch.cat([labels, gap - 100], 1),
    }
    if decoder_mask:
        batch["decoder_attention_mask"] = (batch["labels"] != -100).long()
    model(**batch)
    assert model.get_balance_loss().item() == pytest.approx(expected, rel=1e-5)
    for row in model.expert_usage():
        reads_source = "encoder" in row.layer or row.layer.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        assert row.tokens == 2 * (source if reads_source else target), row.layer


def test_padded_tokens_get_no_gradient_of_the_balance_loss() -> None:
    model = adapted(router_aux_loss_coef=1.0).train()
    batch = padded_batch()
    embeddings = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"])
    model.get_aux_loss().backward()
    assert embeddings.grad[batch["attention_mask"].bool()].abs().sum() > 0
    assert not embeddings.grad[~batch["attention_mask"].bool()].any()


# ---- gradient --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert])
def test_gradients_by_hand(make) -> None:
    model = adapted(make, router_aux_loss_coef=1.0)
    batch = padded_batch()
    if make is tiny_bert:
        batch["labels"] = torch.tensor([0, 1, 2])
    expected = hand_gradients(model, [batch], [1.0], [1.0])
    model.train()
    model(**batch).loss.backward()
    assert_same(gradients(model), expected, **CLOSE)


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
def test_equal_micro_batches_give_the_gradient_of_one_in_a_plain_loop(micro_batches: int) -> None:
    batch = padded_batch()
    items = batch["labels"][:, 1:].ne(-100).sum()
    model = adapted(router_aux_loss_coef=1.0)
    expected = hand_gradients(model, [batch], [1.0], [1.0])
    for scaled_by_items in (False, True):
        model.zero_grad()
        model.train()
        for _ in range(micro_batches):
            if scaled_by_items:  # as the Trainer calls a causal model: the total over the accumulated batch
                model(**batch, num_items_in_batch=items * micro_batches).loss.backward()
            else:
                (model(**batch).loss / micro_batches).backward()
        assert_same(gradients(model), expected, **CLOSE)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_unequal_micro_batches_weigh_by_their_share_of_tokens(reduction: str) -> None:
    batches = [padded_batch(rows=3, seed=1), padded_batch(rows=2, seed=2), token_batch(rows=1, length=4)]
    items = [batch["labels"][:, 1:].ne(-100).sum().item() for batch in batches]
    shares = [count / sum(items) for count in items]
    assert len(set(shares)) == 3
    model = adapted(router_aux_loss_coef=1.0, router_aux_loss_reduction=reduction)
    expected = hand_gradients(model, batches, shares, shares)
    model.train()
    for batch in batches:
        model(**batch, num_items_in_batch=torch.tensor(sum(items))).loss.backward()
    assert_same(gradients(model), expected, **CLOSE)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("make", [tiny_llama, tiny_bert, tiny_t5])
def test_checkpointing_without_reentry_is_exact(make, dropout: float) -> None:
    batch = padded_batch()
    if make is tiny_bert:
        batch["labels"] = torch.tensor([0, 1, 2])
    found = []
    for checkpointing in (False, True):
        model = adapted(make, router_aux_loss_coef=1.0, lora_dropout=dropout)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        torch.manual_seed(8)
        loss = model(**batch).loss
        loss.backward()
        found.append(
            gradients(model)
            | {"loss": loss.detach(), "usage": torch.tensor([row.tokens for row in model.expert_usage()])}
        )
    # in T5 the encoder's gradient is a sum over decoder blocks, which checkpointing adds in another order
    assert_same(found[1], found[0], **({"rtol": 1e-3, "atol": 1e-7} if make is tiny_t5 else {}))


def test_checkpointing_with_two_forwards_before_one_backward() -> None:
    """The second forwards run when the masks of another batch are the current ones; each must count its own tokens."""
    batches = [padded_batch(seed=1), padded_batch(seed=2, side="left")]
    found = []
    for checkpointing in (False, True):
        model = adapted(router_aux_loss_coef=1.0)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        (model(**batches[0]).loss + model(**batches[1]).loss).backward()
        found.append(gradients(model))
    assert_same(found[1], found[0])


def test_checkpointing_with_reentry_is_refused_with_the_way_out() -> None:
    batch = token_batch()
    model = adapted(router_aux_loss_coef=1.0)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    model.train()
    with pytest.raises(RuntimeError, match="'use_reentrant': False"):
        model(**batch)
    found = []
    for checkpointing in (False, True):
        model = adapted(router_aux_loss_coef=0.0)  # the other way out
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
            model.enable_input_require_grads()
        model.train()
        model(**batch).loss.backward()
        found.append(gradients(model))
    assert_same(found[1], found[0], **CLOSE)


def test_f_carries_no_gradient() -> None:
    statistics = torch.rand(3, 10, dtype=torch.float64).requires_grad_()
    layer_balance_loss(statistics, 2).sum().backward()
    assert statistics.grad[:, :4].any()
    assert not statistics.grad[:, 4:].any()
