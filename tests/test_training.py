"""The loss against hand and torch, and the loop over batches."""

import copy
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fetalseg_helpers import evaluation, preprocessing, training, unet

few = hypothesis_settings(max_examples=25)
pytestmark = pytest.mark.usefixtures("one_thread")


def tensors(images=5, seed=0, size=(8, 12)):
    torch.manual_seed(seed)
    x = torch.rand(images, 1, *size)
    return TensorDataset(x, (x > 0.6).float())


def network_of(seed=0):
    torch.manual_seed(seed)
    return unet.UNet(2, 2, "batch")


def constant(optimiser):
    return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)


# The loss


def test_the_dice_loss_of_an_undecided_network_worked_by_hand():
    logits, truth = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
    # overlap 1/2, sums 1 + 1: (2 · 1/2 + 1) / (2 + 1) = 2/3
    assert training.dice_loss(logits, truth).item() == pytest.approx(1 / 3)
    assert training.dice_loss(logits, truth, smooth=0).item() == pytest.approx(1 / 2)


def test_the_dice_loss_is_0_for_perfect_and_near_1_for_worst_predictions():
    truth = torch.zeros(2, 1, 10, 10)
    truth[:, :, 2:6] = 1
    assert training.dice_loss(60 * (2 * truth - 1), truth).item() == pytest.approx(0, abs=1e-6)
    assert training.dice_loss(60 * (1 - 2 * truth), truth).item() == pytest.approx(1 - 1 / 101)


def test_smoothing_keeps_an_empty_truth_finite_and_its_gradient_too():
    logits = torch.full((1, 1, 4, 4), -100.0, requires_grad=True)
    loss = training.dice_loss(logits, torch.zeros(1, 1, 4, 4))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and torch.isfinite(logits.grad).all()
    assert torch.isnan(training.dice_loss(logits * 2, torch.zeros(1, 1, 4, 4), smooth=0))


@few
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31), st.floats(0.1, 5))
def test_the_loss_equals_a_plain_numpy_one_averaged_over_images(images, height, width, seed, positive):
    rng = np.random.default_rng(seed)
    logits, truth = rng.normal(0, 3, (images, 1, height, width)), rng.integers(0, 2, (images, 1, height, width))
    p = 1 / (1 + np.exp(-logits))
    dice = [(2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, truth, strict=True)]
    bce = -(positive * truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
    given_tensors = torch.from_numpy(logits), torch.from_numpy(truth).double()
    assert training.dice_loss(*given_tensors).item() == pytest.approx(1 - np.mean(dice))
    weighted = training.combined_loss(*given_tensors, 0.3, torch.tensor(positive).double())
    assert weighted.item() == pytest.approx(1 - np.mean(dice) + 0.3 * bce)


@few
@given(st.integers(0, 2**31))
def test_the_dice_loss_lies_between_0_and_1_and_ignores_mirroring(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(2, 1, 4, 5, generator=generator)
    truth = (torch.rand(2, 1, 4, 5, generator=generator) > 0.5).float()
    loss = training.dice_loss(logits, truth)
    assert 0 <= loss <= 1
    torch.testing.assert_close(training.dice_loss(logits.flip(-1), truth.flip(-1)), loss)


def test_the_combined_loss_adds_torchs_own_cross_entropy():
    torch.manual_seed(0)
    logits, truth = torch.randn(2, 1, 4, 4), (torch.rand(2, 1, 4, 4) > 0.5).float()
    bce = functional.binary_cross_entropy(torch.sigmoid(logits), truth)
    torch.testing.assert_close(training.combined_loss(logits, truth), training.dice_loss(logits, truth) + 0.2 * bce)
    assert training.combined_loss(logits, truth, bce_weight=0) == training.dice_loss(logits, truth)


def test_the_positive_weight_multiplies_tumor_pixels_only():
    logits, weight = torch.zeros(1, 1, 1, 2), torch.tensor(3.0)
    for truth, factor in ((0.0, 1), (1.0, 3)):
        mask = torch.full((1, 1, 1, 2), truth)
        bce = training.combined_loss(logits, mask, 1.0, weight) - training.dice_loss(logits, mask)
        assert bce.item() == pytest.approx(factor * math.log(2))


def test_the_gradient_of_the_loss_is_that_of_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 3, 4, dtype=torch.double, requires_grad=True)
    truth = (torch.rand(2, 1, 3, 4) > 0.5).double()
    assert torch.autograd.gradcheck(lambda x: training.dice_loss(x, truth), logits)
    weight = torch.tensor(2.0, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda x: training.combined_loss(x, truth, 0.2, weight), logits)


# The loop


def test_training_for_an_epoch_lowers_the_loss():
    network, loader = network_of(), DataLoader(tensors(8), 4)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-2)
    step = (network, loader, training.combined_loss, optimiser, constant(optimiser))
    losses = [training.train_one_epoch(*step) for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]
    assert network.training


