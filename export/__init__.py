"""Export: from a trained checkpoint to a bundle (`python -m export`), and the engines that run it (`export.runtime`).

This module imports nothing heavy: the server imports `export.runtime`, and with it this file.
"""


class ExportError(ValueError):
    """A checkpoint that cannot be exported; the message names the model, the network and what is wrong."""
