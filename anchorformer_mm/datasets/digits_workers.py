"""Map a function over items on several processes, interruptible at any time.

The pools of the standard library feed their processes from threads: an
interrupt that strikes while a lock is held leaves them waiting for ever. Here
each process has a pipe of its own and a fixed share of the items, so there is
nothing to lock, and ending the processes ends the work.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import cv2


@contextmanager
def processes(number: int) -> Iterator[Callable]:
    """Yield a ``map(function, items)`` that runs on ``number`` processes.

    Results come in the order of the items, which are a sequence. With one
    process the work is done in this one. An exception that the function
    raises is raised here, and leaving the context ends the processes at once.

    Raises:
        RuntimeError: A process ended before its work was done.
    """
    if number == 1:
        yield map
        return
    context = multiprocessing.get_context('spawn')
    pipes, started = [], []

    def run(function: Callable, items: Sequence) -> Iterator:
        for rank, pipe in enumerate(pipes):
            _send(pipe, (function, items[rank::number]))
        for index in range(len(items)):
            yield _receive(pipes[index % number])

    try:
        for _ in range(number):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs,), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            started.append(process)
        yield run
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def _work(pipe: Connection) -> None:
    """Serve requests until the other end is gone."""
    # Ctrl-C reaches every process of a terminal; the first one answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    while True:
        try:
            function, items = pipe.recv()
            for item in items:
                pipe.send((function(item), None))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            pipe.send((None, error))


def _send(pipe: Connection, message: Any) -> None:
    try:
        pipe.send(message)
    except OSError as error:
        raise _ended_early() from error


def _receive(pipe: Connection) -> Any:
    try:
        result, error = pipe.recv()
    except (EOFError, OSError) as lost:
        raise _ended_early() from lost
    if error is not None:
        raise error
    return result


def _ended_early() -> RuntimeError:
    return RuntimeError(
        'a worker process ended before its work was done: see its own '
        'message above, or use a single worker'
    )
