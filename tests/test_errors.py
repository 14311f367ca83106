"""Errors of other libraries that a user can act on become one sentence."""

import pytest

from experiments import cli
from nin_jax import distributed
from nin_jax.errors import from_runtime_error

FULL = 'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 98765432 bytes.\nmore'
CUDNN = 'INTERNAL: Failed to determine best cudnn convolution algorithm for:\n%cudnn-conv = ...'


@pytest.mark.parametrize(
    ('text', 'key'),
    [(FULL, 'train.microbatch'), (CUDNN, 'XLA_PYTHON_CLIENT_MEM_FRACTION')],
)
def test_a_full_device_memory_is_one_sentence(text, key, capsys, monkeypatch):
    error = from_runtime_error(RuntimeError(text))
    assert error is not None and error.exit_status == 2
    assert key in str(error) and '\n' not in str(error)

    assert distributed.explain(RuntimeError(text)) == 2
    assert key in capsys.readouterr().err

    def main(argv: list[str]) -> int:
        raise RuntimeError(text)

    monkeypatch.setattr('sys.argv', ['main'])
    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert key in err and err.count('\n') == 1


def test_other_runtime_errors_stay():
    assert from_runtime_error(RuntimeError('INTERNAL: something else')) is None
