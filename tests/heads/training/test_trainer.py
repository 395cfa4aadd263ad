"""The trainer: what is promised about order, resuming, divergence, precision and stopping."""

import math
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn

from heads.contract import NullProgress, TrainOptions
from heads.training.arithmetic import choose_precision
from heads.training.checkpoint import Checkpoint
from heads.training.sources import TensorSource
from heads.training.trainer import Schedule, train_module
from headwater.errors import ConfigError, DataError, FeatureRangeError, ShapeError, TrainingError


class Recorder(NullProgress):
    """Keeps what it is told and can break the training at a step."""

    def __init__(self, break_at: int | None = None) -> None:
        self.metrics: list[tuple[str, int, float]] = []
        self.steps: list[tuple[int, int]] = []
        self.break_at = break_at

    def metric(self, name: str, value: float, epoch: int) -> None:
        self.metrics.append((name, epoch, value))

    def step(self, done: int, total: int, text: str) -> None:
        self.steps.append((done, total))
        if done == self.break_at:
            raise KeyboardInterrupt


def source(rows: int = 10, seed: int = 0) -> TensorSource:
    noise = torch.randn(rows, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return TensorSource({"a": noise + 1}, [f"image-{seed}-{i}" for i in range(rows)])


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    # Dropout draws from the generator in every step: a resume must restore it.
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.3), nn.Conv2d(4, 3, 1))


def train(module, data, options=TrainOptions(precision="float32"), progress=None, **changes):
    settings = {
        "optimizer": lambda p: torch.optim.Adam(p, lr=1e-2),
        "epochs": 6,
        "batch_size": 4,
        "seed": 3,
        "schedule": Schedule("one_cycle"),
        "clip_norm": 1.0,
        **changes,
    }
    held_out = settings.pop("held_out", source(3, seed=9))
    loss = settings.pop(
        "loss", lambda b: (module(b["a"]) - b["a"]).float().square().mean((1, 2, 3))
    )
    progress = progress or NullProgress()
    return train_module(
        module, loss, data, held_out, options=options, progress=progress, **settings
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("kind", ["constant", "cosine", "one_cycle"])
def test_resumed_training_ends_as_the_unbroken_one(tmp_path: Path, kind: str) -> None:
    schedule = Schedule(kind, warmup=0.3 if kind == "one_cycle" else 2)
    options = TrainOptions(precision="float32", checkpoint_dir=tmp_path, checkpoint_every=0)
    whole, told = net(), Recorder()
    expected = train(whole, source(), progress=told, schedule=schedule)

    with pytest.raises(KeyboardInterrupt):
        train(net(), source(), options, Recorder(break_at=11), schedule=schedule)
    # Another start's weights: all that counts comes from the checkpoint.
    resumed, told_again = net(seed=77), Recorder()
    result = train(resumed, source(), options, told_again, schedule=schedule)

    assert result.resumed_from == 3  # 3 steps an epoch, broken in the 4th epoch
    assert same(whole, resumed)
    assert result.history == expected.history
    assert told_again.metrics == told.metrics
    assert told_again.steps[0] == (10, 18)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_checkpoint_of_other_data_or_settings_is_not_resumed(tmp_path: Path) -> None:
    options = TrainOptions(precision="float32", checkpoint_dir=tmp_path, checkpoint_every=0)
    train(net(), source(), options, epochs=2)
    assert train(net(), source(), options, epochs=2).resumed_from == 2
    other_features = TensorSource({"a": source(10, seed=1).read(0, 10)["a"]}, source().ids)
    for again in (
        lambda: train(net(), other_features, options, epochs=2),
        lambda: train(net(), source(), options, epochs=3),
        lambda: train(net(), source(), options, epochs=2, seed=4),
        lambda: train(net(), source(), options, epochs=2, identity={"clamp": 3}),
        lambda: train(
            net(), source(), options, epochs=2, optimizer=lambda p: torch.optim.Adam(p, lr=2e-2)
        ),
    ):
        assert again().resumed_from == 0
    assert train(net(), source(), options, epochs=2).resumed_from == 2


def test_a_damaged_checkpoint_is_reported_and_the_training_begins_anew(tmp_path: Path) -> None:
    options = TrainOptions(precision="float32", checkpoint_dir=tmp_path, checkpoint_every=0)
    first = net()
    train(first, source(), options, epochs=2)
    (file,) = tmp_path.glob("*.ckpt")
    file.write_bytes(file.read_bytes()[:-500])
    again = net()
    damaged = file.read_bytes()
    with pytest.warns(UserWarning, match=r"set aside as \w+\.damaged, training begins anew"):
        assert train(again, source(), options, epochs=2).resumed_from == 0
    assert same(first, again)
    assert file.with_suffix(".damaged").read_bytes() == damaged
    assert train(net(), source(), options, epochs=2).resumed_from == 2  # a whole one is there again


def test_a_held_out_loss_that_is_not_finite_stops_the_training() -> None:
    module = net()

    def loss(batch):
        value = module(batch["a"]).float().square().mean((1, 2, 3))
        return value if module.training else value * math.inf

    with pytest.raises(TrainingError, match="after epoch 1: the loss of held-out images is inf"):
        train(module, source(), loss=loss)
    bad = torch.zeros(3, 3, 2, 2)
    bad[1, 0, 0, 0] = math.nan
    held = TensorSource({"a": bad}, ["one", "two", "three"])
    with pytest.raises(FeatureRangeError, match=r"held-out images: layer 'a' has NaN.*\(two\)"):
        train(net(), source(), held_out=held)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    keeper = Checkpoint(tmp_path, "k")
    keeper.save({"epochs": 1})
    with pytest.raises(Exception, match="pickle"):
        keeper.save({"epochs": 2, "bad": lambda: 0})
    state = keeper.load()
    assert state is not None
    assert state["epochs"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["k.ckpt"]


def test_nan_loss_names_step_and_remedy_and_leaves_the_weights() -> None:
    module, count = net(), 0
    before: dict[str, torch.Tensor] = {}

    def loss(batch):
        nonlocal count, before
        count += module.training
        if count == 5:
            before = {k: v.clone() for k, v in module.state_dict().items()}
        return module(batch["a"]).square().mean((1, 2, 3)) * (math.nan if count == 5 else 1.0)

    with pytest.raises(TrainingError, match=r"step 5 \(epoch 2\).*loss is nan") as caught:
        train(module, source(), loss=loss, clip_norm=None)
    assert "learning rate (lr, 0.01)" in caught.value.remedy
    assert "clip" in caught.value.remedy
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_a_loss_that_explodes_without_nan_is_noticed() -> None:
    module = net()
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=50.0), "schedule": Schedule()}
    with pytest.raises(TrainingError, match=r"grew from|loss is"):
        train(module, source(), clip_norm=None, epochs=50, **sgd)


