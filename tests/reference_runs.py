"""Sparse training in plain NumPy, written from the papers' rules: what the library must agree with.

A net is a dict `{"fc1": {"kernel", "bias"}, ...}` of float32 arrays, with tanh between the layers
and cross-entropy at the end. Kernels are sparse, biases are dense.
"""

import math
from fractions import Fraction

import numpy as np

from tests.reference import part

F = np.float32


def tree(function, *trees):
    return {
        layer: {leaf: function(*(t[layer][leaf] for t in trees)) for leaf in trees[0][layer]}
        for layer in trees[0]
    }


def kernels(function, *trees):
    return {layer: function(*(t[layer]["kernel"] for t in trees)) for layer in trees[0]}


def masked(net, masks):
    """Zero where the mask of the kernel is; biases as they are."""
    return {
        layer: {
            "kernel": np.where(masks[layer], leaves["kernel"], F(0)),
            "bias": leaves["bias"],
        }
        for layer, leaves in net.items()
    }


def gradients(net, x, labels):
    """The dense gradients of the mean cross-entropy, by hand."""
    layers, inputs = list(net), [x]
    for layer in layers[:-1]:
        inputs.append(np.tanh(inputs[-1] @ net[layer]["kernel"] + net[layer]["bias"]))
    logits = inputs[-1] @ net[layers[-1]]["kernel"] + net[layers[-1]]["bias"]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    back = odds / odds.sum(1, keepdims=True)
    back[np.arange(len(labels)), labels] -= 1
    back = (back / F(len(labels))).astype(F)
    found = {}
    for layer, into in zip(reversed(layers), reversed(inputs), strict=True):
        found[layer] = {"kernel": into.T @ back, "bias": back.sum(0)}
        back = (back @ net[layer]["kernel"].T) * (1 - into**2)
    return {layer: found[layer] for layer in layers}


class Momentum:
    """SGD with heavy-ball momentum: `m = decay m + g`, step `-rate m`."""

    def __init__(self, rate, decay=0.9):
        self.rate, self.decay = F(rate), F(decay)

    def init(self, net):
        return {"m": tree(np.zeros_like, net)}

    def step(self, grads, state):
        m = tree(lambda g, m: g + self.decay * m, grads, state["m"])
        return tree(lambda m: -self.rate * m, m), {"m": m}


class Adam:
    """Adam as in its paper, with bias correction."""

    def __init__(self, rate, b1=0.9, b2=0.999, eps=1e-8):
        self.rate, self.b1, self.b2, self.eps = F(rate), F(b1), F(b2), F(eps)
        self.count = 0

    def init(self, net):
        self.count = 0
        return {"m": tree(np.zeros_like, net), "v": tree(np.zeros_like, net)}

    def step(self, grads, state):
        t = self.count + 1
        m = tree(lambda g, m: self.b1 * m + (1 - self.b1) * g, grads, state["m"])
        v = tree(lambda g, v: self.b2 * v + (1 - self.b2) * g**2, grads, state["v"])
        c1, c2 = F(1 - self.b1**t), F(1 - self.b2**t)

        def move(m, v):
            return (-self.rate * (m / c1) / (np.sqrt(v / c2) + self.eps)).astype(F)

        return tree(move, m, v), {"m": m, "v": v}


def best(scores, k, where):
    """The mask of the k highest scores in `where`, by a stable sort; ties to the lowest index."""
    order = np.argsort(-scores.ravel(), kind="stable")
    order = order[where.ravel()[order]][:k]
    mask = np.zeros(scores.size, bool)
    mask[order] = True
    return mask.reshape(scores.shape)


def cosine(start, stop, final=0.0):
    return lambda t: F(final) + F(start - final) / 2 * (1 + np.cos(F(np.pi) * F(min(t / stop, 1))))


def train(net, masks, optimizer, batches, fires, move, replaces_step, observe=None, adjust=None):
    """Yields `(weights, masks)` after each step; `move(t, masks, weights, grads) -> masks`."""
    net, state = masked(net, masks), optimizer.init(net)
    for t, (x, labels) in enumerate(batches):
        grads = gradients(net, x, labels)
        if observe is not None:
            observe(grads)
        seen = grads if adjust is None else adjust(t, grads)
        fired = fires(t)
        if fired:
            weights = net
            if not replaces_step:
                moves, _ = optimizer.step(masked(seen, masks), state)
                weights = masked(tree(np.add, net, moves), masks)
            before, masks = masks, move(t, masks, weights, grads)
            # The weights that died forget their state; a weight that lives on keeps it.
            state = {name: masked(kept, masks) for name, kept in state.items()}
        moves, state = optimizer.step(masked(seen, masks), state)
        if hasattr(optimizer, "count"):
            optimizer.count += 1
        if not (fired and replaces_step):
            stepped = tree(np.add, net, moves)
            if fired:
                # What has just grown starts at zero, and moves from the next step on.
                stepped = masked(stepped, before)
            net = stepped
        net = masked(net, masks)
        yield net, masks


