"""What the simulation compiles: a function that is compiled at its first call, or runs as it is where that cannot be
done."""

import logging
import os
import types
import warnings
from pathlib import Path

import torch

ON_CPU = {
    "cpp_wrapper": True,  # called through C++, blocks in threads do not wait for one another's Python
    "cpp.vec_isa_ok": True,  # torch knows the processor: no need to try its instructions out
    "cpp.enable_floating_point_contract_flag": "fast",  # a product and a sum are one instruction
    "max_fusion_size": 256,  # so many expressions in one loop,
    "realize_opcount_threshold": 4,  # each of so few operations, and traced once
}
ON_STACKED = {
    "realize_opcount_threshold": 200
}  # results between expressions would be rows of four, which no vector instruction likes


class Compiled:
    """A step that is compiled at its first call; where that fails it runs as it is, after one warning."""

    def __init__(self, step, name, device, stacked):
        # torch keeps what it compiled by code object, 8 versions of each at most: every step gets one of its own
        own = types.FunctionType(
            step.__code__.replace(co_name=name), step.__globals__, name, step.__defaults__, step.__closure__
        )
        self.step, self.name = step, name
        options = ON_CPU | (ON_STACKED if stacked else {}) if device == "cpu" else {}
        self.run = torch.compile(own, fullgraph=True, dynamic=False, options=options)
        self.works, self.failure, self.warned = False, None, False

    def __call__(self, *arguments):
        if self.works:
            return self.run(*arguments)
        if self.failure is None:
            keep_compiled_code()
            logging.getLogger("torch.utils.cpp_extension").setLevel(
                logging.ERROR
            )  # says at length that there is no GPU
            try:
                result = self.run(*arguments)
                self.works = True
                return result
            except (
                Exception
            ) as error:  # no compiler, no headers, a loss that cannot be traced: each means "run it as it is"
                self.failure = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if not self.warned:
            warnings.warn(f"loss {self.name!r} runs uncompiled, many times slower: {self.failure}", stacklevel=4)
            self.warned = True
        return self.step(*arguments)


def keep_compiled_code():
    """Have torch keep what it compiles in the user's cache folder, not in /tmp, unless TORCHINDUCTOR_CACHE_DIR says
    where."""
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "giou_repro" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: torch's own choice
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
