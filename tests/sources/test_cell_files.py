"""Which files a user means, and what is said when one is not there, not readable, not a file or not an H5AD file."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import pytest
from cells import INSTALLED, REASON, dense_on, gene_graph, made_up, write
from object_store import s3  # noqa: F401
from services import require

import torchcell_cache as tc

if INSTALLED:
    import h5py
    from cells import anndata, pd, sparse

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)
GENES = [f"Q{k}" for k in range(6)]


@pytest.fixture(autouse=True)
def _libraries() -> None:
    require(INSTALLED, REASON)


def source_of(files: Any, **kwargs: Any) -> Any:
    return tc.AnnDataSource(files, gene_graph(GENES), **kwargs)


def dense(source: Any) -> np.ndarray:
    return np.stack([graph["gene"].x[:, 0].numpy() for graph in source.items(0, len(source))])


def refused(call: Any, kind: type[Exception], *words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    for word in (*words, "\n  fix: "):
        assert word in text, (word, text)


# Finding files


def test_patterns_lists_and_homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [made_up(4, GENES, seed=k) for k in range(3)]
    (tmp_path / "plates" / "deep").mkdir(parents=True)
    for name, part in zip(("plates/b.h5ad", "plates/a.h5ad", "plates/deep/[x].h5ad"), parts, strict=True):
        write(part, tmp_path / name)
    (tmp_path / "plates" / "._a.h5ad").write_text("what macOS leaves")
    b, a, deep = (dense_on(part, GENES) for part in parts)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for files, wanted in (
        ("plates/*.h5ad", [a, b]),
        ("~/plates/*.h5ad", [a, b]),
        (tmp_path / "plates" / "**" / "*.h5ad", [a, b, deep]),
        (["plates/deep/[x].h5ad", "plates/?.h5ad"], [deep, a, b]),  # a file of that name is no pattern
        (f"file://{tmp_path}/plates/*.h5ad", [a, b]),
        (iter(["plates/b.h5ad"]), [b]),
        (np.array(["plates/b.h5ad", "plates/a.h5ad"]), [b, a]),
        (pd.Series(["plates/a.h5ad"], index=[7]), [a]),
    ):
        assert np.array_equal(dense(source_of(files)), np.concatenate(wanted)), files
    refused(lambda: source_of("plates/*.h5"), tc.errors.SourceContractError, "plates/*.h5: no file fits")
    refused(
        lambda: source_of(["plates/*.h5ad", "./plates/a.h5ad"]), tc.errors.SourceContractError, "named twice"
    )
    (tmp_path / "plates" / "c.h5ad").symlink_to("b.h5ad")
    refused(lambda: source_of("plates/*.h5ad"), tc.errors.SourceContractError, "c.h5ad is named twice")
    refused(lambda: source_of("~nobody-of-that-name/a.h5ad"), tc.errors.SourceContractError, "~nobody")
    for wrong in (7, None, [7], pd.DataFrame({"a": [1]}).values, [None], {"a": 1}.items()):
        with pytest.raises(tc.errors.SettingError, match="expected paths or URLs"):
            source_of(wrong)


def test_other_formats_are_named(tmp_path: Path) -> None:
    for name, group, words in (
        ("m.h5mu", "mod/rna", "mudata.read_h5mu"),
        ("t.h5", "matrix", "scanpy.read_10x_h5"),
    ):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_group(group)
        refused(lambda name=name: source_of(tmp_path / name), tc.errors.SourceContractError, name, words)


def test_one_name_is_one_column(tmp_path: Path) -> None:
    path = write(made_up(3, GENES), tmp_path / "c.h5ad")
    source = source_of(path, categories="batch", phenotypes="score")
    assert (list(source.categories), source.phenotypes) == (["batch"], ("score",))
    assert source.identity() == source_of(path, categories=["batch"], phenotypes=["score"]).identity()
    for target in ("1e4", float("inf"), float("nan"), -1):
        with pytest.raises(tc.errors.SettingError, match="target_sum="):
            source_of(path, target_sum=target)
    with pytest.raises(tc.errors.SettingError, match="empty path"):
        source_of("")


@pytest.mark.parametrize("mark", [".zgroup", "zarr.json", ".zmetadata", None])
def test_zarr_stores_and_directories(tmp_path: Path, mark: str | None) -> None:
    place = tmp_path / ("cells.zarr" if mark is None else "cells")
    place.mkdir()
    if mark is not None:
        (place / mark).write_text("{}")
    for given in (place, str(place) + "/", f"file://{place}"):
        refused(
            lambda given=given: source_of(given),
            tc.errors.SourceContractError,
            "is a zarr store",
            "anndata.read_zarr",
        )
    plain = tmp_path / "plates"
    plain.mkdir()
    refused(
        lambda: source_of(plain),
        tc.errors.SourceContractError,
        "plates is a directory",
        "path of an H5AD file",
    )
    write(made_up(2, GENES), plain / "a.h5ad")
    refused(
        lambda: source_of(plain), tc.errors.SourceContractError, "plates/*.h5ad for the 1 H5AD files in it"
    )


def test_what_the_refusal_of_zarr_advises_works(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    cells = made_up(5, GENES)
    cells.write_zarr(tmp_path / "c.zarr")
    found = source_of(anndata.read_zarr(tmp_path / "c.zarr"), categories=["cell_type"])
    assert np.array_equal(dense(found), dense_on(cells, GENES))


# Cells in memory


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "csr_array", "backed", "backed csc", "view"])
def test_cells_in_memory_are_those_of_the_file(tmp_path: Path, form: str) -> None:
    cells = made_up(40, GENES, seed=2)
    cells.obs["guide"] = np.where(np.arange(40) % 3, "Q4", "ctrl")
    cells.layers["twice"] = cells.X * 2
    cells.raw = cells
    kind = {"csc": "csc", "dense": "dense", "backed csc": "csc"}.get(form, "csr")
    path = write(cells, tmp_path / "c.h5ad", kind)
    if form.startswith("backed"):
        given = anndata.read_h5ad(path, backed="r")
    else:
        given = anndata.read_h5ad(path)
    if form == "csr_array":
        given.X = sparse.csr_array(given.X)
    if form == "view":
        more = given[[*range(40), *range(7)]].copy()
        more.obs_names_make_unique()
        given = more[:40]
    kwargs = {
        "phenotypes": ["score", "n"],
        "categories": ["batch", "doublet"] if form == "view" else ["cell_type", "batch", "doublet"],
        "perturbation": "guide",
    }  # a view has no categories that its cells do not have
    for more in ({}, {"layer": "twice"}, {"raw": True}, {"target_sum": 1e3, "log1p": True}):
        of_file, of_object = source_of(path, **kwargs, **more), source_of(given, **kwargs, **more)
        one = tc.build(
            tmp_path / f"f{len(str(more))}", source=of_file, processor=None, storage="delta", progress=False
        )
        two = tc.build(
            tmp_path / f"m{len(str(more))}",
            source=of_object,
            processor=None,
            storage="delta",
            progress=False,
            num_workers=2,
            shard_size=16,
        )
        assert one.content_digest == two.content_digest
        assert one.source_ids == two.source_ids == list(cells.obs_names)
    again = pickle.loads(pickle.dumps(of_object))
    assert again.identity() == of_object.identity()


def test_what_is_in_memory_is_identified_by_what_it_holds(tmp_path: Path) -> None:
    cells = made_up(10, GENES)
    source = source_of(cells, categories=["batch"])
    first = source.identity()
    tc.build(tmp_path / "s", source=source, processor=None, progress=False)
    assert source_of(cells.copy(), categories=["batch"]).identity() == first
    other = cells.copy()
    other.obs["batch"] = other.obs["batch"].astype(str).iloc[::-1].to_numpy()
    assert source_of(other, categories=["batch"]).identity() != first
    renamed = cells.copy()
    renamed.var_names = ["Q1", "Q0", *GENES[2:]]
    assert source_of(renamed, categories=["batch"]).identity() != first
    cells.X.data[0] += 1
    with pytest.raises(tc.errors.StaleCacheError, match=r"source\.files"):
        tc.build(tmp_path / "s", source=source, processor=None, progress=False)
    files = [write(cells, tmp_path / "c.h5ad"), cells[:3].copy()]
    assert len(source_of(files)) == 13
    refused(lambda: source_of([cells, cells]), tc.errors.SourceContractError, "named twice")
    refused(
        lambda: source_of(cells, layer="no"), tc.errors.SourceContractError, "has no layer 'no'"
    ) if 0 else None
    with pytest.raises(tc.errors.SourceContractError, match=r"AnnData object 0 \(10 x 6\) has no layer 'no'"):
        source_of(cells, layer="no")
    with pytest.raises(tc.errors.SourceContractError, match="obs has no column 'kind'"):
        source_of(cells, categories=["kind"])


# Damaged and unreadable files


def with_unknown_codec(path: Path) -> None:
    """A matrix whose chunks say that they went through a filter which this machine does not have."""
    with h5py.File(path, "a") as file:
        del file["X"]
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((4, 6))
        creation.set_filter(32768 + 77, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple((4, 6))
        found = h5py.h5d.create(file.id, b"X", h5py.h5t.NATIVE_FLOAT, space, creation)
        found.write_direct_chunk((0, 0), bytes(96), 0)


def test_a_codec_that_is_missing(tmp_path: Path) -> None:
    path = write(made_up(4, GENES), tmp_path / "c.h5ad", "dense")
    with_unknown_codec(path)
    source = source_of(path)
    words = "c.h5ad is compressed by a codec that is not installed", "pip install hdf5plugin"
    refused(lambda: source[0], tc.errors.SourceContractError, *words)
    with pytest.raises(tc.errors.CacheError, match="codec that is not installed"):
        tc.build(tmp_path / "s", source=source, processor=None, progress=False)


@pytest.mark.parametrize(
    "how", ["cut", "noise", "text", "empty", "gzip", "no obs", "no index", "no pointers", "odd encoding"]
)
def test_damaged_files(tmp_path: Path, how: str) -> None:
    path = write(made_up(300, GENES), tmp_path / "c.h5ad")
    whole = path.read_bytes()
    if how in ("no obs", "no index", "no pointers", "odd encoding"):
        with h5py.File(path, "a") as file:
            if how == "no pointers":
                del file["X/indptr"]
            elif how == "no obs":
                del file["obs"]
            elif how == "no index":
                del file["obs/_index"]
            else:
                file["obs/batch"].attrs["encoding-type"] = "made-up"
    else:
        content = {
            "cut": whole[: len(whole) // 2],
            "text": b"a,b\n1,2\n",
            "empty": b"",
            "gzip": b"\x1f\x8b" + whole,
        }
        noise = bytearray(whole)
        noise[2000:-2000:7] = bytes(len(noise[2000:-2000:7]))
        path.write_bytes(content.get(how, bytes(noise)))

    def read() -> None:
        dense(source_of(path, categories=["batch", "cell_type"], phenotypes=["score"]))

    refused(read, tc.errors.SourceContractError, "c.h5ad")


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(made_up(4, GENES), tmp_path / "c.h5ad")
    path.chmod(0)
    script = f"""
