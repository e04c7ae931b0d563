"""Run a command of the project on an XLA device of the CPU: python tests/xla/launch.py train.py --config FILE ...

Lightning counts TPUs before it uses one. This script answers that there is one, and PJRT_DEVICE=CPU makes it the CPU.
"""

import os
import runpy
import sys

os.environ["PJRT_DEVICE"] = "CPU"

import torch_xla._internal.tpu as tpu

tpu.num_available_devices = lambda: 1
sys.argv = sys.argv[1:]
sys.path[0] = os.getcwd()
runpy.run_path(sys.argv[0], run_name="__main__")
