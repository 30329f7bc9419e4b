"""A graph database for tests: the server named in NEO4J_URI, else an embedded one that can be killed and started again."""

import importlib.util
import os
import secrets
import socket
from pathlib import Path

import numpy as np
from services import require

from torchcell_cache.sources.neo4j.bolt import embedded_bolt
from torchcell_cache.sources.neo4j.driver import Login, writing
from torchcell_cache.sources.neo4j.experiment_loader import load_experiments

PASSWORD = "pass-" + secrets.token_hex(12)
# The servers of tests live for seconds: the quick compiler only, and one thread for garbage.
os.environ.setdefault("ARCADEDB_JVM_ARGS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")


class Embedded:
    """A server of one's own, always on the same port."""

    def __init__(self, directory: Path) -> None:
        require(importlib.util.find_spec("arcadedb_embedded") is not None, "needs arcadedb-embedded")
        self.directory = directory
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.start()

    def start(self) -> None:
        self._block = embedded_bolt(self.directory, PASSWORD, self.port)
        self.server = self._block.__enter__()
        self.login = self.server.login

    def kill(self) -> None:
        self.server.kill()
        self.stop()

    def stop(self) -> None:
        self._block.__exit__(None, None, None)


class Named:
    """The server named in the environment; what tests write has names of its own and is removed again."""

    def __init__(self) -> None:
        login = Login.from_settings()
        self.login = {
            "uri": login.uri,
            "username": login.username,
            "password": login.password,
            "database": login.database,
        }

    def stop(self) -> None:
        pass


class Table:
    """Experiments as they were before they went into the database."""

    def __init__(self, num_rows: int, *, num_genes: int = 60, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.name = f"T{secrets.token_hex(4)}"
        self.genes = [f"{self.name}_{k:04d}" for k in range(num_genes)]
        self.rows = [self._row(k, random) for k in range(num_rows)]

    def _row(self, k: int, random: np.random.Generator) -> dict:
        chosen = random.choice(len(self.genes), int(random.integers(1, 4)), replace=False)
        row = {
            "id": f"{self.name}-{k:07d}",
            "genes": [self.genes[g] for g in chosen],
            "labels": {"fitness": float(random.random())},
            "statistics": {},
        }
        if k % 3:
            row["statistics"]["fitness_se"] = float(random.random())
        return row

    def networks(self) -> dict:
        random = np.random.default_rng(1)
        names = np.array(self.genes)
        return {
            name: tuple(names[random.integers(0, len(names), (2, 40))]) for name in ("physical", "regulatory")
        }

    def load(self, login: dict) -> None:
        assert load_experiments(rows=self.rows, dataset=self.name, progress=False, **login) == len(self.rows)

    def remove(self, login: dict) -> None:
        with writing(Login.from_settings(**login)) as run:
            run("MATCH (e:Experiment) WHERE e.id STARTS WITH $name DETACH DELETE e", {"name": self.name})
            run("MATCH (p:Perturbation) WHERE p.id IN $ids DETACH DELETE p", {"ids": self.genes})

    @property
    def everything(self) -> str:
        """A free query for just these, without $after: an interrupted fetch runs it again."""
        return (
            "MATCH (d:Dataset)<-[:ExperimentMemberOf]-(e:Experiment)<-[:ExperimentReferenceOf]-"
            "(ref:ExperimentReference) WHERE d.id = $dataset WITH DISTINCT e, ref ORDER BY e.id RETURN e, ref"
        )


def assert_holds(dataset, table: Table) -> None:
    """Every sample of a preprocessed store against the row it was loaded from."""
    assert len(dataset) == len(table.rows)
    index = {name: k for k, name in enumerate(sorted(table.genes))}
    for k, row in enumerate(table.rows):
        sample = dataset[k]["gene"]
        wanted = sorted(row["genes"], key=index.__getitem__)
        assert list(sample.ids_pert) == wanted
        assert sample.perturbation_indices.tolist() == [index[gene] for gene in wanted]
        assert sample.phenotype_values.tolist() == [np.float32(row["labels"]["fitness"])]
        statistic = row["statistics"].get("fitness_se")
        found = sample.phenotype_stat_values.tolist() if "phenotype_stat_values" in sample else []
        assert found == ([] if statistic is None else [np.float32(statistic)])
