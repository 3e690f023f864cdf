"""Errors that a user can mend, told in one line. A broken promise of our own code is an `assert` instead."""


class InputError(ValueError):
    """What the user gave cannot be used; the message says what, where and what was expected."""


class ConfigError(InputError):
    """A params.yaml value is unknown, of the wrong type, or impossible."""


class DataError(InputError):
    """A data set, shard or source is missing, damaged, or not what the stage needs."""


class StorageError(DataError):
    """A store or the way to it failed; the same may succeed on another try, where other InputErrors come again."""


class TrainingError(RuntimeError):
    """A training run went wrong and would again if it were simply tried again; the message says how and what to do."""


class SamplerError(InputError):
    """A sampler folder is incomplete, or cannot do what a request asks of it."""
