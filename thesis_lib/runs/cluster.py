"""The chunks of a run on a Dask cluster: the same function as locally, on many machines.

Each worker writes its own shards, so that a worker that dies costs the chunk that it was at, which
Dask gives to another. Network and dataset go to every worker once.
"""

import contextlib
import copy
import dataclasses
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import torch

from thesis_lib.runs.job import Job, compute, foretell, say

try:
    import cloudpickle
    from distributed import Client, LocalCluster, as_completed
except ImportError as error:
    raise ImportError('engine="dask" needs the extra: pip install -e ".[cluster]"') from error

# One chunk a process bounds its memory; passes would wait for each other anyway.
_one_at_a_time = threading.Lock()
_loaded = (None, None)  # in a worker: the label of the last call, and its job


def compute_all(
    job: Job, starts: list[int], scheduler: Any, device: torch.device, progress: bool
) -> Iterator[int]:
    """Yield the number of pictures of each chunk, as the workers finish them.

    With progress, a worker measures some pictures first, to say what the run will cost.
    """
    classifier = copy.copy(job.classifier)
    classifier.network = copy.deepcopy(classifier.network).cpu()  # here may be no GPU, or another
    remote = dataclasses.replace(job, classifier=classifier)
    with contextlib.ExitStack() as stack:
        client = _client(scheduler, stack)
        client.wait_for_workers(1)  # in a queue of SLURM they may take their time
        # As bytes, which workers may pass on as often as they like without making a network of them.
        (sent,) = client.scatter([cloudpickle.dumps(remote)], broadcast=True, hash=False)
        label = uuid.uuid4().hex  # else Dask takes the results of an earlier call
        loaded = sent, label, device.type
        if progress:
            workers = len(client.nthreads())
            words = client.submit(_do, foretell, *loaded, starts, workers, key=f"foretell-{label}")
            say(words.result())
        futures = [
            client.submit(_do, compute, *loaded, start, key=f"chunk-{start:06d}-{label}") for start in starts
        ]
        stack.callback(client.cancel, futures)
        for future, pictures in as_completed(futures, with_results=True):
            future.release()
            yield pictures


def reach(scheduler: Any) -> None:
    """Raises OSError where nobody answers at a scheduler's address, TypeError for what is no scheduler."""
    if scheduler:
        with contextlib.ExitStack() as stack:
            _client(scheduler, stack)


def _client(scheduler, stack):
    if isinstance(scheduler, Client):
        return scheduler
    if not scheduler:
        scheduler = stack.enter_context(LocalCluster(threads_per_worker=1))
    return stack.enter_context(Client(scheduler))


def _do(what, sent, label, device, *arguments):
    """What a worker does: `what(job, *arguments)`."""
    global _loaded
    with _one_at_a_time:
        if _loaded[0] != label:
            job = cloudpickle.loads(sent)
            if not job.run.is_dir():
                raise FileNotFoundError(f"workers must see the folder of the run, {job.run}")
            if not job.is_of_this_code():
                raise RuntimeError("the workers have another version of thesis_lib than the caller")
            job.classifier.network.to(torch.device(device))
            _loaded = label, job
        return what(_loaded[1], *arguments)
