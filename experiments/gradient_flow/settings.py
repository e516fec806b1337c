"""What a study of gradient flow trains: the numbers of Evci et al.'s configurations, by name.

Their code differs where RigL updates its masks: it takes a step first, and grows by the gradient of
1,000 fixed training examples. Here an update replaces a step and sees its batch, as in the RigL
paper. SET takes a step, then moves weights, in both.
"""

import dataclasses
import functools
from typing import Any

import jax
import optax

import jaxsparse
from experiments.common.training import methods

METHODS = (
    "dense",
    "small_dense",
    "scratch",
    "scratch_plus",
    "set",
    "set_plus",
    "rigl",
    "rigl_plus",
    "prune",
    "ticket",
    "snip",
    "snip_global",
    "grasp",
    "grasp_global",
    "synflow",
)
"""The methods of the paper, and SynFlow; "plus" is the sparse-aware initialization. "global" lets
the weights of all layers compete, as SNIP, GraSP and SynFlow were published; the paper prunes every
layer equally."""
BY_NAME = ("synflow",)
"""Those that the paper does not have: trained only when named."""
SHARED = ("shared_ticket", "shared_scratch", "shared_scratch_new", "shared_restart")
"""Replicates that differ only by the order of their examples, all with the mask of one pruning:
from its ticket, from one other initialization, from one each, and from its solution. The pruning is
that of the first replicate that learns from scratch."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """One network of the paper, section 3 and its released configurations.

    Attributes:
      model: a key of `registry.MODELS`.
      small_model: the dense network with as many weights as the sparse one.
      dataset: a name that `datasets.load` accepts.
      sparsity: of every layer.
      learning_rate: of SGD with momentum 0.9, at its peak; it falls to 0 by a cosine.
      warmup: steps in which the learning rate first rises linearly from 0.
      weight_decay: d of the penalty `d * sum(w^2)` over the kernels, as in the released code; it
        adds `2 * d * w` to their gradient, and nothing to that of biases.
      scored_learning_rate: `learning_rate` for SNIP, GraSP and SynFlow.
      scored_weight_decay: `weight_decay` for them.
      grasp_temperature: what the logits are divided by in the loss that GraSP's scores come from;
        200 in its authors' code. The value used in the paper was not released.
      every: steps from one mask update of SET and RigL to the next.
      iterations: steps of a training run.
      batch_size: examples per step.
      drop_fraction: of SET and RigL; falls with the learning rate.
      prune: first and last step of pruning, and steps between two prunings.
      measure: steps from one measurement of the gradient to the next.
      snapshots: steps whose parameters are kept for the Hessian; multiples of `measure`.
      flow_examples: training examples on which the gradient is measured.
      scoring_examples: other ones, for the scores of SNIP, GraSP and RigL's measured updates.
      landscape_examples: training examples on which paths and Hessians are computed.
      path_steps: of the training of a Bezier path.
      dense: path regex of weights that are never pruned; empty for none.
      augment: mirror images, and crop them after padding by 4 pixels on each side.
      image_size: None for data in memory; else the side in pixels to which the images are cut,
        which stay on disk in training. The gradient is then measured on training images that were
        set aside.
      validation: fraction of the images on disk set aside.
      initialization: scale, fan and distribution of the kernels' variance scaling, with each unit's
        own fan if it is sparse-aware. By default Glorot's, as released for LeNet-5; the released
        configurations of SET and RigL name He's normal one for the sparse-aware case, switched off.
    """

    model: str
    small_model: str
    dataset: str
    sparsity: float
    learning_rate: float
    weight_decay: float
    scored_learning_rate: float
    scored_weight_decay: float
    every: int
    grasp_temperature: float = 200.0
    iterations: int = 11_719
    warmup: int = 0
    batch_size: int = 128
    drop_fraction: float = 0.3
    prune: tuple[int, int, int] = (3000, 7000, 100)
    measure: int = 200
    snapshots: tuple[int, ...] = (600, 2000, 4000, 8000)
    flow_examples: int = 1000
    scoring_examples: int = 5000
    landscape_examples: int = 10_000
    path_steps: int = 2000
    dense: str = ""
    augment: bool = False
    image_size: int | None = None
    validation: float = 0.01
    initialization: tuple[float, str, str] = (1.0, "fan_avg", "uniform")


_HE = (2.0, "fan_in", "normal")
_LENET_5 = Settings(
    model="lenet_5",
    small_model="lenet_5_small",
    dataset="mnist",
    sparsity=0.95,
    learning_rate=0.05,
    weight_decay=5e-4,
    scored_learning_rate=0.1,
    scored_weight_decay=2e-4,
    every=100,
)
_LENET_300_100 = dataclasses.replace(
    _LENET_5,
    model="lenet_300_100",
    small_model="mlp_8_8",
    sparsity=0.98,
    learning_rate=0.2,
    weight_decay=1e-4,
    scored_learning_rate=0.2,
    scored_weight_decay=1e-4,
    every=500,
)
_CIFAR = dataclasses.replace(
    _LENET_5,
    model="vgg_16_thin",
    small_model="vgg_16_thin_small",
    dataset="cifar10",
    sparsity=0.8,
    scored_learning_rate=0.05,
    scored_weight_decay=5e-4,
    warmup=586,
    augment=True,
    initialization=_HE,
)
_IMAGENET = Settings(
    model="resnet_50",
    small_model="resnet_50_small",
    dataset="imagenet2012",
    sparsity=0.8,
    learning_rate=1.6,
    weight_decay=5e-5,
    scored_learning_rate=1.6,
    scored_weight_decay=5e-5,
    every=100,
    iterations=32_000,
    warmup=1564,
    batch_size=4096,
    prune=(8000, 24_000, 500),
    snapshots=(2000, 8000, 16_000),
    dense="^conv/|^conv1/|shortcut",
    image_size=224,
    initialization=_HE,
)
PRESETS = {
    "digits": dataclasses.replace(
        _LENET_300_100,
        dataset="digits",
        sparsity=0.95,
        iterations=1000,
        batch_size=64,
        every=50,
        prune=(250, 600, 10),
        measure=20,
        snapshots=(60, 600),
        flow_examples=400,
        scoring_examples=400,
        landscape_examples=400,
        path_steps=200,
    ),
    "lenet_5": _LENET_5,
    "lenet_300_100": _LENET_300_100,
    "vgg_16_thin": _CIFAR,
    "vgg_16_thin_plain": dataclasses.replace(
        _CIFAR,
        model="vgg_16_thin_plain",
        small_model="vgg_16_thin_plain_small",
        learning_rate=0.01,
        scored_learning_rate=0.01,
    ),
    "vgg_16": dataclasses.replace(_IMAGENET, model="vgg_16", small_model="vgg_16_small"),
    "resnet_50": _IMAGENET,
}
"""The settings by name; `digits` is scikit-learn's small set, for a first try.

