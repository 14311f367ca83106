"""Mistakes as data: what is typed or lies on the disk, and a part of the one sentence it gets.

A case is (module, words, sentence) and perhaps files. In words and sentences, {tmp} stands for a
folder of the case's own with its files, {run} for a copy of a finished tiny run in it, {tiny} for
that run's page and {archives} for made-up archives of SVHN.
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
      sentence: what stands in the one line on stderr, after 'error: '.
      files: path below {tmp} -> content.
      env: environment; such a case needs a process of its own.
    """

    module: str
    words: tuple[str, ...]
    sentence: str
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    env: dict[str, str] = dataclasses.field(default_factory=dict)


def main(*words: str, sentence: str, **kwargs) -> Case:
    """A tiny run into an empty folder, with something wrong."""
    return Case(MAIN, ('--config={tiny}', '--workdir={tmp}/new', *words), sentence, **kwargs)


def evaluate(*words: str, sentence: str, **kwargs) -> Case:
    words = ('--config={tiny}', '--workdir={run}', '--mode=eval', *words)
    return Case(MAIN, words, sentence, **kwargs)


# ---- the command line and the page --------------------------------------------------------------

QUICKSTART = 'experiments/configs/quickstart.py'
COMMAND_LINE = [
    Case(MAIN, (), '--config is missing: name a page'),
    Case(MAIN, ('--config.seed=3',), '--config.seed needs a page to change'),
    Case(MAIN, (f'--config={QUICKSTART}',), '--workdir is missing: --mode=train needs the folder'),
    Case(MAIN, (f'--config={QUICKSTART}', '--mode=eval'), '--workdir is missing: --mode=eval'),
    Case(MAIN, ('--config=',), "no config page '.'"),
    Case(MAIN, ('--config=nope.py',), "no config page 'nope.py'"),
    Case(MAIN, ('--config=tests',), "no config page 'tests'"),
    Case(MAIN, ('--config=experiments/configs/quikstart.py',), f"did you mean '{QUICKSTART}'?"),
    Case(MAIN, ('--config=README.md',), "config page 'README.md' does not load"),
    Case(MAIN, (f'--config={QUICKSTART}:smokey',), "unknown variant ':smokey', did you mean"),
    Case(MAIN, ('--config=experiments/configs/ablations.py:fc,convfc',), 'unknown variant'),
    Case(MAIN, ('--workdirr=x',), "Unknown command line flag 'workdirr'. Did you mean: workdir"),
    Case(MAIN, ('--mode=trian',), 'value should be one of <train|eval|describe|dryrun>'),
    Case(MAIN, ('--mode=eval', '--step=x', '--workdir=x'), 'invalid literal for int() with base'),
    main('extra', sentence="unexpected argument 'extra': flags begin with --"),
    Case(SEEDS, (), 'the following arguments are required: --config, --workdir'),
    Case(SEEDS, ('--config=x', '--workdir={tmp}', '--seeds=0'), 'give N of 1 or more'),
    Case(SEEDS, ('--config=x', '--workdir={tmp}', '--seeds=x'), "invalid int value: 'x'"),
    Case(SEEDS, ('--config=x', '--workdir={tmp}', '--config.seed=1'), 'and no --config.seed'),
]
PAGES = [
    Case(MAIN, ('--config={tmp}/page.py',), sentence, {'page.py': text})
    for text, sentence in (
        (b'1 / 0', 'does not load: division by zero'),
        (b'def get_config(', 'does not load'),
        (b'x = 3', 'does not load'),
        (b'\xff\xfe\x00', 'does not load'),
        (b'def get_config(arg=None): return 3', 'does not load'),
        (b'import no_such_module', "does not load: No module named 'no_such_module'"),
    )
]

# ---- values ---------------------------------------------------------------------------------

