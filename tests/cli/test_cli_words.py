"""What is typed in a shell and what the program advises to type: names of any kind, keys once, hints that can be pasted."""

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.cli.settings import read_settings
from torchcell_cache.cli.words import as_list, for_shell, mapping_of, names_of, typed
from torchcell_cache.errors import SettingError

NAMES = [
    "fitness", "Double mutant fitness (DMF)", "2024", "1e5", "true", "null", "a=b", "x:y", "p-value", "µmax", "ε", "#1", "a/b",
    "a,b", "it's", 'the "best"', "[log2]", "{x}", "back\\slash", "50%", "tab\there", "-1", "@home", "a.b.c", "~x", "!", "$5",
    "\\",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    where = tmp_path_factory.mktemp("words")
    source = tc.PerturbationTable(tc.testing.tiny_graph(), [["G0"]])
    processor = tc.LazySubgraphRepresentation()
    tc.build(where / "base", source=source, processor=processor, storage="perturbation", progress=False)
    return where


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


@given(st.lists(st.one_of(st.sampled_from(NAMES), st.text(min_size=1, max_size=12)), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_every_list_of_names_can_be_typed(names):
    assert names_of(as_list(names)) == names


def test_a_shell_gives_the_names_back():
    argument = f"source.phenotypes={as_list(NAMES)}"
    [again] = shlex.split(shlex.quote(argument))
    assert read_settings("preprocess", [*TABLE, again])["source"]["phenotypes"] == NAMES


TABLE = ["root=t", "source=table", "source.path=x.csv", "source.base_graph=base", "progress=false"]


@pytest.mark.parametrize("typed", ["a,b", "[[a]]", "[a,,b]", "{a:b}", "[a", "[a,]", "", "['a]"])
def test_what_is_no_list_of_names_is_answered(typed):
    with pytest.raises(SettingError, match=r"source\.phenotypes=") as caught:
        read_settings("preprocess", [*TABLE, f"source.phenotypes={typed}"])
    assert caught.value.fix


@pytest.mark.parametrize("name", ["Double mutant fitness (DMF)", "2024", "p,q", 'the "best"', "x (y) [z]"])
def test_a_column_of_any_name_becomes_the_label(name, tmp_path):
    quoted = '"' + name.replace('"', '""') + '"'
    with open("x.csv", "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(f"genes,{quoted}\nG0,0.5\n")
    assert main(["preprocess", f"root={tmp_path}/t", *TABLE[1:], f"source.phenotypes={as_list([name])}"]) == 0
    assert tc.PreprocessedDataset(tmp_path / "t").phenotype_info == [name]


def test_years_in_a_config_file_are_names(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "source: table\nsource.phenotypes: [2024, 2025]\nsource.base_graph: base\n"
    )
    read = read_settings("preprocess", ["root=t", f"config={tmp_path}/c.yaml", "source.path=x.csv"])
    assert read["source"]["phenotypes"] == ["2024", "2025"]


@pytest.mark.parametrize(
    ("command", "arguments", "key"),
    [
        ("select", ["root=s", "n=3", "n=4"], "n"),
        ("select", ["root=s", "root=s", "n=3"], "root"),
        ("select", ["root=s", "genes=[a]", "genes=[b]"], "genes"),
        ("preprocess", [*TABLE, "source=ecoli"], "source"),
        ("preprocess", [*TABLE, "source.nan=keep", "source.nan=error"], "source.nan"),
        ("stage", ["root=s", "to=a", "to=b"], "to"),
        ("info", ["root=s", "json=true", "json=false"], "json"),
    ],
)
def test_a_key_given_twice_is_refused(command, arguments, key, capsys):
    assert main([command, *arguments]) == 2
    said = capsys.readouterr().err
    assert f"{key} is given twice" in said
    assert "fix: leave one of them out" in said


KEYS = {
    "source.nan",
    "source.unknown",
    "source.perturbed",
    "source.aliases",
    "source.empty",
    "processor.gpr",
    "storage",
    "keep",
}


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ('pass nan="keep"', "pass source.nan=keep"),
        ("pass nan='keep'", "pass source.nan=keep"),
        ('drop the row, or pass empty="keep"', "drop the row, or pass source.empty=keep"),
        ('use storage="delta", "full" or "auto"', 'use storage=delta, "full" or "auto"'),
        ('perturbed="gene names"', "'source.perturbed=gene names'"),
        ('perturbed=["a b", "c"]', "'source.perturbed=[a b, c]'"),
        ('aliases={"old": "new"}', """'source.aliases={"old": "new"}'"""),
        ('unknown="skip" (as=None), gpr="any"', "source.unknown=skip (as=None), processor.gpr=any"),
        ("storage=(0.8, 0.1, 0.1)", "'storage=[0.8, 0.1, 0.1]'"),
        ("keep=True, keep=None, keep=3", "keep=true, keep=null, keep=3"),
        ("pass unknown=...", "pass source.unknown=..."),
        ('other="x", x.nan="keep"', 'other="x", x.nan="keep"'),
        ('torchcell-cache repair root=s nan="keep"', 'torchcell-cache repair root=s nan="keep"'),
    ],
)
def test_hints_are_written_where_they_are_read(python, shell):
    assert for_shell(python, KEYS) == shell


ADVISED = {
    "genes,fitness\nG0,\n": "source.nan=",
    "genes,fitness\nG0|G99,0.5\n": "source.unknown=",
    "genes,fitness\n,0.5\n": "source.empty=",
    "genes,fitness\nG0|G0,0.5\n": "source.duplicate=",
    "genes\tfitness\nG0\t0.5\n": "source.delimiter=",
}


@pytest.mark.parametrize("text", ADVISED)
def test_what_is_advised_can_be_typed_and_works(text, tmp_path, capsys):
    """The hint of a refused table, pasted behind the command that was refused."""
    with open("x.csv", "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text + "G1,0.25\n".replace(",", text[5]))
    command = ["preprocess", f"root={tmp_path}/t", *TABLE[1:]]
    assert main(command) == 2
    fix = capsys.readouterr().err.partition("fix: ")[2]
    advised = [word.strip(",.()") for word in shlex.split(fix) if word.startswith(ADVISED[text])]
    assert advised, fix
    assert advised[0].isprintable()
    assert main([*command, advised[0]]) == 0
    with pytest.raises(tc.errors.CacheError) as caught:
        tc.PerturbationTable.from_csv("x.csv", tc.PreprocessedDataset("base").base_graph)
    assert ADVISED[text].removeprefix("source.") in str(caught.value)
    assert "source." not in str(caught.value).partition("fix: ")[2]


@pytest.mark.parametrize(
    "aliases", ['{"old one": "G0"}', "{old one: G0, x: G1}", "{'old one':G0}", "aliases.csv"]
)
@pytest.mark.parametrize("delimiter", ["tab", r"\t", "'\t'", "\t"])
def test_aliases_and_tabs_as_one_types_them(aliases, delimiter, tmp_path):
    with open("x.csv", "w", encoding="utf-8") as file, open("aliases.csv", "w", encoding="utf-8") as other:  # noqa: PTH123
        file.write("genes\tfitness\nold one\t0.5\n")
        other.write("old one,G0\n")
    given = [f"source.aliases={aliases}", f"source.delimiter={delimiter}"]
    assert main(["preprocess", f"root={tmp_path}/t", *TABLE[1:], *given]) == 0
    assert tc.select(tc.PreprocessedDataset(tmp_path / "t"), genes=["G0"]).tolist() == [0]


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["by=random", "controls=train"], "by=perturbation"),
        (["by=group", "column=x", "names=gears"], "by=perturbation"),
        (["by=random", "seen_fractions=[1,0,0]"], "by=perturbation"),
        (["by=random", "column=x"], "by=group"),
        (["test=[1]"], "by=group"),
    ],
)
def test_a_key_that_would_mean_nothing_is_refused(arguments, fix, capsys):
    assert main(["split", "root=base", *arguments]) == 2
    assert f"fix: {fix}" in capsys.readouterr().err


