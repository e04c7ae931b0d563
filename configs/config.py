"""One experiment, checked and complete."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs.catalogue import NAMED
from configs.nodes import COMMAND_LINE, ConfigError
from configs.signatures import Component, Parameter

USUAL = ("data.batch_size", "model.name", "optimizer.lr", "optimizer.name", "seed")


@dataclass(frozen=True)
class Config:
    """Every key of every section, with where it comes from.

    Attributes:
        path: the YAML file.
        values: plain nested data, complete: what is silent in the file has its default.
        components: what each section configures; those of callbacks as ``callbacks.NAME``.
        parameters: the declaration of each dotted key.
        origins: file and line, or command line, of each dotted key that was written.
        resumes: the folder of the run that goes on; null for a new run.
        checkpoint: that it goes on from; null for its newest one.
        falls_back: take the newest checkpoint that is whole, where the newest is not.
        checks: only say what is wrong with the run (`callbacks.rehearsal`), and leave nothing.
    """

    path: Path
    values: dict[str, Any]
    components: dict[str, Component]
    parameters: dict[str, Parameter]
    origins: dict[str, str]
    resumes: Path | None = None
    checkpoint: Path | None = None
    falls_back: bool = False
    checks: bool = False

    def __getitem__(self, key: str) -> Any:
        """The value of a dotted key, or a whole section."""
        value: Any = self.values
        for name in key.split("."):
            value = value[name]
        return value

    def all_keys(self) -> list[str]:
        """Every dotted key, those that choose a component included."""
        return [*self.parameters, *(f"{section}.name" for section in NAMED)]

    def where(self, key: str) -> str:
        """File and line, or command line, of `key`; the file where it was not written."""
        return self.origins.get(key, str(self.path))

    def options(self, section: str) -> dict[str, Any]:
        """The section without its name: the arguments of its component."""
        return {name: value for name, value in self[section].items() if name != "name"}

    def flat(self) -> dict[str, bool | int | float | str]:
        """``section.key`` -> scalar, without what is null or empty: what TensorBoard can show."""
        found = {key: self[key] for key in sorted(self.all_keys()) if self[key] not in (None, [])}
        return {key: one if isinstance(one, bool | int | float | str) else str(one) for key, one in found.items()}

    def varied(self) -> set[str]:
        """The dotted keys in which the runs of an experiment are likely to differ: the usual ones, and overrides."""
        given = {key for key in self.all_keys() if self.origins.get(key) == COMMAND_LINE}
        places = {key for key in given if key.startswith("run.") or key.endswith(".root")}
        return (given - places) | set(USUAL)

    def to_yaml(self, **run: Any) -> str:
        """YAML that `load_config` reads back to the same values, with those of `run` in its section."""
        return OmegaConf.to_yaml(OmegaConf.create({**self.values, "run": {**self["run"], **run}}))

    def refused(self, section: str, message: str, hardware: str = "") -> ConfigError:
        """What a component said of its options, as an error of the key that it is about.

        Args:
            section: whose component it was.
            message: ``KEY: problem`` of our own, or Lightning's, which may name an argument.
            hardware: what there is, for a refusal of devices.
        """
        key, colon, problem = message.partition(": ")
        if colon and key in self.parameters:
            return ConfigError(self.where(key), key, problem)
        if colon and Path(re.sub(r":\d+$", "", key)).is_file():
            return ConfigError(key, "", problem)  # of a file of the user's, at one of its lines
        written = [name for name in self[section] if f"{section}.{name}" in self.origins]
        devices = [name for name in ("accelerator", "devices", "num_nodes", "strategy") if name in written]
        named = [name for name in written if re.search(rf"\b{name}\b", message)]
        key = ".".join([section, *(named or devices)[:1]])
        return ConfigError(self.where(key), key, message, hardware if (named or devices)[:1] == devices[:1] else "")
