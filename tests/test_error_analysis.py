"""Counts of labels and the most confident mistakes: in blocks the same as at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imet_ray.prediction.decode import ExpectedScore, Threshold
from imet_ray.prediction.metrics import METRICS
from imet_ray.reporting import error_analysis as mistakes
from imet_ray.reporting.error_analysis import PER_LABEL, Mistake, confident_mistakes, count_labels

F2 = METRICS["f2"]


def obvious(probs, labels, k, *, wanted) -> list[Mistake]:
    """All cells that contradict, sorted; labels that are full are passed over."""
    sign = -1 if wanted else 1
    cells = [(row, c) for row, c in np.ndindex(probs.shape) if bool(labels[row, c]) == wanted]
    cells.sort(key=lambda cell: (-sign * probs[cell], *cell))
    taken: list[Mistake] = []
    for row, label in cells:
        if len(taken) < k and sum(mistake.label == label for mistake in taken) < PER_LABEL:
            taken.append(Mistake(row, label, float(probs[row, label])))
    return taken


@given(
    n=st.integers(1, 30),
    c=st.integers(1, 5),
    k=st.integers(1, 12),
    columns=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    half=st.booleans(),
)
def test_the_same_as_sorting_all_cells_with_ties_and_in_blocks(n, c, k, columns, seed, half):
    rng = np.random.default_rng(seed)
    probs = (rng.integers(0, 6, (n, c)) / 5).astype(np.float16 if half else np.float32)
    labels = rng.integers(0, 2, (n, c), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mistakes, "COLUMNS", columns)
        missing, unseen = confident_mistakes(probs, labels, k)
    assert missing == obvious(probs, labels, k, wanted=False)
    assert unseen == obvious(probs, labels, k, wanted=True)


def test_one_label_does_not_fill_the_page():
    probs = np.full((50, 2), 0.1, dtype=np.float32)
    probs[:, 0] = 0.9
    missing, unseen = confident_mistakes(probs, np.zeros((50, 2), dtype=np.uint8), 12)
    assert [mistake.label for mistake in missing] == [0, 0, 1, 1]
    assert unseen == []


def test_what_is_given_is_not_changed():
    probs, labels = np.ones((3, 2), dtype=np.float32), np.eye(3, 2, dtype=np.uint8)
    confident_mistakes(probs, labels, 2)
    assert (probs == 1).all()
    assert (labels == np.eye(3, 2)).all()


@pytest.mark.parametrize("decoder", [Threshold(threshold=0.4), ExpectedScore(metric="f2")])
def test_labels_are_counted_in_blocks_as_they_would_be_at_once(decoder, monkeypatch):
    rng = np.random.default_rng(0)
    probs, labels = rng.random((23, 5), dtype=np.float32), rng.integers(0, 2, (23, 5), dtype=np.uint8)
    monkeypatch.setattr(mistakes, "ROWS", 4)
    counts = count_labels(probs, labels, decoder)
    decoded = decoder.decode(probs)
    assert counts.hits.tolist() == (decoded & labels.astype(bool)).sum(axis=0).tolist()
    assert counts.chosen.tolist() == decoded.sum(axis=0).tolist()
    assert counts.true.tolist() == labels.sum(axis=0).tolist()


def test_the_score_of_labels_is_pooled_over_their_cells():
    rng = np.random.default_rng(1)
    probs, labels = rng.random((30, 4), dtype=np.float32), rng.integers(0, 2, (30, 4), dtype=np.uint8)
    decoder = Threshold(threshold=0.4)
    some = np.array([True, False, True, False])
    flat = decoder.decode(probs)[:, some].reshape(1, -1), labels[:, some].reshape(1, -1)
    assert count_labels(probs, labels, decoder).score(some, F2) == pytest.approx(F2.score(*flat))