def test_an_epochs_loss_is_the_mean_over_images_also_with_a_smaller_last_batch():
    masks = torch.tensor([0.0, 0.0, 1.0])[:, None, None, None].expand(3, 1, 8, 8)
    loader = DataLoader(TensorDataset(torch.rand(3, 1, 8, 8), masks), 2)
    network = network_of()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0)
    loss = training.train_one_epoch(
        network, loader, lambda x, t: 0 * x.sum() + t.mean(), optimiser, constant(optimiser)
    )
    assert loss == pytest.approx(1 / 3)


def test_gradients_are_shortened_and_the_learning_rate_moves_once_per_batch():
    network, loader = network_of(), DataLoader(tensors(6), 2)
    before = torch.cat([p.detach().clone().ravel() for p in network.parameters()])
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    halving = torch.optim.lr_scheduler.StepLR(optimiser, step_size=1, gamma=0.5)
    training.train_one_epoch(network, loader, lambda x, t: 1e4 * x.sum(), optimiser, halving, gradient_norm=0.01)
    moved = torch.cat([p.detach().ravel() for p in network.parameters()]) - before
    assert optimiser.param_groups[0]["lr"] == 1 / 8
    assert 0 < moved.norm() <= 0.01 * (1 + 1 / 2 + 1 / 4) * 1.001


def test_validation_scores_are_those_worked_by_hand_and_the_network_stays_as_it_is():
    network, dataset = network_of(), tensors(5)
    before = copy.deepcopy(network.state_dict())
    loss, dice = training.validate(network, dataset, training.combined_loss, batch_size=2)
    losses, scores = [], []
    with torch.no_grad():
        for x, t in dataset:
            logits = network.eval()(x[None])
            losses.append(training.combined_loss(logits, t[None]).item())
            scores.append(evaluation.dice_score(torch.sigmoid(logits)[0, 0].numpy() > 0.5, t[0].numpy()))
    assert dice == pytest.approx(np.mean(scores))
    assert loss == pytest.approx(np.mean(losses), rel=1e-4)
    torch.testing.assert_close(dict(network.state_dict()), dict(before), rtol=0, atol=0)


def test_validation_cuts_at_a_probability_of_a_half():
    network = torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.ones_(network.weight), torch.nn.init.constant_(network.bias, -0.3)
    x = torch.tensor([0.2, 0.4, 0.6, 0.1]).reshape(1, 1, 2, 2)  # logits -0.1, 0.1, 0.3, -0.2
    truth = torch.tensor([0.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    _, dice = training.validate(network, TensorDataset(x, truth), training.combined_loss)
    assert dice == pytest.approx(2 / 3)


def test_a_short_fit_learns_its_rows_and_takes_the_settings(tmp_path, draw_pairs):
    draw_pairs(tmp_path / "malignant")
    preprocessing.ensure_prepared(tmp_path / "run", 48, 32, data=str(tmp_path / "malignant"), seed=0)
    dataset = preprocessing.PreparedDataset(tmp_path / "run", "train")
    seen = torch.utils.data.Subset(dataset, range(6))
    chosen = training.Settings(batch_size=3, learning_rate=1e-2, seed=1)
    before, after = network_of(), network_of()
    training.train_briefly(after, dataset, range(6), 200, chosen)
    assert not after.training
    scores = [training.validate(one, seen, training.combined_loss)[1] for one in (before, after)]
    assert scores[1] > max(0.85, scores[0])
    again = training.train_briefly(network_of(), dataset, range(6), 200, chosen)
    torch.testing.assert_close(dict(again.state_dict()), dict(after.state_dict()), rtol=0, atol=0)
    still = training.train_briefly(
        network_of(), dataset, range(6), 1, replace(chosen, learning_rate=1e-12, schedule="constant")
    )
    torch.testing.assert_close(still.last.weight, network_of().last.weight)
    weighted = (replace(chosen, bce_weight=weight) for weight in (0, 5))
    one, other = (training.train_briefly(network_of(), dataset, range(3), 1, values) for values in weighted)
    assert not torch.equal(one.last.weight, other.last.weight)


@pytest.mark.parametrize(
    ("scores", "epoch"),
    [
        ([0.1, 0.5, 0.90, 0.87, 0.90, 0.905], 5),
        ([0.9, 0.9, 0.9], 1),
        ([0.1, 0.9], 2),
        ([0.9, 0.5], None),
        ([0.7], 1),
        ([], None),
    ],
)
def test_the_stable_epoch_worked_by_hand(scores, epoch):
    history = pd.DataFrame({"epoch": range(1, len(scores) + 1), "valid_dice": scores})
    assert training.stable_epoch(history) == epoch


@few
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(0, 5))
def test_from_the_stable_epoch_on_and_not_before_every_dice_is_near_the_best(scores, tolerance):
    history = pd.DataFrame({"epoch": range(1, len(scores) + 1), "valid_dice": scores})
    near = [score >= max(scores) - tolerance for score in scores]
    starts = [number for number in range(1, len(scores) + 1) if all(near[number - 1 :])]
    assert training.stable_epoch(history, tolerance) == (starts[0] if starts else None)
