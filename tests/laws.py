"""Comparisons that say which law a failure breaks, before the numbers."""

import torch


def close(found, expected, law: str, **tolerances) -> None:
    """`torch.testing.assert_close` whose message begins with the law, as in "a query must see itself"."""
    torch.testing.assert_close(found, expected, msg=lambda details: f"{law}\n{details}", **tolerances)
