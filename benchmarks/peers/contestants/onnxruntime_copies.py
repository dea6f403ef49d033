"""ONNX Runtime: a session with a full copy of the model per task, in float32 or int8; a batch is
split by task, each part padded.

The model is exported by torch.onnx and fused by ONNX Runtime's own optimizer for BERT
(`onnxruntime.transformers`). Three of that optimizer's fusions are off, because a session is faster
with the parts: without them a text takes 0.93 – 0.97 of the time in float32 and 0.88 – 0.93 in int8
(AMD EPYC, Zen 3, one core). They are Attention, and SkipLayerNormalization and
EmbedLayerNormalization, which take 60 µs for 24 rows of 384 where Add and LayerNormalization take
16 µs. int8 is ONNX Runtime's `quantize_dynamic`: signed weights with a scale per output
(`per_channel`), activations quantised as they come. Where the processor lacks VNNI, weights have
7 bits (`reduce_range`): sums of two products of 8 bits may saturate there.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from arrays import INPUTS, Arrays
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions
from torch import Tensor, nn
from transformers import BertForSequenceClassification
from worker import Batch, Rows, in_turn, serve

OPSET = 17
UNFUSED = (
    "enable_attention",
    "enable_skip_layer_norm",
    "enable_bias_skip_layer_norm",
    "enable_embed_layer_norm",
)


class Copies:
    """Sessions use as many threads as there are cores; by default these spin while they wait."""

    def __init__(self, model: Path, tasks: int, dtype: str) -> None:
        self._arrays = Arrays(model)
        file = graph(model, "full", partial(Logits, model), dtype)
        self._sessions = [session(file) for _ in range(tasks)]

    def run(self, batch: Batch) -> Rows:
        return in_turn(batch, self.logits)

    def logits(self, task: int, texts: list[list[str]]) -> Rows:
        (logits,) = self._sessions[task].run(None, self._arrays(texts))
        return logits.tolist()


def adapted(model: Path, backbone: str, adapter: Path, dtype: str) -> Callable[[Batch], Rows]:
    """The run of one task's model with its adapter, whatever tasks the rows name."""
    from adapted import Adapted

    arrays = Arrays(model)
    one = session(graph(model, "adapted", partial(Adapted, backbone, adapter), dtype))
    return lambda batch: one.run(None, arrays([texts for _, texts in batch]))[0].tolist()


def session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def graph(model: Path, name: str, module: Callable[[], nn.Module], dtype: str) -> Path:
    """The file of a module in this precision, made if there is none."""
    folder = model / "onnx"
    plain, fused, int8 = (folder / f"{name}-{kind}.onnx" for kind in ("plain", "fused", "int8"))
    if not fused.exists():
        folder.mkdir(exist_ok=True)
        export(module(), plain)
        fuse(plain, fused, json.loads((model / "config.json").read_text()))
    if dtype == "float32":
        return fused
    if not int8.exists():
        quantize(fused, int8)
    return int8


def export(module: nn.Module, file: Path) -> None:
    ids = torch.ones(2, 16, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a shape that is traced, and of the older exporter
        torch.onnx.export(
            module.eval(),
            (ids, ids, torch.zeros_like(ids)),
            str(file),
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_axes={name: {0: "rows", 1: "tokens"} for name in INPUTS},
            opset_version=OPSET,
            dynamo=False,  # of the newer exporter's graph the optimizer recognises little
        )


def fuse(plain: Path, file: Path, config: dict[str, Any]) -> None:
    options = FusionOptions("bert")
    for fusion in UNFUSED:
        setattr(options, fusion, False)
    optimized = optimizer.optimize_model(
        str(plain),
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
        opt_level=1,
        optimization_options=options,
    )
    optimized.save_model_to_file(str(file))


def quantize(fused: Path, file: Path) -> None:
    quantize_dynamic(
        fused,
        file,
        per_channel=True,
        reduce_range=reduce_range(),
        weight_type=QuantType.QInt8,
        # Products of two activations stay in float32; the optimizer's own operators have outputs
        # whose types are not inferred.
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def reduce_range() -> bool:
    found = torch.cpu.get_capabilities()
    return not (found.get("avx512_vnni") or found.get("avx_vnni"))


class Logits(nn.Module):
    """The full model with its inputs in the order of `INPUTS` and its logits alone as the
    output."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        self.model = BertForSequenceClassification.from_pretrained(
            model, attn_implementation="eager"
        )

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # quantize_dynamic advises what the optimizer did already
    model, tasks, backbone, adapter, *dtypes = sys.argv[1:]
    names = {"float32": "onnxruntime", "int8": "onnxruntime int8"}
    runs = {names[dtype]: Copies(Path(model), int(tasks), dtype).run for dtype in dtypes}
    if adapter:
        for dtype in dtypes:
            run = adapted(Path(model), backbone, Path(adapter), dtype)
            runs[names[dtype].replace("onnxruntime", "adapted")] = run
    serve(
        runs,
        {
            "onnxruntime": onnxruntime.__version__,
            "onnx": onnx.__version__,
            "reduce_range": str(reduce_range()),
        },
    )
