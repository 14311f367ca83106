"""Mistakes as data: what is typed or lies on the disk, and what its error line must name.

A case is (module, words, names) and perhaps files. In words and names, {tmp} stands for a
folder of the case's own with its files, {run} for a copy of a finished tiny run in it, {tiny} for
that run's config and {archives} for made-up archives of SVHN.
"""

import dataclasses
import gzip
import io
import pickle
import struct
import tarfile
import zlib

import numpy as np
import scipy.io
from PIL import Image

MAIN, PREPARE = 'experiments.main', 'experiments.prepare'
PREDICT, VISUALIZE = 'experiments.predict', 'experiments.visualize'
PRETRAINED, REPORT, SEEDS = 'experiments.pretrained', 'experiments.report', 'launch.seeds'


@dataclasses.dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
      module, words: the command.
      names: what the line on stderr names: keys, values, paths, suggestions.
      kind: the class of the error; '' for any, and where flags are parsed.
      files: path below {tmp} -> content.
      env: environment; such a case needs a process of its own.
    """

    module: str
    words: tuple[str, ...]
    names: str | tuple[str, ...]
    kind: str = ''
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    env: dict[str, str] = dataclasses.field(default_factory=dict)


def main(*words: str, names: str | tuple[str, ...], **kwargs) -> Case:
    """A tiny run into an empty folder, with something wrong."""
    return Case(MAIN, ('--config={tiny}', '--workdir={tmp}/new', *words), names, **kwargs)


def evaluate(*words: str, names: str | tuple[str, ...], **kwargs) -> Case:
    words = ('--config={tiny}', '--workdir={run}', '--mode=eval', *words)
    return Case(MAIN, words, names, 'CheckpointError', **kwargs)


# ---- the command line and the page --------------------------------------------------------------

QUICKSTART = 'experiments/configs/quickstart.py'
COMMAND_LINE = [
    Case(MAIN, (), '--config'),
    Case(MAIN, ('--config.seed=3',), ('--config.seed', '--config=')),
    Case(MAIN, (f'--config={QUICKSTART}',), '--workdir'),
    Case(MAIN, (f'--config={QUICKSTART}', '--mode=eval'), '--workdir'),
    Case(MAIN, (f'--config={QUICKSTART}', '--workdir=~/x'), ("'~/x'", '$HOME')),
    Case('launch.preflight', (f'--config={QUICKSTART}', '--price=v5=1'), ("'v5'", "'v5p'")),
    Case(SEEDS, (f'--config={QUICKSTART}', '--workdir=~/x'), ("'~/x'", '$HOME')),
    Case(MAIN, ('--config=',), "'.'"),
    Case(MAIN, ('--config=nope.py',), "'nope.py'"),
    Case(MAIN, ('--config=tests',), "'tests'"),
    Case(MAIN, ('--config=experiments/configs/quikstart.py',), f"'{QUICKSTART}'"),
    Case(MAIN, ('--config=README.md',), "'README.md'"),
    Case(MAIN, (f'--config={QUICKSTART}:smokey',), ("':smokey'", "':smoke'")),
    Case(MAIN, ('--config=experiments/configs/ablations.py:fc,convfc',), ':convfc'),
    Case(MAIN, ('--config=experiments/configs/cifar10.py:modern,fast',), ("':fast'", "':modern'")),
    Case(MAIN, ('--config=experiments/configs/cifar10.py:aug,fast',), ("':aug'", "':fast'")),
    Case(MAIN, (f'--config={QUICKSTART}', '--workdir=x', '--step=3'), ('--step=3', '--mode=eval')),
    Case(MAIN, ('--workdirr=x',), ("'workdirr'", 'workdir ')),
    Case(MAIN, ('--mode=trian',), ('mode', 'trian', 'train')),
    Case(MAIN, ('--mode=eval', '--step=x', '--workdir=x'), ('step', "'x'")),
    main('extra', names="'extra'"),
    Case(SEEDS, (), ('--config', '--workdir')),
    Case(SEEDS, ('--config=x', '--workdir={tmp}', '--seeds=0'), ('--seeds', 'at least 1')),
    Case(SEEDS, ('--config=x', '--workdir={tmp}', '--seeds=x'), ('--seeds', "'x'")),
    Case(SEEDS, ('--config=x', '--workdir={tmp}', '--config.seed=1'), '--config.seed'),
    Case(SEEDS, ('--config=x', '--workdir={tmp}', '--mode=dryrun'), '--mode'),
    Case(SEEDS, ('--config={tiny}', '--workdir={tmp}', '--config.optim.lrr=1'), "'optim.lrr'"),
]
PAGES = [
    Case(MAIN, ('--config={tmp}/page.py',), ('page.py', reason), files={'page.py': text})
    for text, reason in (
        (b'1 / 0', 'division by zero'),
        (b'def get_config(', ''),
        (b'x = 3', ''),
        (b'\xff\xfe\x00', ''),
        (b'def get_config(arg=None): return 3', ''),
        (b'import no_such_module', "'no_such_module'"),
    )
]
PAGE = """
from tests.tiny_page import get_config as tiny
def get_config(arg=''):
    config = tiny()
    config.{} = {}
    return config
