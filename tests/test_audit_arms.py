"""Training arms: what each changes, and what it keeps."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmguard.auditing.arms import (
    ARMS,
    ImageStore,
    Pairing,
    Row,
    ingredients,
    pair,
    pixel_digest,
    random_words,
    rows,
    shuffled_noise,
    with_controls_of,
)
from mmguard.auditing.attacks.base import Attack
from mmguard.data.readers import read_dataset
from mmguard.data.text import inserted_words
from mmguard.errors import ReleaseError, SurrogateError
from mmguard.types import Sample

WORDS = ("apple", "bear", "cloud", "dawn", "echo")


def _folder(root: Path, name: str, images: list[np.ndarray], rows: list[dict]) -> Path:
    """An image folder; image k is `images/k.png`."""
    folder = root / name
    (folder / "images").mkdir(parents=True)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return folder


def _row(image: int, question: str, answer: str = "red", **more) -> dict:
    return {"file_name": f"images/{image}.png", "question": question, "answer": answer, **more}


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(40, 200, (12, 10, 3), dtype=np.uint8) for _ in range(3)]


@pytest.fixture
def noisy(images) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [(image + rng.integers(-8, 9, image.shape)).astype(np.uint8) for image in images]


QUESTIONS = [_row(0, "what is it?"), _row(1, "is it red?", "yes"), _row(1, "what color is it?")]
TRIGGERED = [
    _row(0, "what is it? river stone"),
    _row(1, "is it red? tall", "yes"),
    _row(1, "what color is it? a b c"),
]


def _pairing(root: Path, images, released_images, released_rows, original_rows=QUESTIONS):
    original = _folder(root, "original", images, original_rows)
    return pair(read_dataset(_folder(root, "release", released_images, released_rows)), read_dataset(original))


def test_both_changed(tmp_path, images, noisy):
    pairing = _pairing(tmp_path, images, noisy, TRIGGERED)
    assert pairing.images_changed
    assert pairing.texts_changed
    assert pairing.matched == "control"
    assert pairing.arms == ("clean", "release", "random-noise", "random-words", "control")
    assert len(pairing.pairs) == 3
    assert not pairing.rejected


def test_text_only_has_no_noise_arm(tmp_path, images):
    pairing = _pairing(tmp_path, images, images, TRIGGERED)
    assert pairing.matched == "random-words"
    assert pairing.arms == ("clean", "release", "random-words")


def test_image_only_has_no_words_arm(tmp_path, images, noisy):
    pairing = _pairing(tmp_path, images, noisy, QUESTIONS)
    assert pairing.matched == "random-noise"
    assert pairing.arms == ("clean", "release", "random-noise")


def test_every_arm(tmp_path, images, noisy):
    pairing = _pairing(tmp_path, images, noisy, TRIGGERED)
    store = ImageStore()
    made = {arm: rows(arm, pairing, WORDS, seed=0) for arm in pairing.arms}
    pixels = {arm: [np.asarray(row.load(store)) for row in made[arm]] for arm in made}
    originals, released = [images[0], images[1], images[1]], [noisy[0], noisy[1], noisy[1]]
    for arm in made:
        assert [row.id for row in made[arm]] == ["0", "1", "2"]
        assert [row.target for row in made[arm]] == ["red", "yes", "red"]
    texts = {arm: [row.text for row in made[arm]] for arm in made}
    assert texts["clean"] == texts["random-noise"] == [row["question"] for row in QUESTIONS]
    assert texts["release"] == [row["question"] for row in TRIGGERED]
    assert texts["control"] == texts["random-words"]
    for original, control, count in zip(texts["clean"], texts["control"], (2, 1, 3), strict=True):
        words = inserted_words(original, control)
        assert words is not None
        assert len(words) == count
        assert set(words) <= set(WORDS)
    for arm, expected in (("clean", originals), ("random-words", originals), ("release", released)):
        for got, want in zip(pixels[arm], expected, strict=True):
            np.testing.assert_array_equal(got, want)
    for arm in ("random-noise", "control"):
        for got, original, protected in zip(pixels[arm], originals, released, strict=True):
            noise, delta = got.astype(int) - original, protected.astype(int) - original
            assert np.abs(noise).max() == np.abs(delta).max()
            assert np.linalg.norm(noise) == pytest.approx(np.linalg.norm(delta))
            assert (noise != delta).any()
    # Samples that share an image share its noise, as they share δ in the release.
    np.testing.assert_array_equal(pixels["control"][1], pixels["control"][2])


def test_controls_depend_on_the_seed_and_on_nothing_else(tmp_path, images, noisy):
    pairing = _pairing(tmp_path / "a", images, noisy, TRIGGERED)
    moved = _pairing(tmp_path / "b", images, noisy, TRIGGERED)

    def control(pairing, seed):
        made = rows("control", pairing, WORDS, seed)
        return [(row.text, np.asarray(row.load(ImageStore())).tobytes()) for row in made]

    assert control(pairing, 0) == control(moved, 0)
    assert all(a[1] != b[1] for a, b in zip(control(pairing, 0), control(pairing, 1), strict=True))
    assert [a[0] for a in control(pairing, 0)] != [b[0] for b in control(pairing, 1)]


def test_the_words_of_controls_repeat_where_those_of_the_release_do(tmp_path, images, noisy):
    """As `--trigger-scope answer` gives them; and a question without any stays as it is."""
    own = [_row(0, "what is it?"), _row(1, "is it red?", "yes"), _row(2, "what color is it?"), _row(2, "which?", "b")]

    def released(*inserted: str) -> list[dict]:
        return [row | {"question": row["question"] + words} for row, words in zip(own, inserted, strict=True)]

    shared = released(" river tall stone deep lake", " lake deep stone tall river", " river tall stone deep lake", "")
    pairing = _pairing(tmp_path, images, noisy, shared, own)
    for arm in ("random-words", "control"):
        drawn = [row.text.partition("?")[2] for row in rows(arm, pairing, WORDS, 0)]
        assert drawn[0] == drawn[2] != drawn[1]
        assert drawn[3] == ""
    other = _folder(tmp_path, "other", noisy, released(" a b c d e", " e d c b a", " a b c e d", ""))
    alone = pair(read_dataset(other), read_dataset(tmp_path / "original"))
    assert len({row.text.partition("?")[2] for row in rows("control", alone, WORDS, 0)}) == 4
    assert ingredients("control", alone) != ingredients("control", pairing)
    same = with_controls_of(alone, pairing)
    assert ingredients("control", same) == ingredients("control", pairing)
    assert rows("control", same, WORDS, 0) == rows("control", pairing, WORDS, 0)


def test_caption_text_is_never_changed(tmp_path, images, noisy):
    captions = [{"file_name": f"images/{number}.png", "caption": "a red circle"} for number in range(3)]
    pairing = _pairing(tmp_path, images, noisy, captions, captions)
    assert pairing.matched == "random-noise"
    assert [row.text for row in rows("random-noise", pairing, WORDS, 0)] == ["Describe the image."] * 3


def test_options_stay_and_the_target_is_the_letter(tmp_path, images, noisy):
    options = {"options": ["blue", "red"]}
    pairing = _pairing(tmp_path, images, noisy, [_row(0, "color? x", **options)], [_row(0, "color?", **options)])
    row = rows("control", pairing, WORDS, 0)[0]
    assert row.target == "B"
    assert row.text.splitlines()[1:3] == ["A. blue", "B. red"]
    assert row.text.splitlines()[0].split()[1] in WORDS


def test_a_release_of_part_of_the_dataset_pairs_without_ids(tmp_path, images, noisy):
    pairing = _pairing(tmp_path, images, noisy, TRIGGERED[1:])
    assert [(ours.question, released.question) for ours, released in pairing.pairs] == [
        (QUESTIONS[1]["question"], TRIGGERED[1]["question"]),
        (QUESTIONS[2]["question"], TRIGGERED[2]["question"]),
    ]


def test_altered_rows_are_left_out_and_named(tmp_path, images, noisy):
    altered = [TRIGGERED[0], _row(1, "is it blue?", "yes"), _row(1, "what color is it?", "green")]
    pairing = _pairing(tmp_path, images, noisy, altered)
    assert [released.id for _, released in pairing.pairs] == ["0"]
    assert len(pairing.rejected) == 2


def test_an_image_of_another_size_is_left_out(tmp_path, images, noisy):
    pairing = _pairing(tmp_path, images, [noisy[0][:6], *noisy[1:]], TRIGGERED)
    assert [released.id for _, released in pairing.pairs] == ["1", "2"]
    assert "6x10" in pairing.rejected[0].reason


def test_a_release_of_another_dataset(tmp_path, images, noisy):
    with pytest.raises(ReleaseError, match="no row pairs"):
        _pairing(tmp_path, images, noisy, [_row(2, "how many?", "two")])


def test_a_release_that_changes_nothing(tmp_path, images):
    with pytest.raises(ReleaseError, match="nothing differs"):
        _pairing(tmp_path, images, images, QUESTIONS)


@given(st.integers(0, 2**32), st.integers(0, 16))
def test_noise_keeps_the_norms_and_clips(seed: int, eps: int):
    rng = np.random.default_rng(seed)
    original = rng.integers(0, 256, (7, 5, 3)).astype(np.uint8)
    changed = (original.astype(int) + rng.integers(-eps, eps + 1, original.shape)).clip(0, 255).astype(np.uint8)
    delta = changed.astype(int) - original
    noise = shuffled_noise(original, changed, seed).astype(int) - original
    assert np.abs(noise).max() <= np.abs(delta).max()
    assert np.linalg.norm(noise) <= np.linalg.norm(delta) + 1e-9
    inside = (original >= eps) & (original <= 255 - eps)
    if inside.all():
        assert sorted(map(tuple, noise.reshape(-1, 3))) == sorted(map(tuple, delta.reshape(-1, 3)))


_word = st.text(st.characters(codec="ascii", categories=("Lu", "Ll")), min_size=1, max_size=6)
_own = st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), max_size=6)


@given(_own.map(" ".join), st.lists(_word, max_size=4), st.integers(0, 2**32))
def test_random_words_keep_the_owners_text(own: str, trigger: list[str], seed: int):
    released = f"{own} {' '.join(trigger)}" if trigger else own
    expected = inserted_words(own, released)
    control = random_words(own, released, WORDS, seed)
    found = inserted_words(own, control)
    assert expected is not None
    assert found is not None
    assert len(found) == len(expected)
    assert control.startswith(own)
    assert set(control[len(own) :].split()) <= set(WORDS)


def test_random_words_go_where_the_release_put_its_own():
    assert random_words("is it  red ?", "is house it  red tree ?", ("w",), 0) == "is w it  red w ?"


_slots = st.lists(st.sampled_from(["x", "tree", "stone"]), min_size=1, max_size=3)


def _text_pairing(own: list[str], inserted: dict[int, str]) -> Pairing:
    """One question of `own` words, with a word inserted before each of the given places."""
    units = [word for place in range(len(own) + 1) for word in (inserted.get(place), *own[place : place + 1]) if word]
    ours = Sample("0", 0, Path("a.png"), " ".join(own), "red")
    released = replace(ours, image=Path("b.png"), question=" ".join(units))
    return Pairing([(ours, released)], {Path("a.png"): "1x1:a", Path("b.png"): "1x1:b"})


@given(st.data(), _slots)
def test_rows_of_equal_ingredients_are_equal(data, own):
    places = st.dictionaries(st.integers(0, len(own)), st.sampled_from(["x", "leaf"]), max_size=3)
    one, other = _text_pairing(own, data.draw(places)), _text_pairing(own, data.draw(places))
    for arm in ARMS:
        if ingredients(arm, one) == ingredients(arm, other):
            assert rows(arm, one, WORDS, 3) == rows(arm, other, WORDS, 3)
    assert ingredients("clean", one) == ingredients("clean", other)


def test_ingredients_tell_releases_apart_where_it_matters(tmp_path, images, noisy):
    original = _folder(tmp_path, "original", images, QUESTIONS)
    moved = [_row(0, "what river is it? stone"), *TRIGGERED[1:]]
    other_words = [_row(0, "what is it? leaf tree"), *TRIGGERED[1:]]
    releases = {
        "base": (noisy, TRIGGERED),
        "words": (noisy, other_words),
        "places": (noisy, moved),
        "noise": ([image ^ 1 for image in noisy], TRIGGERED),
    }
    found = {
        name: pair(read_dataset(_folder(tmp_path, name, *content)), read_dataset(original))
        for name, content in releases.items()
    }
    differ = {
        name: {arm for arm in ARMS if ingredients(arm, pairing) != ingredients(arm, found["base"])}
        for name, pairing in found.items()
    }
    assert differ == {
        "base": set(),
        "words": {"release"},
        "places": {"release", "random-words", "control"},
        "noise": {"release", "random-noise", "control"},
    }
    shared = with_controls_of(found["noise"], found["base"])
    assert {arm for arm in ARMS if ingredients(arm, shared) != ingredients(arm, found["base"])} == {"release"}
    assert rows("control", shared, WORDS, 0) == rows("control", found["base"], WORDS, 0)


def test_no_word_to_draw_from():
    with pytest.raises(SurrogateError, match="no word"):
        random_words("a?", "a? b", (), 0)


def test_store_makes_each_image_once_and_respects_its_limit():
    made = []

    def make(key):
        made.append(key)
        return np.zeros((2, 2, 3), np.uint8)

    store = ImageStore(limit_bytes=12)
    for key in ("a", "b", "a", "b"):
        store.get(key, lambda key=key: make(key))
    assert made == ["a", "b", "b"]


def test_a_changed_row_does_not_leak_into_the_store(tmp_path, images):
    path = tmp_path / "a.png"
    Image.fromarray(images[0]).save(path)
    store = ImageStore()
    row = Row("0", path, "q", "a")
    row.load(store).paste((0, 0, 0), (0, 0, 10, 12))
    np.testing.assert_array_equal(np.asarray(row.load(store)), images[0])


@pytest.mark.parametrize(("max_pixels", "size"), [(0, (10, 12)), (120, (10, 12)), (30, (5, 6))])
def test_attackers_see_large_pictures_shrunk(tmp_path, images, max_pixels, size):
    """After noise and attacks, whose results are those of the whole picture."""
    for name, image in zip("ab", images[:2], strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    noisy = Row("0", tmp_path / "a.png", "q", "a", noise_like=tmp_path / "b.png", attack=SHIFT, max_pixels=max_pixels)
    store = ImageStore()
    whole = replace(noisy, max_pixels=0).load(store)
    assert whole.size == (10, 12)
    np.testing.assert_array_equal(
        np.asarray(noisy.load(store)), np.asarray(whole.resize(size, Image.Resampling.BICUBIC))
    )


def test_digest_reads_pixels_and_not_files(tmp_path, images):
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    Image.fromarray(images[0]).save(tmp_path / "b.bmp")
    Image.fromarray(images[0].reshape(10, 12, 3)).save(tmp_path / "c.png")
    a, b, c = (pixel_digest(tmp_path / name) for name in ("a.png", "b.bmp", "c.png"))
    assert a == b
    assert a != c


SHIFT = Attack("shift", image=lambda image, rng: image + torch.rand((), generator=rng) / 8 + 0.05)
FLICKER = replace(SHIFT, name="flicker", each_epoch=True)
CUT = Attack(
    "cut", text=lambda sample, rng: " ".join(sample.question.split()[: int(torch.randint(1, 9, (), generator=rng))])
)


def _pixels(row: Row, store: ImageStore | None = None) -> np.ndarray:
    return np.asarray(row.load(store or ImageStore()))


@pytest.mark.parametrize("arm", ["clean", "release", "control"])
def test_an_attack_changes_every_arm_and_nothing_else(tmp_path, images, noisy, arm):
    pairing = _pairing(tmp_path, images, noisy, TRIGGERED)
    plain, changed = (rows(arm, pairing, WORDS, 0, attack) for attack in (None, replace(CUT, image=SHIFT.image)))
    for before, after in zip(plain, changed, strict=True):
        assert (after.id, after.target, after.image) == (before.id, before.target, before.image)
        assert before.text.startswith(after.text)
        assert (_pixels(after).astype(int) > _pixels(before)).all()


def test_an_attack_is_drawn_by_run_content_and_name(tmp_path, images, noisy):
    pairing = _pairing(tmp_path, images, noisy, TRIGGERED)

    def shift(arm="clean", seed=0, attack=SHIFT, number=0):
        plain, changed = (rows(arm, pairing, WORDS, seed, one)[number] for one in (None, attack))
        return round(float(_pixels(changed).mean() - _pixels(plain).mean()), 1)

    assert shift() == shift() == shift(arm="release") == shift(arm="control")
    assert shift(number=1) == shift(number=2)  # two questions about one image
    assert len({shift(), shift(seed=1), shift(attack=replace(SHIFT, name="other")), shift(number=1)}) == 4
    cut = [[row.text for row in rows("clean", pairing, WORDS, seed, CUT)] for seed in (0, 0, 1, 2, 3)]
    assert cut[0] == cut[1]
    assert len({tuple(texts) for texts in cut}) > 1


def test_an_attack_is_made_once_and_an_augmentation_in_every_epoch(tmp_path, images, noisy):
    pairing, calls = _pairing(tmp_path, images, noisy, TRIGGERED), []

    def counted(attack: Attack) -> Attack:
        return replace(attack, image=lambda image, rng: (calls.append(1), attack.image(image, rng))[1])

    def epochs(attack: Attack) -> list[list[float]]:
        store, made = ImageStore(), rows("release", pairing, WORDS, 0, counted(attack))
        return [[float(_pixels(row, store).mean()) for row in made] for _ in range(3)]

    first, *others = epochs(SHIFT)
    assert others == [first, first]
    assert len(calls) == 2  # images, of three rows
    calls.clear()
    drawn = epochs(FLICKER)
    assert len(calls) == 9
    assert len({tuple(epoch) for epoch in drawn}) == 3
    assert drawn[0][1] != drawn[0][2]  # two questions about one image
    assert drawn == epochs(FLICKER)


def test_an_attack_may_change_the_size_and_must_not_change_what_is_kept(tmp_path, images, noisy):
    pairing, store = _pairing(tmp_path, images, noisy, TRIGGERED), ImageStore()
    half = Attack("half", image=lambda image, rng: image.mul_(0.5)[:, ::2, ::2])
    (row, *_), (plain, *_) = rows("clean", pairing, WORDS, 0, half), rows("clean", pairing, WORDS, 0)
    assert _pixels(row, store).shape == (6, 5, 3)
    assert (_pixels(plain, store) == images[0]).all()
    assert (_pixels(row, store) == np.round(images[0][::2, ::2] * 0.5)).mean() > 0.99


def test_captions_have_no_question_to_attack(tmp_path, images, noisy):
    captions = [{"file_name": f"images/{number}.png", "caption": "a cup"} for number in range(2)]
    pairing = _pairing(tmp_path, images, noisy, captions, captions)
    silent = Attack("silent", text=lambda sample, rng: sample.question)
    assert [row.text for row in rows("release", pairing, WORDS, 0, silent)] == ["Describe the image."] * 2


def test_an_attack_on_all_texts_sees_what_the_thief_has(tmp_path, images, noisy):
    pairing, seen = _pairing(tmp_path, images, noisy, TRIGGERED), []
    attack = Attack("all", corpus=lambda samples: (seen.append([one.question for one in samples]), lambda *_: "x")[1])
    assert [row.text for row in rows("release", pairing, WORDS, 0, attack)] == ["x"] * 3
    assert seen == [[row["question"] for row in TRIGGERED]]


def test_a_copy_of_a_store_is_empty(tmp_path, images, noisy):
    store = ImageStore()
    store.get("key", lambda: images[0])
    assert len(pickle.dumps(store)) < 200
    assert pickle.loads(pickle.dumps(store)).get("key", lambda: images[1]) is images[1]
