"""ADE20K with the 150 classes of the scene parsing challenge (Zhou et al., CVPR 2017)."""

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from mobilemamba.data.layout import find_parts
from mobilemamba.data.masks import IGNORED_NAME, ClassList, class_list
from mobilemamba.data.paired_pictures import PairedPictures

_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard,
chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway,
case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine,
hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television, airplane, dirt
track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain,
conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike,
cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen,
blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor,
bulletin board, shower, radiator, glass, clock, flag
"""


class ADE20K(PairedPictures):
    """ADEChallengeData2016: ``root/images/{training,validation}/`` and ``root/annotations/{training,validation}/``.

    20,210 training and 2,000 validation pictures of scenes, in the layout of the official download. In the annotations,
    0 means no class and does not count; 1 to 150 are the classes. Augmentation and scaling are those of the paper.

    Args:
        **options: Arguments of :class:`~mobilemamba.data.paired_pictures.PairedPictures`.
    """

    title: ClassVar[str] = "ADE20K"
    masks_folder: ClassVar[str] = "annotations"
    masks_may_be_empty: ClassVar[bool] = True
    antialias = False

    @classmethod
    def is_root(cls, root: Path) -> bool:
        """Whether a folder looks like a ``root``, with parts in ``annotations/``, as other data sets use that name."""
        return super().is_root(root) and bool(find_parts(root / cls.masks_folder))

    @cached_property
    def classes(self) -> ClassList:
        names = [name.strip() for name in _NAMES.replace("\n", " ").split(", ")]
        return class_list([(IGNORED_NAME, None), *((name, None) for name in names)], ignore=255)
