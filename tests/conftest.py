"""One thread a test process: several workers on few cores, and the same arithmetic everywhere."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
