"""The error that a user can mend."""

import sys
from collections.abc import Callable


class UsageError(RuntimeError):
    """Something the user can mend; command lines show it without a trace."""


def run_command_line(main: Callable[[], None]) -> None:
    """Run ``main``; a :class:`UsageError` is one message and exit status 2."""
    try:
        main()
    except UsageError as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2) from None
