"""What one version of a split task did: counts, labels, scores, and how often it agreed."""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass, field

from adapters.calibration import calibrated, sigmoid, softmax
from service.predictor import Logits, Signature

REGRESSION, MULTI_LABEL = "regression", "multi_label_classification"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row's answer: its labels (none of a regression), and the score of the best, or the
    value."""

    labels: frozenset[str]
    score: float


def judged(logits: Logits, signature: Signature) -> Verdict | None:
    """The answer that logits are; None for logits that are NaN or infinite. A label of a
    multi-label task counts if its probability is over a half."""
    if not all(map(math.isfinite, logits)):
        return None
    if signature.problem_type == REGRESSION:
        return Verdict(frozenset(), logits[0])
    logits = calibrated(logits, signature.temperatures)  # as the answer's scores are
    best = max(range(len(logits)), key=logits.__getitem__)
    labels = signature.labels
    if signature.problem_type == MULTI_LABEL:
        chosen = frozenset(label for label, x in zip(labels, logits, strict=True) if x > 0)
        return Verdict(chosen, sigmoid(logits[best]))
    return Verdict(frozenset([labels[best]]), softmax(logits)[best])


@dataclass(slots=True)
class Seen:
    """Counts of one version. A request has a row for each of its texts, or windows of texts.

    `errors` are requests that it could not answer; `non_finite` those of them with logits that are
    NaN or infinite. `compared` are rows that the active version ran too, `disagreed` those to which
    it gave other labels, and `difference` the sum of the distances of their scores; `dropped` rows
    were to be compared, but the device had no time for them, or they were too long for the other.
    `seconds` are those of the device for its rows.
    """

    requests: int = 0
    errors: int = 0
    non_finite: int = 0
    rows: int = 0
    score: float = 0.0
    labels: collections.Counter[str] = field(default_factory=collections.Counter)
    compared: int = 0
    disagreed: int = 0
    difference: float = 0.0
    dropped: int = 0
    seconds: float = 0.0

    def answered(self, verdict: Verdict) -> None:
        """One row."""
        self.rows += 1
        self.score += verdict.score
        self.labels.update(verdict.labels)

    def failed(self, *, non_finite: bool) -> None:
        """One request."""
        self.requests += 1
        self.errors += 1
        self.non_finite += non_finite

    def agreed(self, own: Verdict, active: Verdict) -> None:
        """One row that both versions ran."""
        self.compared += 1
        self.disagreed += own.labels != active.labels
        self.difference += abs(own.score - active.score)
