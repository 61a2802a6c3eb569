"""The network: its size, its shapes, its skips, its layout in memory, and the sizes that it refuses."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fetalseg_helpers import unet, workspace
from fetalseg_helpers.workspace import FetalsegError

NORMALISATIONS = ("none", "batch")
few = settings(max_examples=15)


def small(normalisation="batch", base_channels=4, depth=2, seed=0):
    torch.manual_seed(seed)
    return unet.UNet(base_channels, depth, normalisation)


def expected_parameters(base, depth, batch):
    """Counted level by level: weights k·k·in·out, one bias per channel, or two values per channel of batch norm."""
    extra = 2 if batch else 1

    def block(channels_in, channels_out):
        return 9 * channels_out * (channels_in + channels_out) + 2 * extra * channels_out

    total = block(1, base) + base + 1
    for level in range(depth):
        narrow, wide = base * 2**level, base * 2 ** (level + 1)
        total += block(narrow, wide)  # down
        total += 4 * wide * narrow + block(wide, narrow)  # up
        total += 0 if batch else narrow  # a bias only where no normalisation takes it away again
    return total


def count_parameters(network):
    return sum(values.numel() for values in network.parameters())


def test_the_default_network_has_exactly_31_030_593_parameters():
    with torch.device("meta"):
        network = unet.UNet()
    assert network.first.layers[0].in_channels == 1
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert count_parameters(network) == 31_030_593 == expected_parameters(64, 4, False)


@few
@given(st.integers(1, 24), st.integers(1, 6), st.sampled_from(NORMALISATIONS))
def test_the_number_of_parameters_follows_the_formula(base, depth, normalisation):
    with torch.device("meta"):
        network = unet.UNet(base, depth, normalisation)
    assert count_parameters(network) == expected_parameters(base, depth, normalisation == "batch")


@few
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_the_output_has_the_size_of_the_input_and_one_channel(base, depth, rows, columns, images):
    height, width = rows * 2**depth, columns * 2**depth
    output = unet.UNet(base, depth).eval()(torch.rand(images, 1, height, width))
    assert output.shape == (images, 1, height, width)


def test_a_size_that_does_not_divide_is_refused_with_the_two_nearest_that_do():
    with pytest.raises(FetalsegError, match=r"800 × 540 .* 2\^4 = 16: use 800 × 528 or 800 × 544"):
        unet.check_divisible(540, 800, 4)
    with pytest.raises(FetalsegError, match="use 48 × 32 or 52 × 32"):
        small()(torch.zeros(1, 1, 32, 50))


@few
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 7))
def test_a_size_passes_or_those_that_are_proposed_divide_and_enclose_it(height, width, depth):
    step = 2**depth
    if height % step == width % step == 0:
        unet.check_divisible(height, width, depth)
        return
    with pytest.raises(FetalsegError) as refusal:
        unet.check_divisible(height, width, depth)
    proposed = re.findall(r"(\d+) × (\d+)", str(refusal.value).split("use")[1])
    sizes = [(int(rows), int(columns)) for columns, rows in proposed]
    assert all(rows % step == columns % step == 0 for rows, columns in sizes)
    assert sizes[-1][0] - step < height <= sizes[-1][0] and sizes[-1][1] - step < width <= sizes[-1][1]
    if len(sizes) == 2:
        assert sizes[0][0] <= height < sizes[0][0] + step and sizes[0][1] <= width < sizes[0][1] + step


def test_a_refusal_never_proposes_a_size_of_0():
    with pytest.raises(FetalsegError) as refusal:
        unet.check_divisible(90, 100, 7)
    assert "use 128 × 128," in str(refusal.value)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_skip_is_used(level):
    network, image = small(depth=3), torch.rand(2, 1, 16, 24)  # training mode: every map has unit variance
    before = network(image)
    handle = network.ups[level].register_forward_pre_hook(lambda _, given: (given[0], torch.zeros_like(given[1])))
    after = network(image)
    handle.remove()
    assert not torch.allclose(before, after, atol=1e-2)
    assert torch.equal(network(image), before)


def test_the_depths_of_the_network_are_used():
    network, image = small(), torch.rand(2, 1, 16, 24)
    before = network(image)
    handle = network.downs[-1].register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    after = network(image)
    handle.remove()
    assert not torch.allclose(before, after, atol=1e-2)


def test_in_eval_mode_an_image_does_not_depend_on_the_rest_of_its_batch():
    network, images = small("batch"), torch.rand(5, 1, 16, 24)
    network.train()
    with torch.no_grad():
        network(3 * images)  # running statistics of their own
        together, alone = network(images)[2], network(images[2:3])[0]
        assert not torch.allclose(together, alone, atol=1e-4)  # so that the line below means something
        network.eval()
        together, alone = network(images)[2], network(images[2:3])[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_probability_map_is_the_sigmoid_of_the_logits():
    network, image = small().eval(), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        expected = 1 / (1 + torch.exp(-network(image)))
        torch.testing.assert_close(network.probability_map(image), expected)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_every_map_on_the_way_has_the_shape_worked_by_hand(normalisation):
    network, shapes = small(normalisation).eval(), []
    parts = [network.first, *network.downs, *network.ups, network.last]
    for part in parts:
        part.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    network(torch.rand(3, 1, 32, 48))
    down, up = [(3, 4, 32, 48), (3, 8, 16, 24), (3, 16, 8, 12)], [(3, 8, 16, 24), (3, 4, 32, 48)]
    assert shapes == [*down, *up, (3, 1, 32, 48)]


# The layout of the weights


def test_weights_are_channels_last_on_cpu_and_cuda_and_contiguous_on_apples_mps():
    assert workspace.memory_format(torch.device("cpu")) == workspace.memory_format("cuda:1") == torch.channels_last
    assert workspace.memory_format(torch.device("mps")) == workspace.memory_format("mps:0") == torch.contiguous_format


@pytest.mark.parametrize(("device", "layout"), [("cpu", torch.channels_last), ("mps", torch.contiguous_format)])
def test_a_new_network_goes_to_the_device_that_is_chosen_in_the_layout_of_that_device(monkeypatch, device, layout):
    asked = []

    def to(self, *args, **options):  # in place of the real one, which would need a Mac
        asked.append((args, options))
        return self

    monkeypatch.setattr(unet, "choose_device", lambda: torch.device(device))
    monkeypatch.setattr(unet.UNet, "to", to)
    unet.make_network(2, 2, "batch")
    assert asked == [((torch.device(device),), {"memory_format": layout})]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_weights_of_a_new_network_really_have_that_layout(monkeypatch, layout):
    monkeypatch.setattr(unet, "choose_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(unet, "memory_format", lambda device: layout)
    wide = [weight for weight in unet.make_network(4, 2, "batch").parameters() if weight.dim() == 4]
    wide = [weight for weight in wide if min(weight.shape) > 1]  # with one channel both layouts are the same
    other = {torch.channels_last: torch.contiguous_format, torch.contiguous_format: torch.channels_last}[layout]
    assert wide and all(weight.is_contiguous(memory_format=layout) for weight in wide)
    assert not any(weight.is_contiguous(memory_format=other) for weight in wide)


def test_only_one_place_of_the_package_decides_about_the_layout():
    package = Path(unet.__file__).parent
    naming = {path.name for path in package.rglob("*.py") if "torch.channels_last" in path.read_text(encoding="utf-8")}
    assert naming == {"workspace.py"}


# Its parts


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_gradients_reach_every_parameter(normalisation):
    network = small(normalisation)
    network(torch.rand(2, 1, 16, 24)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_block_without_normalisation_is_two_convolutions_with_relu():
    block, x = unet.ConvBlock(2, 3), torch.rand(1, 2, 5, 7)
    first, second = block.layers[0], block.layers[3]
    by_hand = torch.relu(nn.functional.conv2d(x, first.weight, first.bias, padding=1))
    by_hand = torch.relu(nn.functional.conv2d(by_hand, second.weight, second.bias, padding=1))
    torch.testing.assert_close(block(x), by_hand)
