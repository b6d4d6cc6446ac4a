"""CUB_200_2011.tgz with one or two pictures of each of its 200 classes, and the 43 that are in ImageNet too."""

from __future__ import annotations

from pathlib import Path

from support.makers.paint import Colour, Made, all_classes, colour, jpeg, tar

SIZE, BOX = (32, 24), (8, 8, 24, 16)


def make(folder: Path) -> Made:
    files: dict[str, bytes] = {"attributes.txt": b"1 has_bill_shape::curved_(up_or_down)\n"}
    images, boxes, number = [], [], 0
    colours: dict[str, list[Colour]] = {}
    copies = all_classes("cub_imagenet_copies")
    for place, name in enumerate(all_classes("cub_140")):
        bird = name.partition(".")[2]
        pictures = [f"{bird}_{each:04d}_{1000 + place}.jpg" for each in range(1, 2 + place % 2)]
        pictures += [copy for copy in copies if copy.rsplit("_", 2)[0].lower() == bird.lower()]
        colours[name] = [colour(number + each) for each in range(len(pictures))]
        for picture, paint in zip(sorted(pictures), colours[name], strict=True):
            number += 1
            files[f"CUB_200_2011/images/{name}/{picture}"] = jpeg(paint, SIZE, BOX)
            images.append(f"{number} {name}/{picture}\n")
            boxes.append(f"{number} {BOX[0]}.0 {BOX[1]}.0 {BOX[2] - BOX[0]}.0 {BOX[3] - BOX[1]}.0\n")
    files["CUB_200_2011/images.txt"] = "".join(images).encode()
    files["CUB_200_2011/bounding_boxes.txt"] = "".join(boxes).encode()
    files["CUB_200_2011/README"] = b"Caltech-UCSD Birds-200-2011\n"
    tar(folder / "CUB_200_2011.tgz", files)
    return Made({"images": number, "size": 8, "crop": "bounding_box"}, colours)
