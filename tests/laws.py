"""Comparisons that say which law a failure breaks, before the numbers."""

import torch

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def close(found, expected, law: str, **tolerances) -> None:
    """`torch.testing.assert_close` whose message begins with the law, as in "a query must see itself"."""
    torch.testing.assert_close(found, expected, msg=lambda details: f"{law}\n{details}", **tolerances)


def same_run(found: tuple, expected: tuple, dtype: torch.dtype) -> None:
    """Compare (loss, count, metrics, gradients) of two steps.

    Gradients must agree to the tolerance times the largest one: some are zero by symmetry (keys' biases).
    """
    tolerance = TOLERANCE[dtype]
    close(found[0], expected[0], "the loss must be the whole batch's", atol=tolerance, rtol=tolerance)
    assert found[1] == expected[1], "every pair must be counted once"
    assert found[2].keys() == expected[2].keys()
    for name, metric in expected[2].items():
        if name == "top1":  # equal captions tie, and then the last bit decides
            continue
        law = f"{name} must be the whole batch's"
        close(found[2][name], metric, law, atol=tolerance, rtol=tolerance)
    assert found[3].keys() == expected[3].keys()
    given_gradients = [gradient for gradient in expected[3].values() if gradient is not None]
    largest = max(1.0, *(gradient.abs().max().item() for gradient in given_gradients))
    for name, gradient in expected[3].items():
        assert (found[3][name] is None) == (gradient is None), f"{name} must have a gradient unless frozen"
        if gradient is not None:
            law = f"the gradient of {name} must be the whole batch's, whatever the parts"
            close(found[3][name], gradient, law, atol=tolerance * largest, rtol=0)
