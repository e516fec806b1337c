"""Exact selection of the k largest of n scores by counting, never by sorting.

A score is read as an unsigned integer of the same order (its *rank key*). The k-th largest key is
found from the counts of its digits: from histograms of 16-bit digits (fast for many scores on a
CPU), or bit by bit with one count each (fast where scatter is slow, or scores are few). Ties at the
cut-off go to the lowest flat index, found by the same search in the keys `n - 1 - index`. Nothing
is reshaped, so on a sharded array only counts cross devices.

- `top_k`: masks of the largest scores, and the k-th largest itself.
- `_cut`: the search for the cut-off.
- `_rank_keys`: scores as integers, and the order among ties.
- `kernels`: compiled kernels for one CPU device, which select, draw scores and count masks.
"""

from jaxsparse.selection import _kernels as kernels
from jaxsparse.selection.top_k import global_top_k_masks, kth_largest, top_k_mask

__all__ = ["global_top_k_masks", "kernels", "kth_largest", "top_k_mask"]
