"""What trains and measures in a study of gradient flow: data, networks, compiled functions."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import jaxsparse
from experiments.common.models.network import Network, make_network, trained
from experiments.common.study.lab import Lab, Site, make_lab
from experiments.common.training import evaluation, execution, loop, methods, sources
from experiments.gradient_flow.settings import Settings, method

Array = jax.Array
Examples = tuple[Array, Array]
"""Inputs and labels."""


class Tracked(NamedTuple):
    """What is measured for one replicate during training.

    Attributes:
      norms: of the gradient, `(points,)` by name: "all", and each layer.
      params: the snapshots, `(steps, ...)`.
      masks: the same for the masks; all True in dense networks.
    """

    norms: dict[str, Array]
    params: Any
    masks: Any

    def shown(self, point: int) -> str:
        """The measure of progress: the gradient norm of stacked replicates."""
        return f"gradient norm {float(self.norms['all'][:, point].mean()):.3g}"


class Flow(NamedTuple):
    """Everything that trains and measures.

    Attributes:
      lab: the lab, of the large network.
      networks: "large" and "small".
      trainer: `(algorithm, size) -> trainer`; the same one for every call.
      draw: `(keys) -> params` of stacked replicates, by size.
      draw_sparse: `(keys, params, masks) -> params` of the large network, drawn again by the
        sparse-aware initialization.
      norms: `(size) -> (params, masks) -> gradient norms` of stacked replicates; masks may be None.
      loss: `(params, (inputs, labels), temperature=1) -> mean cross-entropy` of the large network,
        without penalty.
    """

    lab: Lab
    networks: Mapping[str, Network]
    trainer: Callable[[str, str], loop.Trainer]
    draw: Mapping[str, Callable[[Array], Any]]
    draw_sparse: Callable[[Array, Any, Any], Any]
    norms: Callable[[str], Callable[[Any, Any], dict[str, Array]]]
    loss: Callable[..., Array]

    @property
    def settings(self) -> Settings:
        """The settings of the study."""
        return self.lab.settings

    @property
    def keys(self) -> Array:
        """One key per replicate."""
        return self.lab.site.keys

    def measured(self) -> Examples:
        """The training examples on which the gradient is measured."""
        return self.examples(0, self.settings.flow_examples)

    def scoring(self) -> Examples:
        """Other training examples, for scores."""
        start = self.settings.flow_examples
        return self.examples(start, start + self.settings.scoring_examples)

    def examples(self, start: int, stop: int) -> Examples:
        """Training examples by number."""
        return _examples(self.lab.source.held, start, stop)

    def new(self, number: int, size: str = "large") -> Any:
        """A dense initialization of every replicate; 0 is the one that is pruned."""
        return self.draw[size](self.keys_for(number))

    def keys_for(self, number: int) -> Array:
        """Other keys for every replicate."""
        return jax.vmap(lambda key: jax.random.fold_in(key, number))(self.keys)


def build(settings: Settings, site: Site) -> Flow:
    """Loads the data and assembles everything.

    Raises:
      DataNotFound: the data set is missing.
      ValueError: the settings do not fit the data set.
    """
    source = sources.load(
        settings.dataset,
        batch_size=settings.batch_size,
        image_size=settings.image_size,
        validation=0 if settings.image_size is None else settings.validation,
        normalize=False,
        augment="reflect" if settings.augment else None,
        **site.data,
    )
    held, needed = len(source.held[1]), settings.flow_examples + settings.scoring_examples
    if held < needed:
        raise ValueError(
            f"{settings.dataset} has {held:,} training examples to measure on; the measurements "
            f"need {needed:,}."
        )
    scale, fan, distribution = settings.initialization
    init = nnx.initializers.variance_scaling(scale, fan, distribution)
    lab = make_lab(settings, site, source, ("test",), kernel_init=init)
    small = make_network(settings.small_model, source.dataset, *source.pixels, kernel_init=init)
    nets = {"large": lab.network, "small": small}
    as_trained = {size: trained(net) for size, net in nets.items()}
    measured = _examples(source.held, 0, settings.flow_examples)

    @functools.cache
    def trainer(algorithm: str, size: str) -> loop.Trainer:
        net, dense = nets[size], algorithm == "dense"
        no_masks = jax.tree.map(lambda _: None, jax.eval_shape(net.init_params, site.keys[0]))
        return lab.trainer(
            lambda key: method(settings, algorithm, key, no_masks),
            dense=dense,
            track=_track(settings, as_trained[size], measured, dense),
            network=net,
        )

    @functools.cache
    def norms(size: str) -> Callable[[Any, Any], dict[str, Array]]:
        @jax.jit
        def compiled(params: Any, masks: Any, examples: Examples) -> dict[str, Array]:
            one = lambda pair: gradient_norms(as_trained[size], *pair, examples)  # noqa: E731
            return jax.lax.map(one, (params, masks))

        return lambda params, masks: compiled(params, masks, measured)

    sparse = functools.partial(
        jaxsparse.sparse_init,
        scale=scale,
        fan=fan,
        distribution=distribution,
        prunable=methods.prunable(settings.dense),
        axes="flax",
    )
    return Flow(
        lab=lab,
        networks=nets,
        trainer=trainer,
        draw={s: execution.compiled_once(jax.vmap(net.init_params)) for s, net in nets.items()},
        draw_sparse=execution.compiled_once(jax.vmap(sparse)),
        norms=norms,
        loss=functools.partial(mean_loss, as_trained["large"]),
    )


def mean_loss(
    apply: Callable[[Any, Array], Array], params: Any, examples: Examples, temperature: float = 1.0
) -> Array:
    """The mean cross-entropy of examples, logits divided by the temperature, without penalty."""
    inputs, labels = examples
    return evaluation.cross_entropy(apply(params, inputs) / temperature, labels).mean()


def gradient_norms(
    apply: Callable[[Any, Array], Array], params: Any, masks: Any, examples: Examples
) -> dict[str, Array]:
    """The L2 norm of the gradient of living weights and biases: "all", and by layer."""
    grads = jax.grad(lambda params: mean_loss(apply, params, examples))(params)
    found = jaxsparse.analysis.gradient_flow(grads, masks)
    return {"all": found.norm, **found.layers}


def next_masks(
    settings: Settings, algorithm: str, step: Array, params: Any, masks: Any, grads: Any, key: Array
) -> Any:
    """The masks with which "set" or "rigl" would continue."""
    make = {"set": jaxsparse.sparse_evolution_rule, "rigl": jaxsparse.rigl_rule}[algorithm]
    fraction = jaxsparse.schedules.cosine(settings.drop_fraction, settings.iterations)
    prunable = methods.prunable(settings.dense)
    rule = make(settings.sparsity, every=settings.every, drop_fraction=fraction, prunable=prunable)
    return rule.update(key, step, masks, params, grads, rule.init(key, params)[1])[0]


def _track(
    settings: Settings,
    apply: Callable[[Any, Array], Array],
    examples: Examples,
    dense: bool,
) -> loop.Track:
    points = (settings.iterations - 1) // settings.measure

    def masks_of(params: Any, opt_state: Any) -> Any:
        if dense:
            return jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
        return jaxsparse.get_masks(opt_state, params)

    def init(params: Any, opt_state: Any) -> Tracked:
        masks = masks_of(params, opt_state)
        measured = functools.partial(gradient_norms, apply)
        names = jax.eval_shape(measured, params, masks, examples)
        steps = len(settings.snapshots)
        empty = lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype)  # noqa: E731
        return Tracked(
            {name: jnp.full((points,), jnp.nan, jnp.float32) for name in names},
            jax.tree.map(empty, params),
            jax.tree.map(empty, masks),
        )

    def update(tracked: Tracked, state: Any, count: Array, loss: Array, data: Any) -> Tracked:
        masks = masks_of(state.params, state.opt_state)
        norms = gradient_norms(apply, state.params, masks, data)
        point = count // settings.measure - 1
        here = jnp.array(settings.snapshots) == count
        keep = lambda old, new: jnp.where(here.reshape(-1, *[1] * new.ndim), new, old)  # noqa: E731
        return Tracked(
            {name: tracked.norms[name].at[point].set(value) for name, value in norms.items()},
            jax.tree.map(keep, tracked.params, state.params),
            jax.tree.map(keep, tracked.masks, masks),
        )

    return loop.Track(settings.measure, init, update, examples)


def _examples(held: tuple[Any, Any], start: int, stop: int) -> Examples:
    return tuple(jnp.asarray(part[start:stop]) for part in held)
