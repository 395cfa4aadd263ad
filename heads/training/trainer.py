"""The trainer that all learning heads share.

It owns what is easy to get wrong: the order of batches, mixed precision, clipping, noticing
divergence, and checkpoints from which a broken training ends with the unbroken one's result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from heads.contract import FeatureSource, HeadConfig, Progress, TrainOptions
from heads.parts.seeds import seed_from
from heads.training.arithmetic import choose_precision, device_of, running
from heads.training.checkpoint import Checkpoint
from heads.training.loop import LossFn, Run, TrainResult
from heads.training.sources import source_fingerprint
from headwater.errors import ConfigError, DataError
from headwater.spec import digest


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the steps of a training, as a factor of the optimizer's own rate.

    Parameters
    ----------
    kind
        ``constant``, ``cosine`` (to `floor` at the last step) or ``one_cycle`` (`OneCycleLR` with
        the optimizer's rate as its top).
    warmup
        Epochs of linear warm-up in front (``constant`` and ``cosine``); for ``one_cycle`` the
        share of steps that rise.
    floor
        Factor at the end of ``cosine``.

    Examples
    --------
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> plan = Schedule("cosine").build(optimizer, steps_per_epoch=2, epochs=2)
    >>> [round(plan.lr_lambdas[0](step), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """

    kind: Literal["constant", "cosine", "one_cycle"] = "constant"
    warmup: float = 0.0
    floor: float = 0.0

    def build(self, optimizer: Optimizer, steps_per_epoch: int, epochs: int) -> LRScheduler:
        """Return the scheduler; it is stepped once per batch."""
        total = max(1, steps_per_epoch * epochs)
        if self.kind == "one_cycle":
            rates = [group["lr"] for group in optimizer.param_groups]
            return OneCycleLR(
                optimizer,
                rates,
                # One step more than will be asked, as OneCycleLR counts the step at its making.
                total_steps=total + 1,
                pct_start=self.warmup or 0.3,
                cycle_momentum=False,
            )
        rise = max(0, round(self.warmup * steps_per_epoch))

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            if self.kind == "constant":
                return 1.0
            part = min(1.0, (step - rise) / max(1, total - rise))
            return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * part))

        return LambdaLR(optimizer, factor)


def adam(
    parameters: Iterable[nn.Parameter],
    config: HeadConfig,
    *,
    decoupled: bool = False,
    fused: bool = True,
) -> Optimizer:
    """Return Adam with those of its settings that the configuration has.

    These are ``lr``, ``betas``, ``eps`` and ``weight_decay``; the last is AdamW's where
    `decoupled`. Where `fused` all parameters are one kernel, which leaves their versions as they
    were.
    """
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    names = ("lr", "betas", "eps", "weight_decay")
    settings = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return kind(parameters, fused=fused or None, **settings)


