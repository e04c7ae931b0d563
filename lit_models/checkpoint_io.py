"""Lightning's trainer writes and reads checkpoints through `checkpoint_file`."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lit_models import checkpoint_file
from lit_models.checkpoint_file import BrokenCheckpointError

PARTS = {"state_dict", "loops", "optimizer_states", "lr_schedulers", "position"}  # without them a run cannot go on


class VerifiedCheckpoints(CheckpointIO):
    """Atomic writing, verified reading; there is no way to load pickled code, whatever the trainer is asked."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        on_host = apply_to_collection(checkpoint, Tensor, lambda one: one.cpu() if one.device.type == "xla" else one)
        checkpoint_file.write(on_host, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        checkpoint = checkpoint_file.read(Path(path), map_location or (lambda storage, location: storage))
        if not isinstance(checkpoint, dict) or not checkpoint.keys() >= PARTS:
            raise BrokenCheckpointError(f"{path} is no checkpoint of a run of this project")
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
