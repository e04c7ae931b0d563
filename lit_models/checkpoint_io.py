"""Lightning's trainer writes and reads checkpoints through `checkpoint_file`."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from lit_models import checkpoint_file


class VerifiedCheckpoints(CheckpointIO):
    """Atomic writing, verified reading; there is no way to load pickled code, whatever the trainer is asked."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        checkpoint_file.write(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return checkpoint_file.read(Path(path), map_location or (lambda storage, location: storage))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
