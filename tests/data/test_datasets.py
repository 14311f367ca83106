"""The tables, splits, cache and, with NIN_ARCHIVES, the real data."""

import gzip
import json
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import scipy.io

from nin_jax.data import cache, catalog, datasets
from nin_jax.data.catalog import DATASETS
from nin_jax.data.datasets import load_arrays
from nin_jax.errors import ConfigError, DataError


def read_idx(path, header):
    return np.frombuffer(gzip.open(path).read(), np.uint8, offset=header)


def read_cifar(path, names, label_bytes):
    """The rows of CIFAR's binary files: (labels uint8 (N, label_bytes), images (N, 32, 32, 3))."""
    with tarfile.open(path, 'r|gz') as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    raw = b''.join(files[name] for name in names)
    rows = np.frombuffer(raw, np.uint8).reshape(-1, label_bytes + 3072)
    images_NCHW = rows[:, label_bytes:].reshape(-1, 3, 32, 32)
    return rows[:, :label_bytes], images_NCHW.transpose(0, 2, 3, 1)


# ---- splits ----


def test_subset_splits_are_disjoint_and_whole():
    train, valid, test = (load_arrays('mnist_subset', split) for split in catalog.SPLITS)
    both = load_arrays('mnist_subset', 'train+valid')
    assert [len(s.images) for s in (train, valid, test, both)] == [4000, 1000, 1000, 5000]
    np.testing.assert_array_equal(both.images, np.concatenate([train.images, valid.images]))
    np.testing.assert_array_equal(both.labels, np.concatenate([train.labels, valid.labels]))
    assert both.images.dtype == np.uint8 and both.labels.dtype == np.int32
    assert both.images.shape == (5000, 28, 28, 1)
    assert both.class_names == tuple('0123456789')
    assert round(both.images.mean() / 255, 4) == DATASETS['mnist_subset'].channel_means[0]
    assert np.bincount(test.labels).tolist() == [96, 115, 89, 123, 87, 99, 88, 111, 89, 103]


def test_splits_are_joined_in_the_order_given():
    joined = load_arrays('mnist_subset', 'valid+train')
    np.testing.assert_array_equal(joined.images[:1000], load_arrays('mnist_subset', 'valid').images)


def test_held_out_images_of_svhn_are_the_first_of_each_class():
    labels_N = np.repeat(np.arange(10), 1000)[::-1]
    for part, per_class in (('train', 400), ('extra', 200), ('test', 0)):
        mask_N = datasets._held_out(DATASETS['svhn_cropped'], part, labels_N)
        for label in range(10):
            marked = mask_N[labels_N == label]
            assert marked[:per_class].all() and not marked[per_class:].any()


def test_held_out_images_of_cifar_are_the_last_of_train():
    mask_N = datasets._held_out(DATASETS['cifar10'], 'train', np.zeros(50_000, int))
    assert mask_N[40_000:].all() and not mask_N[:40_000].any()


def test_paper_sizes_follow_from_the_table():
    svhn = DATASETS['svhn_cropped']
    assert sum(svhn.examples[part] for part in svhn.training_parts) - 10 * (400 + 200) == 598_388
    assert sum(svhn.examples.values()) == 630_420


def test_a_small_sample_of_svhn_holds_out_half(svhn_dir):
    train, valid, test = (load_arrays('svhn_cropped', s, str(svhn_dir)) for s in catalog.SPLITS)
    # 6 of each class in train and 4 in extra: half of each is held out.
    assert (len(train.labels), len(valid.labels), len(test.labels)) == (50, 50, 30)
    assert np.bincount(valid.labels).tolist() == [5] * 10
    images = {image.tobytes() for split in (train, valid, test) for image in split.images}
    assert len(images) == 130


# ---- mistakes ----


@pytest.mark.parametrize(
    ('name', 'splits', 'sentence'),
    [
        ('cifr10', 'train', "no dataset 'cifr10', did you mean 'cifar10'?"),
        ('xyz', 'train', "no dataset 'xyz': choose from mnist, svhn_cropped, cifar10, cifar100, "),
        ('mnist', 'trian', "no split 'trian' in 'trian', did you mean 'train'?"),
        ('mnist', 'train+', "no split '' in 'train+': choose from train, valid, test"),
        ('mnist', 'train+train', "splits 'train+train' names a split twice"),
    ],
)
def test_unknown_names_are_one_sentence(name, splits, sentence):
    with pytest.raises(ConfigError) as error:
        load_arrays(name, splits)
    assert str(error.value).startswith(sentence)


def test_not_prepared_says_how_to_prepare(tmp_path):
    with pytest.raises(DataError) as error:
        load_arrays('cifar10', 'train', str(tmp_path))
    assert str(error.value) == (
        f'cifar10 is not prepared in {tmp_path}: run  python -m experiments.prepare cifar10  '
        '(or set data.dir)'
    )
    assert not list(tmp_path.iterdir())


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    assert cache.data_root() == tmp_path
    assert cache.data_root('/elsewhere').as_posix() == '/elsewhere'
    monkeypatch.delenv('TFDS_DATA_DIR')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache.data_root() == tmp_path / 'tensorflow_datasets'
    with pytest.raises(DataError, match='not a local folder'):
        cache.data_root('gs://bucket/data')


