"""Measures the machine's peak FLOP/s with a product of two large matrices."""

import multiprocessing
import statistics
import time

from nin_jax.errors import RetryError

SLOWEST_S = 5.0  # of a call


def measure(
    size: int | None = None, repeats: int = 9, limit: float | None = None
) -> dict[str, float]:
    """Returns {dtype: FLOP/s}, the median of the faster library; each in a separate process.

    Raises:
      RetryError: a library needs more than `limit` seconds, or its process died.
    """
    context = multiprocessing.get_context('spawn')
    best: dict[str, float] = {}
    for library in (of_jax, of_torch):
        with context.Pool(1) as pool:
            try:
                rates = pool.apply_async(library, (size, repeats)).get(limit)
            except multiprocessing.TimeoutError:
                raise RetryError(
                    f'no peak of matrix products in {limit:.0f} s: free memory, or raise --limit'
                ) from None
        for dtype, rate in rates.items():
            best[dtype] = max(best.get(dtype, 0.0), rate)
    return best


def of_jax(size: int | None, repeats: int) -> dict[str, float]:
    import jax

    size = size or (2048 if jax.default_backend() == 'cpu' else 8192)
    multiply = jax.jit(lambda a: a @ a)
    rates = {}
    for dtype in ('float32', 'bfloat16'):
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        rates[dtype] = rate(lambda a=a: multiply(a).block_until_ready(), size, repeats)
    return rates


def of_torch(size: int | None, repeats: int) -> dict[str, float]:
    try:
        import torch
    except ImportError:
        return {}
    on_gpu = torch.cuda.is_available()
    size = size or (8192 if on_gpu else 2048)

    def multiply(a):
        a @ a
        if on_gpu:
            torch.cuda.synchronize()

    def square(size: int, dtype: str):
        return torch.randn(size, size, device='cuda' if on_gpu else 'cpu').to(getattr(torch, dtype))

    rates = {}
    for dtype in ('float32', 'bfloat16'):
        small = square(256, dtype)
        if 2 * size**3 / rate(lambda a=small: multiply(a), 256, 1) > SLOWEST_S:
            continue  # a dtype that the processor has no instructions for
        a = square(size, dtype)
        rates[dtype] = rate(lambda a=a: multiply(a), size, repeats)
    return rates


def rate(product, size: int, repeats: int) -> float:
    """Returns the FLOP/s of the median call, after one warm-up call."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[1:])
