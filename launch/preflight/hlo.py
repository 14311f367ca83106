"""Reads the cost of a training step from a compiled program's HLO text: bytes, FLOPs, cycles."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's64': 8, 'u64': 8, 'f64': 8}
INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][a-z\-]*)\((.*?)\)')
SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
# Instructions without traffic: aliases, and the second halves of asynchronous pairs.
FREE = (
    *('parameter', 'get-tuple-element', 'tuple', 'constant', 'bitcast', 'while', 'copy-done'),
    *(f'{kind}-done' for kind in COLLECTIVES),
)


class Instruction(NamedTuple):
    """One line of HLO text.

    Attributes:
      shape: the result's shape, such as 'f32[3,3]{1,0}', or a tuple of shapes.
      operation: such as 'fusion'.
      operands: names of the operands.
      called: name of the fused computation; '' if there is none.
      attributes: the rest of the line.
    """

    shape: str
    operation: str
    operands: list[str]
    called: str
    attributes: str


Computation = dict[str, Instruction]


def parse_hlo(hlo: str) -> tuple[dict[str, Computation], dict[str, list[str]]]:
    """Parses HLO text into its computations and, by computation, the bodies of its loops."""
    computations: dict[str, Computation] = {}
    bodies: dict[str, list[str]] = {'ENTRY': []}
    here = ''
    for line in hlo.splitlines():
        if line.endswith('{') and not line.startswith(' '):
            here = line.split()[0].lstrip('%')
            computations[here], bodies[here] = {}, []
        elif here and (match := INSTRUCTION.match(line)):
            name, shape, operation, operands = match.groups()
            called = re.search(r' calls=%?([\w.\-]+)', line)
            words = re.findall(r'[\w.\-]+', re.sub(r'/\*.*?\*/', '', operands))  # '/*index=5*/'
            computations[here][name] = Instruction(
                shape, operation, words, called[1] if called else '', line[match.end() :]
            )
            if operation == 'while':
                bodies[here] += re.findall(r'body=%?([\w.\-]+)', line)[:1]
    return computations, bodies


def step_instructions(
    hlo: str, num_steps: int, pieces: int
) -> Iterator[tuple[int, str, Computation, dict[str, Computation]]]:
    """Yields (times per step, instruction's name, its computation, all computations).

    In a program of several steps, the body of the loop is a step; the entry computation runs once
    per call and is not counted. A program of one step is only the entry computation. The body of a
    loop within a step runs `pieces` times.
    """
    computations, bodies = parse_hlo(hlo)
    steps = bodies['ENTRY'] if num_steps > 1 else ['ENTRY']
    often = [(s, 1) for s in steps] + [(inner, pieces) for s in steps for inner in bodies[s]]
    for computation, times in ((computations[c], times) for c, times in often):
        for name in computation:
            yield times, name, computation, computations


def step_costs(hlo: str, num_steps: int, pieces: int = 1) -> tuple[int, dict[str, tuple[int, int]]]:
    """Computes (memory traffic, collectives) of a step in bytes, see `step_instructions`.

    Traffic is the sum of what each instruction reads and writes, without buffers that the compiler
    keeps on the chip (a layout with S(1)). A lookup of rows in a table counts the bytes of the
    rows.
    """
    traffic, collectives = 0, {}
    for times, name, computation, computations in step_instructions(hlo, num_steps, pieces):
        shape, operation, operands, called, _ = computation[name]
        if operation in FREE:
            continue
        if shape.startswith('(('):  # a start that lists its operands first
            shape = result_shape(shape, operation)
        kind = operation.removesuffix('-start')
        written = in_memory(shape)
        if kind in COLLECTIVES:
            n, total = collectives.get(kind, (0, 0))
            moved = shape_bytes(result_shape(computation[name].shape, operation))
            collectives[kind] = (n + times, total + times * moved)
        if operation == 'copy-start':  # its result names the source as well
            traffic += times * written
            continue
        for i, operand in enumerate(operands):
            read = in_memory(computation[operand].shape) if operand in computation else 0
            if re.search('gather|slice', name) or is_looked_up(computations.get(called), i):
                read = min(read, shape_bytes(shape))
            traffic += times * read
        traffic += times * written
    return traffic, collectives


def is_looked_up(fused: Computation | None, i: int) -> bool:
    """Whether a fused computation reads only slices or rows of its parameter `i`."""
    if fused is None:
        return False
    names = {n for n, x in fused.items() if (x.operation, x.operands) == ('parameter', [str(i)])}
    users = {x.operation for x in fused.values() if names & set(x.operands)}
    return bool(users) and users <= {'dynamic-slice', 'gather'}


def step_products(hlo: str, num_steps: int, pieces: int = 1) -> int:
    """Returns the FLOPs per step of convolutions and matrix products, calls of cuDNN included."""
    total = 0
    for times, name, computation, computations in step_instructions(hlo, num_steps, pieces):
        total += times * product_flops(name, computation)
        fused = computations.get(computation[name].called, {})
        total += times * sum(product_flops(inner, fused) for inner in fused)
    return total


def product_flops(name: str, computation: Computation) -> int:
    """Returns twice the multiply-accumulates of a convolution or a matrix product, else 0."""
    shape, operation, operands, _, attributes = computation[name]
    shapes = [dims(shape), *(dims(computation[o].shape) for o in operands if o in computation)]
    if labels := re.search(r'dim_labels=\w+->(\w+)', attributes):
        # cuDNN's gradients keep the labels of the forward convolution.
        out, kernel = shapes[0], shapes[2]
        if 'convBackwardFilter' in attributes:
            out, kernel = shapes[2], shapes[0]
        elif 'convBackwardInput' in attributes:
            out = shapes[1]
        pixels = math.prod(out) // out[labels[1].index('f')]
        return 2 * pixels * math.prod(kernel)
    if operation == 'dot' or '__cublas' in attributes:
        axes = re.search(r'lhs_contracting_dim\w*"?[=:][{\[]([\d,"]+)', attributes)
        contracted = [int(n) for n in re.findall(r'\d+', axes[1])] if axes else []
        return 2 * math.prod(shapes[0]) * math.prod(shapes[1][axis] for axis in contracted)
    return 0


def step_cycles(hlo: str, num_steps: int) -> float:
    """Returns libtpu's estimate of the cycles per step, with a share of the work per call."""
    lines: dict[str, int] = {}
    here = ''
    for line in hlo.splitlines():
        if line.endswith('{') and not line.startswith(' '):
            here = line.split()[0].lstrip('%')
        if match := re.search(r'"estimated_cycles":"(\d+)"', line):
            lines[here] = lines.get(here, 0) + int(match[1])
    body = sum(lines.get(b, 0) for b in parse_hlo(hlo)[1]['ENTRY']) if num_steps > 1 else 0
    return body + lines.get('ENTRY', 0) / num_steps


# ---- shapes ---------------------------------------------------------------------------------


def result_shape(shape: str, operation: str) -> str:
    """Returns an instruction's output shape; some kinds of start list their operands first."""
    if operation in ('all-gather-start', 'collective-permute-start') or shape.startswith('(('):
        parts = re.findall(r'[a-z]+\d*\[[\d,]*\](?:\{[^}]*\})?', shape)
        return ' '.join(parts[len(parts) // 2 :])
    return shape


def in_memory(shape: str) -> int:
    """Returns the bytes of the parts of a shape that are in HBM (layouts without S(n))."""
    return shape_bytes(re.sub(r'[a-z]+\d*\[[\d,]*\]\{[^}]*S\(\d+\)\}', '', shape))


def shape_bytes(shape: str) -> int:
    """Returns the unpadded bytes of a shape such as 'f32[3,3]{1,0}', or of a tuple of shapes."""
    return sum(BYTES.get(dtype, 4) * math.prod(sizes(axes)) for dtype, axes in SHAPE.findall(shape))


def dims(shape: str) -> list[int]:
    """Returns the sizes of the axes of a shape, or of the first of a tuple of shapes."""
    match = SHAPE.search(shape)
    return sizes(match[2]) if match else []


def sizes(axes: str) -> list[int]:
    return [int(n) for n in axes.split(',') if n]
