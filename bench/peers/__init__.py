"""The servers that people would otherwise use, on the same engine: to be compared with (`python -m bench compare`).

To add a peer: one module here that serves (or loops), one file in `requirements/`, one line in `registry.PEERS`.
"""
