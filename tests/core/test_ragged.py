"""Rows of different lengths, list by list."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from torchcell_cache.core.ragged import ascends, offsets


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5), st.sampled_from(["u2", "u4", "i8"]))
def test_lists_that_rise_are_told_from_others(lists, dtype) -> None:
    flat = np.array([item for row in lists for item in row], dtype=dtype)
    ptr = offsets(np.array([len(row) for row in lists], dtype=np.int64))
    assert ascends(flat, ptr) == all(row == sorted(set(row)) for row in lists)