VALUES = [
    main(f'--config.{key}={value}', sentence=sentence)
    for key, value, sentence in (
        ('optim.lrr', '1', "unknown key 'optim.lrr', did you mean 'optim.lr'?"),
        ('optim', '1', "unknown key 'optim', did you mean"),
        ('', '1', "unknown key '': choose from"),
        ('optim.lr', 'fast', "could not convert string to float: 'fast'"),
        ('optim.lr', '', "could not convert string to float: ''"),
        ('seed', '1.5', "invalid literal for int() with base 10: '1.5'"),
        ('augment.flip', 'maybe', 'maybe'),
        ('model.blocks.mlpconv1.features', 'abc', 'abc'),
        ('model.blocks.mlpconv1.features', '(8,8', '(8,8'),
        ('seed', '-1', 'seed=-1: must be from 0 to 2147483647'),
        ('seed', '2147483648', 'seed=2147483648: must be from 0 to'),
        ('devices', '-1', 'devices=-1: must be 0 (all) or more'),
        ('devices', '3', 'devices=3: JAX sees 1 (cpu), choose that or less'),
        ('data.limit', '-1', 'data.limit=-1: must be 0 (all) or more'),
        ('data.limit', '5', 'the training split holds only 5 images'),
        ('preprocess.gcn_scale', '0', 'preprocess.gcn_scale=0.0: must be above 0'),
        ('preprocess.zca_bias', '-0.1', 'preprocess.zca_bias=-0.1: must be above 0'),
        ('preprocess.zca_bias', 'nan', 'preprocess.zca_bias=nan: must be above 0'),
        ('augment.crop_pad', '65', 'augment.crop_pad=65: must be from 0 to 64'),
        ('model.class_bias', '-1', 'model.class_bias=-1.0: must be 0 or more'),
        ('model.head_dropout', '1', 'model.head_dropout=1.0: must be from 0 to below 1'),
        ('model.head_dropout', '0.5', "must be 0 with model.head='gap'"),
        ('optim.lr', '0', 'optim.lr=0.0: must be above 0'),
        ('optim.lr', '-1', 'optim.lr=-1.0: must be above 0'),
        ('optim.lr', 'nan', 'optim.lr=nan: must be above 0'),
        ('optim.lr', 'inf', 'optim.lr=inf: must be above 0'),
        ('optim.lr', '1e9', 'optim.lr=1000000000.0: must be above 0'),
        ('optim.momentum', '1', 'optim.momentum=1.0: must be from 0 to below 1'),
        ('optim.momentum', '-0.1', 'optim.momentum=-0.1: must be from 0'),
        ('optim.weight_decay', '-1e-4', 'optim.weight_decay=-0.0001: must be 0 or more'),
        ('optim.bias_lr', '-1', 'optim.bias_lr=-1.0: must be 0 or more'),
        ('optim.last_layer_lr', 'nan', 'optim.last_layer_lr=nan: must be 0 or more'),
        ('optim.drop_factor', '1', 'optim.drop_factor=1.0: must be between 0 and 1'),
        ('optim.plateau_patience', '0', 'optim.plateau_patience=0: must be 1 or more'),
        ('train.batch_size', '0', 'train.batch_size=0: must be 1 or more'),
        ('train.batch_size', '257', 'the training split holds only 256 images'),
        ('train.microbatch', '-1', 'train.microbatch=-1: must be 0 (automatic) or more'),
        ('train.microbatch', '5', 'train.microbatch=5: must divide train.batch_size=32'),
        ('train.steps_per_call', '-1', 'train.steps_per_call=-1: must be 0'),
        ('train.dead_steps', '0', 'train.dead_steps=0: must be 1 or more'),
        ('train.restarts', '101', 'train.restarts=101: must be from 0 to 100'),
        ('eval.batch_size', '-1', 'eval.batch_size=-1: must be 0 (automatic) or more'),
        ('checkpoint.keep', '0', 'checkpoint.keep=0: must be 1 or more'),
        ('dtype', 'float16', "dtype='float16', did you mean 'bfloat16'?"),
        ('optim.schedule', 'drop', "optim.schedule='drop', did you mean 'drops'?"),
        ('model.dropout_mode', 'x', "model.dropout_mode='x': choose from inverted, convnet"),
        ('model.head', 'gpa', "model.head='gpa', did you mean 'gap'?"),
        ('preprocess.recipe', 'zca', "preprocess.recipe='zca', did you mean 'gcn_zca'?"),
        ('model.blocks.mlpconv1.kernel', '4', 'mlpconv1.kernel=4: must be odd, 1 or more'),
        ('model.blocks.mlpconv1.kernel', '-1', 'mlpconv1.kernel=-1: must be odd'),
        ('model.blocks.mlpconv1.pool', 'mean', "mlpconv1.pool='mean': choose from max, avg"),
        ('model.blocks.mlpconv1.dropout', '1', 'mlpconv1.dropout=1.0: must be from 0 to below'),
        ('model.blocks.mlpconv1.pieces', '0', 'mlpconv1.pieces=0: must be 1 (ReLU) or more'),
        ('model.blocks.mlpconv1.features', '()', 'mlpconv1.features=(): must be whole numbers'),
        ('model.blocks.mlpconv1.features', '(8,0,8)', 'must be whole numbers, 1 or more'),
        ('model.blocks.mlpconv1.init_std', '(.1,.1)', 'must be one positive number for each'),
        ('model.blocks.mlpconv1.init_std', '(.1,.1,-1.)', 'must be one positive number'),
        ('model.blocks.mlpconv2.features', '(8,8,9)', 'end it in 10'),
        ('train.duration', '3parsecs', "train.duration='3parsecs': write a duration as"),
        ('train.duration', '', "train.duration='': write a duration as"),
        ('train.duration', '-1ep', "train.duration='-1ep': write a duration as"),
        ('train.duration', '10%', "train.duration='10%': write a duration as '3ep' or"),
        ('train.duration', 'nanep', "train.duration='nanep': write a duration as"),
        ('train.duration', '99999999ep', 'is past 2**31 images, choose less'),
        ('train.duration', '9' * 400 + 'ep', 'choose less'),
        ('eval.every', 'often', "eval.every='often': write a duration as"),
        ('checkpoint.every', '1e9ep', "checkpoint.every='1e9ep': write a duration as"),
        ('optim.drops', '30ep 20ep', "optim.drops='30ep 20ep': must grow from left to right"),
        ('optim.drops', 'late', "optim.drops='late': write a duration as"),
        ('data.name', 'mnits', "no dataset 'mnits', did you mean 'mnist'?"),
        ('data.eval', 'tset', "no split 'tset' in 'tset', did you mean 'test'?"),
        ('data.eval', 'test+test', "splits 'test+test' names a split twice"),
        ('data.train', '', "no split '' in ''"),
    )
]
DATA = [
    main(
        '--config.data.name=cifar10',
        '--config.data.dir={tmp}/nowhere',
        sentence='cifar10 is not prepared in {tmp}/nowhere: run  python -m experiments.prepare',
    ),
    main(
        '--config.data.name=cifar10',
        '--config.data.dir=gs://bucket/data',
        sentence="data_dir 'gs://bucket/data' is not a local folder",
    ),
]

