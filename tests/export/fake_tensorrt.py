"""TensorRT 11's Python API as far as it is used here, strictly: names, signatures, types and the order of calls follow
NVIDIA's documentation and the source of the binding; what these do not know does not exist. Networks run in ONNX
Runtime on the CPU, reading and writing the addresses that they are given.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
from typing import Any

import numpy as np
import onnx
import onnxruntime

__version__ = "11.0.0"
MAGIC = b"fake-plan:" + __version__.encode() + b":"
MEMORY = 4096


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def __init__(self, min_severity: Severity = Severity.WARNING) -> None:
        self.ready = True


DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64", "INT4"])
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE", "TACTIC_DRAM", "TACTIC_SHARED_MEMORY"])
ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
)
# Those of 11: no precision is a builder's flag any more.
BuilderFlag = enum.Enum("BuilderFlag", ["DEBUG", "REFIT", "DISABLE_TIMING_CACHE", "TF32", "STRICT_NANS"])
TYPES = {onnx.TensorProto.FLOAT: DataType.FLOAT, onnx.TensorProto.INT64: DataType.INT64}
NUMPY = {DataType.FLOAT: np.float32, DataType.INT64: np.int64}


def check(condition: bool, message: str) -> None:
    """What the binding would refuse with a TypeError or crash on."""
    if not condition:
        raise TypeError(message)


def error(logger: ILogger, message: str) -> None:
    logger.log(Severity.ERROR, message)


class IHostMemory:
    """Only a buffer, as the real one: `bytes(...)` copies it."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bytes__(self) -> bytes:
        return self._data

    @property
    def nbytes(self) -> int:
        return len(self._data)


class INetworkDefinition:
    __slots__ = ("model",)

    def __init__(self) -> None:
        self.model: onnx.ModelProto | None = None


