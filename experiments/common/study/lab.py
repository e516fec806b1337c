"""What every study trains with; a study that needs more keeps it next to a `Lab`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse
from experiments.common.models.network import Network, make_network
from experiments.common.training import evaluation, loop
from experiments.common.training.execution import Execution, execution
from experiments.common.training.sources import Source

Array = jax.Array


class Site(NamedTuple):
    """What the command line of every study says.

    Attributes:
      keys: one key per replicate.
      path: the folder of the study.
      data_dir: folder of the prepared data sets.
      examples: how many to use of each part of the data set; None for all.
    """

    keys: Array
    path: Path = Path("nowhere")
    data_dir: str | None = None
    examples: int | None = None

    @property
    def data(self) -> dict[str, Any]:
        """The arguments of `sources.load` in it."""
        return {"data_dir": self.data_dir, "examples": self.examples, "key": self.keys[0]}


class Lab(NamedTuple):
    """Everything that trains cells.

    Attributes:
      settings: of the study, including `model` and `batch_size`.
      site: where it runs, and how many replicates there are.
      source: the examples.
      network: what is trained.
      sets: parts of the data set by name, on the device.
    """

    settings: Any
    site: Site
    source: Source
    network: Network
    sets: dict[str, evaluation.EvaluationSet]

    @property
    def execution(self) -> Execution:
        """The way in which replicates are compiled."""
        return execution(self.settings.model, jax.default_backend())

    def trainer(
        self,
        make_tx: Callable[[Any], optax.GradientTransformationExtraArgs],
        *,
        dense: bool = False,
        track: loop.Track | None = None,
        network: Network | None = None,
        compressed: bool = False,
    ) -> loop.Trainer:
        """The trainer of the network on the examples.

        Args:
          make_tx: `(key) -> optimizer`, as for `loop.make_trainer`.
          dense: whether the optimizer has no masks.
          track: what is measured inside the loop.
          network: one other than the lab's.
          compressed: as for `loop.make_trainer`.
        """
        chosen = self.network if network is None else network
        return self.source.make_trainer(
            chosen.apply,
            chosen.init_params,
            make_tx,
            execution=self.execution,
            start=loop.start_dense if dense else jaxsparse.init,
            forward=chosen.forward,
            track=track,
            compressed=compressed,
        )

    def accuracy(self, params: Any, part: str, network: Network | None = None) -> np.ndarray:
        """The accuracy of stacked parameters on a part of the data set, one number each."""
        loss, apply = evaluation.cross_entropy, (network or self.network).apply
        return evaluation.evaluate(apply, loss, self.execution, params, self.sets[part])["accuracy"]

    def mine(self, number: int) -> slice:
        """The lanes of one of several cells trained side by side; their lanes are consecutive."""
        count = len(self.site.keys)
        return slice(number * count, (number + 1) * count)


def make_lab(
    settings: Any, site: Site, source: Source, parts: Sequence[str], **options: Any
) -> Lab:
    """Assembles a lab.

    Args:
      settings, site, source: see `Lab`.
      parts: the parts of the data set to evaluate on: of "train", "validation" and "test".
      **options: of `make_network`.

    Raises:
      ValueError: the network does not fit the data set.
    """
    made = make_network(settings.model, source.dataset, *source.pixels, **options)
    return Lab(settings, site, source, made, evaluation.sets_of(source.dataset, parts))


@jax.jit
@jax.vmap
def begin_from(state: loop.TrainState, params: Any, masks: Any) -> loop.TrainState:
    """Lanes before their first step, with these parameters and masks."""
    return state._replace(
        params=jaxsparse.apply(params, masks), opt_state=jaxsparse.set_masks(state.opt_state, masks)
    )


def cut(tree: Any, lanes: slice) -> Any:
    """Some lanes of stacked arrays, on the first device."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf[lanes])), tree)


def stack(trees: Sequence[Any]) -> Any:
    """The lanes of several trees one after another."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)
