"""The Triton path: on a GPU where there is one, else in Triton's interpreter (see the conftest above)."""

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def device() -> str:
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    return DEVICE
