"""``python -m analysis`` in a checkout is ``hiddenweights analysis``."""

import sys

from hiddenweights.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["analysis", *sys.argv[1:]]))
