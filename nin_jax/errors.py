"""The errors a user can mend: each is one sentence, naming the value at fault and the mend."""


class UserError(Exception):
    """Bad input, missing data or an unusable machine; entry points print it without a traceback."""


class ConfigError(UserError):
    """A config key or value that cannot be used."""


class DataError(UserError):
    """A dataset that is missing, damaged or not what it says it is."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or belongs to another run."""
