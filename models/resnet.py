"""Residual networks for 32x32 images, as in section 4.2 of He et al., "Deep Residual Learning" (arXiv:1512.03385).

One difference: where a stage begins with stride 2, the shortcut is a 1x1 convolution with BatchNorm (their option B),
not zero padding (option A). Dropout before the linear layer is an addition too.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut connection. (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out.add_(self.shortcut(x)), inplace=True)  # in place: less memory traffic


class ResNet(nn.Module):
    """A stem, three stages of basic blocks, global average pooling, dropout and a linear classifier.

    Args:
        blocks_per_stage: basic blocks in each of the three stages; the depth is 6 * blocks_per_stage + 2.
        widths: channels of the three stages; the stem has the first of them.
        num_classes: length of the output.
        dropout_rate: probability that a pooled feature is dropped while training.
    """

    def __init__(
        self, *, blocks_per_stage: int, widths: tuple[int, int, int], num_classes: int = 10, dropout_rate: float = 0.3
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.stage1 = _stage(widths[0], widths[0], blocks=blocks_per_stage, stride=1)
        self.stage2 = _stage(widths[0], widths[1], blocks=blocks_per_stage, stride=2)
        self.stage3 = _stage(widths[1], widths[2], blocks=blocks_per_stage, stride=2)
        self.dropout = nn.Dropout(dropout_rate)
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al., "Delving Deep into Rectifiers", section 2.2
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images, float (N, 3, 32, 32), to logits, float (N, num_classes)."""
        x = F.relu(self.bn(self.conv(images)), inplace=True)  # (N, 16, 32, 32), with the widths of ResNet-20
        x = self.stage1(x)  # (N, 16, 32, 32)
        x = self.stage2(x)  # (N, 32, 16, 16)
        x = self.stage3(x)  # (N, 64, 8, 8)
        x = F.avg_pool2d(x, kernel_size=(x.shape[2], x.shape[3])).flatten(1)  # (N, 64)
        logits: Tensor = self.linear(self.dropout(x))
        return logits


def _stage(in_channels: int, out_channels: int, *, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride=stride)
    rest = [BasicBlock(out_channels, out_channels, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
