"""float32, bfloat16, and float16 with a loss scale: training stays finite, learns, and keeps the experts in float32."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tiny import adapted, adapter_tensors, assert_same, gradients, padded_batch

from goat_peft.errors import UserError
from goat_peft.recipes.schema import Training
from goat_peft.training.engines import autocast_inside, check_precision

STEPS, LR = 8, 5e-3


def trained(
    base: torch.dtype, autocast: torch.dtype | None, scale: float | None = None
) -> tuple[list[float], list[float], torch.nn.Module]:
    """Losses and scales of a few steps on one batch, and the model."""
    model = adapted().train()
    for name, parameter in model.named_parameters():
        if ".goat_" not in name:
            parameter.data = parameter.data.to(base)
    batch = padded_batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0)
    losses, scales = [], []
    for _ in range(STEPS):
        with torch.autocast("cpu", autocast) if autocast else nullcontext():
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    return losses, scales, model


@pytest.mark.parametrize(
    ("base", "autocast", "scale"),
    [
        (torch.float32, None, None),
        (torch.float32, torch.bfloat16, None),
        (torch.bfloat16, torch.bfloat16, None),
        (torch.bfloat16, None, None),
        (torch.float32, torch.float16, 2.0**10),
        (torch.float16, torch.float16, 2.0**10),
    ],
    ids=str,
)
def test_each_precision_learns_what_float32_learns(
    base: torch.dtype, autocast: torch.dtype | None, scale: float | None
) -> None:
    expected, _, _ = trained(torch.float32, None)
    losses, _, model = trained(base, autocast, scale)
    assert losses == pytest.approx(expected, rel=0.02) and losses[-1] < losses[0] - 0.1
    for name, tensor in adapter_tensors(model).items():
        assert tensor.dtype == torch.float32 and tensor.isfinite().all(), name


def test_steps_that_the_loss_scale_skips_change_nothing_and_training_goes_on() -> None:
    """A scale far too large makes gradients infinite; each such step is skipped and halves it."""
    losses, scales, model = trained(torch.float32, torch.float16, 2.0**21)
    skipped = sum(after < before for before, after in zip([2.0**21, *scales], scales))
    assert 0 < skipped < STEPS
    assert losses[: skipped + 1] == [losses[0]] * (skipped + 1)
    assert losses[-1] < losses[0]
    assert all(tensor.isfinite().all() for tensor in adapter_tensors(model).values())


def test_a_skipped_step_leaves_the_adapter_to_the_bit() -> None:
    _, scales, model = trained(torch.float32, torch.float16, 2.0**60)
    assert scales == [2.0 ** (60 - step - 1) for step in range(STEPS)]
    assert_same(adapter_tensors(model), adapter_tensors(adapted()))


def test_autocast_inside_a_model_is_autocast_around_it() -> None:
    """What a run does under FSDP2 and DeepSpeed, whose own mixed precision would round the experts."""
    around, inside = adapted().train(), adapted().train()
    with torch.autocast("cpu", torch.bfloat16):
        expected = around(**padded_batch()).loss
    autocast_inside(inside)
    loss = inside(**padded_batch()).loss
    assert loss == expected and loss != adapted().train()(**padded_batch()).loss
    for model, one in ((around, expected), (inside, loss)):
        one.backward()
    assert_same(gradients(inside), gradients(around))


@pytest.mark.parametrize(
    ("engine", "told"), [("", "needs a GPU"), ("ACCELERATE_USE_FSDP", "with fsdp2, zero2 and zero3 use")]
)
def test_float16_is_refused_where_it_cannot_work(engine: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: bool(engine))
    if engine:
        monkeypatch.setenv(engine, "true")  # as accelerate's launcher sets it
    with pytest.raises(UserError, match=f"training.fp16=True: .*{told}"):
        check_precision(Training(fp16=True))
    check_precision(Training(bf16=True))
    with pytest.raises(ValueError, match="bf16 and fp16 are both true"):
        Training(bf16=True, fp16=True)