# ---- the run's folder -----------------------------------------------------------------------


class Malice:
    """Unpickled, it would leave a file behind; tests/test_bad_inputs.py looks for that file."""

    def __reduce__(self):
        return (open, ('UNPICKLED', 'w'))


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


PICKLED = pickle.dumps(Malice())
OBJECTS = np.array([Malice()], object)
FOLDERS = [
    Case(MAIN, ('--config={tiny}', f'--workdir={where}'), sentence)
    for where, sentence in (
        ('/proc/no/such', "No such file or directory '/proc/no'"),
        ('README.md', "File exists 'README.md'"),
        ('{tmp}/' + 'n' * 300, 'File name too long'),
        ('{tmp}/caf\udce9', 'is not UTF-8'),
    )
] + [
    Case(MAIN, ('--config={tiny}', '--workdir={run}', *words), sentence, files)
    for words, sentence, files in (
        (['--config.optim.lr=0.01'], 'holds a run with optim.lr=0.1, this command says 0.01', {}),
        ([], "config.json' is damaged", {'run/config.json': b'{'}),
        ([], "config.json' is damaged", {'run/config.json': b'[]'}),
        ([], "config.json' is damaged", {'run/config.json': PICKLED}),
        ([], 'preprocess.npz is not a saved preprocessing', {'run/preprocess.npz': PICKLED}),
        (
            [],
            'preprocess.npz is not a saved preprocessing',
            {'run/preprocess.npz': npz(recipe=OBJECTS)},
        ),
        ([], "metrics.jsonl' is damaged", {'run/metrics.jsonl': b'{"kind": "eval"}\n'}),
        ([], "metrics.jsonl' is damaged", {'run/metrics.jsonl': PICKLED}),
    )
]
EVALUATION = [
    evaluate('--step=99', sentence='no checkpoint at step 99: there are 16, 24'),
    evaluate('--step=-1', sentence='no checkpoint at step -1'),
    evaluate(
        '--config.model.blocks.mlpconv1.features=(9,9,9)',
        sentence='holds a run with model.blocks.mlpconv1.features=[8, 8, 8], this command says',
    ),
    Case(MAIN, ('--config={tiny}', '--workdir={tmp}', '--mode=eval'), 'holds no preprocess.npz'),
    evaluate(sentence="config.json' is damaged", files={'run/config.json': b'\xff'}),
    Case(REPORT, (), 'no run is named: give folders of runs'),
    Case(REPORT, ('{run}',), 'nothing to make: add --out=RESULTS.md'),
    Case(REPORT, ('{tmp}/none', '--out={tmp}/R.md'), 'holds no run'),
    Case(REPORT, ('{run}', '--out={tmp}/R.md'), 'damaged', {'run/summary.json': b'[3]'}),
    Case(REPORT, ('{run}', '--out={tmp}/R.md'), 'damaged', {'run/metrics.jsonl': b'{}\n'}),
    Case(REPORT, ('{tmp}/a.json', '--out={tmp}/R.md'), 'is not the record', {'a.json': b'{}'}),
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
    """4 x 4 pixels of 8-bit channels, more than any colour has."""
    tags = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 8), (277, channels), (278, 4)]
    tags += [(279, 16 * channels), (284, 1)]
    pixels = bytes(16 * channels)
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags)
    return (
        b'II*\0' + struct.pack('<I', 8 + len(pixels)) + pixels + struct.pack('<H', len(tags))
        + entries + bytes(4)
    )  # fmt: skip


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
NANS = Image.fromarray(np.full((4, 4), np.nan, np.float32))
PICTURES = [
    Case(PREDICT, ('--workdir={run}', '{tmp}/photo.png'), sentence, {'photo.png': data})
    for data, sentence in (
        (b'not a picture', 'is not a picture this can read'),
        (b'', 'is not a picture this can read'),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'is not a picture this can read'),
        (PICKLED, 'is not a picture this can read'),
        (encoded(NOISE, 'PNG')[:5000], 'damaged'),
        (encoded(NOISE, 'JPEG')[:1500], 'damaged'),
        (encoded(NOISE, 'GIF')[:700], 'photo.png'),
        (encoded(NOISE, 'WEBP')[:700], 'photo.png'),
        (png(20, 20), 'damaged'),
        (png(0, 20), 'photo.png'),
        (png(60_000, 60_000), 'more than 64,000,000 pixels'),
        (png(9_000, 9_000), 'more than 64,000,000 pixels'),
        (png(20, 20, (b'zTXt', b'a\0\0' + zlib.compress(bytes(70 << 20)))), 'damaged'),
        (encoded(NANS, 'TIFF'), 'has floating-point pixels'),
        (tiff(7), 'photo.png'),
        (encoded(NOISE.convert('P'), 'PCX'), 'is not a picture this can read'),
    )
] + [
    Case(PREDICT, ('{tmp}/a.png',), '--workdir is missing'),
    Case(PREDICT, ('--workdir={run}',), 'name a picture, such as photo.png'),
    Case(PREDICT, ('--workdir={run}', '{tmp}/absent.png'), 'No such file or directory'),
    Case(PREDICT, ('--workdir={run}', '{tmp}'), 'Is a directory'),
    Case(PREDICT, ('--workdir={run}', 'a.png', 'b.png', '--heatmap=c.png'), 'for one picture'),
    Case(PREDICT, ('--workdir={run}', 'a.png', '--heatmap=c.jpg'), 'must be one .png'),
    Case(PREDICT, ('--workdir={run}', '{tmp}/caf\udce9.png'), 'No such file or directory'),
    Case(
        PREDICT,
        ('--workdir={run}', '{tmp}/a.png', '--heatmap={tmp}/no/heat.png'),
        'No such file or directory',
        {'a.png': encoded(NOISE, 'PNG')},
    ),
    Case(
        PREDICT,
        ('--workdir={tmp}', '{tmp}/a.png'),
        'holds no config.json: name the folder of a release or of a run',
        {'a.png': encoded(NOISE, 'PNG')},
    ),
    Case(VISUALIZE, (), '--workdir is missing'),
    Case(VISUALIZE, ('extra',), "unexpected argument 'extra'"),
    Case(
        VISUALIZE, ('--workdir={run}', '--longest=5'), '5 is not an integer in the range [16, 2048]'
    ),
    Case(VISUALIZE, ('--workdir={run}', '--step=5'), 'no checkpoint at step 5'),
    Case(VISUALIZE, ('--workdir={run}', '--images={tmp}/no.png'), 'No such file or directory'),
    Case(VISUALIZE, ('--workdir={run}', '--out=README.md'), "File exists 'README.md'"),
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
        sentence,
        {'cifar-10-binary.tar.gz': data},
    )
    for data, sentence in (
        (tar(('../evil', b'x', FILE, '')), "is unsafe: it holds '../evil'"),
        (tar(('/tmp/evil', b'x', FILE, '')), "is unsafe: it holds '/tmp/evil'"),
        (tar(('a/../../evil', b'x', FILE, '')), 'is unsafe'),
        (tar(('link', b'', tarfile.SYMTYPE, '/etc/passwd')), "is unsafe: it holds 'link'"),
        (tar(('link', b'', tarfile.LNKTYPE, '../evil')), 'is unsafe'),
        (tar(('pipe', b'', tarfile.FIFOTYPE, '')), 'is unsafe'),
        (tar(('disk', b'', tarfile.BLKTYPE, '')), 'is unsafe'),
        (tar(('readme', b'x', FILE, '')), 'cifar10 cannot be made from'),
        (cifar(label=200), 'cifar10 cannot be made from'),
        (cifar(extra=bytes(1000)), 'cifar10 cannot be made from'),
        (cifar(names=b'\xff\n'), 'cifar10 cannot be made from'),
        (cifar()[:200], 'is damaged'),
        (b'', 'is damaged'),
        (gzip.compress(b'not a tar'), 'is damaged'),
        (PICKLED, 'is damaged'),
    )
]
SVHN = [
    Case(
        PREPARE,
        ('svhn_cropped', '--archives={tmp}', '--data_dir={tmp}/tfds'),
        sentence,
        {
            f'{part}_32x32.mat': mat(X=X4, y=np.ones((4, 1), np.uint8))
            for part in ('train', 'test')
        } | {'extra_32x32.mat': data},
    )
    for data, sentence in (
        (b'', 'extra_32x32.mat is damaged'),
        (b'<html>' * 100, 'extra_32x32.mat is damaged'),
        (mat(X=X4, y=np.ones((4, 1), np.uint8))[:-500], 'is damaged'),
        (mat(X=X4[:31], y=np.ones((4, 1), np.uint8)), 'expected X (32, 32, 3, N)'),
        (mat(X=X4[:, :, :1], y=np.ones((4, 1), np.uint8)), 'expected X (32, 32, 3, N)'),
        (mat(X=X4, y=np.ones((3, 1), np.uint8)), 'expected X (32, 32, 3, N) and y (N, 1)'),
        (mat(X=X4, y=np.full((4, 1), 77, np.uint8)), 'svhn_cropped cannot be made from'),
        (mat(X=X4.astype(np.float32) + np.nan, y=np.ones((4, 1), np.uint8)), 'svhn_cropped'),
        (mat(Z=X4), 'extra_32x32.mat is damaged'),
    )
]  # fmt: skip
PREPARING = [
    Case(PREPARE, (), 'name what to prepare: mnist, svhn_cropped, cifar10, cifar100 or all'),
    Case(PREPARE, ('mnst',), "no dataset 'mnst', did you mean 'mnist'?"),
    Case(PREPARE, ('cifar10', '--archives=/no/such'), '--archives=/no/such is not a folder'),
    Case(PREPARE, ('cifar10', '--archives={tmp}', '--data_dir={tmp}'), 'holds no cifar-10-binary'),
    Case(PREPARE, ('cifar10', '--data_dir=gs://b/c'), 'is not a local folder'),
    Case(
        PREPARE,
        ('svhn_cropped', '--archives={tmp}', '--data_dir={tmp}/tfds'),
        '_32x32.mat twice, as ',
        {f'{f}/{p}_32x32.mat': b'' for f in 'ab' for p in ('train', 'test', 'extra')},
    ),
    Case(
        PREPARE,
        ('svhn_cropped', '--archives={archives}', '--data_dir={tmp}/file'),
        "Not a directory '{tmp}/file",
        {'file': b''},
    ),
    Case(
        PREPARE,
        ('svhn_cropped', '--archives={archives}', '--data_dir=/proc/none'),
        "No such file or directory '/proc/none'",
    ),
]

