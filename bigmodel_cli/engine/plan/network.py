"""The time of ring collectives as NCCL runs them (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce").

A ring over n ranks passes each byte on n - 1 times, at the rate of its slowest hop. Within a node that is the
link. Across nodes NCCL builds as many rings as a node has ranks, so that all of its network cards are used.
"""

from __future__ import annotations

from dataclasses import dataclass

from bigmodel_cli.engine.plan.devices import Device

ACHIEVED_FRACTION = 0.8
"""The fraction of the nominal rate that nccl-tests typically report on NVLink and InfiniBand for large messages."""
HOP, NETWORK_HOP = 2e-6, 6e-6
"""The latency of a hop in seconds, within a node and between nodes: assumed."""


@dataclass(frozen=True)
class Ring:
    """`size` ranks, `inside` of them on each node."""

    size: int
    ranks_per_node: int
    device: Device

    @property
    def rate(self) -> float:
        """Bytes per second through each rank."""
        across = self.ranks_per_node * self.device.network
        return ACHIEVED_FRACTION * (
            self.device.link if self.size <= self.ranks_per_node else min(self.device.link, across)
        )

    def _steps(self) -> float:
        between = self.size / self.ranks_per_node if self.size > self.ranks_per_node else 0
        return between * NETWORK_HOP + (self.size - 1 - between) * HOP

    def all_gather(self, size: float) -> float:
        """Seconds to gather `size` bytes from equal shards on every rank. A reduce-scatter takes as long."""
        if self.size == 1:
            return 0.0
        return size * (self.size - 1) / self.size / self.rate + self._steps()

    def all_reduce(self, size: float) -> float:
        """Seconds to sum `size` bytes over the ranks: a reduce-scatter, then an all-gather."""
        return 2 * self.all_gather(size)

    def send(self, size: float) -> float:
        """Seconds to send `size` bytes to the next rank."""
        return size / self.rate + (HOP if self.size <= self.ranks_per_node else NETWORK_HOP)

    def bytes_sent(self, size: float) -> float:
        """Bytes that each rank sends in an all-gather or reduce-scatter of `size`."""
        return size * (self.size - 1) / self.size
