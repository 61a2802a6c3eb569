"""The U-Net of Ronneberger, Fischer and Brox (MICCAI 2015, arXiv 1505.04597), with padded convolutions."""

import torch
from torch import nn

from fetalseg_helpers.workspace import FetalsegError, choose_device, memory_format

NORMALISATIONS = {"none": lambda channels: nn.Identity(), "batch": nn.BatchNorm2d}


class ConvBlock(nn.Module):
    """Two 3 × 3 convolutions, each with a normalisation ('none' or 'batch') and a ReLU; height and width stay."""

    def __init__(self, in_channels, out_channels, normalisation="none"):
        super().__init__()
        layers = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=normalisation == "none"),
                NORMALISATIONS[normalisation](out_channels),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)  # (batch, out_channels, height, width)


class Down(nn.Module):
    """Half the height and width by 2 × 2 max pooling, then a ConvBlock with twice the channels."""

    def __init__(self, in_channels, normalisation="none"):
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.block = ConvBlock(in_channels, 2 * in_channels, normalisation)

    def forward(self, x):
        return self.block(self.pool(x))  # (batch, 2 * in_channels, height / 2, width / 2)


class Up(nn.Module):
    """Twice the height and width by a 2 × 2 transposed convolution, the skip beside it, then a ConvBlock."""

    def __init__(self, in_channels, normalisation="none"):
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(
            in_channels, in_channels // 2, kernel_size=2, stride=2, bias=normalisation == "none"
        )
        self.block = ConvBlock(in_channels, in_channels // 2, normalisation)

    def forward(self, x, skip):
        x = torch.cat([skip, self.enlarge(x)], dim=1)  # (batch, in_channels, 2 * height, 2 * width)
        return self.block(x)  # (batch, in_channels / 2, 2 * height, 2 * width)


class UNet(nn.Module):
    """Grey image in, one logit per pixel out; `probability_map` gives P(tumor).

    The paper's convolutions are unpadded, so its maps shrink; here they are padded, and the output has the size of the
    input. `base_channels` doubles with each of the `depth` levels. The paper uses no normalisation, and has 31,030,593
    parameters with 64 channels and depth 4; batch normalisation trains faster.
    """

    def __init__(self, base_channels=64, depth=4, normalisation="none"):
        super().__init__()
        self.depth = depth
        channels = [base_channels * 2**level for level in range(depth + 1)]
        self.first = ConvBlock(1, base_channels, normalisation)
        self.downs = nn.ModuleList(Down(c, normalisation) for c in channels[:-1])
        self.ups = nn.ModuleList(Up(c, normalisation) for c in reversed(channels[1:]))
        self.last = nn.Conv2d(base_channels, 1, kernel_size=1)

    def forward(self, x):
        check_divisible(x.shape[-2], x.shape[-1], self.depth)
        skips = [self.first(x)]  # (batch, base_channels, height, width)
        for down in self.downs:
            skips.append(down(skips[-1]))
        x = skips.pop()  # (batch, base_channels * 2^depth, height / 2^depth, width / 2^depth)
        for up in self.ups:
            x = up(x, skips.pop())
        return self.last(x)  # (batch, 1, height, width), logits

    def probability_map(self, x):
        """P(tumor) of each pixel."""
        return torch.sigmoid(self(x))  # (batch, 1, height, width), 0 to 1


def make_network(base_channels, depth, normalisation):
    """A U-Net on the fastest device at hand, its weights in the layout that convolutions like best there."""
    device = choose_device()
    return UNet(base_channels, depth, normalisation).to(device, memory_format=memory_format(device))


def check_divisible(height, width, depth):
    """Raise FetalsegError unless both sizes can be halved `depth` times, so that every skip fits."""
    step = 2**depth
    if width % step or height % step:
        smaller = width // step * step, height // step * step
        larger = -(-width // step) * step, -(-height // step) * step
        nearest = " or ".join(f"{w} × {h}" for w, h in (smaller, larger) if w and h)
        divisor = f"2^{depth} = {step}"
        raise FetalsegError(f"{width} × {height} does not divide by {divisor}: use {nearest}, or another depth.")
