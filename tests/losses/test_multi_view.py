"""VITO's loss over several views against Eq. 3 in loops, in float64."""

import math

import pytest
import torch

from lightning_vssl.losses.info_nce import multi_view_info_nce, nt_xent


def slow(online, target, temperature=0.1, negatives="all"):
    """Eq. 3 for each video and ordered pair, with Python's numbers."""

    def unit(row):
        length = math.sqrt(sum(x * x for x in row))
        return [x / length for x in row]

    def likeness(a, b):
        return math.exp(sum(x * y for x, y in zip(a, b, strict=True)) / temperature)

    z = [[unit(view) for view in video] for video in online.tolist()]
    k = [[unit(view) for view in video] for video in target.tolist()]
    videos, views = len(z), len(z[0])
    total, terms = 0.0, 0
    for b in range(videos):
        for i in range(views):
            for j in range(views):
                if i == j:
                    continue
                positive = likeness(z[b][i], k[b][j])
                others = 0.0
                for n in range(videos):
                    for v in range(views):
                        if n != b and (negatives == "all" or v == j):
                            others += likeness(z[b][i], k[n][v])
                total -= math.log(positive / (positive + others))
                terms += 1
    return 2 * total / terms


@pytest.mark.parametrize("negatives", ["all", "same"])
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_equation_3_in_loops(views, negatives, temperature):
    torch.manual_seed(views)
    online, target = torch.randn(2, 5, views, 7).double()
    found = multi_view_info_nce(online, target, temperature, negatives)
    assert found.item() == pytest.approx(slow(online, target, temperature, negatives), rel=1e-12)


def test_two_views_of_one_network_are_nt_xent():
    """With the target equal to the online network, and both views of the others as negatives."""
    z = torch.randn(6, 2, 8).double()
    found = multi_view_info_nce(z, z)
    assert found.item() == pytest.approx(nt_xent(z[:, 0], z[:, 1]).item(), rel=1e-12)


@pytest.mark.parametrize("negatives", ["all", "same"])
def test_gradients_are_right_and_stop_at_the_target(negatives):
    torch.manual_seed(0)
    online = torch.randn(3, 3, 4).double().requires_grad_()
    target = torch.randn(3, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: multi_view_info_nce(z, target.detach(), 0.5, negatives), online
    )
    multi_view_info_nce(online, target, 0.5, negatives).backward()
    assert target.grad is None
    assert online.grad.abs().min() > 0


def test_logits_are_float32_under_autocast():
    online, target = torch.randn(2, 4, 2, 16)
    plain = multi_view_info_nce(online, target)
    with torch.autocast("cpu", torch.bfloat16):
        cast = multi_view_info_nce(online, target)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(4, 2, 3), torch.ones(4, 3, 3)), "alike"),
        ((torch.ones(4, 1, 3), torch.ones(4, 1, 3)), "at least two views"),
        ((torch.ones(1, 2, 3), torch.ones(1, 2, 3)), "one video has no negatives"),
        ((torch.ones(4, 2, 3), torch.ones(4, 2, 3), 0.0), "temperature"),
        ((torch.ones(4, 2, 3), torch.ones(4, 2, 3), 0.1, "others"), "all or same"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        multi_view_info_nce(*arguments)
