"""``python -m analysis`` in a checkout: the package is `hiddenweights.analysis`."""

import sys

from hiddenweights.analysis.commands import main

if __name__ == "__main__":
    sys.exit(main())
