"""Formats the results as Markdown."""

from benchmarks.throughput import MODES


def report(results: dict) -> str:
    """Returns all results, with the conditions of the measurement."""
    peak_flops = ', '.join(
        f'{dtype} {rate / 1e9:,.0f}' for dtype, rate in results['peak_flops'].items()
    )
    hardware = results['gpu'] or f'{results["cpu_count"]} cores of {results["cpu"]}'
    versions = ', '.join(f'{name} {version}' for name, version in results['versions'].items())
    load = results['load_average_before'][0]
    parts = [
        '# Benchmark results',
        f'Made by `{results["command"]}` at commit {results["commit"]}, {results["time"]}; do not '
        f'edit.\n{hardware}; {versions}; load average before: {load:.2f}.\nPeak of a product of '
        f'large matrices: {peak_flops} GFLOP/s. Compare ratios within a table only; its rows were '
        "measured in alternation. GFLOP/s count direct convolutions; with Winograd's algorithm, "
        'fewer products are made.',
    ]
    groups: dict[tuple, list] = {}
    for row in results['throughput']:
        groups.setdefault((row['network'], row['batch_size']), []).append(row)
    parts += [throughput(rows, results['peak_flops']) for rows in groups.values()]
    if 'recipe' in results:
        parts.append(recipe(results['recipe']))
    if 'startup' in results:
        parts.append(startup(results['startup']))
    if 'scaling' in results:
        parts.append(scaling(results['scaling']))
    return '\n\n'.join(parts) + '\n'


def throughput(rows: list[dict], peak_flops: dict[str, float]) -> str:
    """Returns the table of one network at one batch size."""
    head = [
        *('', 'variant', 'precision', 'images/s'),
        *('/ best PyTorch of it', '/ best PyTorch of any', 'GFLOP/s', 'of peak'),
        *('products made, of peak', 'first call, s', 'peak memory, MiB'),
    ]
    cells = []
    for row in sorted(rows, key=lambda row: list(MODES).index(row['mode'])):
        name = [row['mode'], row['variant'], row['dtype']]
        if 'failed' in row:
            cells.append([*name, *[''] * (len(head) - 4), row['failed'][:80]])
            continue
        peak = peak_flops.get(row['dtype']) or max(peak_flops.values())  # 'mixed' has both
        made, memory = row.get('made_flop_per_s'), row['peak_memory_bytes']
        cells.append(
            [
                *name,
                f'{row["images_per_s"]:,.1f}',
                *(
                    f'{row[key]:.2f}' if key in row else ''
                    for key in ('ratio_to_best_torch', 'ratio_to_any_torch')
                ),
                f'{row["flop_per_s"] / 1e9:,.1f}',
                f'{row["flop_per_s"] / peak:.0%}',
                '' if made is None else f'{made / peak:.0%}',
                f'{row["compile_and_first_s"]:.1f}',
                '' if memory is None else f'{memory / 2**20:,.0f}',
            ]
        )
    title = f'## {rows[0]["network"]}, batch {rows[0]["batch_size"]}'
    return f'{title}\n\n{table(head, cells)}'


def recipe(rows: list[dict]) -> str:
    """Returns the table of one recipe: the minutes of a run and the speed of its stages."""
    done = [row for row in rows if 'failed' not in row]
    modes = list(done[0]['stages']) if done else []
    head = ['variant', 'precision', 'minutes', '/ best PyTorch', *(f'{m}, images/s' for m in modes)]
    cells = []
    for row in rows:
        name = [row['variant'], row['dtype']]
        if 'failed' in row:
            cells.append([*name, row['failed'][:80], *[''] * (len(head) - 3)])
            continue
        ratio = f'{row["ratio_to_any_torch"]:.2f}' if 'ratio_to_any_torch' in row else ''
        rates = [f'{row["stages"][mode]["images_per_s"]:,.1f}' for mode in modes]
        cells.append([*name, f'{row["minutes"]:.1f}', ratio, *rates])
    steps = ', '.join(f'{done[0]["stages"][m]["steps"]:,} of "{m}"' for m in modes)
    return (
        f'## {rows[0]["network"]}, the whole run\n\n{rows[0]["images"]:,} images in batches of '
        f'{rows[0]["batch_size"]}; steps: {steps or "none measured"}. "/ best PyTorch" is the '
        f'speed relative to its fastest variant.\n\n{table(head, cells)}'
    )


def startup(rows: list[dict]) -> str:
    cells = []
    for row in rows:
        if 'failed' in row:
            cells.append([row['what'], row['failed'][:100], ''])
            continue
        rate = f'{row["images_per_s"]:,.0f}' if 'images_per_s' in row else ''
        cells.append([row['what'], f'{row["median_s"]:.2f}', rate])
    return f'## Start-up and data\n\n{table(["", "seconds", "images/s"], cells)}'


def scaling(results: dict[str, list[dict]]) -> str:
    cells = []
    for key in ('by_batch', 'by_images', 'by_devices'):
        for row in results[key]:
            if 'failed' in row:
                cells.append([key[3:], str(row['arguments']), row['failed'][:80], '', '', ''])
                continue
            cells.append(
                [
                    key[3:],
                    f'{row["batch_size"]}',
                    f'{row["images"]:,}',
                    f'{row["devices"]}',
                    f'{1e3 * row["step_s"]:,.1f}',
                    f'{row["images_per_s"]:,.1f}',
                ]
            )
    head = ['by', 'batch', 'training images', 'devices', 'ms per step', 'images/s']
    loops = [
        [
            f'{row["network"]}, batch {row["batch_size"]}',
            f'{row["steps"]:,}, {row["steps_per_call"]} per call',
            f'{row["bare_s"]:.2f}',
            f'{row["extra_ms_per_call"]:.2f}',
            f'{row["extra_share"]:.2%}',
        ]
        if 'failed' not in row
        else [str(row['arguments']), row['failed'][:80], '', '', '']
        for row in results['loop']
    ]
    loop_head = ['network', 'steps', 'bare program, s', 'overhead, ms per call', 'share']
    return (
        f'## Scaling of a step\n\n{table(head, cells)}\n\n## Overhead of the loop\n\n'
        'Metrics, records and one checkpoint, compared with the bare compiled program.\n\n'
        f'{table(loop_head, loops)}'
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)
