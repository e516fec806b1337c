"""What the library must compute, written again as plain NumPy loops from the published rules."""

import itertools
import math
from fractions import Fraction

import numpy as np


def part(fraction, count):
    """A fraction of a count, exactly: of a fraction float32 knows seven decimals, so 0.3 is 3/10,
    whatever float it was in."""
    return Fraction(f"{float(fraction):.7f}") * count


def target_count(size, sparsity):
    return math.floor(size - part(sparsity, size) + Fraction(1, 2))


def ranking(scores, where=None):
    """Flat indices from best to worst: a stable sort, NaN last; only the eligible ones."""
    with np.errstate(invalid="ignore"):
        wide = np.asarray(scores).astype(np.float64).ravel()
    missing = np.isnan(wide)
    order = np.lexsort((-np.where(missing, 0.0, wide), missing))
    return order if where is None else order[np.asarray(where).ravel()[order]]


def top_k_mask(scores, k, where=None):
    mask = np.zeros(np.size(scores), bool)
    mask[ranking(scores, where)[:k]] = True
    return mask.reshape(np.shape(scores))


def top_k_mask_along(scores, k, axis, where=None):
    """`k` has the shape of the scores without the axis, or is one number."""
    scores = np.moveaxis(np.asarray(scores), axis, -1)
    where = np.ones(scores.shape, bool) if where is None else np.moveaxis(where, axis, -1)
    k = np.broadcast_to(k, scores.shape[:-1])
    mask = np.zeros(scores.shape, bool)
    for row in np.ndindex(*scores.shape[:-1]):
        mask[row] = top_k_mask(scores[row], k[row], where[row])
    return np.moveaxis(mask, -1, axis)


def kth_largest(scores, k):
    value = np.asarray(scores).ravel()[ranking(scores)[k - 1]]
    return abs(value) if value == 0 else value


def global_top_k_masks(leaves, k, where=None):
    with np.errstate(invalid="ignore"):
        flat = np.concatenate([np.asarray(x).astype(np.float64).ravel() for x in leaves])
    if where is not None:
        where = np.concatenate([np.asarray(x).ravel() for x in where])
    ends = np.cumsum([np.size(x) for x in leaves])[:-1]
    parts = np.split(top_k_mask(flat, k, where), ends)
    return [part.reshape(np.shape(x)) for part, x in zip(parts, leaves, strict=True)]


