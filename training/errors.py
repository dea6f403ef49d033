"""What a training run refuses, on top of `adapters.errors`.

    AdaMixError
    └── TrainingError
        ├── DataError         a data file is not what training needs
        ├── CheckpointError   a checkpoint cannot be read, written or gone on from
        └── NonFiniteLoss     the loss became NaN or infinite

The command line turns each into one sentence and exit code 2.
"""

from adapters.errors import AdaMixError


class TrainingError(AdaMixError):
    """A run that cannot start or go on."""


class DataError(TrainingError):
    """A data file that is not what training needs."""


class CheckpointError(TrainingError):
    """A checkpoint that cannot be read, written or gone on from."""


class NonFiniteLoss(TrainingError):
    """The loss became NaN or infinite."""
