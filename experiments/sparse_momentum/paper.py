"""Dettmers & Zettlemoyer's own numbers on MNIST, test accuracies in percent with standard error.

From the result files of the published code: the comparison with Mostafa & Wang's runs for
LeNet-300-100, and for `fixed` and `gradual` the means of the raw runs, which have no error; the
error rates of LeNet-5-Caffe.
"""

Published = dict[str, dict[float, tuple[float, float | None]]]

LENET_300_100: Published = {
    "dense": {1.0: (98.69, 0.01)},
    "dynamic_reparameterization": {
        0.01: (97.54, 0.02),
        0.02: (98.14, 0.06),
        0.03: (98.20, 0.02),
        0.04: (98.23, 0.02),
        0.05: (98.32, 0.04),
        0.1: (98.44, 0.05),
    },
    "sparse_momentum": {
        0.01: (97.53, 0.05),
        0.02: (98.20, 0.02),
        0.03: (98.30, 0.03),
        0.04: (98.42, 0.02),
        0.05: (98.53, 0.03),
        0.1: (98.67, 0.03),
    },
    "sparse_evolution": {
        0.01: (95.80, 0.05),
        0.02: (97.74, 0.07),
        0.03: (98.06, 0.03),
        0.04: (98.10, 0.04),
        0.05: (98.14, None),
        0.1: (98.39, 0.04),
    },
    "deep_rewiring": {
        0.01: (94.00, 0.01),
        0.02: (98.21, 0.14),
        0.03: (98.22, 0.05),
        0.04: (98.30, 0.06),
        0.05: (98.06, 0.05),
        0.1: (98.19, 0.05),
    },
    "fixed": {
        0.01: (49.49, None),
        0.02: (82.81, None),
        0.03: (94.35, None),
        0.04: (94.13, None),
        0.05: (96.68, None),
        0.1: (97.94, None),
    },
    "gradual": {
        0.01: (97.47, None),
        0.02: (98.12, None),
        0.03: (98.34, None),
        0.04: (98.42, None),
        0.05: (98.47, None),
        0.1: (98.55, None),
    },
}
LENET_5_CAFFE: Published = {
    "sparse_momentum": {
        0.005: (98.856, 0.024),
        0.01: (99.17, 0.04),
        0.05: (99.31, 0.021),
    },
}
PUBLISHED = {"lenet_300_100": LENET_300_100, "lenet_5_caffe": LENET_5_CAFFE}
"""By model, method and density; on MNIST."""
