"""Index files: store positions as a plain ``.npy``, and beside it, sealed, which store they belong to.

Numpy and any other tool read the ``.npy``. ``<file>.npy.json`` says what the positions mean: the store's fingerprint and content
digest, how the samples were chosen, and the digest of the positions. A file without it is taken at its word, within range.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import make_dirs_durable, remove_stale_temps, write_atomic
from torchcell_cache.core.fingerprint import digest_of, explain
from torchcell_cache.core.indexing import all_within
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.core.sealed import plain, read_sealed, seal
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import (
    CacheError,
    CacheNotFoundError,
    CorruptManifestError,
    FormatError,
    SettingError,
    StaleCacheError,
)
from torchcell_cache.store.generation import Generation

FORMAT = "torchcell_cache indices"
VERSION = 1
_STORE_KEYS = ("content_digest", "num_samples", "fingerprint")


def sidecar_of(path: str | os.PathLike[str]) -> Path:
    """Where an index file keeps what it belongs to."""
    return Path(f"{os.fspath(path)}.json")


def check_identity(stored: dict[str, Any], generation: Generation, path: Path) -> None:
    """Refuse a store whose positions mean other samples, naming each part that differs.

    The same source processed the same way has the same sample at the same position in every ``storage``.
    """
    here = {key: getattr(generation.manifest, key) for key in _STORE_KEYS}
    trees = [{k: v for k, v in one["fingerprint"].items() if k != "storage"} for one in (stored, here)]
    lines = explain(*trees)
    if stored["num_samples"] != here["num_samples"]:
        lines.insert(0, f"{stored['num_samples']:,} samples then, {here['num_samples']:,} now")
    same_storage = stored["fingerprint"].get("storage") == here["fingerprint"].get("storage")
    if not lines and same_storage and stored["content_digest"] != here["content_digest"]:
        lines = [f"content digest {stored['content_digest']} -> {here['content_digest']}"]
    if lines:
        raise StaleCacheError(
            f"{path} was made for another store than {generation.root}:\n    " + "\n    ".join(lines),
            path=path,
            fix="select again from this store, or open the store it was made for",
        )


def of_store(what: str, dataset: Any) -> None:
    """Refuse what is neither a store nor a view of one."""
    if not hasattr(dataset, "generation"):
        raise SettingError(
            f"{what} takes a store or a view of one, got {type(dataset).__name__}",
            fix="dataset[indices] is a view of some samples",
        )


def plain_values(made_by: Any) -> Any:
    """How samples were chosen, as plain JSON values."""
    try:
        return plain({} if made_by is None else made_by, "made_by")
    except (TypeError, ValueError) as error:
        raise SettingError(str(error), fix="texts, finite numbers, lists and dicts of them") from None


def save_indices(
    path: str | os.PathLike[str], chosen: Any, dataset: Any = None, *, made_by: dict[str, Any] | None = None
) -> Path:
    """Write an index file.

    Args:
        path: The file, ``.npy``; replaced if it is there.
        chosen: A view of a store (``dataset[...]``), or indices.
        dataset: What the indices index; without it they are written without a word about their store.
        made_by: How the samples were chosen, plain JSON values, for the reader's information.

    Returns:
        The path.

    Raises:
        SettingError: If the name does not end in ``.npy`` or ``chosen`` is neither a view nor indices.
        IndexError: If an index is out of range.
        StorageError: If the file cannot be written.

    Example:
        >>> tc.save_indices("double.npy", tc.select(ds, "perturbed_count == 2"), ds).name
        'double.npy'
    """
    target, made_by = npy_path("path", path), plain_values(made_by)
    generation: Generation | None = None
    if hasattr(chosen, "generation"):
        generation, positions = chosen.generation, chosen.positions()
    elif dataset is not None:
        of_store("save_indices", dataset)
        generation, positions = dataset.generation, dataset.positions(chosen)
    else:
        positions = _plain_positions(chosen)
    remove_stale_temps(make_dirs_durable(target.parent))
    stream = io.BytesIO()
    np.lib.format.write_array(stream, positions.astype("<i8"), version=(1, 0), allow_pickle=False)
    sidecar = sidecar_of(target)
    write_atomic(target, stream.getvalue(), mode=0o644)
    if generation is None:
        with storage_errors(sidecar):
            sidecar.unlink(missing_ok=True)
        return target
    write_document(sidecar, FORMAT, generation, made_by, **entry_of(positions))
    return target


def entry_of(positions: Int64Array) -> dict[str, Any]:
    """What tells positions from others."""
    return {"count": len(positions), "xxh3": digest_of(positions)}


def write_document(path: Path, form: str, generation: Generation, made_by: Any, **content: Any) -> None:
    """Write what samples of a store are, sealed."""
    store = {key: getattr(generation.manifest, key) for key in _STORE_KEYS}
    head = {"format": form, "version": VERSION, "store": store}
    write_atomic(path, seal({**head, **content, "made_by": plain_values(made_by)}), mode=0o644)


def load_indices(path: str | os.PathLike[str], dataset: Any) -> Int64Array:
    """Read an index file for a store.

    Args:
        path: The ``.npy`` file.
        dataset: The dataset (or its generation) whose samples they are.

    Returns:
        Positions in the whole store, ``[n] int64``.

    Raises:
        CacheNotFoundError: If there is no such file.
        StaleCacheError: If it was made for another store, or changed since it was written.
        CorruptManifestError: If the file beside it is damaged.
        FormatError: If it is not a ``.npy`` of one row of whole numbers.
        IndexError: If a position is out of range.

    Example:
        >>> _ = tc.save_indices("chosen.npy", [4, 2], ds)
        >>> tc.load_indices("chosen.npy", ds)
        array([4, 2])
    """
    source = npy_path("indices", path)
    if not isinstance(dataset, Generation):
        of_store("load_indices", dataset)
        dataset = dataset.generation
    generation: Generation = dataset
    sidecar = sidecar_of(source)
    try:
        stored = read_document(sidecar, FORMAT, {"count", "xxh3"}, f"select again, or remove {sidecar}")
    except FileNotFoundError:
        return read_positions(source, generation)
    check_identity(stored["store"], generation, source)
    entry = {key: stored[key] for key in ("count", "xxh3")}
    fix = f"select again, or remove {sidecar} to use it as it is"
    return read_positions(source, generation, entry, sidecar.name, fix)


def read_document(path: Path, form: str, keys: set[str], fix: str) -> dict[str, Any]:
    """What :func:`write_document` wrote, checked; ``FileNotFoundError`` if there is nothing."""
    document = read_sealed(path, fix=fix)
    found = document.get("format"), document.get("version")
    if found != (form, VERSION):
        raise FormatError(
            f"{path} is {found[0]!r} version {found[1]!r}, expected {form!r} version {VERSION}",
            path=path,
            fix=f"upgrade torchcell_cache, or {fix}",
        )
    store: Any = document.get("store")
    good = set(document) == {"format", "version", "store", "made_by", *keys} and isinstance(store, dict)
    good = good and set(store) == {*_STORE_KEYS} and isinstance(store["fingerprint"], dict)
    if not good or type(store["num_samples"]) is not int:
        raise CorruptManifestError(f"{path} lacks what it should hold", path=path, fix=fix)
    return document


def read_positions(
    path: Path,
    generation: Generation,
    entry: dict[str, Any] | None = None,
    origin: str = "",
    fix: str | None = None,
) -> Int64Array:
    """Positions of an index file that the store has, and that are those of ``entry``."""
    positions = read_npy(path)
    if entry is not None and entry != entry_of(positions):
        raise StaleCacheError(
            f"{path} is not the file that {origin} describes: it was changed or damaged", path=path, fix=fix
        )
    if len(positions) and not all_within(positions, len(generation)):
        span = f"{positions.min()} to {positions.max()}"
        raise IndexError(f"{path}: positions {span}, expected 0 to {len(generation) - 1}")
    return positions


def npy_path(key: str, path: str | os.PathLike[str]) -> Path:
    """The path if its name ends in ``.npy``."""
    text = local_path(path, key)
    if text.suffix != ".npy":
        raise SettingError(f"{key}={text}: index files end in .npy", fix=f"{key}={text.with_suffix('.npy')}")
    return text


def read_npy(path: Path) -> Int64Array:
    """One row of whole numbers from a ``.npy`` file, ``[n] int64``; mapped, so that no size it claims is allocated."""
    fix, found, what = "torchcell-cache select root=... out=...", None, "an archive"
    try:
        with storage_errors(path, "read"):
            found, size = np.load(path, mmap_mode="r", allow_pickle=False), path.stat().st_size
    except FileNotFoundError:
        raise CacheNotFoundError(f"no index file {path}", path=path, fix=fix) from None
    except (CacheError, OSError):
        raise
    except Exception as error:  # numpy raises anything over damaged headers
        what = str(error)
    if isinstance(found, np.memmap):
        what = f"{found.dtype} {list(found.shape)} in {size:,} bytes"
        whole = found.ndim == 1 and found.dtype.kind in "iu" and size == found.offset + found.nbytes
        if whole and int(found.max(initial=0)) < 1 << 63:
            return np.array(found, dtype=np.int64)
    raise FormatError(f"{path} is not one row of whole numbers: {what}", path=path, fix=fix)


def _plain_positions(chosen: Any) -> Int64Array:
    try:
        array = np.asarray(chosen)
    except (TypeError, ValueError, NotImplementedError):  # ragged lists, torch's Subset, tensors elsewhere
        array = np.empty((), dtype=object)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise SettingError(
            f"indices must be one row of whole numbers, got {type(chosen).__name__} of {array.dtype} {list(array.shape)}",
            fix="save_indices(path, dataset[...]) or save_indices(path, indices, dataset)",
        )
    if array.size and int(array.min()) < 0:
        raise SettingError("negative indices need the dataset", fix="save_indices(path, indices, dataset)")
    return array.astype(np.int64)


def into_view(dataset: Any, positions: Int64Array, origin: str) -> Int64Array:
    """Indices into a view of store positions.

    Raises:
        SettingError: If the view lacks one.
    """
    if len(dataset) == len(dataset.generation) and dataset._indices is None:
        return positions
    where = np.full(len(dataset.generation), -1, dtype=np.int64)
    where[dataset.positions()] = np.arange(len(dataset))
    found = where[positions]
    if (found < 0).any():
        raise SettingError(
            f"{origin}: sample {int(positions[int(np.argmin(found))])} of the store is not in this view of "
            f"{len(dataset):,} samples",
            fix="pass the whole store",
        )
    return found
