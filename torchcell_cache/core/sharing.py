"""One file under two names, or a copy where the file system knows no links."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from torchcell_cache.core.files import fsync_file, replace_file, temp_path
from torchcell_cache.core.hints import repair_hint
from torchcell_cache.errors import (
    CorruptShardError,
)

_NO_SECOND_NAME = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def share_file(path: Path, target: Path) -> None:
    """Give a published file a second name; copy it where the file system has no hard links."""
    temporary = temp_path(target)
    try:
        os.link(path, temporary)
    except FileNotFoundError:
        if path.exists():
            raise
        raise CorruptShardError(f"{path} is missing", path=path, fix=repair_hint(path)) from None
    except OSError as error:
        if error.errno not in _NO_SECOND_NAME:
            raise
        shutil.copyfile(path, temporary)
        temporary.chmod(0o444)
        fsync_file(temporary)
    replace_file(temporary, target)
