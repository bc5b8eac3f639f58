"""`python -m bench`: see `cli`."""

import sys

from server import grpc_core

grpc_core.switch(grpc_core.CLIENT)

if __name__ == "__main__":
    from .cli import main

    sys.exit(main())
