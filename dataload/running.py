"""Plans carried out one after another by an image pipeline, whatever some photographs are like.

A plan is an object with the `job` of its batch. One that meets an undecodable photograph is made
again without it.
"""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import torch

from dataload.image_job import DecodeFailures
from dataload.pillow_pipeline import PillowPipeline


class Ahead:
    """Plans made one step before they are asked for, in a thread: reading photographs takes time.

    `make(step)` gives the plan of steps below `last`; an exception of its comes where the step is
    asked for. Use as a context.
    """

    def __init__(self, make, last):
        self._make = make
        self._last = last
        self._pool = ThreadPoolExecutor(1, "planner")
        self._coming = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, step):
        for number in range(step, min(step + 2, self._last)):
            if number not in self._coming:
                self._coming[number] = self._pool.submit(self._make, number)
        return self._coming.pop(step).result()


def run_plans(pipeline, make_plan, first, last, condemn):
    """Yield (plan, images) of steps first..last-1: `make_plan(step)` carried out by `pipeline`.

    `condemn(plan, positions)` is told the places of undecodable photographs in a plan, which is
    then made anew. Images are (M, 3, S, S) float32, where the pipeline left them.
    """
    plans, step = {}, first

    def make_job(at):
        plans[at] = ahead(at)
        return plans[at].job

    with Ahead(make_plan, last) as ahead:
        while step < last:
            try:
                with closing(pipeline.run(make_job, step, last)) as batches:
                    for images in batches:
                        plan = plans.pop(step)
                        step += 1
                        yield plan, images
            except DecodeFailures as failures:
                condemn(plans[failures.step], failures.positions)


def choose_backend(backend):
    """Return "dali" or "pillow" for one of BACKENDS."""
    if backend != "auto":
        return backend
    # the parent first: asking for a submodule of what is not there raises
    has_dali = all(map(importlib.util.find_spec, ("nvidia", "nvidia.dali")))
    return "dali" if has_dali else "pillow"


def build_pipeline(settings, backend, largest, photographs):
    """Return the image pipeline of PhotographSettings for batches of so many `photographs`.

    `backend` "dali" or "pillow"; `largest`: DatasetInfo's.
    """
    options = {"threads": settings.threads, "prefetch": settings.prefetch}
    if backend == "pillow":
        return PillowPipeline(settings.images, **options)
    from dataload.dali_pipeline import DaliPipeline

    return DaliPipeline(
        settings.images,
        batch=photographs,
        device=torch.device(settings.device),
        largest=(largest["height"], largest["width"]),
        hw_decoder_load=settings.hw_decoder_load,
        **options,
    )
