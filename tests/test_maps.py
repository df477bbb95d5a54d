"""Linear maps against matrices, finite differences, torch's own forward mode and closed forms."""

import math

import numpy as np
import pytest
import torch

import mathkit as mk

f64 = pytest.mark.usefixtures("float64")


def rows(k, shape, dtype=None):
    return torch.randn(k, *shape, dtype=dtype)


# --- LinearMap, matrix, mask ------------------------------------------------------------------


@f64
@pytest.mark.parametrize("m, n", [(3, 5), (5, 3), (1, 4), (4, 1), (2, 2)])
def test_matrix_pushes_and_pulls_as_the_matrix_does(m, n):
    M = torch.randn(m, n)
    A = mk.matrix(M)
    V, U = torch.randn(7, n), torch.randn(7, m)
    assert (A.in_shape, A.out_shape, A.T.in_shape, A.T.out_shape) == ((n,), (m,), (m,), (n,))
    torch.testing.assert_close(A.push(V), torch.stack([M @ v for v in V]))
    torch.testing.assert_close(A.pull(U), torch.stack([M.T @ u for u in U]))
    torch.testing.assert_close(A.T.push(U), A.pull(U))
    torch.testing.assert_close(A.T.T.push(V), A.push(V))
    torch.testing.assert_close(A.dense(), M)
    torch.testing.assert_close(A.T.dense(), M.T)


@f64
def test_product_and_its_transpose():
    M, N = torch.randn(3, 4), torch.randn(4, 6)
    P = mk.matrix(M) @ mk.matrix(N)
    torch.testing.assert_close(P.dense(), M @ N)
    torch.testing.assert_close(P.T.dense(), (M @ N).T)
    assert (P.in_shape, P.out_shape) == ((6,), (3,))


def test_passes_are_shared_by_transposes_and_products():
    A, B = mk.matrix(torch.randn(3, 4)), mk.matrix(torch.randn(4, 5))
    A.push(rows(2, (4,)))
    A.T.push(rows(3, (3,)))
    assert A.passes == A.T.passes == (2, 3)
    P = A @ B
    P.push(rows(4, (5,)))
    P.T.push(rows(5, (3,)))
    assert A.passes == (6, 8)
    assert B.passes == (4, 5)
    assert P.passes == P.T.passes == (6, 8)
    gram = B.T @ B
    gram.push(rows(1, (5,)))
    assert B.passes == gram.passes == (5, 6)


def test_passes_of_a_masked_map_are_the_passes_of_the_map():
    A = mk.matrix(torch.randn(4, 3))
    P = mk.mask(torch.tensor([True, False, True, True])) @ A
    P.push(rows(3, (3,)))
    P.pull(rows(2, (4,)))
    assert P.passes == A.passes == (3, 2)
    assert (A.passes.push, A.passes.pull) == (3, 2)


def test_dense_costs_the_smaller_side():
    tall, wide = mk.matrix(torch.randn(9, 4)), mk.matrix(torch.randn(4, 9))
    tall.dense(), wide.dense()
    assert tall.passes == (4, 0)
    assert wide.passes == (0, 4)


@f64
def test_mask_is_a_diagonal_map_and_its_own_transpose():
    w = torch.randn(2, 3)
    D = mk.mask(w)
    torch.testing.assert_close(D.dense(), torch.diag(w.flatten()))
    torch.testing.assert_close(D.T.dense(), D.dense())


def test_mask_keeps_the_precision_of_what_it_masks():
    A = mk.mask(torch.tensor([True, False])) @ mk.matrix(torch.randn(2, 3, dtype=torch.float64))
    assert A.push(rows(1, (3,), torch.float64)).dtype == A.dtype == torch.float64
    assert A.dense()[1].abs().max() == 0


def test_matrix_takes_lists_integers_and_arrays():
    for M in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 4]])):
        A = mk.matrix(M)
        assert A.dense().tolist() == [[1, 2], [3, 4]]
        assert A.dense().dtype == torch.get_default_dtype()


def test_results_carry_no_graph():
    A = mk.matrix(torch.randn(3, 2, requires_grad=True))
    assert not A.push(torch.randn(1, 2, requires_grad=True)).requires_grad
    B = mk.LinearMap(lambda V: V.exp(), lambda U: U, (2,), (2,))
    assert not B.push(torch.randn(1, 2, requires_grad=True)).requires_grad


def test_a_shape_that_does_not_fit_says_what_does():
    A = mk.matrix(torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"push takes rows \(k, 4\).*v\[None\]"):
        A.push(torch.randn(4))
    with pytest.raises(ValueError, match=r"pull takes rows \(k, 3\)"):
        A.pull(torch.randn(2, 4))
    with pytest.raises(ValueError, match="k >= 1"):
        A.push(torch.randn(0, 4))
    with pytest.raises(ValueError, match="takes a tensor"):
        A.push([[1.0, 2.0, 3.0, 4.0]])
    with pytest.raises(ValueError, match="A.in_shape == B.out_shape"):
        A @ A
    with pytest.raises(TypeError):
        A @ torch.randn(4, 2)
    with pytest.raises(ValueError, match="must answer"):
        mk.LinearMap(lambda V: V[:, :1], lambda U: U, (2,), (2,)).push(torch.randn(1, 2))


@pytest.mark.parametrize(
    "M", [torch.randn(3), torch.zeros(0, 3), torch.eye(2) * 1j, torch.tensor([[math.nan, 1.0]])]
)
def test_matrix_refuses_what_is_no_real_finite_matrix(M):
    with pytest.raises(ValueError, match="real finite"):
        mk.matrix(M)


def test_mask_refuses_nan():
    with pytest.raises(ValueError, match="finite"):
        mk.mask(torch.tensor([math.nan]))


# --- the adjoint identity ---------------------------------------------------------------------


def test_check_adjoint_passes_a_true_transpose(tiny_unet, bottleneck):
    assert mk.check_adjoint(mk.matrix(torch.randn(5, 8))) < 1e-6
    A = mk.jacobian(bottleneck(tiny_unet, 500), torch.randn(1, 3, 16, 16))
    assert mk.check_adjoint(A) < 1e-5
    assert mk.check_adjoint(mk.matrix(torch.zeros(2, 3))) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m, n", [(40, 60), (60, 40), (3, 3)])
def test_check_adjoint_fails_on_a_pull_wrong_by_a_thousandth(dtype, m, n):
    M = torch.randn(m, n, dtype=dtype)
    noise = torch.randn(m, n, dtype=dtype)
    wrong = [1.001 * M, M + 1e-3 * M.norm() / noise.norm() * noise * math.sqrt(n)]
    for W in wrong:
        A = mk.LinearMap(lambda V: V @ M.T, lambda U, W=W: U @ W, (n,), (m,), dtype)
        with pytest.raises(AssertionError, match="not the transpose"):
            mk.check_adjoint(A)


def test_check_adjoint_fails_on_nan():
    A = mk.LinearMap(lambda V: V, lambda U: U * math.nan, (2,), (2,))
    with pytest.raises(AssertionError):
        mk.check_adjoint(A)


def test_a_map_in_half_precision_is_its_own_transpose_to_that_precision():
    M = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    assert mk.check_adjoint(mk.matrix(M.bfloat16())) < 0.02


def test_a_mask_leaves_the_device_to_what_it_masks():
    A = mk.matrix(torch.eye(4))
    assert (mk.mask(torch.ones(4)) @ A).device == A.device and mk.mask(torch.ones(4)).device is None