# ---- the authors' weights, and machines -----------------------------------------------------


def field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2, len(payload)]) + payload


CAFFE = [
    Case(
        PRETRAINED,
        ('--caffemodel={tmp}/net', '--workdir={tmp}/authors', '--data_dir={tmp}'),
        sentence,
        {'net': data},
    )
    for data, sentence in (
        (b'', 'is not a Caffe model: it holds no layer with weights'),
        (b'garbage' * 99, 'is not a Caffe model'),
        (PICKLED, 'is not a Caffe model'),
        (b'\x89PNG\r\n\x1a\n' + bytes(100), 'is not a Caffe model'),
        (b'\xff' * 64, 'is not a Caffe model'),
        (field(2, field(4, b'conv1') + field(6, field(5, bytes(4)))), "no layer 'conv1' with"),
    )
] + [
    Case(PRETRAINED, ('--workdir={tmp}/authors',), '--caffemodel is missing'),
    Case(PRETRAINED, ('--caffemodel={tmp}/none',), '--workdir is missing'),
    Case(PRETRAINED, ('--caffemodel={tmp}/none', '--workdir={tmp}/a'), 'No such file or directory'),
]
MACHINES = [
    main(sentence="JAX cannot use JAX_PLATFORMS='nonsense' (", env={'JAX_PLATFORMS': 'nonsense'}),
    main(sentence="JAX cannot use JAX_PLATFORMS='cuda' (", env={'JAX_PLATFORMS': 'cuda'}),
    main('--config.devices=2', sentence='JAX sees 1', env={'JAX_PLATFORMS': 'cpu'}),
    main(
        '--config.train.batch_size=100',
        sentence='train.batch_size=100: must be a multiple of the 8 devices',
        env={'XLA_FLAGS': '--xla_force_host_platform_device_count=8'},
    ),
]

CASES = [
    *(*COMMAND_LINE, *PAGES, *VALUES, *DATA, *FOLDERS, *EVALUATION, *PICTURES),
    *(*CIFAR, *SVHN, *PREPARING, *CAFFE, *MACHINES),
]