def pack(mask):
    """Bit by bit: the first element of a row is the highest bit of its first byte."""
    *rows, n = mask.shape
    packed = np.zeros((*rows, -(-n // 8)), np.uint8)
    for index in np.ndindex(*mask.shape):
        if mask[index]:
            packed[(*index[:-1], index[-1] // 8)] |= 128 >> index[-1] % 8
    return packed


def erdos_renyi_densities(raw, sizes, sparsity):
    """RigL's loop: solve for the factor, fix what would be denser than 1, solve again."""
    dense = set()
    while True:
        free = [i for i in range(len(sizes)) if i not in dense]
        if not free:
            return [1.0] * len(sizes)
        wanted = sum((1 - sparsity) * sizes[i] for i in free)
        wanted -= sum(sparsity * sizes[i] for i in dense)
        factor = wanted / sum(raw[i] * sizes[i] for i in free)
        if factor * max(raw[i] for i in free) <= 1:
            return [1.0 if i in dense else factor * raw[i] for i in range(len(sizes))]
        dense |= {i for i in free if raw[i] == max(raw[j] for j in free)}


def groups(shape, pattern, inputs, outputs, stacked=(), *, m=None, rows=None, columns=None):
    """The rows of a pattern: a list of competitions, each a list of groups of indices."""
    found = {}
    for index in np.ndindex(*shape):
        unit = tuple(index[a] for a in sorted((*stacked, *outputs)))
        others = tuple(index[a] for a in range(len(shape)) if a not in inputs)
        if pattern == "channel":
            row, group = (), unit
        elif pattern == "fan_in":
            row, group = unit, index
        elif pattern == "n_m":
            along = sorted(inputs)
            position = np.ravel_multi_index([index[a] for a in along], [shape[a] for a in along])
            row, group = (others, position // m), index
        else:
            spot = list(index)
            spot[inputs[-1]] //= rows
            spot[outputs[-1]] //= columns
            row, group = (), tuple(spot)
        found.setdefault(row, {}).setdefault(group, []).append(index)
    return [list(row.values()) for row in found.values()]


def best_groups(scores, rows, k, where=None):
    """Keeps the k best groups of every row; a group scores the mean of its weights."""
    mask = np.zeros(np.shape(scores), bool)
    for row in rows:
        means = np.array([np.mean([scores[i] for i in group]) for group in row])
        free = None if where is None else [all(where[i] for i in group) for group in row]
        for group in itertools.compress(row, top_k_mask(means, k, free)):
            for index in group:
                mask[index] = True
    return mask


def drop_and_grow(mask, drop_scores, grow_scores, fraction):
    """RigL, section 3: drop the worst living weights, grow the best of all others."""
    alive = int(mask.sum())
    dropped = math.floor(part(fraction, alive))
    kept = top_k_mask(drop_scores, alive - dropped, mask)
    return kept | top_k_mask(grow_scores, dropped, ~kept)


def redistribute(total, shares, room, cap=None):
    """Quotas in proportion; excess over the caps spread evenly; rounded down; largest remainders.

    In float64; exact, and so the same as in float32, where all numbers are dyadic.
    """
    layers, total = len(shares), min(total, sum(room))
    cap = room if cap is None else cap
    usable = np.all(np.isfinite(shares)) and sum(shares) > 0
    shares = [s / sum(shares) for s in shares] if usable else [1 / layers] * layers
    quotas = [s * total for s in shares]
    for _ in range(1000):
        excess = sum(max(q - c, 0) for q, c in zip(quotas, cap, strict=True))
        quotas = [min(q, c) + excess / layers for q, c in zip(quotas, cap, strict=True)]
        if excess < 1:
            break
    counts = [min(math.floor(q), r) for q, r in zip(quotas, room, strict=True)]
    while sum(counts) != total:
        left = total - sum(counts)
        step = 1 if left > 0 else -1
        able = [i for i in range(layers) if (counts[i] < room[i] if left > 0 else counts[i] > 0)]
        first = sorted(able, key=lambda i: -step * (quotas[i] - counts[i]))
        for i in first[: abs(left)]:
            counts[i] += step
    return counts


def fan(mask, inputs, outputs, stacked, kind):
    """For each weight the number of living weights of its unit, by looking at every one."""
    found = np.zeros(mask.shape)
    for index in np.ndindex(*mask.shape):
        same = {"fan_in": outputs, "fan_out": inputs, "layer": ()}[kind]
        fixed = [index[a] if a in (*same, *stacked) else slice(None) for a in range(mask.ndim)]
        found[index] = mask[tuple(fixed)].sum()
    units = math.prod(mask.shape[a] for a in outputs) if kind == "layer" else 1
    return found / units


def grouped_fan(mask, groups, kind):
    """The same of a grouped kernel `(..., inputs of a group, outputs)`, weight by weight.

    Output o belongs to group `o // (outputs / groups)`, and input i of a group feeds that group.
    """
    each = mask.shape[-1] // groups
    found = np.zeros(mask.shape)
    for index in np.ndindex(*mask.shape):
        for other in np.ndindex(*mask.shape):
            same_group = other[-1] // each == index[-1] // each
            shared = {"fan_in": other[-1] == index[-1], "fan_out": other[-2] == index[-2]}[kind]
            found[index] += mask[other] and same_group and shared
    return found


def cubic(final, start, stop, count):
    progress = min(max((count - start) / (stop - start), 0), 1)
    return final * (1 - (1 - progress) ** 3)
