"""A static web page that runs a trained network in the browser.

index.html, style.css, *.js   the page, from `page/`
model.onnx                    the network; the activations of all layers are outputs
network.json                  names, sizes, and the location of ONNX Runtime Web
runtime/                      a copy of ONNX Runtime Web, if requested
"""

import json
import shutil
from pathlib import Path

from nin_jax.errors import UserError
from nin_jax.models.nin import count_parameters
from nin_jax.pretrained import onnx_graph
from nin_jax.pretrained.trained import Trained

PAGE = Path(__file__).parent / 'page'
RUNTIME = 'https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/'
RUNTIME_FILES = (
    'ort.wasm.min.mjs',
    'ort-wasm-simd-threaded.mjs',
    'ort-wasm-simd-threaded.wasm',
)


def write(out: Path, trained: Trained, runtime: Path | None = None) -> None:
    """Writes the page; replaces files with the same names.

    Args:
      out: folder to write; it is created if it does not exist.
      trained: the network.
      runtime: a folder with ONNX Runtime Web, such as node_modules/onnxruntime-web/dist, to copy;
        None if the page is to load it from a CDN.

    Raises:
      UserError: `runtime` lacks a file, or the package onnx is not installed.
      ConfigError: the network cannot be converted to ONNX.
    """
    for name in RUNTIME_FILES:
        if runtime is not None and not (runtime / name).is_file():
            raise UserError(
                f"--runtime={runtime}: no '{name}' there; name the folder dist of the npm package "
                'onnxruntime-web'
            )
    model = onnx_graph.build(trained, layers=True)
    out.mkdir(parents=True, exist_ok=True)
    for source in sorted(PAGE.iterdir()):
        shutil.copyfile(source, out / source.name)
    (out / 'model.onnx').write_bytes(model)
    if runtime and runtime.resolve() != (out / 'runtime').resolve():
        (out / 'runtime').mkdir(exist_ok=True)
        for name in RUNTIME_FILES:
            shutil.copyfile(runtime / name, out / 'runtime' / name)
    content = settings(trained, './runtime/' if runtime else RUNTIME)
    (out / 'network.json').write_text(json.dumps(content, indent=2) + '\n')


def settings(trained: Trained, runtime: str) -> dict:
    """Returns the properties of the network for the page; `runtime` is a URL with a final slash."""
    height, width, channels = trained.image_shape
    names = list(trained.class_names)
    kind = 'color' if channels == 3 else 'gray'
    parameters = count_parameters(trained.params)
    return {
        'title': f'Network In Network, {trained.config.data.name}',
        'about': f'{parameters:,} parameters, {len(names)} classes, trained on {kind} images of '
        f'{width}×{height} pixels.',
        'class_names': names,
        'image_shape': list(trained.image_shape),
        'stride': trained.stride,
        'head': trained.config.model.head,
        'digits': channels == 1 and all(name.isdigit() for name in names),
        'layers': onnx_graph.layer_outputs(trained),
        'runtime': runtime,
    }
