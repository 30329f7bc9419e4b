"""*S. cerevisiae*: STRING networks, the metabolic model yeast-GEM and a table of knock-outs, from a folder of raw files.

==================================  ================================================================================
``yeast-GEM*.yml`` (or ``.yml.gz``)  the model, exactly one file
``string_*_<channel>.tsv[.gz]``      one file per STRING channel, columns ``gene_a gene_b score``, one row per pair
``genes.txt``                        systematic names, one per line, of the genes of those networks
``fba_knockouts.tsv[.gz]``           columns ``genes`` (joined by ``|``) and ``fitness`` (fraction of the wild type)
==================================  ================================================================================
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch_geometric.data import HeteroData

from torchcell_cache.core.checks import truth, whole_number
from torchcell_cache.core.ragged import Float32Array, Int64Array
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.delimited import errors_of, read_rows
from torchcell_cache.sources.gene_lists import read_gene_list
from torchcell_cache.sources.interactions import interaction_scores
from torchcell_cache.sources.label_tables import Roles, read_table
from torchcell_cache.sources.measurements import number_of
from torchcell_cache.sources.metabolic import model_rules, set_model
from torchcell_cache.sources.yeast.gem import AGAIN, read_yeast_gem

if TYPE_CHECKING:
    from torchcell_cache.sources.table import PerturbationTable

FOLDER_VARIABLE = "TORCHCELL_CACHE_YEAST"
CHANNELS = ("neighborhood", "fusion", "cooccurence", "coexpression", "experimental", "database")
"""STRING's channels, as STRING spells and orders them."""

_LARGEST = float(np.finfo(np.float32).max)
_AGAIN = "correct it, or fetch it again: experiments/006-kuzmin-tmi/scripts/download.py"

_EXPECTED = f"expected string_<version>_<channel>.tsv[.gz], channels {', '.join(CHANNELS)}"
_FILES = {
    "model": ("yeast-GEM*.yml", "yeast-GEM*.yml.gz"),
    "genes": ("genes.txt",),
    "knockouts": ("fba_knockouts.tsv", "fba_knockouts.tsv.gz"),
    **{channel: (f"string_*_{channel}.tsv", f"string_*_{channel}.tsv.gz") for channel in CHANNELS},
}
LABELS = ("fitness", "epsilon", "tau")
"""Growth, digenic score (doubles) and trigenic score (triples)."""


def _download(folder: str | Path) -> str:
    return f"python experiments/006-kuzmin-tmi/scripts/download.py {folder}"


def yeast_folder(folder: str | Path | None = None) -> Path:
    """The folder of raw files: the one given, or the one named by ``$TORCHCELL_CACHE_YEAST``.

    Raises:
        SettingError: If there is none.
    """
    named = folder or os.environ.get(FOLDER_VARIABLE)
    fix = f"{_download('FOLDER')}, then export {FOLDER_VARIABLE}=FOLDER"
    if not named:
        raise SettingError(f"no folder of yeast data: none given, and {FOLDER_VARIABLE} is not set", fix=fix)
    path = local_path(named, "folder")
    if not path.is_dir():
        raise SettingError(f"no folder of yeast data at {path}", path=path, fix=fix)
    return path


