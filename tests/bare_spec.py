"""A trial's spec for tests that train nothing: of a variant of their own, on data that are not there."""

from imet_ray.specs import Hparam, TrialSpec, Variant


def bare_spec(variant: Variant, fold: int = 0, n_folds: int = 3, **hparams: Hparam) -> TrialSpec:
    """On one of the folds."""
    return TrialSpec(
        variant=variant,
        hparams=hparams,
        fold=fold,
        n_folds=n_folds,
        seed=0,
        data_digest="data",
        folds_digest="folds",
        pack_short_side=64,
    )
