"""OpenVINO: a compiled full copy of the model per task, in float32 or with weights of int8; a batch
is split by task, each part padded.

int8 is NNCF's `compress_weights`, a call that needs no texts: weights of 8 bits, each output with
its scale. Whether the activations are quantised beside them is OpenVINO's choice. NNCF's
`quantize`, which needs texts to calibrate with, quantises the activations too. On an AMD EPYC
without VNNI (Zen 3) that is slower than float32: 12.1 against 10.1 ms for one text.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch
from arrays import INPUTS, Arrays
from numpy.typing import NDArray
from openvino import properties
from openvino.properties import hint
from torch import nn
from transformers import BertForSequenceClassification
from worker import Batch, Rows, in_turn, serve


class Copies:
    def __init__(self, model: Path, tasks: int, dtype: str) -> None:
        self._arrays = Arrays(model)
        converted = convert(BertForSequenceClassification.from_pretrained(model), dtype)
        self._requests = [request(converted) for _ in range(tasks)]

    def run(self, batch: Batch) -> Rows:
        return in_turn(batch, self.logits)

    def logits(self, task: int, texts: list[list[str]]) -> Rows:
        return infer(self._requests[task], self._arrays(texts))


def adapted(model: Path, backbone: str, adapter: Path, dtype: str) -> Callable[[Batch], Rows]:
    """The run of one task's model with its adapter, whatever tasks the rows name."""
    from adapted import Adapted

    arrays, one = Arrays(model), request(convert(Adapted(backbone, adapter), dtype))
    return lambda batch: infer(one, arrays([texts for _, texts in batch]))


def convert(module: nn.Module, dtype: str) -> openvino.Model:
    """By its own front end for PyTorch, with which it is as fast as with an ONNX file."""
    ids = torch.ones(2, 16, dtype=torch.long)
    example = dict(zip(INPUTS, (ids, ids, torch.zeros_like(ids)), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a shape that is traced
        converted = openvino.convert_model(module, example_input=example)
    return nncf.compress_weights(converted) if dtype == "int8" else converted


def request(converted: openvino.Model) -> openvino.InferRequest:
    return openvino.Core().compile_model(converted, "CPU", settings()).create_infer_request()


def infer(request: openvino.InferRequest, arrays: dict[str, NDArray[np.int64]]) -> Rows:
    request.infer(arrays)
    return request.get_output_tensor().data.tolist()


def settings() -> dict[str, object]:
    """One answer at a time by as many threads as there are cores; float32 also where the processor
    has bfloat16; its threads may move, as everybody's."""
    return {
        hint.performance_mode(): hint.PerformanceMode.LATENCY,
        hint.inference_precision(): "f32",
        hint.enable_cpu_pinning(): False,
        properties.num_streams(): 1,
        properties.inference_num_threads(): len(os.sched_getaffinity(0)),
    }


if __name__ == "__main__":
    nncf.set_log_level(logging.WARNING)
    model, tasks, backbone, adapter, *dtypes = sys.argv[1:]
    names = {"float32": "openvino", "int8": "openvino int8"}
    runs = {names[dtype]: Copies(Path(model), int(tasks), dtype).run for dtype in dtypes}
    if adapter:
        for dtype in dtypes:
            run = adapted(Path(model), backbone, Path(adapter), dtype)
            runs[names[dtype].replace("openvino", "adapted")] = run
    serve(runs, {"openvino": openvino.__version__, "nncf": nncf.__version__})
