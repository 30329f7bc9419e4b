"""The layers of docs/architecture.md: imports go down only, and dangerous imports stay in their one file."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import fresh
import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "torchcell_cache"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


@functools.cache
def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("lmdb", {"torchcell_cache.store.records"}),
        ("neo4j", {"torchcell_cache.sources.neo4j.driver"}),
        ("arcadedb_embedded", {"torchcell_cache.sources.neo4j.bolt"}),
        ("networkx", set()),
        ("yaml", {"torchcell_cache.sources.yeast.gem"}),
        ("h5py", {"torchcell_cache.sources.cells.h5ad"}),
        ("anndata", set()),
        ("scanpy", set()),
        ("cobra", None),
        ("fsspec", {"torchcell_cache.remote.bucket"}),
        ("s3fs", set()),
    ],
)
def test_a_risky_library_is_imported_in_its_own_file_only(library: str, allowed: set[str] | None) -> None:
    users = {
        name for name, path in MODULES.items() if any(i.split(".")[0] == library for i in imports_of(path))
    }
    if allowed is None:
        assert all(name.startswith("torchcell_cache.sources.") for name in users)
    else:
        assert users <= allowed


def test_hydra_is_imported_by_the_command_line_only() -> None:
    users = {
        name for name, path in MODULES.items() if any(i.split(".")[0] == "hydra" for i in imports_of(path))
    }
    assert all(name.startswith("torchcell_cache.cli") for name in users)


@pytest.mark.parametrize(
    "room",
    [
        "codec",
        "store.records",
        "core.samples",
        "errors",
        "core.files",
        "store.manifest",
        "builder.workers",
        "graph.removal",
    ],
)
def test_rooms_of_the_light_worker_import_no_torch(room: str) -> None:
    script = f"import sys; import torchcell_cache.{room}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_single_cell_libraries_are_loaded_where_a_file_is_opened() -> None:
    libraries = "('h5py', 'anndata', 'scanpy', 'scipy.sparse')"
    script = f"import sys; import torchcell_cache.sources.cells.source; sys.exit(any(m in sys.modules for m in {libraries}))"
    assert fresh.run([sys.executable, "-c", script]).returncode == 0


def test_importing_the_package_is_free() -> None:
    heavy = "('torch', 'lmdb', 'numpy', 'hydra', 'neo4j')"
    script = f"import sys; import torchcell_cache; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


NEEDLESS = """
import sys
import torchcell_cache as tc
ds = tc.build(sys.argv[1], source=tc.testing.tiny_source(), processor=tc.LazySubgraphRepresentation(), progress=False)
for name in tc.__all__:
    getattr(tc, name)
next(iter(tc.CacheLoader(ds, batch_size=4))).to_pyg()
tc.verify(sys.argv[1], progress=False)
from torchcell_cache.cli import main
assert main(["--help"]) == 0 and main(["preprocess", "source=neo4j", "--help"]) == 0
sys.exit(", ".join({name.split(".")[0] for name in sys.modules} & {"neo4j", "hydra", "omegaconf", "antlr4", "lightning"}) or 0)
"""


def test_neo4j_and_hydra_are_loaded_by_what_needs_them(tmp_path: Path) -> None:
    """Both are always installed; only a server's samples need the one, settings of the command line the other."""
    done = fresh.run([sys.executable, "-c", NEEDLESS, tmp_path / "store"], text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_resolves() -> None:
    import torchcell_cache as tc

    for name in tc.__all__:
        assert getattr(tc, name) is not None
    with pytest.raises(AttributeError, match="PreprocessedDataset"):
        _ = tc.PreprocesedDataset


def test_nothing_that_executes_data_is_on_the_read_path() -> None:
    banned = {
        "pickle.loads",
        "pickle.load",
        "torch.load",
        "numpy.load",
        "np.load",
        "yaml.load",
        "marshal.loads",
        "eval",
        "exec",
    }
    calls = {}
    for name, path in MODULES.items():
        if name.startswith(("torchcell_cache.sources.", "torchcell_cache.cli")):
            continue
        if (
            name == "torchcell_cache.testing.elsewhere"
        ):  # a process that check_processor starts, and nothing that is stored
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in banned:
                if "allow_pickle=False" in map(ast.unparse, node.keywords):
                    continue  # numbers only
                calls[name] = ast.unparse(node.func)
    assert calls == {}
    users = {
        name for name, path in MODULES.items() if "torchcell_cache.testing.elsewhere" in imports_of(path)
    }
    assert users == {"torchcell_cache.testing.checks"}
