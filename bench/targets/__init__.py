"""What a load is sent to: servers behind one small protocol, so that all are asked in the same way.

    async with NativeTarget("127.0.0.1:8001") as target:
        kinds = await target.prepare(parse_mix("ddim:4=1"))
        message = target.message(kinds[0], seed=7)
        answer = await target.call(message, within=10.0)

`native` speaks fewstep.v1, `oip` the Open Inference Protocol over gRPC, `http` plain HTTP.
"""

from .native import NativeTarget
from .oip import OipTarget
from .target import Answer, CallFailed, Target, TargetError, open_target

__all__ = ["Answer", "CallFailed", "NativeTarget", "OipTarget", "Target", "TargetError", "open_target"]
