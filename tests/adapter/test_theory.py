"""The paper's statements, measured: Lemma 2.2, Lemma 3.3, Theorem 3.4, Theorem 3.5 (METHOD section 1)."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import settings
from torch import Tensor
from torch.nn import functional as F

from goat_peft.adapter.initialization import segment_factors, theorem_scale
from goat_peft.ops import routed_experts


def sampled_weights(draws: int, E: int, k: int) -> Tensor:
    """Routing weights (draws, E) of i.i.d. logits, through the operator: experts that output their own index."""
    logits = torch.randn(draws, E, dtype=torch.float64)
    eye = torch.eye(E, dtype=torch.float64)
    # each expert reads a constant 1 and writes to its own coordinate, so that the output is w
    x = torch.cat([logits, torch.ones(draws, 1, dtype=torch.float64)], dim=1)
    A = torch.cat([torch.zeros(E, E, dtype=torch.float64), torch.ones(E, 1, dtype=torch.float64)], dim=1)
    router = torch.cat([eye, torch.zeros(E, 1, dtype=torch.float64)], dim=1)
    scale = torch.ones(E, dtype=torch.float64)
    return routed_experts(
        x=x, A=A, B=eye, router=router, scale=scale, residual_A=None, residual_B=None, top_k=k, collect=False
    )[0]


@pytest.mark.parametrize(("E", "k"), [(4, 2), (8, 2), (8, 1)])
def test_lemma_3_3_mean_of_the_routing_weights(E: int, k: int) -> None:
    draws = 40_000
    w = sampled_weights(draws, E, k)
    standard_error = w.std(0) / math.sqrt(draws)
    assert ((w.mean(0) - 1 / E).abs() < 5 * standard_error).all()


@pytest.mark.parametrize(("E", "k"), [(4, 2), (8, 2), (8, 4), (8, 1)])
def test_lemma_3_3_variance_of_equal_weights_on_k_experts(E: int, k: int) -> None:
    """(E - k) / (k E^2) is the variance of a weight that is 1/k on the chosen experts: the lemma's, exact at k = 1 and with small logits."""
    draws = 40_000
    logits = torch.randn(draws, E, dtype=torch.float64) * 1e-6
    chosen = torch.zeros(draws, E, dtype=torch.float64).scatter_(1, logits.topk(k).indices, 1.0)
    w = F.normalize(chosen * logits.softmax(-1), p=1, dim=-1)
    expected = (E - k) / (k * E**2)
    assert abs(w.var(0).mean().item() - expected) < 0.03 * expected
    if k == 1:
        assert abs(sampled_weights(draws, E, k).var(0).mean().item() - expected) < 0.03 * expected
    else:  # softmax among the k adds to it
        assert sampled_weights(draws, E, k).var(0).mean().item() > expected


@pytest.mark.parametrize("k", [1, 2])
def test_theorem_3_4_closed_form_beats_perturbations_of_it(k: int) -> None:
    E, d, m, n = 4, 2, 12, 10
    weight = torch.randn(m, n, dtype=torch.float64)
    factors = segment_factors(weight, settings(r=E * d, num_experts=E, top_k=k, scaling="lora"))
    experts = torch.stack(
        [factors.scale[i] * factors.B[:, i * d : (i + 1) * d] @ factors.A[i * d : (i + 1) * d] for i in range(E)]
    )
    mixtures = torch.einsum("te,emn->tmn", sampled_weights(20_000, E, k), experts)
    closed_form = experts.sum(0) / E

    def error(residual: Tensor) -> float:
        return (residual - mixtures).pow(2).sum((1, 2)).mean().item()

    best, size = error(closed_form), closed_form.norm()
    for _ in range(20):
        direction = torch.randn(m, n, dtype=torch.float64)
        assert error(closed_form + 0.1 * size * direction / direction.norm()) > best
    assert error(0.9 * closed_form) > best and error(1.1 * closed_form) > best
    assert error(torch.zeros_like(closed_form)) > best


@pytest.mark.parametrize(("n", "rank", "scale"), [(768, 1, 48.0), (768, 4, 24.0), (1024, 1, 55.4), (1024, 4, 27.7), (4096, 1, 110.9),
                                                  (4096, 4, 55.4), (11008, 1, 181.7), (11008, 4, 90.9)])  # fmt: skip
