"""Worker processes that prepare patients: results in order, memory bounded, no orphans."""

import multiprocessing
import os
import threading
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from dataload.cores import usable_cores
from dataload.photographs import PhotographError, prepare_photograph
from dataload.shard_reader import ShardError

# patients in flight for each worker: enough to keep it busy, few enough to bound memory
WINDOW_PER_WORKER = 4
# a process takes about as long to start as this many patients to prepare
PATIENTS_PER_PROCESS = 32


def prepare_patient(record, preparation):
    """Return a PreparedPhotograph, or the reason (str) why there is none, per photograph."""
    results = []
    for examination in record.examinations:
        for _, path in examination.photographs():
            try:
                results.append(prepare_photograph(path, preparation))
            except PhotographError as error:
                results.append(str(error))
    return results


def prepare_all(records, count, preparation, workers=None):
    """Yield (record, results of prepare_patient) of `count` records in order, a window ahead.

    `workers` defaults to the usable cores, fewer for few records. Raises ShardError when a worker
    dies.
    """
    usable = min(usable_cores(), -(-count // PATIENTS_PER_PROCESS))
    workers = max(min(workers or usable, count), 1)
    if workers == 1:
        for record in records:
            yield record, prepare_patient(record, preparation)
        return
    # spawned, not forked: the caller may have threads that hold locks
    executor = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_end_with,
        initargs=(os.getpid(),),
    )
    waiting = deque()
    try:
        for record in records:
            waiting.append((record, executor.submit(prepare_patient, record, preparation)))
            if len(waiting) >= WINDOW_PER_WORKER * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BrokenProcessPool as error:
        raise ShardError(
            f"a worker process died; if memory ran out use fewer than {workers} workers, and "
            "start builds from a module with a __main__ guard"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with(parent):
    """End this process soon after its parent, which may be killed without a word."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
