"""Few-shot draws: as many examples as asked for, classes balanced, a seed's own."""

from __future__ import annotations

import dataclasses
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.training.test_training import NUMBERS, SEVERAL
from training.data import Dataset
from training.few_shot import draw


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60), st.data())
def test_classes_are_balanced(targets: list[int], data: st.DataObject) -> None:
    """No class is drawn twice more often than another that still had examples, and no example is
    drawn twice."""
    texts = [(str(i),) for i in range(len(targets))]
    whole = Dataset("single_label_classification", ("a", "b", "c", "d"), texts, targets)  # type: ignore[arg-type]
    shots = data.draw(st.integers(1, len(targets)))
    drawn = draw(whole, shots, seed=data.draw(st.integers(0, 9)))
    assert len(drawn.texts) == len(set(drawn.texts)) == shots
    assert drawn.labels == whole.labels
    assert all(
        targets[int(text[0])] == target
        for text, target in zip(drawn.texts, drawn.targets, strict=True)
    )
    there, taken = Counter(targets), Counter(drawn.targets)
    left = [taken[label] for label in there if taken[label] < there[label]]
    assert not left or max(taken.values()) <= min(left) + 1


def test_a_draw_is_its_seed_s() -> None:
    """The same seed draws the same examples, another one others; each kind of task can be drawn
    from."""
    numbers = dataclasses.replace(NUMBERS, targets=[float(i) for i in range(32)])
    for dataset in (numbers, SEVERAL):
        assert draw(dataset, 10, 1) == draw(dataset, 10, 1)
        assert draw(dataset, 10, 1).texts != draw(dataset, 10, 2).texts
        assert draw(dataset, 32, 1).problem_type == dataset.problem_type
