"""`python -m server.client`: see `cli`."""

import sys

from .cli import main

sys.exit(main())
