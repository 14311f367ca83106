"""Results of the paper (arXiv 1312.4400v3) and of public reproductions."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One network of a table.

    Attributes:
      network: its name in the paper.
      error: test error in percent; None if the paper reports none.
      config: the config, with variant, that trains it here; '' for networks of other papers.
    """

    network: str
    error: float | None
    config: str = ''


@dataclasses.dataclass(frozen=True)
class Other:
    """A public reproduction.

    Attributes:
      config: the config of the row that it reproduces.
      error: test error in percent.
      who: authors, framework and changes.
      source: where the authors state the error.
    """

    config: str
    error: float
    who: str
    source: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper, or results from its text.

    Attributes:
      figure: whether Figure 3 follows the table.
      baseline: the config of the row that the others are compared with, seed by seed.
    """

    title: str
    rows: tuple[Row, ...]
    figure: bool = False
    baseline: str = ''


TABLES = (
    Table(
        'Table 1: CIFAR-10',
        (
            Row('Stochastic Pooling', 15.13),
            Row('CNN + Spearmint', 14.98),
            Row('Conv. maxout + Dropout', 11.68),
            Row('NIN + Dropout', 10.41, 'cifar10'),
            Row('CNN + Spearmint + Data Augmentation', 9.50),
            Row('Conv. maxout + Dropout + Data Augmentation', 9.38),
            Row('DropConnect + 12 networks + Data Augmentation', 9.32),
            Row('NIN + Dropout + Data Augmentation', 8.81, 'cifar10:aug'),
        ),
    ),
    Table(
        'Table 2: CIFAR-100',
        (
            Row('Learned Pooling', 43.71),
            Row('Stochastic Pooling', 42.51),
            Row('Conv. maxout + Dropout', 38.57),
            Row('Tree based priors', 36.85),
            Row('NIN + Dropout', 35.68, 'cifar100'),
            Row("NIN + Dropout, with the authors' released file", 35.68, 'cifar100:released'),
        ),
    ),
    Table(
        'Table 3: SVHN',
        (
            Row('Stochastic Pooling', 2.80),
            Row('Rectifier + Dropout', 2.78),
            Row('Rectifier + Dropout + Synthetic Translation', 2.68),
            Row('Conv. maxout + Dropout', 2.47),
            Row('NIN + Dropout', 2.35, 'svhn'),
            Row('Multi-digit Number Recognition', 2.16),
            Row('DropConnect', 1.94),
        ),
    ),
    Table(
        'Table 4: MNIST',
        (
            Row('2-Layer CNN + 2-Layer NN', 0.53),
            Row('Stochastic Pooling', 0.47),
            Row('NIN + Dropout (ours: class maps start at 0.2)', 0.47, 'mnist'),
            Row('Conv. maxout + Dropout', 0.45),
        ),
    ),
    Table(
        'Table 5: global average pooling as a regularizer, CIFAR-10',
        (
            Row('mlpconv + Fully Connected', 11.59, 'ablations:fc'),
            Row('mlpconv + Fully Connected + Dropout', 10.88, 'ablations:fc_dropout'),
            Row('mlpconv + Global Average Pooling', 10.41, 'cifar10'),
        ),
    ),
    Table(
        'Section 4.6: global average pooling in the network of Hinton et al., CIFAR-10',
        (
            Row('Fully Connected', 17.56, 'hinton:fc'),
            Row('Fully Connected + Dropout', 15.99, 'hinton:fc_dropout'),
            Row('Global Average Pooling', 16.46, 'hinton:gap'),
        ),
    ),
    Table(
        'Section 4.2 and Figure 3: the effect of dropout, CIFAR-10',
        (
            Row('NIN without dropout', 14.51, 'cifar10:nodropout'),
            Row('NIN + Dropout', 10.41, 'cifar10'),
        ),
        figure=True,
    ),
    Table(
        'The effect of the mlpconv, CIFAR-10 (not in the paper)',
        (
            Row('a linear convolution in place of each mlpconv', None, 'ablations:linear'),
            Row('maxout units in place of each mlpconv', None, 'ablations:maxout'),
            Row('mlpconv: NIN + Dropout', 10.41, 'cifar10'),
        ),
    ),
    Table(
        "The paper's claims with the fast recipe, CIFAR-10 (not the paper's schedule)",
        (
            Row('mlpconv, global average pooling, random crops and flips', None, 'ablations:fast'),
            Row('a linear convolution for each mlpconv', None, 'ablations:linear,fast'),
            Row('maxout units for each mlpconv', None, 'ablations:maxout,fast'),
            Row('dropout after the first two blocks', None, 'ablations:dropout,fast'),
            Row('no random crops or flips', None, 'ablations:plain,fast'),
        ),
        baseline='ablations:fast',
    ),
    Table(
        'Global average pooling with the fast recipe and images of one size, CIFAR-10',
        (
            Row('global average pooling', None, 'ablations:one_size,fast'),
            Row('fully connected head', None, 'ablations:fc,fast'),
            Row('fully connected head with dropout', None, 'ablations:fc_dropout,fast'),
        ),
        baseline='ablations:one_size,fast',
    ),
    Table(
        'Later recipes (not in the paper; `:modern` of CIFAR has other layers)',
        (
            Row('CIFAR-10: NIN + Dropout', 10.41, 'cifar10'),
            Row('CIFAR-10: fast recipe', None, 'cifar10:fast'),
            Row('CIFAR-10: modern recipe, test-time augmentation', None, 'cifar10:modern'),
            Row('CIFAR-100: fast recipe', None, 'cifar100:fast'),
            Row('CIFAR-100: modern recipe, test-time augmentation', None, 'cifar100:modern'),
            Row('SVHN: modern recipe, test-time augmentation', None, 'svhn:modern'),
            Row('MNIST: fast recipe', None, 'mnist:fast'),
            Row('MNIST: modern recipe, test-time augmentation', None, 'mnist:modern'),
        ),
    ),
    Table(
        'Quickstart: 5,000 digits of MNIST, 1,000 others to test (not in the paper)',
        (Row('NIN, He initialization, no dropout', None, 'quickstart'),),
    ),
)

# Results that the sources state, with the augmentation of the row; accuracies as errors.
OTHERS = (
    Other(
        'cifar10',
        10.03,
        'VELES (Samsung), best seed; Caffe hyper-parameters, average pooling, orthogonality '
        'penalty, an extra fully connected layer',
        'Veles znicz, CIFAR-10 NIN config',
    ),
    Other(
        'cifar10',
        10.36,
        'jiecaoyu, PyTorch; momentum 0.95, 320 epochs, average pooling',
        'jiecaoyu/pytorch-nin-cifar10@2289f383, README.md',
    ),
    Other(
        'cifar10',
        10.4,
        "the authors' Caffe model; average pooling",
        'gist e56253735ef32c3c296d, readme.md',
    ),
    Other('cifar10', 10.89, 'NCTU deep learning labs, TensorFlow', 'lab reports on GitHub'),
    Other(
        'cifar10',
        12.0,
        'szagoruyko, Torch, without batch normalization',
        'szagoruyko/cifar.torch@704d4317, README.md',
    ),
    Other('cifar10:aug', 8.88, 'NCTU deep learning labs, TensorFlow', 'lab reports on GitHub'),
    Other(
        'cifar10:aug',
        7.43,
        'osmr, with modern augmentation and a longer schedule',
        'osmr/imgclsmob, table of CIFAR-10',
    ),
    Other(
        'cifar10:aug',
        10.2,
        'dacorvo, TensorFlow; moving averages of the weights',
        'dacorvo/tensorsandbox@2619f730, cifar10/models/nin/README.md',
    ),
    Other(
        'cifar100',
        42.0,
        "a user of the authors' gist, with the CIFAR-10 settings",
        'gist DannaShavit/c743d390687095a766d3',
    ),
)

# Figure 3, read from the vector path of the PDF (resolution 0.0024): error at each epoch, all at
# the initial learning rate. Training error is the running mean with dropout active.
FIGURE3_EPOCHS = tuple(range(0, 201, 8))
# fmt: off
FIGURE3 = {
    'training, no dropout': (
        .900, .276, .148, .101, .071, .061, .042, .038, .033, .031, .028, .026, .028, .028, .024,
        .024, .019, .026, .021, .024, .021, .019, .026, .019, .019, .028,
    ),
    'training, dropout': (
        .900, .349, .264, .172, .137, .115, .101, .094, .087, .085, .080, .078, .073, .071, .071,
        .068, .066, .066, .064, None, .064, .061, .064, .061, .059, .059,
    ),
    'test, no dropout': (
        .900, .299, .245, .236, .231, .252, .198, .200, .186, .219, .222, .207, .196, .200, .186,
        .205, .181, .184, .186, .193, .177, .193, .184, .170, .184, .181,
    ),
    'test, dropout': (
        .900, .349, .229, .212, .193, .186, .158, .174, .179, .141, .156, .151, .148, .160, .144,
        .148, .146, .144, .144, .148, .153, .132, .141, .139, .132, .146,
    ),
}
# fmt: on
