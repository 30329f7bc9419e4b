"""What every processor should give, written as plain loops over Python lists; shares no code with the package."""

import math

import torch
from torch_geometric.data import Data, HeteroData

GENE_KEYS = {"node_ids", "num_nodes", "x"}


def phenotype_fields(measurements, phenotypes, statistics, always=False):
    """``measurements``: list of dicts name -> value or NaN."""

    def coordinates(names):
        out = [
            (row[name], column, number)
            for number, row in enumerate(measurements)
            for column, name in enumerate(names)
            if not math.isnan(row[name])
        ]
        return out

    values = coordinates(phenotypes) or [(math.nan, 0, 0)]
    fields = {
        "phenotype_values": torch.tensor([v for v, _, _ in values], dtype=torch.float32),
        "phenotype_type_indices": torch.tensor([c for _, c, _ in values], dtype=torch.int64),
        "phenotype_sample_indices": torch.tensor([n for _, _, n in values], dtype=torch.int64),
        "phenotype_types": list(phenotypes),
    }
    stats = coordinates(statistics)
    if stats or (always and statistics):
        fields["phenotype_stat_values"] = torch.tensor([v for v, _, _ in stats], dtype=torch.float32)
        fields["phenotype_stat_type_indices"] = torch.tensor([c for _, c, _ in stats], dtype=torch.int64)
        fields["phenotype_stat_sample_indices"] = torch.tensor([n for _, _, n in stats], dtype=torch.int64)
        fields["phenotype_stat_types"] = list(statistics)
    return fields


def rule_holds(text, lost):
    """Evaluate a boolean gene rule by hand: recursive descent over the words."""
    words = text.replace("(", " ( ").replace(")", " ) ").split()

    def either():
        value = both()
        while words and words[0] == "or":
            words.pop(0)
            other = both()
            value = value or other
        return value

    def both():
        value = one()
        while words and words[0] == "and":
            words.pop(0)
            other = one()
            value = value and other
        return value

    def one():
        word = words.pop(0)
        if word == "(":
            value = either()
            words.pop(0)
            return value
        return word not in lost

    return True if not words else either()


def reactions_removed(base, perturbed, gpr):
    if "reaction" not in base.node_types:
        return set()
    if gpr == "rule":
        lost = {base["gene"].node_ids[k] for k in perturbed}
        return {r for r, text in enumerate(base["reaction"].gene_rules) if not rule_holds(text, lost)}
    if ("gene", "gpr", "reaction") not in base.edge_types:
        return set()
    pairs = base["gene", "gpr", "reaction"].hyperedge_index.t().tolist()
    return {reaction for gene, reaction in pairs if gene in perturbed}


def bools(flags):
    return torch.tensor(list(flags), dtype=torch.bool)


def gene_edge_types(base):
    return [t for t in base.edge_types if t[0] == "gene" and t[2] == "gene"]


def lazy(base, perturbed, measurements, phenotypes, statistics, gpr="any"):
    """Stores of ``LazySubgraphRepresentation`` in order: ``{store: {field: value}}``."""
    gene = base["gene"]
    lost, gone = set(perturbed), reactions_removed(base, perturbed, gpr)
    fields = {"node_ids": gene.node_ids, "num_nodes": gene.num_nodes}
    fields["ids_pert"] = [gene.node_ids[k] for k in sorted(perturbed)]
    fields["perturbation_indices"] = torch.tensor(sorted(perturbed), dtype=torch.int64)
    if "x" in gene:
        fields["x"] = gene.x
    fields.update(phenotype_fields(measurements, phenotypes, statistics))
    fields["pert_mask"] = bools(k in lost for k in range(gene.num_nodes))
    fields["mask"] = bools(k not in lost for k in range(gene.num_nodes))
    out = {"gene": fields}
    if "reaction" in base.node_types:
        count = base["reaction"].num_nodes
        out["reaction"] = {"num_nodes": count, "node_ids": list(range(count))}
        if "w_growth" in base["reaction"]:
            out["reaction"]["w_growth"] = base["reaction"].w_growth
        out["reaction"]["pert_mask"] = bools(r in gone for r in range(count))
        out["reaction"]["mask"] = bools(r not in gone for r in range(count))
    if "metabolite" in base.node_types:
        count = base["metabolite"].num_nodes
        out["metabolite"] = {"node_ids": base["metabolite"].node_ids, "num_nodes": count}
        out["metabolite"]["pert_mask"] = bools(False for _ in range(count))
        out["metabolite"]["mask"] = bools(True for _ in range(count))
    for key in gene_edge_types(base):
        index = base[key].edge_index
        kept = [a not in lost and b not in lost for a, b in index.t().tolist()]
        out[key] = {"edge_index": index, "num_edges": len(kept), "mask": bools(kept)}
    if ("gene", "gpr", "reaction") in base.edge_types:
        index = base["gene", "gpr", "reaction"].hyperedge_index
        kept = [g not in lost for g, _ in index.t().tolist()]
        out["gene", "gpr", "reaction"] = {
            "hyperedge_index": index,
            "num_edges": len(kept),
            "mask": bools(kept),
        }
    if ("reaction", "rmr", "metabolite") in base.edge_types:
        store = base["reaction", "rmr", "metabolite"]
        kept = [r not in gone for r, _ in store.hyperedge_index.t().tolist()]
        out["reaction", "rmr", "metabolite"] = {
            "hyperedge_index": store.hyperedge_index,
            "stoichiometry": store.stoichiometry,
            "mask": bools(kept),
            "num_edges": len(kept),
        }
    return out