def yeast_base_graph(
    folder: str | Path | None = None, self_loops: bool = False, *, scores: bool = False
) -> HeteroData:
    """Base graph of the networks and the model.

    Genes are the union of both, ordered by name; reactions and metabolites are ordered as in the model. Equal files
    give equal graphs.

    Args:
        folder: Folder of raw files; ``$TORCHCELL_CACHE_YEAST`` by default.
        self_loops: Append one self loop per gene (score 1) after the edges of each network, as torchcell does.
        scores: Keep STRING's scores, ``score [num_edges] float32`` of each network. Samples then carry them too,
            which torchcell's do not.

    Returns:
        Node types ``gene`` (``x [num_genes, 4] float32``, see
        :data:`torchcell_cache.sources.metabolic.GENE_FEATURES`; zero for genes outside the model), ``reaction``
        (``gene_rules``, ``subsystem``: texts; ``w_growth [num_reactions] float32``, 1 for the growth reaction) and
        ``metabolite``, all with ``node_ids``; per network ``("gene", channel, "gene")`` all pairs as given, then all
        reversed; hyperedges ``gpr`` and ``rmr`` (``stoichiometry``).

    Raises:
        SettingError: If the folder or one of its files is missing, or a network has a name that is not read.
        SourceContractError: If a file does not hold what its name says; names the row.

    Example:
        >>> graph = tc.sources.yeast_base_graph("yeast")  # doctest: +SKIP
    """
    self_loops, scores = truth("self_loops", self_loops), truth("scores", scores)
    path = yeast_folder(folder)
    networks = {channel: _only(path, channel) for channel in CHANNELS if _files(path, channel)}
    if not networks:
        raise SettingError(f"{path} holds no network; {_EXPECTED}", path=path, fix=_download(path))
    left = _unread(path)
    file = _only(path, "model")
    model = read_yeast_gem(file)
    graph = HeteroData()
    stores = [graph["gene", channel, "gene"] for channel in networks]  # in front of the hyperedges
    with errors_of(file, AGAIN):
        names, rules = model_rules(model, read_gene_list(_only(path, "genes")))
        set_model(graph, model, names, rules)
    graph["reaction"].subsystem = [reaction.subsystem for reaction in model.reactions]
    number = {name: k for k, name in enumerate(names)}
    loops = np.arange(len(names) * self_loops)
    for store, network in zip(stores, networks.values(), strict=True):
        pairs, score = _network(network, number)
        edges = np.concatenate([pairs, pairs[::-1], np.stack([loops, loops])], axis=1)
        store.edge_index, store.num_edges = torch.from_numpy(edges), edges.shape[1]
        if scores:
            weights = np.concatenate([score, score, np.ones(len(loops), dtype=np.float32)])
            store.score = torch.from_numpy(weights)
    if left:
        graph.__dict__["notes"] = (f"{path}: not read, no known name: {', '.join(left)}",)
    return graph


def yeast_knockouts(folder: str | Path | None = None) -> tuple[list[list[str]], dict[str, Float32Array]]:
    """Knock-outs with fitness and the interaction scores that follow from it.

    Args:
        folder: Folder of raw files; ``$TORCHCELL_CACHE_YEAST`` by default.

    Returns:
        Gene names of each knock-out in the order of the file, and :data:`LABELS`, ``[num_samples] float32`` each;
        ``epsilon`` and ``tau`` are NaN where they are not defined, see
        :func:`torchcell_cache.sources.interactions.interaction_scores`.

    Raises:
        SettingError: If the folder or the table is missing.
        SourceContractError: If the table has no such columns, a value that is no number, or a knock-out twice.

    Example:
        >>> genes, labels = tc.sources.yeast_knockouts("yeast")  # doctest: +SKIP
    """
    path = _only(yeast_folder(folder), "knockouts")
    table = read_table(path, Roles(("genes",), phenotypes=("fitness",)))
    with errors_of(path, _AGAIN):
        epsilon, tau = interaction_scores(
            table.perturbed.codes, table.perturbed.ptr, table.phenotypes["fitness"]
        )
    fitness = table.phenotypes["fitness"].astype(np.float32)
    return table.perturbed.lists(), dict(zip(LABELS, (fitness, epsilon, tau), strict=True))