# ---- the cache ----


def cache_folder(root):
    return root / cache.FOLDER / 'svhn_cropped' / DATASETS['svhn_cropped'].version


@pytest.mark.parametrize('file', ['train_images.npy', 'train_labels.npy'])
@pytest.mark.parametrize('damage', ['flip', 'truncate', 'delete'])
def test_damage_is_named_and_mended_by_deleting_the_folder(svhn_dir, file, damage):
    before = load_arrays('svhn_cropped', 'train', str(svhn_dir))
    path = cache_folder(svhn_dir) / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if damage == 'delete':
        path.unlink()
    else:
        path.write_bytes(data if damage == 'flip' else data[:-1])
    with pytest.raises(DataError) as error:
        load_arrays('svhn_cropped', 'train', str(svhn_dir))
    assert str(error.value) == (
        f'{path} is damaged: delete {path.parent}, it is rebuilt on the next start'
    )
    load_arrays('svhn_cropped', 'test', str(svhn_dir))  # untouched files stay usable
    shutil.rmtree(path.parent)
    after = load_arrays('svhn_cropped', 'train', str(svhn_dir))
    np.testing.assert_array_equal(after.images, before.images)


@pytest.mark.parametrize('text', ['', '{', '[]', '{"class_names": []}', None])
def test_damaged_index_is_named(svhn_dir, text):
    index = cache_folder(svhn_dir) / 'index.json'
    index.unlink()
    if text is not None:
        index.write_text(text)
    with pytest.raises(DataError, match=r'index\.json is damaged: delete '):
        load_arrays('svhn_cropped', 'test', str(svhn_dir))


def test_labels_out_of_range_are_refused(svhn_dir):
    folder = cache_folder(svhn_dir)
    labels = np.load(folder / 'test_labels.npy')
    labels[3] = 10
    np.save(folder / 'test_labels.npy', labels)
    index = json.loads((folder / 'index.json').read_text())
    index['sha256']['test_labels.npy'] = cache.file_sha256(folder / 'test_labels.npy')
    del index['seal']
    (folder / 'index.json').write_text(json.dumps(index))
    with pytest.raises(DataError, match='svhn_cropped/test holds labels 0 to 10, expected 0 to 9'):
        load_arrays('svhn_cropped', 'test', str(svhn_dir))


def test_half_written_cache_does_not_count(svhn_dir):
    folder = cache_folder(svhn_dir)
    folder.rename(folder.with_name(f'{folder.name}.incomplete'))  # as a killed run leaves it
    (folder.with_name(f'{folder.name}.incomplete') / 'index.json').unlink()
    assert len(load_arrays('svhn_cropped', 'test', str(svhn_dir)).labels) == 30
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_cache_alone_is_enough_and_needs_no_tfds(svhn_dir):
    shutil.rmtree(svhn_dir / 'svhn_cropped')
    code = (
        'import sys; from nin_jax.data.datasets import load_arrays; '
        f'assert len(load_arrays("svhn_cropped", "test", {str(svhn_dir)!r}).labels) == 30; '
        'print([m for m in sys.modules if m.split(".")[0] in '
        '("tensorflow_datasets", "tensorflow", "jax", "array_record", "PIL")])'
    )
    assert subprocess.check_output([sys.executable, '-c', code], text=True) == '[]\n'


def test_damaged_or_foreign_tfds_folders_are_named(svhn_dir):
    shutil.rmtree(svhn_dir / cache.FOLDER)
    folder = svhn_dir / 'svhn_cropped' / DATASETS['svhn_cropped'].version
    records = next(folder.glob('*-test.array_record*'))
    whole = records.read_bytes()
    records.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f'{folder} is damaged'):
        load_arrays('svhn_cropped', 'test', str(svhn_dir))
    records.write_bytes(whole)
    info = folder / 'dataset_info.json'
    text = info.read_text()
    info.write_text(text.replace('array_record', 'tfrecord'))
    with pytest.raises(DataError, match='holds tfrecord files, which need TensorFlow'):
        load_arrays('svhn_cropped', 'test', str(svhn_dir))
    info.write_text(text[:-20])
    with pytest.raises(DataError, match=r'dataset_info\.json is damaged'):
        load_arrays('svhn_cropped', 'test', str(svhn_dir))


def test_unwritable_cache_is_one_sentence(svhn_dir):
    shutil.rmtree(svhn_dir / cache.FOLDER)
    (svhn_dir / cache.FOLDER).write_text('in the way')
    with pytest.raises(DataError, match='cannot be written'):
        load_arrays('svhn_cropped', 'test', str(svhn_dir))


# ---- real data ----


