"""`python -m server`: see `cli`."""

import sys

from . import grpc_core

grpc_core.switch(grpc_core.SERVER)

if __name__ == "__main__":
    from .cli import main

    sys.exit(main())
