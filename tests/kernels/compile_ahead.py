"""Compiles the kernels for GPUs that are not there: `python tests/kernels/compile_ahead.py`, the root in PYTHONPATH.

The launchers themselves run, on the CPU's tensors, and each launch ends when the kernel is compiled: so what is
compiled, and specialised on which alignments, is what a GPU would be given. Prints a line of JSON for each. It is a
process of its own, as Triton decides on import whether it compiles or interprets.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from kernels.ensemble import ensemble_step
from kernels.gather import gather, normal_
from kernels.langevin import langevin_step
from kernels.launch import History, Noise
from kernels.metropolis import metropolis_step

ARCHITECTURES = (80, 90)
ROWS, CAPACITY = 4, 6
SHAPES = {
    "3x32x32": (3, 32, 32),
    "4x64x64": (4, 64, 64),
    "3x256x256": (3, 256, 256),
    "20x8x8": (20, 8, 8),
    "128": (128,),
}
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class AbsentDriver:
    """What Triton asks a driver before it compiles."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def tensors(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Pools and keys, and a network's tensor of twice as many rows."""
    output = torch.zeros(2 * ROWS, *shape, dtype=dtype)
    if last:
        output = output.contiguous(memory_format=torch.channels_last)
    elements = output[0].numel()
    pools = {
        name: torch.zeros(CAPACITY, elements) for name in ("state", "anchor", "accumulator", "images", "prediction")
    }
    return pools | {"rows": torch.zeros(ROWS, dtype=torch.int64)}, output


def launches(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """The calls that a server makes, by name."""
    t, output = tensors(shape, dtype, last)
    rows, state, anchor, following = t["rows"], t["state"], t["anchor"], torch.zeros_like(output)
    noise, twelve, seven, stds = Noise(rows, rows, rows), torch.zeros(ROWS, 12), torch.zeros(ROWS, 7), torch.zeros(ROWS)
    guided = {"anchor": anchor, "null_rows": rows, "prediction": t["prediction"], "prediction_rows": rows}
    table = torch.zeros(ROWS, 8)
    history = History(t["images"], table.long(), table, rows, rows)
    keys = noise._asdict()
    start = keys | {"anchor": anchor, "modes": rows, "stds": stds}
    images = {"images": t["images"], "image_rows": rows, "accumulator": t["accumulator"]}
    yield "ensemble", lambda: ensemble_step(state, rows, output, twelve, anchor=anchor)
    yield "ensemble+noise", lambda: ensemble_step(state, rows, output, twelve, noise=noise, **guided)
    yield (
        "ensemble+all",
        lambda: ensemble_step(
            state,
            rows,
            output,
            twelve,
            noise=noise,
            accumulator=t["accumulator"],
            network_input=following,
            history=history,
            **guided,
        ),
    )
    yield "langevin", lambda: langevin_step(state, rows, output, seven, noise=noise, anchor=anchor)
    yield (
        "langevin+free",
        lambda: langevin_step(state, rows, output, seven, noise=noise, clips=False, network_input=following),
    )
    chains = {"place": state, "slope": anchor, "level": torch.zeros(CAPACITY), "decision": noise}
    yield "metropolis", lambda: metropolis_step(state, rows, stds, output, torch.zeros(ROWS, 6), noise=noise, **chains)
    yield "gather", lambda: gather(state, rows, following, **start)
    yield "gather+all", lambda: gather(state, rows, following, **start, **images)
    yield "normal", lambda: normal_(following[:ROWS], rows, rows, rows)


def main() -> None:
    """Compile the launches of the named shapes and types for every architecture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    options = parser.parse_args()
    compiled: list[tuple[str, object]] = []
    run = JITFunction.run

    def compile_alone(self: JITFunction, *arguments: object, grid: object, warmup: bool, **named: object) -> object:
        compiled.append((self.__name__, run(self, *arguments, grid=grid, warmup=True, **named)))

    JITFunction.run = compile_alone
    seen = set()
    for architecture, shape_name, dtype_name in product(ARCHITECTURES, options.shapes, options.types):
        driver.set_active(AbsentDriver(architecture))
        shape, dtype = SHAPES[shape_name], TYPES[dtype_name]
        where = {"architecture": architecture, "shape": shape_name, "dtype": dtype_name}
        for last in (False, True) if len(shape) == 3 else (False,):
            for variant, launch in launches(shape, dtype, last):
                launch()
                for name, kernel in compiled:
                    if kernel.hash not in seen:
                        seen.add(kernel.hash)
                        what = {"kernel": name, "variant": variant, "channels_last": last}
                        print(json.dumps(where | what | read(kernel.asm["cubin"])), flush=True)
                compiled.clear()


def read(cubin: bytes) -> dict[str, object]:
    """Registers a thread, bytes of stack (where registers spill), local and shared memory, instructions, and how many
    loads and stores of the global memory there are of each width in bits."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([DISASSEMBLER, what, file.name], capture_output=True, text=True, check=True).stdout
            for what in ("--dump-resource-usage", "--dump-sass")
        )
    registers, stack, shared = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "SHARED"))
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", code, re.MULTILINE)
    access = {kind: Counter(_bits(op) for op in instructions if op.startswith(kind)) for kind in ("LDG", "STG")}
    local = sum(op.startswith(("LDL", "STL")) for op in instructions)
    count = sum(op != "NOP" for op in instructions)
    return {"registers": registers, "stack": stack, "local": local, "shared": shared, "instructions": count} | access


def _bits(operation: str) -> int:
    found = re.search(r"\.(?:U|S)?(8|16|64|128)(?:\.|$)", operation)
    return int(found[1]) if found else 32


if __name__ == "__main__":
    main()
