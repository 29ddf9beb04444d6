"""Losses, optimizers and schedules against their definitions and torch's own."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from pipeline.spec import BceLoss, LossSpec, OptimizerSpec, ScheduleSpec, SoftF1Loss, SoftmaxF1Loss
from pipeline.training import losses
from pipeline.training.losses import asymmetric, balanced_pos_weight, class_balanced_weight, unsound_logits
from pipeline.training.optim import build_optimizer
from pipeline.training.schedules import PlateauState, lr_scale, momentum_at

TARGETS = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0]])


def logits(seed=0):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def build_loss(spec, targets_NK=None):
    return losses.build_loss(spec, TARGETS.numpy().astype(np.uint8) if targets_NK is None else targets_NK)


def made(kind, **settings):
    return TypeAdapter(kind).validate_python(settings)


# ---------------------------------------------------------------- losses


def test_bce_is_torch_s_with_its_weights():
    weight_K = torch.tensor([1 / 3, 3.0, 3.0])
    expected = nn.BCEWithLogitsLoss(pos_weight=weight_K)(logits(), TARGETS)
    torch.testing.assert_close(build_loss(BceLoss(pos_weight="balanced"))(logits(), TARGETS), expected)
    plain = nn.BCEWithLogitsLoss()(logits(), TARGETS)
    torch.testing.assert_close(build_loss(BceLoss())(logits(), TARGETS), plain)


def test_focal_and_asymmetric_are_bce_without_their_exponents():
    plain = nn.BCEWithLogitsLoss()(logits(), TARGETS)
    focal = made(LossSpec, name="focal", gamma=0)
    asl = made(LossSpec, name="asymmetric", gamma_negative=0, gamma_positive=0, clip=0)
    for spec in (focal, asl):
        torch.testing.assert_close(build_loss(spec)(logits(), TARGETS), plain)
    halved = build_loss(made(LossSpec, name="focal", gamma=0, alpha=0.5))
    torch.testing.assert_close(halved(logits(), TARGETS), plain / 2)


def test_focal_is_torchvision_s():
    from torchvision.ops import sigmoid_focal_loss

    expected = sigmoid_focal_loss(logits(), TARGETS, alpha=0.25, gamma=2, reduction="mean")
    found = build_loss(made(LossSpec, name="focal", gamma=2, alpha=0.25))(logits(), TARGETS)
    torch.testing.assert_close(found, expected)


def test_asymmetric_is_the_paper_s_formula_and_drops_easy_negatives():
    p = torch.sigmoid(logits())
    lowered = (p - 0.05).clamp(min=0)
    each = TARGETS * (1 - p) ** 1 * p.log() + (1 - TARGETS) * lowered**4 * (1 - lowered).log()
    loss = build_loss(made(LossSpec, name="asymmetric", gamma_positive=1))
    torch.testing.assert_close(loss(logits(), TARGETS), -each.mean())
    easy = torch.full((1, 1), -4.0, requires_grad=True)
    loss(easy, torch.zeros(1, 1)).backward()
    assert easy.grad.item() == 0
    extreme = torch.tensor([[100.0, -100.0]], requires_grad=True)
    value = loss(extreme, torch.tensor([[0.0, 1.0]]))
    value.backward()
    assert value.isfinite()
    assert extreme.grad.isfinite().all()


def test_smoothing_and_mixture_by_hand():
    smooth = build_loss(BceLoss(label_smoothing=0.1))(logits(), TARGETS)
    torch.testing.assert_close(smooth, nn.BCEWithLogitsLoss()(logits(), TARGETS * 0.8 + 0.1))
    mixed = build_loss(made(LossSpec, name="bce_soft_f1", soft_f1_fraction=0.3, average="micro"))(
        logits(), TARGETS
    )
    f1 = build_loss(SoftF1Loss(name="soft_f1", average="micro"))(logits(), TARGETS)
    torch.testing.assert_close(mixed, 0.7 * nn.BCEWithLogitsLoss()(logits(), TARGETS) + 0.3 * f1)


def test_class_balanced_weights_are_one_over_the_effective_number():
    targets_NK = np.array([[1, 0], [1, 0], [1, 1]], np.uint8)
    effective = np.array([(1 - 0.9**3) / 0.1, 1.0])
    expected = (1 / effective) / (1 / effective).mean()
    spec = made(LossSpec, name="bce", label_weight="class_balanced", class_balanced_beta=0.9)
    assert class_balanced_weight(targets_NK, 0.9).tolist() == pytest.approx(expected)
    elements = nn.BCEWithLogitsLoss(reduction="none")(logits()[:, :2], TARGETS[:, :2])
    found = build_loss(spec, targets_NK)(logits()[:, :2], TARGETS[:, :2])
    torch.testing.assert_close(found, (elements * torch.tensor(expected).float()).mean())


@pytest.mark.parametrize("average", ["micro", "macro", "weighted"])
def test_soft_f1_of_certain_scores_is_scikit_learn_s_f1(average):
    from sklearn.metrics import f1_score

    decided = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 0]])
    certain = torch.from_numpy((decided - 0.5) * 200).float()
    expected = f1_score(TARGETS.numpy(), decided, average=average, zero_division=0)
    loss = build_loss(SoftF1Loss(name="soft_f1", average=average))(certain, TARGETS)
    assert 1 - loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "spec", [SoftF1Loss(name="soft_f1", average=a) for a in ("micro", "macro", "weighted")]
)
def test_soft_f1_teaches(spec):
    net, loss = logits(), build_loss(spec)
    before = loss(net, TARGETS).item()
    (gradient,) = torch.autograd.grad(loss(net, TARGETS), net)
    assert loss(net - gradient, TARGETS).item() < before
    assert loss(logits(), torch.zeros(4, 3)).isfinite()


def test_the_failed_loss_is_softmax_over_labels_and_one_f1():
    scores = torch.softmax(logits(), dim=1)
    tp = (scores * TARGETS).sum()
    fp, fn = (scores * (1 - TARGETS)).sum(), ((1 - scores) * TARGETS).sum()
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    expected = 1 - 2 * precision * recall / (precision + recall)
    loss = build_loss(SoftmaxF1Loss(name="failed_softmax_f1"))
    torch.testing.assert_close(loss(logits(), TARGETS), expected)
    # why it fails: with three labels on an image no scores can be right, however sure
    right = torch.full((1, 3), 50.0)
    assert loss(right, torch.ones(1, 3)).item() > 0.4


def test_balanced_weights_are_negatives_over_positives_capped():
    targets_NK = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0]], np.uint8)
    assert balanced_pos_weight(targets_NK, 2.0).tolist() == pytest.approx([1 / 3, 2.0, 2.0])
    assert made(LossSpec, name="bce").pos_weight == "none"


# ---------------------------------------------------------------- optimizers


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True}, torch.optim.SGD),
        ({"name": "adam", "lr": 0.01, "betas": (0.8, 0.99)}, torch.optim.Adam),
        ({"name": "adamw", "lr": 0.01}, torch.optim.AdamW),
        ({"name": "rmsprop", "lr": 0.01, "alpha": 0.9}, torch.optim.RMSprop),
        ({"name": "adadelta"}, torch.optim.Adadelta),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_step_is_torch_s(settings, reference):
    def step(make):
        torch.manual_seed(0)
        net = nn.Linear(4, 2)
        optimizer = make(net)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(3, 4)).square().sum().backward()
            optimizer.step()
        return net.weight

    plain = {key: value for key, value in settings.items() if key != "name"}
    ours = step(lambda net: build_optimizer(made(OptimizerSpec, **settings, decay_bias_and_norm=True), net))
    torch.testing.assert_close(ours, step(lambda net: reference(net.parameters(), **plain)))


def test_biases_and_norms_are_not_decayed_unless_asked():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    spec = {"name": "adamw", "weight_decay": 0.1}
    decayed, spared = build_optimizer(made(OptimizerSpec, **spec), net).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert all(p.ndim == 1 for p in spared["params"])
    (everything,) = build_optimizer(made(OptimizerSpec, **spec, decay_bias_and_norm=True), net).param_groups
    assert len(everything["params"]) == 6


def test_the_backbone_has_a_rate_of_its_own():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    spec = made(OptimizerSpec, name="adamw", lr=0.1, backbone_lr_factor=0.5)
    groups = build_optimizer(spec, net, net[2]).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert [rates[id(p)] for p in net.parameters()] == pytest.approx([0.05, 0.05, 0.1, 0.1])


def test_frozen_parameters_are_left_out():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    net[0].requires_grad_(False)
    groups = build_optimizer(made(OptimizerSpec, name="sgd"), net).param_groups
    assert sum(len(group["params"]) for group in groups) == 2


# ---------------------------------------------------------------- schedules


def curve(steps=100, per_epoch=10, **settings):
    schedule = made(ScheduleSpec, **settings)
    return [lr_scale(schedule, step, per_epoch, steps // per_epoch) for step in range(steps)]


def torch_curve(make, steps=100):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine_and_step_are_torch_s():
    lr = torch.optim.lr_scheduler
    assert curve(name="cosine") == pytest.approx(
        torch_curve(lambda o: lr.CosineAnnealingLR(o, 100)), abs=1e-9
    )
    by_epoch = torch_curve(lambda o: lr.StepLR(o, 30, 0.5))
    assert curve(name="step", every_epochs=3, factor=0.5) == pytest.approx(by_epoch)
    assert set(curve(name="constant")) == {1.0}


def test_one_cycle_is_torch_s_in_rate_and_momentum_and_ends_where_it_says():
    schedule = made(ScheduleSpec, name="one_cycle")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=100, pct_start=0.3, div_factor=25, final_div_factor=1e4
    )
    for step in range(100):
        group = optimizer.param_groups[0]
        assert lr_scale(schedule, step, 10, 10) == pytest.approx(group["lr"], abs=1e-9)
        assert momentum_at(schedule, step, 10, 10) == pytest.approx(group["momentum"], abs=1e-9)
        optimizer.step()
        if step < 99:
            theirs.step()
    assert lr_scale(schedule, 99, 10, 10) == pytest.approx(4e-6)
    assert momentum_at(schedule, 99, 10, 10) == pytest.approx(0.95)
    assert momentum_at(made(ScheduleSpec, name="one_cycle", momentum=None), 5, 10, 10) is None
    assert momentum_at(made(ScheduleSpec, name="cosine"), 5, 10, 10) is None


@pytest.mark.parametrize("factor", [1, 2])
def test_warm_restarts_are_torch_s(factor):
    theirs = torch_curve(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=20, T_mult=factor)
    )
    assert curve(name="cosine_restarts", first_epochs=2, factor=factor) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("name", ["constant", "cosine", "cosine_restarts", "step", "one_cycle", "plateau"])
def test_warm_up_rises_in_a_line_before_any_schedule(name):
    rates = curve(name=name, warmup_epochs=2)
    assert rates[:20] == pytest.approx([(i + 1) / 21 for i in range(20)])
    rest = curve(steps=80, name=name)
    assert rates[20:] == pytest.approx(rest)


def test_plateau_waits_then_cuts():
    schedule = made(ScheduleSpec, name="plateau", factor=0.5, patience_epochs=2)
    state, factors = PlateauState(), []
    for is_best in (True, True, False, False, True, False):
        state = state.after_epoch(schedule, is_best=is_best, informative=True)
        factors.append(state.factor)
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5]
    constant = made(ScheduleSpec, name="constant")
    assert PlateauState().after_epoch(constant, is_best=False, informative=True) == PlateauState()


def test_plateau_does_not_wait_while_no_label_is_decided():
    schedule = made(ScheduleSpec, name="plateau", factor=0.5, patience_epochs=1)
    state = PlateauState()
    for _ in range(5):
        state = state.after_epoch(schedule, is_best=False, informative=False)
    assert state.factor == 1


@pytest.mark.parametrize("loss", [
    {"name": "focal", "gamma": 0.5}, {"name": "focal", "gamma": 0.2, "alpha": 0.25}, {"name": "focal", "gamma": 2.0},
    {"name": "asymmetric", "gamma_negative": 0.5, "clip": 0.0}, {"name": "asymmetric", "gamma_negative": 0.5},
    {"name": "asymmetric", "gamma_positive": 0.3}, {"name": "asymmetric"}, {"name": "bce", "pos_weight": "balanced"},
    {"name": "soft_f1"}, {"name": "bce_soft_f1"}, {"name": "failed_softmax_f1"},
])  # fmt: skip
def test_no_loss_has_a_gradient_that_is_not_finite(loss):
    labels_NK = np.eye(4, dtype=np.uint8)
    assert unsound_logits(build_loss(made(LossSpec, **loss), labels_NK), 4) is None


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_gradient_is_right_at_saturated_logits(gamma, clip):
    """Against differences of the formula in double precision, also where the power's own gradient is infinite."""
    logits = torch.tensor([[-60.0, -20, -4, -2, 0, 2, 4, 20, 60]], dtype=torch.float64)

    def plain(x, target):
        p = 1 / (1 + np.exp(-x))
        lowered = max(p - clip, 0)
        if target:
            return np.log1p(np.exp(-x)) * (1 / (1 + np.exp(x))) ** gamma
        return -(np.log1p(-lowered) if clip else -np.logaddexp(0, x)) * lowered**gamma

    for target in (0.0, 1.0):
        x = logits.clone().requires_grad_()
        loss_BK = asymmetric(x, torch.full_like(x, target), negative=gamma, positive=gamma, clip=clip)
        (gradient,) = torch.autograd.grad(loss_BK.sum(), x)
        for value, ours, at in zip(loss_BK[0], gradient[0], logits[0], strict=True):
            h = 1e-5
            slope = (plain(at.item() + h, target) - plain(at.item() - h, target)) / (2 * h)
            assert value.item() == pytest.approx(plain(at.item(), target), rel=1e-6, abs=1e-9)
            assert ours.item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_a_loss_at_fault_is_found():
    def broken(logits_BK, targets_BK):
        return (torch.sigmoid(-logits_BK) ** 0.5 * (1 - targets_BK)).mean()

    assert unsound_logits(broken, 3) == 100
