"""The knock-outs in the graph database: a server named by ``NEO4J_URI``, or the embedded one on a directory."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arguments import QUERIES

from torchcell_cache.sources import Neo4jCellDataset, embedded_bolt, yeast_base_graph, yeast_knockouts
from torchcell_cache.sources.yeast.folder import chosen_rows

DATASET = "KnockoutsFba"


@contextlib.contextmanager
def login(directory: str | Path) -> Iterator[dict[str, Any]]:
    """Address and credentials: none for ``NEO4J_URI``, which the library reads; else of an embedded server."""
    if os.environ.get("NEO4J_URI"):
        yield {}
        return
    with embedded_bolt(directory, heap="2g") as server:
        yield server.login


def knockout_rows(
    folder: str | Path | None, num_samples: int | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """The table as rows of ``load_experiments``; ids sort as the rows of the table do."""
    knockouts, labels = yeast_knockouts(folder)
    width = len(str(len(knockouts)))
    columns = {name: values.tolist() for name, values in labels.items()}
    return [
        {
            "id": f"fba-{row:0{width}d}",
            "genes": knockouts[row],
            # JSON has no NaN. A score that is not defined is null, so that every row has the same labels.
            "labels": {
                name: None if math.isnan(column[row]) else column[row] for name, column in columns.items()
            },
        }
        for row in chosen_rows(len(knockouts), num_samples, seed).tolist()
    ]


def knockouts_from_database(
    raw: str | Path, directory: str | Path, query: str | Path, folder: str | Path | None = None
) -> Any:
    """The knock-outs that a query gives, as a source. Once ``raw`` holds them, no server is started or asked.

    Args:
        raw: Where the records are kept.
        directory: Directory of the embedded server.
        query: File in ``queries/``, or a path.
        folder: Folder of raw files, for the base graph.
    """
    graph = yeast_base_graph(folder)
    file = QUERIES / query if (QUERIES / query).is_file() else Path(query)
    kept = (Path(raw) / "raw" / "manifest.json").is_file()
    with contextlib.nullcontext({}) if kept else login(directory) as server:
        return Neo4jCellDataset(raw, query=file, base_graph=graph, **server)
