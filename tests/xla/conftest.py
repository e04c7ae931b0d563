"""Makes the CPU an XLA device. These tests run only in an environment with torch_xla: `bash tests/xla/run`."""

import os
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch_xla") else ["test_*.py"]

if find_spec("torch_xla"):
    os.environ["PJRT_DEVICE"] = "CPU"
    import torch_xla
    import torch_xla._internal.tpu

    torch_xla._internal.tpu.num_available_devices = lambda: 1  # Lightning counts TPUs before it uses one
    torch_xla.device()  # gradients on the CPU, before XLA is initialized, would fix the devices of autograd
