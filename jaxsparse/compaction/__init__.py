"""Removes dead units from a whole network, which becomes a smaller dense one."""

from jaxsparse.compaction.compacted import Compacted, compact

__all__ = ["Compacted", "compact"]
