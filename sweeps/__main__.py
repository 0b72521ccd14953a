"""``python -m sweeps`` in a checkout is ``hiddenweights sweeps``."""

import sys

from hiddenweights.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["sweeps", *sys.argv[1:]]))
