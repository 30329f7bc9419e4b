"""What a shared batch says to those who use it like a PyG batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from torchcell_cache.errors import SettingError


def unlike_pyg(batch: object, what: str) -> SettingError:
    """The error that says where the fields are; ``what`` continues the batch's name."""
    return SettingError(
        f"{type(batch).__name__}{what}: a shared batch gives samples by number, masks and labels, and keeps no fields of "
        "node and edge types",
        fix="batch.to_pyg(), the PyG batch that has them, or CacheLoader(..., expand=True)",
    )


class UnlikePyG:
    """The part of :class:`~torchcell_cache.batch.batch.SharedGraphBatch` that points to the PyG batch."""

    def __contains__(self, name: object) -> bool:
        raise unlike_pyg(self, f" has no fields of its own to look for {name!r:.80} in")

    if not TYPE_CHECKING:  # a type checker is to find unknown attributes

        def __getattr__(self, name: str) -> NoReturn:
            """Called for names that a batch does not have."""
            if name.startswith("_") or hasattr(type(self), name):
                return object.__getattribute__(self, name)  # raises what it raised
            raise AttributeError(str(unlike_pyg(self, f".{name}")))
