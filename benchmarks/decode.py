"""Decoding of CIFAR-10 as 60,000 PNG files, compared with a loop with Pillow on each core."""

import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import Comparison, run_in_turn, time_call
from datamodules.cifar import CIFAR
from datamodules.parts.picture_files import Format, decode_pictures, decoding_processes, read_folder
from datamodules.pictures import Pictures
from engine.threads import available_cores

SAMPLE = 10_000  # pictures of the loop with Pillow
PAIRS = 3


def run(options: Namespace) -> list[Comparison]:
    cifar = CIFAR(root=options.data)
    cifar.prepare_data()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for split, (images, labels) in zip(("train", "test"), cifar.load(), strict=True):
            for number, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
                folder = root / "png" / split / cifar.spec.class_names[label]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number:05}.png")
        paths = [path for split in ("train", "test") for path in read_folder("data", root / "png" / split).paths]

        def decode() -> None:
            with decoding_processes() as start:
                decode_pictures("data.train", paths, Format(32, "crop", "white"), root, start)

        def decode_with_pillow() -> float:
            start = time.perf_counter()
            for path in paths[:: len(paths) // SAMPLE]:
                with Image.open(path) as image:
                    np.asarray(image.convert("RGB"))
            return (time.perf_counter() - start) * len(paths) / SAMPLE / available_cores()

        def prepare() -> None:
            Pictures(str(root / "png"), image_size=32, cache=str(root / "cache")).setup()

        sides = {"ours": lambda: time_call(decode), "Pillow": decode_with_pillow}
        times = run_in_turn(sides, min(options.pairs, PAIRS))
        first, second, binary = time_call(prepare), time_call(prepare), time_call(CIFAR(root=options.data).setup)
        return [
            Comparison("decoding", "Pillow / cores", times["ours"], times["Pillow"], at_most=1.25),
            Comparison("first start: list, decode, verify", "Pillow / cores", [first], [min(times["Pillow"])]),
            Comparison("second start", "binary files", [second], [binary], note=f"{second - binary:.2f} s more"),
        ]
