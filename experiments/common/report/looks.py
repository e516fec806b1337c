"""How a method is named and coloured: the same on every page and in every picture."""

import re
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from jaxsparse.plot import COLOURS, STYLES

MARKERS = "osD^v"
DENSE = "#222222"


class Look(NamedTuple):
    """The look of a method.

    Attributes:
      label: its readable name.
      colour: its own, shared only by its variants.
      style: of its line, which differs between its variants.
    """

    label: str
    colour: str
    style: Any = "-"


_SCRATCH, _TICKET = "#CC6677", "#332288"
LOOKS = {
    "dense": Look("dense", DENSE, "--"),
    "small_dense": Look("small dense", "#888888"),
    "fixed": Look("fixed masks", "#8C6D31"),
    "gradual": Look("gradual pruning", "#009E73"),
    "prune": Look("gradual pruning", "#009E73"),
    "sparse_evolution": Look("SET", "#CC79A7"),
    "set": Look("SET", "#CC79A7"),
    "set_plus": Look("SET, sparse initialization", "#CC79A7", "--"),
    "rigl": Look("RigL", "#0072B2"),
    "rigl_compressed": Look("RigL, compressed", "#0072B2", ":"),
    "rigl_blocks": Look("RigL, blocks of 16", "#56B4E9", ":"),
    "srigl": Look("SRigL", "#7F3C8D"),
    "rigl_plus": Look("RigL, sparse initialization", "#0072B2", "--"),
    "sparse_momentum": Look("sparse momentum", "#D55E00"),
    "sparse_momentum_compressed": Look("sparse momentum, compressed", "#D55E00", ":"),
    "dynamic_reparameterization": Look("DSR", "#E69F00"),
    "deep_rewiring": Look("DeepR", "#56B4E9"),
    "scratch": Look("scratch", _SCRATCH),
    "scratch_plus": Look("scratch, sparse initialization", _SCRATCH, "--"),
    "snip": Look("SNIP", "#999933"),
    "snip_global": Look("SNIP, global", "#999933", "--"),
    "grasp": Look("GraSP", "#117733"),
    "grasp_global": Look("GraSP, global", "#117733", "--"),
    "synflow": Look("SynFlow", "#661100"),
    "fixed_then_dense": Look("fixed masks, then dense", "#8C6D31", ":"),
    "ticket": Look("ticket", _TICKET),
    "shared_ticket": Look("ticket, one start", _TICKET),
    "shared_scratch": Look("scratch, one start", _SCRATCH),
    "shared_scratch_new": Look("scratch, different starts", "#AA4499"),
    "shared_restart": Look("restart from the pruning solution", "#882255"),
    "reinit": Look("ticket, reinitialized", _SCRATCH),
    "random": Look("random masks", "#8C6D31"),
    "one_shot": Look("ticket, one-shot", "#44AA99"),
}
"""By the name used in files and command lines: one colour for one thing, whatever a study calls it.
A ticket with new weights is what another study calls training from scratch."""

_COLOURS = dict(
    sorted(
        ((word, one.colour) for name, one in LOOKS.items() for word in (name, one.label)),
        key=lambda item: -len(item[0]),
    )
)
_PROSE = {"random", "one_shot", "reinit"}  # words of options, and names that no table uses
_NAMES = re.compile(
    rf"(?<![\w=-])({'|'.join(sorted(set(LOOKS) - _PROSE, key=len)[::-1])})(?![\w=])"
)


def look(name: str) -> Look:
    """The look of a method, or of a variant such as `rigl+drop_fraction=0.1`.

    Example:
      >>> look("sparse_evolution").label
      'SET'
      >>> look("fixed+distribution=erdos_renyi").label
      'fixed masks + distribution=erdos_renyi'
      >>> look("fixed+distribution=erdos_renyi").colour == look("fixed").colour
      True
    """
    method, *options = name.split("+")
    colour = COLOURS[zlib.crc32(method.encode()) % len(COLOURS)]
    found = LOOKS.get(method, Look(method, colour))
    return found._replace(label=" + ".join([found.label, *options]))


def lines(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How matplotlib draws the lines of one picture; lines of one colour differ in style.

    Args:
      names: of the methods and variants in all panels together.

    Returns:
      Keyword arguments of `Axes.plot` by name.
    """
    drawn: dict[str, dict[str, Any]] = {}
    taken: set[tuple[str, Any]] = set()
    for i, name in enumerate(names):
        label, colour, style = look(name)
        free = [s for s in (style, *STYLES) if (colour, s) not in taken]
        style = free[0] if free else style
        taken.add((colour, style))
        own = {"color": colour, "linestyle": style, "marker": MARKERS[i % len(MARKERS)]}
        drawn[name] = {**own, "label": label}
    return drawn


def readable(text: str) -> str:
    """A text of a table with the names of methods made readable.

    Example:
      >>> readable("disagreement, set_plus"), readable("sparse_momentum+growth=random")
      ('disagreement, SET, sparse initialization', 'sparse momentum + growth=random')
    """
    text = re.sub(r"(?<=[\w)])\+(?=\w+=)", " + ", text)
    return _NAMES.sub(lambda found: LOOKS[found[0]].label, text)


def colour_of(text: str) -> str | None:
    """The colour of the method that a row of a table is about; None if there is none.

    Example:
      >>> colour_of("accuracy, rigl") == colour_of("rigl at 5%") == look("rigl").colour
      True
      >>> colour_of("the ticket at 21% learns faster than dense")
    """
    for part, end in ((text, r"(?![\w-])"), (text.rpartition(", ")[2], "$")):
        for word, colour in _COLOURS.items():
            if re.match(re.escape(word) + end, part):
                return colour
    return None
