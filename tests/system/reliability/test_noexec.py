"""Nothing that is stored is ever executed: planted pickles, torch files and object arrays are refused or plain data."""

from __future__ import annotations

import io
import json
import marshal
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stores
import torch
import xxhash
from test_flip import in_child

import torchcell_cache as tc
from torchcell_cache.core.sealed import seal
from torchcell_cache.errors import CacheError
from torchcell_cache.store.manifest import manifest_path, processed_dir, read_manifest

Room = Callable[[], Path]
FORBIDDEN = (
    *("pickle.find_class", "marshal.loads", "marshal.load", "exec", "compile", "import", "code.__new__"),
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "ctypes.dlopen"),
)


class Canary:
    """Leaves a directory behind wherever it is unpickled."""

    def __init__(self, nest: Path) -> None:
        self.nest = nest

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.nest / "sang"),)


def payloads(nest: Path) -> dict[str, bytes]:
    """Bytes that do something when the wrong loader meets them."""
    canary, out = Canary(nest), {}
    for protocol in (0, 2, pickle.HIGHEST_PROTOCOL):
        out[f"pickle{protocol}"] = pickle.dumps(canary, protocol)
    for name, zipped in (("torch_zip", True), ("torch_legacy", False)):
        buffer = io.BytesIO()
        torch.save({"x": canary}, buffer, _use_new_zipfile_serialization=zipped)
        out[name] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.array([canary], dtype=object), allow_pickle=True)
    out["npy_object"] = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([canary], dtype=object))
    out["npz_object"] = buffer.getvalue()
    code = f"import os; os.mkdir({str(nest / 'sang')!r})"
    out["source"] = code.encode()
    out["marshal"] = marshal.dumps(compile(code, "planted", "exec"))
    out["yaml"] = f"!!python/object/apply:os.mkdir ['{nest}/sang']".encode()
    target = {"_target_": "os.mkdir", "path": f"{nest}/sang"}
    out["hydra"] = json.dumps(target).encode()
    out["numpy_header"] = b"\x93NUMPY\x01\x00" + (code + "\n").encode()
    return out


def test_the_canaries_can_sing(room: Room) -> None:
    nest = room()
    found = payloads(nest)
    for name in found:
        if name.startswith("pickle"):
            pickle.loads(found[name])
        elif name.startswith("torch"):
            torch.load(io.BytesIO(found[name]), weights_only=False)
        elif name.startswith(("npy", "npz")):
            loaded = np.load(io.BytesIO(found[name]), allow_pickle=True)
            loaded = loaded if name == "npy_object" else loaded["x"]
            assert loaded is not None
        else:
            continue
        (nest / "sang").rmdir()


def listen() -> list[str]:
    """From now on note every event that means that data became code."""
    heard: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN or event.startswith("shutil."):
            heard.append(f"{event}{arguments!r:.200}")

    sys.addaudithook(hook)
    return heard


def read_everything(root: Path, shape: str) -> str:
    """As a reader does, carrying on after each error so that every part is reached."""
    outcomes = []
    with stores.fresh_handles():
        for step in (
            lambda d: d.base_graph,
            lambda d: d.columns,
            lambda d: d.label_df,
            lambda d: d.perturbed,
            lambda d: d.num_classes,
            lambda d: [d[k] for k in range(len(d))],
            lambda d: d.__getitems__(list(range(len(d)))),
            repr,
        ):
            try:
                step(tc.PreprocessedDataset(root))
                outcomes.append("ok")
            except CacheError as error:
                outcomes.append(type(error).__name__)
    return " ".join(outcomes)


def put_record(root: Path, index: int, body: bytes) -> None:
    """Store a body under a key with the checksum that belongs to it."""
    number = index // stores.SHARD
    seed = read_manifest(root).shards[number].seed
    checksum = xxhash.xxh3_128_intdigest(body, index) % (1 << 64) ^ seed

    def put(records: list[bytes]) -> None:
        records[index % stores.SHARD] = checksum.to_bytes(8, "little") + body

    stores.edit_records(root, number, put)


