"""Errors that a user can correct."""

import errno
import sys
from collections.abc import Callable

# A file or folder cannot be made or opened; the message tells all.
# That one is not there may as well be a mistake of the program.
_OF_A_PATH = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)


class UsageError(RuntimeError):
    """A fault that the user can correct; shown without a traceback."""


def run_command_line(main: Callable[[], None]) -> None:
    """Run ``main``; a :class:`UsageError` is one message and exit status 2.

    So are a file and a folder that cannot be made or opened, and operators of
    mmcv that do not load.
    """
    try:
        main()
    except UsageError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in _OF_A_PATH or error.filename is None:
            raise
        message = f'{error.filename}: {error.strerror}'
    except ImportError as error:
        if 'mmcv/_ext' not in (error.path or ''):
            raise
        from anchorformer_mm.utils.environment import broken_operators

        message = broken_operators(error)
    else:
        return
    print(f'error: {message}', file=sys.stderr)
    raise SystemExit(2)