def test_theorem_3_5_published_scales(n: int, rank: int, scale: float) -> None:
    assert abs(theorem_scale(n, rank) - scale) < 0.06
    assert theorem_scale(n, rank, eta=0.25) == pytest.approx(theorem_scale(n, rank) / 2)


def kaiming(draws: int, d: int, n: int) -> Tensor:
    """`draws` Kaiming-uniform A (d, n), variance 1 / (3 n)."""
    return (torch.rand(draws, d, n, dtype=torch.float64) * 2 - 1) / math.sqrt(n)


@pytest.mark.parametrize("eta", [1.0, 0.1])
def test_theorem_3_5_mean_gradient_matches_full_fine_tuning(eta: float) -> None:
    """The mean over draws of A of s^2 g A^T A tends to eta g, its error shrinking as 1 / sqrt(draws)."""
    m, n, d = 6, 32, 2
    g = torch.randn(m, n, dtype=torch.float64)
    s = theorem_scale(n, d, eta)

    def error_of_mean(draws: int) -> float:
        A = kaiming(draws, d, n)
        mean = torch.einsum("tdi,tdj->ij", A, A) / draws
        return ((s**2 * g @ mean - eta * g).norm() / (eta * g.norm())).item()

    few = sum(error_of_mean(1_000) for _ in range(16)) / 16
    many = sum(error_of_mean(16_000) for _ in range(16)) / 16
    assert few < 0.5 and many < 0.2 * 0.65
    assert few / many == pytest.approx(4, rel=0.25)  # sqrt(16)


@pytest.mark.parametrize(("n", "d"), [(64, 2), (512, 4)])
def test_theorem_3_5_is_not_the_best_scale_of_one_draw(n: int, d: int) -> None:
    """The s that minimises the error of a single draw is near s^2 = 3 n eta / (n + d + 1), two orders below the theorem's s^2 = 3 n eta / d."""
    g = torch.randn(4, n, dtype=torch.float64)
    A = kaiming(400, d, n)
    approximations = torch.einsum("mi,tdi,tdj->tmj", g, A, A)
    # argmin over s^2 of sum_t ||s^2 a_t - g||^2 with eta = 1
    best = ((approximations * g).sum() / approximations.pow(2).sum()).item()
    assert best == pytest.approx(3 * n / (n + d + 1), rel=0.05)

    def error(s_squared: float) -> float:
        return (s_squared * approximations - g).pow(2).sum((1, 2)).mean().item() / g.pow(2).sum().item()

    theorem = theorem_scale(n, d) ** 2
    assert error(best) < 1 < error(theorem)
    assert theorem / best > 20


def test_lemma_2_2_change_of_the_equivalent_weight_under_sgd() -> None:
    """One SGD step of A and B moves W~ = W + s B A by -lr s^2 (B B^T g + g A^T A), to first order; one expert is exactly LoRA."""
    m, n, r, s = 7, 9, 3, 1.7
    x, target = torch.randn(20, n, dtype=torch.float64), torch.randn(20, m, dtype=torch.float64)
    W = torch.randn(m, n, dtype=torch.float64)
    A0, B0 = torch.randn(r, n, dtype=torch.float64), torch.randn(m, r, dtype=torch.float64)
    router, scale = torch.zeros(1, n, dtype=torch.float64), torch.tensor([s], dtype=torch.float64)

    equivalent = (W + s * B0 @ A0).requires_grad_()
    (g,) = torch.autograd.grad(F.mse_loss(x @ equivalent.T, target), equivalent)
    lemma = s**2 * (B0 @ B0.T @ g + g @ A0.T @ A0)

    A, B = A0.clone().requires_grad_(), B0.clone().requires_grad_()
    output, _ = routed_experts(
        x=x, A=A, B=B, router=router, scale=scale, residual_A=None, residual_B=None, top_k=1, collect=False
    )
    grad_A, grad_B = torch.autograd.grad(F.mse_loss(x @ W.T + output, target), [A, B])

    def relative_error(lr: float) -> float:
        moved = s * ((B0 - lr * grad_B) @ (A0 - lr * grad_A) - B0 @ A0) / -lr
        return ((moved - lemma).norm() / lemma.norm()).item()

    assert relative_error(1e-6) < 1e-4
    assert relative_error(1e-4) / relative_error(1e-6) == pytest.approx(
        100, rel=0.01
    )  # what is left is of first order in lr
