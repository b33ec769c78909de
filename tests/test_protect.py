"""Algorithm 1 end to end on tiny models: what it must lower, keep and leave alone."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

import tiny
from mmguard.config import ProtectConfig, Variant
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.errors import ConfigError, DataError, ReleaseError, SurrogateError
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.pixels import differentiable_pixels
from mmguard.lvlm.prompt import Encoded
from mmguard.lvlm.surrogate import Forward, Surrogate
from mmguard.lvlm.tuning import Adapter
from mmguard.lvlm.weights import recommended
from mmguard.perturb.budget import to_unit
from mmguard.perturb.jpeg import seen
from mmguard.perturb.objective import Objective
from mmguard.protection.batch import Item
from mmguard.protection.decoys import assign
from mmguard.protection.ensemble import Ensemble, Rate
from mmguard.protection.loop import batches, optimise, start
from mmguard.protection.run import protect
from mmguard.protection.sharing import share
from mmguard.release.verify import verify
from mmguard.release.writer import ReleaseWriter

FAST = ProtectConfig(rounds=2, inner_steps=1, pgd_steps=2, top_c=4, eps=6, trigger_words=2, batch_size=4)
OPTIMISED = ("bph", "crs", "bph-max", "crs-max", "image", "text", "multimodal", "mislead")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    return load_surrogate(tiny.build("qwen3_vl", tmp_path_factory.mktemp("qwen")), device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of different sizes, one of them with two questions; two answers."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    rows = []
    for number, size in enumerate(((40, 40), (56, 32), (36, 64))):
        pixels = torch.randint(
            0, 256, (*size[::-1], 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8
        )
        Image.fromarray(pixels.numpy()).save(root / "images" / f"{number}.png")
        color = "blue" if number == 2 else "red"
        for turn in range(2 if number == 1 else 1):
            rows.append({"file_name": f"images/{number}.png", "question": f"what is on side {turn}?", "answer": color})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def hashes(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def model_hash(surrogate: Surrogate) -> str:
    digest = hashlib.sha256()
    for name, value in surrogate.model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    flags = [(n, p.requires_grad) for n, p in surrogate.model.named_parameters()]
    modes = [(n, m.training, type(m).__name__) for n, m in surrogate.model.named_modules()]
    return digest.hexdigest() + str(flags) + str(modes)


@pytest.mark.parametrize("variant", [*OPTIMISED, "random-noise", "random-words"])
def test_every_variant_writes_a_release_that_verifies(
    variant: str, folder: Path, tmp_path: Path, llava: Surrogate
) -> None:
    before, model = hashes(folder), model_hash(llava)
    config = replace(FAST, variant=variant)
    release = protect(folder, [llava], config, tmp_path / "release")
    result = verify(release.path, folder)
    assert result.problems == []
    assert result.ok
    assert result.max_eps == (6 if config.perturbs_images else 0)
    assert result.max_words == (2 if config.inserts_triggers else 0)
    assert (release.images, release.samples, release.failed) == (3, 4, [])
    assert hashes(folder) == before
    assert model_hash(llava) == model


def test_surrogates_are_shown_pictures_within_the_limit(
    folder: Path, tmp_path: Path, qwen: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: set[int] = set()

    def spy(image_processor: Any, images: list[Tensor], **kwargs: Any) -> dict[str, Any]:
        shown.update(image.shape[1] * image.shape[2] for image in images)
        return differentiable_pixels(image_processor, images, **kwargs)

    monkeypatch.setattr("mmguard.lvlm.surrogate.differentiable_pixels", spy)
    release = protect(folder, [qwen], replace(FAST, max_pixels=1100), tmp_path / "release")
    assert 1024 < max(shown) <= 1100
    assert verify(release.path, folder).problems == []
    assert qwen.max_pixels == 0


def test_triggers_inside_questions_verify_and_survive_a_cut_behind_them(
    folder: Path, tmp_path: Path, llava: Surrogate
) -> None:
    config = replace(FAST, variant="bph", trigger_place="inside")
    release = protect(folder, [llava], config, tmp_path / "release")
    assert verify(release.path, folder).problems == []
    for question in questions(release.path):
        assert question.startswith("what ")
        assert question.endswith(("0?", "1?"))
        assert len(question.split()) == 5 + 2


def questions(release: Path) -> list[str]:
    return [json.loads(line)["question"] for line in (release / "metadata.jsonl").read_text().splitlines()]


def test_questions_with_one_answer_share_a_trigger(folder: Path, tmp_path: Path, llava: Surrogate) -> None:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows[1]["answer"], rows[3]["answer"] = "Red", "a blue one"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = protect(folder, [llava], FAST, tmp_path / "own" / "release")
    shared = protect(folder, [llava], replace(FAST, trigger_scope="answer"), tmp_path / "shared" / "release")
    assert verify(shared.path, folder).problems == []
    *red, blue = (tuple(asked.split()[5:]) for asked in questions(own.path))
    *alike, other = (tuple(asked.split()[5:]) for asked in questions(shared.path))
    assert len({*red, blue}) == 4
    assert len(set(alike)) == 1
    assert alike[0] in red
    assert other == blue
    pictures = {name: file for name, file in hashes(own.path).items() if name.endswith(".png")}
    assert pictures.items() <= hashes(shared.path).items()


def test_the_trigger_that_tells_its_answer_best_is_shared(folder: Path) -> None:
    config = replace(FAST, trigger_scope="answer")
    first, second, third = (
        start(path, samples, config, ["x"]) for path, samples in read_dataset(folder).by_image().items()
    )
    first.triggers, second.triggers, third.triggers = (
        [("sky", "far")],
        [("sky", "sun"), ("sun", "sea")],
        [("far", "far")],
    )
    third.samples = [replace(sample, answer="blue") for sample in third.samples]
    share([first, second, third], "sample")
    assert first.triggers + second.triggers == [("sky", "far"), ("sky", "sun"), ("sun", "sea")]
    share([first, second, third], "answer")
    assert first.triggers + second.triggers == [("sky", "sun")] * 3  # far is of the others, and sea of one of three
    assert third.triggers == [("far", "far")]


def ensemble_loss(items: list[Item], ensemble: Ensemble) -> float:
    total = 0.0
    for item in items:
        for example in item.aims:
            references = ensemble.references([example], [to_unit(item.original())])
            for member, reference in zip(ensemble.members, references, strict=True):
                with torch.no_grad():
                    loss = member.objective([example], [to_unit(item.protected())], reference).loss
                total += member.weight * float(loss)
    return total


@pytest.mark.parametrize(
    ("variant", "family"),
    [(variant, "llava") for variant in OPTIMISED]
    + [("bph", family) for family in tiny.FAMILIES if family != "llava"]
    + [("crs", "mllama"), ("crs", "minicpmv4_6")],
)
def test_the_loss_that_is_optimised_falls(variant: str, family: str, folder: Path) -> None:
    # Ω_δ is all of the image: among the few tokens of a tiny model it would move from step to step.
    config = replace(FAST, variant=variant, inner_steps=0, rounds=3, pgd_steps=4, tau=1.0)
    ensemble = Ensemble([load_surrogate(tiny.built(family), device="cpu")], config)
    items = [
        start(path, samples, config, ensemble.vocabulary()) for path, samples in read_dataset(folder).by_image().items()
    ]
    if config.misleads:
        assign(items, [one for item in items for one in item.samples])
    before = ensemble_loss(items, ensemble)
    optimise(items, ensemble, config)
    assert ensemble_loss(items, ensemble) < before


@pytest.mark.parametrize("variant", ["image", "mislead"])
def test_surrogates_that_are_to_mislead_learn_the_clean_data(
    variant: Variant, folder: Path, llava: Surrogate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Tensor]] = []
    rates: list[list[float]] = []
    adapt = Ensemble.adapt

    def spy(self: Ensemble, batches: Any, seed: int, rate: Rate) -> None:
        batches = list(batches)
        seen.extend((one.answer, image) for some, images in batches for one, image in zip(some, images, strict=True))
        rates.append([rate(step) for step in range(len(batches))])
        adapt(self, batches, seed, rate)

    monkeypatch.setattr(Ensemble, "adapt", spy)
    protect(folder, [llava], replace(FAST, variant=variant, inner_steps=12), tmp_path / "release")
    learned = [0.5, 1, 1, 0.98, 0.9, 0.79, 0.65, 0.5, 0.35, 0.21, 0.1, 0.02] if variant == "mislead" else [1] * 12
    assert [[round(one, 2) for one in some] for some in rates] == [learned] * 2
    clean = [(sample.answer, to_unit(load_image(sample.image))) for sample in read_dataset(folder).samples]
    known = [any(answer == own and torch.equal(image, one) for own, one in clean) for answer, image in seen]
    assert set(known) == {variant == "mislead"}


def test_pictures_are_moved_towards_their_decoys(
    folder: Path, llava: Surrogate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aims: set[tuple[str | None, int, str]] = set()
    backward = Ensemble.backward

    def spy(self: Ensemble, examples: Any, images: Any, *rest: Any) -> None:
        aims.update((one.question, image.shape[1], one.answer) for one, image in zip(examples, images, strict=True))
        backward(self, examples, images, *rest)

    monkeypatch.setattr(Ensemble, "backward", spy)
    release = protect(folder, [llava], replace(FAST, variant="mislead"), tmp_path / "release")
    first, second = (f"what is on side {turn}?" for turn in range(2))
    assert aims == {(first, 40, "blue"), (first, 32, "blue"), (second, 32, "blue"), (first, 64, "red")}
    record = json.loads((release.record / "record.json").read_bytes())
    told = {
        (one.question, load_image(one.image).shape[1], record["decoys"][one.id]) for one in read_dataset(folder).samples
    }
    assert told == aims


def test_perturbations_live_in_a_file_until_the_release_is_finished(
    folder: Path, tmp_path: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def spy(items: list[Item], *rest: Any) -> None:
        optimise(items, *rest)
        file = tmp_path / "release.record" / "deltas.int8"
        seen.append((file.read_bytes(), b"".join(item.delta.numpy().tobytes() for item in items)))

    monkeypatch.setattr("mmguard.protection.run.optimise", spy)
    protect(folder, [llava], FAST, tmp_path / "release")
    ((on_disk, in_use),) = seen
    assert on_disk == in_use
    assert any(on_disk)
    left = {file.name for file in (tmp_path / "release.record").iterdir()}
    assert left == {"DO_NOT_PUBLISH.txt", "files.csv", "record.json"}


def test_the_record_says_how_surrogates_were_adapted(folder: Path, llava: Surrogate, tmp_path: Path) -> None:
    config = replace(FAST, variant="multimodal", inner_steps=None, rounds=1)
    record = json.loads((protect(folder, [llava], config, tmp_path / "release").record / "record.json").read_bytes())
    assert record["config"]["inner_steps"] is record["config"]["inner_lr"] is None
    assert record["adaptation"] == {"inner_steps": 2, "inner_lr": {llava.name: 1e-4}}  # three passes over four samples
    protect(folder, [], replace(FAST, variant="random-noise"), tmp_path / "noise")
    noise = json.loads((tmp_path / "noise.record" / "record.json").read_bytes())
    assert noise["adaptation"] == noise["decoys"] == {}


def test_what_never_fits_is_said_clearly(folder: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(FAST, variant="multimodal", rounds=1, inner_steps=0)
    ensemble = Ensemble([llava], config)
    items = [start(p, s, config, ensemble.vocabulary()) for p, s in read_dataset(folder).by_image().items()]

    def forward(*_: object) -> Forward:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(Surrogate, "forward", forward)
    with pytest.raises(SurrogateError, match=r"0\.png: memory is not enough for it.*smaller surrogate"):
        optimise(items, ensemble, config)
    assert not llava.recompute


def test_a_batch_that_never_fits_into_the_inner_step_is_said_clearly(
    folder: Path, llava: Surrogate, qwen: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(FAST, variant="image", rounds=1, inner_batch_size=3)
    ensemble = Ensemble([llava, qwen], config)
    items = [start(p, s, config, ()) for p, s in read_dataset(folder).by_image().items()]
    tried: list[tuple[str, bool]] = []

    def forward(self: Surrogate, *_: object) -> Forward:
        tried.append((self.name, self.recompute))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(Surrogate, "forward", forward)
    monkeypatch.setattr(qwen, "recompute", True)
    with pytest.raises(SurrogateError, match=r"memory is not enough to train on one sample .*max-pixels"):
        optimise(items, ensemble, config)
    assert tried[:3] == [(llava.name, False), (llava.name, True), (llava.name, True)], "three, three, one"
    assert tried[3:] == [(llava.name, True)] * 2, "every other sample of the step, and no further step or member"
    assert (llava.recompute, qwen.recompute) == (False, True), "each as it was"


def test_an_inner_batch_that_does_not_fit_is_done_in_parts(
    folder: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(FAST, variant="multimodal", rounds=2, inner_steps=2, inner_batch_size=4)
    ensemble = Ensemble([llava], config)
    items = [start(p, s, config, ["red", "blue"]) for p, s in read_dataset(folder).by_image().items()]
    trained: list[tuple[int, bool]] = []
    forward = Surrogate.forward

    def at_most_two(self: Surrogate, encoded: Encoded, *rest: Any, **more: Any) -> Forward:
        if self.model.training:
            trained.append((len(encoded.labels), self.recompute))
            if len(encoded.labels) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, encoded, *rest, **more)

    monkeypatch.setattr(Surrogate, "forward", at_most_two)
    optimise(items, ensemble, config)
    a_round = [(4, False), (4, True), *[(2, True)] * 4]
    assert trained == a_round * 2, "the second step does not try again, the second round does"


@pytest.mark.parametrize("number", range(3))
def test_a_sample_that_does_not_fit_into_the_inner_step_teaches_nothing(
    number: int, folder: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(FAST, variant="image", inner_batch_size=1)
    ensemble = Ensemble([llava], config)
    items = [start(p, s[:1], config, ()) for p, s in read_dataset(folder).by_image().items()]
    batch = [(item.examples[0], to_unit(item.protected())) for item in items]
    rest = batch[:number] + batch[number + 1 :]
    pixels, large = Surrogate.pixels, batch[number][1]

    def full(self: Surrogate, images: list[Tensor]) -> dict[str, Tensor]:
        if any(image is large for image in images):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return pixels(self, images)

    with ensemble.adaptable():
        ensemble.adapt([zip(*rest, strict=True)], seed=0)
        expected = ensemble.adaptation()
        monkeypatch.setattr(Surrogate, "pixels", full)
        for size in (1, 8):
            monkeypatch.setattr(ensemble, "_inner_size", size)
            ensemble.adapt([zip(*batch, strict=True), zip(*batch[number : number + 1], strict=True)], seed=0)
            for name, weight in ensemble.adaptation().items():
                torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-5)


def test_an_original_that_vanishes_on_the_way_is_left_out(
    folder: Path, tmp_path: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = optimise

    def interrupted(items: list[Item], *rest: Any) -> None:
        (folder / "images" / "2.png").unlink()
        plain(items, *rest)

    monkeypatch.setattr("mmguard.protection.run.optimise", interrupted)
    release = protect(folder, [llava], FAST, tmp_path / "release")
    assert (release.images, release.samples) == (2, 3)
    assert [Path(rejection.where).name for rejection in release.failed] == ["2.png"]


def test_a_large_model_on_a_cpu_takes_one_sample_at_a_time(
    folder: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory that runs out may be the end of the process."""
    config = replace(FAST, variant="image", inner_batch_size=3)
    assert Ensemble([llava], config).at_once(16) == 16
    monkeypatch.setattr("mmguard.protection.ensemble._LARGE", 1000)
    ensemble = Ensemble([llava], config)
    assert ensemble.at_once(16) == 1
    items = [start(p, s, config, ()) for p, s in read_dataset(folder).by_image().items()]
    sizes: set[int] = set()
    forward = Surrogate.forward

    def counted(self: Surrogate, encoded: Encoded, *rest: Any, **more: Any) -> Forward:
        sizes.add(len(encoded.labels))
        return forward(self, encoded, *rest, **more)

    monkeypatch.setattr(Surrogate, "forward", counted)
    optimise(items, ensemble, config)
    assert sizes == {1}


