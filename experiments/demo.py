"""Writes a web page that runs a trained network on pictures, the camera or drawings.

    python -m experiments.demo --out=demo
    python -m experiments.demo --workdir=runs/quickstart --out=demo
    python -m http.server --directory demo 8000

The first command uses the CIFAR-10 network of the package. The page shows the five most probable
classes, their maps over the picture, and the maps of every layer. It consists of static files and
runs in the visitor's browser, so any web server can serve it. Needs `pip install -e '.[onnx]'`.

The browser loads ONNX Runtime Web from a CDN. --runtime=DIR copies it from a folder instead, such
as node_modules/onnxruntime-web/dist after `npm install onnxruntime-web`.
"""

import pathlib
import shlex

from absl import flags

from experiments import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'A run, a release or the name of a bundled network.')
OUT = flags.DEFINE_string('out', None, 'The folder to write.')
RUNTIME = flags.DEFINE_string('runtime', None, 'A folder with ONNX Runtime Web, to copy it from.')
STEP = cli.define_step()


def main(argv: list[str]) -> int:
    cli.no_arguments(argv)
    out = pathlib.Path(cli.required(OUT, 'name a folder to write, such as demo'))
    from nin_jax.pretrained import bundled
    from nin_jax.visualize import demo

    network = cli.open_network(WORKDIR.value or bundled.DEFAULT, STEP.value)
    demo.write(out, network, pathlib.Path(RUNTIME.value) if RUNTIME.value else None)
    command = shlex.join(['python', '-m', 'http.server', '--directory', str(out), '8000'])
    print(f"'{out}' is a web page: {command}")
    return 0


if __name__ == '__main__':
    cli.run(main)
