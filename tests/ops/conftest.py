"""The Triton path on a machine without a GPU runs in Triton's interpreter, which has to be chosen before the kernels are imported."""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def device() -> str:
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    return DEVICE
