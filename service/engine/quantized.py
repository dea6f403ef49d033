"""int8: linear layers whose inputs are quantised row by row as they come, and the table of
words."""

from __future__ import annotations

import torch
from torch import Tensor

from service.engine.activations import Activation

STEPS = 127  # of a weight or a signed input, from 0 to the largest magnitude
BYTE = 255
TINY = 1e-30  # a row of zeros must not be divided by zero
# Added to a float32, it leaves the rounded whole part in the lowest bits: far faster than torch's
# conversion to bytes.
WHOLE = float(2**23)


class Quantized:
    """A linear layer in int8 by oneDNN, as torch.compile makes it of a quantised model; input and
    output are float32.

    Each row of the input has its own scale, from its own largest magnitude, and the products are
    sums of whole numbers: a row's output does not depend on the rows beside it, to the bit.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        lowest: float | None = None,
        largest: Tensor | None = None,
    ) -> None:
        """`weight` is `[outputs, inputs]` in float32. If no input is below `lowest` (0 or less),
        nearly all of a byte is for inputs above 0; else half of it. `largest`, `[inputs]`, is how
        large each input tends to be: large ones, which would leave few steps to the rest of their
        row, are made smaller and their weights larger (SmoothQuant, arXiv 2211.10438)."""
        self.outputs, inputs = weight.shape
        self._smooth = None if largest is None else smoothing(largest, weight)
        whole, scales = quantized(weight if self._smooth is None else weight / self._smooth)
        self._floor: float | None  # a row's largest input counts as no less than this
        self._zero, self._floor = (STEPS + 1, None) if lowest is None else _low_zero(lowest)
        self._steps = STEPS if lowest is None else BYTE - self._zero
        self._weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self._scales = scales.squeeze(1)
        self._zeros = torch.zeros(self.outputs, dtype=torch.int32)
        # What the bytes' zero adds to every product, to take it off again: faster than oneDNN's
        # own zero point.
        self._excess = whole.sum(dim=1, dtype=torch.int32).mul(-self._zero) * self._scales
        self._bias = bias
        self._offset = torch.full((inputs,), WHOLE + self._zero)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        smooth = () if self._smooth is None else (self._smooth,)
        return (
            self._weight,
            self._scales,
            self._zeros,
            self._excess,
            self._bias,
            self._offset,
            *smooth,
        )

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        x = x if self._smooth is None else x * self._smooth
        # [n, 1]
        largest = (
            (x.abs() if self._floor is None else x)
            .amax(dim=1, keepdim=True)
            .clamp_(min=self._floor or TINY)
        )
        whole = (
            torch.addcmul(self._offset, x, self._steps / largest).view(torch.int32).to(torch.uint8)
        )
        product = torch.ops.onednn.qlinear_pointwise(
            whole,
            1.0,
            0,
            self._weight,
            self._scales,
            self._zeros,
            self._excess,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return torch.addcmul(self._bias, product, largest.div_(self._steps), out=out)

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        return activation.function(self(x))


class QuantizedTable:
    """Rows of a table in int8, each with its scale: `[n]` ids → `[n, d]` in float32."""

    def __init__(self, weight: Tensor) -> None:
        self._whole, self._scales = quantized(weight)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self._whole, self._scales

    def __call__(self, ids: Tensor) -> Tensor:
        return self._whole[ids].float().mul_(self._scales[ids])


def lacking(device: torch.device) -> str | None:
    """What int8 needs and the device lacks, as half a sentence; None if it lacks nothing."""
    if device.type != "cpu":
        return f"the device is {device.type!r}; expected cpu"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return "this torch is built without oneDNN; expected one with it"
    # without it oneDNN's sums of bytes may overflow
    if not torch.cpu.get_capabilities().get("avx512_vnni"):
        return (
            f"this processor ({torch.cpu.get_capabilities()['architecture']}) lacks AVX512-VNNI;"
            " expected one with it"
        )
    return None


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Each row in int8, and its scale: `[n, d]`, `[n, 1]`."""
    scales = weight.abs().amax(dim=1, keepdim=True).clamp_(min=TINY).div_(STEPS)
    return weight.div(scales).round_().to(torch.int8), scales


def smoothing(largest: Tensor, weight: Tensor) -> Tensor:
    """What each input is multiplied by, `[inputs]`: equation 4 of SmoothQuant (arXiv 2211.10438),
    whose strength is 0.5 by default there too. 0.7, for strong outliers, was worse here."""
    outliers = largest.clamp(min=largest.mean() / 100).sqrt()
    return weight.abs().amax(dim=0).clamp_(min=TINY).sqrt_() / outliers


def _low_zero(lowest: float) -> tuple[int, float]:
    """The byte that stands for 0, and the least value that a row's largest input must count as, so
    that the bytes reach down to `lowest`. The byte is at an eleventh of the range."""
    if lowest == 0:
        return 0, TINY
    zero = 23
    return zero, -lowest * (BYTE - zero) / zero
