"""Keys of the command line are parameters of what it calls: read from the text, as Python itself reads them."""

import inspect
import subprocess
import sys
from pkgutil import resolve_name

import pytest

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.cli.registry import COMMANDS, GROUPS, keys_of, keys_of_choice
from torchcell_cache.cli.settings import read_settings
from torchcell_cache.cli.signatures import REQUIRED, _read

PLACES = sorted(
    {place for names in (COMMANDS, *GROUPS.values()) for places in names.values() for place in places}
)
CHOICES = [(group, name) for group, names in GROUPS.items() for name in names]


@pytest.mark.parametrize("place", PLACES)
def test_a_signature_is_what_python_says(place):
    where, _, left_out = place.partition(" - ")
    parameters = inspect.signature(resolve_name(f"torchcell_cache.{where}")).parameters
    assert set(left_out.split()) <= set(parameters)
    named = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and name not in left_out.split()
    }
    keys = _read(place).keys
    assert list(keys) == list(named)
    for name, default in named.items():
        said = keys[name].default
        if default is inspect.Parameter.empty:
            assert said == REQUIRED
        elif said != REQUIRED:  # a name, which the command says again
            plain = list(default) if isinstance(default, tuple) else default
            assert said == ({} if keys[name].kind is dict and default is None else plain), name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_a_command_is_explained(command, capsys):
    for name, key in keys_of(command).items():
        assert key.help or key.choices, name
        assert not key.choices or key.default in (*key.choices, REQUIRED)
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    for name, key in keys_of(command).items():
        if name not in GROUPS:
            assert f"\n{name}: {'(required)' if key.default == REQUIRED else ''}" in said


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_key_of_a_choice_is_explained_and_taken(group, name):
    keys = keys_of_choice(group, name)
    assert all(key.help for key in keys.values())
    for spec in keys.values():
        assert not spec.choices or spec.default in (None, *spec.choices)
    required = [f"{key}=x" for key, spec in keys.items() if spec.default == REQUIRED]
    source = [] if group == "source" else ["source=ecoli"]
    settings = (
        read_settings("preprocess", ["root=r", f"{group}={name}", *source, *required])
        if name != "none"
        else None
    )
    assert settings is None or set(keys) <= settings.values.keys()


def test_status_answers_at_once(tmp_path):
    """Less than half a second is a matter of what is loaded: of a store, of nothing, and of a misspelt key."""
    tc.build(tmp_path / "s", source=tc.testing.tiny_source(4), processor=tc.Perturbation(), progress=False)
    script = (
        "import sys; from torchcell_cache.cli import main;"
        "codes = [main(['status', f'root={sys.argv[1]}/s']), main(['status', sys.argv[1]]), main(['status', 'x=1'])];"
        "heavy = {'torch', 'hydra', 'omegaconf', 'lmdb', 'torchcell_cache.builder'} & set(sys.modules);"
        "assert codes == [0, 65, 2], codes; assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
