import math

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lightning_vssl.backbones import TimmNet
from lightning_vssl.optim import (
    Constant,
    Cosine,
    Geometric,
    MultiStep,
    Schedule,
    lambda_lr,
    parameter_groups,
)


def test_constant_is_one_everywhere():
    assert [Constant().factor(step, 10, 100) for step in (0, 50, 100)] == [1.0, 1.0, 1.0]


def test_a_warm_up_in_steps_does_not_depend_on_the_data():
    for per_epoch in (1, 7, 50):
        steps, epochs = Cosine(warmup_steps=10), Cosine(warmup_epochs=10 / per_epoch)
        for step in (0, 3, 9, 10, 33, 99):
            expected = epochs.factor(step, per_epoch, 100)
            assert steps.factor(step, per_epoch, 100) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),  # 2 epochs of 10 steps: the warm-up takes 20 of 100 steps
        (5, 0.25),
        (19, 0.95),
        (20, 1.0),
        (40, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the cosine
        (60, 0.55),
        (100, 0.1),
        (130, 0.1),
    ],
)
def test_cosine_values(step, expected):
    schedule = Cosine(warmup_epochs=2, final=0.1)
    assert schedule.factor(step, 10, 100) == pytest.approx(expected, abs=1e-12)


def test_cosine_without_warmup_equals_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=37)
    for step in range(38):
        assert 0.3 * Cosine().factor(step, 5, 37) == pytest.approx(
            theirs.get_last_lr()[0], abs=1e-9
        )
        optimizer.step()
        theirs.step()


def test_geometric_equals_torchs_exponential_epoch_by_epoch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-2)
    gamma = (1e-5 / 1e-2) ** (1 / 50)
    theirs = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
    for epoch in range(50):
        for step in (7 * epoch, 7 * epoch + 6):
            found = 1e-2 * Geometric(final=1e-3).factor(step, 7, 350)
            assert found == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1.0), (299, 1.0), (300, 0.1), (599, 0.1), (600, 0.01), (900, 0.01)],
)
def test_multistep_values_at_ctp_milestones(step, expected):
    schedule = MultiStep(milestones=(30, 60))
    assert schedule.factor(step, 10, 900) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.1), (250, 0.325), (500, 0.055), (750, 0.0775), (1000, 0.1)]
)
def test_multistep_warmup_rises_linearly_and_meets_the_milestones(step, expected):
    schedule = MultiStep(milestones=(5,), warmup_steps=1000)
    assert schedule.factor(step, 100, 2000) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Cosine(warmup_epochs=-1), "warmup_epochs"),
        (lambda: Cosine(final=2), "final"),
        (lambda: Cosine(warmup_steps=-1), "warmup_steps"),
        (lambda: Cosine(warmup_epochs=1, warmup_steps=1), "not both"),
        (lambda: Cosine(warmup_steps=100).factor(0, 10, 100), "warmup_steps=100"),
        (lambda: MultiStep(milestones=(60, 30)), "milestones"),
        (lambda: MultiStep(milestones=(30,), gamma=0), "gamma"),
        (lambda: Geometric(final=0.0), "final"),
        (lambda: MultiStep(milestones=(30,), warmup_steps=-1), "warmup_steps"),
        (lambda: MultiStep(milestones=(30,), warmup_start=3), "warmup_start"),
        (lambda: Cosine(warmup_epochs=10).factor(0, 10, 100), "warmup_epochs"),
    ],
)
def test_wrong_values_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=name):
        make()


def test_lambda_lr_drives_every_group_and_survives_a_checkpoint(tmp_path):
    def build():
        groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.5)]
        optimizer = torch.optim.SGD(groups)
        return optimizer, lambda_lr(optimizer, Cosine(warmup_epochs=1), 4, 12)

    optimizer, scheduler = build()
    for _ in range(8):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.5, 0.25])
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    optimizer, again = build()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    optimizer.step()
    again.step()
    expected = (1 + math.cos(math.pi * 5 / 8)) / 2
    assert again.get_last_lr() == pytest.approx([expected, expected / 2])


