"""What each study of a language model trains, by name."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax
from optax import contrib

from experiments.common.training import methods
from experiments.language_model.decoder import Architecture, smaller

SMALL, LIFTED, TICKET = "small_dense", "fixed_then_dense", "ticket"
TIME = "time"
_TRAINED_BY = {SMALL: "dense", LIFTED: "fixed", TICKET: "fixed"}
DEFAULT = (
    *("dense", SMALL, *(name for name, one in methods.METHODS.items() if one.compared)),
    *(LIFTED, TICKET),
)
"""What is trained by default."""
PRUNABLE = methods.prunable("^head/")
"""Kernels of the layers. Names keep embedding and norms dense, and this keeps the head dense."""


class Cell(NamedTuple):
    """One run, or the measurement of its time per step.

    Attributes:
      method: one of the table of methods, or of `SMALL`, `LIFTED`, `TICKET`.
      sparsity: of the kernels; None for dense training.
      seed: of weights, masks and batches; None for the cell that measures the time of steps.
    """

    method: str
    sparsity: float | None
    seed: int | None

    @property
    def trained_by(self) -> methods.Method:
        """The entry of the table for its optimizer; `KeyError` for an unknown method."""
        return methods.METHODS[self.table_name]

    @property
    def table_name(self) -> str:
        """The method of the table that trains it."""
        return _TRAINED_BY.get(self.method, self.method)

    @property
    def name(self) -> str:
        """Its name in files: `rigl-0.9-0`, `dense-0`, and `time-rigl-0.9` for its time per step."""
        sparsity = [] if self.sparsity is None else [f"{self.sparsity:g}"]
        if self.seed is None:
            return "-".join([TIME, self.method, *sparsity])
        return "-".join([self.method, *sparsity, str(self.seed)])


def parse(name: str) -> Cell:
    """The cell of a name; `KeyError` for an unknown name.

    >>> parse("rigl-0.9-0")
    Cell(method='rigl', sparsity=0.9, seed=0)
    >>> parse("time-dense").name
    'time-dense'
    """
    parts = name.split("-")
    timed = parts[0] == TIME
    method, *numbers = parts[1:] if timed else parts
    try:
        seed = None if timed else int(numbers.pop())
        sparsity = float(numbers.pop()) if method != "dense" else None
    except (ValueError, IndexError):
        raise KeyError(name) from None
    cell = Cell(method, sparsity, seed)
    if numbers or cell.table_name not in methods.METHODS:
        raise KeyError(name)
    return cell


@dataclasses.dataclass(frozen=True)
class Settings:
    """A decoder, its text, and one recipe for all methods.

    A warm-up over the first twentieth of the run and a cosine down to a tenth of the rate,
    gradients clipped to a norm of 1. AdamW, or Muon for the kernels of layers, with updates as
    large as AdamW's, and Adam for the rest. Only kernels decay, and only kernels are sparse, all to
    the same sparsity: embedding, norms and output layer stay dense.

    Attributes:
      architecture: of the decoder.
      context: bytes that it sees at once.
      batch_size: windows per step.
      steps: of every run.
      learning_rate: after the warm-up.
      text: "tiny_shakespeare", or the path of a file.
      optimizer: one of `OPTIMIZERS`.
      weight_decay: of the kernels.
      every: steps from one mask update to the next.
      pattern: of the masks, as `methods.pattern` reads it.
      validate: steps from one measurement to the next; divides `steps`.
    """

    architecture: Architecture
    context: int
    batch_size: int
    steps: int
    learning_rate: float
    text: str = "tiny_shakespeare"
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    every: int = 50
    pattern: str = "unstructured"
    validate: int = 100

    @property
    def lift(self) -> int:
        """The step at which sparse pretraining ends, if dense fine-tuning follows it."""
        return self._share(3, 4)

    @property
    def rewind(self) -> int:
        """The step to which a ticket is rewound."""
        return self._share(1, 10)

    def _share(self, part: int, whole: int) -> int:
        points = self.steps // self.validate
        return max(1, points * part // whole) * self.validate

    def check(self) -> None:
        """Raises ValueError if a setting cannot be trained."""
        self.architecture.check()
        methods.pattern(self.pattern)
        for name in ("context", "batch_size", "steps", "every", "validate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.steps % self.validate or self.steps < 4 * self.validate:
            raise ValueError(
                f"--steps must be a multiple of {self.validate}, the steps from one measurement to "
                f"the next, and at least four times that; got {self.steps}."
            )
        if not self.learning_rate > 0:
            raise ValueError(f"--learning-rate must be above 0, got {self.learning_rate}.")

    def updates(self, cell: Cell) -> methods.MaskUpdates:
        """When masks change: in the first three quarters of the run, but if the network starts
        dense, not before the end of the first."""
        start = self.steps // 4 if cell.trained_by.ramps else self.every
        return methods.MaskUpdates(self.every, start, self.steps * 3 // 4, None)

    def shape(self, cell: Cell) -> Architecture:
        """The decoder of a cell; a small dense one has as many weights as live in a sparse one."""
        whole = self.architecture
        if cell.method != SMALL:
            return whole
        return smaller(whole, whole.weights - round(cell.sparsity * whole.sparse_weights))

    def inner(self) -> optax.GradientTransformation:
        """The inner optimizer of every method."""
        peak = self.learning_rate
        rate = optax.warmup_cosine_decay_schedule(
            0, peak, max(1, self.steps // 20), self.steps, peak / 10
        )
        chosen = OPTIMIZERS[self.optimizer](rate, self.weight_decay)
        return optax.chain(optax.clip_by_global_norm(1.0), chosen)

    def method(self, cell: Cell, key: Any) -> optax.GradientTransformationExtraArgs:
        """The optimizer of a cell; the key draws its masks."""
        return methods.sparse_method(
            cell.table_name,
            self.inner(),
            key=key,
            sparsity=cell.sparsity or 0.0,
            distribution="uniform",
            pattern=methods.pattern(self.pattern),
            prunable=PRUNABLE,
            updates=self.updates(cell),
            axes="flax_stacked",
        )


def _kernels(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), params)


def _matrices(params: Any) -> Any:
    """The kernels of the layers, `(layers, in, out)`: one matrix for each layer."""
    each = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return jax.tree.map(
        lambda kernel, leaf: each if kernel and leaf.ndim == 3 else None, _kernels(params), params
    )


def _adamw(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    return optax.adamw(rate, b2=0.99, weight_decay=decay, mask=_kernels)


def _muon(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    return contrib.muon(
        rate,
        weight_decay=decay,
        weight_decay_mask=_kernels,
        adam_b2=0.99,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )


OPTIMIZERS = {"adamw": _adamw, "muon": _muon}
"""By name: what makes one from a schedule and a weight decay."""


def cells(
    settings: Settings, names: Sequence[str], sparsities: Sequence[float], seeds: Sequence[int]
) -> list[Cell]:
    """All cells of a study, seed by seed, and at the end the time per step of each method.

    Raises:
      ValueError: an unknown method, an invalid sparsity, or a ticket without dense.
    """
    known = [*methods.METHODS, *_TRAINED_BY]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"--method must be among {', '.join(known)}, got {', '.join(unknown)!r}.")
    if TICKET in names and "dense" not in names:
        raise ValueError("--method ticket needs dense too: tickets are made from its last weights.")
    for sparsity in sparsities:
        if not 0 <= sparsity < 1:
            raise ValueError(f"--sparsity must be in [0, 1), got {sparsity:g}.")
        settings.shape(Cell(SMALL, sparsity, 0))
    pairs = [
        (name, sparsity)
        for name in names
        for sparsity in ([None] if name == "dense" else sparsities)
    ]
    runs = [Cell(*pair, seed) for seed in seeds for pair in pairs]
    last = sparsities[-1]
    timed = [
        Cell(name, sparsity, None)
        for name, sparsity in pairs
        if name not in (LIFTED, TICKET, "dense") and (name == SMALL or sparsity == last)
    ]
    return runs + timed


PRESETS = {
    "tiny": Settings(
        Architecture(layers=2, width=32, heads=2, groups=1, hidden=64),
        context=32,
        batch_size=8,
        steps=80,
        learning_rate=3e-3,
        every=10,
        validate=20,
    ),
    "1m": Settings(
        # Recomputing activations takes less time on a CPU than storing those of all layers.
        Architecture(layers=4, width=128, heads=4, groups=2, hidden=512, checkpoint=True),
        context=128,
        batch_size=8,
        steps=2000,
        learning_rate=3e-3,
    ),
    "10m": Settings(
        Architecture(layers=6, width=384, heads=6, groups=2, hidden=1024),
        context=256,
        batch_size=32,
        steps=5000,
        learning_rate=1e-3,
    ),
    "100m": Settings(
        Architecture(*(16, 768, 12, 4, 2048), tied=False, compute="bfloat16", checkpoint=True),
        context=1024,
        batch_size=64,
        steps=20_000,
        learning_rate=6e-4,
        every=100,
        validate=500,
    ),
    "1b": Settings(
        Architecture(*(22, 2048, 16, 4, 5632), tied=False, compute="bfloat16", checkpoint=True),
        context=2048,
        batch_size=256,
        steps=50_000,
        learning_rate=3e-4,
        every=100,
        validate=1000,
    ),
}
"""Two for two cores, two for accelerators, and one to try things out."""
