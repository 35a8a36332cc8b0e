"""Load that runs in the background of a test. A worker that fails, or that ends before the test
does, fails the test."""

import concurrent.futures
import contextlib
import threading


@contextlib.contextmanager
def background_load(work, calls):
    """Runs `work(stop, *arguments)` in a thread of its own for each tuple of `calls`, until the
    block ends and `stop` is set.

    `work` returns only when `stop` is set. Its exceptions are raised here, and an exception of the
    block goes first."""
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        workers = [pool.submit(work, stop, *arguments) for arguments in calls]
        try:
            yield
            ended = [worker for worker in workers if worker.done()]
            for worker in ended:
                worker.result()
            assert not ended, f"{len(ended)} of {len(workers)} load workers ended before the test did"
        finally:
            stop.set()
    for worker in workers:
        worker.result()
