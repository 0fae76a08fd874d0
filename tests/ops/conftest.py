"""The Triton path: on a GPU where there is one, else in Triton's interpreter (see the conftest above)."""

from collections.abc import Iterator

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """Memory that nobody has written yet holds NaN, so that a kernel which leaves a place out is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> str:
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    return DEVICE