"""
PAGES += [
    Case(
        MAIN,
        ('--config={tmp}/page.py', '--workdir={tmp}/new'),
        tuple(names),
        'ConfigError',
        files={'page.py': PAGE.format(key, value).encode()},
    )
    for key, value, *names in (
        ('optim.weigth_decay', '0.0', "'optim.weigth_decay'", "'optim.weight_decay'"),
        ('model.blocks.mlpconv1.droput', '0.5', "'model.blocks.mlpconv1.dropout'"),
        ('optim.lr', 'None', 'optim.lr=None', 'float'),
        ('optim.drops', 'None', 'optim.drops=None', 'str'),
    )
]

# ---- values ---------------------------------------------------------------------------------

UNREADABLE = [
    main(f'--config.{key}={value}', names=tuple(names))
    for key, value, *names in (
        ('optim.lrr', '1', "'optim.lrr'", "'optim.lr'"),
        ('optim', '1', "'optim'"),
        ('', '1', "''"),
        ('optim.lr', 'fast', "'fast'"),
        ('optim.lr', '', "''"),
        ('seed', '1.5', "'1.5'"),
        ('augment.flip', 'maybe', 'maybe'),
        ('model.blocks.mlpconv1.features', 'abc', 'abc'),
        ('model.blocks.mlpconv1.features', '(8,8', '(8,8'),
    )
]
VALUES = [
    main(f'--config.{key}={value}', names=tuple(names), kind='ConfigError')
    for key, value, *names in (
        ('seed', '-1', 'seed=-1'),
        ('seed', '2147483648', 'seed=2147483648'),
        ('devices', '-1', 'devices=-1'),
        ('devices', '3', 'devices=3'),
        ('data.limit', '-1', 'data.limit=-1'),
        ('data.limit', '5', 'train.batch_size=32', '5'),
        ('preprocess.gcn_scale', '0', 'preprocess.gcn_scale=0.0'),
        ('preprocess.zca_bias', '-0.1', 'preprocess.zca_bias=-0.1'),
        ('preprocess.zca_bias', 'nan', 'preprocess.zca_bias=nan'),
        ('augment.crop_pad', '65', 'augment.crop_pad=65'),
        ('augment.crop_pad', '28', 'augment.crop_pad=28', '28 pixels'),
        ('augment.alternate_flips', 'True', 'augment.alternate_flips=True', 'augment.flip=True'),
        ('model.class_bias', '-1', 'model.class_bias=-1.0'),
        ('model.head_dropout', '1', 'model.head_dropout=1.0'),
        ('model.head_dropout', '0.5', 'model.head_dropout=0.5', "model.head='gap'"),
        ('optim.lr', '0', 'optim.lr=0.0'),
        ('optim.lr', '-1', 'optim.lr=-1.0'),
        ('optim.lr', 'nan', 'optim.lr=nan'),
        ('optim.lr', 'inf', 'optim.lr=inf'),
        ('optim.lr', '1e9', 'optim.lr=1000000000.0'),
        ('optim.momentum', '1', 'optim.momentum=1.0', 'from 0 to below 1'),
        ('optim.momentum', '-0.1', 'optim.momentum=-0.1'),
        ('optim.weight_decay', '-1e-4', 'optim.weight_decay=-0.0001'),
        ('optim.bias_lr', '-1', 'optim.bias_lr=-1.0'),
        ('optim.last_layer_lr', 'nan', 'optim.last_layer_lr=nan'),
        ('optim.drop_factor', '1', 'optim.drop_factor=1.0'),
        ('optim.plateau_patience', '0', 'optim.plateau_patience=0'),
        ('train.batch_size', '0', 'train.batch_size=0'),
        ('train.batch_size', '257', 'train.batch_size=257', '256'),
        ('train.microbatch', '-1', 'train.microbatch=-1'),
        ('train.microbatch', '5', 'train.microbatch=5'),
        ('train.steps_per_call', '-1', 'train.steps_per_call=-1'),
        ('train.dead_steps', '0', 'train.dead_steps=0'),
        ('train.restarts', '101', 'train.restarts=101'),
        ('train.stall_timeout', '0.5', 'train.stall_timeout=0.5'),
        ('eval.pictures', '65', 'eval.pictures=65'),
        ('eval.batch_size', '-1', 'eval.batch_size=-1'),
        ('checkpoint.keep', '0', 'checkpoint.keep=0'),
        ('dtype', 'float16', "dtype='float16'", "'bfloat16'"),
        ('optim.schedule', 'drop', "optim.schedule='drop'", "'drops'"),
        ('model.dropout_mode', 'x', "model.dropout_mode='x'"),
        ('model.head', 'gpa', "model.head='gpa'", "'gap'"),
        ('preprocess.recipe', 'zca', "preprocess.recipe='zca'", "'gcn_zca'"),
        ('model.blocks.mlpconv1.kernel', '4', 'mlpconv1.kernel=4', 'must be odd'),
        ('model.blocks.mlpconv1.kernel', '-1', 'mlpconv1.kernel=-1'),
        ('model.blocks.mlpconv1.pool', 'mean', "mlpconv1.pool='mean'"),
        ('model.blocks.mlpconv1.dropout', '1', 'mlpconv1.dropout=1.0'),
        ('model.blocks.mlpconv1.pieces', '0', 'mlpconv1.pieces=0'),
        ('model.blocks.mlpconv1.features', '()', 'mlpconv1.features=()'),
        ('model.blocks.mlpconv1.features', '(8,0,8)', 'mlpconv1.features=(8, 0, 8)'),
        ('model.blocks.mlpconv1.init_std', '(.1,.1)', 'mlpconv1.init_std=(0.1, 0.1)'),
        ('model.blocks.mlpconv1.init_std', '(.1,.1,-1.)', 'mlpconv1.init_std=(0.1, 0.1, -1.0)'),
        ('model.blocks.mlpconv1.init_std', '("a","b","c")', "mlpconv1.init_std=('a', 'b', 'c')"),
        ('model.blocks.mlpconv2.features', '(8,8,9)', 'mlpconv2.features=(8, 8, 9)', '10'),
        ('train.duration', '3parsecs', "train.duration='3parsecs'"),
        ('train.duration', '', "train.duration=''"),
        ('train.duration', '0ep', "train.duration='0ep'"),
        ('train.duration', '-1ep', "train.duration='-1ep'"),
        ('train.duration', '10%', "train.duration='10%'"),
        ('train.duration', 'nanep', "train.duration='nanep'"),
        ('train.duration', '99999999ep', "train.duration='99999999ep'"),
        ('train.duration', '9' * 400 + 'ep', "train.duration='9999"),
        ('eval.every', '0ep', "eval.every='0ep'"),
        ('train.freeze', '0%', "train.freeze='0%'"),
        ('eval.every', 'often', "eval.every='often'"),
        ('checkpoint.every', '1e9ep', "checkpoint.every='1e9ep'"),
        ('optim.drops', '30ep 20ep', "optim.drops='30ep 20ep'"),
        ('optim.drops', 'late', "optim.drops='late'"),
        ('train.freeze', '10% 20%', "train.freeze='10% 20%'", 'trained to the end'),
        ('train.freeze', 'early', "train.freeze='early'"),
        ('data.name', 'mnits', "'mnits'", "'mnist'"),
        ('data.eval', 'tset', "'tset'", "'test'"),
        ('data.eval', 'test+test', "'test+test'"),
        ('data.train', '', "''"),
        ('data.eval', 'valid', "data.eval='valid'", "data.train='train'"),
        ('train.image_sizes', '32@50%', 'train.image_sizes', '28x28'),
    )
] + [
    main(
        '--config.train.image_sizes=20@50%',
        flag,
        names=("train.image_sizes='20@50%'", *names),
        kind='ConfigError',
    )
    for flag, *names in (
        ('--config.preprocess.recipe=gcn_zca', "recipe='gcn_zca'", "'patch_zca'"),
        ('--config.model.head=fc', "model.head='fc'", "'gap'"),
        ('--config.model.blocks.mlpconv1.local=True', 'mlpconv1.local=True'),
    )
]
SIZES = [
    main(
        f'--config.model.blocks.mlpconv1.kernel={kernel}',
        '--config.model.blocks.mlpconv1.stride=2',
        *words,
        names=(f'mlpconv1.kernel={kernel}', size),
        kind='ConfigError',
    )
    for kernel, size, *words in (
        (29, '28x28'),
        (21, '20x20', '--config.train.image_sizes=20@50%'),
        (29, '28x28', '--mode=describe'),
    )
]
DATA = [
    main(
        '--config.data.name=cifar10',
        '--config.data.dir={tmp}/nowhere',
        names=('cifar10', '{tmp}/nowhere', 'python -m experiments.prepare'),
    ),
    main(
        '--config.data.name=cifar10',
        '--config.data.dir=gs://bucket/data',
        names="'gs://bucket/data'",
    ),
    main(
        '--config.data.name=cifar10',
        '--config.data.dir=~nobody-of-this-name/data',
        names=('~nobody-of-this-name/data', 'python -m experiments.prepare'),
    ),
]

# ---- the run's folder -----------------------------------------------------------------------


class Malice:
    """Unpickled, it would leave a file behind; test_bad_inputs.py looks for that file."""

    def __reduce__(self):
        return (open, ('UNPICKLED', 'w'))


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


PICKLED = pickle.dumps(Malice())
OBJECTS = np.array([Malice()], object)
FOLDERS = [
    Case(MAIN, ('--config={tiny}', f'--workdir={where}'), names)
    for where, names in (
        ('/proc/no/such', "'/proc/no'"),
        ('README.md', "'README.md'"),
        ('{tmp}/' + 'n' * 300, 'File name too long'),
        ('{tmp}/caf\udce9', '--workdir='),
    )
] + [
    Case(MAIN, ('--config={tiny}', '--workdir={run}', *words), names, 'CheckpointError', files)
    for words, names, files in (
        (['--config.optim.lr=0.01'], ('{run}', 'optim.lr', '0.1', '0.01'), {}),
        ([], "run/config.json'", {'run/config.json': b'{'}),
        ([], "run/config.json'", {'run/config.json': b'[]'}),
        ([], "run/config.json'", {'run/config.json': PICKLED}),
        ([], 'preprocess.npz', {'run/preprocess.npz': PICKLED}),
        (
            [],
            'preprocess.npz',
            {'run/preprocess.npz': npz(recipe=OBJECTS)},
        ),
        ([], "run/metrics.jsonl'", {'run/metrics.jsonl': b'{"kind": "eval"}\n'}),
        ([], "run/metrics.jsonl'", {'run/metrics.jsonl': PICKLED}),
    )
]
EVALUATION = [
    evaluate('--step=99', names=('99', '16, 24')),
    evaluate('--step=-1', names='step -1'),
    dataclasses.replace(
        evaluate(
            '--config.data.name=cifar10',
            names=("data.name='cifar10'", '(32, 32, 3)', "data.name='mnist_subset'"),
        ),
        kind='ConfigError',
    ),
    evaluate(
        '--config.model.blocks.mlpconv1.features=(9,9,9)',
        names=('model.blocks.mlpconv1.features', '[8, 8, 8]', '[9, 9, 9]'),
    ),
    Case(MAIN, ('--config={tiny}', '--workdir={tmp}', '--mode=eval'), ('{tmp}', 'preprocess.npz')),
    evaluate(names="run/config.json'", files={'run/config.json': b'\xff'}),
    Case(REPORT, (), 'no run given'),
    Case(REPORT, ('{run}',), ('--out', '--collect')),
    Case(REPORT, ('{tmp}/none', '--out={tmp}/R.md'), '{tmp}/none'),
    Case(REPORT, ('{run}', '--out=gs://bucket/R.md'), "'gs://bucket/R.md'"),
    Case(REPORT, ('results', '--out=results'), ('--out=results', 'folder')),
    Case(REPORT, ('{run}', '--readme={tmp}/R.md', '--figure=f.png'), ('--figure=f.png', '--out')),
    Case(
        REPORT,
        ('{run}', '--out={tmp}/R.md'),
        'run/summary.json',
        files={'run/summary.json': b'[3]'},
    ),
    Case(
        REPORT,
        ('{run}', '--out={tmp}/R.md'),
        'run/metrics.jsonl',
        files={'run/metrics.jsonl': b'{}\n'},
    ),
    Case(REPORT, ('{tmp}/a.json', '--out={tmp}/R.md'), 'a.json', files={'a.json': b'{}'}),
]

# ---- pictures -------------------------------------------------------------------------------


def png(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG that says it is of a size, without the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack('>I', zlib.crc32(kind + data))
        return struct.pack('>I', len(data)) + kind + data + crc

    header = (b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
    chunks = (header, *extra, (b'IDAT', zlib.compress(b'')), (b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*c) for c in chunks)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def tiff(channels: int) -> bytes:
    """4 x 4 pixels of 8-bit channels, more than any color has."""
    tags = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 8), (277, channels), (278, 4)]
    tags += [(279, 16 * channels), (284, 1)]
    pixels = bytes(16 * channels)
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags)
    return (
        b'II*\0' + struct.pack('<I', 8 + len(pixels)) + pixels + struct.pack('<H', len(tags))
        + entries + bytes(4)
    )  # fmt: skip


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
WIDE = Image.fromarray(np.full((4, 4), 200, np.int32))
NANS = Image.fromarray(np.full((4, 4), np.nan, np.float32))
PICTURES = [
    Case(
        PREDICT,
        ('--workdir={run}', '{tmp}/photo.png'),
        ('photo.png', *names),
        'DataError',
        {'photo.png': data},
    )
    for data, *names in (
        (b'not a picture', 'not a supported image'),
        (b'', 'not a supported image'),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>',),
        (PICKLED,),
        (encoded(NOISE, 'PNG')[:5000], 'damaged'),
        (encoded(NOISE, 'JPEG')[:1500], 'damaged'),
        (encoded(NOISE, 'GIF')[:700],),
        (encoded(NOISE, 'WEBP')[:700],),
        (png(20, 20),),
        (png(0, 20),),
        (png(60_000, 60_000), '64,000,000'),
        (png(9_000, 9_000), '64,000,000'),
        (png(20, 20, (b'zTXt', b'a\0\0' + zlib.compress(bytes(70 << 20)))),),
        (encoded(NANS, 'TIFF'), 'floating-point'),
        (encoded(WIDE, 'TIFF'), 'signed or 32-bit'),
        (tiff(7),),
        (encoded(NOISE.convert('P'), 'PCX'),),
    )
] + [
    Case(PREDICT, ('--workdir={run}',), 'picture'),
    Case(PREDICT, ('--workdir={run}', '{tmp}/absent.png'), '{tmp}/absent.png'),
    Case(PREDICT, ('--workdir={run}', '{tmp}'), '{tmp}'),
    Case(PREDICT, ('--workdir={run}', 'a.png', 'b.png', '--heatmap=c.png'), '--heatmap=c.png'),
    Case(PREDICT, ('--workdir={run}', 'a.png', '--heatmap=c.jpg'), ('--heatmap=c.jpg', '.png')),
    Case(PREDICT, ('--workdir={run}', '{tmp}/caf\udce9.png'), '{tmp}/caf'),
    Case(
        PREDICT,
        ('--workdir={run}', '{tmp}/a.png', '--heatmap={tmp}/no/heat.png'),
        '{tmp}/no/heat.png',
        files={'a.png': encoded(NOISE, 'PNG')},
    ),
    Case(
        PREDICT,
        ('{tmp}/a.png', '--heatmap={tmp}/a.png'),
        '--heatmap={tmp}/a.png',
        files={'a.png': encoded(NOISE, 'PNG')},
    ),
    Case(
        VISUALIZE,
        ('--workdir=mnist', '--images={tmp}/a.png'),
        ('--workdir=mnist', '--out'),
        files={'a.png': encoded(NOISE, 'PNG')},
    ),
    Case(
        PREDICT,
        ('--workdir={tmp}', '{tmp}/a.png'),
        '{tmp}',
        files={'a.png': encoded(NOISE, 'PNG')},
    ),
    Case(
        PREDICT,
        ('--workdir={run}', '{tmp}/a.png', '--step=5'),
        'step 5',
        files={'a.png': encoded(NOISE, 'PNG')},
    ),
    Case(VISUALIZE, (), '--workdir'),
    Case(VISUALIZE, ('--workdir={tmp}/none',), '{tmp}/none'),
    Case(VISUALIZE, ('extra',), "'extra'"),
    Case(VISUALIZE, ('--workdir={run}', '--longest=5'), ('longest', '5', '[16, 2048]')),
    Case(VISUALIZE, ('--workdir={run}', '--step=5'), 'step 5'),
    Case(VISUALIZE, ('--workdir={run}', '--images={tmp}/no.png'), '{tmp}/no.png'),
    Case(VISUALIZE, ('--workdir={run}', '--images=a/1.png', '--images=b/1.jpg'), 'dense_1.png'),
    Case(VISUALIZE, ('--workdir={run}', '--out=README.md'), "'README.md'"),
]

# ---- archives -------------------------------------------------------------------------------


def tar(*members: tuple[str, bytes, bytes, str]) -> bytes:
    """A .tar.gz of (name, content, type, link target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        for name, content, kind, target in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, target
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def mat(**arrays) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, arrays)
    return buffer.getvalue()


