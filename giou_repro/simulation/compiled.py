"""What the simulation compiles: a step that is compiled before it is run, or runs as it is where that cannot be done.

Nothing here is touched by an uncompiled simulation.
"""

import contextlib
import functools
import logging
import os
import shlex
import tempfile
import threading
import types
import warnings
from pathlib import Path
from unittest import mock

import torch

ON_CPU = {
    "cpp.vec_isa_ok": True,  # torch knows the processor: no need to try its instructions out
    "cpp.enable_floating_point_contract_flag": "fast",  # a product and a sum are one instruction
    "max_fusion_size": 256,  # so many expressions in one loop,
    "realize_opcount_threshold": 4,  # each of so few operations, and traced once
}
# results between expressions would be rows of four, which no vector instruction likes
ON_STACKED = {"realize_opcount_threshold": 200}


class Compiled:
    """A step that `prepare` compiles. Where that fails, or what was compiled no longer fits, it runs as it is."""

    def __init__(self, step, name, device, stacked):
        self.step, self.name, self.device, self.run, self.failure = step, name, device, None, None
        self.options = ON_CPU | (ON_STACKED if stacked else {}) if device == "cpu" else {}

    @torch.enable_grad()  # compiled code is of one mode, which is that of a thread
    def prepare(self, *arguments):
        """Compile the step for arguments of this kind. Warns, with the cause, where it will run uncompiled."""
        try:
            self.run = self.run or self._compiled()
            with unlocked():
                if self.device == "cpu":
                    begin_headers(tuple(self.options.items()))
                self.run(*arguments)
        except (
            Exception
        ) as error:  # no compiler, no headers, a loss that cannot be traced: each means "run it as it is"
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            heads = lines[: 2 if lines[0].endswith(":") else 1]  # "backend='inductor' raised:"
            self._give_up("; ".join([" ".join(heads), *(line for line in lines[1:] if "error:" in line)][:2]))
            return
        self.failure = None
        with torch.compiler.set_stance("fail_on_recompile"):
            self(*arguments)

    def __call__(self, *arguments):
        if self.failure is None:
            try:
                return self.run(*arguments)
            except Exception:  # torch does not say by a type of its own that it would have to compile anew
                self._give_up("it would have to be compiled at every call, as one with a counter has to")
        return self.step(*arguments)

    def _compiled(self):
        keep_compiled_code()
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # says at length that there is no GPU
        # torch keeps what it compiled by code object, 8 versions of each at most: every step gets one of its own
        code = self.step.__code__.replace(co_name=self.name)
        own = types.FunctionType(code, self.step.__globals__, self.name, self.step.__defaults__, self.step.__closure__)
        return torch.compile(own, fullgraph=True, options=self.options)

    def _give_up(self, reason):
        self.failure = reason
        warnings.warn(f"loss {self.name!r} runs uncompiled, many times slower: {reason}", stacklevel=5)


@contextlib.contextmanager
def unlocked():
    """Have torch compile code that leaves Python to other threads while it computes, so that blocks do not wait for one
    another. For that torch has a C++ wrapper, which takes two seconds more to compile. A torch whose own call of the
    code is another keeps it."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache as binding  # takes a second

    locked = getattr(binding, "call_entry_function", "")
    call, as_known, answer = locked.partition(";")  # "kernel({}); Py_RETURN_NONE;"
    free = f"Py_BEGIN_ALLOW_THREADS {call}; Py_END_ALLOW_THREADS {answer}"
    with mock.patch.object(binding, "call_entry_function", free) if as_known else contextlib.nullcontext():
        yield


@functools.cache
def begin_headers(options):
    """Have torch compile its headers while Python traces the first step: it takes five seconds, once on a machine, and
    torch waits for headers that are being compiled. What asks for them here is a function that does nothing."""
    from torch._inductor import codecache, config

    def ask():
        with contextlib.suppress(Exception), config.patch(dict(options)):  # a step asks for them itself, if need be
            if not os.path.isdir(codecache._HEADER_DIR):
                codecache.CppPythonBindingsCodeCache.load_pybinding(["float*"], 'extern "C" void kernel(float*) {}')

    threading.Thread(target=ask, daemon=True).start()


def keep_compiled_code():
    """Have torch keep what it compiles in the user's cache folder, unless TORCHINDUCTOR_CACHE_DIR says where.

    Before torch.compile, which sets that variable. Where that folder cannot be written, or its path has a space or a
    quotation mark, which torch does not escape for the compiler, torch keeps it in the one for temporary files.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "giou_repro" / "compiled"
        if shlex.split(str(folder)) != [str(folder)]:
            return
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError, ValueError):  # RuntimeError: no home; ValueError: half a quotation
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
