"""A weight in a GGUF file's number format."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export.errors import ExportError
from tinydispatch.ggml import bindings
from tinydispatch.ggml.mixtures import quantize_rows

_F16_MAX = float(np.finfo(np.float16).max)


def encode(name: str, weight: torch.Tensor, type_id: int) -> npt.NDArray[Any]:
    """A weight's values as they stand in the file.

    Returns:
        float32 or float16 of the weight's shape, or for quantized types bytes of shape (…, row bytes).

    Raises:
        ExportError: a value is not finite, or too large for 16 bits.
    """
    values: npt.NDArray[np.float32] = weight.detach().to(torch.float32).contiguous().numpy()
    if not np.isfinite(values).all():
        raise ExportError(f"weight {name} holds values that are not finite; the training diverged")
    if type_id == bindings.GGML_TYPE_F32:
        return values
    if type_id == bindings.GGML_TYPE_F16:
        if float(np.abs(values).max(initial=0.0)) > _F16_MAX:
            raise ExportError(f"weight {name} holds values beyond {_F16_MAX:.0f}, which 16-bit floats cannot")
        return values.astype(np.float16)
    return quantize_rows(values, type_id)
