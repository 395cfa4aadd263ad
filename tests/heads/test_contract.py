"""What every head promises, over the catalogue: a new head is tested by being there."""

import json
import math
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from features.backbones.backbone import load_backbone
from heads.catalogue import all_heads, get_head, make_config
from heads.contract import (
    Batch,
    FeatureSource,
    Head,
    NullProgress,
    Scores,
    TrainOptions,
)
from heads.flow.flow_head import FlowHead
from heads.pairs.source import PairSource
from heads.training.sources import TensorSource
from headwater.errors import FeatureRangeError, NotFittedError, ShapeError
from headwater.spec import LayerSpec
from tests.heads.pairs.tiny import pair_source
from tests.heads.tiny import TINY, build, check_log_determinant, structured

OPTIONS = TrainOptions(device="cpu", precision="float32", threads=1)
# A head without a tiny instance fails one test, which says what to do, and not all of them.
HEADS = [name for name in all_heads() if name in TINY]
FLOWS = [name for name in HEADS if issubclass(get_head(name), FlowHead)]


class Recorder(NullProgress):
    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {}

    def metric(self, name: str, value: float, epoch: int) -> None:
        self.curves.setdefault(name, []).append(value)


def fit(name: str, options: TrainOptions = OPTIONS, **settings) -> tuple[Head, Recorder]:
    head, recorder = build(name, **settings), Recorder()
    figures = head.fit(TINY[name].data(), TINY[name].data(seed=1, rows=5), options, recorder)
    assert all(math.isfinite(v) for v in figures.values()), figures
    return head.eval(), recorder


@cache
def fitted(name: str) -> tuple[Head, Recorder]:
    return fit(name)


def sample(name: str) -> Batch:
    source = TINY[name].data(seed=2, rows=7)
    batch = source.read(0, 7)
    # One image far off: an image in bad company must keep its score.
    return {k: torch.cat([v[:6], v[6:] * 20]) for k, v in batch.items()}


def pick(batch: Batch, rows: list[int]) -> Batch:
    return {k: v[rows] for k, v in batch.items()}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("name", all_heads())
def test_it_has_a_tiny_instance(name: str) -> None:
    assert name in TINY, f"add {name} to TINY of tests/heads/tiny.py"


@pytest.mark.parametrize("name", all_heads())
def test_it_says_what_it_is(name: str) -> None:
    cls = get_head(name)
    assert cls.paper, "where it comes from"
    assert cls.summary, "what it does, in a line"
    assert cls.reads, "in words, which maps it needs"
    assert cls.reference is not None, "at which maps it is measured: a Reference"
    side = cls.reference.pixels
    with torch.device("meta"):
        cls(make_config(name, cls.reference.settings), cls.reference.shapes, (side, side))
    assert isinstance(make_config(name, {}, "small"), cls.Config), "a preset that trains in minutes"


@pytest.mark.parametrize("name", HEADS)
def test_scores_have_the_promised_form(name: str) -> None:
    head, batch = fitted(name)[0], sample(name)
    scores = head.score(batch)
    assert isinstance(scores, Scores)
    assert scores.image.shape == (7,)
    assert scores.maps.shape == (7, *TINY[name].map_size)
    assert scores.image.dtype == scores.maps.dtype == torch.float32
    assert torch.isfinite(scores.image).all()
    assert torch.isfinite(scores.maps).all()
    assert not scores.image.requires_grad
    assert len(set(scores.image.tolist())) == 7


@pytest.mark.parametrize("name", HEADS)
def test_a_score_belongs_to_one_image(name: str) -> None:
    head, batch = fitted(name)[0], sample(name)
    whole = head.score(batch)
    for rows in ([0], [6], [2, 0, 1], [3, 6, 4], [6, 5, 4, 3, 2, 1, 0], [1, 1, 6]):
        part = head.score(pick(batch, rows))
        close(part.image, whole.image[rows])
        close(part.maps, whole.maps[rows])


