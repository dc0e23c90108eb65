# SPDX-License-Identifier: Apache-2.0
"""Where tuples come from: meshes, procedural worlds and photos, split between training and
validation. What is held out (worlds by name, every eighth photo) is seen in validation only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.images import UnreadableImageError, image_files, read_image
from mv_matcher_ros.worlds import places
from mv_matcher_ros.worlds.mesh import MeshWorld, load_mesh
from mv_matcher_ros.worlds.mipmaps import Pixels
from mv_matcher_ros.worlds.pictures import hang_pictures, retextured, roofed

Split = Literal['train', 'val']
SPLITS: tuple[Split, ...] = ('train', 'val')
_NUMBER_OF_SPLIT = {'train': 0, 'val': 1}
# Photo n is held out where n % 8 is 7.
_EVERY, _HELD = 8, 7
# Shares of the kinds among tuples. A photo alone is a homography, several are a piecewise one.
_SHARES = {'mesh': 11, 'room': 2, 'corridor': 2, 'street': 1, 'photo': 2, 'photos': 2}
_VALIDATION = ('mesh', 'photo', 'photos')
# In training a shard's meshes have this share of their textures replaced by parts of photos.
_RETEXTURED = (0.0, 0.2, 0.4, 0.6)
_PICTURES = (80, 160, 320)


@dataclass(frozen=True)
class TupleSources:
    """What there is to render.

    Attributes:
        worlds: .glb files, training and held out.
        photos: image files, in order.
        held_out: names (without .glb) of the worlds for validation.
        procedural: whether rooms, corridors and streets made by the program are used in training.
    """

    worlds: tuple[Path, ...]
    photos: tuple[Path, ...]
    held_out: tuple[str, ...] = ()
    procedural: bool = True

    @classmethod
    def find(
        cls,
        worlds: Path | None,
        photos: Path | None,
        held_out: Sequence[str] = (),
        procedural: bool = True,
    ) -> TupleSources:
        """The sources in two folders.

        Raises:
            SourceError: a folder without what it should hold, a held-out world that is not there,
                or nothing to train on.
        """
        found = () if worlds is None else tuple(sorted(worlds.glob('*.glb')))
        if worlds is not None and not found:
            raise SourceError(f'{worlds}: no .glb file in this folder')
        images = () if photos is None else tuple(image_files(photos))
        if photos is not None and not images:
            raise SourceError(f'{photos}: no images in this folder')
        names = [path.stem for path in found]
        for name in held_out:
            if name not in names:
                raise SourceError(
                    f'held-out world "{name}": there is {", ".join(names) or "none"}'
                )
        sources = cls(found, images, tuple(held_out), procedural)
        if not sources.kinds('train'):
            raise SourceError('no world is left to train on: hold out fewer, or give photos')
        return sources

    def worlds_of(self, split: Split) -> tuple[Path, ...]:
        """The .glb files of one side."""
        return tuple(p for p in self.worlds if (p.stem in self.held_out) == (split == 'val'))

    def photos_of(self, split: Split) -> tuple[Path, ...]:
        """The photos of one side."""
        return tuple(
            p for i, p in enumerate(self.photos) if (i % _EVERY == _HELD) == (split == 'val')
        )

    def kinds(self, split: Split) -> tuple[str, ...]:
        """Kinds of tuples that a side has, each as often as its share says, mixed."""
        kept = {}
        for kind, share in _SHARES.items():
            there = {'mesh': self.worlds_of(split), 'photo': self.photos_of(split)}
            there['photos'] = there['photo']
            is_there = bool(there[kind]) if kind in there else self.procedural
            if is_there and (split == 'train' or kind in _VALIDATION):
                kept[kind] = share
        spread = [((i + 0.5) / share, kind) for kind, share in kept.items() for i in range(share)]
        return tuple(kind for _, kind in sorted(spread))

    def place(
        self, split: Split, shard: int, number: int, rng: np.random.Generator
    ) -> places.Place:
        """The place of tuple `number` in a shard. Places are furnished anew from shard to shard.

        Raises:
            SourceError: a world or photo cannot be read.
        """
        kinds = self.kinds(split)
        kind = kinds[number % len(kinds)]
        seed = 2 * shard + _NUMBER_OF_SPLIT[split]
        if kind == 'room':
            return places.room_place(seed)
        if kind == 'corridor':
            return places.corridor_place(seed)
        if kind == 'street':
            return places.street_place(seed)
        photos = self.photos_of(split)
        if kind == 'mesh':
            meshes = self.worlds_of(split)
            # Few worlds a shard: furnishing one takes longer than rendering a tuple.
            path = meshes[(number // len(kinds) + shard) % len(meshes)]
            return places.MeshPlace(_furnished(path, photos, seed, split == 'train'))
        planes = 1 if kind == 'photo' else int(rng.integers(2, 6))
        return places.photo_place(_read_photos(photos), planes, rng)


@lru_cache(maxsize=2)
def _furnished(path: Path, photos: tuple[Path, ...], seed: int, varied: bool) -> MeshWorld:
    """A mesh with a ceiling, pictures of the photos and, if varied, other textures."""
    rng = np.random.default_rng((seed, 17))
    world = roofed(_mesh(path), rng)
    if not photos:
        return world
    images = _read_photos(photos)
    world = hang_pictures(world, images, int(rng.choice(_PICTURES)), rng)
    return retextured(world, images, float(rng.choice(_RETEXTURED)), rng) if varied else world


@lru_cache(maxsize=4)
def _mesh(path: Path) -> MeshWorld:
    return load_mesh(path)


def read_photo(path: Path) -> Pixels:
    """(H, W) or (H, W, 3) uint8 BGR.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return np.asarray(read_image(path), np.uint8)
    except UnreadableImageError as error:
        raise SourceError(f'photo {error}: take it out of the folder') from None


@lru_cache(maxsize=2)
def _read_photos(paths: tuple[Path, ...]) -> tuple[Pixels, ...]:
    """(H, W, 3) uint8 BGR each."""
    found = []
    for path in paths:
        image = read_photo(path)
        if image.ndim == 2:
            image = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8)
        found.append(np.array(image, np.uint8))
    return tuple(found)
