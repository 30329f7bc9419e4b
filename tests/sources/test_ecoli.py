"""The metabolic base graph against its definition, and the embedded E. coli labels against plain cobra."""

from __future__ import annotations

import itertools
import json
import os
import sys
import warnings
from types import SimpleNamespace

import fresh
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.rules import parse_rule
from torchcell_cache.sources.ecoli import EcoliKnockouts, ecoli_base_graph, ecoli_knockouts, ecoli_model
from torchcell_cache.sources.metabolic import GENE_FEATURES, metabolic_base_graph

pytestmark = pytest.mark.xdist_group("ecoli")  # what its fixtures make is made once

NUM_SAMPLES = 2600
SEED = 5
EDGE_TYPES = ("same_complex", "isozyme", "consecutive")


@pytest.fixture(scope="module")
def model():
    with warnings.catch_warnings():
        # What cobra's dependencies warn about at import is not ours.
        warnings.simplefilter("ignore")
        if os.environ.get("CI") or os.environ.get("TORCHCELL_CACHE_CI"):
            import cobra  # noqa: F401
        else:
            pytest.importorskip("cobra")
        return ecoli_model()


@pytest.fixture(scope="module")
def graph(model):
    return ecoli_base_graph(model=model)


@pytest.fixture(scope="module")
def knockouts(model):
    return ecoli_knockouts(NUM_SAMPLES, SEED, model=model)


def complexes_of(reaction):
    return [set(genes) for genes in parse_rule(reaction.gene_reaction_rule)]


def linked_genes(model, currency_degree=30):
    """Pairs of gene names per edge type, one by one from the definition."""
    together, same, consecutive = set(), set(), set()
    for reaction in model.reactions:
        for genes in complexes_of(reaction):
            together |= set(itertools.permutations(genes, 2))
        for one, other in itertools.permutations(complexes_of(reaction), 2):
            same |= {(a, b) for a in one for b in other if a != b}
    makers, users, degree = {}, {}, {}
    for reaction in model.reactions:
        runs = reaction.upper_bound > 0 or reaction.lower_bound == reaction.upper_bound == 0
        for metabolite, value in reaction.metabolites.items():
            degree[metabolite.id] = degree.get(metabolite.id, 0) + 1
            if (value > 0 and runs) or (value < 0 and reaction.lower_bound < 0):
                makers.setdefault(metabolite.id, []).append(reaction)
            if (value < 0 and runs) or (value > 0 and reaction.lower_bound < 0):
                users.setdefault(metabolite.id, []).append(reaction)
    for name in set(makers) & set(users):
        if degree[name] <= currency_degree:
            for maker, user in itertools.product(makers[name], users[name]):
                if maker is not user:
                    pairs = {(a.id, b.id) for a in maker.genes for b in user.genes if a.id != b.id}
                    consecutive |= pairs | {(b, a) for a, b in pairs}
    return {"same_complex": together, "isozyme": same - together, "consecutive": consecutive}


def assert_graph_is_the_model(graph, model, currency_degree=30):
    genes = graph["gene"].node_ids
    reactions, metabolites = graph["reaction"].node_ids, graph["metabolite"].node_ids
    assert genes == sorted(item.id for item in model.genes)
    assert reactions == [item.id for item in model.reactions]
    assert metabolites == [item.id for item in model.metabolites]
    assert [graph[kind].num_nodes for kind in graph.node_types] == [
        len(genes),
        len(reactions),
        len(metabolites),
    ]
    assert graph["reaction"].gene_rules == [item.gene_reaction_rule for item in model.reactions]
    for name, expected in linked_genes(model, currency_degree).items():
        store = graph["gene", name, "gene"]
        pairs = [(genes[a], genes[b]) for a, b in store.edge_index.T.tolist()]
        assert pairs == sorted(expected)
        assert store.edge_index.dtype == torch.int64
        assert store.num_edges == len(pairs)
        assert store.edge_index.is_contiguous()
    gpr, rmr = graph["gene", "gpr", "reaction"], graph["reaction", "rmr", "metabolite"]
    named = [(reactions[r], genes[g]) for g, r in gpr.hyperedge_index.T.tolist()]
    assert named == [(item.id, g) for item in model.reactions for g in sorted(x.id for x in item.genes)]
    entries = {
        (reactions[r], metabolites[m]): value
        for (r, m), value in zip(rmr.hyperedge_index.T.tolist(), rmr.stoichiometry.tolist(), strict=True)
    }
    assert entries == {
        (item.id, metabolite.id): float(np.float32(value))
        for item in model.reactions
        for metabolite, value in item.metabolites.items()
    }
    assert rmr.num_edges == len(entries) == rmr.hyperedge_index.size(1)
    assert rmr.hyperedge_index.T.tolist() == sorted(rmr.hyperedge_index.T.tolist())
    assert (
        rmr.stoichiometry.dtype == graph["reaction"].w_growth.dtype == graph["gene"].x.dtype == torch.float32
    )


