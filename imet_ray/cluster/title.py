"""What a worker is called while it trains: on the log pages of Ray's dashboard, in `ps`, `top` and `nvidia-smi`.

Ray names an actor once, and Tune gives one actor many trials; so the trial stands in its log and in its title.
"""

from ray._raylet import setproctitle  # type: ignore[attr-defined]  # compiled

from imet_ray.specs import TrialSpec


def announce(spec: TrialSpec, phase: str, whom: str = "") -> None:
    """A line in the worker's log.

    Args:
        whom: which of the trial's workers, where there are several.
    """
    print(f"{_title(spec, phase)}{whom}: {spec.hparams}", flush=True)


def entitle(spec: TrialSpec, phase: str) -> None:
    """The process's title, which Ray sets anew each time that Tune calls: once an epoch."""
    setproctitle(f"ray::{_title(spec, phase)}")


def _title(spec: TrialSpec, phase: str) -> str:
    return f"{spec.variant.name} fold {spec.fold} {phase} {spec.trial_id}"
