from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    RAW: _ClassVar[Encoding]
    PNG: _ClassVar[Encoding]
ENCODING_UNSPECIFIED: Encoding
RAW: Encoding
PNG: Encoding

class Images(_message.Message):
    __slots__ = ("encoding", "shape", "raw", "png")
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    encoding: Encoding
    shape: _containers.RepeatedScalarFieldContainer[int]
    raw: bytes
    png: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, encoding: _Optional[_Union[Encoding, str]] = ..., shape: _Optional[_Iterable[int]] = ..., raw: _Optional[bytes] = ..., png: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Weights(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("model", "version", "count", "steps", "sampler", "m", "form", "weights", "eta", "guidance", "temperature", "step_size", "spacing", "labels", "seed", "encoding", "priority", "parameters")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Numbers
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Numbers, _Mapping]] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    M_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    STEP_SIZE_FIELD_NUMBER: _ClassVar[int]
    SPACING_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    count: int
    steps: int
    sampler: str
    m: _containers.RepeatedScalarFieldContainer[float]
    form: str
    weights: _containers.RepeatedCompositeFieldContainer[Weights]
    eta: float
    guidance: float
    temperature: float
    step_size: float
    spacing: str
    labels: _containers.RepeatedScalarFieldContainer[int]
    seed: int
    encoding: Encoding
    priority: int
    parameters: _containers.MessageMap[str, Numbers]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., count: _Optional[int] = ..., steps: _Optional[int] = ..., sampler: _Optional[str] = ..., m: _Optional[_Iterable[float]] = ..., form: _Optional[str] = ..., weights: _Optional[_Iterable[_Union[Weights, _Mapping]]] = ..., eta: _Optional[float] = ..., guidance: _Optional[float] = ..., temperature: _Optional[float] = ..., step_size: _Optional[float] = ..., spacing: _Optional[str] = ..., labels: _Optional[_Iterable[int]] = ..., seed: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., priority: _Optional[int] = ..., parameters: _Optional[_Mapping[str, Numbers]] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_seconds", "compute_seconds", "total_seconds", "steps", "mean_batch_rows", "network_seconds", "encode_seconds")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MEAN_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    NETWORK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    compute_seconds: float
    total_seconds: float
    steps: int
    mean_batch_rows: float
    network_seconds: float
    encode_seconds: float
    def __init__(self, queue_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ..., steps: _Optional[int] = ..., mean_batch_rows: _Optional[float] = ..., network_seconds: _Optional[float] = ..., encode_seconds: _Optional[float] = ...) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = ("model", "version", "images", "seed", "sampler", "steps", "nfe", "gradient_passes", "timing")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    NFE_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_PASSES_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    images: Images
    seed: int
    sampler: str
    steps: int
    nfe: int
    gradient_passes: int
    timing: Timing
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., seed: _Optional[int] = ..., sampler: _Optional[str] = ..., steps: _Optional[int] = ..., nfe: _Optional[int] = ..., gradient_passes: _Optional[int] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("step", "steps", "image", "energy", "gradient_norm")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    step: int
    steps: int
    image: Images
    energy: float
    gradient_norm: float
    def __init__(self, step: _Optional[int] = ..., steps: _Optional[int] = ..., image: _Optional[_Union[Images, _Mapping]] = ..., energy: _Optional[float] = ..., gradient_norm: _Optional[float] = ...) -> None: ...

class SampleEvent(_message.Message):
    __slots__ = ("preview", "result")
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    preview: Preview
    result: SampleResponse
    def __init__(self, preview: _Optional[_Union[Preview, _Mapping]] = ..., result: _Optional[_Union[SampleResponse, _Mapping]] = ...) -> None: ...

class RefineRequest(_message.Message):
    __slots__ = ("model", "version", "images", "method", "steps", "step_size", "temperature", "parameters", "seed", "encoding", "priority")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Numbers
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Numbers, _Mapping]] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_SIZE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    images: Images
    method: str
    steps: int
    step_size: float
    temperature: float
    parameters: _containers.MessageMap[str, Numbers]
    seed: int
    encoding: Encoding
    priority: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., method: _Optional[str] = ..., steps: _Optional[int] = ..., step_size: _Optional[float] = ..., temperature: _Optional[float] = ..., parameters: _Optional[_Mapping[str, Numbers]] = ..., seed: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., priority: _Optional[int] = ...) -> None: ...

