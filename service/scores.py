"""What becomes of logits: labels and scores, or none where an answer abstains."""

from __future__ import annotations

import math
from typing import Any, Literal

from adapters.calibration import calibrated, confidence, sigmoid, softmax, threshold_for
from adapters.spec import ProblemType
from service.predictor import Admitted, Signature
from service.refusals import InvalidRequest, NotFinite

Function = Literal["softmax", "sigmoid", "none"]


def default_function(problem_type: ProblemType) -> Function:
    """What turns logits into scores where the client asks for nothing else."""
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" else "softmax"


def scored(
    logits: list[float],
    labels: tuple[str, ...],
    function: Function,
    top_k: int | None,
    temperatures: tuple[float, ...] = (),
) -> list[dict[str, Any]]:
    """Logits → `[{"label", "score"}]`, best first: by the logits, since scores may saturate at 0 or
    1. Any function but none is applied to calibrated logits."""
    values = logits if function == "none" else calibrated(logits, temperatures)
    if function == "softmax":
        scores = softmax(values)
    elif function == "sigmoid":
        scores = [sigmoid(value) for value in values]
    else:
        scores = values
    # One temperature keeps the order; a division may round two logits to one number.
    by = values if len(temperatures) > 1 else logits
    best = sorted(range(len(labels)), key=lambda i: -by[i])
    return [{"label": labels[i], "score": scores[i]} for i in best[:top_k]]


def answer_of(
    logits: list[float],
    signature: Signature,
    function: Function,
    top_k: int | None,
    least: float | None,
) -> list[dict[str, Any]]:
    """One row's answer. Where its confidence is below `least`, that is the label None with the
    confidence."""
    low = abstained(logits, signature, least)
    if low is not None:
        return [{"label": None, "score": low}]
    return scored(logits, signature.labels, function, top_k, signature.temperatures)


def least_confidence(signature: Signature, accuracy: float) -> float:
    """Below which confidence a task's answer is no label, where a client wants that accuracy.
    Raises InvalidRequest."""
    if not signature.thresholds:
        reason = (
            "its file has no risk-coverage table (python -m training calibrate makes one)"
            if signature.problem_type == "single_label_classification"
            else f"its problem type is {signature.problem_type}"
        )
        raise InvalidRequest(
            f"abstain is {accuracy:g}, but task {signature.task!r} cannot abstain: {reason};"
            " expected no abstain"
        )
    least = threshold_for(signature.thresholds, accuracy)
    if least is None:
        raise InvalidRequest(
            f"abstain is {accuracy:g}; expected at most {signature.thresholds[-1][0]:g}, the"
            f" highest accuracy that task {signature.task!r} was found to reach"
        )
    return least


def abstained(logits: list[float], signature: Signature, least: float | None) -> float | None:
    """The confidence of a row whose answer is no label; None where the answer stands."""
    if least is None:
        return None
    found = confidence(logits, signature.temperatures)
    return found if found < least else None


def check_finite(adapter: Admitted, rows: list[list[float]], dtype: str, number: int) -> None:
    """Check the logits of input `number`, of all its rows. JSON has neither NaN nor infinity: they
    would be answered as null. Raises NotFinite."""
    if not all(math.isfinite(value) for row in rows for value in row):
        raise NotFinite(
            adapter.digest,
            f"version {adapter.version} of task {adapter.signature.task!r} gives logits that"
            f" are NaN or infinite for input {number}, in {dtype}; expected finite numbers: another"
            " version, or an ADAMIX_DTYPE with a wider range",
        )
