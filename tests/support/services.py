"""What tests need of the machine: absent on a developer's machine it is a reason to skip, in CI a failure."""

import os

import pytest


def require(present: object, reason: str) -> None:
    """Skip the test unless ``present``; where ``CI`` is set, fail it: CI installs every service."""
    if present:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI must provide this: {reason}")
    pytest.skip(reason)
