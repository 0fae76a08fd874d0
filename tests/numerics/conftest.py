"""The adapter's tiny models, one thread, one seed."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "adapter"))  # tiny models
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))  # two processes


@pytest.fixture(autouse=True)
def one_thread_one_seed() -> Iterator[None]:
    """Two runs of a test are the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
