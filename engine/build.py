"""Makes the components that a config names: datamodule, model and callbacks."""

import importlib
from typing import Any

from engine.config.config import Config
from engine.config.signatures import PROJECT, read_component
from engine.contracts import UserError
from engine.training.exits import is_refusal


def component_class(config: Config, section: str) -> Any:
    """Return the class of the component of `section` (``data``, ``model``, ``callbacks.NAME``)."""
    component = config.components[section]
    ours = component.path.parent.parent == PROJECT
    module = f"{component.path.parent.name}.{component.path.stem}" if ours else "lightning.pytorch.callbacks"
    return getattr(importlib.import_module(module), component.name)


def make(config: Config, section: str, **given: Any) -> Any:
    """Return the component of `section`, made from its options and `given`."""
    component, constructor = config.components[section], component_class(config, section)
    if section == "data" and "seed" not in read_component(component.path, component.name).parameters:
        given = {}  # a datamodule of the user's own may take no seed
    try:
        return constructor(**config.options(section), **given)
    except Exception as error:
        if isinstance(error, UserError) or is_refusal(error):
            raise config.option_error(section, error) from error
        raise
