"""What a training run refuses, on top of `adapters.errors`.

    AdaMixError
    ├── DataError             a data file is not what training needs
    └── TrainingError
        ├── CheckpointError   a checkpoint cannot be read, written or gone on from
        └── NonFiniteLoss     the loss became NaN or infinite

The command line turns each into one sentence and exit code 2.
"""

from adapters.errors import AdaMixError, DataError

__all__ = ["CheckpointError", "DataError", "NonFiniteLoss", "TrainingError"]


class TrainingError(AdaMixError):
    """A run that cannot start or go on."""


class CheckpointError(TrainingError):
    """A checkpoint that cannot be read, written or gone on from."""


class NonFiniteLoss(TrainingError):
    """The loss became NaN or infinite."""
