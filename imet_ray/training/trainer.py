"""The trainer of one trial: from its last state on disk, or from nothing, epoch by epoch to its result.

All randomness of an epoch derives from (seed, epoch), and the state is written after each epoch. So a trial that is
killed and started again ends with the same weights as one that ran through. Several processes may train together, as a
`Team`: all hold the same weights, and the first one writes. What happens when training fails is
`imet_ray.training.train_trial`.
"""

import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch.utils.data import DataLoader

from imet_ray.data.augmentation import TrainTransform
from imet_ray.data.loader import Batch, Timed, TrainDataset, train_batches
from imet_ray.data.mixing import mixed
from imet_ray.data.training_data import TrainingData
from imet_ray.errors import TrialError
from imet_ray.models.checkpoint import CheckpointInfo, load_state, load_weights, save_state, save_weights
from imet_ray.models.models import build_model, check_model, train_mode
from imet_ray.prediction.metrics import log_loss, metric_named
from imet_ray.prediction.predict import Inference, predict_rows
from imet_ray.specs import Mixed, TrialSpec
from imet_ray.storage.checked_read import file_digest, read_json
from imet_ray.storage.files import write_json_lines
from imet_ray.storage.results import TrialResult, write_result
from imet_ray.storage.run_directory import TrialDirectory
from imet_ray.training.averages import build_average, frozen_norms, renew_statistics
from imet_ray.training.distributed import Hardware, SplitError
from imet_ray.training.kept_weights import KEEPS, Judge
from imet_ray.training.losses import build_loss
from imet_ray.training.optimizers import build_optimizer
from imet_ray.training.parents import beginning
from imet_ray.training.pseudo_labels import pseudo_labels
from imet_ray.training.schedules import build_schedule

MAX_SPLITS = 4  # a batch is halved at most twice when the GPU's memory is too small
NAN_CHECK_UPDATES = 20  # each check waits for the GPU
# Pictures, all epochs: from here on cuDNN may try which of its kernels are fastest. Where eight trials of 48 px shared
# an H100 first epochs, which did so, took 11 to 65 s, later ones 0.8 s. What the search gains was not measured.
LONG_TRIAL = 500_000

EpochMetrics = dict[str, Any]


