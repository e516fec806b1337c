"""The other methods, and sparse momentum's options, in plain NumPy, written from their rules."""

import math
from fractions import Fraction

import numpy as np

from tests.reference import part
from tests.reference_runs import F, SparseMomentum, best, kernels, quotas, tree


def by_sign(weights, mask, fraction):
    """SET's own drop: the smallest of the positive and the largest of the negative weights go."""
    kept = np.zeros(mask.shape, bool)
    for side in (mask & (weights >= 0), mask & (weights < 0)):
        alive = int(side.sum())
        kept |= best(np.abs(weights), alive - math.floor(part(fraction, alive)), side)
    return kept


def evolution_by_sign(fraction, drawn):
    def move(t, masks, weights, grads):
        after, scores = {}, drawn(t)
        for layer, mask in masks.items():
            kept = by_sign(weights[layer]["kernel"], mask, fraction)
            grown = best(scores[layer], int(mask.sum() - kept.sum()), ~kept)
            after[layer] = kept | grown
        return after

    return move


class ConstantFanIn:
    """Lasby et al.: RigL in which every output unit that is left has the same number of inputs."""

    def __init__(self, fraction, min_salient, fans, keep=()):
        self.fraction, self.share, self.fans, self.keep = fraction, min_salient, fans, keep
        self.log = {"removed": 0, "back": 0, "uneven": 0, "trimmed": 0, "lowered": 0}

    def move(self, t, masks, weights, grads):
        return {
            layer: self.layer(
                mask.T,
                np.abs(weights[layer]["kernel"].T),
                np.abs(grads[layer]["kernel"].T),
                self.fraction(t),
                self.share if layer not in self.keep else None,
                self.fans[layer],
            ).T
            for layer, mask in masks.items()
        }

    def layer(self, mask, size, dense, fraction, share, first_fan):
        """Rows are output units."""
        alive, units = int(mask.sum()), list(range(len(mask)))
        dropped = math.floor(part(fraction, alive))
        everywhere = np.ones(mask.shape, bool)
        salient = (best(size, alive - dropped, mask) | best(dense, dropped, everywhere)).sum(1)
        ranked = sorted(units, key=lambda unit: -salient[unit])
        stays = ranked
        if share is not None:
            least = max(1, math.floor(part(share, first_fan)))
            needed = math.ceil(alive / mask.shape[1])
            if salient[ranked[needed]] < least:
                least, self.log["lowered"] = salient[ranked[needed]], self.log["lowered"] + 1
            stays = [u for u in ranked if salient[u] >= least]
            self.log["removed"] += sum(mask[u].any() for u in units if u not in stays)
            self.log["back"] += sum(not mask[u].any() for u in stays)
        kept = best(size, alive - dropped, mask & np.isin(units, stays)[:, None])
        after = np.zeros(mask.shape, bool)
        for i, unit in enumerate(stays):
            # Published is the floor for every unit; the library conserves the weights of a layer.
            fan = alive // len(stays) + (i < alive % len(stays))
            mine = best(size[unit], fan, kept[unit])
            self.log["trimmed"] += int(kept[unit].sum() - mine.sum())
            after[unit] = mine | best(dense[unit], fan - int(mine.sum()), ~mine)
        self.log["uneven"] += alive % len(stays) > 0
        assert after.sum() == alive
        return after


class Reparameterization:
    """Mostafa & Wang: one threshold for all layers; growth where weights are left, at random."""

    def __init__(self, threshold, target, drawn):
        self.threshold, self.target, self.drawn = F(threshold), F(target), drawn
        self.thresholds = []

    def move(self, t, masks, weights, grads):
        kept = {}
        for layer, mask in masks.items():
            size = np.abs(weights[layer]["kernel"])
            small = min(int((mask & (size < self.threshold)).sum()), int(mask.sum()) - 1)
            kept[layer] = best(size, int(mask.sum()) - small, mask)
        alive = sum(int(mask.sum()) for mask in masks.values())
        left = np.array([mask.sum() for mask in kept.values()])
        moved, wanted = alive - int(left.sum()), self.target * F(alive)
        if moved < F(0.9) * wanted:
            self.threshold *= F(2)
        elif moved > F(1.1) * wanted:
            self.threshold /= F(2)
        self.thresholds.append(float(self.threshold))
        shares = left.astype(F) / F(left.sum())
        free = np.array([(~mask).sum() for mask in masks.values()])
        room = np.array([(~mask).sum() for mask in kept.values()])
        counts, after, drawn = quotas(moved, shares, room, free.astype(F)), {}, self.drawn(t)
        for count, layer in zip(counts, masks, strict=True):
            scores = np.where(masks[layer] & ~kept[layer], drawn[layer] - F(1), drawn[layer])
            after[layer] = kept[layer] | best(scores, count, ~kept[layer])
        return after


