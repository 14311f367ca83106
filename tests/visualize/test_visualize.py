"""Class maps, pictures and predictions: the arithmetic, a run's own, and bad pictures."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy.special import softmax

from nin_jax.data import images
from nin_jax.data.pipeline import open_source
from nin_jax.errors import CheckpointError, DataError
from nin_jax.models import ops
from nin_jax.models.nin import NIN, Block
from nin_jax.models.summary import layer_table
from nin_jax.pretrained import trained
from nin_jax.visualize import cam, drawing
from tests.helpers import assert_refused, metrics, run_main, run_module

# ---- arithmetic -----------------------------------------------------------------------------


def test_top_fraction():
    values = np.arange(20.0).reshape(4, 5)
    mask = cam.top_fraction_mask(values, 0.1)
    assert mask.sum() == 2 and mask[3, 3] and mask[3, 4]
    assert cam.top_fraction_mask(values, 1.0).sum() == 19  # 0 is no activation
    assert not cam.top_fraction_mask(values, 0.0).any()
    assert not cam.top_fraction_mask(np.zeros((4, 5)), 0.5).any()
    assert cam.top_fraction_mask(np.ones((4, 5)), 0.1).all()  # ties


def test_upsampling_keeps_cells_in_place_and_is_linear_between():
    ramp_HW1 = np.add.outer(10.0 * np.arange(3), np.arange(4.0))[..., None]
    up = cam.lay_over(ramp_HW1, (12, 16), 1.0, stride=4)[..., 0]
    assert up.shape == (12, 16) and up.dtype == np.float32
    np.testing.assert_array_equal(up[3::4, 3::4], ramp_HW1[..., 0])
    np.testing.assert_array_equal(up[3, 3:8], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(up[:4, :4], 0)  # beyond the outermost centres
    twice = cam.lay_over(ramp_HW1, (12, 16), 2.0, stride=4)[..., 0]
    # An enlarged pixel's four parts have its value for their mean.
    assert twice[12:14, 20:22].mean() == pytest.approx(up[6, 10])


def test_a_cell_is_drawn_where_the_network_sees():
    """The pixels that a cell behind two poolings takes its value from have their centre there."""

    def cell(x_HW):
        return ops.avg_pool(ops.avg_pool(x_HW[None, ..., None]))[0, 2, 3, 0]

    seen_HW = np.asarray(jax.grad(cell)(jnp.zeros((32, 32))))
    total = seen_HW.sum()
    assert (seen_HW.sum(1) @ np.arange(32)) / total == pytest.approx(4 * 2 + 3)
    assert (seen_HW.sum(0) @ np.arange(32)) / total == pytest.approx(4 * 3 + 3)


def test_hottest_box_is_round_the_maximum():
    heat = np.zeros((8, 9))
    heat[1:3, 1:7] = 0.8  # larger, but not the hottest
    heat[5:7, 2:4] = 1.0
    heat[6, 4] = 0.49
    assert cam.hottest_box(heat) == (5, 2, 7, 4)
    assert cam.hottest_box(heat - 10) == (5, 2, 7, 4)
    assert cam.hottest_box(np.ones((3, 3))) is None


def test_evidence_is_what_the_classes_do_not_share():
    maps = np.zeros((9, 9, 3))
    maps[2, 2, 1] = 5.0
    evidence = cam.evidence(maps)
    assert np.unravel_index(evidence.argmax(), evidence.shape) == (2, 2, 1)
    assert (evidence[..., [0, 2]] == 0).all()
    np.testing.assert_allclose(cam.evidence(maps + 7), evidence, atol=1e-5)


def test_find_objects():
    evidence = np.zeros((20, 20, 4))
    evidence[2:6, 3:9, 2] = 1.0
    evidence[2, 3, 1] = 1.2
    evidence[10:15, 12:16, 3] = 0.5
    evidence[18, 1, 0] = 0.5
    evidence[18, 10:15, 0] = 0.1
    assert cam.find_objects(evidence, smallest=2) == [(2, (2, 3, 6, 9)), (3, (10, 12, 15, 16))]
    assert (0, (18, 1, 19, 2)) in cam.find_objects(evidence)
    assert cam.find_objects(np.zeros((5, 5, 2))) == []


def test_confusion_and_worst_mistakes():
    labels, said = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 0])
    assert cam.confusion(labels, said, 3).tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 0]]
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.99, 0.01], [0.2, 0.8]])
    assert cam.worst_mistakes(p, np.array([0, 0, 1, 1]), 5).tolist() == [2, 1]
    assert cam.first_of_each_class(np.array([3, 1, 1, 0, 3]), 3).tolist() == [3, 1]


# ---- any size -------------------------------------------------------------------------------

BLOCKS = (
    Block((12, 8), 5, 'max', init_std=()),
    Block((12, 8), 5, 'avg', init_std=()),
    Block((12, 5), 3, init_std=()),
)


@pytest.mark.parametrize(
    ('top', 'left', 'height', 'width'), [(0, 0, 48, 52), (8, 20, 45, 44), (36, 40, 36, 41)]
)
@pytest.mark.heavy
def test_a_dense_map_holds_the_values_of_its_crops(top, left, height, width):
    """Wherever a crop's padding does not reach, its class maps are the larger picture's."""
    model = NIN(BLOCKS, 3, class_bias=1.0, rngs=nnx.Rngs(0))
    picture = np.random.default_rng(0).normal(size=(1, 72, 81, 3)).astype(np.float32)
    row = layer_table(BLOCKS, (72, 81, 3))[-1]
    assert (row.stride, row.receptive_field) == (4, 27)
    graph, params = nnx.split(model)
    score = jax.jit(lambda x_BHWC: nnx.merge(graph, params)(x_BHWC))
    _, whole = score(picture)
    _, crop = score(picture[:, top : top + height, left : left + width])
    whole, crop = np.asarray(whole[0]), np.asarray(crop[0])
    here = whole[top // 4 :, left // 4 :][: crop.shape[0], : crop.shape[1]]

    def untouched(start, size, total, cells):
        """Cells whose receptive field lies inside the crop, or leaves the picture with it."""
        centre = start + 4 * np.arange(cells) + 3
        low = (centre - 13 >= start) | (start == 0)
        return low & ((centre + 13 < start + size) | (start + size == total))

    inside = np.outer(
        untouched(top, height, 72, crop.shape[0]), untouched(left, width, 81, crop.shape[1])
    )
    assert inside.sum() >= 9 and whole.std() > 0.1
    np.testing.assert_allclose(crop[inside], here[inside], rtol=1e-5, atol=1e-5)
    # The receptive field is no larger than it needs to be said to be: padding does reach the rest.
    assert np.abs(crop[~inside] - here[~inside]).max() > 0.01


# ---- photographs ----------------------------------------------------------------------------


def save(image, path, **options):
    image.save(path, **options)
    return images.read_image(path)


def test_all_kinds_of_pictures_become_rgb(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    grey = np.repeat(rgb[..., :1], 3, -1)
    assert (save(Image.fromarray(rgb), tmp_path / 'a.png') == rgb).all()
    assert (save(Image.fromarray(rgb[..., 0]), tmp_path / 'a.bmp') == grey).all()
    wide = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    assert wide.mode == 'I;16' and (save(wide, tmp_path / 'b.png') == grey).all()
    assert (save(wide, tmp_path / 'b.tiff') == grey).all()
    flat = Image.new('P', (7, 5), 1)
    flat.putpalette([0, 0, 0, 10, 20, 30])
    assert (save(flat, tmp_path / 'c.gif') == [10, 20, 30]).all()
    assert (save(flat, tmp_path / 'd.png', transparency=1) == 255).all()  # nothing on white
    alpha = np.dstack([rgb, np.full((5, 7), 0, np.uint8)])
    alpha[2, 3, 3] = 255
    seen = save(Image.fromarray(alpha), tmp_path / 'e.png')
    assert (seen[2, 3] == rgb[2, 3]).all() and (seen.reshape(-1, 3) == 255).all(1).sum() == 34
    assert (save(Image.fromarray(alpha).convert('LA'), tmp_path / 'f.png')[0] == 255).all()
    assert (save(Image.new('CMYK', (7, 5)), tmp_path / 'g.jpg') == 255).all()
    assert (save(Image.new('1', (7, 5), 1), tmp_path / 'h.png') == 255).all()
    upright = save(Image.fromarray(rgb), tmp_path / 'i.png', exif=exif(orientation=6))
    assert (upright == np.rot90(rgb, -1)).all()


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def test_missing_pictures_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match='absent'):
        images.read_image(tmp_path / 'absent.png')
    with pytest.raises(DataError, match='directory'):
        images.read_image(tmp_path)


def test_digits_on_paper_turn_light_on_black():
    paper = np.full((9, 9, 3), 250, np.uint8)
    paper[3:6, 4] = 5
    grey, words = images.to_channels(paper, 1)
    assert grey.shape == (9, 9, 1) and grey[0, 0] == 5 and grey[4, 4] == 250
    assert 'inverted' in words
    same, words = images.to_channels(255 - paper, 1)
    assert (same == grey).all() and words == 'turned gray'
    assert images.to_channels(paper, 3) == (paper, '')


def test_squares_and_sizes():
    image = np.random.default_rng(0).integers(0, 256, (40, 100, 3), np.uint8)
    assert (images.middle_square(image) == image[:, 30:70]).all()
    assert images.resize(image, (32, 32)).shape == (32, 32, 3)
    assert images.resize(image, (40, 100)) is image
    assert images.shrink(image, 50).shape == (20, 50, 3)
    assert images.shrink(image, 256) is image
    assert images.shrink(image[:1], 10).shape == (1, 10, 3)


def test_matrix_and_kernels_take_any_number():
    for n in (2, 10, 100):
        counts = np.eye(n, dtype=int)
        assert drawing.confusion_matrix(counts, [f'class {k}' for k in range(n)]).width > n * 10
    drawing.confusion_matrix(np.eye(2, dtype=int), [r'$\foo$', 'a$b$'])  # not a formula
    for channels in (1, 2, 3):
        kernels = np.random.default_rng(0).normal(size=(5, 5, channels, 7))
        assert drawing.kernels(kernels).height > 40
    flat = drawing.overlay(Image.new('RGB', (8, 6)), np.zeros((6, 8)))
    hot = drawing.overlay(Image.new('RGB', (8, 6)), np.ones((6, 8)))
    assert np.asarray(hot, int).min() > np.asarray(flat).max()


# ---- a run of its own -----------------------------------------------------------------------


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tiny')
    result = run_main(f'--workdir={folder}', '--config.train.duration=16steps')
    assert result.returncode == 0, result.stderr
    return folder


def test_the_folder_alone_gives_back_the_runs_figures(workdir):
    run = trained.load_run(workdir)
    split = open_source(run.config, 'test')
    logits, maps = run.score(split.images)
    assert run.step == 16 and run.class_names == tuple('0123456789')
    assert (logits.argmax(-1) != split.labels).sum() == metrics(workdir, 'eval')[-1]['errors']
    np.testing.assert_allclose(maps.mean((1, 2)), logits, rtol=1e-5, atol=1e-5)
    assert run.image_shape == (28, 28, 1) and run.stride == 4 and maps.shape == (256, 7, 7, 10)
    earlier, _ = trained.load_run(workdir, step=8).score(split.images)
    assert (earlier.argmax(-1) != split.labels).sum() == metrics(workdir, 'eval')[0]['errors']


@pytest.mark.parametrize(
    'damage', ['[]', '{}', '{"model.blocks.a.kernel": 3}', '{"seed": "x"}', '{']
)
def test_a_damaged_config_is_one_sentence(tmp_path, damage):
    (tmp_path / 'config.json').write_text(damage)
    with pytest.raises(CheckpointError, match=r'config\.json') as caught:
        trained.load_run(tmp_path)
    assert '\n' not in str(caught.value)


def test_visualize(workdir, tmp_path):
    result = run_module('experiments.visualize', f'--workdir={workdir}', f'--out={tmp_path}')
    assert result.returncode == 0 and result.stderr == '', result.stderr
    names = ['confusion', 'figure4', 'filters', 'heatmaps', 'mistakes']
    pictures = sorted(tmp_path.glob('*.png'))
    assert [p.stem for p in pictures] == names
    assert {p.name for p in tmp_path.iterdir()} - {p.name for p in pictures} == {'index.html'}
    for path in pictures:
        assert str(path) in result.stdout
        shades = np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3)
        assert len(np.unique(shades, axis=0)) > 20
    events = [path.read_bytes() for path in (workdir / 'tensorboard').iterdir()]
    for name in names:  # also for TensorBoard
        assert any(f'pictures/{name}'.encode() in written for written in events)


def test_visualize_pictures_of_any_size(workdir, tmp_path):
    sizes = {'large': (300, 500), 'odd': (33, 47), 'dot': (1, 1), 'line': (1, 90)}
    flags = []
    for name, size in sizes.items():
        Image.fromarray(np.full((*size, 3), 200, np.uint8)).save(tmp_path / f'{name}.png')
        flags.append(f'--images={tmp_path / name}.png')
    out = tmp_path / 'out'
    flags += [f'--workdir={workdir}', f'--out={out}', '--longest=200']
    result = run_module('experiments.visualize', *flags)
    assert result.returncode == 0 and result.stderr == '', result.stderr
    assert sorted(p.name for p in out.iterdir()) == sorted(f'dense_{n}.png' for n in sizes)


def test_predict(workdir, tmp_path):
    run = trained.load_run(workdir)
    image = open_source(run.config, 'test').images[:1]
    probabilities = softmax(run.score(image)[0])[0]
    Image.fromarray(image[0, ..., 0]).save(tmp_path / 'digit.png')
    heat = tmp_path / 'heat.png'
    flags = [f'--workdir={workdir}', tmp_path / 'digit.png', f'--heatmap={heat}']
    result = run_module('experiments.predict', *flags)
    assert result.returncode == 0 and result.stderr == '', result.stderr
    first, *lines = result.stdout.splitlines()
    assert first.endswith('digit.png: 28x28 pixels, turned gray')
    best = np.argsort(-probabilities)[:5]
    assert [line.split() for line in lines[:5]] == [
        [f'{probabilities[k]:.2%}', str(k)] for k in best
    ]
    assert str(heat) in lines[5] and Image.open(heat).size[0] > 600


def test_predict_a_folder_as_json(workdir, tmp_path):
    for name in ('a.png', 'b.png'):
        Image.new('L', (28, 28)).save(tmp_path / name)
    (tmp_path / 'c.png').write_bytes(b'')
    (tmp_path / 'notes.txt').write_text('no picture')
    result = run_module('experiments.predict', f'--workdir={workdir}', tmp_path, '--json')
    assert result.returncode == 2 and result.stderr.count('\n') == 1 and 'c.png' in result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [pathlib.Path(f['path']).name for f in found] == ['a.png', 'b.png']
    p = [c['probability'] for c in found[0]['classes']]
    assert len(p) == 10 and p == sorted(p, reverse=True) and sum(p) == pytest.approx(1)


@pytest.mark.heavy
def test_a_fully_connected_head_has_no_class_maps(tmp_path):
    run, photo_path = tmp_path / 'fc', tmp_path / 'a.png'
    flags = ['--config.model.head=fc', '--config.train.duration=4steps']
    assert run_main(f'--workdir={run}', *flags).returncode == 0
    Image.new('L', (50, 40)).save(photo_path)
    result = run_module('experiments.visualize', f'--workdir={run}')
    assert result.returncode == 0 and 'no figure4.png' in result.stdout, result.stderr
    names = ['confusion', 'filters', 'mistakes']
    assert sorted(p.stem for p in (run / 'pictures').glob('*.png')) == names
    heat = f'--heatmap={tmp_path / "heat.png"}'
    result = run_module('experiments.predict', f'--workdir={run}', photo_path, heat)
    assert_refused(result, "model.head='fc'", kind='ConfigError')
