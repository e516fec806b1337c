"""A dense training step in PyTorch, for the networks that `benchmarks.sparse*` time in JAX.

    pip install torch --index-url https://download.pytorch.org/whl/cpu
    python -m benchmarks.pytorch
    python -m benchmarks.pytorch --network wrn_16_8 --batch 32 --turns 3

Forward, both gradients and SGD with momentum, including batch normalization, on synthetic examples,
in float32, eager, with as many threads as cores; medians. Convolutions: forward and both gradients.
It runs on its own, so that no other runtime holds threads meanwhile: compare its milliseconds with
those of an idle machine of the same kind.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.shapes import CONVOLUTIONS
from benchmarks.shapes import NETWORKS as PERCEPTRONS
from experiments.common.report.tables import markdown

VGG_16 = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)


def perceptron(*sizes: int) -> nn.Module:
    """Dense layers with ReLU between them."""
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolution(
    inputs: int, outputs: int, size: int = 3, stride: int = 1, bias: bool = False
) -> nn.Module:
    """A convolution that keeps the size of the image, or divides it by the stride."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=bias)


def lenet_5_caffe() -> nn.Module:
    """20 and 50 features with 5x5 windows, 500 units."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), perceptron(800, 500, 10),
    )  # fmt: skip


def vgg_16_d() -> nn.Module:
    """The variant with two dense layers of 512 units, all layers normalized."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in VGG_16:
        for features in stage:
            layers += [convolution(channels, features), nn.BatchNorm2d(features), nn.ReLU()]
            channels = features
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for _ in range(2):
        layers += [nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10))


class WideBlock(nn.Module):
    """Two convolutions, each after normalization and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = convolution(inputs, outputs, stride=stride)
        self.conv2 = convolution(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else convolution(inputs, outputs, 1, stride)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """Planes `(batch, channels, height, width)`."""
        ready = torch.relu(self.norm1(planes))
        out = self.conv2(torch.relu(self.norm2(self.conv1(ready))))
        return out + (planes if self.shortcut is None else self.shortcut(ready))


def wrn_16_8() -> nn.Module:
    """Two blocks per stage, with 128, 256 and 512 features."""
    layers, width = [convolution(3, 16)], 16
    for stage, wide in enumerate((128, 256, 512)):
        layers += [WideBlock(width, wide, 2 if stage else 1), WideBlock(wide, wide, 1)]
        width = wide
    end = [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *end, nn.Linear(width, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Sequence[int], int]] = {
    **{
        name: (functools.partial(perceptron, *sizes), sizes[:1], batch)
        for name, (sizes, batch) in PERCEPTRONS.items()
    },
    "lenet_5_caffe": (lenet_5_caffe, (1, 28, 28), 100),
    "vgg_16_d": (vgg_16_d, (3, 32, 32), 128),
    "wrn_16_8": (wrn_16_8, (3, 32, 32), 128),
}
"""The function that makes each, the shape of an example, and examples per step."""


def training(make: Callable[[], nn.Module], shape: Sequence[int], batch: int) -> Callable[[], Any]:
    """A call that does one training step."""
    network = make()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    examples, labels = torch.randn(batch, *shape), torch.randint(10, (batch,))

    def call() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(examples), labels).backward()
        optimizer.step()

    return call


def convolving(
    inputs: int, outputs: int, side: int, size: int, stride: int, batch: int
) -> Callable[[], Any]:
    """A call of one convolution, forward and both gradients."""
    layer = convolution(inputs, outputs, size, stride)
    images = torch.randn(batch, inputs, side, side, requires_grad=True)
    grads = torch.randn_like(layer(images))
    return lambda: torch.autograd.grad(layer(images), [images, *layer.parameters()], grads)


def milliseconds(call: Callable[[], Any], turns: int) -> float:
    """The median over some calls, after two warm-up calls."""
    call(), call()
    spent = []
    for _ in range(turns):
        began = time.perf_counter()
        call()
        spent.append(1000 * (time.perf_counter() - began))
    return statistics.median(spent)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default=",".join(NETWORKS), help="comma-separated")
    parser.add_argument("--batch", type=int, help="examples per step (default: the paper's)")
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for name in args.network.split(","):
        if name not in NETWORKS:
            parser.error(f"--network must be among {', '.join(NETWORKS)}, got {name!r}")
        make, shape, batch = NETWORKS[name]
        batch = args.batch or batch
        found = milliseconds(training(make, shape, batch), args.turns)
        rows.append([f"{name}, batch {batch}", f"{found:.1f}"])
    for name, sizes in CONVOLUTIONS.items():
        rows.append([name, f"{milliseconds(convolving(*sizes), args.turns):.1f}"])
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    print(markdown(["", "ms a step"], rows))


if __name__ == "__main__":
    main()
