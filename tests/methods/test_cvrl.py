"""CVRL as a whole: its step against the formula, its counts, the cached batch."""

import copy
import functools

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn

from lightning_vssl.augment.views import VideoViews
from lightning_vssl.backbones import PytorchvideoResNet
from lightning_vssl.methods.cvrl import CVRL, two_views
from lightning_vssl.nn.keyed import sample_key

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-6)


def small(**options: object) -> CVRL:
    torch.manual_seed(0)
    return CVRL(
        PytorchvideoResNet(width=4, depth=(1, 1, 1, 1)),
        VideoViews(blur=(1.0, 0.1), solarise=(0.0, 0.2)),
        SGD,
        hidden=(16, 16, 16),
        projection=8,
        **options,
    )


def batch(size: int = 4, views: int = 2, side: int = 32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (size, views, 4, 3, side, side)
    return {
        "video": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "key": torch.tensor([sample_key(0, 0, i) for i in range(size)]),
        "index": torch.arange(size),
        "time": torch.arange(4.0).double().expand(size, views, 4),
    }


def test_the_papers_network_has_its_parameters() -> None:
    with torch.device("meta"):
        method = CVRL(PytorchvideoResNet(), nn.Identity(), SGD, head_bias=False)
    statistics = sum(b.numel() for n, b in method.named_buffers() if "running" in n)
    count = sum(p.numel() for p in method.parameters())
    assert round((count + statistics) / 1e6, 1) == 44.6  # ConST-CL, Table 3
    assert round(sum(p.numel() for p in method.head.parameters()) / 1e6, 2) == 12.86


def test_step_equals_the_loss_written_out() -> None:
    method = small().double()
    views = method.augment(batch())["views"].double()
    found = method._step({"views": views})
    maps = copy.deepcopy(method.backbone)(views.flatten(0, 1))
    z = method.head(maps.mean((2, 3, 4)))
    z = (z / z.norm(dim=1, keepdim=True)).view(4, 2, -1)
    total = 0.0
    for i in range(4):
        for one, other in ((0, 1), (1, 0)):
            scores = [z[i, one] @ z[j, v] for j in range(4) for v in (0, 1) if j != i]
            positive = (z[i, one] @ z[i, other] / 0.1).exp()
            total -= (positive / (positive + sum((s / 0.1).exp() for s in scores))).log() / 4
    assert found["loss"].item() == pytest.approx(total.item(), rel=1e-9)


def awake(method: nn.Module) -> None:
    """The last norm of a residual block starts at zero, and lets no gradient into the block."""
    for name, parameter in method.named_parameters():
        if name.endswith("norm_c.weight"):
            nn.init.ones_(parameter)


def gradients(method: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in method.named_parameters()}


def test_every_parameter_gets_a_gradient() -> None:
    method = small()
    awake(method)
    method._step(method.augment(batch()))["loss"].backward()
    assert [n for n, g in gradients(method).items() if g is None or not g.any()] == []


@pytest.mark.parametrize("recompute", [False, True])
def test_a_cached_batch_equals_the_big_one(recompute: bool) -> None:
    """Norms in eval, so that they do not see the parts; float32."""
    whole, cut = small(), small(parts=4)
    awake(whole)
    awake(cut)
    cut.backbone.recompute = recompute
    views = whole.augment(batch(8))["views"]
    found = []
    for method in (whole, cut):
        for part in method.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        loss = method._step({"views": views})["loss"]
        loss.backward()
        found.append((loss.item(), gradients(method)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    for name, expected in found[0][1].items():
        close = torch.allclose(found[1][1][name], expected, rtol=1e-4, atol=1e-6)
        assert close, name


def test_recomputed_blocks_give_the_same_gradients_and_statistics() -> None:
    plain, again = small().double(), small().double()
    awake(plain)
    awake(again)
    again.backbone.recompute = True
    views = plain.augment(batch())["views"].double()
    for method in (plain, again):
        method._step({"views": views})["loss"].backward()
    for name, expected in gradients(plain).items():
        assert torch.allclose(gradients(again)[name], expected, rtol=1e-12, atol=1e-15), name
    buffers = dict(again.named_buffers())
    for name, expected in plain.named_buffers():
        assert torch.equal(buffers[name], expected), name


def test_views_differ_in_blur_and_solarisation() -> None:
    many = {"video": torch.zeros(400, 2, 1, 3, 2, 2, dtype=torch.uint8), "key": batch(400)["key"]}
    drawn = small().augment.draw(many["key"], 2)
    assert drawn["blur"][:, 0].all()
    assert 0.05 < drawn["blur"][:, 1].float().mean() < 0.15
    assert not drawn["solarise"][:, 0].any()
    assert 0.14 < drawn["solarise"][:, 1].float().mean() < 0.26


def test_validation_takes_two_of_the_clips() -> None:
    assert two_views(batch(2, views=5))["video"].shape[1] == 2
    single = two_views(batch(2, views=1))
    assert torch.equal(single["video"][:, 0], single["video"][:, 1])


def test_weight_decay_falls_on_kernels_alone() -> None:
    method = small(lr_batch=None)
    method.trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    optimizer = method.configure_optimizers()
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 1e-6
    assert plain["weight_decay"] == 0
    assert min(p.dim() for p in decayed["params"]) == 2
    assert max(p.dim() for p in plain["params"]) == 1


class Data(LightningDataModule):
    batch_size = 64


def test_the_rate_is_scaled_to_the_batch() -> None:
    method = small(lr_batch=1024)
    trainer = Trainer(
        logger=False, accelerator="cpu", enable_checkpointing=False, accumulate_grad_batches=2
    )
    trainer._data_connector.attach_datamodule(method, datamodule=Data())
    method.trainer = trainer
    rates = {group["lr"] for group in method.configure_optimizers().param_groups}
    assert rates == {0.1 * 128 / 1024}


def test_channels_last_is_the_memory_format_of_weights() -> None:
    method = small(channels_last=True)
    weight = method.backbone.blocks[1].res_blocks[0].branch2.conv_b.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    plain = small()
    views = plain.augment(batch())["views"]
    assert method._step({"views": views})["loss"].item() == pytest.approx(
        plain._step({"views": views})["loss"].item(), rel=1e-4
    )


def test_an_image_network_is_refused() -> None:
    backbone = PytorchvideoResNet(width=4, depth=(1, 1, 1, 1))
    backbone.dims = 2
    with pytest.raises(ValueError, match="CVRL needs a 3-D backbone"):
        CVRL(backbone, nn.Identity(), SGD)
