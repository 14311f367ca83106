from typing import Any

from absl.flags import FlagHolder, FlagValues

def DEFINE_config_file(
    name: str,
    default: str | None = None,
    help_string: str = ...,
    flag_values: FlagValues = ...,
    lock_config: bool = True,
    *,
    sys_argv: list[str] | None = None,
) -> FlagHolder[Any]: ...