def test_nan_features_are_blamed_on_their_image() -> None:
    maps = torch.zeros(4, 3, 2, 2)
    maps[2, 1, 0, 0] = math.nan
    bad = TensorSource({"a": maps}, ["one", "two", "three", "four"])
    with pytest.raises(FeatureRangeError, match=r"layer 'a' has NaN.*\(three\)"):
        train(net(), bad)


def test_order_of_batches_depends_on_seed_and_epoch_alone() -> None:
    def rows_seen(seed: int) -> list[list[int]]:
        module, seen = net(), []

        def loss(batch):
            if module.training:
                seen.append(batch["_rows"].tolist())
            return module(batch["a"]).square().mean((1, 2, 3))

        train(module, source(), loss=loss, epochs=2, seed=seed)
        return seen

    first = rows_seen(1)
    assert first == rows_seen(1)
    assert first != rows_seen(2)
    assert sorted(chain(*first[:3])) == list(range(10)) == sorted(chain(*first[3:]))
    assert first[:3] != first[3:]


def test_early_stopping_keeps_the_best_epoch_and_survives_a_resume(tmp_path: Path) -> None:
    def run(options, progress=None):
        module = nn.Conv2d(3, 3, 1)
        nn.init.eye_(module.weight.data[:, :, 0, 0])
        nn.init.zeros_(module.bias)
        # Held-out images want weight 0.5, training pulls it on to 0: past the best epoch.
        held = TensorSource({"a": torch.full((2, 3, 2, 2), 2.0)}, ["h1", "h2"])

        def loss(batch):
            target = 0.0 if module.training else 0.5 * batch["a"]
            return (module(batch["a"]) - target).float().square().mean((1, 2, 3))

        result = train(
            module,
            source(),
            options,
            progress,
            held_out=held,
            loss=loss,
            epochs=60,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.05),
            schedule=Schedule(),
        )
        return module, result

    plain = TrainOptions(precision="float32", early_stop=2)
    module, result = run(plain)
    curve = result.history["held_out_nll"]
    assert result.best_epoch == curve.index(min(curve)) + 1 < result.epochs == result.best_epoch + 2
    assert result.figures()["held_out_nll"] == min(curve)

    kept = TrainOptions(
        precision="float32", early_stop=2, checkpoint_dir=tmp_path, checkpoint_every=0
    )
    stop_in_last = 3 * (result.epochs - 1) + 2
    with pytest.raises(KeyboardInterrupt):
        run(kept, Recorder(break_at=stop_in_last))
    again, second = run(kept)
    assert second.resumed_from == result.epochs - 1
    assert second.best_epoch == result.best_epoch
    assert same(module, again)


