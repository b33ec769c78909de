"""Who does the batches of a round: this process, one after the other, or others. The results are the same."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from mmguard.config import EngineConfig, ProtectConfig
from mmguard.data.images import load_picture
from mmguard.errors import ConfigError
from mmguard.lvlm.surrogate import Surrogate
from mmguard.protection.batch import Item, Stage, originals, protect_batch, remaining, workload
from mmguard.protection.ensemble import Ensemble
from mmguard.runtime.prefetch import prefetched

Advance = Callable[[Stage, float], None]
"""Says that so many more units of a stage's `work` are done."""
Job = tuple[int, list[Item]]
"""A batch with its number."""


class Engine(Protocol):
    """Does the outer problem of one round, which no batch shares with another."""

    def protect(
        self, jobs: Sequence[Job], ensemble: Ensemble, config: ProtectConfig, advance: Advance
    ) -> Generator[Job, None, None]:
        """Does every batch, and yields each when its δ and triggers are in place, in whatever order.

        Args:
            jobs: the batches.
            ensemble: the surrogates as this round adapted them.
            config: what to do.
            advance: called when the surrogates are ready, and when a batch is through a stage.
        """


class LocalEngine:
    """One batch after the other, in this process; while one is worked on, the next one's originals are read."""

    def protect(
        self, jobs: Sequence[Job], ensemble: Ensemble, config: ProtectConfig, advance: Advance
    ) -> Generator[Job, None, None]:
        size = ensemble.at_once(config.batch_size)
        with ensemble.adapted():
            advance("Adapting", 1)
            for (number, batch), pictures in prefetched(jobs, lambda job: originals(job[1], load_picture)):
                stages = workload(batch, config)
                done = _once(advance, stages)
                size = protect_batch(remaining(batch), pictures, ensemble, config, size, done)
                for stage in stages:  # lost images are through, too
                    done(stage)
                yield number, batch


def engine_of(
    choice: EngineConfig, surrogates: Sequence[str | Surrogate], config: ProtectConfig, device: str
) -> AbstractContextManager[Engine]:
    """The engine that a user chose. Its workers live until the end of the block.

    Raises:
        ConfigError: Ray is chosen and not installed, cannot be reached, or cannot serve with these settings.
    """
    if choice.engine == "local" or not config.optimised:
        return nullcontext(LocalEngine())
    names = [one for one in surrogates if isinstance(one, str)]
    if len(names) < len(surrogates):
        raise ConfigError("engine ray: each worker loads its surrogates itself: give their names, or use engine local")
    try:
        from mmguard.protection.ray_engine import ray_engine
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError("engine ray: Ray is not installed: pip install 'mmguard[ray]', or use engine local") from None
    return ray_engine(choice, names, config, device)


def _once(advance: Advance, amounts: Mapping[Stage, int]) -> Callable[[Stage], None]:
    """Tells of a batch's stages that they are done, each once, however often memory made it try."""
    left = dict(amounts)

    def done(stage: Stage) -> None:
        if stage in left:
            advance(stage, left.pop(stage))

    return done