def YeastKnockouts(  # noqa: N802 - a source, named like the classes it stands beside
    folder: str | Path | None = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    self_loops: bool = False,
    scores: bool = False,
) -> PerturbationTable:
    """Base graph, knock-outs and their labels as a source.

    Args:
        folder: Folder of raw files; ``$TORCHCELL_CACHE_YEAST`` by default.
        num_samples: A random part of the table, in its order; all of it by default.
        seed: Seed of that choice.
        self_loops: Append one self loop per gene to each network.
        scores: Keep STRING's scores as ``score`` of each network's edges.

    Raises:
        SettingError, SourceContractError: As the functions above; also if ``num_samples`` is out of range.

    Example:
        >>> source = tc.sources.YeastKnockouts("yeast", num_samples=1000)  # doctest: +SKIP
    """
    from torchcell_cache.sources.table import PerturbationTable

    graph = yeast_base_graph(folder, self_loops, scores=scores)
    knockouts, labels = yeast_knockouts(folder)
    chosen = chosen_rows(len(knockouts), num_samples, seed)
    with errors_of(_only(yeast_folder(folder), "knockouts"), _AGAIN):
        source = PerturbationTable(graph, knockouts, phenotypes=labels)
    return source if num_samples is None else source.of_table(graph, source.table.take(chosen), "gene")


def chosen_rows(total: int, num_samples: int | None, seed: int) -> Int64Array:
    """``num_samples`` of ``total`` rows, ascending; all for ``None``."""
    if num_samples is None:
        return np.arange(total)
    count = whole_number("num_samples", num_samples, 1, "num_samples=None for all", total)
    rng = np.random.default_rng(whole_number("seed", seed, 0))
    return np.sort(rng.choice(total, count, replace=False))


def _unread(folder: Path) -> list[str]:
    """Files of the folder that nothing here reads.

    Raises:
        SettingError: If one of them would be a network by another name.
    """
    read = {path for what in _FILES for path in _files(folder, what)}
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file() and path not in read]
    left = [name for name in names if not name.startswith(("README", "sources.json", "."))]
    if misnamed := [name for name in left if name.lower().startswith("string")]:
        said = f"{folder} holds {', '.join(misnamed)}, which is no file of a channel; {_EXPECTED}"
        raise SettingError(said, path=folder, fix="rename it, or move it elsewhere")
    return left


def _files(folder: Path, what: str) -> list[Path]:
    return sorted(path for pattern in _FILES[what] for path in folder.glob(pattern))


def _only(folder: Path, what: str) -> Path:
    found = _files(folder, what)
    if len(found) == 1:
        return found[0]
    said, fix = "no", _download(folder)
    if found:
        said, fix = f"{', '.join(path.name for path in found)}, expected one", "remove all but one"
    raise SettingError(f"{folder} holds {said} {' or '.join(_FILES[what])}", path=folder, fix=fix)


def _network(path: Path, number: dict[str, int]) -> tuple[Int64Array, Float32Array]:
    """The pairs of genes, ``[2, num_pairs] int64``, and their scores."""
    pairs: dict[tuple[int, ...], float] = {}
    rows = read_rows(path, separator="\t")
    with errors_of(path, _AGAIN):
        if (header := next(rows, [])) != ["gene_a", "gene_b", "score"]:
            raise SourceContractError(f"columns {header}, expected gene_a, gene_b, score")
        for row, cells in enumerate(rows):
            names = [name.strip() for name in cells[:2]]
            ends = tuple(number.get(name, -1) for name in names)
            if -1 in ends:
                why = f"{names[ends.index(-1)]!r} is not in genes.txt"
            elif len(cells) != 3:
                why = f"{len(cells)} cells, expected 3"
            elif not abs(score := number_of(cells[2])) <= _LARGEST:
                why = f"the score {cells[2]!r} is no finite number of float32"
            elif ends[0] == ends[1]:
                why = "pairs a gene with itself"
            elif ends in pairs or ends[::-1] in pairs:
                why = (
                    "repeats a pair of an earlier row, in this order or the other; expected one row per pair"
                )
            else:
                pairs[ends] = score
                continue
            raise SourceContractError(f"row {row}: {why}")
    if not pairs:
        raise SourceContractError(f"{path} holds no pair", path=path, fix="fetch it again, or remove it")
    return np.array([*pairs], dtype=np.int64).T, np.array([*pairs.values()], dtype=np.float32)
