"""Stores of others become stores of ours."""

from __future__ import annotations

from typing import Any

from torchcell_cache.cli.commands import say_made


def import_torchcell(*, base_graph: str, num_workers: int = 2, json: bool = False, **settings: Any) -> None:
    """Make a store of one that torchcell's own Neo4jPreprocessedCellDataset made.

    Its pickles are read in a process of its own, in which nothing they name is called; names that torchcell's records do not
    have are refused. Ids and labels are taken, masks are made anew, random samples are compared. Interrupted, the same
    command continues.

    Args:
        base_graph: The cell graph it was made with: a directory written by save_base_graph, or the root of another store.
        json: Print the result as JSON.

    Example:
        torchcell-cache import-torchcell root=stores/tmi store=old/preprocessed base_graph=cell/ trust=true
    """
    from torchcell_cache.cli.makers import make_base_graph
    from torchcell_cache.data.api import import_torchcell

    graph = make_base_graph(base_graph, "base_graph")
    say_made(json, import_torchcell(base_graph=graph, num_workers=num_workers, **settings))