def records(root: Path, payload: bytes) -> Iterator[Callable[[], None]]:
    with stores.fresh_handles():
        body = bytes(tc.PreprocessedDataset(root).generation.read([8])[0][8:])
    for planted in (
        payload,
        body[:1] + payload,
        body[:9] + payload,
        body + payload,
        body[: len(body) // 2] + payload + body[len(body) // 2 :],
        body[: -len(payload)] + payload if len(payload) < len(body) else payload + body,
    ):
        yield lambda planted=planted: put_record(root, 8, planted)


def sidecars(root: Path, payload: bytes) -> Iterator[Callable[[], None]]:
    manifest = read_manifest(root)
    for entry in stores.files_of(manifest):
        path = processed_dir(root) / manifest.generation / entry.name
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        planted = [payload, content + payload]
        if path.suffix == ".safetensors":
            planted += [
                content[:8] + payload[:length].ljust(length) + content[8 + length :],
                len(payload).to_bytes(8, "little") + payload + content[8 + length :],
                content[: 8 + length] + payload + content[8 + length + len(payload) :],
            ]
        for data in planted:
            yield lambda path=path, data=data: path.write_bytes(data) and None


def base_graph_texts(root: Path, payload: bytes) -> Iterator[Callable[[], None]]:
    """Values of every kind of the typed JSON replaced by the payload's text, or by objects that name code."""
    path = processed_dir(root) / read_manifest(root).generation / "base_graph.json"
    if not path.exists():
        return
    document, text = json.loads(path.read_bytes()), payload.decode("latin-1")
    objects = [
        text,
        {"_target_": "os.mkdir", "_args_": [text]},
        {"__reduce__": ["os.mkdir", [text]]},
        [text] * 3,
    ]
    for place in list(places(document))[:: max(1, len(list(places(document))) // 12)]:
        for value in objects:
            edited = json.loads(path.read_bytes())
            put(edited, place, value)
            yield lambda edited=edited: path.write_text(json.dumps(edited)) and None


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*at, key))


def put(document: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        document = document[key]
    if place:
        document[place[-1]] = value


def manifests(root: Path, payload: bytes) -> Iterator[Callable[[], None]]:
    """The file itself, and sealed documents whose schema names code."""
    manifest, text = read_manifest(root), payload.decode("latin-1")
    content = manifest_path(root).read_bytes()
    for data in (payload, content + payload, payload + content, seal({"payload": text})):
        yield lambda data=data: manifest_path(root).write_bytes(data) and None
    schema_places = list(places(manifest.schema))[1:]
    for place in schema_places:
        for value in (
            text,
            {"_target_": "os.mkdir", "_args_": [text]},
            [text],
            "os.mkdir",
            "builtins.eval",
            None,
            -1,
            1 << 40,
        ):
            edited = json.loads(json.dumps(manifest.schema))
            put(edited, place, value)
            yield lambda edited=edited: stores.put_manifest(root, replace(manifest, schema=edited))


def plant(
    root: Path, shape: str, nest: Path, names: list[str], kinds: list[Callable[..., Any]], fit: bool
) -> bytes:
    """One letter per planted payload: `.` if reading gave data or typed errors, and nothing else happened."""
    warnings.simplefilter("ignore")
    read_everything(root, shape)
    keep = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    found, letters = payloads(nest), b""
    for name in names:
        for kind in kinds:
            for step in list(kind(root, found[name])):
                step()
                if fit:
                    stores.fit_digests(root)
                heard = HEARD if HEARD is not None else []
                del heard[:]
                outcome = read_everything(root, shape)
                assert heard == [], (name, kind.__name__, heard)
                assert not any(nest.iterdir()), (name, kind.__name__, outcome)
                for path, content in keep.items():
                    if path.read_bytes() != content:
                        path.write_bytes(content)
                letters += b"."
    return letters


HEARD: list[str] | None = None


def listening(work: Callable[[], bytes]) -> bytes:
    global HEARD
    HEARD = listen()
    return work()


@pytest.mark.parametrize("shape", ["generic", "perturbation"])
@pytest.mark.parametrize(
    ("kinds", "fit", "least"),
    [
        ([records], True, 60),
        ([sidecars], True, 100),
        ([base_graph_texts], True, 0),
        ([manifests], False, 50),
    ],
    ids=["records", "sidecars", "base graph texts", "manifest"],
)
def test_planted_code_never_runs(
    room: Room, shape: str, kinds: list[Callable[..., Any]], fit: bool, least: int
) -> None:
    built, nest = room() / "built", room()
    stores.build(built, shape)
    root = stores.copy_store(built, room() / "s")
    names = list(payloads(nest))
    if kinds == [manifests] or kinds == [base_graph_texts]:
        names = ["pickle0"]
    work = lambda: listening(lambda: plant(root, shape, nest, names, kinds, fit))  # noqa: E731
    assert len(in_child(work, kinds[0].__name__)) >= least


@pytest.mark.campaign
@pytest.mark.parametrize("shape", ["generic", "perturbation"])
@pytest.mark.parametrize("kind", [manifests, base_graph_texts])
def test_every_planted_code_in_every_text(
    room: Room, shape: str, kind: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    built, nest = room() / "built", room()
    stores.build(built, shape)
    root, names = stores.copy_store(built, room() / "s"), list(payloads(nest))
    work = lambda: listening(lambda: plant(root, shape, nest, names, [kind], kind is base_graph_texts))  # noqa: E731
    record_property("places", len(in_child(work, kind.__name__)))


def test_planted_code_does_not_run_when_an_unfinished_build_goes_on(room: Room) -> None:
    for name, payload in payloads(room()).items():
        root, nest = room(), room()
        stores.build(root, "delta")
        wanted = stores.facts(root)
        payload = payloads(nest)[name]
        folder = processed_dir(root) / wanted["generation"]
        manifest_path(root).unlink()
        for path in (folder / "shard-00001.json", folder / "build.json", folder / "columns.safetensors"):
            path.unlink()
            path.write_bytes(payload)
        for path in (processed_dir(root) / ".lock", processed_dir(root) / ".status.json"):
            path.write_bytes(payload)
        stores.build(root, "delta")
        assert stores.facts(root) == wanted
        assert not any(nest.iterdir())
