"""What is done of Algorithm 1, on disk: after a crash the next run goes on from there, to the same release."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmguard.errors import ReleaseError, SampleError
from mmguard.release.writer import writing
from mmguard.runtime.durable import write_durably

if TYPE_CHECKING:
    from mmguard.protection.batch import Item


class Journal:
    """Keeps nothing: for what lives in memory alone."""

    def captions(self, number: int) -> dict[str, str]:
        """What an earlier run had said of a batch of pictures without text, by their paths in the dataset."""
        return {}

    def keep_captions(self, number: int, said: Mapping[str, str]) -> None:
        """Keeps the captions of a batch: a model need not say the same again, and δ belongs to what it said."""

    def restore(self, number: int, batch: Sequence[Item]) -> int:
        """Puts a batch into the state that an earlier run left it in.

        Args:
            number: of the batch.
            batch: its items as they begin; δ and triggers are changed in place.

        Returns:
            The number of rounds that it is through.
        """
        return 0

    def keep(self, number: int, batch: Sequence[Item], rounds: int) -> None:
        """Keeps δ and triggers of a batch that is through so many rounds, and what of it is lost."""

    def adaptation(self, round_: int) -> dict[str, Tensor] | None:
        """The adapters that this round began with, if an earlier run got so far."""
        return None

    def keep_adaptation(self, round_: int, weights: Mapping[str, Tensor]) -> None:
        """Keeps the adapters that this round works with."""


class FileJournal(Journal):
    """Keeps one file a batch and one with adapters, in safetensors, and one a batch of captions.

    A file is there whole or not at all, and in this order: the adapters of a round, then its batches. So no batch is
    ever further than a round ahead of another, and where adapters are missing, no batch has begun their round: the
    surrogates adapt to the same images again.

    Args:
        folder: of the files; made if it is not there.
        images: whether δ is kept, and not triggers alone.
    """

    def __init__(self, folder: Path, images: bool) -> None:
        self._folder = folder
        self._images = images

    def captions(self, number: int) -> dict[str, str]:
        found = _read(self._captions(number))
        said: dict[str, str] = json.loads(found[1]["captions"]) if found else {}
        return said

    def keep_captions(self, number: int, said: Mapping[str, str]) -> None:
        self._write(self._captions(number), {}, {"captions": json.dumps(said)})

    def restore(self, number: int, batch: Sequence[Item]) -> int:
        found = _read(self._batch(number))
        # Other pictures can be readable now than then, so that others are in the batch.
        if found is None or found[1]["samples"] != _names(batch):
            return 0
        tensors, facts = found
        kept = zip(batch, json.loads(facts["triggers"]), json.loads(facts["lost"]), strict=True)
        for place, (item, triggers, lost) in enumerate(kept):
            item.triggers = [tuple(words) for words in triggers]
            item.lost = SampleError(*lost) if lost else None
            if self._images:
                item.delta.copy_(tensors[str(place)])
        return int(facts["rounds"])

    def keep(self, number: int, batch: Sequence[Item], rounds: int) -> None:
        tensors = {str(place): item.delta.contiguous() for place, item in enumerate(batch)} if self._images else {}
        facts = {
            "rounds": str(rounds),
            "samples": _names(batch),
            "triggers": json.dumps([item.triggers for item in batch]),
            "lost": json.dumps([item.lost and (item.lost.where, item.lost.message) for item in batch]),
        }
        self._write(self._batch(number), tensors, facts)

    def adaptation(self, round_: int) -> dict[str, Tensor] | None:
        found = _read(self._adapters)
        if found is None or int(found[1]["round"]) != round_:
            return None
        return found[0]

    def keep_adaptation(self, round_: int, weights: Mapping[str, Tensor]) -> None:
        self._write(self._adapters, weights, {"round": str(round_)})

    @property
    def _adapters(self) -> Path:
        return self._folder / "adapters.safetensors"

    def _batch(self, number: int) -> Path:
        return self._folder / f"batch-{number:06}.safetensors"

    def _captions(self, number: int) -> Path:
        return self._folder / f"captions-{number:06}.safetensors"

    def _write(self, path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        with writing(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_durably(path, save(dict(tensors), dict(facts)))


def _names(batch: Sequence[Item]) -> str:
    """Whose δ and triggers a batch holds."""
    return json.dumps([[sample.id for sample in item.samples] for item in batch])


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and facts of a file, if it is there."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (no dictionary)
    except (OSError, SafetensorError) as error:
        raise ReleaseError(
            f"{path}: cannot be read ({error}): check the disk, or remove its folder to begin anew"
        ) from error
