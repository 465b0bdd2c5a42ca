"""A failure names its law first, and keeps the numbers."""

import pytest
import torch

from tests.laws import close


def test_a_failure_begins_with_its_law():
    with pytest.raises(AssertionError, match=r"^a query must see itself\n(.|\n)*Mismatched elements: 1 / 2"):
        close(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), "a query must see itself")
    close(torch.ones(2), torch.ones(2) + 1e-3, "tolerances are passed on", atol=1e-2, rtol=0)


def test_a_drawn_tensor_is_printed_in_a_few_lines():
    assert len(repr(torch.randn(30, 30)).splitlines()) <= 5
