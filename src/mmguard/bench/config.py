"""A benchmark's YAML file: defaults, and experiments that each say what is different.

    title: Budgets
    defaults:
      dataset: easy-vqa:train:what:500
      test: easy-vqa:test:all-what:500
      surrogates: [zoo:qwen3vl-tiny]
      attackers: [zoo:qwen3vl-tiny, zoo:smolvlm-tiny]
      audit: {seeds: 3}
    experiments:
      - protect: {variant: [bph, crs], eps: [4, 8]}
      - protect: {variant: text}

Keys are the fields of `Experiment`, of `ProtectConfig` and of `AuditConfig`. Where a field takes one value, a list
makes an experiment of each; several lists make all their combinations.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from itertools import product
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from mmguard.auditing.arms import Arm
from mmguard.auditing.attacks import resolve
from mmguard.config import AuditConfig, ProtectConfig
from mmguard.data import benchmarks
from mmguard.errors import ConfigError


@dataclass(frozen=True)
class Experiment:
    """One release and its audit. Lists are of what belongs together: the models of an ensemble, the attackers."""

    dataset: str
    """What is protected, as `mmguard protect` takes it."""
    surrogates: tuple[str, ...]
    """The models that it is optimised against; several are an ensemble."""
    attackers: tuple[str, ...]
    """The models that are fine-tuned."""
    test: str | None = None
    """Clean test set; if not given, that of the benchmark that `dataset` names."""
    split: str | None = None
    limit: int | None = None
    """Protect only the first so many images."""
    test_split: str | None = None
    test_limit: int | None = None
    """Test only on the first so many images."""
    arms: tuple[Arm, ...] = ()
    """Controls besides the one that matches the release."""
    protect: ProtectConfig = field(default_factory=ProtectConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    group: str | None = field(default=None, compare=False)
    """What tables call this and others on the same data, such as `black box`; no result depends on it."""

    def __post_init__(self) -> None:
        if not self.surrogates or not self.attackers:
            raise ConfigError("surrogates and attackers: name at least one model of each")
        if "auto" in self.surrogates:
            raise ConfigError("surrogates: auto depends on the machine; name the model")
        for name, limit in (("limit", self.limit), ("test_limit", self.test_limit)):
            if limit is not None and limit < 1:
                raise ConfigError(f"{name} {limit}: give 1 or more images")
        if self.test is None and benchmarks.find(self.dataset) is None:
            known = ", ".join(benchmarks.NAMES)
            raise ConfigError(f"test: {self.dataset} is no benchmark with a test set of its own ({known}): name one")
        resolve(self.audit.attacks)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its name in the file, `protect.eps` and the like."""
        flat: dict[str, Any] = {}
        for name, value in vars(self).items():
            flat |= {f"{name}.{key}": one for key, one in vars(value).items()} if is_dataclass(value) else {name: value}
        return flat


def default_settings() -> dict[str, Any]:
    """The default of every setting that has one, by its name in the file."""
    prefixed = (("", Experiment), ("protect.", ProtectConfig), ("audit.", AuditConfig))
    return {
        prefix + entry.name: entry.default
        for prefix, kind in prefixed
        for entry in fields(kind)
        if entry.default is not MISSING
    }


_ROWS = ("dataset", "test", "attackers", "audit.recipes")
"""Settings that the tables of findings name in any case."""


@dataclass(frozen=True)
class Bench:
    """What a file says."""

    path: Path
    """Of the file."""
    title: str
    experiments: tuple[Experiment, ...]
    """All different from one another."""

    @property
    def columns(self) -> dict[str, str]:
        """The settings that tell experiments on the same data apart, each with a heading; the variant comes first."""
        every = [one.settings for one in self.experiments]
        varied = [key for key in every[0] if key not in _ROWS and len({one[key] for one in every}) > 1]
        keys = list(dict.fromkeys(["protect.variant", *varied]))
        short = [key.rpartition(".")[2] for key in keys]
        return {key: name if short.count(name) == 1 else key for key, name in zip(keys, short, strict=True)}

    def label(self, one: Experiment) -> str:
        """What tells an experiment from the others, in a few words."""
        variant, *more = [(name, plain(one.settings[key])) for key, name in self.columns.items()]
        return ", ".join([one.dataset, variant[1], *(f"{name} {value}" for name, value in more)])


