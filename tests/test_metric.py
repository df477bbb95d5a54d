"""The pulled-back ruler against the explicit matrix J^T J, and the theorems a metric obeys."""

import math

import pytest
import torch

import mathkit as mk
from mathkit.linear import metric

pytestmark = pytest.mark.usefixtures("float64")


def wavy(x):
    a, b, c = x[:, 0], x[:, 1], x[:, 2]
    return torch.stack([a * b, (b - c).sin(), a**2 + c, b.exp(), a - c], 1)


@pytest.fixture
def A():
    return mk.jacobian(wavy, torch.tensor([[0.3, -0.7, 1.1]]))


def test_gram_is_jtj_on_the_rows(A):
    V, J = torch.randn(4, 3), A.dense()
    assert torch.allclose(metric.gram(A, V), V @ J.T @ J @ V.T, atol=1e-12)
    assert torch.allclose(metric.length(A, V), metric.gram(A, V).diagonal().sqrt(), atol=1e-12)


def test_gram_is_symmetric_and_has_no_negative_eigenvalue(A):
    G = metric.gram(A, torch.randn(7, 3))  # more rows than dimensions: of rank 3
    values = torch.linalg.eigvalsh(G)
    assert torch.equal(G, G.T) and values.min() > -1e-12
    assert int((values > 1e-9).sum()) == 3


def test_turning_the_output_changes_nothing_and_turning_the_input_turns_along(A):
    V = torch.randn(3, 3)
    turn = mk.matrix(torch.linalg.qr(torch.randn(5, 5)).Q)
    assert torch.allclose(metric.gram(turn @ A, V), metric.gram(A, V), atol=1e-12)
    T = torch.linalg.qr(torch.randn(3, 3)).Q
    assert torch.allclose(metric.gram(A @ mk.matrix(T), V), metric.gram(A, V @ T.T), atol=1e-12)


def test_lengths_obey_the_parallelogram_law_and_the_triangle_inequality(A):
    v, w = torch.randn(2, 3)
    a, b, more, less = metric.length(A, torch.stack([v, w, v + w, v - w]))
    assert torch.isclose(more**2 + less**2, 2 * a**2 + 2 * b**2)
    assert more <= a + b


def test_the_length_of_a_curve_on_the_sphere_is_that_of_the_great_circle():
    """theta -> a quarter turn on a sphere of radius 2, its speed summed along the way."""

    def chart(x):
        a, b = x[:, 0], x[:, 1]
        return 2 * torch.stack([a.cos() * b.cos(), a.sin() * b.cos(), b.sin()], 1)

    steps = 400
    walk = [
        metric.length(mk.jacobian(chart, torch.tensor([[t, 0.0]])), torch.tensor([[1.0, 0.0]]))
        for t in (torch.arange(steps) + 0.5) * (math.pi / 2 / steps)
    ]
    assert float(sum(walk)) * math.pi / 2 / steps == pytest.approx(math.pi, rel=1e-10)


def test_angles_against_arccos_and_at_the_ends(A):
    v, w = torch.randn(2, 3)
    J = A.dense()
    cosine = (J @ v) @ (J @ w) / (J @ v).norm() / (J @ w).norm()
    assert metric.angle(A, v, w) == pytest.approx(float(cosine.acos()), abs=1e-10)
    assert metric.angle(A, v, 3 * v) == pytest.approx(0, abs=1e-12)
    assert metric.angle(A, v, -v) == pytest.approx(math.pi, abs=1e-12)


def test_a_tiny_angle_is_kept():
    eye = mk.matrix(torch.eye(2))
    small = metric.angle(eye, torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-9]))
    assert small == pytest.approx(1e-9, rel=1e-6)


def test_what_the_map_cannot_see_has_length_zero_and_no_angle():
    flat = mk.matrix(torch.tensor([[1.0, 1.0]]))  # cannot see (1, -1)
    v, blind = torch.tensor([1.0, 0.0]), torch.tensor([1.0, -1.0])
    assert metric.length(flat, torch.stack([v, blind])).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="in its kernel has no angle"):
        metric.angle(flat, v, blind)


@pytest.mark.parametrize("short", [1e-3, 1e-5])
def test_what_is_shortened_much_has_an_angle_down_to_a_millionth(short):
    A, seen, other = mk.mask([1.0, short]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0])
    for v, w in ((seen, other), (other, seen)):
        assert metric.angle(A, v, w) == pytest.approx(math.atan2(1, short), rel=1e-12)
        with pytest.raises(ValueError, match="no angle"):
            metric.angle(mk.mask([1.0, 1e-7]), v, w)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_ruler_scales_with_the_map_also_where_float32_holds_no_square(scale):
    M, V = torch.randn(5, 3).float(), torch.randn(2, 3).float()
    A, B = mk.matrix(M), mk.matrix(scale * M)
    for measure, power in ((metric.gram, 2), (metric.length, 1)):
        found = measure(B, V)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found / scale**power, measure(A, V), rtol=1e-5, atol=1e-5)
    assert metric.angle(B, *V) == pytest.approx(metric.angle(A, *V), abs=1e-5)


# --- curvedness: how far the image turns ------------------------------------------------------


def torus(x):
    """Two circles, of radius 2 and 1: at (a, b) the image is spanned by their two tangents."""
    a, b = x[:, 0], x[:, 1]
    return torch.stack([2 * a.cos(), 2 * a.sin(), b.cos(), b.sin()], 1)


PATH = torch.tensor([[0.0, 0.3], [0.2, 0.3], [0.5, -0.1], [0.4, 0.6], [1.3, 0.6]])


def test_the_image_of_a_torus_turns_as_far_as_its_two_angles():
    """Each tangent turns by its own angle: the distance is sqrt(da^2 + db^2)."""
    found = metric.curvedness(torus, PATH.double(), 2)
    assert found.shape == (4,) and found.dtype == torch.float64
    torch.testing.assert_close(found, PATH.double().diff(dim=0).norm(dim=1))
    outer = metric.curvedness(torus, PATH.double(), 1)  # the circle of radius 2 is stretched most
    torch.testing.assert_close(outer, PATH.double().diff(dim=0)[:, 0].abs())


def test_a_flat_image_does_not_turn_and_half_a_turn_is_none():
    M, path = torch.randn(5, 2), torch.randn(4, 2)
    flat = metric.curvedness(lambda x: (x @ M.T).exp().log(), path, 2)
    torch.testing.assert_close(flat, torch.zeros(3), atol=1e-6, rtol=0)
    turns = torch.tensor([[0.0, 0.0], [math.pi / 2, 0.0], [math.pi / 2, math.pi]])
    expected = torch.tensor([math.pi / 2, 0.0])
    torch.testing.assert_close(metric.curvedness(torus, turns, 2), expected, atol=1e-6, rtol=0)


def test_a_wrong_ruler_is_noticed(A):
    """Planted: one part in a thousand on one pushed direction is no J^T J any more."""
    V, J = torch.eye(3), A.dense()
    bent = mk.LinearMap(lambda V: A.push(V) * torch.tensor([1.001, 1, 1, 1, 1]), A.pull, (3,), (5,))
    assert not torch.allclose(metric.gram(bent, V), J.T @ J, atol=1e-6)