class DeepRewiring:
    """Bellec et al.: noise and a penalty on the gradient; what changes its sign is rewired."""

    def __init__(self, signs, l1, noise, drawn, free=False):
        self.signs, self.l1, self.noise, self.drawn = dict(signs), F(l1), noise, drawn
        self.free, self.moved = free, 0
        self.young, self.grown, self.stillborn = {}, 0, 0

    def adjust(self, t, grads):
        noise = self.noise(t)
        return {
            layer: {
                "kernel": leaves["kernel"] + self.l1 * self.signs[layer] + noise[layer],
                "bias": leaves["bias"],
            }
            for layer, leaves in grads.items()
        }

    def move(self, t, masks, weights, grads):
        after, drawn = {}, self.drawn(t)
        for layer, mask in masks.items():
            kept = mask & (weights[layer]["kernel"] * self.signs[layer] >= 0)
            self.moved += int(mask.sum() - kept.sum())
            scores = np.where(mask & ~kept, drawn[layer] - F(1), drawn[layer])
            after[layer] = kept | best(scores, int(mask.sum() - kept.sum()), ~kept)
            if self.free:
                self.signs[layer] = np.sign(np.where(kept, weights[layer]["kernel"], F(0)))
            young = self.young.get(layer, np.zeros_like(mask))
            self.grown += int(young.sum())
            self.stillborn += int((young & ~kept).sum())
            self.young[layer] = after[layer] & ~kept
        return after


class GlobalMomentum(SparseMomentum):
    """Sparse momentum in which all layers compete: to stay, to grow, or both."""

    def __init__(self, *args, drop_by, **options):
        super().__init__(*args, **options)
        self.drop_by = drop_by

    def move(self, t, masks, weights, grads):
        shares, sizes = self.shares(masks, weights), kernels(np.abs, self.m)
        dropped = []
        for share, mask in zip(shares, masks.values(), strict=True):
            alive = int(mask.sum())
            least, empty = part(self.rate(t), alive), 1 - Fraction(alive, mask.size)
            if empty < Fraction(1, 5) and share > 1 / len(masks):
                least = min(empty * alive, least)
            dropped.append(min(math.ceil(least), alive - 1))
        weights = kernels(np.abs, weights)
        if self.drop_by == "global":
            kept = self.everywhere(
                weights, masks, sum(m.sum() for m in masks.values()) - sum(dropped)
            )
        else:
            kept = {
                layer: best(weights[layer], int(mask.sum()) - count, mask)
                for count, (layer, mask) in zip(dropped, masks.items(), strict=True)
            }
        lost = {layer: int(masks[layer].sum() - kept[layer].sum()) for layer in masks}
        if self.growth == "global":
            dead = {layer: ~mask for layer, mask in kept.items()}
            grown = self.everywhere(sizes, dead, sum(lost.values()), least=0)
            return {layer: kept[layer] | grown[layer] for layer in masks}
        room = np.array([(~mask).sum() for mask in kept.values()])
        counts = quotas(sum(lost.values()), shares, room, F(0.99) * room.astype(F))
        return {
            layer: kept[layer] | best(sizes[layer], count, ~kept[layer])
            for count, layer in zip(counts, masks, strict=True)
        }

    @staticmethod
    def everywhere(scores, masks, count, least=1):
        safe = {layer: best(scores[layer], least, mask) for layer, mask in masks.items()}
        joined = np.concatenate([scores[layer].ravel() for layer in masks])
        others = np.concatenate([(masks[layer] & ~safe[layer]).ravel() for layer in masks])
        chosen = best(joined, count - sum(mask.sum() for mask in safe.values()), others)
        parts = np.split(chosen, np.cumsum([mask.size for mask in masks.values()])[:-1])
        return {
            layer: safe[layer] | part.reshape(masks[layer].shape)
            for layer, part in zip(masks, parts, strict=True)
        }


class NormalisedMomentum(SparseMomentum):
    """Sparse momentum by Adam's signal."""

    def __init__(self, net, *args, second_moment):
        super().__init__(net, *args)
        self.first, self.second = tree(np.zeros_like, net), tree(np.zeros_like, net)
        self.b = F(second_moment)

    def observe(self, grads):
        self.first = tree(lambda m, g: self.decay * m + (1 - self.decay) * g, self.first, grads)
        self.second = tree(lambda v, g: self.b * v + (1 - self.b) * g**2, self.second, grads)
        self.m = tree(lambda m, v: m / (np.sqrt(v) + F(1e-8)), self.first, self.second)
