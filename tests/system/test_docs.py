"""The documents say what is so: their code runs and prints what they show, their links lead somewhere."""

import datetime
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import fresh
import pytest
import yaml

from torchcell_cache import errors
from torchcell_cache.core.sealed import unseal
from torchcell_cache.store.shard_entry import FILE_NAMES
from torchcell_cache.testing import tiny_source

ROOT = Path(__file__).resolve().parents[2]
RUNNABLE = (
    "README.md",
    "docs/tutorial.md",
    "docs/clusters.md",
    "docs/neo4j.md",
    "docs/sampling.md",
    "docs/node_selection.md",
    "docs/single_cell.md",
    "docs/gears.md",
    "docs/subsets.md",
    "docs/object_storage.md",
    "docs/growing.md",
    "docs/tables.md",
)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MARK = "=== block"
# Processes that a block starts import the script again and must not run it again.
DRIVER = """
if __name__ == "__main__":
    import json, pathlib
    for number, code in enumerate(json.loads(pathlib.Path("blocks.json").read_text())):
        exec(compile(code, f"<block {number}>", "exec"), globals())
        print(%r, flush=True)
"""


def blocks_of(path: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def run_blocks(path: Path, directory: Path) -> list[str]:
    """What each Python block of a document printed, run as one script in an empty directory."""
    code = []
    for language, body in blocks_of(path):
        if language == "python":
            module = re.match(r"# (\w+\.py)\n", body)
            if module:
                (directory / module[1]).write_text(body, encoding="utf-8")
            code.append("" if module else body)
    (directory / "blocks.json").write_text(json.dumps(code), encoding="utf-8")
    script = directory / "driver.py"
    script.write_text(DRIVER % f"{MARK}", encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "error::UserWarning",
    }
    done = fresh.run(
        [sys.executable, script.name],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.replace(str(directory), "/home/you").split(f"{MARK}\n")
    return printed[: len(code)]


@pytest.mark.parametrize("name", RUNNABLE)
def test_code_runs_and_prints_what_the_document_shows(name: str, tmp_path: Path) -> None:
    printed = iter(run_blocks(ROOT / name, tmp_path))
    output = None
    for language, body in blocks_of(ROOT / name):
        if language == "python":
            output = next(printed)
        elif language == "text" and output:
            assert body == output
            output = None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_resolve(path: Path) -> None:
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.exists(), f"{target} does not exist"
            assert not anchor or anchor in headings_of(there), f"{target}: no such heading"


def headings_of(path: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_files_that_documents_name_exist() -> None:
    for path in DOCUMENTS:
        for name in re.findall(
            r"`((?:tests|experiments|docs|slurm|torchcell_cache)/[\w./-]+\.\w+)`",
            path.read_text(encoding="utf-8"),
        ):
            assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_every_path_of_the_newcomers_page_leads_somewhere() -> None:
    """Files and folders, in its text and in its commands; rooms by their short names too."""
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w./])(\.?[a-z_]+/[\w./-]*|[A-Z]+\.md)", text)) - {".venv/bin/activate"}
    assert len(names) > 40
    places = (ROOT, ROOT / "docs", ROOT / "torchcell_cache")
    assert [name for name in sorted(names) if not any((place / name).exists() for place in places)] == []
    targets = set(
        re.findall(
            r"make ((?:[a-z]+ ?)+)",
            " ".join(body for _, body in blocks_of(ROOT / "docs" / "contributing.md")),
        )
    )
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in made for each in targets for target in each.split())


def test_the_format_names_every_key_and_file_of_a_store(tmp_path: Path) -> None:
    import torchcell_cache as tc

    ds = tc.build(
        tmp_path,
        source=tiny_source(),
        processor=tc.LazySubgraphRepresentation(gpr="rule"),
        storage="delta",
        progress=False,
    )
    directory = ds.generation.directory
    text = (ROOT / "docs/format.md").read_text(encoding="utf-8")
    manifest = unseal((directory / "manifest.json").read_bytes())
    sidecar = unseal((directory / "shard-00000.json").read_bytes())
    plan = json.loads((directory / "build.json").read_text())
    keys = {
        *manifest,
        *manifest["schema"],
        *manifest["schema"]["structured"],
        *manifest["shards"][0],
        *sidecar,
        *plan,
    }
    keys |= {*manifest["files"][0], *manifest["fingerprint"], *ds.generation.columns, *FILE_NAMES}
    keys |= {path.name for path in directory.iterdir()} | {
        "source_ids",
        "source_id_length",
        "value_count",
        "y",
    }
    words = set(re.findall(r"[\w.-]+", text))
    assert keys - words == set()


