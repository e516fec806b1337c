"""Every optimizer that optax and optax.contrib export, as an inner optimizer."""

import optax
from optax import contrib

OPTIMIZERS = {
    "adabelief": lambda: optax.adabelief(1e-2),
    "adadelta": lambda: optax.adadelta(1e-2),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "adagrad": lambda: optax.adagrad(1e-2),
    "adam": lambda: optax.adam(1e-2),
    "adamax": lambda: optax.adamax(1e-2),
    "adamaxw": lambda: optax.adamaxw(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "adan": lambda: optax.adan(1e-2),
    "amsgrad": lambda: optax.amsgrad(1e-2),
    "fromage": lambda: optax.fromage(1e-2),
    "lamb": lambda: optax.lamb(1e-2),
    "lars": lambda: optax.lars(1e-2),
    "lbfgs": lambda: optax.lbfgs(1e-2, linesearch=None),
    "lbfgs with linesearch": lambda: optax.lbfgs(memory_size=3),
    "lion": lambda: optax.lion(1e-2),
    "noisy_sgd": lambda: optax.noisy_sgd(1e-2),
    "novograd": lambda: optax.novograd(1e-2),
    "optimistic_adam": lambda: optax.optimistic_adam(1e-2),
    "optimistic_adam_v2": lambda: optax.optimistic_adam_v2(1e-2),
    "optimistic_gradient_descent": lambda: optax.optimistic_gradient_descent(1e-2),
    "polyak_sgd": lambda: optax.polyak_sgd(0.1),
    "radam": lambda: optax.radam(1e-2),
    "rmsprop": lambda: optax.rmsprop(1e-2, momentum=0.9),
    "rprop": lambda: optax.rprop(1e-2),
    "sgd": lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "sign_sgd": lambda: optax.sign_sgd(1e-2),
    "signum": lambda: optax.signum(1e-2),
    "sm3": lambda: optax.sm3(1e-2),
    "yogi": lambda: optax.yogi(1e-2),
    "acprop": lambda: contrib.acprop(1e-2),
    "ademamix": lambda: contrib.ademamix(1e-2),
    "adopt": lambda: contrib.adopt(1e-2),
    "cocob": lambda: contrib.cocob(1e-2),
    "dadapt_adamw": lambda: contrib.dadapt_adamw(1.0),
    "dog": lambda: contrib.dog(1.0),
    "dowg": lambda: contrib.dowg(1.0),
    "galore": lambda: contrib.galore(1e-2, rank=2),
    "madgrad": lambda: contrib.madgrad(1e-2),
    "mechanize": lambda: contrib.mechanize(optax.adam(1e-2)),
    "momo": lambda: contrib.momo(1e-1),
    "momo_adam": lambda: contrib.momo_adam(1e-2),
    "muon": lambda: contrib.muon(1e-2),
    "prodigy": lambda: contrib.prodigy(1.0),
    "reduce_on_plateau": lambda: optax.chain(optax.sgd(1e-2), contrib.reduce_on_plateau()),
    "sam": lambda: contrib.sam(optax.sgd(1e-2), optax.sgd(1e-2), sync_period=2),
    "schedule_free": lambda: contrib.schedule_free(optax.sgd(1e-2), 1e-2, b1=0.9),
    "schedule_free_adamw": lambda: contrib.schedule_free_adamw(1e-2, weight_decay=0.1),
    "schedule_free_sgd": lambda: contrib.schedule_free_sgd(1e-2),
    "simplified_ademamix": lambda: contrib.simplified_ademamix(1e-2),
    "sophia": lambda: contrib.sophia(1e-2),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2), 2),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(1e-2),
    "partition": lambda: optax.partition(
        {"a": optax.adam(1e-2), "b": optax.sgd(1e-2, momentum=0.9)},
        {"fc1": {"kernel": "a", "bias": "b"}, "fc2": {"kernel": "b"}},
    ),
}

# What an optimizer asks of `update`, or cannot bear to be given.
EXTRA = {
    "lbfgs with linesearch": ("value", "grad", "value_fn"),
    "sam": (),
    "sophia": ("obj_fn", "unknown"),
}

# What an optimizer does not hold, with the reason that docs/optimizers.md gives.
EXEMPT = {
    "sophia": ["inner state is initial off the masks"],
    "lbfgs with linesearch": ["inner state is initial off the masks"],
}

# What cannot be the inner optimizer, with the reason that docs/optimizers.md gives.
IMPOSSIBLE = {
    "dpsgd": "takes one gradient per example, not one per weight",
    "lookahead": "its parameters are pairs of fast and slow weights",
}
