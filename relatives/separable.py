"""Separable convolutions: each as one per channel, then one across channels (GamePlay's networks, without biases)."""

from torch import nn

from model import QNetwork


class Separable(QNetwork):
    """A thirteenth of the convolutions' multiplications."""

    def convolution(self, channels: int, filters: int, *, kernel_size: int, stride: int, padding: int = 0) -> nn.Module:
        self.shrink(kernel_size, stride, padding)
        per_channel = nn.Conv2d(channels, channels, kernel_size, stride, padding, groups=channels, bias=False)
        return nn.Sequential(per_channel, nn.Conv2d(channels, filters, 1, bias=False))
