"""Writes a web page on which a trained network answers: drop a picture, use the camera, draw.

    python -m experiments.demo --out=demo
    python -m experiments.demo --workdir=runs/quickstart --out=demo
    python -m http.server --directory demo 8000

The first uses the CIFAR-10 network that comes with the package. The page shows the five likeliest
classes, each one's map over the picture, and the maps of every layer. All of it is static files
and runs in the visitor's browser: put the folder on any web server. Needs
`pip install 'nin-jax[onnx]'`.

The browser loads ONNX Runtime Web from a CDN; --runtime=DIR copies it from a folder instead, such
as node_modules/onnxruntime-web/dist after `npm install onnxruntime-web`.
"""

import pathlib

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
    print(f"'{out}' is a web page: python -m http.server --directory {out} 8000")
    return 0


if __name__ == '__main__':
    cli.run(main)