def cifar(
    label: int = 0, extra: bytes = b'', names: bytes = b'a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n'
) -> bytes:
    """CIFAR-10's archive with one image a file."""
    rows = bytes([label]) + bytes(3072) + extra
    files = [f'data_batch_{k}.bin' for k in range(1, 6)] + ['test_batch.bin']
    members = [(f'cifar-10-batches-bin/{f}', rows, tarfile.REGTYPE, '') for f in files]
    meta = ('cifar-10-batches-bin/batches.meta.txt', names, tarfile.REGTYPE, '')
    return tar(*members, meta)


FILE, X4 = tarfile.REGTYPE, np.zeros((32, 32, 3, 4), np.uint8)
CIFAR = [
    Case(
        PREPARE,
        ('cifar10', '--archives={tmp}', '--data_dir={tmp}/tfds'),
        ('cifar', *names),
        'DataError',
        files={'cifar-10-binary.tar.gz': data},
    )
    for data, *names in (
        (tar(('../evil', b'x', FILE, '')), "'../evil'"),
        (tar(('/tmp/evil', b'x', FILE, '')), "'/tmp/evil'"),
        (tar(('a/../../evil', b'x', FILE, '')), 'unsafe'),
        (tar(('link', b'', tarfile.SYMTYPE, '/etc/passwd')), "'link'"),
        (tar(('link', b'', tarfile.LNKTYPE, '../evil')), 'unsafe'),
        (tar(('pipe', b'', tarfile.FIFOTYPE, '')), 'unsafe'),
        (tar(('disk', b'', tarfile.BLKTYPE, '')), 'unsafe'),
        (tar(('readme', b'x', FILE, '')),),
        (cifar(label=200),),
        (cifar(extra=bytes(1000)),),
        (cifar(names=b'\xff\n'),),
        (cifar()[:200], 'damaged'),
        (b'', 'damaged'),
        (gzip.compress(b'not a tar'), 'damaged'),
        (PICKLED, 'damaged'),
    )
]
SVHN = [
    Case(
        PREPARE,
        ('svhn_cropped', '--archives={tmp}', '--data_dir={tmp}/tfds'),
        names,
        'DataError',
        {
            f'{part}_32x32.mat': mat(X=X4, y=np.ones((4, 1), np.uint8))
            for part in ('train', 'test')
        } | {'extra_32x32.mat': data},
    )
    for data, names in (
        (b'', 'extra_32x32.mat'),
        (b'<html>' * 100, 'extra_32x32.mat'),
        (mat(X=X4, y=np.ones((4, 1), np.uint8))[:-500], 'extra_32x32.mat'),
        (mat(X=X4[:31], y=np.ones((4, 1), np.uint8)), ('extra_32x32.mat', '(32, 32, 3, N)')),
        (mat(X=X4[:, :, :1], y=np.ones((4, 1), np.uint8)), ('extra_32x32.mat', '(32, 32, 3, N)')),
        (mat(X=X4, y=np.ones((3, 1), np.uint8)), ('extra_32x32.mat', '(N, 1)')),
        (mat(X=X4, y=np.full((4, 1), 77, np.uint8)), 'svhn_cropped'),
        (mat(X=X4.astype(np.float32) + np.nan, y=np.ones((4, 1), np.uint8)), 'svhn_cropped'),
        (mat(Z=X4), 'extra_32x32.mat'),
    )
]  # fmt: skip
PREPARING = [
    Case(PREPARE, (), ('mnist', 'svhn_cropped', 'cifar10', 'cifar100', 'all')),
    Case(PREPARE, ('mnst',), ("'mnst'", "'mnist'")),
    Case(PREPARE, ('cifar10', '--archives=/no/such'), '--archives=/no/such'),
    Case(
        PREPARE, ('cifar10', '--archives={tmp}', '--data_dir={tmp}'), ('{tmp}', 'cifar-10-binary')
    ),
    Case(PREPARE, ('cifar10', '--data_dir=gs://b/c'), 'gs://b/c'),
    Case(
        PREPARE,
        ('svhn_cropped', '--archives={tmp}', '--data_dir={tmp}/tfds'),
        ('_32x32.mat', '{tmp}'),
        files={f'{f}/{p}_32x32.mat': b'' for f in 'ab' for p in ('train', 'test', 'extra')},
    ),
    Case(
        PREPARE,
        ('svhn_cropped', '--archives={archives}', '--data_dir={tmp}/file'),
        "'{tmp}/file",
        files={'file': b''},
    ),
    Case(
        PREPARE,
        ('svhn_cropped', '--archives={archives}', '--data_dir=/proc/none'),
        "'/proc/none'",
    ),
]

