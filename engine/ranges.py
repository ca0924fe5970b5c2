"""Ranges that exist only while a profiler looks: towers, the loss's two passes, reduction, update.

They are made by hooks that come with the profiler's window and go with it, so that training pays
nothing outside. Hooks sit around the towers, not in their blocks, which may be compiled. The loss's
backward pass begins when autograd has the gradient of its value, and ends when it goes on to a
tower: on the thread that it keeps for the device, both of them.
"""

import functools

import torch

# methods of DeepSpeed 0.19.8: its engine's, of which GradCache takes one of the last two, sending
# what remains when the backward pass has ended; and a ZeRO optimiser's, sending one bucket
_REDUCTIONS = (
    "allreduce_gradients",
    "_flush_coalesced_reduction_zero12",
    "_flush_coalesced_reduction_zero3",
)
_BUCKET = "reduce_ipg_grads"


def begin(name):
    """Begin a range in those that this thread is in, and return what `end` takes."""
    record = None
    # a record costs microseconds even where nobody records
    if torch.autograd.profiler._is_profiler_enabled:
        record = torch.profiler.record_function(name)
        record.__enter__()
    if torch.cuda.is_available():
        torch.cuda.nvtx.range_push(name)
    return record


def end(record):
    """End a range that `begin` returned, on the same thread, the innermost first."""
    if torch.cuda.is_available():
        torch.cuda.nvtx.range_pop()
    if record is not None:
        record.__exit__(None, None, None)


class Ranges:
    """The ranges of one DeepSpeed engine, between open() and close(); None has none."""

    def __init__(self, engine=None):
        self.engine = engine
        self.is_open = False
        self._undo = []

    def open(self):
        """Mark the engine's towers, reductions and optimiser from now on."""
        self.is_open = True
        if self.engine is None:
            return
        model, optimizer = self.engine.module, self.engine.optimizer
        self._around_forward(model.visual, "image tower")
        self._around_forward(model.text, "text tower")
        for method in _REDUCTIONS:
            self._around_method(self.engine, method, "gradient reduction")
        self._around_method(optimizer, _BUCKET, "gradient bucket")
        # ZeRO's optimiser holds the one that updates the weights
        self._around_update(getattr(optimizer, "optimizer", optimizer))

    def close(self):
        """Leave everything as it was."""
        self.is_open = False
        while self._undo:
            self._undo.pop()()

    def objective(self, objective):
        """Return `objective` with both passes of the loss marked while this is open."""
        return _MarkedObjective(objective, self)

    def _around_forward(self, module, name):
        running = []
        before = module.register_forward_pre_hook(lambda *_: running.append(begin(name)))
        # also where the forward pass raises: a range that never ends would hold all that follows
        after = module.register_forward_hook(lambda *_: end(running.pop()), always_call=True)
        self._undo += [before.remove, after.remove]

    def _around_method(self, owner, method, name):
        original = getattr(owner, method, None)
        if original is None:
            return

        @functools.wraps(original)
        def marked(*arguments, **options):
            running = begin(name)
            try:
                return original(*arguments, **options)
            finally:
                end(running)

        setattr(owner, method, marked)
        # the class's own is found again
        self._undo.append(lambda: delattr(owner, method))

    def _around_update(self, optimizer):
        if not isinstance(optimizer, torch.optim.Optimizer):
            return
        running = []
        before = optimizer.register_step_pre_hook(lambda *_: running.append(begin("optimiser")))
        after = optimizer.register_step_post_hook(lambda *_: end(running.pop()))
        self._undo += [before.remove, after.remove]


class _MarkedObjective:
    """An objective that marks the loss's two passes; all else is the objective's own."""

    def __init__(self, objective, ranges):
        self._objective, self._ranges = objective, ranges

    def __getattr__(self, name):
        return getattr(self._objective, name)

    def __call__(self, image, text, scale, batch):
        if not self._ranges.is_open:
            return self._objective(image, text, scale, batch)
        running = begin("loss forward")
        try:
            loss = self._objective(image, text, scale, batch)
        finally:
            end(running)
        mark_backward("loss backward", loss.total, (image, text))
        return loss


def mark_backward(name, output, inputs):
    """Mark the part of the backward pass between `output` and `inputs`, tensors of one graph."""
    awaited = [tensor for tensor in inputs if tensor.requires_grad]
    if not (output.requires_grad and awaited):
        return
    # autograd runs a tower's first node as the last of the loss's are done, and the other tower's
    # only after that tower; leaves are told of their gradients at once, one after the other
    running, left = [], sum(tensor.is_leaf for tensor in awaited) or 1

    def started(gradient):
        running.append(begin(name))

    def arrived(gradient):
        nonlocal left
        left -= 1
        if left == 0 and running:
            end(running.pop())

    output.register_hook(started)
    for tensor in awaited:
        tensor.register_hook(arrived)
