"""A task's temperatures, and the confidence below which to abstain, by rows that it was not trained
on.

Temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2 (and
their `temperature_scaling.py`): one number divides all logits; it minimises the negative log
likelihood of held-out rows. Here a label of a multi-label task has a number of its own, as each is
a question of its own. That is one bounded minimisation in one variable each, in which the
likelihood has a single minimum, so SciPy's `minimize_scalar` takes the place of their L-BFGS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor

from adapters.spec import AdapterSpec, CoveragePoint, ProblemType
from training.data import Dataset

BINS = 10  # of probabilities, equally wide
FITTED = (0.1, 10.0)  # what few rows can say of a temperature
TARGETS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995)
LEAST_ROWS = 100  # of fewer, the temperature and the table are mostly chance
FROM_ROWS = 1000  # training rows from which on some are held out for it
FOLDS = 5
TOLD = (0.9, 0.95, 0.99)  # accuracies whose coverage a training tells


@dataclass(frozen=True)
class Calibration:
    """`rows` are those that it was fitted on, `source` says which. `errors` are the expected
    calibration errors on these rows, before and after."""

    temperatures: tuple[float, ...]
    points: tuple[CoveragePoint, ...]
    rows: int
    source: str
    errors: tuple[float, float]

    def described(self, spec: AdapterSpec) -> AdapterSpec:
        """The spec of an adapter with its temperatures and its risk-coverage table."""
        found = {
            "temperatures": self.temperatures,
            "risk_coverage": self.points or None,
            "training": {**spec.training, "calibration": self.record},
        }
        return AdapterSpec.model_validate({**dict(spec), **found})

    @property
    def record(self) -> dict[str, Any]:
        """For the file's training record."""
        before, after = self.errors
        return {
            "rows": self.rows,
            "source": self.source,
            "bins": BINS,
            "error_before": before,
            "error_after": after,
        }

    @property
    def told(self) -> str:
        """In one sentence, to a person."""
        numbers = ", ".join(f"{value:.3g}" for value in self.temperatures[:8])
        more = f" and {len(self.temperatures) - 8} more" if len(self.temperatures) > 8 else ""
        several = "s" * (len(self.temperatures) > 1)
        before, after = self.errors
        return (
            f"calibrated on {self.rows} rows ({self.source}): temperature{several} {numbers}{more};"
            f" calibration error {before:.3f}, then {after:.3f}"
        )


def calibration(data: Dataset, logits: Tensor, source: str) -> Calibration | None:
    """Fit to logits `[N, C]` of rows that the adapter was not trained on; None for regression."""
    if data.problem_type == "regression":
        return None
    temperatures = fit_temperatures(data, logits)
    scaled = tempered(logits, temperatures)
    points: tuple[CoveragePoint, ...] = ()
    if data.problem_type == "single_label_classification":
        points = risk_coverage(*_answers(data, scaled))
    return Calibration(
        temperatures,
        points,
        len(data.texts),
        source,
        (calibration_error(data, logits), calibration_error(data, scaled)),
    )


def tempered(logits: Tensor, temperatures: tuple[float, ...] | None) -> Tensor:
    """Logits `[N, C]` divided by the temperatures of their file, if it has any."""
    return logits if temperatures is None else logits / torch.tensor(temperatures)


def fit_temperatures(data: Dataset, logits: Tensor) -> tuple[float, ...]:
    """Minimise the negative log likelihood. The temperature stays 1 where the rows have no error:
    then the likelihood only grows as it falls."""
    values = logits.double().numpy()
    wanted = targets(data)
    if data.problem_type == "single_label_classification":
        if (values.argmax(axis=1) == wanted).all():
            return (1.0,)
        rows = np.arange(len(values))
        return (_minimised(lambda t: -log_softmax(values / t, axis=1)[rows, wanted].mean()),)
    # the log likelihood of a label: log sigmoid of its logit, signed by whether the row has it
    signed = np.where(wanted, values, -values)
    return tuple(
        1.0
        if (column > 0).all()
        else _minimised(lambda t, column=column: np.logaddexp(0, -column / t).mean())  # type: ignore[misc]  # bound now
        for column in signed.T
    )