`vgg_16_thin` carries the study over to CIFAR-10, an eighth as wide and as sparse as the paper's own
`vgg_16`; `plain` is without batch normalization, at the learning rate of Simonyan & Zisserman
(2015), because at 0.05 its units die. `vgg_16` (without it) and `resnet_50` (with it) are the
paper's networks on ImageNet at its sparsity, batch, length, rate and warmup (five epochs). The
following are ours: the cosine instead of steps of the rate, labels that are not smoothed, shortcuts
that stay dense (the released ResNet-50 prunes them), and when pruning begins and ends. All of these
deep networks warm up for an equal fraction of the training, and start from the paper's equation for
ReLU (He's), because Glorot's loses half of the signal's variance in every layer.
"""


def scaled(settings: Settings, scale: float) -> Settings:
    """The same study; every training, and the time between mask updates, is `scale` times as long.

    Measurements keep their distance, but there are at least ten.

    Raises:
      ValueError: `scale` is not above 0, or nothing is left of a training.
    """
    iterations = round(settings.iterations * scale)
    if not scale > 0 or iterations < 40:
        raise ValueError(
            f"--scale must leave at least 40 of {settings.iterations} iterations, got {scale}."
        )
    start, stop, between = settings.prune
    measure = min(settings.measure, iterations // 10)
    whole = lambda step: max(1, round(step * scale / measure)) * measure  # noqa: E731
    return dataclasses.replace(
        settings,
        iterations=iterations,
        warmup=round(settings.warmup * scale),
        every=max(1, round(settings.every * scale)),
        prune=(round(start * scale), round(stop * scale), max(1, round(between * scale))),
        measure=measure,
        snapshots=tuple(sorted({whole(step) for step in settings.snapshots})),
    )


def algorithm(name: str) -> str:
    """The algorithm of a method: one of "dense", "prune", "set", "rigl", "fixed" and "scored"."""
    name = name.removesuffix("_plus").removesuffix("_global")
    if name in ("dense", "prune", "set", "rigl"):
        return name
    if name == "small_dense":
        return "dense"
    return "scored" if name in ("snip", "grasp", "synflow") else "fixed"


def method(settings: Settings, kind: str, key: Any, masks: Any) -> Any:
    """An algorithm as an optimizer.

    Args:
      settings: of the study.
      kind: what `algorithm` returns.
      key: draws masks; may be traced.
      masks: for fixed masks, a tree of None: the masks are put into the state later.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    if kind == "scored":
        rate, decay = settings.scored_learning_rate, settings.scored_weight_decay
    kernels = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, settings.warmup, settings.iterations)
    inner = optax.chain(
        optax.add_decayed_weights(2 * decay, kernels),
        optax.sgd(schedule, momentum=0.9),
    )
    if kind in ("fixed", "scored"):
        return jaxsparse.fixed(inner, masks=masks)
    start, stop, between = settings.prune
    updates = methods.MaskUpdates(
        settings.every, settings.every, settings.iterations, settings.drop_fraction
    )
    if kind == "prune":
        updates = methods.MaskUpdates(between, start, stop, None)
    names = {"prune": "gradual", "set": "sparse_evolution"}
    return methods.sparse_method(
        names.get(kind, kind),
        inner,
        key=key,
        sparsity=settings.sparsity,
        distribution="uniform",
        pattern=jaxsparse.unstructured,
        prunable=methods.prunable(settings.dense),
        updates=updates,
    )
