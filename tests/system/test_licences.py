"""Whoever installs the package gets permissive licences only; the extras that bring others are known."""

import re
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

COPYLEFT = re.compile(r"\b[AL]?GPL|GNU|EUPL|SSPL|CC-BY-(NC|SA)", re.IGNORECASE)
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|PSF|Python Software|MPL|Mozilla|ISC|OLDAP|Zlib|Unlicense", re.IGNORECASE
)


def needed(name: str, extra: str, found: dict[str, str]) -> dict[str, str]:
    """What a distribution says of its licence, and all it needs."""
    try:
        about = distribution(name)
    except PackageNotFoundError:  # of another platform, or an extra that is not installed here
        return found
    fields = about.metadata
    classes = [c for c in fields.get_all("Classifier") or [] if c.startswith("License")]
    key = re.sub(r"[-_.]+", "-", name).lower()
    found[key] = " ".join([fields.get("License-Expression") or (fields.get("License") or "")[:60], *classes])
    for line in about.requires or []:
        other = Requirement(line)
        again = re.sub(r"[-_.]+", "-", other.name).lower() in found
        if not again and (other.marker is None or other.marker.evaluate({"extra": extra})):
            needed(other.name, "", found)
    return found


def test_what_an_installation_brings_is_permissive() -> None:
    found = needed("torchcell_cache", "", {})
    assert {"torch", "torch-geometric", "lmdb", "neo4j", "hydra-core", "safetensors"} <= set(found)
    assert {name: said for name, said in found.items() if COPYLEFT.search(said)} == {}
    of_nvidia = re.compile(
        "(nvidia|cuda)-"
    )  # what builds of torch for CUDA bring: proprietary, and torch's choice
    doubtful = {name: said for name, said in found.items() if not PERMISSIVE.search(said)}
    assert {name: said for name, said in doubtful.items() if not of_nvidia.match(name)} == {}


def test_extras_with_copyleft_are_known() -> None:
    extras = ("table", "plot", "lightning", "graphdb", "singlecell", "s3", "gs", "az", "demo", "cluster")
    brought = {
        e: {n for n, s in needed("torchcell_cache", e, {}).items() if COPYLEFT.search(s)} for e in extras
    }
    assert {e: names for e, names in brought.items() if names} == {
        "demo": {"cobra", "python-libsbml", "swiglpk"}  # cobra's solvers: for making the embedded labels only
    }