class RefineResponse(_message.Message):
    __slots__ = ("model", "version", "images", "energy_before", "energy_after", "seed", "method", "steps", "nfe", "gradient_passes", "timing")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    ENERGY_BEFORE_FIELD_NUMBER: _ClassVar[int]
    ENERGY_AFTER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    NFE_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_PASSES_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    images: Images
    energy_before: _containers.RepeatedScalarFieldContainer[float]
    energy_after: _containers.RepeatedScalarFieldContainer[float]
    seed: int
    method: str
    steps: int
    nfe: int
    gradient_passes: int
    timing: Timing
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., energy_before: _Optional[_Iterable[float]] = ..., energy_after: _Optional[_Iterable[float]] = ..., seed: _Optional[int] = ..., method: _Optional[str] = ..., steps: _Optional[int] = ..., nfe: _Optional[int] = ..., gradient_passes: _Optional[int] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class RefineEvent(_message.Message):
    __slots__ = ("preview", "result")
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    preview: Preview
    result: RefineResponse
    def __init__(self, preview: _Optional[_Union[Preview, _Mapping]] = ..., result: _Optional[_Union[RefineResponse, _Mapping]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("model", "version", "images", "scales", "false_alarm_rate", "seed", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    FALSE_ALARM_RATE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    images: Images
    scales: _containers.RepeatedScalarFieldContainer[str]
    false_alarm_rate: float
    seed: int
    priority: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., scales: _Optional[_Iterable[str]] = ..., false_alarm_rate: _Optional[float] = ..., seed: _Optional[int] = ..., priority: _Optional[int] = ...) -> None: ...

class ScaleScores(_message.Message):
    __slots__ = ("scale", "energy", "percentile", "p_value", "out_of_distribution", "threshold")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    scale: str
    energy: _containers.RepeatedScalarFieldContainer[float]
    percentile: _containers.RepeatedScalarFieldContainer[float]
    p_value: _containers.RepeatedScalarFieldContainer[float]
    out_of_distribution: _containers.RepeatedScalarFieldContainer[bool]
    threshold: float
    def __init__(self, scale: _Optional[str] = ..., energy: _Optional[_Iterable[float]] = ..., percentile: _Optional[_Iterable[float]] = ..., p_value: _Optional[_Iterable[float]] = ..., out_of_distribution: _Optional[_Iterable[bool]] = ..., threshold: _Optional[float] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("model", "version", "scores", "false_alarm_rate", "seed", "nfe", "timing", "gradient_passes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    FALSE_ALARM_RATE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NFE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_PASSES_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    scores: _containers.RepeatedCompositeFieldContainer[ScaleScores]
    false_alarm_rate: float
    seed: int
    nfe: int
    timing: Timing
    gradient_passes: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., scores: _Optional[_Iterable[_Union[ScaleScores, _Mapping]]] = ..., false_alarm_rate: _Optional[float] = ..., seed: _Optional[int] = ..., nfe: _Optional[int] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., gradient_passes: _Optional[int] = ...) -> None: ...

class RequestError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class ScoreEvent(_message.Message):
    __slots__ = ("result", "error")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    result: ScoreResponse
    error: RequestError
    def __init__(self, result: _Optional[_Union[ScoreResponse, _Mapping]] = ..., error: _Optional[_Union[RequestError, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelSummary(_message.Message):
    __slots__ = ("name", "version", "family", "description", "samplers", "scores", "refiners")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    SAMPLERS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    REFINERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    family: str
    description: str
    samplers: _containers.RepeatedScalarFieldContainer[str]
    scores: bool
    refiners: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., family: _Optional[str] = ..., description: _Optional[str] = ..., samplers: _Optional[_Iterable[str]] = ..., scores: bool = ..., refiners: _Optional[_Iterable[str]] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ...) -> None: ...

class DescribeModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class DescribeModelResponse(_message.Message):
    __slots__ = ("summary", "image_shape", "low", "high", "labels", "label_names", "guidance", "default_steps", "accepted_steps", "scales", "calibrated", "manifest_json")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LABEL_NAMES_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_STEPS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_STEPS_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    summary: ModelSummary
    image_shape: _containers.RepeatedScalarFieldContainer[int]
    low: float
    high: float
    labels: int
    label_names: _containers.RepeatedScalarFieldContainer[str]
    guidance: bool
    default_steps: int
    accepted_steps: _containers.RepeatedScalarFieldContainer[int]
    scales: _containers.RepeatedScalarFieldContainer[str]
    calibrated: bool
    manifest_json: str
    def __init__(self, summary: _Optional[_Union[ModelSummary, _Mapping]] = ..., image_shape: _Optional[_Iterable[int]] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., labels: _Optional[int] = ..., label_names: _Optional[_Iterable[str]] = ..., guidance: bool = ..., default_steps: _Optional[int] = ..., accepted_steps: _Optional[_Iterable[int]] = ..., scales: _Optional[_Iterable[str]] = ..., calibrated: bool = ..., manifest_json: _Optional[str] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSummary
    def __init__(self, model: _Optional[_Union[ModelSummary, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSummary
    def __init__(self, model: _Optional[_Union[ModelSummary, _Mapping]] = ...) -> None: ...

class ReloadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ReloadModelResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ...) -> None: ...

class GetServerStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerStatusResponse(_message.Message):
    __slots__ = ("version", "engine", "ready", "uptime_seconds", "rows_in_flight", "requests_open", "requests_total", "batches_total", "mean_batch_rows")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROWS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_OPEN_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BATCHES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    MEAN_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    version: str
    engine: str
    ready: bool
    uptime_seconds: float
    rows_in_flight: int
    requests_open: int
    requests_total: int
    batches_total: int
    mean_batch_rows: float
    def __init__(self, version: _Optional[str] = ..., engine: _Optional[str] = ..., ready: bool = ..., uptime_seconds: _Optional[float] = ..., rows_in_flight: _Optional[int] = ..., requests_open: _Optional[int] = ..., requests_total: _Optional[int] = ..., batches_total: _Optional[int] = ..., mean_batch_rows: _Optional[float] = ...) -> None: ...