@st.composite
def models(draw):
    """Small models with the attributes that the builder reads from cobra's."""
    genes = [SimpleNamespace(id=name) for name in draw(st.permutations(["g1", "g2", "g3", "g4", "g5-A"]))]
    metabolites = [SimpleNamespace(id=f"m{k}") for k in range(draw(st.integers(1, 5)))]
    reactions = []
    for k in range(draw(st.integers(0, 7))):
        complexes = draw(st.lists(st.sets(st.sampled_from([g.id for g in genes]), min_size=1), max_size=3))
        used = draw(
            st.dictionaries(st.integers(0, len(metabolites) - 1), st.sampled_from([-2.0, -1.0, 0.5, 1.0]))
        )
        lower, upper = draw(st.sampled_from([(0, 1000), (-1000, 1000), (-1000, 0), (0, 0), (8.39, 8.39)]))
        reactions.append(
            Reaction(
                id=f"r{k}",
                gene_reaction_rule=" or ".join(f"({' and '.join(sorted(names))})" for names in complexes),
                genes=[gene for gene in genes if any(gene.id in names for names in complexes)],
                metabolites={Named(metabolites[m].id): value for m, value in used.items()},
                lower_bound=float(lower),
                upper_bound=float(upper),
                objective_coefficient=float(k == 0),
            )
        )
    return SimpleNamespace(genes=genes, reactions=reactions, metabolites=metabolites)


class Reaction(SimpleNamespace):
    pass


class Named:
    def __init__(self, id):
        self.id = id

    def __repr__(self) -> str:
        return "a name"  # also in the names of tests, which all processes must agree on


@settings(max_examples=150, deadline=None)
@given(models(), st.integers(1, 6))
def test_graph_of_any_model_follows_the_definition(model, currency_degree):
    graph = metabolic_base_graph(model, currency_degree=currency_degree)
    assert_graph_is_the_model(graph, model, currency_degree)
    assert graph["reaction"].w_growth.tolist() == [float(k == 0) for k in range(len(model.reactions))]
    for name, row in zip(graph["gene"].node_ids, graph["gene"].x.double().tolist(), strict=True):
        mine = [item for item in model.reactions if any(gene.id == name for gene in item.genes)]
        lost = [item for item in mine if all(name in genes for genes in complexes_of(item))]
        expected = [
            np.log1p(len(mine)),
            np.log1p(sum(name in genes for item in mine for genes in complexes_of(item))),
            np.log1p(len({metabolite.id for item in mine for metabolite in item.metabolites})),
            len(lost) / max(len(mine), 1),
        ]
        assert row == pytest.approx(expected, abs=1e-6)
        assert len(row) == len(GENE_FEATURES)


def test_self_loops_come_after_the_edges(model, graph):
    looped = ecoli_base_graph(self_loops=True, model=model)
    loops = torch.arange(1367).expand(2, -1)
    for name in EDGE_TYPES:
        plain, store = graph["gene", name, "gene"], looped["gene", name, "gene"]
        assert torch.equal(store.edge_index, torch.cat([plain.edge_index, loops], dim=1))
        assert store.num_edges == plain.num_edges + 1367


def test_repeated_names_and_unknown_genes_are_refused():
    gene = SimpleNamespace(id="g1")
    with pytest.raises(SourceContractError, match="gene ids repeat: 'g1'"):
        metabolic_base_graph(SimpleNamespace(genes=[gene, gene], reactions=[], metabolites=[]))
    reaction = SimpleNamespace(id="PFK", gene_reaction_rule="g1 or g2", metabolites={})
    with pytest.raises(SourceContractError, match=r"'PFK'.*unknown gene 'g2'"):
        metabolic_base_graph(SimpleNamespace(genes=[gene], reactions=[reaction], metabolites=[]))


def small_model(**facts):
    gene, m = SimpleNamespace(id="g1"), Named("m0")
    base = {"gene_reaction_rule": "g1", "metabolites": {m: -1}, "lower_bound": 0, "upper_bound": 1000}
    reaction = SimpleNamespace(**{"id": "PFK", "objective_coefficient": 0, **base, **facts})
    return SimpleNamespace(genes=[gene], reactions=[reaction], metabolites=[m])


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        *(
            ({"metabolites": {Named("m0"): v}}, r"rmr of \(PFK, m0\) is")
            for v in (True, None, "1_0", float("nan"))
        ),
        ({"metabolites": {Named("m9"): 1}}, r"rmr: \(PFK, m9\) names metabolite 'm9'"),
        *(({"lower_bound": v}, "'PFK' has the bounds") for v in (None, "low", float("nan"), True)),
        *(({"gene_reaction_rule": v}, "'PFK'.*expected text") for v in (None, ["g1"], 5)),
        ({"gene_reaction_rule": "g1 or ("}, "'PFK'.*malformed"),
    ],
    ids=str,
)
def test_models_with_values_that_are_none(facts, words):
    assert metabolic_base_graph(small_model())["reaction"].node_ids == ["PFK"]
    with pytest.raises(SourceContractError, match=words) as caught:
        metabolic_base_graph(small_model(**facts))
    assert caught.value.fix


@pytest.mark.parametrize(
    ("model", "more"), [(5, {}), (None, {}), (small_model(), {"currency_degree": "x"})], ids=str
)
def test_what_is_no_model(model, more):
    with pytest.raises(SettingError, match=r"model is|currency_degree"):
        metabolic_base_graph(model, **more)