class Trainer:
    """Trains one trial, as long as this process lives."""

    def __init__(
        self, spec: TrialSpec, data: TrainingData, trial: TrialDirectory, token: str, hardware: Hardware
    ) -> None:
        """
        Args:
            token: of this writer of the trial's directory.
        """
        self.spec, self.recipe = spec, spec.recipe
        self.data, self.trial, self.token = data, trial, token
        self.hardware, self.device, self.team = hardware, hardware.device, hardware.team
        recipe, team = self.recipe, self.team
        # A team that lost workers trains on with the same batches, in as many parts as before.
        self.batch_size = recipe.batch_size * spec.workers
        self.splits = batch_splits(trial)
        self.parts = self.splits * -(-spec.workers // team.size)
        self.pack = data.split.pack(spec.pack_short_side)
        self.held_out = data.rows(spec.fold, held_out=True)
        self.dataset = TrainDataset(
            self.pack,
            data.rows(spec.fold, held_out=False),
            data.labels,
            TrainTransform.of(recipe),
            spec.seed,
            sampler=recipe.sampler,
            targets=self._targets(),
        )
        state = load_state(trial.last)
        check_model(recipe.architecture, recipe.image_size, recipe.dropout, recipe.drop_path, recipe.freeze)
        torch.manual_seed(spec.seed)
        self.model = build_model(
            recipe.architecture,
            n_labels=len(data.label_ids),
            image_size=recipe.image_size,
            dropout=recipe.dropout,
            weights=beginning(spec, trial) if state is None else "none",
            prior=data.labels[self.dataset.rows].mean(0) if state is None else None,
            drop_path=recipe.drop_path,
        )
        if recipe.freeze:
            train_mode(self.model, head_only=False, freeze=recipe.freeze)  # the optimizer has the others only
        if spec.batch_norm == "sync" and team.size > 1:
            self.model = convert_sync_batchnorm(self.model)
        # on a CPU core 1.5 to 1.7 x, too
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.shared: torch.nn.Module = self.model  # what runs forward while training
        torch.backends.cudnn.benchmark = recipe.epochs * len(self.dataset) >= LONG_TRIAL
        self.loss = build_loss(recipe.loss, recipe.loss_weight, smoothing=recipe.label_smoothing)
        self.optimizer = build_optimizer(self.model, recipe)
        self.updates_per_epoch = -(-len(self._batches(0)) // recipe.accumulate)
        self.schedule = build_schedule(self.optimizer, recipe, updates_per_epoch=self.updates_per_epoch)
        self.average = build_average(
            self.model, self.optimizer, recipe, updates_per_epoch=self.updates_per_epoch
        )
        self.keep = KEEPS[recipe.keep](recipe)
        self.epoch = 0  # the next to train
        self.history: list[EpochMetrics] = []
        if state is not None:
            self._restore(state)
        if team.broadcast(self.epoch) != self.epoch:
            raise SplitError(f"{trial.root}: epoch {self.epoch}, of which the leader knows nothing")

    def _targets(self) -> np.ndarray | None:
        """What is learnt, (N, C), where it is not the labels alone. The leader chooses what is added."""
        how = self.recipe.added
        if how is None:
            return None
        if not self.team.leads:
            self.team.barrier()
        added = pseudo_labels(
            self.spec, self.data, self.trial, self.device, workers=self.hardware.loader_workers
        )
        if self.team.leads:
            self.team.barrier()
        return added.onto(self.data.labels, how.soft)

    def run(self, report: Callable[[EpochMetrics], None]) -> TrialResult:
        """Train to the end.

        Args:
            report: called after each epoch, when everything of it is on disk.

        Raises:
            TrialError: if the loss or a prediction becomes NaN.
        """
        while True:
            metrics = (
                self._train_epoch() if self.spec.soup_of is None else self._take_weights(self.spec.soup_of)
            )
            kept, scores = self._evaluate()
            metrics |= scores
            metrics |= {"host": socket.gethostname(), "at": round(time.time(), 3)}  # for the status
            self._save(metrics, kept)
            del kept  # it may be several models
            if self._ended:
                result = self._finish()
                report(metrics | {"ended": True})  # for who waits for as many epochs as the recipe has
                return result
            report(metrics)

    def _train_epoch(self) -> EpochMetrics:
        recipe, epoch, device = self.recipe, self.epoch, self.device
        torch.manual_seed(_epoch_seed(self.spec.seed, epoch) + self.team.rank)
        mixing = np.random.default_rng((self.spec.seed, epoch, 1, self.team.rank))
        train_mode(self.model, head_only=epoch < recipe.head_only_epochs, freeze=recipe.freeze)
        self.shared = self.team.wrap(self.model, device)
        self.dataset.set_epoch(epoch)
        batches = Timed(self._batches(self.hardware.loader_workers))
        total = len(batches)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = time.monotonic()
        loss_sum = torch.zeros((), device=device)
        update = epoch * self.updates_per_epoch
        seen = 0
        self.optimizer.zero_grad(set_to_none=True)
        for i, (images, targets) in enumerate(batches):
            if i % recipe.accumulate == 0:
                if not self.average.sets_rate(update):
                    self.schedule.before_update(update)
                share = min(recipe.accumulate, total - i)  # batches in this update
            images = images.to(device, non_blocking=True)
            targets = targets.to(device, non_blocking=True)
            images, targets = self._mixed(images, targets, mixing)
            # pictures of the batch, of all the team
            whole = min(self.batch_size, len(self.dataset) - i * self.batch_size)
            part = len(images) * self.team.size / whole  # the team averages, whatever each one's part
            updates = (i + 1) % recipe.accumulate == 0 or i + 1 == total
            loss_sum += part * self._backward(images, targets, part / share, updates=updates)
            seen += 1
            if updates:
                if recipe.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                update += 1
                self.average.after_update(update)
                if update % NAN_CHECK_UPDATES == 0:
                    self._refuse_nan(loss_sum, update)
        loss_sum = self._refuse_nan(loss_sum, update)
        seconds = time.monotonic() - started
        return {
            "epoch": epoch + 1,
            "train_loss": float(loss_sum) / seen,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "images_per_s": round(len(self.dataset) / seconds, 1),
            "wait_s": round(batches.waited, 3),
            "seconds": seconds,
            **({"workers": self.team.size} if self.spec.workers > 1 else {}),
            **({"gpu_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}),
        }

    def _take_weights(self, mixed: Mixed) -> EpochMetrics:
        """In place of an epoch: the weights of a trial that was trained."""
        started = time.monotonic()
        other = self.trial.run.trial(mixed.trials[self.epoch])
        other.fetch(other.best)
        load_weights(other.best, self.model)
        seconds = time.monotonic() - started
        return {"epoch": self.epoch + 1, "images_per_s": 0.0, "wait_s": 0.0, "seconds": seconds}

    def _batches(self, loaders: int) -> DataLoader[Batch]:
        return train_batches(
            self.dataset,
            batch_size=self.batch_size,
            workers=loaders,
            rank=self.team.rank,
            size=self.team.size,
            least=2 * self.spec.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _mixed(
        self, images: torch.Tensor, targets: torch.Tensor, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch after mixup or CutMix, where the recipe has one."""
        recipe = self.recipe
        if not (recipe.mixup or recipe.cutmix):
            return images, targets
        return mixed(
            images, targets, mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix, generator=generator
        )

    def _backward(
        self, images: torch.Tensor, targets: torch.Tensor, factor: float, *, updates: bool = True
    ) -> torch.Tensor:
        """Add one batch's gradient, times a factor; returns its mean loss, on the device.

        Args:
            updates: the optimizer's step follows, so that the team's gradients are averaged.
        """
        total = torch.zeros((), device=self.device)
        bf16 = self.device.type == "cuda" and self.recipe.precision == "bf16"
        n = min(self.parts, max(1, len(images) // 2))  # batch norm cannot learn from one picture
        parts = list(zip(images.tensor_split(n), targets.tensor_split(n), strict=True))
        for i, (part, wanted) in enumerate(parts):
            with self.team.averages(self.shared, updates and i + 1 == len(parts)):
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                    logits = self.shared(part)
                loss = self.loss(logits.float(), wanted) * (len(part) / len(images))
                torch.autograd.backward(loss * factor)
            total += loss.detach()
        return total

    def _evaluate(self) -> tuple[torch.nn.Module, EpochMetrics]:
        """Score what the epoch leaves, with the averaged weights where there are any: the model, and its figures."""
        started = time.monotonic()
        renew = self.average.after_epoch(self.epoch)
        model = self.average.judged
        self.team.broadcast_buffers(*dict.fromkeys((self.model, model)))  # in one order everywhere
        if renew:
            self._settle(model)
        kept, scores = self.keep.judge(self.epoch + 1, model, Judge(self._score, self._settle))
        return kept, scores | {"evaluate_s": round(time.monotonic() - started, 3)}

    def _score(self, model: torch.nn.Module) -> EpochMetrics:
        """Score the held-out fold by one view.

        Each of the team predicts a part, and has all scores. `expected_score` is None where the metric cannot maximise
        its expectation.
        """
        how = Inference.quick(self.recipe, self.device, workers=self.hardware.loader_workers)
        part = predict_rows(model, self.pack, self.team.shard(self.held_out), how)
        probs = self.team.gather(part, len(self.held_out))
        if not np.isfinite(probs).all():
            raise TrialError(f"predictions became NaN in epoch {self.epoch + 1}")
        metric, labels = metric_named(self.spec.metric), self.data.labels[self.held_out]
        threshold, score = metric.best_threshold(probs, labels)
        expected = None
        if metric.expects:
            expected = metric.score(metric.decode_expected(probs, negatives=self.data.negatives), labels)
        return {
            "valid_loss": log_loss(probs, labels),
            "score": score,
            "threshold": threshold,
            "expected_score": expected,
        }

    def _settle(self, model: torch.nn.Module) -> None:
        """Give a model batch-norm statistics of training pictures, of the same ones in all of the team."""
        how = Inference.quick(self.recipe, self.device, workers=self.hardware.loader_workers)
        how.batch_size = max(2, how.batch_size // self.splits)
        rows = self.data.rows(self.spec.fold, held_out=False)
        frozen = frozen_norms(self.model)
        renew_statistics(model, self.pack, rows, how, seed=self.spec.seed, frozen=frozen)
        self.team.broadcast_buffers(model)

    def _save(self, metrics: EpochMetrics, kept: torch.nn.Module) -> None:
        """Write everything of the epoch that has just ended.

        Args:
            kept: the model that the epoch left.
        """
        if self.team.leads:
            self.trial.check(self.token)
        self.epoch += 1
        self.history.append(metrics)
        score = metrics["score"]
        drops = self.schedule.after_epoch(score)
        last = self._ended
        if self.keep.kept(self.history) is metrics and (last or self.keep.at_once):
            info = CheckpointInfo(
                spec=self.spec,
                label_ids=self.data.label_ids,
                epoch=self.epoch,
                score=score,
                threshold=metrics["threshold"],
            )
            if self.team.leads:
                save_weights(self.trial.best, kept, info, self.trial.files)
            self.team.barrier()  # the others may read it now
            if not self.team.leads:
                self.trial.fetch(self.trial.best)
        if drops:
            load_weights(self.trial.best, self.model)
            self.average.restart()
        if not self.team.leads:
            return
        # the result follows the last epoch at once: saves 0.3 s per trial, and loses an epoch if it is killed just then
        if not last:
            state = {
                "epoch": self.epoch,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "ema": self.average.state_dict(),  # of any average
                "history": self.history,
                "kept": self.keep.state(),
            }
            save_state(self.trial.last, state, self.trial.files)
        write_json_lines(self.trial.metrics, self.history, self.trial.files)

    def _restore(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["ema"] is not None:
            self.average.load_state_dict(state["ema"])
        self.history = state["history"]
        self.keep.restore(state.get("kept", []))  # earlier versions had none

    def _finish(self) -> TrialResult:
        kept = self.keep.kept(self.history)
        result = TrialResult(
            trial_id=self.spec.trial_id,
            status="complete",
            score=kept["score"],
            threshold=kept["threshold"],
            expected_score=kept["expected_score"],
            epoch=kept["epoch"],
            epochs=self.epoch,
            seconds=sum(row["seconds"] + row["evaluate_s"] for row in self.history),
            images_per_s=float(np.mean([row["images_per_s"] for row in self.history])),
            batch_splits=self.splits,
            checkpoint_digest=file_digest(self.trial.best),
        )
        if self.team.leads:
            self.trial.check(self.token)
            write_result(self.trial, result)
            self.trial.files.remove(self.trial.last)  # a finished trial never goes on
        return result

    @property
    def _ended(self) -> bool:
        """True after the last epoch, or when the schedule's rate is spent."""
        return self.epoch == self.recipe.epochs or self.schedule.spent

    def _refuse_nan(self, loss_sum: torch.Tensor, update: int) -> torch.Tensor:
        """The sum over the team, if it is a number; all of the team refuse together."""
        loss_sum = self.team.mean(loss_sum)
        if not torch.isfinite(loss_sum):
            lr = self.optimizer.param_groups[0]["lr"]
            raise TrialError(
                f"the loss became NaN by update {update} (epoch {self.epoch + 1}, lr {lr:.2g}): "
                "lower lr, or set clip_norm"
            )
        return loss_sum


def batch_splits(trial: TrialDirectory) -> int:
    """Parts that a batch is computed in; known from before, where the GPU's memory was too small."""
    found = read_json(trial.splits) if trial.splits.exists() else 1
    return int(found) if found in (2, MAX_SPLITS) else 1


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.default_rng((seed, epoch)).integers(2**62))
