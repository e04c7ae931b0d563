"""Load models and tokenizers from a local folder or from the Hugging Face hub."""

import re
from collections.abc import Callable
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from engine.contracts import UserError, one_line

TIMEOUT_SECONDS = 30  # for a hub that does not answer
MODEL_FILES = "config.json, model.safetensors, tokenizer.json and tokenizer_config.json"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")

T = TypeVar("T")


@cache
def is_hub_reachable() -> bool:
    """Return whether the hub answers. If it does not, its libraries are switched to their cache.

    Without this, the libraries would wait for half a minute for every file. The hub is asked once per process.
    """
    from huggingface_hub import constants

    try:
        if not constants.HF_HUB_OFFLINE:
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT_SECONDS).close()
    except HTTPError:
        pass  # the hub answers with an error
    except (OSError, ValueError, HTTPException):
        constants.HF_HUB_OFFLINE = True
    return not constants.HF_HUB_OFFLINE


def load_pretrained(
    key: str, name: str, revision: str | None, load: Callable[[str], T], error_type: type[UserError]
) -> T:
    """Load from the folder `name`, or from the hub if this folder does not exist.

    Args:
        key: Config key of the name, for messages.
        name: A folder or the name of a model on the hub.
        revision: Commit, tag or branch on the hub, for messages.
        load: Function that loads from a path or a name.
        error_type: Type of the exception that the user sees.

    Raises:
        UserError: of the type `error_type`, if `load` raises any exception. The message names the required files.
    """
    folder = Path(name).expanduser()
    is_local = folder.is_dir()
    if not is_local and not _HUB_NAME.fullmatch(name):
        raise error_type(f"{key}: {name} is neither a folder nor the name of a model on the hub")
    if not is_local:
        is_hub_reachable()
    try:
        return load(str(folder) if is_local else name)
    except Exception as error:  # including exceptions of network, file and parser libraries
        if is_local:
            message = f"{name} cannot be loaded ({one_line(error)}); put {MODEL_FILES} into it"
        else:
            message = (
                f"{name} is not a local folder and cannot be downloaded ({describe_hub_error(error)}); put {MODEL_FILES} of"
                f" https://huggingface.co/{name}/tree/{revision or 'main'} into a folder and set model.pretrained=FOLDER"
                " (or data.tokenizer=FOLDER if no model is loaded)"
            )
        raise error_type(f"{key}: {message}") from None


def describe_hub_error(error: Exception) -> str:
    """Describe in one line why loading from the hub failed."""
    return one_line(error) if is_hub_reachable() else "the hub does not answer"
