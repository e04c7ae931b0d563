"""Freed memory that a process keeps."""

import os
import platform
import subprocess
import sys

import pytest

from engine.config.signatures import PROJECT
from engine.memory import MALLOC_VARIABLES

# the pages that the kernel adds to a process that allocates 16 MiB a hundred times, after a first time
PAGES = """
import resource
from engine.memory import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        b"x" * 2**24
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
new_pages()
print(new_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these options")
@pytest.mark.parametrize(
    ("given", "is_kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "65536"}, False)], ids=["default", "user"]
)
def test_freed_memory_is_used_again(given, is_kept):
    environment = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES} | given
    command = [sys.executable, "-c", PAGES]
    done = subprocess.run(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert (int(done.stdout) < 200) == is_kept  # without huge pages, a block has 4,096 pages
