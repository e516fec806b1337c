"""Finds the products that a traced function computes, and the parameter leaf each one reads.

Every value of a jaxpr has an owner: `None` for an activation (it depends on the data), otherwise
`{leaf: share}`, the share of its elements that come from each parameter leaf; `{}` is a constant.
Rearranging and rescaling preserve the owner, so a reshaped, transposed, sliced, cast, masked or
concatenated weight is still that weight.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from jax.extend.core import Literal

from jaxsparse import jaxprs

Owner = dict[int, float] | None

# A slice or a gathered part counts with the density of its whole leaf, so nothing has to be
# computed; if all parts of a leaf are used alike, as stacked layers are, the sum is exact.
_KEEP_OWNER = frozenset(
    "abs add broadcast_in_dim clamp convert_element_type copy copy_p div dynamic_slice "
    "dynamic_update_slice exp expand_dims gather integer_pow log logistic max min mul neg "
    "optimization_barrier pad pow reduce_precision reshape rev round scatter select_n "
    "sharding_constraint sign slice split sqrt square squeeze stop_gradient sub tanh "
    "transpose".split()
)
_OPAQUE = frozenset(
    "custom_call ffi_call io_callback pallas_call pure_callback ragged_dot ragged_dot_general "
    "scaled_dot scaled_matmul shard_map".split()
)


class Products:
    """Counts 2 FLOPs per multiply-add, leaf by leaf.

    Attributes:
      flops: `{leaf: FLOPs}`; under None the FLOPs that no leaf owns, such as attention scores.
      notes: what the numbers leave out, one line for each.
    """

    def __init__(self, sizes: Sequence[int]):
        self.flops: dict[int | None, float] = defaultdict(int)
        self.notes: set[str] = set()
        self._sizes = sizes

    def walk(self, jaxpr: Any, owners: Sequence[Owner], times: int = 1) -> list[Owner]:
        """Counts a jaxpr's products `times` times over; returns the owners of its outputs."""
        jaxpr = jaxprs.opened(jaxpr)
        known: dict[Any, Owner] = {var: {} for var in jaxpr.constvars}
        known.update(zip(jaxpr.invars, owners, strict=True))
        for eqn in jaxpr.eqns:
            inputs = [{} if isinstance(v, Literal) else known[v] for v in eqn.invars]
            known.update(zip(eqn.outvars, self._step(eqn, inputs, times), strict=True))
        return [{} if isinstance(v, Literal) else known[v] for v in jaxpr.outvars]

    def _step(self, eqn: Any, inputs: list[Owner], times: int) -> list[Owner]:
        kind = eqn.primitive.name
        if kind in ("dot_general", "conv_general_dilated"):
            self._count(inputs, times * _flops(eqn))
        elif kind == "scan":
            return self._scan(eqn, inputs, times)
        elif kind == "while":
            return self._while(eqn.params, inputs, times)
        elif kind == "cond":
            return self._cond(eqn.params["branches"], inputs, times)
        elif kind == "concatenate":
            return [_mix(inputs, [math.prod(v.aval.shape) for v in eqn.invars])]
        elif kind in _KEEP_OWNER:
            return [self._largest(inputs)] * len(eqn.outvars)
        elif kind in _OPAQUE:
            self.notes.add(f"{kind}: not counted")
        else:
            inner = jaxprs.called(eqn)
            if inner is not None:
                return self.walk(inner, inputs, times)
            if jaxprs.calls(eqn):
                self.notes.add(f"{kind}: not counted")
        active = any(owner is None for owner in inputs)
        return [None if active else {}] * len(eqn.outvars)

    def _count(self, inputs: list[Owner], flops: float) -> None:
        owner = self._largest([owner for owner in inputs if owner is not None]) or {}
        for leaf, share in owner.items():
            self.flops[leaf] += flops if share == 1 else flops * share
        if (rest := 1 - sum(owner.values())) > 0:
            self.flops[None] += flops if rest == 1 else flops * rest

    def _scan(self, eqn: Any, inputs: list[Owner], times: int) -> list[Owner]:
        body, first, count = jaxprs.scan(eqn)
        after = first + count

        def turn(walker: Products, carry: list[Owner], times: int) -> list[Owner]:
            return walker.walk(body, inputs[:first] + carry + inputs[after:], times)

        carry = self._settle(lambda carry: turn(self._dry(), carry, 1)[:count], inputs[first:after])
        return carry + turn(self, carry, times * eqn.params["length"])[count:]

    def _while(self, params: Any, inputs: list[Owner], times: int) -> list[Owner]:
        first = params["cond_nconsts"]
        after = first + params["body_nconsts"]
        test, body = inputs[:first], inputs[first:after]
        carry = self._settle(
            lambda carry: self._dry().walk(params["body_jaxpr"], body + carry), inputs[after:]
        )
        before = dict(self.flops)
        self.walk(params["cond_jaxpr"], test + carry, times)
        self.walk(params["body_jaxpr"], body + carry, times)
        if self.flops != before:
            self.notes.add("while: one turn counted")
        return carry

    def _cond(self, branches: Sequence[Any], inputs: list[Owner], times: int) -> list[Owner]:
        counts = [self._dry() for _ in branches]
        outputs = [
            counter.walk(branch, inputs[1:], times)
            for counter, branch in zip(counts, branches, strict=True)
        ]
        dearest = max(counts, key=lambda counter: sum(counter.flops.values()))
        for leaf, flops in dearest.flops.items():
            self.flops[leaf] += flops
        self.notes.update(*(counter.notes for counter in counts))
        if inputs[0] is None:
            return [None] * len(outputs[0])
        return [self._largest(list(options)) for options in zip(*outputs, strict=True)]

    def _settle(self, step: Any, carry: list[Owner]) -> list[Owner]:
        """The owners of a loop's carry, once another iteration no longer changes them."""
        while True:
            after = [self._largest(list(pair)) for pair in zip(carry, step(carry), strict=True)]
            if after == carry:
                return carry
            carry = after

    def _largest(self, owners: list[Owner]) -> Owner:
        """One owner for a combination: data makes an activation, else the largest leaf wins."""
        known = [owner for owner in owners if owner is not None]
        return None if len(known) < len(owners) else max(known, key=self._size, default={})

    def _size(self, owner: dict[int, float]) -> int:
        return max((self._sizes[leaf] for leaf in owner), default=-1)

    def _dry(self) -> "Products":
        return Products(self._sizes)


def _flops(eqn: Any) -> int:
    left, right = (v.aval.shape for v in eqn.invars)
    outputs = math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "dot_general":
        contracted = eqn.params["dimension_numbers"][0][0]
        return 2 * outputs * math.prod(left[axis] for axis in contracted)
    taps = math.prod(right) // max(right[eqn.params["dimension_numbers"].rhs_spec[0]], 1)
    # The zeros that a transposed convolution inserts between its inputs are not work.
    return 2 * outputs * taps // math.prod(eqn.params["lhs_dilation"])


def _mix(owners: list[Owner], sizes: list[int]) -> Owner:
    known = [owner for owner in owners if owner is not None]
    if len(known) < len(owners):
        return None
    mixed: dict[int, float] = defaultdict(float)
    for owner, size in zip(known, sizes, strict=True):
        for leaf, share in owner.items():
            mixed[leaf] += share * size / max(sum(sizes), 1)
    return dict(mixed)
