"""``python -m torchcell_cache`` is the same program as ``torchcell-cache``."""

import sys

from torchcell_cache.cli import main

if __name__ == "__main__":
    sys.exit(main())
