"""Every Python process whose path begins with this folder has the CUDA device that is not there."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec

os.environ["TRITON_INTERPRET"] = "1"
if "pip" not in sys.argv[0]:
    import cuda_standin

    cuda_standin.load()

    import numpy as np
    import torch

    # what looks for a GPU's own library as it is imported is imported before there is a GPU
    for name in ("bitsandbytes", "liger_kernel.transformers", "peft"):
        if find_spec(name.split(".")[0]) is not None:
            import_module(name)

    if find_spec("liger_kernel") is not None:
        import triton.language as tl

        # CUDA's own library of functions is not there for the interpreter
        import_module("liger_kernel.ops.rms_norm").rsqrt = lambda x: tl.math.rsqrt(x)

    from triton.language import float32, tensor
    from triton.runtime import interpreter

    import bfloat16

    torch.set_num_threads(1)
    bfloat16.install()
    converted = interpreter._implicit_cvt

    def convert(argument):  # a number of Python's is a scalar of the kernel, as on a GPU
        if isinstance(argument, float):
            handle = interpreter.TensorHandle(np.array([argument], np.float32), float32)
            return tensor(handle, float32)
        return converted(argument)

    interpreter._implicit_cvt = convert
    cuda_standin.start()