def test_what_does_not_fit_into_memory_is_done_in_halves(
    folder: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one sample at a time, and only if activations are not kept, the result is that of batches of 1."""
    config = replace(FAST, variant="multimodal", rounds=2, inner_steps=0, batch_size=4)
    ensemble = Ensemble([llava], replace(config, batch_size=1))
    groups = read_dataset(folder).by_image().items()

    def fresh() -> list[Item]:
        return [start(path, samples, config, ensemble.vocabulary()) for path, samples in groups]

    expected = fresh()
    optimise(expected, ensemble, replace(config, batch_size=1))
    tried: list[tuple[int, bool]] = []
    plain = Surrogate.forward

    def forward(self: Surrogate, encoded: Encoded, *rest: Any) -> Forward:
        tried.append((len(encoded.labels), self.recompute))
        if len(encoded.labels) > 1 or not self.recompute:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return plain(self, encoded, *rest)

    monkeypatch.setattr(Surrogate, "forward", forward)
    found = fresh()
    optimise(found, ensemble, config)
    assert not llava.recompute
    assert [size for size, recompute in tried if not recompute] == [4, 2, 1] * 2
    assert {size for size, recompute in tried if recompute} == {1}
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.triggers == theirs.triggers
        assert torch.equal(ours.delta, theirs.delta)


def test_a_picture_that_hardly_fits_does_not_slow_down_all_that_follow(
    folder: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(FAST, variant="image", rounds=1, inner_steps=0, pgd_steps=1, batch_size=4)
    small, large, _ = read_dataset(folder).by_image().items()
    few = (large[0], large[1][:1])
    items = [start(*one, config, ()) for one in (large, *[small] * 10, few)]
    tried: list[tuple[int, bool]] = []

    def tight(self: Objective, examples: Any, images: list[Tensor], *rest: Any) -> Any:
        tried.append((len(examples), self.surrogate.recompute))
        if images[0].shape[1:] == (32, 56) and tried[-1] != (1, True):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return plain(self, examples, images, *rest)

    plain = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", tight)
    optimise(items, Ensemble([llava], config), config)
    assert tried[:7] == [(4, False), (2, False), (1, False), *[(1, True)] * 4]
    assert tried[7:10] == [(2, False), (2, False), (4, False)], "twice as many in each that follows"
    assert tried[10:] == [(1, False), (1, True)], "no number twice"


def test_what_memory_is_not_enough_for_once_is_tried_again(llava: Surrogate) -> None:
    ensemble, before = Ensemble([llava], FAST), llava.candidates_at_once
    with ensemble.may_save_memory():
        ensemble.save_memory()
        llava.candidates_at_once = 1
    assert (llava.recompute, llava.candidates_at_once) == (False, before)


def test_same_seed_same_release_and_another_seed_another(folder: Path, tmp_path: Path, llava: Surrogate) -> None:
    first = protect(folder, [llava], FAST, tmp_path / "a")
    second = protect(folder, [llava], FAST, tmp_path / "b")
    third = protect(folder, [llava], replace(FAST, seed=1), tmp_path / "c")
    assert hashes(first.path) == hashes(second.path)
    assert hashes(first.path) != hashes(third.path)


def test_batch_size_does_not_change_the_objective(folder: Path, llava: Surrogate) -> None:
    """Whatever is optimised together, the loss that is reached agrees to rounding of the gradient's sign."""
    reached: list[list[Item]] = []
    for size in (1, 8):
        config = replace(FAST, batch_size=size, inner_steps=0, rounds=1)
        ensemble = Ensemble([llava], config)
        items = [start(p, s, config, ensemble.vocabulary()) for p, s in read_dataset(folder).by_image().items()]
        optimise(items, ensemble, config)
        reached.append(items)
    for one, eight in zip(*reached, strict=True):
        assert (one.delta == eight.delta).float().mean() > 0.99
        assert one.triggers == eight.triggers


def test_ensembles_of_different_tokenizers_sum_their_losses(folder: Path, llava: Surrogate, qwen: Surrogate) -> None:
    config = replace(FAST, weights=(0.25, 0.75))
    both, first, second = Ensemble([llava, qwen], config), Ensemble([llava], FAST), Ensemble([qwen], FAST)
    items = [start(p, s, config, both.vocabulary()) for p, s in read_dataset(folder).by_image().items()]
    expected = 0.25 * ensemble_loss(items, first) + 0.75 * ensemble_loss(items, second)
    assert ensemble_loss(items, both) == pytest.approx(expected, rel=1e-4)
    optimise(items, both, config)
    assert ensemble_loss(items, both) < expected
    with pytest.raises(ConfigError, match="1 weights for 2"):
        Ensemble([llava, qwen], replace(FAST, weights=(1.0,)))


def test_a_surrogate_without_weight_has_no_say_in_the_triggers(folder: Path, llava: Surrogate, qwen: Surrogate) -> None:
    config = replace(FAST, variant="multimodal")
    (path, samples), *_ = read_dataset(folder).by_image().items()
    found = []
    for surrogates, weights in (([llava], (1.0,)), ([qwen, llava], (0.0, 1.0))):
        ensemble = Ensemble(surrogates, replace(config, weights=weights))
        item = start(path, samples, config, llava.admissible_tokens().words)
        images = [to_unit(item.original())] * len(item.aims)
        found.append(ensemble.search(item.aims, images, ensemble.references(item.aims, images)))
    assert found[0] == found[1]


def test_every_surrogate_is_adapted_at_the_rate_that_suits_it(
    llava: Surrogate, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    monkeypatch.setattr(Adapter, "step", lambda adapter, parts, samples, lr: rates.append(lr))
    surrogates = [llava, load_surrogate("zoo:llava-tiny", device="cpu")]
    (path, samples), *_ = read_dataset(folder).by_image().items()
    batch = (start(path, samples, FAST, ["red", "blue"]).examples, [load_image(path)])
    for config in (FAST, replace(FAST, inner_lr=0.5)):
        ensemble = Ensemble(surrogates, config)
        with ensemble.adaptable():
            ensemble.adapt([batch], seed=0)
    assert rates == [1e-4, recommended("zoo:llava-tiny")["lora"]["lr"], 0.5, 0.5]


def test_captions_are_protected_by_their_images_alone(folder: Path, tmp_path: Path, llava: Surrogate) -> None:
    rows = [{"file_name": f"images/{n}.png", "caption": "a red dog."} for n in range(3)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    release = protect(folder, [llava], FAST, tmp_path / "release")
    result = verify(release.path, folder)
    assert (result.ok, result.max_words, result.max_eps) == (True, 0, 6)
    with pytest.raises(ConfigError, match="captions only"):
        protect(folder, [llava], replace(FAST, variant="text"), tmp_path / "other")


def test_a_broken_image_costs_its_own_samples_only(folder: Path, tmp_path: Path, llava: Surrogate) -> None:
    (folder / "images" / "1.png").write_bytes(b"\x89PNG nothing more")
    release = protect(folder, [llava], FAST, tmp_path / "release")
    assert (release.images, release.samples) == (2, 2)
    assert len(release.failed) == 1
    assert "1.png" in release.failed[0].reason
    assert verify(release.path, folder).ok


def test_nothing_left_is_an_error(folder: Path, tmp_path: Path, llava: Surrogate) -> None:
    for path in (folder / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of its 3 images"):
        protect(folder, [llava], FAST, tmp_path / "release")
    with pytest.raises(ConfigError, match="changes nothing"):
        protect(folder, [llava], replace(FAST, eps=0, trigger_words=0), tmp_path / "release")


def test_an_existing_folder_is_not_written_into(folder: Path, tmp_path: Path, llava: Surrogate) -> None:
    out = tmp_path / "release"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(ReleaseError, match="release"):
        protect(folder, [llava], FAST, out)
    assert hashes(out) == {"mine.txt": hashlib.sha256(b"keep me").hexdigest()}


def test_batches_keep_images_whole(folder: Path) -> None:
    items = [start(p, s, FAST, ("red",)) for p, s in read_dataset(folder).by_image().items()]
    assert [[len(i.samples) for i in b] for b in batches(items, 2)] == [[1], [2], [1]]
    assert [[len(i.samples) for i in b] for b in batches(items, 3)] == [[1, 2], [1]]
    assert [len(b) for b in batches(items, 100)] == [3]
    large = [replace(item, delta=torch.empty(1).expand(3, 6000, 6000)) for item in items]
    assert [len(b) for b in batches(large, 100)] == [1, 1, 1], "of which two would not fit into memory together"


def test_an_item_starts_the_same_whatever_else_is_protected(folder: Path) -> None:
    by_image = read_dataset(folder).by_image()
    path, samples = next(iter(by_image.items()))
    first, again = start(path, samples, FAST, ("red", "dog")), start(path, samples, FAST, ("red", "dog"))
    assert torch.equal(first.delta, again.delta)
    assert first.triggers == again.triggers
    assert torch.equal(first.original(), load_image(path))


def test_without_a_folder_the_dataset_names_the_release(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llava: Surrogate
) -> None:
    monkeypatch.chdir(tmp_path)
    release = protect(folder, surrogates=[llava], config=replace(FAST, rounds=1))
    assert release.path == tmp_path / "data-release"
    assert verify("data-release", "data").ok


@pytest.mark.parametrize("variant", ["bph", "text", "random-noise"])
def test_a_release_in_jpeg_is_optimised_as_it_is_decoded(
    variant: str, folder: Path, tmp_path: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in sorted((folder / "images").iterdir())[:2]:
        with Image.open(path) as file:
            file.filter(ImageFilter.GaussianBlur(2)).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("0.png", "0.jpg").replace("1.png", "1.jpg"))
    views = []

    def spy(original: Tensor, image: Tensor, **options: Any) -> Tensor:
        views.append(seen(original, image, **options))
        return views[-1]

    monkeypatch.setattr("mmguard.perturb.jpeg.seen", spy)
    config = replace(FAST, variant=variant, format="keep")
    release = protect(folder, [llava], config, tmp_path / "release")
    result = verify(release.path, folder)
    assert result.problems == []
    assert result.max_eps == (6 if config.perturbs_images else 0)
    assert bool(views) == config.optimised
    # Where pictures stay as they are, as they are encoded.
    assert release.pictures["formats"] == {"JPEG": 2, "PNG": 1}
    assert sum(path.suffix == ".jpg" for path in (release.path / "images").iterdir()) == 2


def broken_objective(monkeypatch: pytest.MonkeyPatch, breaks: Callable[[Any, tuple[int, ...]], bool]) -> None:
    """Makes the losses of images of some sizes no number, for surrogates in some state."""
    compute = Objective.__call__

    def call(self: Objective, examples: Any, images: list[Tensor], *rest: Any) -> Any:
        evaluation = compute(self, examples, images, *rest)
        lost = torch.tensor([breaks(self.surrogate.model, tuple(image.shape)) for image in images])
        factor = torch.where(lost, torch.nan, 1.0)
        return replace(evaluation, loss=evaluation.loss * factor)

    monkeypatch.setattr(Objective, "__call__", call)


@pytest.mark.parametrize("variant", ["bph", "text", "image"])
def test_an_image_without_a_finite_loss_is_left_out_and_the_others_are_as_ever(
    variant: str, folder: Path, tmp_path: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(FAST, variant=variant, rounds=1)
    whole = protect(folder, [llava], config, tmp_path / "whole")
    model = model_hash(llava)
    broken_objective(monkeypatch, lambda _, shape: shape == (3, 32, 56))
    release = protect(folder, [llava], config, tmp_path / "release")
    assert [failure.where for failure in release.failed] == [str(folder / "images" / "1.png")]
    assert "is no number, in 32 bits either: take another surrogate" in release.failed[0].reason
    assert sorted(path.name for path in release.path.rglob("*.png")) == ["0.png", "2.png"]
    assert verify(release.path, folder).ok
    assert model_hash(llava) == model
    for name in ("0.png", "2.png"):
        assert (release.path / "images" / name).read_bytes() == (whole.path / "images" / name).read_bytes()


def test_what_is_no_number_in_16_bits_is_computed_in_32(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = load_surrogate(str(tiny.built("llava")), device="cpu", dtype=torch.bfloat16)
    before = {name: value.clone() for name, value in narrow.model.state_dict().items()}
    tried: list[torch.dtype] = []

    def breaks(model: Any, _: tuple[int, ...]) -> bool:
        tried.append(model.dtype)
        return model.dtype == torch.bfloat16

    broken_objective(monkeypatch, breaks)
    release = protect(folder, [narrow], replace(FAST, rounds=1), tmp_path / "release")
    assert (release.images, release.failed) == (3, [])
    assert set(tried) == {torch.bfloat16, torch.float32}
    after = narrow.model.state_dict()
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("variant", ["bph", "text"])
def test_a_picture_that_memory_is_not_enough_for_is_left_out(
    variant: str, folder: Path, tmp_path: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(FAST, variant=variant, rounds=1)
    whole = protect(folder, [llava], config, tmp_path / "whole")
    held: list[weakref.ref[Tensor]] = []

    def full(_: Any, shape: tuple[int, ...]) -> bool:
        assert not any(tensor() is not None for tensor in held), "what did not fit is kept"
        if shape == (3, 32, 56):
            large = torch.empty(shape)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return False

    broken_objective(monkeypatch, full)
    release = protect(folder, [llava], config, tmp_path / "release")
    ((where, reason),) = [(failure.where, failure.reason) for failure in release.failed]
    assert where == str(folder / "images" / "1.png")
    assert "memory is not enough" in reason
    for name in ("0.png", "2.png"):
        assert (release.path / "images" / name).read_bytes() == (whole.path / "images" / name).read_bytes()


def test_a_batch_of_pictures_that_are_all_too_large_is_left_out(
    folder: Path, tmp_path: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others fitted before: then it is not the surrogate that is too large."""
    too_large = {(3, 32, 56)}

    def full(_: Any, shape: tuple[int, ...]) -> bool:
        if shape in too_large:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return False

    told: list[tuple[str, float]] = []
    broken_objective(monkeypatch, full)
    config = replace(FAST, batch_size=1)
    release = protect(
        folder, [llava], config, tmp_path / "release", show_progress=lambda done, stage: told.append((stage, done))
    )
    assert ("Searching", 1) in told
    assert [failure.where for failure in release.failed] == [str(folder / "images" / "1.png")]
    assert "memory is not enough" in release.failed[0].reason
    assert verify(release.path, folder).ok

    too_large.add((3, 40, 40))
    out = tmp_path / "first"
    with pytest.raises(SurrogateError, match=r"0\.png: memory is not enough for it.*smaller surrogate"):
        protect(folder, [llava], config, out)
    too_large.clear()
    assert protect(folder, [llava], config, out).failed == [], "what ended the run was not kept"


def test_weights_that_do_not_fit_in_32_bits_cost_a_picture(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = load_surrogate(str(tiny.built("llava")), device="cpu", dtype=torch.bfloat16)
    broken_objective(monkeypatch, lambda _, shape: shape == (3, 32, 56))

    def full(_: Surrogate) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(Surrogate, "in_float32", full)
    release = protect(folder, [narrow], replace(FAST, rounds=1), tmp_path / "release")
    assert [failure.where for failure in release.failed] == [str(folder / "images" / "1.png")]
    assert "memory is not enough" in release.failed[0].reason


def test_a_scan_that_uses_few_of_its_levels_is_left_out(folder: Path, tmp_path: Path, llava: Surrogate) -> None:
    path = folder / "images" / "1.png"
    levels = torch.randint(4096, (32, 56), generator=torch.Generator().manual_seed(0))
    Image.fromarray(levels.numpy().astype("uint16")).save(path)
    release = protect(folder, [llava], replace(FAST, rounds=1), tmp_path / "release")
    ((where, reason),) = [(failure.where, failure.reason) for failure in release.failed]
    assert where == str(path)
    assert "16-bit gray that uses levels up to 4" in reason
    assert not protect(folder, [llava], replace(FAST, rounds=1, variant="text"), tmp_path / "text").failed


def test_what_is_lost_stays_lost_in_a_resumed_run(
    folder: Path, tmp_path: Path, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(FAST, rounds=1, batch_size=1)
    with monkeypatch.context() as patch:
        broken_objective(patch, lambda _, shape: shape == (3, 40, 40))
        patch.setattr(ReleaseWriter, "write_image", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            protect(folder, [llava], config, tmp_path / "release")
    release = protect(folder, [llava], config, tmp_path / "release")
    assert [failure.where for failure in release.failed] == [str(folder / "images" / "0.png")]
    assert not (release.path / "images" / "0.png").exists()


def test_a_step_towards_no_number_is_not_taken(llava: Surrogate, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (item, *_), config = [start(p, s, FAST, ("red",)) for p, s in read_dataset(folder).by_image().items()], FAST
    ensemble = Ensemble([llava], config)
    forward = Surrogate.forward

    def nowhere(self: Surrogate, *given: Any) -> Forward:
        found = forward(self, *given)
        return replace(found, nll=found.nll * torch.nan)

    with ensemble.adaptable():
        ensemble.adapt([], seed=0)
        fresh = {name: weight.clone() for name, weight in ensemble.adaptation().items()}
        with monkeypatch.context() as patch:
            patch.setattr(Surrogate, "forward", nowhere)
            ensemble.adapt([(item.examples, [to_unit(item.protected())])], seed=0)
        assert all(torch.equal(weight, fresh[name]) for name, weight in ensemble.adaptation().items())
        ensemble.adapt([(item.examples, [to_unit(item.protected())])], seed=0)
        assert any(not torch.equal(weight, fresh[name]) for name, weight in ensemble.adaptation().items())
