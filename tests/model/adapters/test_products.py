"""Truncated products of low-rank factors, against the whole decomposition of the matrix itself."""

import pytest
import torch
from jaxtyping import TypeCheckError

from fedloom.model.adapters.products import product_norms, truncated_product


@pytest.mark.parametrize("spectrum", ["few directions", "slowly falling", "flat", "nothing"])
def test_the_leading_few_of_a_wide_layer_are_those_of_the_whole_decomposition(spectrum):
    generator = torch.Generator().manual_seed(2)
    left, right = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((60, 90), (90, 70))
    )
    if spectrum == "few directions":
        left, right = left[:, :2].repeat(1, 45), right * 1e-3 + right[:1]
    elif spectrum == "flat":
        left, right = torch.eye(60, 90, dtype=torch.float64), torch.eye(90, 70, dtype=torch.float64)
    elif spectrum == "nothing":
        left = left * 0
    new_left, new_right = truncated_product(left, right, 2)
    U, S, Vh = torch.linalg.svd(left @ right)
    best = (left @ right - U[:, :2] * S[:2] @ Vh[:2]).norm()
    assert (left @ right - new_left @ new_right).norm() <= best * (1 + 1e-10) + 1e-12
    torch.testing.assert_close(new_right @ new_right.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-10)
    again = truncated_product(left, right, 2)
    assert torch.equal(again[0], new_left), "no draw of before decides"


def test_while_tests_run_shapes_are_checked():
    with pytest.raises(TypeCheckError, match="product_norms"):
        product_norms(torch.ones(2, 3, 1), torch.ones(3, 1, 4))
