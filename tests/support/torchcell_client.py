"""torchcell 1.8.4 itself, fetched through pip into a cache directory of its own: the client whose code trains from our stores.

It wants Python 3.13. For older ones its few generic classes in the new syntax are rewritten; packages that it imports at the
top and training never calls are empty stand-ins, and torch_scatter is torch's own scatter. All of this happens in a process
of its own (``torchcell_checks.py``), so no other test sees it.
"""

from __future__ import annotations

import functools
import importlib.machinery
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
import zipfile
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from typing import Any

VERSION = "1.8.4"
SMALL = ("beartype", "pyfaidx")
NOT_CALLED = frozenset(
    {
        *("Bio", "bibtexparser", "cliff", "fastapi", "geomloss", "gffutils", "goatools", "hypernetx"),
        *("pyzotero", "torch_scatter", "transformers", "umap", "unidecode", "uvicorn", "wandb"),
    }
)


def fetched() -> Path | None:
    """Directory to put on the path, or ``None`` where PyPI cannot be reached; fetched once per machine."""
    home = os.environ.get("TORCHCELL_CLIENT_DIR") or Path.home() / ".cache" / "torchcell_cache_tests"
    place = Path(home) / f"torchcell-{VERSION}-py{sys.version_info[0]}{sys.version_info[1]}"
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as temporary:
        work = Path(temporary)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--retries",
            "1",
            "--timeout",
            "20",
        ]
        wheel = ["download", "--no-deps", "--ignore-requires-python", "--python-version", "3.13"]
        wheel += ["--only-binary=:all:", "-d", str(work / "wheel"), f"torchcell=={VERSION}"]
        small = ["install", "--no-deps", "--target", str(work / "made"), *SMALL]
        for arguments in (wheel, small):
            if subprocess.run([*pip, *arguments], capture_output=True, timeout=180).returncode:
                return None
        with zipfile.ZipFile(next((work / "wheel").glob("*.whl"))) as archive:
            archive.extractall(work / "made")
        for path in (work / "made" / "torchcell").rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if (older := without_type_parameters(text)) != text:
                path.write_text(older, encoding="utf-8")
        if not place.exists():
            shutil.move(work / "made", place)
    return place


def without_type_parameters(text: str) -> str:
    """Source in which ``class X[T](...)`` and ``def f[T](...)`` are written as before Python 3.12."""
    names = set(re.findall(r"^ *(?:class|def) \w+\[(\w+)\b[^\n]*?\](?=[(:])", text, re.M))
    names |= set(re.findall(r"^ *(?:class|def) \w+\[(\w+)\b[^\n]*?\]\(", text, re.M))
    if not names:
        return text
    text = re.sub(r"^( *class \w+)\[(\w+)\b[^\n]*?\]:", r"\1(_typing.Generic[\2]):", text, flags=re.M)
    text = re.sub(
        r"^( *class \w+)\[(\w+)\b[^\n]*?\]\((?![^\n]*\[\2\])([^\n]*)\):",
        r"\1(\3, _typing.Generic[\2]):",
        text,
        flags=re.M,
    )
    text = re.sub(r"^( *(?:class|def) \w+)\[[^\n]*?\](?=\()", r"\1", text, flags=re.M)
    head = "import typing as _typing\n" + "".join(f'{n} = _typing.TypeVar("{n}")\n' for n in sorted(names))
    return re.sub(r"^(?=(?:import|from) (?!__future__))", head, text, count=1, flags=re.M)


class _Meta(type):
    def __getattr__(cls, name: str) -> Any:
        return _stand_in(name)

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