def test_lambda_lr_refuses_an_empty_run():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="total_steps"):
        lambda_lr(optimizer, Constant(), 1, 0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 1)
        self.norm = nn.BatchNorm3d(4)
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.fc = nn.Linear(4, 2)
        self.tied = self.fc
        self.scale = nn.Parameter(torch.zeros(1))  # as a temperature
        self.out = nn.MultiheadAttention(4, 1)


def test_norms_and_biases_are_spared_and_every_parameter_comes_once():
    net = Net()
    decayed, plain = parameter_groups(net, "kernels")
    assert "weight_decay" not in decayed
    assert plain["weight_decay"] == 0.0
    weights = [net.conv.weight, net.fc.weight, net.out.in_proj_weight]
    weights.append(net.out.out_proj.weight)
    assert {id(p) for p in decayed["params"]} == {id(p) for p in weights}
    spared = [net.conv.bias, net.norm.weight, net.norm.bias, net.fc.bias]
    spared += [net.scale, net.out.in_proj_bias, net.out.out_proj.bias]
    assert {id(p) for p in plain["params"]} == {id(p) for p in spared}
    assert len(decayed["params"]) + len(plain["params"]) == 11
    optimiser = torch.optim.SGD([decayed, plain], lr=0.1, weight_decay=1e-4)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [1e-4, 0.0]


def spared_names(net):
    groups = parameter_groups(net, "kernels")
    spared = {id(p) for group in groups if group.get("weight_decay") == 0 for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    return {name for name, p in net.named_parameters() if id(p) in spared}


def test_decay_spares_swins_position_biases():
    """They are tables of two dimensions whose names do not end in "bias"."""
    net = TimmNet("swin_tiny_patch4_window7_224", width=6, depth=(1, 1, 1, 1))
    expected = set()
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad
        if name.endswith((".bias", "relative_position_bias_table")) or "norm" in name:
            expected.add(name)
    assert sum("bias_table" in name for name in expected) == 4
    assert spared_names(net) == expected


def test_decay_spares_layer_scales_and_what_a_network_names():
    net = TimmNet("convnext_atto")
    scales = {name for name, _ in net.named_parameters() if name.endswith("gamma")}
    assert len(scales) == 12
    assert scales <= spared_names(net)
    vit = TimmNet("vit_tiny_patch16_224", drop_path=0.0)
    spared = spared_names(vit)
    assert {name.rpartition(".")[2] for name in spared} >= {"pos_embed", "cls_token"}
    assert not any(name.endswith("qkv.weight") for name in spared)


class Named(nn.Module):
    """A network that names a parameter and a module, as timm's do."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(2, 3))
        self.mlp = nn.Linear(3, 3)
        self.mlp2 = nn.Linear(3, 3)

    def no_weight_decay(self):
        return {"tokens", "mlp"}


def test_decay_spares_what_a_part_of_the_network_names():
    net = nn.Sequential(Named(), nn.Linear(3, 3))
    expected = {"0.tokens", "0.mlp.weight", "0.mlp.bias", "0.mlp2.bias", "1.bias"}
    assert spared_names(net) == expected


def test_decay_on_all_is_one_group():
    (group,) = parameter_groups(Net(), "all")
    assert "weight_decay" not in group
    assert len(group["params"]) == 11


def test_parameter_groups_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="decay"):
        parameter_groups(Net(), "bias")
    with pytest.raises(ValueError, match="no parameter"):
        parameter_groups(nn.ReLU())


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("Constant", {}, Constant()),
        ("Cosine", {"warmup_epochs": 10, "final": 0.001}, Cosine(10, 0.001)),
        (
            "MultiStep",
            {"milestones": [40, 60, 80], "warmup_steps": 1000},
            MultiStep((40.0, 60.0, 80.0), warmup_steps=1000),
        ),
    ],
)
def test_a_recipe_names_its_schedule_by_class_path(name, arguments, expected):
    def train(schedule: Schedule | None = None):
        return schedule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(train)
    config = parser.parse_object(
        {"schedule": {"class_path": f"lightning_vssl.optim.{name}", "init_args": arguments}}
    )
    assert parser.instantiate_classes(config).schedule == expected
