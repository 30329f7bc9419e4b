"""A folder of raw yeast files in small, in the formats of the real ones, and the base graph of such a folder by hand."""

import csv
import gzip
import itertools
import random
from pathlib import Path

import torch
from torch_geometric.data import HeteroData

NETWORKS = ("neighborhood", "fusion", "cooccurence", "database")
RULES = [
    "Y00",
    "Y01 or Y02",
    "Y03 and Y04",
    "(Y05 and Y06) or Y07",
    "Y08",
    "(Y09 or Y10) and Y99",
    "",
    "Y11 or Y00",
]


def write_folder(folder: Path, num_genes: int = 24, num_triples: int = 60, seed: int = 0) -> Path:
    """Networks, a model that grows, and knock-outs with some of the sub-knock-outs left out."""
    draw = random.Random(seed)
    genes = [f"Y{k:02}" for k in range(num_genes)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "genes.txt").write_text("\n".join(genes) + "\n")
    for channel in NETWORKS:
        pairs = sorted(draw.sample(list(itertools.combinations(genes, 2)), 2 * num_genes))
        rows = "".join(f"{a}\t{b}\t{draw.randint(1, 999) / 1000:.3f}\n" for a, b in pairs)
        with gzip.open(folder / f"string_v9_1_{channel}.tsv.gz", "wt") as file:
            file.write("gene_a\tgene_b\tscore\n" + rows)
    with gzip.open(folder / "yeast-GEM-9.0.2.yml.gz", "wt") as file:
        file.write(model_text())
    knockouts = [(gene,) for gene in genes] + sorted(
        draw.sample(list(itertools.combinations(genes, 3)), num_triples)
    )
    doubles = {pair for triple in knockouts[num_genes:] for pair in itertools.combinations(triple, 2)}
    knockouts += draw.sample(sorted(doubles), len(doubles) - 10)
    with gzip.open(folder / "fba_knockouts.tsv.gz", "wt") as file:
        file.write("genes\tfitness\n")
        file.writelines(f"{'|'.join(knockout)}\t{draw.random():.6f}\n" for knockout in knockouts)
    return folder


def model_text() -> str:
    """A chain of reactions from an uptake to growth, as yeast-GEM writes its YAML."""
    genes = sorted(
        {
            name
            for rule in RULES
            for name in rule.replace("(", " ").replace(")", " ").split()
            if name[0] == "Y"
        }
    )
    lines = ["---", "!!omap", "- metaData:", '    id: "tiny"', "- metabolites:"]
    for k in range(len(RULES) + 1):
        lines += [
            "    - !!omap",
            f'      - id: "s_{k:04}"',
            f'      - name: "substance {k}"',
            '      - compartment: "c"',
        ]
    lines += ["- reactions:"]
    steps = [({f"s_{k:04}": -1, f"s_{k + 1:04}": 1}, 0, 1000, rule) for k, rule in enumerate(RULES)]
    steps += [({"s_0000": -1}, -10, 1000, ""), ({f"s_{len(RULES):04}": -1}, 0, 1000, "")]
    for k, (metabolites, low, high, rule) in enumerate(steps):
        lines += [
            "    - !!omap",
            f'      - id: "r_{k:04}"',
            f'      - name: "reaction {k}"',
            "      - metabolites: !!omap",
        ]
        lines += [f"          - {name}: {value}" for name, value in metabolites.items()]
        lines += [f"      - lower_bound: {low}", f"      - upper_bound: {high}"]
        lines += [f'      - gene_reaction_rule: "{rule}"'] if rule else []
        lines += ["      - objective_coefficient: 1"] if k == len(steps) - 1 else []
        lines += ["      - subsystem:", f'          - "Pathway {k % 3}"']
    lines += ["- genes:"]
    for name in genes:
        lines += ["    - !!omap", f'      - id: "{name}"', f'      - name: "{name}"']
    return "\n".join([*lines, "- compartments: !!omap", '    - c: "cytoplasm"', ""])


def graph_by_hand(folder: Path, scores: bool = False) -> HeteroData:
    """The base graph of a folder, read by cobra and put together row by row."""
    import cobra.io

    from torchcell_cache.sources.metabolic import metabolic_base_graph

    with gzip.open(folder / "yeast-GEM-9.0.2.yml.gz", "rt") as file:
        model = cobra.io.from_yaml(file.read())
    cell = metabolic_base_graph(model)
    names = sorted({*(folder / "genes.txt").read_text().split(), *cell["gene"].node_ids})
    number = {name: k for k, name in enumerate(names)}
    graph = HeteroData()
    graph["gene"].node_ids = names
    graph["gene"].num_nodes = len(names)
    rows = {name: k for k, name in enumerate(cell["gene"].node_ids)}
    graph["gene"].x = torch.stack(
        [cell["gene"].x[rows[name]] if name in rows else torch.zeros(4) for name in names]
    )
    graph["reaction"].update(cell["reaction"]._mapping)
    graph["reaction"].subsystem = [reaction.subsystem[0] for reaction in model.reactions]
    graph["metabolite"].update(cell["metabolite"]._mapping)
    for network in NETWORKS:
        with gzip.open(folder / f"string_v9_1_{network}.tsv.gz", "rt") as file:
            read = [
                (r["gene_a"], r["gene_b"], float(r["score"])) for r in csv.DictReader(file, delimiter="\t")
            ]
        edges = torch.tensor([(number[a], number[b]) for a, b, _ in read], dtype=torch.int64).t()
        store = graph["gene", network, "gene"]
        store.edge_index = torch.cat([edges, edges.flip(0)], dim=1)
        if scores:
            store.score = torch.tensor([score for _, _, score in read] * 2)
        store.num_edges = store.edge_index.size(1)
    old = torch.tensor([number[name] for name in cell["gene"].node_ids])
    gpr = cell["gene", "gpr", "reaction"].hyperedge_index.clone()
    gpr[0] = old[gpr[0]]
    graph["gene", "gpr", "reaction"].hyperedge_index = gpr
    graph["gene", "gpr", "reaction"].num_edges = gpr.size(1)
    graph["reaction", "rmr", "metabolite"].update(cell["reaction", "rmr", "metabolite"]._mapping)
    return graph
