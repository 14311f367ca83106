"""`python -m launch.tpu` of 0.2.0 is gone; this names what took its place."""

import sys

print(
    'error: python -m launch.tpu is gone: run `sky jobs launch launch/sky/tpu.yaml`, or '
    'launch/tpu/tpu.sh for a plain TPU VM; see launch/README.md',
    file=sys.stderr,
)
sys.exit(2)
