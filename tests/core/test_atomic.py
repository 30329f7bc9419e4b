from __future__ import annotations

import errno
import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcell_cache.core.failures import free_bytes, storage_error, storage_errors
from torchcell_cache.core.files import (
    TEMP_PREFIX,
    file_digest,
    fsync_dir,
    fsync_file,
    make_dirs_durable,
    publish_new,
    remove_stale_temps,
    replace_file,
    temp_path,
    write_atomic,
)
from torchcell_cache.errors import (
    EXIT_CANNOT_WRITE,
    CacheNotFoundError,
    StorageError,
    StorageFullError,
    StorageLostError,
    StorageReadOnlyError,
)

ODD_NAMES = ["plain", "with space", "é中文", "new\nline", ".hidden", "-dash", "a.b.c", "x" * 150]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_python(code: str, *arguments: str) -> str:
    """Output of another process; never the tested one, so its pid is dead afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def temp_of_dead_process(path: Path) -> Path:
    code = "import sys; from torchcell_cache.core.files import temp_path as t; print(t(sys.argv[1]), end='')"
    return Path(run_python(code, str(path)))


@pytest.mark.parametrize("name", ODD_NAMES)
def test_writes_and_replaces_whole_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for data in (b"first", b"", b"third" * 1_000_000):
        assert write_atomic(path, data)
        assert path.read_bytes() == data
    assert names_in(tmp_path) == [name]


def test_first_writer_wins_without_replace(tmp_path: Path) -> None:
    assert write_atomic(tmp_path / "f", b"first", replace=False)
    assert not write_atomic(tmp_path / "f", b"second", replace=False)
    assert (tmp_path / "f").read_bytes() == b"first"
    assert names_in(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("mask", "mode", "expected"), [(0o022, 0o444, 0o444), (0o077, 0o444, 0o400), (0, 0o644, 0o644)]
)
def test_published_files_are_read_only_and_obey_the_umask(
    tmp_path: Path, mask: int, mode: int, expected: int
) -> None:
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "f", b"data", mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == expected


def test_replacing_keeps_what_a_reader_has_open(tmp_path: Path) -> None:
    write_atomic(tmp_path / "f", b"old")
    with (tmp_path / "f").open("rb") as reader:
        write_atomic(tmp_path / "f", b"newer")
        assert reader.read() == b"old"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_atomic(tmp_path / "nowhere" / "f", b"data")


def test_publish_new_consumes_the_temporary_file_whoever_wins(tmp_path: Path) -> None:
    for number, expected in ((1, True), (2, False)):
        temporary = temp_path(tmp_path / "f")
        temporary.write_bytes(b"%d" % number)
        assert publish_new(temporary, tmp_path / "f") is expected
    assert names_in(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"1"
    assert (tmp_path / "f").stat().st_nlink == 1


def test_replace_file_without_a_source_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"kept")
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "missing", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"kept"


def test_of_many_threads_exactly_one_publishes(tmp_path: Path) -> None:
    for number in range(30):
        path, gate, wins = tmp_path / f"f{number}", threading.Barrier(8), []

        def publish(
            who: int, path: Path = path, gate: threading.Barrier = gate, wins: list[int] = wins
        ) -> None:
            gate.wait()
            if write_atomic(path, b"%d" % who, replace=False):
                wins.append(who)

        threads = [threading.Thread(target=publish, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [b"%d" % who for who in wins] == [path.read_bytes()]


def test_temp_names_are_unique_and_beside_their_target(tmp_path: Path) -> None:
    names = {temp_path(tmp_path / "shard-00000.lmdb") for _ in range(100)}
    assert len(names) == 100
    assert {name.parent for name in names} == {tmp_path}
    assert all(name.name.startswith(TEMP_PREFIX) for name in names)


def test_left_overs_of_dead_writers_go_and_everything_else_stays(tmp_path: Path) -> None:
    dead = [temp_of_dead_process(tmp_path / name) for name in ("manifest.json", "new\nline", "a.b")]
    ours = temp_path(tmp_path / "manifest.json")
    foreign = tmp_path / ".tmp-f.00000000.1.1.0123456789abcdef"
    others = [
        tmp_path / name for name in ("manifest.json", ".tmp-notes", "a.tmp", ".tmp-f.zz.1.1.0123456789abcdef")
    ]
    for path in [*dead, ours, foreign, *others]:
        path.write_bytes(b"x")
    assert remove_stale_temps(tmp_path) == len(dead)
    assert set(tmp_path.iterdir()) == {ours, foreign, *others}
    assert remove_stale_temps(tmp_path, exclusive=True) == 1
    assert set(tmp_path.iterdir()) == {ours, *others}


def test_a_left_over_directory_goes_with_its_content_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    directory, link = (temp_of_dead_process(tmp_path / name) for name in ("stage", "link"))
    (directory / "below").mkdir(parents=True)
    (directory / "below" / "file").touch()
    link.symlink_to("kept")
    assert remove_stale_temps(tmp_path) == 2
    assert names_in(tmp_path) == ["kept"]
    assert names_in(tmp_path / "kept") == ["file"]


def test_a_recycled_pid_is_not_the_writer(tmp_path: Path) -> None:
    ours = temp_path(tmp_path / "f")
    prefix, machine, pid, start, nonce = ours.name.rsplit(".", 4)
    recycled = tmp_path / ".".join([prefix, machine, pid, str(int(start) + 1), nonce])
    recycled.touch()
    assert remove_stale_temps(tmp_path) == 1


def test_cleaning_a_missing_directory_is_fine(tmp_path: Path) -> None:
    assert remove_stale_temps(tmp_path / "missing") == 0


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=5000), chunk=st.integers(1, 3000))
def test_file_digest_equals_hashing_the_bytes(data: bytes, chunk: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        digest = file_digest(file.name, chunk)
    assert digest == (len(data), hashlib.sha256(data).hexdigest(), xxhash.xxh3_128_hexdigest(data))


def test_file_digest_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_digest(tmp_path / "missing")


def test_makes_nested_directories_and_accepts_existing_ones(tmp_path: Path) -> None:
    wanted = tmp_path / "a b" / "é" / "c"
    for _ in range(2):
        assert make_dirs_durable(wanted) == wanted
        assert wanted.is_dir()
    fsync_dir(wanted)


def test_a_file_where_a_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for refused in (make_dirs_durable, fsync_dir):
        with pytest.raises(StorageError, match=f"{tmp_path}/f is a file"):
            refused(tmp_path / "f")
    fsync_file(tmp_path / "f")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EFBIG, StorageFullError),
        (errno.EROFS, StorageReadOnlyError),
        (errno.EACCES, StorageReadOnlyError),
        (errno.EPERM, StorageReadOnlyError),
        (errno.EIO, StorageLostError),
        (errno.ESTALE, StorageLostError),
    ],
)
def test_os_errors_become_typed_errors_with_path_and_fix(tmp_path: Path, number: int, kind: type) -> None:
    path = tmp_path / "some file"
    with pytest.raises(kind, match=r"cannot copy .*some file") as caught, storage_errors(path, "copy"):
        raise OSError(number, os.strerror(number))
    error = caught.value
    assert (error.errno, error.path, error.code) == (number, str(path), EXIT_CANNOT_WRITE)
    assert error.fix
    assert os.strerror(number) in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.path) == (kind, str(error), error.path)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    for error in (FileNotFoundError(errno.ENOENT, "x"), ValueError("y"), CacheNotFoundError("z")):
        with pytest.raises(type(error)) as caught, storage_errors(tmp_path):
            raise error
        assert caught.value is error
    assert storage_error(None, tmp_path) is None
    assert storage_error(errno.ENOENT, tmp_path) is None


def test_a_device_that_is_full() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with (
            pytest.raises(StorageFullError, match=r"No space left .* bytes free"),
            storage_errors("/dev/full"),
        ):
            os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


LIMITED = """
import errno, os, resource, sys
from torchcell_cache.core.files import (write_atomic)
from torchcell_cache.core.failures import storage_error
from torchcell_cache.errors import StorageFullError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    write_atomic(sys.argv[1] + "/f", b"x" * (1 << 17))
except StorageFullError as error:
    print("full", os.listdir(sys.argv[1]))