# ---- the authors' weights, and machines -----------------------------------------------------


def field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2, len(payload)]) + payload


CAFFE = [
    Case(
        PRETRAINED,
        ('--caffemodel={tmp}/net', '--workdir={tmp}/authors', '--data_dir={tmp}'),
        (*names,) or '{tmp}/net',
        'CheckpointError',
        files={'net': data},
    )
    for data, *names in (
        (b'', 'no layer'),
        (b'garbage' * 99,),
        (PICKLED,),
        (b'\x89PNG\r\n\x1a\n' + bytes(100),),
        (b'\xff' * 64,),
        (bytes.fromhex('1206220463636370'), 'it holds no layer'),
        (bytes.fromhex('12193206080110011801220463636370'), 'ends too soon'),
        (field(2, field(4, b'conv1') + field(6, field(5, bytes(4)))), "'conv1'"),
    )
] + [
    Case(PRETRAINED, ('--workdir={tmp}/authors',), '--caffemodel'),
    Case(PRETRAINED, ('--caffemodel={tmp}/none',), '--workdir'),
    Case(PRETRAINED, ('--caffemodel={tmp}/none', '--workdir={tmp}/a'), '{tmp}/none'),
]
MACHINES = [
    main(names="JAX_PLATFORMS='nonsense'", env={'JAX_PLATFORMS': 'nonsense'}),
    main(names="JAX_PLATFORMS='cuda'", env={'JAX_PLATFORMS': 'cuda'}),
    main('--config.devices=2', names=('devices=2', '1'), env={'JAX_PLATFORMS': 'cpu'}),
    main(
        '--config.train.batch_size=100',
        names=('train.batch_size=100', '8'),
        env={'XLA_FLAGS': '--xla_force_host_platform_device_count=8'},
    ),
]

CASES = [
    *(*COMMAND_LINE, *PAGES, *UNREADABLE, *VALUES, *SIZES, *DATA, *FOLDERS),
    *(*EVALUATION, *PICTURES),
    *(*CIFAR, *SVHN, *PREPARING, *CAFFE, *MACHINES),
]
