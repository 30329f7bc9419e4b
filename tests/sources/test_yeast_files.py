"""The files of a yeast folder as they really are: byte order marks, tables for lists, other names."""

import gzip
import os
from pathlib import Path

import pytest
from yeast_folder import write_folder

import torchcell_cache as tc
from torchcell_cache.errors import CacheError, SourceContractError
from torchcell_cache.sources import YeastKnockouts, yeast_base_graph


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("yeast"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    for path in whole.iterdir():
        os.link(path, tmp_path / path.name)
    return tmp_path


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