@pytest.mark.parametrize("name", HEADS)
def test_the_same_seed_gives_the_same_head(name: str) -> None:
    first, second = fitted(name)[0], fit(name)[0]
    for (key, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", HEADS)
def test_in_a_rectangle_everything_stays_where_it_is(name: str) -> None:
    # Maps and images that are no squares, from the training to a head that is loaded: what is
    # odd at a corner shows at that corner, so nothing is turned on the way.
    tiny, cls = TINY[name], get_head(name)
    _, rows, columns = next(iter(tiny.shapes.values()))
    assert rows != columns
    size = (8 * rows, 8 * columns)

    def data(rows: int, seed: int) -> FeatureSource:
        labelled = cls.labelled  # then the masks are of the images' size
        return pair_source(tiny.shapes, rows, seed, size) if labelled else tiny.data(seed, rows)

    config = make_config(name, tiny.config)
    head, loaded = (cls(config, tiny.shapes, size) for _ in range(2))
    head.fit(data(tiny.rows, 0), data(5, 1), OPTIONS, NullProgress())
    loaded.load_state_dict(head.state_dict())
    batch = data(7, 2).read(0, 7)
    plain = loaded.eval().score(batch).maps
    assert plain.shape == (7, *size)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        odd = {k: v.clone() for k, v in batch.items()}
        own = [k for k in loaded.batch_shapes if not k.startswith("history")]
        for layer in own:
            height, width = odd[layer].shape[2:]
            corner = odd[layer][:, :, down * (height - 1), right * (width - 1)]
            changed = torch.randn(corner.shape[1], generator=torch.Generator().manual_seed(9))
            corner.add_(3 * changed).mul_(1 if cls.pairs else 4)
        more = (loaded.score(odd).maps - plain).abs().sum(0).unfold(0, size[0] // 2, size[0] // 2)
        quarters = more.unfold(1, size[1] // 2, size[1] // 2).sum((2, 3)).flatten()
        assert divmod(int(quarters.argmax()), 2) == (down, right), quarters


RESCORE = """
import json, sys, traceback, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from heads.catalogue import get_head, make_config
torch.set_num_threads(1)
def rescore(folder):
    about = json.loads((folder / "about.json").read_text())
    config = make_config(about["name"], about["config"])
    shapes = {k: tuple(v) for k, v in about["shapes"]}
    head = get_head(about["name"])(config, shapes, tuple(about["map_size"]))
    head.load_state_dict(load_file(folder / "state.safetensors"))
    scores = head.eval().score(load_file(folder / "batch.safetensors"))
    out = {"image": scores.image, "maps": scores.maps.contiguous()}
    save_file(out, folder / "scores.safetensors")
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        rescore(folder)
    except Exception:
        (folder / "error.txt").write_text(traceback.format_exc())
"""


@pytest.fixture(scope="module")
def rescored(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """What the saved heads score in one process of their own, a folder for each that is asked."""
    root = tmp_path_factory.mktemp("saved")
    users = [i for i in request.session.items if "rescored" in getattr(i, "fixturenames", ())]
    for name in (item.callspec.params["name"] for item in users):  # type: ignore[attr-defined]
        try:
            head, folder = fitted(name)[0], root / name
        except Exception:  # and its own test says so
            continue
        folder.mkdir()
        about = {
            "name": name,
            "config": asdict(head.config),
            "shapes": list(head.shapes.items()),
            "map_size": head.map_size,
        }
        (folder / "about.json").write_text(json.dumps(about))
        state = {k: v.detach().clone().contiguous() for k, v in head.state_dict().items()}
        save_file(state, folder / "state.safetensors")
        batch = {k: v.contiguous() for k, v in sample(name).items()}
        save_file(batch, folder / "batch.safetensors")
    command = [sys.executable, "-c", RESCORE, str(root)]
    subprocess.run(command, check=True, cwd=Path(__file__).resolve().parents[2], timeout=240)
    return root


@pytest.mark.parametrize("name", HEADS)
def test_a_saved_head_scores_the_same_in_a_new_process(name: str, rescored: Path) -> None:
    scores, folder = fitted(name)[0].score(sample(name)), rescored / name
    assert not (folder / "error.txt").exists(), (folder / "error.txt").read_text()
    got = load_file(folder / "scores.safetensors")
    assert torch.equal(got["image"], scores.image)
    assert torch.equal(got["maps"], scores.maps)


@pytest.mark.parametrize("name", HEADS)
def test_mistakes_end_in_a_clear_error(name: str) -> None:
    batch = sample(name)
    with pytest.raises(NotFittedError, match=name):
        build(name).score(batch)
    head = fitted(name)[0]
    # The first layer; of pairs, that of the current images.
    layer = next(iter(batch))
    with pytest.raises(ShapeError, match="maps of shape"):
        head.score({**batch, layer: batch[layer][..., :-1]})
    with pytest.raises(ShapeError, match="not in the batch"):
        head.score({k: v for k, v in batch.items() if k != layer})
    poisoned = {k: v.clone() for k, v in batch.items()}
    poisoned[layer][4, 0, 0, 0] = math.nan
    with pytest.raises(FeatureRangeError, match="row 4"):
        head.score(poisoned)


def poisoned(name: str, seed: int, rows: int) -> FeatureSource:
    """Return training features of which row 3's have a NaN."""
    source = TINY[name].data(seed, rows)
    inner = source._sources[0] if isinstance(source, PairSource) else source
    assert isinstance(inner, TensorSource)
    next(iter(inner._maps.values()))[3, 0, 0, 0] = math.nan
    return source


@pytest.mark.parametrize("name", HEADS)
def test_training_on_nan_or_other_shapes_is_refused(name: str) -> None:
    tiny = TINY[name]
    held_out = tiny.data(seed=1, rows=5)
    with pytest.raises(FeatureRangeError, match="NaN"):
        build(name).fit(poisoned(name, 0, tiny.rows), held_out, OPTIONS, NullProgress())
    wider = {k: (c, h, w + 1) for k, (c, h, w) in tiny.shapes.items()}
    other = pair_source(wider, 6, 0) if tiny.source else structured(wider, 6, 0, tiny.views)
    with pytest.raises(ShapeError):
        build(name).fit(other, held_out, OPTIONS, NullProgress())


@pytest.mark.parametrize("name", HEADS)
def test_a_nan_among_held_out_images_is_refused_or_not_looked_at(name: str) -> None:
    head = build(name)
    if any(p.requires_grad for p in head.parameters()):
        with pytest.raises(FeatureRangeError, match="NaN"):
            head.fit(TINY[name].data(), poisoned(name, 1, 5), OPTIONS, NullProgress())
    else:
        head.fit(TINY[name].data(), poisoned(name, 1, 5), OPTIONS, NullProgress())
        assert all(
            torch.equal(v, fitted(name)[0].state_dict()[k]) for k, v in head.state_dict().items()
        )


def test_a_training_leaves_the_backbone_alone() -> None:
    backbone = load_backbone("resnet18", untrained_seed=0)
    layers = tuple(LayerSpec((n,)) for n in ("layer1", "layer2", "layer3"))
    before = backbone.export_state(layers)
    maps = backbone.maps(torch.rand(4, 3, 32, 32), layers)
    assert not any(x.requires_grad for x in maps.values())
    shapes = {k: tuple(v.shape[1:]) for k, v in maps.items()}
    head = get_head("fast_flow")(
        make_config("fast_flow", {"steps": 1, "epochs": 1}), shapes, (32, 32)
    )
    head.fit(TensorSource(maps), TensorSource(maps), OPTIONS, NullProgress())
    after = backbone.export_state(layers)
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert not any(p.grad is not None for p in backbone._net.parameters())


# --- flow heads ---------------------------------------------------------------------------------


def shaken(name: str) -> FlowHead:
    """Return a fitted float64 copy with every parameter moved: no gain is at its start any more."""
    head = build(name)
    head.load_state_dict(fitted(name)[0].state_dict())
    generator = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(0.05 * noise)
    assert isinstance(head, FlowHead)
    return head.double().eval()


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("when", ["fresh", "fitted", "shaken in float64"])
def test_the_inverse_undoes_the_flow_head(name: str, when: str) -> None:
    head = {"fresh": build, "fitted": lambda n: fitted(n)[0]}.get(when, shaken)(name).eval()
    batch = TINY[name].data(seed=2, rows=3).read(0, 3)
    tolerance = 1e-3
    if "float64" in when:
        batch, tolerance = {k: v.double() for k, v in batch.items()}, 1e-9
    with torch.no_grad():
        z, logdet = head.latent(batch)
        back = head.reverse(z)
    assert logdet.shape == (3,)
    for x, y in zip(head.inputs(batch), back, strict=True):
        assert float((x - y).abs().max()) < tolerance * max(1.0, float(x.abs().max()))


@pytest.mark.parametrize("name", FLOWS)
def test_the_log_determinant_is_the_jacobians_per_sample(name: str) -> None:
    head = shaken(name)
    batch = {k: v.double() for k, v in TINY[name].data(seed=2, rows=3).read(0, 3).items()}
    claimed = check_log_determinant(head, batch, (0, 2))
    assert len(set(claimed.tolist())) > 1


@pytest.mark.parametrize("name", FLOWS)
def test_gradients_reach_every_parameter(name: str) -> None:
    head = shaken(name).train()
    batch = {k: v.double() for k, v in TINY[name].data(rows=4).read(0, 4).items()}
    head.nll(batch).mean().backward()
    dead = [
        k
        for k, p in head.named_parameters()
        if p.requires_grad and (p.grad is None or float(p.grad.abs().max()) == 0)
    ]
    assert not dead


@pytest.mark.parametrize("name", FLOWS)
def test_the_likelihood_of_training_data_rises(name: str) -> None:
    curves = fitted(name)[1].curves
    nll = curves["train_nll"]
    assert nll[-1] < nll[0] - 0.01
    assert min(curves["held_out_nll"]) < curves["held_out_nll"][0]


@pytest.mark.parametrize("name", FLOWS)
def test_one_image_is_enough_to_train_on(name: str) -> None:
    head = build(name)
    one = TINY[name].data(rows=1)
    head.fit(one, TINY[name].data(seed=1, rows=1), TrainOptions(epochs=2), NullProgress())
    assert torch.isfinite(head.eval().score(one.read(0, 1)).image).all()