def test_subset_is_the_official_bytes(archives):
    for part, stem, stride, split in (
        ('train', 'train', 11, 'train+valid'),
        ('test', 't10k', 10, 'test'),
    ):
        subset = load_arrays('mnist_subset', split)
        count = DATASETS['mnist_subset'].examples[part]
        images = read_idx(archives / 'mnist' / f'{stem}-images-idx3-ubyte.gz', 16)
        labels = read_idx(archives / 'mnist' / f'{stem}-labels-idx1-ubyte.gz', 8)
        official = images.reshape(-1, 28, 28, 1)[::stride][:count]
        np.testing.assert_array_equal(subset.images, official)
        np.testing.assert_array_equal(subset.labels, labels[::stride][:count])


@pytest.mark.parametrize('name', ['mnist', 'cifar10', 'cifar100'])
def test_counts_and_means_are_the_published_ones(data_dir, name):
    official = load_arrays(name, 'train+valid', data_dir)
    test = load_arrays(name, 'test', data_dir)
    dataset = DATASETS[name]
    assert {'train': len(official.labels), 'test': len(test.labels)} == dataset.examples
    means = official.images.mean(axis=(0, 1, 2)) / 255
    assert tuple(np.round(means, 4)) == dataset.channel_means
    counts = {
        'mnist': (
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
            [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        ),
        'cifar10': ([5000] * 10, [1000] * 10),
        'cifar100': ([500] * 100, [100] * 100),
    }[name]
    assert np.bincount(official.labels).tolist() == counts[0]
    assert np.bincount(test.labels).tolist() == counts[1]


def test_mnist_is_in_official_order(archives, data_dir):
    for split, stem in (('train+valid', 'train'), ('test', 't10k')):
        ours = load_arrays('mnist', split, data_dir)
        images = read_idx(archives / 'mnist' / f'{stem}-images-idx3-ubyte.gz', 16)
        np.testing.assert_array_equal(ours.images.ravel(), images)
        labels = read_idx(archives / 'mnist' / f'{stem}-labels-idx1-ubyte.gz', 8)
        np.testing.assert_array_equal(ours.labels, labels)


@pytest.mark.processes
def test_a_cache_is_rebuilt_in_a_fresh_process(data_dir, tmp_path):
    (tmp_path / 'mnist').symlink_to(f'{data_dir}/mnist')
    code = (
        'from nin_jax.data.datasets import load_arrays; '
        f'load_arrays("mnist", "test", {str(tmp_path)!r})'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
    rebuilt, before = (load_arrays('mnist', 'test', str(root)) for root in (tmp_path, data_dir))
    np.testing.assert_array_equal(rebuilt.images, before.images)
    np.testing.assert_array_equal(rebuilt.labels, before.labels)


@pytest.mark.processes
def test_cifar10_is_in_official_order(archives, data_dir):
    path = archives / 'cifar10' / 'cifar-10-binary.tar.gz'
    names = [f'cifar-10-batches-bin/data_batch_{k}.bin' for k in range(1, 6)]
    labels, images = read_cifar(path, names, 1)
    official = load_arrays('cifar10', 'train+valid', data_dir)
    np.testing.assert_array_equal(official.images, images)
    np.testing.assert_array_equal(official.labels, labels[:, 0])
    valid = load_arrays('cifar10', 'valid', data_dir)
    np.testing.assert_array_equal(valid.images, images[40_000:])
    assert official.class_names[:3] == ('airplane', 'automobile', 'bird')
    assert load_arrays('cifar10', 'test', data_dir).labels[:10].tolist() == [
        3,
        8,
        8,
        0,
        6,
        6,
        1,
        6,
        3,
        1,
    ]


@pytest.mark.processes
def test_cifar100_uses_fine_labels_in_official_order(archives, data_dir):
    path = archives / 'cifar100' / 'cifar-100-binary.tar.gz'
    labels, images = read_cifar(path, ['cifar-100-binary/test.bin'], 2)
    test = load_arrays('cifar100', 'test', data_dir)
    np.testing.assert_array_equal(test.images, images)
    np.testing.assert_array_equal(test.labels, labels[:, 1])
    assert test.class_names[:2] == ('apple', 'aquarium_fish') and len(test.class_names) == 100


def test_svhn_sample_is_in_official_order(archives, data_dir):
    mats = {
        part: scipy.io.loadmat(archives / 'svhn_sample' / f'{part}_32x32.mat')
        for part in ('train', 'extra', 'test')
    }
    test = load_arrays('svhn_cropped', 'test', data_dir)
    np.testing.assert_array_equal(test.images, mats['test']['X'].transpose(3, 0, 1, 2))
    np.testing.assert_array_equal(test.labels, mats['test']['y'][:, 0] % 10)
    both = load_arrays('svhn_cropped', 'train+valid', data_dir)
    expected = {mats[p]['X'][..., k].tobytes() for p in ('train', 'extra') for k in range(183)}
    assert expected <= {image.tobytes() for image in both.images}
    assert len(both.labels) == len(mats['train']['y']) + len(mats['extra']['y'])
