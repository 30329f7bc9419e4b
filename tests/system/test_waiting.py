"""Many ranks and a store that is not there, or not yet: nobody builds unasked, and who waits goes on when it is published."""

import json
import time
from functools import partial
from pathlib import Path

import forks
import pytest
from loading import COUNT, build, make_source

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.errors import (
    EXIT_INTERRUPTED,
    CacheNotFoundError,
    CorruptManifestError,
    SettingError,
    WaitTimeoutError,
)
from torchcell_cache.store.manifest import manifest_path, processed_dir

RANKS = 8


def ranks(count=RANKS):
    return [{"RANK": k, "WORLD_SIZE": count, "LOCAL_RANK": k} for k in range(count)]


def opened(root, **settings):
    return len(tc.PreprocessedDataset(root, **settings))


def test_eight_ranks_on_a_missing_store_say_the_same_line_and_build_nothing(tmp_path: Path) -> None:
    root = tmp_path / "missing"
    answers = forks.together([partial(opened, root)] * RANKS, tmp_path / "answers", ranks())
    [line] = {answer["text"] for answer in answers}
    assert {answer["error"] for answer in answers} == {"CacheNotFoundError"}
    assert "\n" not in line
    assert f"torchcell-cache preprocess root={root}" in line
    assert not root.exists()


def build_here(root):
    ds = tc.build(
        root, source=make_source(), processor=tc.LazySubgraphRepresentation(), storage="delta", shard_size=7
    )
    return ds.content_digest


def test_eight_ranks_that_build_build_once(tmp_path: Path) -> None:
    place = tmp_path / "answers"
    answers = forks.together([partial(build_here, tmp_path / "store")] * RANKS, place, ranks())
    assert {a.get("value") for a in answers} == {tc.PreprocessedDataset(tmp_path / "store").content_digest}
    assert (
        forks.printed(place).count("published gen-") - forks.printed(place).count("another builder published")
        == 1
    )
    assert len(list(processed_dir(tmp_path / "store").glob("gen-*"))) == 1


def test_eight_ranks_wait_for_a_build_and_go_on(tmp_path: Path) -> None:
    root, place = tmp_path / "store", tmp_path / "answers"
    place.mkdir()
    waiting = [
        forks.start(partial(opened, root, wait=True if k % 2 else 50.0), place, str(k), **environment)
        for k, environment in enumerate(ranks())
    ]
    time.sleep(0.3)
    assert all(process.is_alive() for process in waiting)
    build(root, make_source(), storage="delta")
    forks.finish(waiting)
    assert [json.loads((place / f"{k}.json").read_text()) for k in range(RANKS)] == [{"value": COUNT}] * RANKS
    assert forks.printed(place).count("waiting for") == 1  # rank 0 speaks for all


def test_a_store_that_is_there_is_opened_without_waiting(tmp_path: Path) -> None:
    build(tmp_path, make_source(), storage="delta")
    begun = time.monotonic()
    assert opened(tmp_path, wait=1000) == COUNT
    assert opened(tmp_path, wait=True) == COUNT
    assert time.monotonic() - begun < 500


def test_a_timeout_names_what_was_found(tmp_path: Path) -> None:
    def text(root):
        with pytest.raises(WaitTimeoutError) as caught:
            opened(root, wait=0.2)
        assert isinstance(caught.value, CacheNotFoundError | TimeoutError)
        assert "\n" not in str(caught.value)
        assert f"torchcell-cache status root={root}" in str(caught.value)
        return str(caught.value)

    assert f"{tmp_path}/none is not there" in text(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no build" in text(tmp_path / "empty")
    half = tmp_path / "half"
    settings = {"source": make_source(), "processor": tc.LazySubgraphRepresentation(), "storage": "delta"}
    tc.build_part(half, task=0, tasks=2, shard_size=7, progress=False, **settings)
    assert "with 2/4 shards finished" in text(half)


@pytest.mark.parametrize("wait", [-1, float("nan"), "long"])
def test_wrong_waits_are_refused(tmp_path: Path, wait) -> None:
    with pytest.raises(SettingError, match="expected seconds"):
        opened(tmp_path, wait=wait)


def test_a_damaged_manifest_is_not_waited_for(tmp_path: Path) -> None:
    build(tmp_path, make_source(), storage="delta")
    manifest_path(tmp_path).chmod(0o644)
    manifest_path(tmp_path).write_text("{}")
    with pytest.raises(CorruptManifestError):
        opened(tmp_path, wait=True)


def test_commands_wait_too(tmp_path: Path, capsys) -> None:
    for command in (["info"], ["verify"], ["stage", f"to={tmp_path}/local"]):
        assert main([*command, f"root={tmp_path}/none", "wait=0.2"]) == EXIT_INTERRUPTED
        assert "after waiting" in capsys.readouterr().err
    build(tmp_path / "store", make_source(), storage="delta")
    for command in (["info"], ["verify"], ["stage", f"to={tmp_path}/local"]):
        assert main([*command, f"root={tmp_path}/store", "wait=inf"]) == 0
    capsys.readouterr()


def test_without_locks_only_rank_0_builds(tmp_path: Path, monkeypatch) -> None:
    import errno
    import fcntl

    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with (
        pytest.warns(RuntimeWarning, match="no cross-node locking"),
        pytest.raises(tc.errors.BuildInProgressError, match="rank 1 of 2"),
    ):
        build_here(tmp_path / "store")
    monkeypatch.setenv("RANK", "0")
    with pytest.warns(RuntimeWarning, match="no cross-node locking"):
        digest = build_here(tmp_path / "store")
    assert tc.PreprocessedDataset(tmp_path / "store").content_digest == digest
