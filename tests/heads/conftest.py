"""What the tests of the heads share: one thread, whatever the environment says.

Sums differ in their last bits with the number of threads, and much here is compared to the bit.
"""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
