"""The compiled programs of one loaded model, kept while they are asked for again and again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable

from models.card import ModelCard, ScaleSpec
from models.program import Program
from models.samplers import SampleOptions, compile_refine, compile_sample, compile_score

MAX_LINES = 20_000  # of all programs kept; a line takes about half a kilobyte


class ProgramCache:
    """Programs are pure, so that one serves every request with the same options. They go with their model.

    The bound counts lines, as one program may have 10,000 of them; those used longest ago go first. Programs of
    `custom` are not kept: their options hold up to 500,000 weights, and hardly come twice.
    Called from the event loop's thread alone.
    """

    def __init__(self, card: ModelCard, max_lines: int = MAX_LINES) -> None:
        self._card = card
        self._max_lines = max_lines
        self._programs: OrderedDict[Hashable, Program] = OrderedDict()
        self._compiling = asyncio.Lock()
        self.lines = 0

    async def compile_ahead(self, options: SampleOptions, *, refine: bool = False) -> None:
        """Compile a program on another thread, one at a time, for `sample` or `refine` to find it. Raises as these."""
        if options.weights:
            return
        key, compiler = (("refine", options), compile_refine) if refine else (options, compile_sample)
        async with self._compiling:
            if key not in self._programs:
                program = await asyncio.to_thread(compiler, self._card, options)
                self._kept(key, lambda: program)

    def sample(self, options: SampleOptions) -> Program:
        """The program of a sample request. Raises as `compile_sample`."""
        if options.weights:
            return compile_sample(self._card, options)
        return self._kept(options, lambda: compile_sample(self._card, options))

    def refine(self, options: SampleOptions) -> Program:
        """The program of a refinement. Raises as `compile_refine`."""
        return self._kept(("refine", options), lambda: compile_refine(self._card, options))

    def score(self, scale: ScaleSpec) -> Program:
        """The program of a score at one noise scale. Raises as `compile_score`."""
        return self._kept(scale.name, lambda: compile_score(self._card, scale))

    def _kept(self, key: Hashable, make: Callable[[], Program]) -> Program:
        program = self._programs.get(key)
        if program is not None:
            self._programs.move_to_end(key)
            return program
        program = self._programs[key] = make()
        self.lines += len(program.lines)
        while self.lines > self._max_lines:
            _, oldest = self._programs.popitem(last=False)
            self.lines -= len(oldest.lines)
        return program
