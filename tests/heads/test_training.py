"""What every head that learns by steps promises of its training, over the catalogue."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heads.catalogue import all_heads
from heads.contract import Head, NullProgress, TrainOptions
from heads.flow.flow_head import FlowHead
from heads.gallery.f2r import F2R
from heads.gallery.f2r_loss import Factorization
from heads.parts.seeds import seeded
from headwater.errors import TrainingError
from tests.heads.tiny import TINY, build

HEADS = [
    n
    for n in sorted(set(all_heads()) & set(TINY))
    if any(p.requires_grad for p in build(n).parameters())
]
EPOCHS = 3


def options(folder: Path | None = None, **more) -> TrainOptions:
    every = {"device": "cpu", "precision": "float32", "threads": 1, "epochs": EPOCHS, **more}
    return TrainOptions(checkpoint_dir=folder, checkpoint_every=0, **every)


class Seen(NullProgress):
    """Keeps the figures; stops the training at a step, by an interrupt or by a kill."""

    def __init__(self, stop: int = 0, how: int = 0) -> None:
        self.metrics: list[tuple[str, float, int]] = []
        self.steps, self.stop, self.how = 0, stop, how

    def metric(self, name: str, value: float, epoch: int) -> None:
        self.metrics.append((name, value, epoch))

    def step(self, done: int, total: int, text: str) -> None:
        if not text.startswith("epoch"):
            return
        self.steps += 1
        if self.steps == self.stop:
            if self.how:
                os.kill(os.getpid(), self.how)
            raise KeyboardInterrupt


def fit(name: str, how: TrainOptions, seen: Seen, **settings) -> Head:
    head, tiny = build(name, **settings), TINY[name]
    head.fit(tiny.data(), tiny.data(seed=1, rows=5), how, seen)
    return head.eval()


def same(a: Head, b: Head) -> None:
    for (key, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), key


def test_the_heads_of_the_papers_learn_by_steps() -> None:
    assert {"cs_flow", "csa_flow", "gca_flow", "dual_flow", "f2r", "pair_diff"} <= set(HEADS)


@pytest.mark.parametrize("name", HEADS)
def test_a_resumed_training_ends_as_the_unbroken_one(name: str, tmp_path: Path) -> None:
    whole, again = Seen(), Seen()
    expected = fit(name, options(), whole)
    broken = Seen(stop=whole.steps * (EPOCHS - 1) // EPOCHS + 1)  # within the last epoch
    with pytest.raises(KeyboardInterrupt):
        fit(name, options(tmp_path), broken)
    torch.manual_seed(12345)  # what the process drew in between must not matter
    resumed = fit(name, options(tmp_path), again)
    same(expected, resumed)
    assert again.metrics == whole.metrics
    assert again.steps < whole.steps


@pytest.mark.parametrize("name", ["pair_diff"])  # it draws flips and dropout in every step
def test_a_training_killed_within_an_epoch_ends_as_the_unbroken_one(
    name: str, tmp_path: Path
) -> None:
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from tests.heads.test_training import Seen, fit, options\n"
        "torch.set_num_threads(1)\n"
        f"fit({name!r}, options(Path(sys.argv[1])), Seen(7, {int(signal.SIGKILL)}))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    again, whole = Seen(), Seen()
    resumed = fit(name, options(tmp_path), again)
    same(fit(name, options(), whole), resumed)
    assert again.metrics == whole.metrics
    assert again.steps < whole.steps


@pytest.mark.parametrize("name", HEADS)
def test_a_training_that_diverges_says_where_and_what_to_do(name: str) -> None:
    with pytest.raises(TrainingError, match=r"diverged (at step|after epoch) \d+") as caught:
        fit(name, options(epochs=40), Seen(), lr=1e9)
    assert "lower the learning rate (lr, 1e+09)" in caught.value.remedy


@pytest.mark.parametrize("name", HEADS)
def test_bfloat16_trains_and_scores_are_float32(name: str) -> None:
    seen = Seen()
    head = fit(name, options(precision="bfloat16"), seen)
    assert all(math.isfinite(v) for _, v, _ in seen.metrics)
    batch = TINY[name].data(seed=2, rows=3).read(0, 3)
    scores = head.score(batch)
    assert scores.image.dtype == scores.maps.dtype == torch.float32
    assert torch.isfinite(scores.image).all()
    if not isinstance(head, FlowHead):
        return
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        z, logdet = head.latent(batch)
        back = head.reverse(z)
        nll = head.nll(batch)
    assert logdet.dtype == nll.dtype == torch.float32
    for x, y in zip(head.inputs(batch), back, strict=True):
        assert float((x - y).abs().max()) < 2e-3 * max(1.0, float(x.abs().max()))


@pytest.mark.parametrize("name", HEADS)
def test_held_out_figures_come_every_epoch_and_stopping_on_them_is_a_choice(name: str) -> None:
    seen = Seen()
    fit(name, options(epochs=4), seen)
    told = {(k, epoch) for k, _, epoch in seen.metrics if k.startswith("held_out_")}
    key = "held_out_nll" if isinstance(build(name), FlowHead) else "held_out_loss"
    rows = 1 + TINY[name].views  # f2r's epochs count images, each of them seen as one of its views
    assert {epoch for k, epoch in told if k == key} == set(range(1, 4 // rows + 1))
    stopped = Seen()
    fit(name, options(epochs=60, early_stop=1), stopped, lr=0.05)
    curve = [v for k, v, _ in stopped.metrics if k == key]
    assert len(curve) == 60 // rows or curve[-1] > min(curve)


def test_gradients_reach_everything_that_f2r_and_pair_diff_train() -> None:
    head = build("f2r")
    assert isinstance(head, F2R)
    with seeded(0):
        module = Factorization(head.net, head.channels, 12, gamma=0.001, positions=0, squared=False)
    # couplings begin at zero: their first layers learn from the second step on
    for parameter in module.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    batch = TINY["f2r"].data(rows=4).read(0, 4)
    module.train()(batch[head.layer])["loss"].backward()
    other = build("pair_diff", dropout=0.0)
    for parameter in other.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    pairs = next(iter(TINY["pair_diff"].data(rows=4).batches(4)))
    other.train().loss(pairs)["loss"].mean().backward()  # type: ignore[operator]
    for trained in (module, other):
        dead = [
            k
            for k, p in trained.named_parameters()
            if p.grad is None or float(p.grad.abs().max()) == 0
        ]
        assert not dead
