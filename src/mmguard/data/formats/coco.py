"""COCO captions: one JSON object with `images` and `annotations`, of which each is a caption of one image.

The file may lie in `annotations/`, with the images beside that folder, as the original download does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmguard.data.formats.base import Format, Released, by_place, directly, is_object, json_like, target, write_text
from mmguard.data.sources import Row, Source, read_bytes, read_text
from mmguard.errors import DataError
from mmguard.types import Dataset, Rejection

_MARKS = (b'"images"', b'"annotations"', b'"caption"')


def read(folder: Path, files: Sequence[Path]) -> Source:
    """A row a caption: the annotation, the `file_name` of its image, and the rest of the image's entry as `image`.

    An image without a caption becomes a `Rejection`.

    Raises:
        DataError: not valid JSON, or without lists of images and annotations.
    """
    (file,) = files
    content = _content(file)
    images: dict[str | float, list[Row]] = {}
    for image in content["images"]:
        if (name := _id(image, "id")) is not None:
            images.setdefault(name, []).append(image)
    rows = [(_place(file, n), _row(_place(file, n), entry, images)) for n, entry in enumerate(content["annotations"])]
    described = {_id(entry, "image_id") for entry in content["annotations"]}
    for number, image in enumerate(content["images"]):
        if _id(image, "id") not in described:
            place = f"{file.name} images[{number}]"
            rows.append((place, Rejection(place, "no annotation describes it: give it a caption, or remove it")))
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    part = file.stem.partition("_")[2]  # captions_train2017.json describes train2017/
    fallbacks = ("images", *((part, f"images/{part}") if part else ()))
    return Source(str(file), root, "file_name", rows, fallbacks, "coco", (file,))


def write(dataset: Dataset, released: Sequence[Released], out: Path) -> None:
    """The same object less captions that are not released, and less images without any."""
    (file,) = dataset.files
    content, kept = _content(file), by_place(released)
    annotations = [(_place(file, number), entry) for number, entry in enumerate(content["annotations"])]
    content["annotations"] = [entry for place, entry in annotations if place in kept]
    names = {entry["image_id"]: kept[place].row["file_name"] for place, entry in annotations if place in kept}
    content["images"] = [
        {**image, "file_name": names[image["id"]]} for image in content["images"] if _id(image, "id") in names
    ]
    write_text(target(dataset, file, out), json_like(file, content))


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON ({error}): correct the file") from error
    if not all(isinstance(content.get(name), list) for name in ("images", "annotations")):
        raise DataError(f"{file}: `images` and `annotations` are not both lists: give COCO captions")
    return content


def _place(file: Path, number: int) -> str:
    return f"{file.name} annotations[{number}]"


def _id(entry: Any, field: str) -> str | float | None:
    """The id in a field of an image or annotation; None if there is nothing that could be one."""
    value = entry.get(field) if isinstance(entry, dict) else None
    return value if isinstance(value, (str, int, float)) else None


def _row(place: str, annotation: Any, images: Mapping[str | float, Sequence[Row]]) -> Row | Rejection:
    """A caption with its image; `images` has those of each id."""
    if not isinstance(annotation, dict):
        return Rejection(place, "is no JSON object: correct or remove it")
    name = _id(annotation, "image_id")
    found = images.get(name, ()) if name is not None else ()
    if not found:
        return Rejection(place, f"no image has the id {annotation.get('image_id')!r}: correct its `image_id`")
    if len(found) > 1:
        return Rejection(place, f"{len(found)} images have the id {name!r}: give each its own")
    (image,) = found
    rest = {field: value for field, value in image.items() if field != "file_name"}
    return {**annotation, "file_name": image.get("file_name"), "image": rest}


def _find(folder: Path) -> list[Path]:
    return [file for place in (folder, folder / "annotations") for file in directly(is_coco)(place)]


def is_coco(path: Path) -> bool:
    """Whether a JSON file is an object with captions, not a list; an object of another kind is somebody else's.

    Raises:
        DataError: it cannot be read.
    """
    if path.suffix.lower() != ".json":
        return False
    content = read_bytes(path)
    return is_object(content) and all(mark in content for mark in _MARKS)


FORMAT = Format(
    name="coco",
    described="a COCO captions JSON (or a folder with one in annotations/)",
    find=_find,
    accepts=is_coco,
    read=read,
    write=write,
    loads=None,
)
