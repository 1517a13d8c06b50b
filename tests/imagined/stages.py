"""A command of fedscale's on the imagined GPU: `stages.py run CONFIG key=value …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.imagined.gpu import imagined, take_over

take_over()

from fedscale.cli import app  # noqa: E402

with imagined():
    app(sys.argv[1:])
