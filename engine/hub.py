"""Whether the Hugging Face hub can be reached."""

from functools import cache
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

TIMEOUT_SECONDS = 30  # for a hub that does not answer
MODEL_FILES = "config.json, model.safetensors, tokenizer.json and tokenizer_config.json"


@cache
def is_hub_reachable() -> bool:
    """Whether the hub answers. If not, its libraries are told to look only into their cache.

    By themselves they would ask for half a minute, once per file. This asks once per process.
    """
    from huggingface_hub import constants

    try:
        if not constants.HF_HUB_OFFLINE:
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT_SECONDS).close()
    except HTTPError:
        pass  # it answers with an error, so it is there
    except (OSError, ValueError, HTTPException):
        constants.HF_HUB_OFFLINE = True
    return not constants.HF_HUB_OFFLINE
