"""Export: from a trained checkpoint to a bundle (`python -m export`), and the engines that run it (`export.runtime`).

This module imports nothing heavy: the server imports `export.runtime`, and with it this file.
"""


class ExportError(ValueError):
    """A checkpoint that cannot be exported; the message names the model, the network and what is wrong."""


def graph_file(network: str) -> str:
    """The name of a network's graph in the bundle."""
    return f"{network}.onnx"


def weights_file(network: str) -> str:
    """The name of the weights beside a large graph."""
    return f"{network}.onnx.safetensors"
