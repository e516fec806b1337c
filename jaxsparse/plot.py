"""Pictures of masks: where weights live, how dense every layer is, and how many weights move.

They need matplotlib, which is imported when the first picture is drawn:
`pip install 'jaxsparse[plot]'`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsparse.axes import leaf_axes
from jaxsparse.masks import prunable_masks
from jaxsparse.state_tree import find
from jaxsparse.states import metrics
from jaxsparse.types import AxesSpec, Masks, Prunable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "STYLES",
    "churn_over_time",
    "density_per_layer",
    "layer_style",
    "mask_image",
    "plain",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
"""Okabe and Ito's colours, which colour-blind readers can tell apart too."""
STYLES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1)))
_FEW = 8  # layers that a legend can still name


def mask_image(
    masks: Masks,
    *,
    image: Sequence[int] | None = None,
    axes: AxesSpec = None,
    prunable: Prunable | None = None,
) -> "Figure":
    """Draws the masks of a network, one panel per leaf: inputs from top to bottom, outputs across.

    Args:
      masks: boolean arrays, or an optimizer state that holds them.
      image: the shape of the network's input, such as `(28, 28)` or `(32, 32, 3)`: one more panel
        shows how many living weights read each pixel, in the first leaf with that many inputs.
      axes: what the axes of the leaves mean. Without it, a leaf whose axes are ambiguous has its
        last axis across.
      prunable: `(path, leaf) -> bool`: the leaves to draw; by default those that the algorithm of
        a state was given, and without a state all but biases, scales, norms and embeddings.

    Returns:
      A figure, for `figure.savefig("masks.png")`.

    Raises:
      ImportError: matplotlib is missing.
      TypeError: masks that are not boolean.
      ValueError: no leaf has as many inputs as `image` has pixels.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"fc": jnp.eye(4, dtype=bool), "head": jnp.ones((4, 2), bool)}
      >>> [ax.get_title() for ax in mask_image(masks).axes]
      ['fc: 25% alive', 'head: 100% alive']
    """
    plt = _pyplot()
    found = {path: np.asarray(mask) for path, mask in prunable_masks(masks, prunable).items()}
    flat = {path: _flat(path, mask, axes) for path, mask in found.items()}
    sizes = {path: len(mask) for path, (mask, *_) in flat.items()}
    readers = [path for path, size in sizes.items() if image and size == math.prod(image)]
    if image is not None and (len(image) < 2 or not readers):
        raise ValueError(
            "image must have two or three sizes, and a leaf must have as many inputs as their "
            f"product; got {tuple(image)}, and inputs {sizes}."
        )
    panels = len(flat) + (image is not None)
    rows = -(-panels // 4)
    columns = -(-panels // rows)
    figure, grid = plt.subplots(rows, columns, squeeze=False, layout="constrained")
    figure.set_size_inches(max(3.1 * columns, 5.0), 3.2 * rows + 0.5)
    slots = list(grid.flat)
    if image is not None:
        _draw_pixels(figure, slots.pop(0), flat[readers[0]][0].sum(1).reshape(image))
    for (path, (mask, down, across)), ax in zip(flat.items(), slots, strict=False):
        how = "antialiased" if max(mask.shape) > 300 else "nearest"  # small ones would blur
        ax.imshow(mask, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation=how)
        ax.set_title(f"{path}: {100 * mask.mean():.3g}% alive", fontsize=9, parse_math=False)
        ax.set_xlabel(across)
        ax.set_ylabel(down)
    for ax in slots[len(flat) :]:
        ax.set_axis_off()
    return figure


def density_per_layer(
    masks: Masks | Sequence[Masks],
    steps: Sequence[float] | None = None,
    *,
    ax: "Axes | None" = None,
    label: str | None = None,
    prunable: Prunable | None = None,
) -> "Axes":
    """Draws the share of living weights in every layer: at one moment, or over the steps of a run.

    Args:
      masks: boolean arrays, an optimizer state that holds them, or densities by path, such as
        `jaxsparse.lottery.layer_densities` returns. With `steps`, a sequence of these.
      steps: when each of them was taken.
      ax: where to draw; by default a figure of its own. Several networks can share one.
      label: the name of the network in the legend, where there are no `steps`.
      prunable: `(path, leaf) -> bool`: the leaves to draw, as for `mask_image`.

    Returns:
      The axes: without `steps` a dot for each layer, with them a line.

    Raises:
      ImportError: matplotlib is missing.
      TypeError: masks that are not boolean.
      ValueError: `steps` and `masks` differ in length.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"fc": jnp.eye(4, dtype=bool), "head": jnp.ones((4, 2), bool)}
      >>> density_per_layer(masks).get_lines()[0].get_xdata().tolist()
      [0.25, 1.0]
    """
    ax = _plain_axes(ax)
    if steps is not None:
        _check_steps(masks, steps)
        table = [_densities(one, prunable) for one in masks]
        for i, name in enumerate(table[0]):
            ax.plot(steps, [row[name] for row in table], **layer_style(i, len(table[0]), name))
        ax.set_ylim(bottom=0, auto=True)
        ax.set_xlabel("step")
        ax.set_ylabel("density\n(living / all weights)")
        ax.yaxis.set_major_formatter(_percent())
        return _with_legend(ax, "layers")
    found = _densities(masks, prunable)
    places = range(len(found))
    ax.plot(list(found.values()), places, "o", color=_next_colour(ax), label=label)
    ax.grid(axis="x", color="#DDDDDD", lw=0.6)
    ax.set_yticks(places, list(found), parse_math=False)
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xlim(left=0, auto=True)
    ax.set_xlabel("density (living / all weights)")
    ax.xaxis.set_major_formatter(_percent())
    return _with_legend(ax, label)


def churn_over_time(
    history: Sequence[Any],
    steps: Sequence[float] | None = None,
    *,
    ax: "Axes | None" = None,
    label: str | None = None,
    prunable: Prunable | None = None,
) -> "Axes":
    """Draws the share of the living weights that each mask update brought to life.

    Args:
      history: the record of a run, one entry per log line: what `jaxsparse.metrics` returned, or an
        optimizer state. With `steps`, also masks, each compared with those before, or numbers.
      steps: when masks or numbers were taken; metrics and states record their last mask update.
      ax: where to draw; by default a figure of its own. Several runs can share one.
      label: the name of this run in the legend.
      prunable: `(path, leaf) -> bool`: the leaves that count where masks are compared.

    Returns:
      The axes: a point for every mask update in the history.

    Raises:
      ImportError: matplotlib is missing.
      TypeError: masks that are not boolean.
      ValueError: masks or numbers without `steps`, or of another length.

    Example:
      >>> history = [{"last_update": 100 * (i // 2), "churn": 0.3 / (i + 1)} for i in range(6)]
      >>> churn_over_time(history).get_lines()[0].get_xdata().tolist()
      [0, 100, 200]
    """
    ax = _plain_axes(ax)
    if steps is not None:
        _check_steps(history, steps)
    found: dict[float, float] = {}
    for i, entry in enumerate(history):
        known = metrics(entry) if find(entry) else entry
        if isinstance(known, Mapping) and {"churn", "last_update"} <= known.keys():
            if int(known["last_update"]) >= 0:
                found[int(known["last_update"])] = float(known["churn"])
        elif steps is None:
            raise ValueError(
                "steps must say when each entry of a history without states was taken."
            )
        elif _is_number(entry):
            found[steps[i]] = float(entry)
        elif i > 0:
            found[steps[i]] = _churn(history[i - 1], entry, prunable)
    look: dict[str, Any] = {"color": _next_colour(ax), "marker": "." if len(found) < 50 else None}
    ax.plot(np.array(list(found)), list(found.values()), label=label, **look)
    ax.set_ylim(bottom=0, auto=True)
    ax.set_xlabel("step")
    ax.set_ylabel("share of weights new\nin the last mask update")
    ax.yaxis.set_major_formatter(_percent())
    return _with_legend(ax, label)


def layer_style(index: int, count: int, name: str) -> dict[str, Any]:
    """The line style of one of `count` layers; of more than 8, only the first and last are named.

    Example:
      >>> layer_style(1, 3, "fc2")
      {'color': '#D55E00', 'linestyle': '--', 'label': 'fc2'}
    """
    if count <= _FEW:
        return {"color": COLOURS[index % 7], "linestyle": STYLES[index % 5], "label": name}
    colour = _pyplot().get_cmap("cividis")(index / (count - 1))
    return {"color": colour, "lw": 1.0, "label": name if index in (0, count - 1) else None}


def plain(ax: "Axes") -> None:
    """Removes the frame, and draws a light grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", lw=0.6)
    ax.set_axisbelow(True)


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install 'jaxsparse[plot]'.") from error
    return plt


def _plain_axes(ax: "Axes | None") -> "Axes":
    ax = _pyplot().subplots(layout="constrained")[1] if ax is None else ax
    plain(ax)
    return ax


def _next_colour(ax: "Axes") -> str:
    return COLOURS[len(ax.get_lines()) % 7]


def _with_legend(ax: "Axes", label: str | None) -> "Axes":
    if label is not None:
        ax.legend(frameon=False, fontsize=8)
    return ax


def _percent() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{100 * value:.4g}%")


def _draw_pixels(figure: "Figure", ax: "Axes", readers: np.ndarray) -> None:
    shown = ax.imshow(readers.sum(-1) if readers.ndim == 3 else readers, cmap="cividis", vmin=0)
    figure.colorbar(shown, ax=ax, shrink=0.7, label="living weights")
    ax.set_title("weights that read each pixel", fontsize=9)
    ax.set_xlabel("column")
    ax.set_ylabel("row")


def _flat(path: str, mask: np.ndarray, axes: AxesSpec) -> tuple[np.ndarray, str, str]:
    """A mask as a matrix with the inputs down and the outputs across, and the axis labels."""
    try:
        meaning = leaf_axes(axes, path, mask)
    except ValueError:
        if axes is not None:
            raise
        flat = mask.reshape(-1, mask.shape[-1] if mask.ndim else 1)
        return flat, f"other axes: {flat.shape[0]}", f"last axis: {flat.shape[1]}"
    outputs = meaning.stacked + meaning.outputs
    inputs = tuple(a for a in range(mask.ndim) if a not in outputs)
    count = math.prod(mask.shape[a] for a in outputs)
    flat = mask.transpose(inputs + outputs).reshape(-1, count)
    what = "inputs" if inputs == meaning.inputs else "taps"
    return flat, f"{len(flat)} {what}", f"{count} outputs"


def _densities(masks: Any, prunable: Prunable | None) -> dict[str, float]:
    if isinstance(masks, Mapping) and all(map(_is_number, masks.values())):
        return {str(path): float(value) for path, value in masks.items()}
    return {path: float(np.mean(mask)) for path, mask in prunable_masks(masks, prunable).items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or getattr(value, "shape", None) == ()


def _churn(before: Masks, after: Masks, prunable: Prunable | None) -> float:
    """The share of the weights alive in `after` that were dead in `before`."""
    old, new = prunable_masks(before, prunable), prunable_masks(after, prunable)
    born = sum(int(np.sum(np.asarray(new[path]) & ~np.asarray(old[path]))) for path in new)
    return born / max(sum(int(np.sum(mask)) for mask in new.values()), 1)


def _check_steps(entries: Sequence[Any], steps: Sequence[float]) -> None:
    if len(entries) != len(steps):
        raise ValueError(f"steps must be as many as the {len(entries)} entries, got {len(steps)}.")
