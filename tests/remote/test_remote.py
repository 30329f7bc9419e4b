"""Stores in object storage: pushed, pulled, staged and opened by address, on a real S3 server and on plain directories."""

import logging
import pickle
import shutil
import sys
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from loading import build, make_source
from object_store import CREDENTIALS, pull, push, s3, store, system, unreliable
from torch.utils.data import DataLoader
from torch_geometric.nn import GCNConv

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.errors import CacheNotFoundError, SettingError, WaitTimeoutError
from torchcell_cache.nn import shared_conv, shared_edges
from torchcell_cache.remote.bucket import Bucket
from torchcell_cache.store.manifest import read_manifest
from torchcell_cache.testing import assert_same_graph

__all__ = ["s3", "store", "unreliable"]


def test_the_round_trip_gives_the_same_samples(tmp_path: Path, store: Path, s3) -> None:
    url, options = s3
    assert push(store, url, options) == url
    original = tc.PreprocessedDataset(store)
    opened = tc.PreprocessedDataset(url, cache_dir=tmp_path / "cache", storage_options=options)
    assert opened.content_digest == original.content_digest
    for k in range(len(original)):
        assert_same_graph(opened[k], original[k])
    copy = pull(url, tmp_path / "copy", options)
    assert tc.verify(copy, "full", progress=False).ok
    staged = tc.stage(url, tmp_path / "local", storage_options=options, progress=False)
    assert staged.name == f"ko-{read_manifest(store).digest[:16]}"
    assert tc.verify(staged, "full", progress=False).ok
    assert {k: v.tolist() for k, v in opened.columns.items()} == {
        k: v.tolist() for k, v in tc.PreprocessedDataset(staged).columns.items()
    }


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_other_protocols(tmp_path: Path, store: Path, protocol: str) -> None:
    url = f"{protocol}://{tmp_path}/bucket/ko"
    push(store, url)
    opened = tc.PreprocessedDataset(url, cache_dir=tmp_path / "cache")
    assert [int(g["gene"].perturbation_indices.sum()) for g in opened] == [
        int(g["gene"].perturbation_indices.sum()) for g in tc.PreprocessedDataset(store)
    ]
    assert len(tc.PreprocessedDataset(Path(url), cache_dir=tmp_path / "cache")) == len(opened)
    if protocol == "file":  # objects have the names of files: what was pushed is a store
        assert len(list(tc.PreprocessedDataset(tmp_path / "bucket" / "ko"))) == len(opened)


def test_files_come_on_first_use_and_only_once(tmp_path: Path, store: Path, unreliable) -> None:
    url, options, proxy, _ = unreliable
    push(store, url, options)
    proxy.requests.clear()
    ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", storage_options=options)
    assert proxy.fetched("base_graph.safetensors") == 1
    assert proxy.fetched(".lmdb") == 0
    _ = ds[8]
    assert [proxy.fetched(f"shard-0000{k}.lmdb") for k in range(4)] == [0, 1, 0, 0]
    ds.read_batch([0, 20, 9, 21])
    assert len(list(ds)) == 23
    again = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", storage_options=options, download="all")
    assert len(list(again)) == 23
    assert [proxy.fetched(f"shard-0000{k}.lmdb") for k in range(4)] == [1, 1, 1, 1]
    whole = tc.PreprocessedDataset(url, cache_dir=tmp_path / "d", storage_options=options, download="all")
    assert [proxy.fetched(f"shard-0000{k}.lmdb") for k in range(4)] == [2, 2, 2, 2]
    assert len(list(whole)) == 23