def test_ecoli_graph_is_the_published_model(model, graph):
    sizes = [graph[kind].num_nodes for kind in ("gene", "reaction", "metabolite")]
    assert sizes == [1367, 2583, 1805]
    assert_graph_is_the_model(graph, model)
    growth = torch.nonzero(graph["reaction"].w_growth).flatten().tolist()
    assert [graph["reaction"].node_ids[k] for k in growth] == ["BIOMASS_Ec_iJO1366_core_53p95M"]


def test_knockouts_are_all_singles_then_distinct_doubles_and_triples(graph, knockouts):
    perturbed, fitness = knockouts
    assert len(perturbed) == NUM_SAMPLES
    assert fitness.shape == (NUM_SAMPLES,)
    assert fitness.dtype == np.float32
    assert perturbed[:1367] == [[name] for name in graph["gene"].node_ids]
    assert {len(names) for names in perturbed[1367:]} == {2, 3}
    assert len({tuple(names) for names in perturbed}) == NUM_SAMPLES
    assert all(names == sorted(set(names)) for names in perturbed)
    assert ((fitness >= 0) & (fitness <= 1)).all()
    assert not np.signbit(fitness).any()


def test_labels_equal_plain_flux_balance_analysis(model, knockouts):
    perturbed, fitness = knockouts
    wild_type = model.slim_optimize()
    rng = np.random.default_rng(0)
    several = np.array([len(names) for names in perturbed]) > 1
    reduced = (fitness > 0) & (fitness < 1)
    # Most of the first two groups were labelled by a shortcut, nearly all of the third by a linear program.
    groups = [several & (fitness == 1), several & (fitness == 0), several & reduced, ~several]
    for row in np.concatenate([rng.choice(np.flatnonzero(group), 7, replace=False) for group in groups]):
        with model:
            for name in perturbed[row]:
                model.genes.get_by_id(name).knock_out()
            growth = model.slim_optimize(error_value=0.0)
        assert fitness[row] == pytest.approx(growth / wild_type, abs=2e-6), perturbed[row]


def test_labelling_leaves_the_model_as_it_was_and_reports_progress(model):
    before, seen = {item.id: item.bounds for item in model.reactions}, []
    ecoli_knockouts(300, model=model, progress=lambda done, total: seen.append((done, total)))
    assert {item.id: item.bounds for item in model.reactions} == before
    assert seen[-1] == (300, 300)


def test_another_seed_draws_other_knockouts(model, knockouts):
    perturbed, _ = knockouts
    other, _ = ecoli_knockouts(1400, SEED + 1, model=model)
    assert other[:1367] == perturbed[:1367]
    assert other[1367:] != perturbed[1367:1400]


def test_number_of_samples_must_be_positive():
    with pytest.raises(SettingError, match="num_samples=0"):
        ecoli_knockouts(0)


@pytest.mark.parametrize(
    "settings",
    [
        *({"num_samples": value} for value in (-1, 2.5, "5", True, None, float("nan"))),
        *({"seed": value} for value in (-1, 1.5, "x", None)),
        {"self_loops": "no"},
    ],
    ids=str,
)
def test_arguments_that_mean_nothing(settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        EcoliKnockouts(**settings)


def test_missing_cobra_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cobra", None)
    monkeypatch.setitem(sys.modules, "cobra.io", None)
    with pytest.raises(SettingError, match="pip install cobra"):
        ecoli_model()


PRINT_SOURCE = """
import json, sys, warnings
warnings.simplefilter("ignore")
from torchcell_cache.sources import EcoliKnockouts
source = EcoliKnockouts(1500, seed=5)
graph, table = source.base_graph, source.table
json.dump({
    "edges": {"-".join(kind): (store.edge_index if "edge_index" in store else store.hyperedge_index).tolist()
              for kind, store in zip(graph.edge_types, graph.edge_stores)},
    "names": graph["gene"].node_ids, "x": graph["gene"].x.tolist(),
    "ids": table.ids.tolist(), "ptr": table.ptr.tolist(), "phenotypes": table.phenotypes,
    "values": table.values.tolist(),
}, sys.stdout)
"""


def test_source_is_the_same_in_a_process_with_another_hash_seed(graph, knockouts):
    """Also: fewer samples are the first ones of more samples."""
    run = fresh.run([sys.executable, "-c", PRINT_SOURCE], text=True)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    for kind, store in zip(graph.edge_types, graph.edge_stores, strict=True):
        index = store.edge_index if "edge_index" in store else store.hyperedge_index
        assert told["edges"]["-".join(kind)] == index.tolist()
    assert told["names"] == graph["gene"].node_ids
    assert told["x"] == graph["gene"].x.tolist()
    assert told["phenotypes"] == ["fitness"]
    perturbed, fitness = knockouts
    names = [told["names"][k] for k in told["ids"]]
    assert [names[a:b] for a, b in itertools.pairwise(told["ptr"])] == perturbed[:1500]
    assert told["values"] == fitness[:1500, None].tolist()
