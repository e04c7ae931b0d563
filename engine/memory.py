"""The free main memory, and the freed memory that a process keeps. This module does not import torch."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

# Options of glibc's malloc, and their numbers in malloc.h. By default, glibc returns the memory of most large tensors to the
# kernel as soon as they are freed. For the next tensor, the kernel then fills new pages with zeros.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 512 * 2**20  # free memory at the end of the heap is returned if there is more than this
LARGE_BYTES = 128 * 2**20  # blocks of at least this size are returned as soon as they are freed
LARGEST_IN_OLD_GLIBC = 32 * 2**20  # before version 2.35
MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors in this process, so that new tensors can use it. Without glibc, do nothing.

    Variables of the environment that set options of malloc take precedence. The effect on training is in docs/speed.md.
    """
    if any(name in os.environ for name in MALLOC_VARIABLES):
        return
    with suppress(AttributeError, OSError, TypeError):  # another operating system or C library
        mallopt = ctypes.CDLL(None).mallopt
        # the second option alone would end the automatic adjustment of the first one, and malloc would be slower
        if mallopt(MMAP_THRESHOLD, LARGE_BYTES) or mallopt(MMAP_THRESHOLD, LARGEST_IN_OLD_GLIBC):
            mallopt(TRIM_THRESHOLD, KEPT_BYTES)


def available_memory(root: Path = Path("/")) -> int:
    """Return the number of bytes that a process can still use: free memory and pages of files that can be dropped.

    The limit of the cgroup, which containers and SLURM set, is taken into account. On systems without ``/proc``, the result
    is half of the memory of the machine.

    Args:
        root: Folder that contains ``proc`` and ``sys``.
    """
    limits = []
    with suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        limits.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)  # version 2 has no controllers
            group = Path(path.lstrip("/"))
            for folder in (group, *group.parents):
                for limit, usage in (
                    ("memory.max", "memory.current"),
                    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
                ):
                    files = root / "sys/fs/cgroup" / ("memory" if "memory" in controllers else "") / folder
                    with suppress(OSError, ValueError):  # "max" means no limit
                        limits.append(_number(files / limit) - _number(files / usage) + _file_pages(files))
    return max(0, min(limits)) if limits else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _file_pages(folder: Path) -> int:
    """Return the bytes of a cgroup that are pages of files, which the kernel drops if memory is needed.

    The pages of shared memory and of tmpfs are among the pages of files, but the kernel cannot drop them.
    """
    lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    sizes = {name: int(value) for name, value in map(str.split, lines)}
    return sizes.get("file", sizes.get("total_cache", 0)) - sizes.get("shmem", sizes.get("total_shmem", 0))
