"""SIGINT, SIGTERM and SIGHUP end a training in order."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_received: list[int] = []


class Interrupted(Exception):
    """A training ended because it was asked to.

    Args:
        number: The signal.
        saved: Its checkpoint; None if there is no hook that could save one.
    """

    def __init__(self, number: int, saved: str | None) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.saved = saved

    @property
    def exit_status(self) -> int:
        """What a shell reports of a process that the signal ended."""
        return 128 + self.number


def requested_signal() -> int:
    """Return the signal that was received within the block, or 0."""
    return _received[0] if _received else 0


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Take the first signal as a request; the second ends at once.

    Signals that are ignored, as SIGHUP is under ``nohup``, stay so. Processes
    that are forked meanwhile, such as the loaders' workers, leave SIGINT and
    SIGHUP to this one, and end on SIGTERM unless they call
    :func:`leave_signals_to_the_trainer`.
    """
    own = os.getpid()

    def handle(number: int, frame: object) -> None:
        if os.getpid() != own:
            if number == signal.SIGTERM:
                _end_by(number)
            return
        if _received:
            _end_by(number)
        _received.append(number)
        # The terminal may be what went away.
        with suppress(OSError):
            print(
                f'{signal.Signals(number).name}: saving a checkpoint after '
                'this step; once more to end at once',
                file=sys.stderr,
                flush=True,
            )

    before = {
        number: signal.signal(number, handle)
        for number in _SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def leave_signals_to_the_trainer() -> None:
    """Let a loader's worker end when its trainer says so, and not before.

    Clusters and torchrun send SIGTERM to all processes of a training, which
    needs its workers to end in order. Where the sender of a signal cannot be
    known, as on macOS, workers end on SIGTERM at once.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_wait_for_trainer, daemon=True).start()


def _wait_for_trainer() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    # As torch's own handler.
    os._exit(0)


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
