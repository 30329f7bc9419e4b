"""The files of a yeast folder as they really are: byte order marks, tables for lists, other names."""

import gzip
import os
from pathlib import Path

import pytest
from yeast_folder import model_text, write_folder

import torchcell_cache as tc
from torchcell_cache.errors import CacheError, SettingError, SourceContractError
from torchcell_cache.graph.fields import graph_digest
from torchcell_cache.sources import YeastKnockouts, yeast_base_graph


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("yeast"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    for path in whole.iterdir():
        os.link(path, tmp_path / path.name)
    return tmp_path


def test_the_digest_of_a_graph_stays(whole: Path) -> None:
    """Of it and of the order of its fields: another one would make every store of yeast stale."""
    assert graph_digest(yeast_base_graph(whole, True, scores=True)) == (
        "0e4586391287de4c396e0fe243f4b58de6a2ec51a13ef9d4d85362ac06f67e88"
    )


def rewrite(path: Path, text: str) -> None:
    """A new file: the old one is linked to the folder all tests share."""
    path.unlink()
    path.write_bytes(text.encode() if path.suffix != ".gz" else gzip.compress(text.encode()))


def genes_of(folder: Path) -> str:
    return (folder / "genes.txt").read_text()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "systematic_name\n" + text,
        lambda text: "gene\n" + text,
        lambda text: "# of STRING 9.1\n\n" + text.replace("\n", " \n"),
        lambda text: "".join(f'"{line}"\n' for line in text.split()),
    ],
)
def test_a_list_of_genes_however_it_was_saved(whole: Path, folder: Path, change) -> None:
    rewrite(folder / "genes.txt", change(genes_of(folder)))
    tc.testing.assert_same_graph(yeast_base_graph(folder), yeast_base_graph(whole))


@pytest.mark.parametrize("separator", ["\t", ",", " ", ";"])
def test_a_table_is_no_list_of_genes(folder: Path, separator: str) -> None:
    rewrite(
        folder / "genes.txt",
        "".join(f"{line}{separator}ABC{k}\n" for k, line in enumerate(genes_of(folder).split())),
    )
    with pytest.raises(
        SourceContractError, match=r"genes\.txt, line 1 holds 'Y00.*looks like a row of a table"
    ):
        yeast_base_graph(folder)


@pytest.mark.parametrize(
    "name",
    [
        "string_v9_1_cooccurrence.tsv.gz",
        "string_v12_experiments.tsv",
        "STRING_v9_1_database.tsv.gz",
        "string_v9_1_textmining.tsv",
        "string_v9_1_database.txt",
    ],
)
def test_a_misnamed_network_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / "string_v9_1_fusion.tsv.gz").read_bytes())
    with pytest.raises(
        CacheError, match="which is no file of a channel; expected string_<version>"
    ) as caught:
        yeast_base_graph(folder)
    assert name in str(caught.value)


def test_other_files_are_named(whole: Path, folder: Path, tmp_path_factory, capsys) -> None:
    for name in ("README.md", "sources.json", ".directory", "costanzo.tsv", "v9_1_database.tsv"):
        (folder / name).write_text("a\n")
    (folder / "stores").mkdir()
    source = YeastKnockouts(folder)
    tc.testing.assert_same_graph(source.base_graph, yeast_base_graph(whole))
    root = tmp_path_factory.mktemp("store")
    store = tc.build(root, source=source, processor=tc.LazySubgraphRepresentation())
    said = [line for line in capsys.readouterr().err.splitlines() if "not read" in line]
    assert len(said) == 1
    assert said[0].endswith("costanzo.tsv, v9_1_database.tsv")
    assert said[0] in store.generation.manifest.created["notes"]


