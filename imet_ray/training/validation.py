"""The score of a model on the fold that it is not trained on, after each epoch.

Out-of-fold passes are `imet_ray.prediction.predict`.
"""

import time

import numpy as np

from imet_ray.data.packed_images import Pack
from imet_ray.errors import TrialError
from imet_ray.models.models import Tagger
from imet_ray.prediction.metrics import log_loss, metric_named
from imet_ray.prediction.predict import Inference, predict_rows
from imet_ray.specs import TrialSpec
from imet_ray.training.distributed import Hardware


def evaluate_fold(
    model: Tagger,
    pack: Pack,
    rows: np.ndarray,
    labels: np.ndarray,
    spec: TrialSpec,
    *,
    epoch: int,
    hardware: Hardware,
) -> dict[str, float | None]:
    """Score the pictures of a held-out fold, one view; each of the team predicts a part, and has all scores.

    Args:
        rows: (n,) of the pack.
        labels: (n, C) uint8, of these rows.
        epoch: for the message.

    Returns:
        What stands in `metrics.jsonl`; `expected_score` is None where the metric cannot maximise its expectation.

    Raises:
        TrialError: if a probability is no number.
    """
    started = time.monotonic()
    metric = metric_named(spec.metric)
    how = Inference.of(spec.recipe, hardware.device, workers=hardware.loader_workers, n_views=1)
    probs = predict_rows(model, pack, hardware.team.share(rows), how)
    probs = hardware.team.gathered(probs, len(rows))
    if not np.isfinite(probs).all():
        raise TrialError(f"predictions became NaN in epoch {epoch}")
    threshold, score = metric.best_threshold(probs, labels)
    return {
        "valid_loss": log_loss(probs, labels),
        "score": score,
        "threshold": threshold,
        "expected_score": metric.score(metric.decode_expected(probs), labels) if metric.expects else None,
        "evaluate_s": round(time.monotonic() - started, 3),
    }
