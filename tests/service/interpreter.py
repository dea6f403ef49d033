"""Triton's interpreter, for tests of the GPU's kernels where there is no GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

GPU = torch.cuda.is_available()
NO_GPU = "no GPU that torch can use here: the kernels run in Triton's interpreter alone"


def interpreted(patch: pytest.MonkeyPatch) -> None:
    """Kernels defined from now on are interpreted, if there is no GPU: Triton decides as a kernel's
    module is imported."""
    if not GPU:
        patch.setenv("TRITON_INTERPRET", "1")
        _mend_interpreter(patch)


def _mend_interpreter(patch: pytest.MonkeyPatch) -> None:
    """Triton 3.7's interpreter keeps bfloat16 as the bits of uint16, and its dot multiplies
    those."""
    from triton import language
    from triton.runtime import interpreter

    broken = interpreter.InterpreterBuilder.create_dot

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != language.bfloat16:
            return operand
        bits = operand.data.astype("uint32") << 16
        return interpreter.TensorHandle(bits.view("float32"), language.float32)

    def dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return broken(self, widened(a), widened(b), *others)

    patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
