"""Predicts with several processes. The predictions keep the order of the data."""

import itertools
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import torch

from engine.contracts import InputPart
from engine.inference.predictor import Predictions, Predictor
from engine.inference.trained_run import find_trained_run
from engine.memory import keep_freed_memory
from engine.threads import available_cores, interrupts_blocked

PARTS_PER_PROCESS = 2  # in memory: enough that no process waits for data

_predictor: Predictor  # of this process


def predict_in_order(
    predictor: Predictor, parts: Iterator[InputPart], num_processes: int
) -> Iterator[tuple[InputPart, Predictions]]:
    """Predict parts with several processes, which share the GPUs or the cores of this machine.

    Args:
        predictor: The model. Each process loads its own copy from the checkpoint.
        parts: The parts.
        num_processes: Number of processes. If it is 1, no other process is started.
    """
    if num_processes == 1:
        yield from ((part, predictor.predict_part(part)) for part in parts)
        return
    device, context = predictor.device, multiprocessing.get_context("spawn")
    count = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
    devices = [f"cuda:{i % count}" if count > 1 else str(device) for i in range(num_processes)]
    names, threads = context.SimpleQueue(), max(1, available_cores(num_processes))
    for name in devices:
        names.put(name)
    arguments = (str(predictor.run.checkpoint), names, threads)
    pool = ProcessPoolExecutor(num_processes, context, _load, arguments)
    waiting: deque[tuple[InputPart, Future[Predictions]]] = deque()
    try:
        for part in itertools.chain(parts, [None] * (PARTS_PER_PROCESS * num_processes)):
            if part is not None:
                with interrupts_blocked():  # the first job starts the processes; this process ends them after Ctrl-C
                    waiting.append((part, pool.submit(_predict, part)))
            if waiting and (part is None or len(waiting) > PARTS_PER_PROCESS * num_processes):
                first, future = waiting.popleft()
                yield first, future.result()
    except BaseException:  # for example Ctrl-C; to wait for a part could take a minute
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _load(checkpoint: str, names: "multiprocessing.SimpleQueue[str]", num_threads: int) -> None:
    """Load the model in a new process."""
    global _predictor
    keep_freed_memory()
    torch.set_num_threads(num_threads)
    _predictor = Predictor(find_trained_run(checkpoint, Path()), names.get())


def _predict(part: InputPart) -> Predictions:
    return _predictor.predict_part(part)
