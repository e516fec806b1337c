"""The sizes of what is timed in JAX and in PyTorch."""

NETWORKS = {  # units of the layers, batch
    "MLP": ((1024, 4096, 1024), 128),
    "LeNet-300-100": ((784, 300, 100, 10), 100),
    "feed-forward": ((512, 2048, 512), 1024),
    "attention projections": ((512, 512, 512, 512, 512), 1024),
}
CONVOLUTIONS = {  # channels in and out, side of the image, window, stride, batch
    "64, 32x32": (64, 64, 32, 3, 1, 64),
    "128, 16x16": (128, 128, 16, 3, 1, 64),
    "256, 8x8": (256, 256, 8, 3, 1, 64),
    "512, 4x4": (512, 512, 4, 3, 1, 64),
    "128 to 256, 32x32, stride 2": (128, 256, 32, 3, 2, 128),
    "128 to 256, 32x32, 1x1, stride 2": (128, 256, 32, 1, 2, 128),
}