import os, torchcell_cache as tc
from cells import gene_graph
import anndata, torch_geometric, h5py, scipy.sparse
graph = gene_graph({GENES!r})
if os.geteuid() == 0:
    os.setegid(65534), os.seteuid(65534)
try:
    tc.AnnDataSource({str(path)!r}, graph)
except tc.errors.CacheError as error:
    print(error)
"""
    for place in (tmp_path, *tmp_path.parents):
        if place.owner() and os.access(place, os.W_OK) and str(place).startswith("/tmp/"):
            place.chmod(0o755)
    here = Path(__file__).parents[1] / "support"
    done = fresh.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "c.h5ad may not be read" in done.stdout, done.stdout + done.stderr
    assert "check owner and permissions" in done.stdout


def test_no_room_for_temporary_files(tmp_path: Path) -> None:
    cells = made_up(3000, [f"Q{k}" for k in range(20)], density=0.9)
    path = write(cells, tmp_path / "c.h5ad", "csc")
    (tmp_path / "small").mkdir()
    script = f"""
import resource, signal, torchcell_cache as tc
from cells import gene_graph
source = tc.AnnDataSource({str(path)!r}, gene_graph({GENES!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    source[0]
except tc.errors.CacheError as error:
    print(type(error).__name__, error)
"""
    here = Path(__file__).parents[1] / "support"
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}", "OMP_NUM_THREADS": "1"}
    environment["TMPDIR"] = str(tmp_path / "small")
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = fresh.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "StorageFullError cannot write the cells of" in done.stdout, done.stdout + done.stderr
    assert f"below {tmp_path / 'small'}: File too large" in done.stdout
    assert "export TMPDIR=" in done.stdout
    assert list((tmp_path / "small").iterdir()) == []


@pytest.mark.parametrize(("block", "bucket"), [(7, 11), (50, 1000), (1000, 1), (10**6, 40)])
def test_columns_are_turned_in_any_number_of_blocks(tmp_path, monkeypatch, block: int, bucket: int) -> None:
    """Cells of a matrix by columns, whatever goes into one block and one bucket; oracle: the same matrix as numpy has it."""
    monkeypatch.setattr("torchcell_cache.sources.cells.rows._BLOCK", block)
    monkeypatch.setattr("torchcell_cache.sources.cells.rows._BUCKET", bucket)
    monkeypatch.setattr("torchcell_cache.sources.cells.rows.MAX_CELLS", 5)
    cells = made_up(23, GENES, density=0.4)
    source = source_of(write(cells, tmp_path / "c.h5ad", "csc"))
    wanted = dense_on(cells, GENES)
    assert np.array_equal(dense(source), wanted)
    assert np.array_equal([source[k]["gene"].x[:, -1] for k in (22, 0, 11)], wanted[[22, 0, 11]])


# Servers


def test_libraries_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, module, advice in (("gs://lab/c.h5ad", "gcsfs", "gcsfs"), ("az://lab/*.h5ad", "adlfs", "adlfs")):
        monkeypatch.setitem(sys.modules, module, None)
        refused(lambda url=url: source_of(url), tc.errors.SettingError, url, f"pip install {advice}")
    refused(
        lambda: source_of("http://127.0.0.1:9/c.h5ad"),
        tc.errors.RemoteUnavailableError,
        "http://127.0.0.1:9/c.h5ad",
    )
    refused(
        lambda: source_of("nowhere://lab/c.h5ad"),
        tc.errors.SettingError,
        "nowhere://lab/c.h5ad",
        "Protocol not known",
    )


def test_files_in_a_bucket(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    import s3fs

    url, options = s3
    parts = [made_up(6, GENES, seed=k) for k in range(2)]
    system = s3fs.S3FileSystem(**options)
    for k, part in enumerate(parts):
        system.put_file(str(write(part, tmp_path / f"{k}.h5ad")), f"{url}/plates/{k}.h5ad")
    system.pipe_file(f"{url}/c.zarr/.zgroup", b"{}")
    found = source_of(f"{url}/plates/*.h5ad", storage_options=options)
    assert np.array_equal(dense(found), np.concatenate([dense_on(part, GENES) for part in parts]))
    missing = f"{url}/plates/7.h5ad"
    refused(
        lambda: source_of(missing, storage_options=options),
        tc.errors.SourceContractError,
        missing,
        "no such file",
    )
    refused(
        lambda: source_of(f"{url}/c.zarr", storage_options=options),
        tc.errors.SourceContractError,
        "is a zarr store",
    )
    system.pipe_file(f"{url}/text.h5ad", b"no cells here" * 100)
    refused(
        lambda: source_of(f"{url}/text.h5ad", storage_options=options),
        tc.errors.SourceContractError,
        "text.h5ad is not",
    )
    dead = {
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"},
        "config_kwargs": {"retries": {"max_attempts": 1}},
    }
    refused(
        lambda: source_of(f"{url}/plates/0.h5ad", storage_options=dead),
        tc.errors.RemoteUnavailableError,
        "plates/0.h5ad",
    )
    refused(
        lambda: source_of(f"{url}/plates/0.h5ad", storage_options={"no_such_option": 1}),
        tc.errors.CacheError,
        "no_such_option",
    )
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    refused(
        lambda: source_of(f"{url}/plates/0.h5ad", storage_options=options),
        tc.errors.RemoteAccessError,
        "plates/0.h5ad",
        "aws",
    )
