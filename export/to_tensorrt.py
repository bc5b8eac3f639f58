"""Builds TensorRT engines from a bundle's graphs, and keeps them beside the graphs as a cache.

`python -m export ... --tensorrt` does it ahead, a server when it loads a bundle for which there is none. Building takes
minutes and wants the GPU for itself: TensorRT times its kernels on it. An engine belongs to one GPU model, one TensorRT
version and the batch sizes that it was built for; when any of them changes it is built anew.

TensorRT 11 has strongly typed networks alone: what is computed in half precision is read off the graph's own types
(`export.precision`).

**Never run on TensorRT yet**: it cannot be installed where this was written. Written against NVIDIA's documentation and
the binding's source (`load_initializer` is of 10.13), tested against a fake that holds to them.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
import torch

from models.bundle import Bundle
from models.card import NetworkSpec

from .runtime import EngineError, engine_cache, gpu
from .runtime.device import batch_buckets
from .runtime.onnxruntime import read_graph

log = logging.getLogger(__name__)

OLDEST = 11
WORKSPACE_BYTES = 4 << 30
"""Most memory that one layer may take while it works."""
SETTINGS = f"1: no TF32, no auxiliary streams, {WORKSPACE_BYTES >> 30} GiB of workspace"
"""Part of an engine's key: what of `_configured` changes engines."""


LEVELS = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}


class Logger(trt.ILogger):
    """TensorRT's messages in the log of this process; `last_error` for messages of our own."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.last_error = "no reason given"

    def log(self, severity: Any, msg: str) -> None:
        level = LEVELS.get(severity.name, logging.DEBUG)  # what it calls INFO is a page for each engine
        if level == logging.ERROR:
            self.last_error = " ".join(msg.split())
        log.log(level, "TensorRT: %s", msg)


def load_or_build(bundle: Bundle, network: str, device: torch.device, largest: int, logger: Logger) -> trt.ICudaEngine:
    """A network's engine on a GPU, from the cache or built now.

    largest: rows of the largest batch.

    Raises:
        EngineError: the bundle has no such network, TensorRT is too old, or it refuses the graph; says why.
    """
    if int(trt.__version__.partition(".")[0]) < OLDEST:
        raise EngineError(f"TensorRT {trt.__version__} is installed, {OLDEST} or newer is needed")
    graph, weights = read_graph(bundle, network)
    found, entry = gpu.describe(device), bundle.manifest.graphs[network]
    machine = {"gpu": found.name, "capability": found.capability, "tensorrt": trt.__version__}
    key = {
        **machine,
        "precision": entry.precision,
        "batches": ",".join(map(str, batch_buckets(largest))),
        "graph": entry.sha256,
        "weights": entry.weights_sha256 or "",
        "settings": SETTINGS,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", found.name.lower()).strip("-")  # machines with other GPUs may share the files
    path = bundle.directory / f"{network}.{slug}.engine"
    with gpu.selected(device):
        runtime = trt.Runtime(logger)
        plan = engine_cache.read(path, key)
        engine = runtime.deserialize_cuda_engine(plan) if plan is not None else None
        if engine is None:
            log.info("%s: building a TensorRT engine for %s; this takes minutes", path, found.name)
            started = time.perf_counter()
            timings = _Timings(bundle.directory / f"{slug}.timing", machine)
            plan = _build(bundle.card.networks[network], graph, weights, largest, logger, timings, path)
            log.info("%s: built in %.0f s", path, time.perf_counter() - started)
            engine_cache.write(path, key, plan)
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"{path}: TensorRT cannot load the engine that it built: {logger.last_error}")
    return engine


class _Timings:
    """TensorRT's measurements of kernels, which make the next build on this machine faster."""

    def __init__(self, path: Path, key: engine_cache.Key) -> None:
        self.path, self.key = path, key

    def give(self, config: trt.IBuilderConfig) -> None:
        cache = config.create_timing_cache(engine_cache.read(self.path, self.key) or b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def keep(self, config: trt.IBuilderConfig) -> None:
        cache = config.get_timing_cache()
        if cache is None:
            return
        meanwhile = engine_cache.read(self.path, self.key)  # by another build at the same time
        others = config.create_timing_cache(meanwhile) if meanwhile is not None else None
        if others is not None:
            cache.combine(others, ignore_mismatch=False)
        engine_cache.write(self.path, self.key, bytes(cache.serialize()))


def _build(
    spec: NetworkSpec,
    graph: bytes,
    weights: dict[str, bytes],
    largest: int,
    logger: Logger,
    timings: _Timings,
    path: Path,
) -> bytes:
    """The serialized engine of a graph. weights: the files beside it, by name."""
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    kept = _parse(parser, graph, weights, path)
    config = _configured(builder, spec, largest)
    timings.give(config)
    plan = builder.build_serialized_network(network, config)
    del parser, kept  # the weights' memory is the parser's for as long as that lives
    if plan is None:
        raise EngineError(f"{path}: TensorRT could not build an engine: {logger.last_error}")
    timings.keep(config)
    return bytes(plan)


def _parse(parser: trt.OnnxParser, graph: bytes, weights: dict[str, bytes], path: Path) -> Sequence[Any]:
    """Give the parser the graph and, from memory and by name, the weights beside it, so that it follows no path.

    Returns what must outlive the parser.
    """
    kept = []
    done = parser.load_model_proto(graph)
    for contents in weights.values():
        data = np.frombuffer(contents, dtype=np.uint8)
        kept.append((contents, data))
        for name, (begin, end) in _places(contents).items():
            done = done and parser.load_initializer(name, data.ctypes.data + begin, end - begin)
    if not (done and parser.parse_model_proto()):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise EngineError(f"{path}: TensorRT refuses the graph: {'; '.join(reasons) or 'no reason given'}")
    return kept


def _places(contents: bytes) -> dict[str, tuple[int, int]]:
    """Where in a safetensors file each tensor begins and ends: behind 8 bytes with the header's length, and that."""
    length = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + length])
    offsets = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: (8 + length + begin, 8 + length + end) for name, (begin, end) in offsets.items()}


def _configured(builder: trt.Builder, spec: NetworkSpec, largest: int) -> trt.IBuilderConfig:
    """The builder's settings, and one profile a bucket: it takes any rows up to its own from beyond the one before."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    config.max_aux_streams = 0  # all of it on torch's stream
    least = 1
    for bucket in batch_buckets(largest):
        profile = builder.create_optimization_profile()
        for tensor in spec.inputs:
            narrow, wide = (least, *tensor.shape), (bucket, *tensor.shape)
            profile.set_shape(tensor.name, narrow, wide, wide)
        config.add_optimization_profile(profile)
        least = bucket + 1
    return config