class ParserError:
    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser:
    __slots__ = ("_errors", "_given", "_logger", "_model", "_network")

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        check(isinstance(network, INetworkDefinition) and isinstance(logger, ILogger), "OnnxParser(network, logger)")
        self._network, self._logger = network, logger
        self._model: onnx.ModelProto | None = None
        self._given: dict[str, tuple[int, int]] = {}
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._errors[index])

    def _fail(self, message: str) -> bool:
        self._errors.append(message)
        return False

    def load_model_proto(self, model: bytes, path: str | None = None) -> bool:
        check(isinstance(model, bytes | bytearray | memoryview), "model: buffer")
        check(path is None, "a path is a way to other files of the machine")
        if self._model is not None:
            return self._fail("only one model can be loaded")
        try:
            self._model = onnx.load_from_string(bytes(model))
            onnx.checker.check_model(inlined(self._model, None), full_check=True)
        except Exception as reason:  # noqa: BLE001  # protobuf and checker raise what they like
            self._model = None
            return self._fail(f"model deserialization failed: {reason}")
        return True

    def load_initializer(self, name: str, data: int, size: int) -> bool:
        check(isinstance(name, str) and type(data) is int and type(size) is int, "load_initializer(str, int, int)")
        found = {t.name: t for t in self._model.graph.initializer} if self._model is not None else {}
        if name not in found:
            return self._fail(f"initializer {name} not found")
        place = {entry.key: entry.value for entry in found[name].external_data}
        if int(place["length"]) != size:
            return self._fail(f"initializer {name} has another size")
        self._given[name] = (data, size)
        return True

    def parse_model_proto(self) -> bool:
        if self._model is None:
            return self._fail("no model was loaded")
        outside = {t.name for t in self._model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
        if outside - self._given.keys():
            return self._fail(f"failed to open the file of {sorted(outside - self._given.keys())}")
        contents = {name: ctypes.string_at(*self._given[name]) for name in outside}
        self._network.model = inlined(self._model, contents)
        return True


def inlined(model: onnx.ModelProto, contents: dict[str, bytes] | None) -> onnx.ModelProto:
    """The model with its external weights inside; with zeros in their place for a check of types alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            length = next(int(entry.value) for entry in tensor.external_data if entry.key == "length")
            tensor.raw_data = bytes(length) if contents is None else contents[tensor.name]
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
    return copy


class IOptimizationProfile:
    __slots__ = ("shapes",)

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:
        if not len(min) == len(opt) == len(max) or not all(
            0 <= a <= b <= c for a, b, c in zip(min, opt, max, strict=True)
        ):
            raise ValueError(f"inconsistent shapes for {input}: {min} {opt} {max}")
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))


class ITimingCache:
    __slots__ = ("entries",)

    def __init__(self, entries: set[str]) -> None:
        self.entries = entries

    def serialize(self) -> IHostMemory:
        return IHostMemory(b"fake-timings:" + json.dumps(sorted(self.entries)).encode())

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        check(isinstance(input_cache, ITimingCache) and isinstance(ignore_mismatch, bool), "combine(cache, bool)")
        self.entries |= input_cache.entries
        return True


class IBuilderConfig:
    __slots__ = ("_cache", "flags_set", "max_aux_streams", "pools", "profiles")

    def __init__(self) -> None:
        self.flags_set = {BuilderFlag.TF32}  # TensorRT's default
        self.pools: dict[MemoryPoolType, int] = {}
        self.profiles: list[IOptimizationProfile] = []
        self.max_aux_streams = -1
        self._cache: ITimingCache | None = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        check(isinstance(pool, MemoryPoolType) and type(pool_size) is int, "set_memory_pool_limit(pool, int)")
        self.pools[pool] = pool_size

    def clear_flag(self, flag: BuilderFlag) -> None:
        check(isinstance(flag, BuilderFlag), "flag: BuilderFlag")
        self.flags_set.discard(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        check(isinstance(profile, IOptimizationProfile), "profile: IOptimizationProfile")
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        check(isinstance(serialized_timing_cache, bytes | bytearray), "serialized_timing_cache: buffer")
        if not serialized_timing_cache:
            return ITimingCache(set())
        begin = b"fake-timings:"
        if not serialized_timing_cache.startswith(begin):
            return None
        return ITimingCache(set(json.loads(serialized_timing_cache[len(begin) :])))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        check(isinstance(cache, ITimingCache) and isinstance(ignore_mismatch, bool), "set_timing_cache(cache, bool)")
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    built: list[IBuilderConfig] = []  # noqa: RUF012  # of all builders, for the tests

    def __init__(self, logger: ILogger) -> None:
        check(isinstance(logger, ILogger) and logger.ready, "ILogger.__init__ must have been called")
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        check(type(flags) is int, "flags: int")
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        check(isinstance(network, INetworkDefinition) and isinstance(config, IBuilderConfig), "(network, config)")
        if network.model is None:
            error(self._logger, "Network must have at least one output")
            return None
        if not config.profiles:
            error(self._logger, "Network has dynamic inputs, but no optimization profile has been defined")
            return None
        for value in network.model.graph.input:
            dims = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
            for profile in config.profiles:
                shapes = profile.shapes.get(value.name)
                if shapes is None or any(len(s) != len(dims) for s in shapes):
                    error(self._logger, f"{value.name}: dynamic input is missing dimensions in profile")
                    return None
                if any(d not in (-1, s[i]) for s in shapes for i, d in enumerate(dims)):
                    error(self._logger, f"{value.name}: static dimension does not match")
                    return None
        Builder.built.append(config)
        if config.get_timing_cache() is not None:
            config.get_timing_cache().entries |= {node.op_type for node in network.model.graph.node}
        graph = network.model.SerializeToString()
        header = {"profiles": [p.shapes for p in config.profiles], "sha256": hashlib.sha256(graph).hexdigest()}
        return IHostMemory(MAGIC + json.dumps(header).encode() + b"\n" + graph)


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        check(isinstance(logger, ILogger) and logger.ready, "ILogger.__init__ must have been called")
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        check(isinstance(serialized_engine, bytes | bytearray | memoryview), "serialized_engine: buffer")
        if not serialized_engine.startswith(MAGIC):
            error(self._logger, "Serialization assertion failed: version tag does not match")
            return None
        header, _, graph = serialized_engine[len(MAGIC) :].partition(b"\n")
        return ICudaEngine(json.loads(header)["profiles"], onnx.load_from_string(graph), self._logger)


class ICudaEngine:
    __slots__ = ("_graph", "_logger", "_profiles", "_session", "_values")

    def __init__(self, profiles: list[dict[str, Any]], model: onnx.ModelProto, logger: ILogger) -> None:
        self._profiles, self._graph, self._logger = profiles, model.graph, logger
        self._values = {
            value.name: (mode, value.type.tensor_type)
            for mode, values in ((TensorIOMode.INPUT, model.graph.input), (TensorIOMode.OUTPUT, model.graph.output))
            for value in values
        }
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._values)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._values[name][0]

    def get_tensor_dtype(self, name: str) -> DataType:
        return TYPES[self._values[name][1].elem_type]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._profiles[profile_index][name]]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return MEMORY * (profile_index + 1)

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> IExecutionContext:
        check(isinstance(strategy, ExecutionContextAllocationStrategy), "strategy: ExecutionContextAllocationStrategy")
        return IExecutionContext(self, strategy)


class IExecutionContext:
    __slots__ = ("_addresses", "_engine", "_memory", "_profile", "_shapes")
    made = 0

    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        IExecutionContext.made += 1
        self._engine = engine
        self._profile: int | None = None
        self._memory = -1 if strategy is ExecutionContextAllocationStrategy.USER_MANAGED else 1 << 62
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        check(type(memory) is int and type(size) is int and memory > 0, "set_device_memory(int, int)")
        self._memory = size

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        check(type(profile_index) is int and type(stream_handle) is int, "(int, int)")
        if not 0 <= profile_index < len(self._engine._profiles):
            raise RuntimeError("Error in set optimization profile async.")
        self._profile = profile_index
        self._shapes.clear()  # "all dynamic bindings have to be set again"
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        check(isinstance(name, str) and isinstance(shape, tuple | list), "set_input_shape(str, tuple or list)")
        check(all(type(size) is int for size in shape), "dimensions are whole numbers")
        low, _, high = self._engine._profiles[self._profile or 0][name]
        if len(shape) != len(low) or any(not a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            error(self._engine._logger, f"{name}: shape {shape} is outside of the profile's {low} to {high}")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        inputs = [name for name in self._engine._values if self._engine.get_tensor_mode(name) is TensorIOMode.INPUT]
        return [name for name in inputs if name not in self._shapes]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        check(isinstance(name, str) and type(memory) is int, "set_tensor_address(str, int)")
        if name not in self._engine._values:
            error(self._engine._logger, f"{name}: no such tensor")
            return False
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        check(type(stream_handle) is int, "stream_handle: int")
        engine = self._engine
        missing = engine._values.keys() - {name for name, address in self._addresses.items() if address}
        if missing or self.infer_shapes():
            error(engine._logger, f"address or shape is not set: {sorted(missing) or self.infer_shapes()}")
            return False
        if self._memory < engine.get_device_memory_size_for_profile_v2(self._profile or 0):
            error(engine._logger, "the context's device memory is too small")
            return False
        rows = next(iter(self._shapes.values()))[0]
        inputs = {name: self._read(name, shape) for name, shape in self._shapes.items()}
        names = [value.name for value in engine._graph.output]
        for name, found in zip(names, engine._session.run(names, inputs), strict=True):
            check(found.shape[0] == rows, "rows")
            ctypes.memmove(self._addresses[name], np.ascontiguousarray(found).ctypes.data, found.nbytes)
        return True

    def _read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(NUMPY[self._engine.get_tensor_dtype(name)])
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer(ctypes.string_at(self._addresses[name], size), dtype).reshape(shape)