def test_errors_and_exit_codes_are_those_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"`(\w+Error)`", text)):
        assert hasattr(errors, name)
    for code in (
        errors.EXIT_USAGE,
        errors.EXIT_CORRUPT_OR_STALE,
        errors.EXIT_CANNOT_WRITE,
        errors.EXIT_INTERRUPTED,
    ):
        assert f"`{code}`" in text


@pytest.mark.parametrize("target", ["demo", "test", "lint", "types", "docs", "dist", "bench", "campaign"])
def test_make_knows_what_the_readme_promises(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_notebook_is_the_tutorial() -> None:
    make = runpy.run_path(str(ROOT / "docs" / "notebook.py"))["notebook"]
    text = (ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8")
    assert text == make((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")), (
        "python docs/notebook.py"
    )
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    code = [
        body.rstrip("\n")
        for language, body in blocks_of(ROOT / "docs" / "tutorial.md")
        if language == "python"
    ]
    assert [re.sub(r"%%writefile \S+\n", "", cell) for cell in cells] == code


def test_the_reference_has_every_public_name() -> None:
    import torchcell_cache as tc

    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    whole = {"errors", "nn", "sources", "testing", "__version__", "Sample", "IncidenceIndex"}
    assert [
        name for name in tc.__all__ if name not in whole and not re.search(rf"\.{name}$", page, re.MULTILINE)
    ] == []


def test_the_version_is_said_once() -> None:
    from torchcell_cache import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    last = f"[{__version__}] - {citation['date-released']}"
    assert (project["version"], citation["version"], headings[1]) == (__version__, __version__, last)


def test_the_changelog_keeps_its_form() -> None:
    """Keep a Changelog: newest first, dated, changes under six headings, each once per version and never empty."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.startswith("# Changelog\n")
    versions = [part.partition("\n") for part in text.split("\n## ")[1:]]
    found = [
        re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)", name) for name, _, _ in versions[1:]
    ]
    assert all(found)
    numbers = [tuple(map(int, each.groups()[:3])) for each in found if each]
    dates = [datetime.date.fromisoformat(each[4]) for each in found if each]
    assert (numbers, dates) == (sorted(numbers, reverse=True), sorted(dates, reverse=True))
    for name, _, body in versions:
        kinds = re.findall(r"^### (.*)$", body, re.MULTILINE)
        assert len(kinds) == len(set(kinds)), name
        assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}, name
        assert not re.search(r"^### .*\n\s*(?:###|\Z)", body, re.MULTILINE), name
        assert kinds or name == "[Unreleased]"


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem
)
def test_workflows_call_what_is_there(path: Path) -> None:
    """Checked with actionlint by hand; here that they parse, and that each command of theirs exists."""
    (job,) = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands:
        for script in re.findall(r"\.ci/\w+", command):
            assert os.access(ROOT / script, os.X_OK), script
            subprocess.run(["bash", "-n", ROOT / script], check=True)
        assert all(f"\n{target}:" in made for target in re.findall(r"make (\w+)", command))
    assert any(".ci/run" in command or "make dist" in command for command in commands)


def test_hooks_of_a_commit_run_what_make_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert {repo["repo"] for repo in hooks} == {"local"}, "nothing has to be fetched"
    entries = [hook["entry"] for repo in hooks for hook in repo["hooks"]]
    made = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(VENV)", ".venv")
    assert all(entry.replace(" --fix", "") in made for entry in entries), entries


def test_demo_arguments_are_checked_before_any_work() -> None:
    done = fresh.run(
        [sys.executable, "-m", "experiments.demo", "sample=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "samples" in done.stderr


@pytest.mark.parametrize("name", RUNNABLE)
def test_commands_in_documents_have_keys_that_exist(name: str) -> None:
    from torchcell_cache.cli.settings import read_settings

    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [
        line for language, body in BLOCK.findall(text) if language == "bash" for line in body.splitlines()
    ]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("torchcell-cache ")]
    assert commands or name != "README.md"
    for _, command, *arguments in commands:
        assert read_settings(command, arguments).command == command