def test_clipping_limits_the_step() -> None:
    def moved(clip: float | None) -> float:
        module = nn.Conv2d(3, 3, 1)
        nn.init.constant_(module.weight, 5.0)
        start = module.weight.detach().clone()
        train(module, source(), clip_norm=clip, epochs=1, batch_size=10, schedule=Schedule(),
              optimizer=lambda p: torch.optim.SGD(p, lr=1.0))  # fmt: skip
        return float((module.weight.detach() - start).norm())

    assert moved(0.01) <= 0.0101
    assert moved(None) > 1


def test_bfloat16_reaches_the_subnet_and_not_the_loss() -> None:
    module, seen = net(), set()

    def loss(batch):
        out = module(batch["a"])
        value = (out.float() - batch["a"]).square().mean((1, 2, 3))
        seen.add((out.dtype, value.dtype))
        return value

    result = train(module, source(), TrainOptions(precision="bfloat16"), loss=loss, epochs=1)
    assert seen == {(torch.bfloat16, torch.float32)}
    assert result.precision == "bfloat16"
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert choose_precision("auto", torch.device("cpu")) in ("float32", "bfloat16")


def test_schedules() -> None:
    def rates(schedule: Schedule) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        plan = schedule.build(optimizer, steps_per_epoch=5, epochs=4)
        got = []
        for _ in range(20):
            got.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            plan.step()
        return got

    assert rates(Schedule()) == [1.0] * 20
    warm = rates(Schedule("cosine", warmup=1, floor=0.1))
    assert warm[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert warm[5] == 1.0
    assert warm[5:] == sorted(warm[5:], reverse=True)
    assert 0.1 <= warm[-1] < 0.12
    cycle = rates(Schedule("one_cycle", warmup=0.3))
    assert max(cycle) == pytest.approx(1.0, rel=0.05)
    assert cycle[0] == pytest.approx(0.04)
    assert cycle[-1] < 0.05


def test_named_losses_single_images_and_threads() -> None:
    module, told, before = nn.Conv2d(3, 3, 1), Recorder(), torch.get_num_threads()

    def loss(batch):
        value = module(batch["a"]).float().square().mean()
        return {"loss": value + 1, "nll": value}

    lone = source(1)
    options = TrainOptions(precision="float32", threads=1, epochs=2)
    result = train(module, lone, options, told, loss=loss, held_out=lone)
    assert result.epochs == 2  # the option overrides the head's own number
    assert torch.get_num_threads() == before
    assert [m[0] for m in told.metrics[:4]] == [
        "train_loss", "train_nll", "held_out_loss", "held_out_nll",
    ]  # fmt: skip
    assert told.metrics[0][2] == pytest.approx(told.metrics[1][2] + 1)


def test_impossible_trainings_are_refused() -> None:
    empty = source().subset([])
    with pytest.raises(DataError, match="no normal images"):
        train(net(), empty)
    with pytest.raises(ConfigError, match="0 epochs"):
        train(net(), source(), epochs=0)
    with pytest.raises(ConfigError, match="early stopping"):
        train(net(), source(), TrainOptions(early_stop=1), held_out=empty)
    with pytest.raises(ConfigError, match="precision"):
        train(net(), source(), TrainOptions(precision="float8"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="device 'gpu'"):
        train(net(), source(), TrainOptions(device="gpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees 0 GPUs"):
            train(net(), source(), TrainOptions(device="cuda:1"))
    with pytest.raises(ShapeError):
        TensorSource({"a": torch.zeros(2, 1, 1, 1), "b": torch.zeros(3, 1, 1, 1)})
