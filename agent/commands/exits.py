"""Exit codes: what every command ends in, and scripts may rely on."""

from agent.errors import (
    BucketMissing,
    Canceled,
    NoRepository,
    PodliftError,
    RepositoryLocked,
    UsageError,
    WrongPassword,
)

DONE = 0
FAILED = 1
USAGE = 2
PARTIAL = 3
INTERRUPTED = 130

_CODES: dict[type[PodliftError], int] = {
    UsageError: USAGE,
    NoRepository: 10,
    BucketMissing: 10,
    RepositoryLocked: 11,
    WrongPassword: 12,
    Canceled: INTERRUPTED,
}


def exit_code(error: PodliftError) -> int:
    """Return the exit code of a command that ended with this error."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILED)