def pairs(rows):
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).t().contiguous()


def subgraph(base, perturbed, measurements, phenotypes, statistics, gpr="any"):
    """Stores of ``SubgraphRepresentation`` in order."""
    gene = base["gene"]
    lost, gone = set(perturbed), reactions_removed(base, perturbed, gpr)
    genes = [k for k in range(gene.num_nodes) if k not in lost]
    new_gene = {old: new for new, old in enumerate(genes)}
    fields = {"node_ids": [gene.node_ids[k] for k in genes], "num_nodes": len(genes)}
    fields["ids_pert"] = [gene.node_ids[k] for k in sorted(perturbed)]
    fields["perturbation_indices"] = torch.tensor(sorted(perturbed), dtype=torch.int64)
    if "x" in gene:
        fields["x"] = gene.x[genes]
        fields["x_pert"] = gene.x[sorted(perturbed)]
    fields.update(phenotype_fields(measurements, phenotypes, statistics))
    fields["pert_mask"] = bools(k in lost for k in range(gene.num_nodes))
    out = {"gene": fields}
    new_reaction = {}
    if "reaction" in base.node_types:
        count = base["reaction"].num_nodes
        reactions = [r for r in range(count) if r not in gone]
        new_reaction = {old: new for new, old in enumerate(reactions)}
        out["reaction"] = {"num_nodes": len(reactions), "node_ids": reactions}
        if "w_growth" in base["reaction"]:
            out["reaction"]["w_growth"] = base["reaction"].w_growth[reactions]
        out["reaction"]["pert_mask"] = bools(r in gone for r in range(count))
    if "metabolite" in base.node_types:
        count = base["metabolite"].num_nodes
        out["metabolite"] = {"node_ids": base["metabolite"].node_ids, "num_nodes": count}
        out["metabolite"]["pert_mask"] = bools(False for _ in range(count))
    for key in gene_edge_types(base):
        rows = base[key].edge_index.t().tolist()
        kept = [a not in lost and b not in lost for a, b in rows]
        new = [(new_gene[a], new_gene[b]) for (a, b), keep in zip(rows, kept, strict=True) if keep]
        out[key] = {"edge_index": pairs(new), "num_edges": len(new), "pert_mask": bools(not k for k in kept)}
    if ("gene", "gpr", "reaction") in base.edge_types:
        rows = base["gene", "gpr", "reaction"].hyperedge_index.t().tolist()
        kept = [g not in lost and r not in gone for g, r in rows]
        new = [(new_gene[g], new_reaction[r]) for (g, r), keep in zip(rows, kept, strict=True) if keep]
        out["gene", "gpr", "reaction"] = {
            "hyperedge_index": pairs(new),
            "num_edges": len(new),
            "pert_mask": bools(not k for k in kept),
        }
    if ("reaction", "rmr", "metabolite") in base.edge_types:
        store = base["reaction", "rmr", "metabolite"]
        rows = store.hyperedge_index.t().tolist()
        at = [k for k, (r, _) in enumerate(rows) if r not in gone]
        out["reaction", "rmr", "metabolite"] = {
            "hyperedge_index": pairs([(new_reaction[rows[k][0]], rows[k][1]) for k in at]),
            "stoichiometry": store.stoichiometry[at],
            "num_edges": len(at),
        }
    return out


def perturbation(base, perturbed, measurements, phenotypes, statistics, gpr="any"):
    """Stores of ``Perturbation``."""
    gene = base["gene"]
    return {
        "gene": {
            "num_nodes": gene.num_nodes,
            "perturbed_genes": [gene.node_ids[k] for k in sorted(perturbed)],
            "perturbation_indices": torch.tensor(sorted(perturbed), dtype=torch.int64),
            "pert_mask": bools(k in perturbed for k in range(gene.num_nodes)),
            "mask": bools(k not in perturbed for k in range(gene.num_nodes)),
            **phenotype_fields(measurements, phenotypes, statistics, always=True),
        }
    }


def stores_of(graph):
    """A graph as ``{store: {field: value}}`` in its own order."""
    if isinstance(graph, HeteroData):
        stores = {t: dict(graph[t]._mapping) for t in graph.node_types}
        stores.update({t: dict(graph[t]._mapping) for t in graph.edge_types})
        return stores
    assert isinstance(graph, Data)
    return {None: dict(graph._store._mapping)}


def assert_stores_equal(actual, expected):
    """Same stores, same fields in the same order, same types, dtypes, shapes and bits."""
    assert list(actual) == list(expected)
    for store, fields in expected.items():
        assert list(actual[store]) == list(fields), store
        for name, want in fields.items():
            assert_value_equal(actual[store][name], want, f"{store}.{name}")


def assert_value_equal(got, want, where):
    assert type(got) is type(want), f"{where}: {type(got)} != {type(want)}"
    if isinstance(want, torch.Tensor):
        assert got.dtype == want.dtype, where
        assert got.shape == want.shape, where
        bits = {torch.float32: torch.int32, torch.float64: torch.int64}.get(want.dtype)
        if bits is not None:
            got, want = got.contiguous().view(bits), want.contiguous().view(bits)
        assert torch.equal(got, want), where
    else:
        assert got == want, where