def test_batches_and_workers_of_both_kinds(tmp_path: Path, store: Path, s3) -> None:
    url, options = s3
    push(store, url, options)
    local = tc.PreprocessedDataset(store)
    wanted = [b.labels("fitness").tolist() for b in tc.CacheLoader(local, batch_size=5)]
    for method in ("fork", "spawn"):  # a fork server would have another environment
        ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / method, storage_options=options)
        loader = tc.CacheLoader(ds, batch_size=5, num_workers=1, multiprocessing_context=method)
        assert [b.labels("fitness").tolist() for b in loader] == wanted
    stock = DataLoader(ds, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for mine, theirs in zip(stock, local, strict=True):
        assert_same_graph(mine, theirs)


def test_a_pickle_is_small_and_holds_no_secret(tmp_path: Path, store: Path, s3, caplog, capfd) -> None:
    url, options = s3
    with caplog.at_level(logging.INFO):
        push(store, url, options)
        ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", storage_options=options)
        data = pickle.dumps(ds)
        assert len(data) < 2000
        again = pickle.loads(data)
        assert_same_graph(again[3], ds[3])
    printed = capfd.readouterr()
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    objects = system(options).cat(system(options).find(url))
    assert len(objects) > 8
    said = caplog.text + printed.out + printed.err + repr(ds) + repr(vars(ds.generation.fetcher))
    for secret in (CREDENTIALS["AWS_SECRET_ACCESS_KEY"], CREDENTIALS["AWS_ACCESS_KEY_ID"]):
        assert secret.encode() not in data + kept + b"".join(objects.values())
        assert secret not in said


@pytest.mark.parametrize(
    "given",
    [
        {"key": "AKIA", "secret": "x"},
        {"client_kwargs": {"aws_secret_access_key": "x"}},
        {"token": "abcdef"},
        {"connection_string": "x"},
    ],
)
def test_credentials_as_options_are_refused_and_not_repeated(given) -> None:
    with pytest.raises(SettingError, match="credentials are not passed") as caught:
        Bucket("s3://lab/x", given)
    assert "AWS_PROFILE" in str(caught.value)
    assert "abcdef" not in str(caught.value)
    Bucket("gs://lab/x", {"token": "anon"})
    Bucket("s3://lab/x", {"anon": True, "endpoint_url": "http://127.0.0.1:1"})


@pytest.mark.parametrize("url", ["s3://", "ftp://a/b", "s3://user:password@lab/x"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(SettingError) as caught:
        tc.PreprocessedDataset(url)
    assert "password@" not in str(caught.value)


@pytest.mark.parametrize(("protocol", "library"), [("gs", "gcsfs"), ("az", "adlfs")])
def test_a_library_that_is_not_installed_is_named(
    protocol: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library] + [library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    with pytest.raises(SettingError, match=f"pip install {library}"):
        tc.PreprocessedDataset(f"{protocol}://lab/x", cache_dir=tmp_path)


def test_arguments_that_do_not_fit(tmp_path: Path, store: Path, s3) -> None:
    url, options = s3
    with pytest.raises(SettingError, match="cache_dir"):
        tc.PreprocessedDataset(store, cache_dir=tmp_path)
    push(store, url, options)
    at = {"cache_dir": tmp_path / "c", "storage_options": options}
    with pytest.raises(SettingError, match="download='some' is not one of 'lazy', 'all'"):
        tc.PreprocessedDataset(url, download="some", **at)
    with pytest.raises(SettingError, match="download='all' needs"):
        tc.PreprocessedDataset(url, download="all", cache_bytes="1KB", **at)
    with pytest.raises(SettingError, match="cache_bytes='much'"):
        tc.PreprocessedDataset(url, cache_bytes="much", **at)
    with pytest.raises(SettingError, match="nonsense"):
        tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", storage_options={**options, "nonsense": 1})


def test_opening_never_builds_and_says_what_to_type(tmp_path: Path, s3) -> None:
    url, options = s3
    with pytest.raises(CacheNotFoundError, match=f"torchcell-cache push root=... url={url}"):
        tc.PreprocessedDataset(url, cache_dir=tmp_path, storage_options=options)
    with pytest.raises(WaitTimeoutError):
        tc.PreprocessedDataset(url, cache_dir=tmp_path, storage_options=options, wait=0.2)


def test_addresses_are_for_reading(tmp_path: Path, capsys) -> None:
    with pytest.raises(SettingError, match="s3://lab/x is an address"):
        build("s3://lab/x", make_source())
    assert main(["verify", "root=s3://lab/x"]) == SettingError.code
    assert "torchcell-cache pull url=s3://lab/x" in capsys.readouterr().err


def losses(ds, steps: int = 6) -> list[float]:
    """A few steps of a small model on the batches of a dataset."""
    torch.manual_seed(0)
    conv, x = GCNConv(ds.base_graph["gene"].x.shape[1], 1), ds.base_graph["gene"].x
    optimizer, out = torch.optim.Adam(conv.parameters(), 0.01), []
    for epoch in range(2):
        torch.manual_seed(epoch)
        for batch in tc.CacheLoader(ds, batch_size=7, shuffle=True):
            edges = shared_edges(batch)[next(t for t in ds.base_graph.edge_types if t[0] == t[2] == "gene")]
            made = shared_conv(conv, x.expand(len(batch), -1, -1), edges).mean((1, 2))
            loss = torch.nn.functional.mse_loss(made, batch.labels("fitness"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            out.append(float(loss.detach()))
    return out[:steps]


def test_training_from_a_bucket_is_training_from_the_store(tmp_path: Path, store: Path, s3) -> None:
    url, options = s3
    push(store, url, options)
    wanted = losses(tc.PreprocessedDataset(store))
    shutil.rmtree(store)
    found = losses(tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", storage_options=options))
    assert found == wanted
    assert len(set(found)) > 1


def test_the_commands(tmp_path: Path, store: Path, s3, capsys) -> None:
    url, options = s3
    extra = f"storage_options={{endpoint_url: '{options['endpoint_url']}'}}"
    assert main(["push", f"root={store}", f"url={url}", extra]) == 0
    assert capsys.readouterr().out == f"{url}\n"
    assert main(["pull", f"url={url}", f"root={tmp_path}/copy", extra]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/copy\n"
    assert main(["stage", f"root={url}", f"to={tmp_path}/local", extra]) == 0
    staged = Path(capsys.readouterr().out.strip())
    assert len(tc.PreprocessedDataset(staged)) == len(tc.PreprocessedDataset(tmp_path / "copy")) == 23
    assert main(["pull", f"url={url}-none", f"root={tmp_path}/copy2", extra]) == CacheNotFoundError.code
    printed = capsys.readouterr()
    assert "torchcell-cache push" in printed.err
    assert printed.out == ""


def test_eight_processes_share_one_cache(tmp_path: Path, store: Path, unreliable) -> None:
    url, options, proxy, _ = unreliable
    push(store, url, options)
    proxy.requests.clear()
    proxy.pause = 0.01

    def read():
        ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", storage_options=options)
        order = np.random.default_rng().permutation(len(ds)).tolist()
        found = {k: float(ds[k]["gene"].phenotype_values.sum()) for k in order}
        return [found[k] for k in range(len(ds))]

    answers = forks.together([read] * 8, tmp_path / "answers")
    wanted = [float(g["gene"].phenotype_values.sum()) for g in tc.PreprocessedDataset(store)]
    assert [answer.get("value") for answer in answers] == [wanted] * 8
    names = {path.rpartition("/")[2] for method, path in proxy.requests if "/gen-" in path}
    assert {name: proxy.fetched(name) for name in names} == dict.fromkeys(names, 1)