def dynamic(fraction, growth_scores):
    """RigL and SET: per layer drop floor(f a) of a living weights by magnitude, grow as many."""

    def move(t, masks, weights, grads):
        scores, after = growth_scores(t, grads), {}
        for layer, mask in masks.items():
            alive = int(mask.sum())
            dropped = math.floor(part(fraction(t), alive))
            kept = best(np.abs(weights[layer]["kernel"]), alive - dropped, mask)
            after[layer] = kept | best(scores[layer], dropped, ~kept)
        return after

    return move


def gradual(sizes, sparsity, start, stop, scope):
    """Zhu & Gupta: the largest living weights stay, as many as the cubic schedule says."""

    def alive(size, t):
        left = 1 - min(max((t - start) / (stop - start), 0.0), 1.0)
        return math.floor(size * (1 - sparsity * (1 - left**3)) + 0.5)

    def move(t, masks, weights, grads):
        scores = kernels(np.abs, weights)
        if scope == "layer":
            return {
                layer: best(scores[layer], alive(sizes[layer], t), mask)
                for layer, mask in masks.items()
            }
        # No layer may die out: its best weight is safe, all others compete.
        safe = {layer: best(scores[layer], 1, mask) for layer, mask in masks.items()}
        joined = np.concatenate([scores[layer].ravel() for layer in masks])
        open_ = np.concatenate([(masks[layer] & ~safe[layer]).ravel() for layer in masks])
        chosen = best(joined, alive(sum(sizes.values()), t) - len(masks), open_)
        parts = np.split(chosen, np.cumsum([sizes[layer] for layer in masks])[:-1])
        return {
            layer: safe[layer] | part.reshape(masks[layer].shape)
            for layer, part in zip(masks, parts, strict=True)
        }

    return move


def quotas(total, shares, room, cap, log=None):
    """Whole numbers that sum to `total`, in proportion to the shares, none above its room.

    What exceeds a cap is spread evenly over all, until less than one weight does; then quotas are
    rounded down and the largest remainders get the rest.
    """
    wanted = np.asarray(shares, F) * F(total)
    for _ in range(1000):
        excess = np.maximum(wanted - cap, F(0)).sum(dtype=F)
        wanted = np.minimum(wanted, cap) + excess / F(len(wanted))
        if excess < 1:
            break
        if log is not None:
            log["full"] += 1
    counts = np.clip(np.floor(wanted).astype(int), 0, room)
    while counts.sum() < total:
        owed = np.where(counts < room, wanted - counts, -np.inf)
        counts[np.argmax(owed)] += 1
    return counts


class SparseMomentum:
    """Dettmers & Zettlemoyer's prune, redistribute, regrow, with a dense momentum of its own."""

    def __init__(self, net, rate, growth, redistribution, random=None, decay=0.9):
        self.rate, self.growth, self.redistribution = rate, growth, redistribution
        self.random, self.decay = random, F(decay)
        self.m = tree(np.zeros_like, net)
        self.log = {"full": 0, "limited": 0, "moved": 0}

    def observe(self, grads):
        self.m = tree(lambda m, g: self.decay * m + g, self.m, grads)

    def shares(self, masks, weights):
        means = {
            "momentum": lambda layer, mask: np.abs(self.m[layer]["kernel"])[mask].mean(),
            "magnitude": lambda layer, mask: np.abs(weights[layer]["kernel"])[mask].mean(),
            "nonzero": lambda layer, mask: F(mask.sum()),
            "none": lambda layer, mask: np.abs(self.m[layer]["kernel"])[mask].mean(),
        }
        found = np.array([means[self.redistribution](*pair) for pair in masks.items()], F)
        return found / found.sum()

    def move(self, t, masks, weights, grads):
        shares, kept, dropped = self.shares(masks, weights), {}, []
        for share, (layer, mask) in zip(shares, masks.items(), strict=True):
            alive = int(mask.sum())
            least, empty = part(self.rate(t), alive), 1 - Fraction(alive, mask.size)
            if empty < Fraction(1, 5) and share > 1 / len(masks):
                least, self.log["limited"] = min(empty * alive, least), self.log["limited"] + 1
            dropped.append(min(math.ceil(least), alive - 1))
            kept[layer] = best(np.abs(weights[layer]["kernel"]), alive - dropped[-1], mask)
        room = np.array([(~mask).sum() for mask in kept.values()])
        grown = dropped
        if self.redistribution != "none":
            grown = quotas(sum(dropped), shares, room, F(0.99) * room.astype(F), self.log)
        self.log["moved"] += int(np.abs(np.array(grown) - dropped).sum())
        drawn = self.random(t) if self.growth == "random" else None
        after = {}
        for count, (layer, mask) in zip(grown, kept.items(), strict=True):
            size = np.abs(self.m[layer]["kernel"])
            if self.growth == "momentum_neuron":
                after[layer] = mask | self.by_neuron(size, mask, count)
            else:
                after[layer] = mask | best(size if drawn is None else drawn[layer], count, ~mask)
        return after

    @staticmethod
    def by_neuron(size, mask, count):
        """Every output unit (column) gets its part by its mean |m| and grows where |m| is large."""
        unit, room = size.mean(0), (~mask).sum(0)
        counts = quotas(count, unit / unit.sum(), room, room.astype(F))
        columns = [best(size[:, j], c, ~mask[:, j]) for j, c in enumerate(counts)]
        return np.stack(columns, 1)
