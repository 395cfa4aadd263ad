"""The moving parts of a training: steps, evaluation, the watch for divergence, the state.

And the result, which the loop fills in as it goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from heads.contract import Batch, FeatureSource, Progress, check_finite
from heads.looking import looking
from heads.training.arithmetic import autocast
from heads.training.sources import to_device
from headwater.errors import TrainingError
from headwater.spec import Precision

Loss = Tensor | Mapping[str, Tensor]
LossFn = Callable[[Batch], Loss]


@dataclass
class TrainResult:
    """What a training did.

    Parameters
    ----------
    epochs, steps
        Done in all, resumed ones included.
    history
        ``{metric: value per epoch}``.
    seconds
        Wall-clock time of this call.
    resumed_from
        Epochs that a checkpoint had already done.
    best_epoch
        The epoch whose weights were kept, where early stopping was asked for.
    precision
        Arithmetic that was used.
    """

    epochs: int = 0
    steps: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    resumed_from: int = 0
    best_epoch: int | None = None
    precision: Precision = "float32"

    def figures(self) -> dict[str, float]:
        """Return the final figures by name: those of the epoch whose weights were kept."""
        at = (self.best_epoch or self.epochs) - 1
        kept = {k: v[at] for k, v in self.history.items() if v}
        return {**kept, "epochs": float(self.epochs), "fit_seconds": self.seconds}


@dataclass
class Run:
    """The moving parts of one training, and their state."""

    module: nn.Module
    loss_fn: LossFn
    optimizer: Optimizer
    schedule: LRScheduler
    parameters: list[nn.Parameter]
    clip_norm: float | None
    device: torch.device
    precision: Precision
    best: dict[str, Tensor] | None = None
    first_loss: float | None = None

    def losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss and all figures of a batch."""
        given = to_device(batch, self.device)
        with autocast(self.device, self.precision), looking(given):
            got = self.loss_fn(given)
        figures = dict(got) if isinstance(got, Mapping) else {"nll": got}
        figures = {k: v.float().mean() for k, v in figures.items()}
        return figures["loss" if "loss" in figures else "nll"], figures

    def epoch(
        self,
        batches: Iterator[Batch],
        epoch: int,
        per_epoch: int,
        epochs: int,
        progress: Progress,
        ids: list[str],
    ) -> dict[str, float]:
        """Take one epoch's steps and return the mean figures."""
        self.module.train()
        sums: dict[str, Tensor] = {}
        seen = 0
        for index, batch in enumerate(batches):
            step = (epoch - 1) * per_epoch + index + 1
            self.optimizer.zero_grad(set_to_none=True)
            loss, figures = self.losses(batch)
            loss.backward()
            norm = self._clip()
            value, size = torch.stack([loss.detach(), norm.to(loss)]).tolist()
            self._watch(value, size, step, epoch, batch, ids)
            self.optimizer.step()
            self.schedule.step()
            rows = next(len(x) for x in batch.values())
            seen += rows
            for k, v in figures.items():
                sums[k] = sums.get(k, 0.0) + v.detach() * rows
            progress.step(step, per_epoch * epochs, f"epoch {epoch}/{epochs}, loss {value:.4f}")
        return {k: float(v) / seen for k, v in sums.items()}

    def evaluate(self, source: FeatureSource, batch_size: int, epoch: int = 0) -> dict[str, float]:
        """Return the mean figures of `source`, weighted by images.

        Raises
        ------
        FeatureRangeError, TrainingError
            Where the loss is not finite: the weights that the last step left may be at fault.
        """
        self.module.eval()
        sums: dict[str, float] = {}
        with torch.no_grad():
            for batch in source.batches(batch_size):
                rows = next(len(x) for x in batch.values())
                loss, figures = self.losses(batch)
                if not math.isfinite(value := float(loss)):
                    check_finite(batch, "held-out images", source.ids)
                    raise self._diverged(
                        f"after epoch {epoch}: the loss of held-out images is {value:.4g}"
                    )
                for k, v in figures.items():
                    sums[k] = sums.get(k, 0.0) + float(v) * rows
        return {k: v / len(source) for k, v in sums.items()}

    def _clip(self) -> Tensor:
        """Clip the gradients where asked to; return their norm before."""
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None]
        )
        # `epoch` waits for the norm in any case; gradients that are short enough are left alone.
        # One that is not finite is for `_watch` to find.
        if self.clip_norm is not None and float(norm) > self.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        return norm

    def _watch(
        self, loss: float, norm: float, step: int, epoch: int, batch: Batch, ids: list[str]
    ) -> None:
        """Raise where the training has gone wrong; called before the weights are touched."""
        if math.isfinite(loss) and math.isfinite(norm):
            if self.first_loss is None:
                self.first_loss = loss
            grown = loss - self.first_loss > 1000 * max(1.0, abs(self.first_loss))
            if not grown:
                return
            what = f"the loss grew from {self.first_loss:.4g} to {loss:.4g}"
        else:
            check_finite(batch, "training", ids)
            what = f"the loss is {loss:.4g} and the gradient norm {norm:.4g}"
        raise self._diverged(f"at step {step} (epoch {epoch}): {what}")

    def _diverged(self, what: str) -> TrainingError:
        """Return the error of a training that went wrong, with what can be done."""
        # What was asked for: where the schedule stands now is in no setting.
        group = self.optimizer.param_groups[0]
        rate = group.get("max_lr", group.get("initial_lr", group["lr"]))
        remedy = f"lower the learning rate (lr, {rate:.3g})"
        if self.clip_norm is None:
            remedy += ", clip the gradient norm"
        if self.precision == "bfloat16":
            remedy += ", or train in float32 (training.precision)"
        return TrainingError(
            f"training diverged {what}", expected="a finite loss that falls", remedy=remedy
        )

    def remember_best(self, early_stop: int | None, result: TrainResult) -> None:
        """Keep a copy of the weights where this epoch is the best so far."""
        if early_stop is None:
            return
        values = result.history.get("held_out_nll") or result.history["held_out_loss"]
        if values[-1] <= min(values):
            result.best_epoch = result.epochs
            self.best = {k: v.detach().cpu().clone() for k, v in self.module.state_dict().items()}

    def state(self, result: TrainResult) -> dict[str, Any]:
        """Return all that a resumed training needs."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device)
            if self.device.type == "cuda"
            else None,
            "best": self.best,
            "first_loss": self.first_loss,
            "epochs": result.epochs,
            "steps": result.steps,
            "history": result.history,
            "best_epoch": result.best_epoch,
        }

    def restore(self, state: dict[str, Any], result: TrainResult) -> None:
        """Take up where `state` was written."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        kept = self.schedule.state_dict()
        self.schedule.load_state_dict({**kept, **state["schedule"]})
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] is not None:
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)
        self.best, self.first_loss = state["best"], state["first_loss"]
        result.epochs, result.steps = state["epochs"], state["steps"]
        result.history, result.best_epoch = state["history"], state["best_epoch"]
        result.resumed_from = result.epochs
