"""The compiled training loop: replicates of one method side by side, over data on the device.

A few functions in a `Trainer`, made once per run; all that changes is a `TrainState`. This file
does not decide how steps and replicates are compiled: `execution` does. The engine decides how a
run is split into calls; see `study.engine`.

    trainer = make_trainer(apply, init_params, make_tx, inputs, labels, batch_size=60, ...)
    state = trainer.init(jax.random.split(jax.random.key(0), 3))
    state = trainer.advance(state, 0, 1000)
    accuracy = trainer.evaluate(state.params, test)["accuracy"]
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.data.batches import batch_indices
from experiments.common.training.evaluation import EvaluationSet, cross_entropy, evaluate
from experiments.common.training.execution import Execution, compiled_once, over_replicates, place
from jaxsparse import sparse

Array = jax.Array
Metrics = dict[str, Any]


class TrainState(NamedTuple):
    """Everything that a run changes; the first axis of each array numbers the replicates.

    Attributes:
      params: the parameters.
      opt_state: the optimizer's state, including masks.
      data_key: raw key data; with the epoch it determines the order of the examples and their
        augmentation.
      order: int32 `(steps of an epoch, batch size)`, the rows of this epoch's batches.
      loss_sum: sum of training losses since the last evaluation.
      tracked: what a `Track` keeps; () without one.
    """

    params: Any
    opt_state: Any
    data_key: Array
    order: Array
    loss_sum: Array
    tracked: Any = ()


class Track(NamedTuple):
    """What is measured for one replicate inside the compiled loop.

    Attributes:
      every: steps from one measurement to the next.
      init: `(params, opt_state) -> tracked`.
      update: `(tracked, state, step, loss, data) -> tracked` after steps every, 2 * every, ...; the
        state is that of one replicate, and `loss` the mean training loss since the last
        measurement.
      data: arrays that `update` reads, the same for all replicates.
    """

    every: int
    init: Callable[[Any, Any], Any]
    update: Callable[..., Any]
    data: Any


class Trainer(NamedTuple):
    """Functions over stacked replicates; each is compiled once.

    Attributes:
      init: `(keys) -> TrainState`, one replicate per key.
      advance: `(state, first, last, examples=None) -> TrainState`, the steps `first, ..., last - 1`
        over the examples, or over other ones of the same shapes. The given state is donated. How a
        run is split into calls does not change its numbers.
      evaluate: `(params, EvaluationSet) -> {"loss", "accuracy"}`, one number per replicate each.
      steps_per_epoch: batches in one pass over the examples; an incomplete batch is left out.
    """

    init: Callable[[Array], TrainState]
    advance: Callable[..., TrainState]
    evaluate: Callable[[Any, EvaluationSet], Metrics]
    steps_per_epoch: int


def start_dense(tx: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """`(params, opt_state)` for a plain optimizer; a sparse one starts with `jaxsparse.init`."""
    return params, tx.init(params)


def make_trainer(
    apply: Callable[[Any, Array], Array],
    init_params: Callable[[Array], Any],
    make_tx: Callable[[Array | int], optax.GradientTransformationExtraArgs],
    inputs: Array,
    labels: Array,
    *,
    batch_size: int,
    execution: Execution,
    start: Callable[[Any, Any], tuple[Any, Any]] = start_dense,
    loss: Callable[[Array, Array], Array] = cross_entropy,
    augment: Callable[[Array, Array], Array] | None = None,
    forward: Callable[[Any, Array, Array], tuple[Array, Any]] | None = None,
    track: Track | None = None,
    compressed: bool = False,
) -> Trainer:
    """The training functions of one method.

    Two trainers with the same `init_params`, or the same `apply`, share their compiled code.

    Args:
      apply: `(params, inputs) -> logits` of one replicate.
      init_params: `(key) -> params`.
      make_tx: `(key) -> optimizer`; the key is traced. Learning-rate schedule and weight decay
        are part of it.
      inputs: the training examples, on the device.
      labels: int32, their classes (or next tokens).
      batch_size: examples per step, at most all.
      execution: how replicates are compiled.
      start: `(tx, params) -> (params, opt_state)`; `jaxsparse.init` for a sparse method.
      loss: `(logits, labels) -> loss of every example`.
      augment: `(key, inputs) -> inputs`, with another key at every step; None for no augmentation.
      forward: `(params, key, inputs) -> (logits, moved)`, what a training step computes instead of
        `apply` if that differs; see `network.Network`.
      track: what to measure inside the loop, if a call per measurement is too slow.
      compressed: whether the optimizer keeps parameters as their living values
        (`storage="compressed"`); `apply` is then that of `network.accelerated`.

    Raises:
      ValueError: the batch size is below 1 or above the number of examples.
    """
    n = len(labels)
    if not 1 <= batch_size <= n:
        raise ValueError(
            f"batch_size must be in [1, {n}], the training examples, got {batch_size}."
        )
    steps_per_epoch = n // batch_size
    tx = make_tx(0)

    def begin(key: Array, params: Any, data_key: Array) -> TrainState:
        params, opt_state = start(make_tx(key), params)
        order = jnp.zeros((steps_per_epoch, batch_size), jnp.int32)
        loss_sum = jnp.zeros((), jnp.float32)
        tracked = () if track is None else track.init(params, opt_state)
        return TrainState(
            params, opt_state, jax.random.key_data(data_key), order, loss_sum, tracked
        )

    begin_all = compiled_once(jax.vmap(begin))

    def init(keys: Array) -> TrainState:
        init_keys, method_keys, data_keys = _fold(keys)
        given = method_keys, _init_params(init_params, init_keys), data_keys
        return _begin_each(begin, given) if compressed else begin_all(*given)

    def mean_loss(params: Any, key: Array, inputs: Array, labels: Array) -> tuple[Array, Any]:
        if forward is None:
            return loss(apply(params, inputs), labels).mean(), None
        logits, moved = forward(params, key, inputs)
        return loss(logits, labels).mean(), moved

    train = (sparse.train_step if compressed else _train_step)(mean_loss, tx, has_aux=True)

    def step(row: Array, state: TrainState, epoch_key: Array, examples: Any) -> TrainState:
        inputs, labels = (part[state.order[row]] for part in examples)
        key = jax.random.fold_in(epoch_key, row)
        if augment is not None:
            inputs = augment(key, inputs)

        given = jax.random.fold_in(key, 1), inputs, labels
        params, opt_state, (value, moved) = train(state.params, state.opt_state, *given)
        if forward is not None:
            params = jax.tree.map(
                lambda p, new: p if new is None else new,
                params,
                moved,
                is_leaf=sparse.is_compressed,
            )
        return state._replace(params=params, opt_state=opt_state, loss_sum=state.loss_sum + value)

    def measure(state: TrainState, count: Array, data: Any) -> TrainState:
        def update(tracked: Any, params: Any, opt_state: Any, loss: Array) -> Any:
            now = state._replace(params=params, opt_state=opt_state)
            return track.update(tracked, now, count, loss, data)

        due, mean = count % track.every == 0, state.loss_sum / track.every
        inputs = state.tracked, state.params, state.opt_state, mean
        tracked = jax.lax.cond(due, update, lambda tracked, *_: tracked, *inputs)
        return state._replace(tracked=tracked, loss_sum=jnp.where(due, 0, state.loss_sum))

    def epoch(state: TrainState, count: Array) -> tuple[Array, Array]:
        """The key of the epoch that contains a step, and the order of its examples."""
        number, row = count // steps_per_epoch, count % steps_per_epoch
        key = jax.random.fold_in(jax.random.wrap_key_data(state.data_key), number)
        new = functools.partial(batch_indices, n=n, batch_size=batch_size)
        return key, jax.lax.cond(row == 0, new, lambda key: state.order, key)

    def replicate(state: TrainState, first: Array, last: Array, examples: Any, data: Any) -> Any:
        def stretch(carry: tuple[Array, TrainState]) -> tuple[Array, TrainState]:
            # To the end of the epoch, the next measurement or the last step, whichever comes first.
            count, state = carry
            row, (key, order) = count % steps_per_epoch, epoch(state, count)
            size = jnp.minimum(last - count, steps_per_epoch - row)
            if track is not None:
                size = jnp.minimum(size, track.every - count % track.every)
            body = functools.partial(step, epoch_key=key, examples=examples)
            state = jax.lax.fori_loop(row, row + size, body, state._replace(order=order))
            count += size
            return count, state if track is None else measure(state, count, data)

        return jax.lax.while_loop(lambda carry: carry[0] < last, stretch, (first, state))[1]

    def alone(states: TrainState, count: Array, examples: Any, data: Any) -> TrainState:
        """The step at `count` of a single replicate."""
        state = jax.tree.map(lambda leaf: leaf[0], states)
        key, order = epoch(state, count)
        state = step(count % steps_per_epoch, state._replace(order=order), key, examples)
        state = state if track is None else measure(state, count + 1, data)
        return jax.tree.map(lambda leaf: leaf[None], state)

    every_replicate = over_replicates(replicate, execution.replicates)
    steps = jax.jit(lambda state, *shared: every_replicate((state,), *shared), donate_argnums=0)
    one_step = jax.jit(alone, donate_argnums=0)
    placed: dict[int, Any] = {}

    def advance(state: TrainState, first: int, last: int, examples: Any = None) -> TrainState:
        count = len(state.data_key)
        if count not in placed:
            data = () if track is None else track.data
            placed[count] = place(state.data_key, (inputs, labels), data)[1:]
        (state,), (here, data) = place(state), placed[count]
        here = here if examples is None else place(state.data_key, examples)[1]
        if not (execution.by_steps and count == 1):
            return steps(state, first, last, here, data)
        for now in range(first, last):
            state = one_step(state, jnp.int32(now), here, data)
        return state

    return Trainer(
        init, advance, functools.partial(evaluate, apply, loss, execution), steps_per_epoch
    )


def _begin_each(begin: Callable[..., TrainState], given: Any) -> TrainState:
    """Replicates begun one after another, outside `jit`: the number of living weights of a leaf
    determines its shapes, which are the same for all."""
    count = len(jax.tree.leaves(given)[0])
    each = [begin(*jax.tree.map(lambda leaf: leaf[i], given)) for i in range(count)]  # noqa: B023
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def _train_step(loss: Callable[..., Any], tx: Any, *, has_aux: bool) -> Callable[..., Any]:
    """The ordinary step for dense parameters: `sparse.train_step` without its detour."""

    def step(params: Any, opt_state: Any, *args: Any) -> tuple[Any, Any, Any]:
        value, grads = jax.value_and_grad(loss, has_aux=has_aux)(params, *args)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return step


@jax.jit
def _fold(keys: Array) -> list[Array]:
    return [jax.vmap(lambda key: jax.random.fold_in(key, use))(keys) for use in range(3)]  # noqa: B023


@functools.partial(jax.jit, static_argnums=0)
def _init_params(init_params: Callable, keys: Array) -> Any:
    return jax.vmap(init_params)(keys)
