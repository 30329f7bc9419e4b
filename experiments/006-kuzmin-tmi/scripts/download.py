"""Fetch the public originals of the base graph into a folder; once, where there is a network.

    python experiments/006-kuzmin-tmi/scripts/download.py FOLDER [channels=neighborhood,fusion,cooccurence,database]

- yeast-GEM 9.0.2, the YAML file of the release on GitHub (CC BY 4.0), compressed;
- the genes of the STRING networks as published with DANGO (https://github.com/ma-compbio/DANGO, MIT);
- STRING 9.1, *S. cerevisiae*, links with one score per channel (CC BY 3.0), cut into one table per channel.

What a pinned SHA-256 does not match is not kept. STRING publishes none: its file's digest is written to
``sources.json`` and compared from then on. Files that are there already stay. The knock-outs are computed from the
model: ``simulate_knockouts.py FOLDER``.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHANNELS = ("neighborhood", "fusion", "cooccurence", "coexpression", "experimental", "database")
DEFAULT_CHANNELS = ("neighborhood", "fusion", "cooccurence", "database")
SPECIES = "4932."
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Original:
    """A public file.

    Attributes:
        url: Where it is.
        sha256: Of its bytes, or ``None`` if nobody publishes it.
    """

    url: str
    sha256: str | None


ORIGINALS = {
    "model": Original(
        "https://raw.githubusercontent.com/SysBioChalmers/yeast-GEM/v9.0.2/model/yeast-GEM.yml",
        "ecfe5f816471f2f62921c9448cdd5bf9803263aaf9aa91da02d1969077786aad",
    ),
    "genes": Original(
        "https://raw.githubusercontent.com/ma-compbio/DANGO/b1c4f6fbda1bcde026399883fd74f300d3e619aa/"
        "data/yeast_network/yeast_string_genes.txt",
        "05e4968043601583ecad502bb95fcc46a1ec3bf89f4cba333a051302b759cab7",
    ),
    "string": Original(
        "http://string91.embl.de/newstring_download/protein.links.detailed.v9.1/"
        "4932.protein.links.detailed.v9.1.txt.gz",
        None,
    ),
}


class DownloadError(Exception):
    """A file could not be fetched, or is not the one expected."""


def fetch(original: Original, known: str | None = None, *, seconds: float = 60.0, say: bool = True) -> bytes:
    """The bytes of a file, checked.

    Args:
        original: The file.
        known: Digest of an earlier download, for files without a published one.
        seconds: How long the server may be silent.
        say: Whether to print progress.

    Raises:
        DownloadError: If the server cannot be reached, stops early, or sends another file.
    """
    request = urllib.request.Request(original.url, headers={"User-Agent": "torchcell-cache"})
    parts: list[bytes] = []
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            expected = int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(CHUNK):
                parts.append(chunk)
                if say:
                    print(f"\r{original.url}: {sum(map(len, parts)) / 1e6:.1f} MB", end="", file=sys.stderr)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise DownloadError(
            f"{original.url} cannot be fetched ({error})\n  fix: run this where there is a network and copy the folder"
        ) from None
    finally:
        if say and parts:
            print(file=sys.stderr)
    content = b"".join(parts)
    if len(content) < expected:
        raise DownloadError(
            f"{original.url}: {len(content)} of {expected} bytes came\n  fix: run the same command again"
        )
    found, wanted = hashlib.sha256(content).hexdigest(), original.sha256 or known
    if wanted and found != wanted:
        raise DownloadError(
            f"{original.url} is another file than expected: SHA-256 {found}, expected {wanted}\n  fix: check what "
            "changed there; nothing was kept"
        )
    return content


def channel_tables(
    links: str, genes: set[str], channels: tuple[str, ...]
) -> dict[str, list[tuple[str, str, int]]]:
    """Pairs of each channel from STRING's table of links, ascending, each once.

    Args:
        links: Lines ``protein1 protein2 <channel scores> combined_score``, names as ``4932.<gene>``, scores 0..1000.
        genes: Names to keep.
        channels: Wanted channels.

    Raises:
        DownloadError: If the header has no such columns.
    """
    lines = iter(links.splitlines())
    header = next(lines, "").split()
    if missing := [name for name in ("protein1", "protein2", *channels) if name not in header]:
        raise DownloadError(f"the links have no column {missing[0]!r}, they have {' '.join(header)}")
    first, second, *columns = (header.index(name) for name in ("protein1", "protein2", *channels))
    found: dict[str, dict[tuple[str, str], int]] = {channel: {} for channel in channels}
    for line in lines:
        cells = line.split()
        one, other = sorted(cells[k].removeprefix(SPECIES) for k in (first, second))
        if one == other or one not in genes or other not in genes:
            continue
        for channel, column in zip(channels, columns, strict=True):
            if (score := int(cells[column])) > 0:
                found[channel][one, other] = max(score, found[channel].get((one, other), 0))
    return {
        channel: sorted((a, b, score) for (a, b), score in pairs.items()) for channel, pairs in found.items()
    }


def write(path: Path, content: bytes) -> None:
    """Whole or not at all; ``.gz`` is compressed, the same way each time."""
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
    print(f"{path}: {len(content):,} bytes")


def download(
    folder: Path,
    channels: tuple[str, ...] = DEFAULT_CHANNELS,
    get: Callable[..., bytes] = fetch,
    originals: dict[str, Original] = ORIGINALS,
) -> None:
    """Fetch what is missing.

    Raises:
        DownloadError: As :func:`fetch`; what was fetched before stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("yeast-GEM*.yml*")):
        write(folder / "yeast-GEM-9.0.2.yml.gz", get(originals["model"]))
    if not (folder / "genes.txt").is_file():
        write(folder / "genes.txt", get(originals["genes"]))
    wanted = tuple(c for c in channels if not any(folder.glob(f"string_*_{c}.tsv*")))
    if wanted:
        record = folder / "sources.json"
        known = json.loads(record.read_text()) if record.is_file() else {}
        url = originals["string"].url
        packed = get(originals["string"], known.get(url))
        genes = set((folder / "genes.txt").read_text().split())
        try:
            links = gzip.decompress(packed).decode("ascii")
        except (OSError, EOFError, ValueError) as error:
            raise DownloadError(
                f"{url} is no compressed text ({error})\n  fix: run the same command again"
            ) from None
        for channel, pairs in channel_tables(links, genes, wanted).items():
            rows = "".join(f"{a}\t{b}\t{score / 1000:.3f}\n" for a, b, score in pairs)
            write(folder / f"string_v9_1_{channel}.tsv.gz", f"gene_a\tgene_b\tscore\n{rows}".encode())
        write(record, json.dumps({**known, url: hashlib.sha256(packed).hexdigest()}, indent=1).encode())


def main(arguments: list[str]) -> int:
    given = dict(argument.partition("=")[::2] for argument in arguments if "=" in argument)
    folders = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    channels = tuple((given.pop("channels", "") or ",".join(DEFAULT_CHANNELS)).split(","))
    if len(folders) != 1 or given or any(channel not in CHANNELS for channel in channels):
        print(f"{__doc__}\nchannels: {', '.join(CHANNELS)}", file=sys.stderr)
        return 0 if "--help" in arguments else 2
    try:
        download(Path(folders[0]).expanduser(), channels)
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