def test_stores_nearby_are_listed_only_where_the_root_has_none(capsys):
    assert main(["select", "root=base", "list=gone.txt"]) == 65
    assert "stores in" not in capsys.readouterr().err
    assert main(["info", "root=bse"]) == 65
    assert "stores in" in capsys.readouterr().err


def test_names_in_another_case_are_suggested(capsys):
    assert main(["select", "root=base", "genes=[g0]"]) == 2
    assert "no node 'g0'; did you mean 'G0'? it has" in capsys.readouterr().err
    assert main(["select", "root=base", "genes=[zzzzzz]"]) == 2
    assert "no node 'zzzzzz'; it has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("preprocess rot=x", "preprocess has no key 'rot'; did you mean 'root'?"),
        ("append root=base nonsense=1", "append has no key 'nonsense'; valid: "),
        ("preprocess root=x source=table path=x.csv", "no key 'path'; did you mean 'source.path'?"),
        ("preprocess root=x source=table gpr=rule", "no key 'gpr'; did you mean 'processor.gpr'?"),
        ("preprocess root=x source=tabel", "did you mean 'table'? valid: ecoli, yeast, table, anndata, neo4j, python\n"),
        ("verify root=base source=tabel", "valid: ecoli, yeast, table, anndata, neo4j, python, none\n"),
        ("preprocess root=x source=table source.base_graph=base source.path=base", "base is a directory, expected a file"),
        ("preprocess config=base", "config=base is a directory, expected a file"),
        ("preprocess config=bas", "config=bas: no such file"),
        ("info root=null", "root=null is not text"),
        ("help nothing", "unknown command 'nothing'"),
        ("info root=base bins=99999999999999999999", "expected a whole number from 1 to 10000"),
        ("bench root=base step_ms=1e20", "step_ms=1e+20: expected at most"),
        ("bench root=base seconds=1e20", "seconds=1e+20: expected at most"),
        ("split root=base bins=99999999999999999999", "expected a whole number from 1 to 1048576"),
    ],
)  # fmt: skip
def test_what_newcomers_type_is_answered(line, said, capsys):
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "should not happen" not in error


def test_help_of_a_command_is_given_either_way(capsys):
    assert main(["help", "select"]) == 0
    first = capsys.readouterr().out
    assert main(["select", "--help"]) == 0
    assert capsys.readouterr().out == first


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1), min_size=1))
def test_a_mapping_that_is_advised_is_read_as_it_was(names):
    assert mapping_of(typed(names)) == names


@pytest.mark.parametrize("text", ["{a}", "{a:}", "{a: b", "{a: {b: c}}", "{a: [b]}", "{"])
def test_what_is_no_mapping_is_taken_for_a_file(text):
    assert mapping_of(text) is None
