"""The server: gRPC in, programs through one step batcher, pictures and scores out."""

__version__ = "0.1.0"
