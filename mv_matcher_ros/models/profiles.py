# SPDX-License-Identifier: Apache-2.0
"""What a network looks like: stored with its weights, and enough to build it again.

Settings of the user stand in `config.py`; a profile belongs to a file of weights.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mv_matcher_ros.config import Section

# A profile comes with a file of weights, so from anyone: what it asks for has an end.
MOST = 4096  # channels, or numbers of a descriptor
MOST_HEADS, MOST_BLOCKS, MOST_ROUNDS = 64, 64, 16
Width = Annotated[int, Field(ge=1, le=MOST)]


class MatcherProfile(Section):
    """A multi-view graph matcher."""

    descriptor_size: int = Field(
        128, ge=1, le=MOST, description='Width of the descriptors it takes.'
    )
    width: int = Field(128, ge=8, le=MOST, description='Width of a keypoint in the graph.')
    attention_size: int = Field(
        64, ge=8, le=MOST, description='Width of queries, keys and values.'
    )
    heads: int = Field(
        2, ge=1, le=MOST_HEADS, description='Attention heads; they share the attention size.'
    )
    block: tuple[Literal['self', 'cross'], ...] = Field(
        ('self', 'cross'), max_length=MOST_ROUNDS, description='Layers that are repeated.'
    )
    blocks: int = Field(
        5, ge=1, le=MOST_BLOCKS, description='How often the layers of a block are repeated.'
    )
    encoder: tuple[Width, ...] = Field(
        (32, 64, 128), max_length=MOST_ROUNDS, description='Hidden widths of the keypoint encoder.'
    )
    uses_scores: bool = Field(True, description='The keypoint encoder sees detection scores.')
    normalised: bool = Field(
        True, description='Layer norm in the perceptrons; without it for public checkpoints.'
    )
    sinkhorn: Literal['log', 'kernel'] = Field('kernel', description='Form of the iterations.')
    iterations: int = Field(
        10, ge=1, le=1000, description='Sinkhorn iterations, in training and at run.'
    )
    threshold: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description='Smallest probability of a match; 0 takes all mutual ones.',
    )
    confidence_size: int = Field(
        64,
        ge=0,
        le=MOST,
        description='Width of the confidence head; 0: the probability is the confidence.',
    )
    consensus: int = Field(
        2,
        ge=0,
        le=MOST_ROUNDS,
        description='Rounds in which matches listen to their neighbours; 0: none.',
    )
    neighbours: int = Field(
        10, ge=1, le=MOST, description='Nearest matches that a match listens to.'
    )
    looks: int = Field(
        2,
        ge=1,
        le=MOST_ROUNDS,
        description='How often scores are made, from the second time on with neighbours.',
    )
    geometry: bool = Field(True, description='Known relative poses enter attention and scores.')

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers in order."""
        return self.block * self.blocks


MATCHERS: dict[str, MatcherProfile] = {
    'light': MatcherProfile(),
    'full': MatcherProfile(
        descriptor_size=256,
        width=256,
        attention_size=256,
        heads=4,
        block=('self', 'cross', 'cross', 'cross'),
        blocks=7,
        encoder=(32, 64, 128, 256),
        confidence_size=256,
        iterations=20,
    ),
    # The released SuperGlue, its batch norms folded into the layers before them.
    'superglue': MatcherProfile(
        descriptor_size=256,
        width=256,
        attention_size=256,
        heads=4,
        blocks=9,
        encoder=(32, 64, 128, 256),
        normalised=False,
        sinkhorn='log',
        iterations=100,
        threshold=0.2,
        confidence_size=0,
        consensus=0,
        looks=1,
        geometry=False,
    ),
}


class DetectorProfile(Section):
    """A network that finds and describes keypoints."""

    widths: tuple[Width, Width, Width, Width] = Field(
        (16, 24, 48, 64), description='Channels at full, half, quarter and eighth resolution.'
    )
    head_width: int = Field(128, ge=8, le=MOST, description='Hidden channels of the heads.')
    detail_width: int = Field(
        64, ge=0, le=MOST, description='Channels of half the resolution that scores see; 0: none.'
    )
    descriptor_size: int = Field(128, ge=8, le=MOST, description='Width of the descriptors.')
    nms_radius: int = Field(4, ge=0, le=64, description='Keypoints keep this distance, pixels.')
    nms_rounds: int = Field(
        1, ge=0, le=5, description='Rounds that bring back maxima whose suppressor was suppressed.'
    )
    threshold: float = Field(0.005, ge=0.0, le=1.0, description='Smallest score of a keypoint.')
    subpixel: Literal['none', 'quadratic', 'learned'] = Field(
        'learned',
        description='Keypoints between pixels: not, by the shape of the score, or by a head.',
    )
    sampling: Literal['exact', 'released'] = Field(
        'exact',
        description='Descriptors where keypoints are, or as the released SuperPoint reads them.',
    )
    unrelated_similarity: float = Field(
        0.5,
        ge=-1.0,
        le=1.0,
        description='Similarity of the best of many unrelated descriptors; measured in training.',
    )
    sigma_px: float = Field(
        0.7,
        gt=0.0,
        le=100.0,
        description='Localisation error of a keypoint where no head says it.',
    )


DETECTORS: dict[str, DetectorProfile] = {
    'light': DetectorProfile(),
    'full': DetectorProfile(widths=(64, 64, 128, 128), head_width=256, descriptor_size=256),
    'superpoint': DetectorProfile(
        widths=(64, 64, 128, 128),
        head_width=256,
        detail_width=0,
        descriptor_size=256,
        nms_rounds=2,
        subpixel='none',
        sampling='released',
    ),
}


class PlaceProfile(Section):
    """A network that describes a place by the local features of one image."""

    descriptor_size: int = Field(
        128, ge=1, le=MOST, description='Width of the descriptors it takes.'
    )
    words: int = Field(24, ge=1, le=MOST, description='Words whose residuals are summed.')
    sharpness: float = Field(
        30.0, gt=0.0, le=1e4, description='Of the choice of a word, per difference of nearness.'
    )
    size: int = Field(256, ge=1, le=MOST, description='Numbers of a descriptor of a place.')
    keypoints: int = Field(400, ge=1, le=65536, description='Strongest keypoints that take part.')


class PointProfile(Section):
    """A network that infers depths of keypoints from those of others."""

    descriptor_size: int = Field(
        128, ge=1, le=MOST, description='Width of the descriptors it takes.'
    )
    width: int = Field(128, ge=8, le=MOST, description='Width of a keypoint.')
    attention_size: int = Field(
        64, ge=8, le=MOST, description='Width of queries, keys and values.'
    )
    heads: int = Field(
        4, ge=1, le=MOST_HEADS, description='Attention heads; they share the attention size.'
    )
    rounds: int = Field(
        3,
        ge=0,
        le=MOST_ROUNDS,
        description='Rounds: known keypoints hear each other, all hear the known ones.',
    )
    hypotheses: int = Field(
        4, ge=1, le=MOST, description='Planes through neighbours of which a keypoint chooses.'
    )


POINTS: dict[str, PointProfile] = {'light': PointProfile()}
