"""Converts the authors' Caffe model of CIFAR-10 to a run.

    python -m experiments.pretrained --caffemodel=cifar10_nin.caffemodel --workdir=runs/authors
    python -m experiments.main --config=experiments/configs/cifar10.py \\
        --config.model.blocks.mlpconv2.pool=avg --workdir=runs/authors --mode=eval

The second command gets 1,043 of the 10,000 test images wrong: 10.43 %; the paper reports 10.41 %.
The preprocessing is fitted to the 50,000 training images, so it needs
`python -m experiments.prepare cifar10`.
"""

import pathlib
import shlex

from absl import flags

from experiments import cli

CAFFEMODEL = flags.DEFINE_string('caffemodel', None, "The authors' cifar10_nin.caffemodel.")
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run; new or empty.')
DATA_DIR = cli.define_data_dir()


def main(argv: list[str]) -> int:
    cli.no_arguments(argv)
    caffemodel = cli.required(CAFFEMODEL, "name the authors' cifar10_nin.caffemodel")
    folder = pathlib.Path(cli.required(WORKDIR, 'name a folder to make, such as runs/authors'))
    from experiments.configs import cifar10
    from nin_jax.pretrained import import_caffe

    config = cifar10.get_config()
    config.model.blocks.mlpconv2.pool = 'avg'  # the Caffe model's second pooling; the paper: max
    config.data.dir = DATA_DIR.value or ''
    import_caffe.import_caffemodel(config, pathlib.Path(caffemodel), folder)
    command = [
        *('python', '-m', 'experiments.main', '--config=experiments/configs/cifar10.py'),
        *('--config.model.blocks.mlpconv2.pool=avg', f'--workdir={folder}', '--mode=eval'),
        *([f'--config.data.dir={DATA_DIR.value}'] if DATA_DIR.value else []),
    ]
    print(
        f"'{folder}' is now a run with the authors' weights, at step 0; evaluate it with\n"
        f'  {shlex.join(command)}'
    )
    return 0


if __name__ == '__main__':
    cli.run(main)