def plain(value: Any) -> str:
    """A setting as text."""
    if value is None:
        return "default"
    return " + ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def load_bench(path: Path, seeds: int | None = None) -> Bench:
    """Reads a benchmark's file.

    Args:
        path: the file.
        seeds: fine-tuning runs of every arm, instead of what the file says.

    Raises:
        ConfigError: it cannot be read, or says what cannot be done; the message names the file and the key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): give a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date such as 2026-13-01
        raise ConfigError(f"{path}: is no YAML ({error})") from error
    top = _mapping(content, str(path))
    _require_known(("title", "defaults", "experiments"), top, str(path))
    entries = top.get("experiments")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: experiments: list at least one")
    defaults = _mapping(top.get("defaults", {}), f"{path}: defaults")
    _require_keys(Experiment, defaults, f"{path}: defaults")
    experiments: list[Experiment] = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}: experiment {number}"
        merged = dict(defaults)
        for key, value in _mapping(entry, where).items():
            default = defaults.get(key)
            merged[key] = default | value if isinstance(default, dict) and isinstance(value, dict) else value
        _require_keys(Experiment, merged, where)
        experiments += _grid(Experiment, merged, where)
    if seeds is not None:
        experiments = [replace(one, audit=replace(one.audit, seeds=seeds)) for one in experiments]
    title = _typed(str, top.get("title", path.stem), f"{path}: title")
    return Bench(path, title, tuple(dict.fromkeys(experiments)))


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {value!r} is no mapping: write `key: value` lines")
    return value


def _require_keys(kind: type, mapping: Mapping[str, Any], where: str) -> None:
    """Checks that the keys of a mapping, and of those within it, are fields."""
    hints = get_type_hints(kind)
    _require_known(hints, mapping, where)
    for key, value in mapping.items():
        if is_dataclass(hints[key]):
            _require_keys(hints[key], _mapping(value, f"{where}: {key}"), f"{where}: {key}")


def _require_known(known: Iterable[str], mapping: Mapping[str, Any], where: str) -> None:
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            cure = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r}: {cure}")


def _grid(kind: type, mapping: Mapping[str, Any], where: str) -> list[Any]:
    """An instance of a settings class for every combination of what the mapping lists."""
    for entry in fields(kind):
        if entry.name not in mapping and entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigError(f"{where}: {entry.name} is missing: give it here or among the defaults")
    hints = get_type_hints(kind)
    options = [[(k, one) for one in _options(hints[k], value, f"{where}: {k}")] for k, value in mapping.items()]
    made = []
    for combination in product(*options):
        try:
            made.append(kind(**dict(combination)))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    return made


def _options(hint: Any, value: Any, where: str) -> list[Any]:
    """The values of one field that a file asks for."""
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return _grid(hint, value, where)
    if not isinstance(value, list) or _kind(hint) is tuple:
        return [_typed(hint, value, where)]
    if not value:
        raise ConfigError(f"{where}: an empty list: give at least one value")
    return [_typed(hint, one, where) for one in value]


def _typed(hint: Any, value: Any, where: str) -> Any:
    """A value as YAML reads it, as the type that a field has."""
    inner = _required(hint)
    kind = _kind(hint)
    if value is None and inner is not hint:
        return None
    if kind is tuple and isinstance(value, list):
        return tuple(_typed(get_args(inner)[0], one, where) for one in value)
    if kind is Literal and value not in get_args(inner):
        raise ConfigError(f"{where}: {value!r}: choose one of {', '.join(get_args(inner))}")
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return float(value)  # YAML takes 1e-4, which lacks a point, for text
    if kind is Literal or type(value) is kind:
        return value
    raise ConfigError(f"{where}: {value!r} is no {_NOUNS[kind]}")


def _required(hint: Any) -> Any:
    """The type of a field that may be None, without the None."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    return hint


def _kind(hint: Any) -> Any:
    return get_origin(_required(hint)) or _required(hint)


_NOUNS = {bool: "switch (true or false)", int: "whole number", float: "number", str: "text", tuple: "list"}