def calibration_error(data: Dataset, logits: Tensor) -> float:
    """The expected calibration error (Naeini et al. 2015, "Obtaining Well Calibrated Probabilities
    Using Bayesian Binning"): the mean, over the rows, of the distance between probability and share
    in the row's bin; BINS bins of equal width. Single label: the answer's probability, and the
    share of right answers. Multi-label: every label's probability, and the share of rows that have
    it."""
    probability, right = _answers(data, logits)
    places = bin_of(probability)
    total = sum(
        abs(probability[chosen].sum() - right[chosen].sum())
        for place in range(BINS)
        if (chosen := places == place).any()
    )
    return round(float(total) / len(probability), 6)


def bin_of(probability: NDArray[Any]) -> NDArray[Any]:
    """The bin of each probability."""
    return np.asarray(np.minimum((probability * BINS).astype(int), BINS - 1))


def risk_coverage(confidence: NDArray[Any], right: NDArray[Any]) -> tuple[CoveragePoint, ...]:
    """For each accuracy of TARGETS that can be reached, the lowest threshold that reaches it, by
    calibrated confidences `[N]` and whether the answers are right.

    Two estimates of the accuracy above a threshold must both reach it. One is the lower end of
    Wilson's interval at one standard error (Wilson 1927): of a few rows that are all right nothing
    certain follows. The other is the mean confidence: of a thousand thresholds, one that is chosen
    for the share of right answers above it has often been lucky.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], np.cumsum(right[order])
    kept = np.arange(1, len(sure) + 1)
    # rows of equal confidence are kept together
    ends = np.append(sure[1:] < sure[:-1], True)
    reached = np.minimum(_wilson(hits, kept), np.cumsum(sure) / kept)
    lower = np.where(ends, reached, 0.0)
    points: list[CoveragePoint] = []
    for target in TARGETS:
        fits = np.flatnonzero(lower >= target)
        if len(fits) == 0:
            break
        last = int(fits[-1])
        whole = last == len(sure) - 1
        # halfway to the next row: a server's confidence differs in its last digits
        threshold = 0.0 if whole else float(sure[last] + sure[last + 1]) / 2
        point = CoveragePoint(
            accuracy=target,
            coverage=round((last + 1) / len(sure), 4),
            threshold=threshold,  # not rounded: near 1, that could put it above every row
        )
        if points and points[-1].threshold == point.threshold:
            points.pop()  # the same answers, of which now more is known
        points.append(point)
    return tuple(points)


def coverage_told(points: tuple[CoveragePoint, ...]) -> str:
    """The coverage at the accuracies of TOLD, in words."""
    parts = []
    for accuracy in TOLD:
        point = next((each for each in points if each.accuracy >= accuracy), None)
        share = "not reached" if point is None else f"{100 * point.coverage:.0f} % of the rows"
        parts.append(f"{100 * accuracy:.0f} % right: {share}")
    return "; ".join(parts)


def targets(data: Dataset) -> NDArray[Any]:
    """`[N]` of label indices or numbers, or `[N, C]` of which labels each row has."""
    if data.problem_type != "multi_label_classification":
        return np.array(data.targets)
    wanted = np.zeros((len(data.targets), len(data.labels)), dtype=bool)
    for i, indices in enumerate(data.targets):
        wanted[i, indices] = True
    return wanted


def probabilities(
    problem_type: ProblemType, logits: Tensor, temperatures: tuple[float, ...] | None = None
) -> Tensor:
    """`[N, C]`: of a row's labels together 1, or each label's own; a number as it is."""
    if problem_type == "regression":
        return logits
    scaled = tempered(logits, temperatures)
    if problem_type == "multi_label_classification":
        return scaled.sigmoid()
    return scaled.softmax(dim=-1)


def _answers(data: Dataset, logits: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Probabilities, and whether what they are of is so: of each row's answer, or of every label
    of every row."""
    found = probabilities(data.problem_type, logits.double()).numpy()
    if data.problem_type == "multi_label_classification":
        return found.ravel(), targets(data).ravel()
    # by the logits: probabilities may saturate
    best = logits.argmax(dim=-1).numpy()
    return found.max(axis=1), best == targets(data)


def _minimised(loss: Callable[[float], float]) -> float:
    bounds = tuple(map(math.log, FITTED))
    found = minimize_scalar(
        lambda log: loss(math.exp(log)), bounds=bounds, method="bounded", options={"xatol": 1e-5}
    )
    return round(math.exp(found.x), 4)


def _wilson(hits: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """The lower end of Wilson's interval for z = 1."""
    share = hits / rows
    spread = np.sqrt(share * (1 - share) / rows + 1 / (4 * rows**2))
    return np.asarray((share + 1 / (2 * rows) - spread) / (1 + 1 / rows))
