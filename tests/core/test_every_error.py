"""Errors travel between processes: every kind is made from one string, is pickled whole, says what to type."""

import inspect
import pickle

import pytest
from torch._utils import ExceptionWrapper

from torchcell_cache import errors

KINDS = sorted(
    (k for _, k in inspect.getmembers(errors, inspect.isclass) if issubclass(k, errors.CacheError)), key=str
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_arrives_as_it_was_sent(kind: type[errors.CacheError]) -> None:
    error = kind("what happened", path="/data/store", fix="torchcell-cache repair root=/data/store")
    assert "what happened" in str(error)
    assert error.fix is not None
    assert error.fix in str(error)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert type(copy) is kind
        assert (str(copy), copy.path, copy.fix, copy.code) == (str(error), error.path, error.fix, error.code)
    with pytest.raises(kind, match="what happened"):  # as torch raises what a worker raised
        ExceptionWrapper((kind, error, None)).reraise()


def test_there_are_many_kinds_and_each_has_an_exit_code() -> None:
    assert len(KINDS) > 15
    assert {kind.code for kind in KINDS} <= {1, 2, 65, 73, 75}