def _stand_in(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Meta(name, (_Anything,), {})


class _Anything:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class _Module(types.ModuleType):
    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        return _stand_in(name)


class _StandIns(MetaPathFinder, Loader):
    """Gives an empty module for packages that are not installed and that training never calls."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] in NOT_CALLED:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "torch_scatter":
            from torch_geometric.utils import scatter

            reductions = {
                f"scatter_{how}": functools.partial(scatter, reduce=how)
                for how in ("mean", "sum", "max", "add")
            }
            vars(module).update(scatter=scatter, **reductions)


def put_on_path(place: Path) -> None:
    """Make ``import torchcell`` work in this process."""
    sys.path.insert(0, str(place))
    sys.path.append(str(place))
    sys.meta_path.append(_StandIns())


# A small cell

GENES = [
    f"Y{chromosome}{arm}{number:03d}{strand}"
    for chromosome in "ABC"
    for arm in "LR"
    for number in range(1, 9)
    for strand in "WC"
][:60]
OUTSIDE = "YPL277C"
LABELS = ("gene_interaction", "fitness")


def small_graphs() -> tuple[Any, dict[str, Any]]:
    """A multigraph of three gene networks and a bipartite metabolism, as torchcell's graph builders give them."""
    import random

    import networkx as nx
    from sortedcontainers import SortedDict
    from torchcell.graph import GeneGraph, GeneMultiGraph
    from torchcell.sequence import GeneSet

    draw = random.Random(7)
    graphs = SortedDict()
    for name, count in (("physical", 150), ("regulatory", 90), ("string12_0_coexpression", 200)):
        graph = nx.DiGraph() if name == "regulatory" else nx.Graph()
        graph.add_nodes_from(GENES)
        while graph.number_of_edges() < count:
            graph.add_edge(*draw.sample(GENES, 2))
        graphs[name] = GeneGraph(name=name, graph=graph, max_gene_set=GeneSet(GENES))
    cell = nx.Graph()
    for k in range(25):
        genes = set(draw.sample([*GENES, OUTSIDE], draw.choice([0, 1, 2, 5])))
        cell.add_node(
            f"r{k:02d}", node_type="reaction", genes=genes, subsystem="Growth" if k == 3 else "else"
        )
    for k in range(18):
        cell.add_node(f"m{k:02d}", node_type="metabolite")
    bipartite = nx.DiGraph(cell)
    for k in range(25):
        for end, kind in zip(draw.sample(range(18), 3), ("reactant", "product", "product"), strict=True):
            bipartite.add_edge(
                f"r{k:02d}", f"m{end:02d}", edge_type=kind, stoichiometry=float(draw.randint(1, 3))
            )
    ontology = nx.DiGraph()
    for k in range(12):
        ontology.add_node(f"GO:{k:07d}", gene_set=set(draw.sample([*GENES, OUTSIDE], draw.randint(1, 9))))
        if k:
            ontology.add_edge(f"GO:{k:07d}", f"GO:{draw.randrange(k):07d}")
    return GeneMultiGraph(graphs=graphs), {"metabolism_bipartite": bipartite, "gene_ontology": ontology}


def sample_records(count: int = 40) -> list[list[dict[str, Any]]]:
    """Measurements of samples, as torchcell stores them: singles to triples, damped genes, several measurements, both labels."""
    import random

    from torchcell.datamodels import schema
    from torchcell.datamodels.media import SGA_TM_SELECTION
    from torchcell.sequence.genome import registry

    draw = random.Random(3)
    environment = schema.Environment(media=SGA_TM_SELECTION, temperature=schema.Temperature(value=26))
    kinds = (
        *(
            schema.SgaKanMxDeletionPerturbation,
            schema.SgaNatMxDeletionPerturbation,
            schema.SgaDampPerturbation,
        ),
        *(schema.SgaAllelePerturbation, schema.SgaKanMxDeletionPerturbation),
    )
    reference = {
        "genome_reference": schema.ReferenceGenome(
            species="Saccharomyces cerevisiae",
            strain="S288C",
            assembly_set=registry.SGD_S288C_R64,
            assembly_accession=registry.SGD_S288C_R64_GENBANK_ACCESSION,
        ),
        "environment_reference": environment,
    }

    def measured(
        genes: Sequence[Any], label: str, value: float, spread: float | None, name: str
    ) -> dict[str, Any]:
        perturbations = [
            kind(systematic_gene_name=gene, perturbed_gene_name=gene.lower(), strain_id=f"s{gene}")
            for kind, gene in genes
        ]
        if label == "fitness":
            phenotype = schema.FitnessPhenotype(fitness=value, fitness_se=spread)
            classes = schema.FitnessExperiment, schema.FitnessExperimentReference
            wild = schema.FitnessPhenotype(fitness=1.0)
        else:
            phenotype = schema.GeneInteractionPhenotype(
                gene_interaction=value, gene_interaction_p_value=spread
            )
            classes = schema.GeneInteractionExperiment, schema.GeneInteractionExperimentReference
            wild = schema.GeneInteractionPhenotype(gene_interaction=0.0)
        experiment = classes[0](
            dataset_name=name,
            genotype=schema.Genotype(perturbations=perturbations),
            environment=environment,
            phenotype=phenotype,
        )
        other = classes[1](dataset_name=name, phenotype_reference=wild, **reference)
        return {"experiment": experiment.model_dump(), "experiment_reference": other.model_dump()}

    out = []
    for k in range(count):
        genes = [(draw.choice(kinds), gene) for gene in draw.sample(GENES, 1 + k % 3)]
        if k in (9, 30):
            genes.append((kinds[0], OUTSIDE))
        spread = None if k % 4 == 1 else draw.random() / 10
        label = LABELS[k % 5 == 2]
        items = [measured(genes, label, draw.gauss(0, 1), spread, f"Set{k % 3}")]
        if k % 6 == 4:  # measured again, once with the other label too
            items.append(measured(genes, label, draw.gauss(0, 1), None, "Set9"))
            items.append(measured(genes[:1], LABELS[k % 5 != 2], draw.random(), spread, "Set0"))
        out.append(items)
    return out


def write_records(root: Path, records: Sequence[Any]) -> None:
    """``processed/lmdb`` of a torchcell dataset that has been built."""
    import lmdb

    (root / "processed").mkdir(parents=True)
    (root / "raw" / "lmdb").mkdir(parents=True)
    with lmdb.open(str(root / "processed" / "lmdb"), map_size=1 << 28) as env, env.begin(write=True) as txn:
        for k, items in enumerate(records):
            txn.put(str(k).encode(), json.dumps(items).encode())
    kinds = {item["experiment"]["experiment_type"] for items in records for item in items}
    (root / "processed" / "experiment_types.json").write_text(json.dumps(sorted(kinds)))


def opened(root: Path, processor: Any = None, **settings: Any) -> Any:
    """torchcell's own dataset on what :func:`write_records` wrote."""
    from torchcell.data.neo4j_cell import Neo4jCellDataset
    from torchcell.sequence import GeneSet

    graphs, incidence = small_graphs()
    if not settings.pop("ontology", False):
        del incidence["gene_ontology"]
    return Neo4jCellDataset(
        root=str(root),
        query="",
        gene_set=GeneSet(GENES),
        graphs=graphs,
        incidence_graphs=incidence,
        graph_processor=processor,
        **settings,
    )