open(sys.argv[1] + "/g", "wb").write(b"x" * (1 << 16))
print(type(storage_error(errno.EIO, sys.argv[1] + "/g")).__name__)
"""


def test_a_file_size_limit_counts_as_full_also_where_a_library_calls_it_an_io_error(tmp_path: Path) -> None:
    assert run_python(LIMITED, str(tmp_path)).split("\n")[:2] == ["full []", "StorageFullError"]


def test_free_space_of_a_path_that_does_not_exist_yet(tmp_path: Path) -> None:
    stats = os.statvfs(tmp_path)
    assert free_bytes(tmp_path / "not" / "there") == pytest.approx(stats.f_bavail * stats.f_frsize, rel=0.05)
    (tmp_path / "file").touch()
    assert free_bytes(tmp_path / "file" / "below") > 0


def test_no_decision_is_made_by_a_clock() -> None:
    package = Path(__file__).parents[2] / "torchcell_cache"
    for name in (
        "core/files",
        "core/locks",
        "core/process",
        "core/sealed",
        "store/manifest",
        "store/shard_entry",
        "core/failures",
    ):
        text = (package / f"{name}.py").read_text("utf-8")
        for banned in ("time.time", "datetime", "st_mtime", "st_ctime", "getmtime"):
            assert banned not in text, f"{name}.py uses {banned}"
