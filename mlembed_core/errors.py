"""The one family of errors that the project raises on purpose.

Each message says what is wrong (with the value), what is allowed and what to do next. The command line prints the message
without a traceback and leaves with the class's ``exit_code``, so that a script can tell a wrong parameter from a broken file.
"""


class MlembedError(Exception):
    """Base of every error a user can cause or mend."""

    exit_code = 1


class ConfigError(MlembedError):
    """A key, name or value in ``configs/`` is wrong."""

    exit_code = 3


class DataError(MlembedError):
    """A data file is missing, damaged, empty or holds a row that the recipe forbids."""

    exit_code = 4


class ArtifactError(MlembedError):
    """An out of an earlier stage is missing, truncated or of another version."""

    exit_code = 5


class MachineError(MlembedError):
    """The machine lacks something: a program, disk space, a device, a process that should have started."""

    exit_code = 6


class SubmodelError(MlembedError):
    """A cut (layers, dim, rank) that the model does not have."""

    exit_code = 7


class EvaluationError(MlembedError):
    """A vector or score that would be wrong if it were recorded."""

    exit_code = 8


class RegistryError(MlembedError):
    """MLflow refused, or holds something else than expected."""

    exit_code = 9


class TrainingError(MlembedError):
    """The loss or the gradient left the numbers."""

    exit_code = 10


class TrainingInterruptedError(MlembedError):
    """A training was told to stop (SIGTERM, Ctrl-C) and saved its state; nothing is wrong."""

    exit_code = 143  # what a shell shows for SIGTERM
