"""``python -m sweeps`` in a checkout: the package is `hiddenweights.sweeps`."""

import sys

from hiddenweights import cli
from hiddenweights.sweeps.commands import COMMANDS

if __name__ == "__main__":
    sys.exit(cli.run(COMMANDS, "sweeps"))
