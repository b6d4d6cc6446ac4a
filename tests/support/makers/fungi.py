"""fungi_train_val.tgz and train_val_annotations.tgz with one or two pictures of each of their 1394 classes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.makers.paint import Colour, Made, all_classes, colour, jpeg, tar


def make(folder: Path) -> Made:
    names = all_classes("fungi")
    spaced = {154, 213}  # published with a blank at the end
    categories = [
        {"id": place, "name": name[5:] + " " * (place in spaced), "supercategory": "Fungi"}
        for place, name in enumerate(names)
    ]
    pictures = [(place, "train") for place in range(len(names))] + [(place, "val") for place in range(0, 1394, 20)]
    files: dict[str, bytes] = {}
    parts: dict[str, dict[str, list[Any]]] = {part: {"images": [], "annotations": []} for part in ("train", "val")}
    colours: dict[str, list[Colour]] = {name: [] for name in names}
    for number, (place, part) in enumerate(pictures):
        file = f"images/{10000 + number}.JPG"
        files[file] = jpeg(colour(number))
        parts[part]["images"].append({"id": number, "file_name": file, "width": 8, "height": 8})
        parts[part]["annotations"].append({"id": 90000 - number, "image_id": number, "category_id": place})
        colours[names[place]].append(colour(number))
    for at, (part, about) in enumerate(parts.items()):
        random.Random(at).shuffle(about["annotations"])  # they are told by number, not by place
        text = json.dumps({"info": {"year": 2018}, "categories": categories, **about})
        parts[part]["text"] = [text.encode()]
    tar(folder / "fungi_train_val.tgz", files)
    tar(folder / "train_val_annotations.tgz", {f"{part}.json": about["text"][0] for part, about in parts.items()})
    return Made({"images": len(pictures), "size": 8}, colours)
