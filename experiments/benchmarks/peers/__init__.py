"""The other ways: general products and torchcell's own scheme."""

from __future__ import annotations

from pathlib import Path

from experiments.benchmarks.peers.common import Peer
from experiments.benchmarks.peers.floor import BareLmdb
from experiments.benchmarks.peers.litdata_peer import LitDataFlat
from experiments.benchmarks.peers.mds_peer import MosaicMds
from experiments.benchmarks.peers.ondisk import OnDisk
from experiments.benchmarks.peers.torchcell_scheme import TorchcellScheme

__all__ = ["GENERAL_PEERS", "Peer", "TorchcellScheme", "choose_peers"]

GENERAL_PEERS: tuple[type[Peer], ...] = (BareLmdb, OnDisk, LitDataFlat, MosaicMds)


def choose_peers(root: Path) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run here, each with its own directory, and why the others cannot."""
    chosen, skipped = [], {}
    for peer in GENERAL_PEERS:
        reason = peer.missing()
        if reason is None:
            chosen.append(peer(root / peer.__name__))
        else:
            skipped[peer.name] = reason
    return chosen, skipped