def change_network(folder: Path, change) -> None:
    path = folder / "string_v9_1_fusion.tsv.gz"
    rewrite(path, change(gzip.decompress(path.read_bytes()).decode()))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\tY", " \tY", 3),
    ],
)
def test_a_network_however_it_was_saved(whole: Path, folder: Path, change) -> None:
    change_network(folder, change)
    wanted, found = (yeast_base_graph(path, scores=True) for path in (whole, folder))
    tc.testing.assert_same_graph(found, wanted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.splitlines()[0] + "\n", "holds no pair"),
        (lambda text: "", r"columns \[\], expected gene_a"),
        (
            lambda text: text.lower().replace("gene_a\tgene_b", "gene_a\tgene_b"),
            "row 0: 'y0.*is not in genes.txt",
        ),
        (lambda text: text.replace("0.", "nan#", 1).replace("#", ""), "row 0:"),
        (lambda text: text + "Y00\tY23\tinf\n", "no finite number|repeats"),
    ],
)
def test_networks_that_are_none(folder: Path, change, words: str) -> None:
    change_network(folder, change)
    with pytest.raises(SourceContractError, match=words) as caught:
        yeast_base_graph(folder)
    assert "string_v9_1_fusion" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text + "Y00\tY23\t1_0\n", "score '1_0' is no finite number|repeats"),
        (lambda text: text + "Y00\tY23\n", "2 cells, expected 3"),
        (lambda text: text + "Y00\tY23\t0.5\t1\n", "4 cells, expected 3"),
        (lambda text: text + "Y00\tY00\t0.5\n", "pairs a gene with itself"),
        (lambda text: text + "\n".join(text.splitlines()[1:3]) + "\n", "repeats a pair"),
        (lambda text: text.replace("gene_a\tgene_b", "gene_b\tgene_a"), "expected gene_a, gene_b, score"),
        (lambda text: text.replace("\t", ","), "expected gene_a, gene_b, score"),
        (lambda text: text.replace("\t", " "), "expected gene_a, gene_b, score"),
        (lambda text: text[: len(text) // 2].rstrip("0123456789.\t"), "row|cells"),
    ],
)
def test_networks_that_were_changed_or_cut(folder: Path, change, words: str) -> None:
    change_network(folder, change)
    with pytest.raises(SourceContractError, match=words) as caught:
        yeast_base_graph(folder)
    assert "string_v9_1_fusion" in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("s_0001: 1", "s_0001: true", 1), "has True where a coefficient"),
        (lambda text: text.replace("s_0001: 1", "s_0001: .nan", 1), "has nan where"),
        (lambda text: text.replace("s_0001: 1", "s_0001: .inf", 1), "has inf where"),
        (lambda text: text.replace("s_0001: 1", 's_0001: "1_0"', 1), "has '1_0' where"),
        (lambda text: text.replace("s_0001: 1", "s_0000: 1", 1), "reaction r_0000 names a metabolite twice"),
        (lambda text: text.replace("s_0001: 1", "s_9: 1", 1), "r_0000, s_9\\) names metabolite 's_9'"),
        (
            lambda text: text.replace("lower_bound: 0", "lower_bound: .nan", 1),
            "reaction r_0000 has nan where",
        ),
        (lambda text: text.replace("- lower_bound: 0", "- lowest: 0", 1), "reaction r_0000 has None where"),
        (
            lambda text: text.replace('gene_reaction_rule: "Y00"', "gene_reaction_rule: [Y00]", 1),
            "gene rule \\['Y00'\\]",
        ),
        (lambda text: text.replace('rule: "Y00"', 'rule: "Y00 and"', 1), "r_0000.*malformed gene rule"),
        (lambda text: text.replace('rule: "Y00"', 'rule: "YXX"', 1), "r_0000.*unknown gene 'YXX'"),
        (lambda text: text.replace("r_0001", "r_0000"), "reaction ids repeat: 'r_0000'"),
        (lambda text: text[: text.index("- genes:")], "KeyError: 'genes'"),
        (lambda text: text[: len(text) // 2], "YAML|coefficient or bound|no text"),
        (lambda text: "", "not a metabolic model"),
        (lambda text: "a: [", "not a metabolic model"),
        (lambda text: "- 1\n- 2\n", "not a metabolic model"),
    ],
)
def test_models_that_were_changed_or_cut(folder: Path, change, words: str) -> None:
    rewrite(folder / "yeast-GEM-9.0.2.yml.gz", change(model_text()))
    with pytest.raises(SourceContractError, match=words):
        yeast_base_graph(folder)


def test_a_model_is_the_same_in_another_order(whole: Path, folder: Path) -> None:
    head, rest = model_text().split("\n- metabolites:")
    middle, genes = rest.split("\n- genes:")
    rewrite(folder / "yeast-GEM-9.0.2.yml.gz", f"\ufeff{head}\n- genes:{genes}- metabolites:{middle}\n")
    tc.testing.assert_same_graph(yeast_base_graph(folder), yeast_base_graph(whole))


@pytest.mark.parametrize(
    "settings",
    [
        *({"num_samples": value} for value in (0, -1, 10**9, 2.5, "5", True, float("nan"), [3])),
        *({"num_samples": 3, "seed": value} for value in (-1, 1.5, "x")),
        *(
            {"self_loops": "no"},
            {"scores": "false"},
            {"folder": 5},
            {"folder": b"yeast"},
            {"folder": "no\0where"},
        ),
    ],
    ids=str,
)
def test_arguments_that_mean_nothing(whole: Path, settings) -> None:
    with pytest.raises(SettingError, match=next(reversed(settings))):
        YeastKnockouts(**{"folder": whole, **settings})


@pytest.mark.parametrize("num_samples", [None, 5])
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("YZZ", "row 207: 'YZZ' is not a node"),
        ("Y00|Y00", "row 207: 'Y00' is given twice"),
        ("Y00", "rows 0 and 207 are"),
    ],
)
def test_errors_of_knock_outs_name_the_file_and_no_setting(
    folder: Path, row: str, words: str, num_samples
) -> None:
    path = folder / "fba_knockouts.tsv.gz"
    rewrite(path, gzip.decompress(path.read_bytes()).decode() + f"{row}\t0.5\n")
    with pytest.raises(SourceContractError, match=rf"fba_knockouts\.tsv\.gz: {words}") as caught:
        YeastKnockouts(folder, num_samples=num_samples)
    assert caught.value.fix
    assert not any(setting in caught.value.fix for setting in ("unknown=", "duplicate=", "replicates="))


@pytest.mark.parametrize("score", ["1e300", "-1e39", "inf"])
def test_a_score_beyond_float32_is_refused(folder: Path, score: str) -> None:
    path = folder / "string_v9_1_fusion.tsv.gz"
    rewrite(path, gzip.decompress(path.read_bytes()).decode() + f"Y22\tY23\t{score}\n")
    with pytest.raises(SourceContractError, match=f"row 48: the score '{score}'"):
        yeast_base_graph(folder, scores=True)