def train_module(
    module: nn.Module,
    loss_fn: LossFn,
    train: FeatureSource,
    held_out: FeatureSource,
    *,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    epochs: int,
    batch_size: int,
    seed: int,
    options: TrainOptions,
    progress: Progress,
    schedule: Schedule = Schedule(),
    clip_norm: float | None = None,
    drop_last: bool = False,
    identity: Any = None,
) -> TrainResult:
    """Train `module` in place on normal features.

    Parameters
    ----------
    module
        What learns. It is moved to the device; on return it is in eval mode, on that device.
    loss_fn
        ``batch -> loss``: per sample ``[B]`` or their mean, the negative log-likelihood per
        dimension; or a mapping with the key ``loss`` and further figures (``nll``) to be shown.
        It is called under autocast and must make log-determinants and losses float32. For
        held-out batches it is called in eval mode without gradients.
    train, held_out
        Normal images; `held_out` may be empty where no early stopping is asked for.
    optimizer
        Makes the optimizer from the parameters that require gradients.
    epochs, batch_size, seed
        The order of an epoch's batches is decided by seed and epoch alone.
    options
        Device, precision, threads, checkpoints.
    progress
        Gets ``train_<figure>`` and ``held_out_<figure>`` per epoch and each step.
    schedule
        Learning rate, stepped per batch.
    clip_norm
        Gradient norm is clipped to this.
    drop_last
        Leave out a last batch that is not full (for losses over the batch).
    identity
        JSON-ready (or a dataclass) description of the model; part of the checkpoint's key.

    Returns
    -------
    TrainResult

    Raises
    ------
    TrainingError
        Where loss or gradient is not finite or the loss grew a thousandfold; names the step.
    FeatureRangeError
        Where the cause is features that are not finite.
    DataError
        Where there is nothing to train on.
    """
    began = time.perf_counter()
    total_epochs = options.epochs if options.epochs is not None else epochs
    _check(train, held_out, options, total_epochs, batch_size)
    device = device_of(options.device)
    precision = choose_precision(options.precision, device)
    batch_size = min(batch_size, len(train))
    per_epoch = len(train) // batch_size if drop_last else math.ceil(len(train) / batch_size)

    gpus = [device.index or 0] if device.type == "cuda" else []
    with running(device, options.threads), torch.random.fork_rng(gpus):
        torch.manual_seed(seed)
        module.to(device)
        parameters = [p for p in module.parameters() if p.requires_grad]
        optim = optimizer(parameters)
        plan = schedule.build(optim, per_epoch, total_epochs)
        run = Run(module, loss_fn, optim, plan, parameters, clip_norm, device, precision)
        result = TrainResult(precision=precision)
        keeper = None
        if options.checkpoint_dir is not None:
            tensors = {k: list(v.shape) for k, v in module.state_dict().items()}
            rest = [total_epochs, batch_size, seed, clip_norm, drop_last, precision, device.type]
            # All that decides the result.
            key = {
                "identity": digest(identity),
                "module": [type(module).__qualname__, tensors],
                "optimizer": [type(optim).__name__, {k: str(v) for k, v in optim.defaults.items()}],
                "schedule": [schedule.kind, schedule.warmup, schedule.floor],
                "early_stop": options.early_stop,
                "data": [source_fingerprint(train), source_fingerprint(held_out)],
                "rest": rest,
            }
            keeper = Checkpoint(options.checkpoint_dir, digest(key))
        if keeper is not None and (state := keeper.load()) is not None:
            run.restore(state, result)
            for epoch in range(1, result.epochs + 1):
                for name, values in result.history.items():
                    progress.metric(name, values[epoch - 1], epoch)
        patience = math.inf if options.early_stop is None else options.early_stop
        saved, first_epoch = time.perf_counter(), result.epochs
        for epoch in range(first_epoch + 1, total_epochs + 1):
            if result.best_epoch is not None and epoch - 1 - result.best_epoch >= patience:
                break
            order = seed_from(seed, epoch)
            batches = train.batches(batch_size, seed=order, drop_last=drop_last)
            figures = run.epoch(batches, epoch, per_epoch, total_epochs, progress, train.ids)
            figures = {f"train_{k}": v for k, v in figures.items()}
            for k, v in run.evaluate(held_out, batch_size, epoch).items():
                figures[f"held_out_{k}"] = v
            result.epochs, result.steps = epoch, result.steps + per_epoch
            for name, value in figures.items():
                result.history.setdefault(name, []).append(value)
                progress.metric(name, value, epoch)
            run.remember_best(options.early_stop, result)
            if keeper is not None and (
                epoch == total_epochs or time.perf_counter() - saved >= options.checkpoint_every
            ):
                keeper.save(run.state(result))
                saved = time.perf_counter()
        if run.best is not None and result.best_epoch != result.epochs:
            module.load_state_dict(run.best)
        module.eval()
    # As large as what comes next, a gallery of the same features say, and of no use to it.
    module.zero_grad(set_to_none=True)
    train.release()
    result.seconds = time.perf_counter() - began
    return result


def _check(
    train: FeatureSource, held_out: FeatureSource, options: TrainOptions, epochs: int, size: int
) -> None:
    if len(train) == 0:
        raise DataError(
            "no normal images to train on", expected="at least one", remedy="add normal images"
        )
    if epochs < 1 or size < 1:
        raise ConfigError(f"{epochs} epochs in batches of {size}", expected="at least 1 of each")
    if options.early_stop is not None and len(held_out) == 0:
        raise ConfigError(
            "early stopping without held-out images", remedy="hold out at least one normal image"
        )
