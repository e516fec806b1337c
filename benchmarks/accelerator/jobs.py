"""The jobs of the queue, the most valuable first."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from benchmarks import shapes, step
from benchmarks.accelerator import measures
from benchmarks.accelerator.measures import Transformer
from benchmarks.accelerator.queue import Job, measurement, study
from experiments.gradient_flow import __main__ as gradient_flow
from experiments.lottery_ticket import __main__ as lottery_ticket
from experiments.sparse_momentum import __main__ as sparse_momentum

DATASET = "cifar10_jpeg75"
STEPS, TRAINING = "Selection, mask updates, optimizer steps", "Whole training steps"
METHODS_ON_CIFAR = "Sparse training on CIFAR-10"
TICKETS, FLOW = "Lottery tickets", "Gradient flow"
OTHER_SEEDS = "Sparse training on CIFAR-10, other seeds"
METHODS = ("fixed", "sparse_evolution", "rigl", "sparse_momentum", "gradual")


class Sizes(NamedTuple):
    """The sizes of everything.

    Attributes:
      selection: scores to select from.
      shapes: of the leaves whose optimizer steps are timed.
      rounds: of the selections, taking turns.
      turns: timed calls.
      times: optimizer steps in a call.
      images: preset of the study of methods, whose training steps are timed.
      transformer: whose training steps are timed.
      methods: whose optimizer steps are timed.
      trained: methods whose whole training steps are timed, in addition to dense training.
      types: in which the transformer computes.
      compressed: networks of `benchmarks.sparse`, with the sparsities at which they are timed.
    """

    selection: Sequence[int]
    shapes: Sequence[tuple[int, ...]]
    rounds: int
    turns: int
    times: int
    images: str
    transformer: Transformer
    methods: Sequence[str]
    trained: Sequence[str]
    types: Sequence[str]
    compressed: Mapping[str, Sequence[float]]


FULL = Sizes(
    selection=(100_000, 1_000_000, 10_000_000, 25_000_000),
    shapes=step.SHAPES["resnet50"],
    rounds=21,
    turns=21,
    times=20,
    images="resnet_50",
    transformer=Transformer(12, 768, 12, vocabulary=8192, context=1024, batch=8),
    methods=[name for name in step.NAMES if name not in ("dense", "fixed", step.OBVIOUS)],
    trained=("fixed", "rigl"),
    types=("float32", "bfloat16"),
    compressed=dict.fromkeys(shapes.NETWORKS, (0.9, 0.95, 0.98)),
)
"""The transformer has 98 million parameters."""
TINY = Sizes(
    selection=(10_000,),
    shapes=[(3, 3, 4, 8), (32, 16)],
    rounds=1,
    turns=1,
    times=2,
    images="digits",
    transformer=Transformer(1, 16, 2, vocabulary=11, context=8, batch=2),
    methods=["deep_rewiring"],
    trained=("rigl",),
    types=("bfloat16",),
    compressed={"LeNet-300-100": (0.95,)},
)


def queue(data_dir: str | None = None) -> list[Job]:
    """The jobs at full size. Seconds are estimates for one H100 until a cell is measured."""
    where = [] if data_dir is None else ["--data-dir", data_dir]
    cifar = ["--dataset", DATASET, *where]
    found = [*_timed(FULL, 60.0, 150.0)]
    found += [*_methods(0, cifar, METHODS_ON_CIFAR)]
    for preset, seconds in (("conv_2", 30), ("conv_4", 50), ("conv_6", 75), ("resnet_18", 270)):
        args = ["--preset", preset, "--seeds", "3", *cifar]
        found.append(study(f"tickets-{preset}", TICKETS, seconds, lottery_ticket, preset, args))
    for preset in ("vgg_16_thin", "vgg_16_thin_plain"):
        args = ["--preset", preset, "--seeds", "3", *cifar]
        found.append(study(f"flow-{preset}", FLOW, 60, gradient_flow, preset, args))
    for seed in (1, 2):
        found += _methods(seed, cifar, OTHER_SEEDS)
    return found


def tiny() -> list[Job]:
    """The same jobs on scikit-learn's digits, within seconds."""
    short = partial(study, seconds=1.0, least=0.0)
    methods = ["--steps", "5", "--seeds", "1", "--method"]
    tickets = ["--scale", "0.02", "--rounds", "1", "--method", "", "--seeds", "1"]
    flow = ["--scale", "0.04", "--seeds", "2", "--method", "dense", "--analyses", ""]
    return [
        *_timed(TINY, 1.0, 1.0, "tiny-"),
        *(
            short(
                f"digits-0-{name}",
                METHODS_ON_CIFAR,
                module=sparse_momentum,
                folder="digits-0",
                args=args,
            )
            for name, args in (
                ("dense", [*methods, "dense"]),
                ("rigl-0.9", [*methods, "rigl", "--sparsity", "0.9"]),
            )
        ),
        short("tickets", TICKETS, module=lottery_ticket, folder="tickets", args=tickets),
        short("flow", FLOW, module=gradient_flow, folder="flow", args=flow),
    ]


def _timed(sizes: Sizes, short: float, long: float, prefix: str = "") -> list[Job]:
    momentum, adam = step.OPTIMIZERS["momentum"], step.OPTIMIZERS["adam"]
    decoder = sizes.transformer
    decoder_shapes = measures.shapes_of(decoder)

    def steps(
        inner: object, shapes: Sequence[tuple[int, ...]], *names: str
    ) -> Callable[[], measures.Rows]:
        return partial(
            measures.optimizer_steps, inner, list(shapes), names, sizes.turns, sizes.times
        )

    found = [
        ("selection", STEPS, short, partial(measures.selecting, sizes.selection, sizes.rounds)),
        ("pruning", STEPS, short, partial(measures.pruning, sizes.shapes, sizes.rounds)),
        (
            "training-compressed",
            TRAINING,
            long,
            partial(measures.compressed_steps, sizes.compressed, sizes.turns),
        ),
        ("steps-sorting", STEPS, short, steps(momentum, sizes.shapes, "fixed", step.OBVIOUS)),
        *(
            (f"steps-{name}", STEPS, short, steps(momentum, sizes.shapes, name))
            for name in sizes.methods
        ),
        ("steps-adam", STEPS, long, steps(adam, sizes.shapes, *sizes.trained)),
        (
            "training-images",
            TRAINING,
            2 * long,
            partial(measures.image_steps, sizes.images, sizes.trained, sizes.turns),
        ),
        *(
            (
                f"training-transformer-{dtype}",
                TRAINING,
                long,
                partial(measures.transformer_steps, decoder, dtype, sizes.trained, sizes.turns),
            )
            for dtype in sizes.types
        ),
        ("steps-transformer", TRAINING, short, steps(adam, decoder_shapes, *sizes.trained)),
    ]
    return [measurement(prefix + name, *rest) for name, *rest in found]


def _methods(seed: int, cifar: Sequence[str], stage: str) -> list[Job]:
    """One job per method, network and sparsity: a whole run of one replicate."""
    found = []
    for preset, seconds in (("wrn_28_2", 540), ("vgg_16_d", 360)):
        cells = [("dense", ["dense"])]
        for sparsity in ("0.95", "0.9"):
            cells += [(f"{m}-{sparsity}", [m, "--sparsity", sparsity]) for m in METHODS]
        for name, methods in cells:
            args = ["--preset", preset, "--seeds", "1", "--seed", str(seed), *cifar]
            args += ["--method", *methods]
            folder = f"{preset}-{seed}"
            job = study(f"{folder}-{name}", stage, seconds, sparse_momentum, folder, args)
            found.append(job)
    return found
