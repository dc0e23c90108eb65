# SPDX-License-Identifier: Apache-2.0
"""Which frames of a recording are worth learning from: clips with parallax and overlap.

Points are followed by optical flow from one chosen frame to the next. A frame is chosen once they
have moved far enough by translation, or once too few of them are left. Clips are runs of chosen
frames in which the camera translated; the last part of the recording is for judging.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Camera, Frame, Rig
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.geometry.camera import camera_normalise
from mv_matcher_ros.geometry.epipolar import homogeneous
from mv_matcher_ros.geometry.homography import rotation_from_matches
from mv_matcher_ros.models.classical import working_image, working_size
from mv_matcher_ros.odometry.flow import there_and_back
from mv_matcher_ros.training.adaptation.settings import ClipSettings

# Frames nearer together than this are passed over: 15 a second are enough to follow points.
STEP_NS = 60_000_000
POINTS = 300
FEWEST_POINTS = 40
# A chain of chosen frames ends where fewer points than this share can be followed to the next.
LOST_SHARE = 0.25
# Of the share of an image's contrast between neighbours that is left after blurring it (Crete).
BLURRED = 0.58
REFERENCE_WIDTH = 640
# Quantile of the motions that counts: what is far away hardly moves, however the camera does.
NEARER = 0.75
# Links between the views of a clip in which points move this far, and the share of them needed.
MOVING_PX = 1.5
MOVING_SHARE = 0.7
# Clips that judge, at most: more make no mean much better.
MOST_JUDGES = 40


@dataclass(frozen=True)
class Chosen:
    """A chosen frame.

    Attributes:
        index: of the frame; stamp_ns: its stamp.
        chain: frames of one chain follow each other without a break.
        moved_px: motion of the nearer points by translation since the chosen frame before, at
            640 px width.
        blur: `blur_effect` of the image.
    """

    index: int
    stamp_ns: int
    chain: int
    moved_px: float
    blur: float


@dataclass
class Survey:
    """What was found on the way through a recording.

    Attributes:
        chosen: in order of time.
        frames: how many were looked at; dark: of them without contrast.
    """

    chosen: list[Chosen] = field(default_factory=list)
    frames: int = 0
    dark: int = 0

    @property
    def moved_px(self) -> float:
        """Sum of the motions by translation between chosen frames."""
        return sum(frame.moved_px for frame in self.chosen)


@dataclass(frozen=True)
class ClipPlan:
    """Indices of the frames of clips: those that teach and those that judge."""

    teach: tuple[tuple[int, ...], ...]
    judge: tuple[tuple[int, ...], ...]

    @property
    def frames(self) -> set[int]:
        """All of them."""
        return {index for clip in (*self.teach, *self.judge) for index in clip}


class Surveyor:
    """Chooses frames, one after another."""

    def __init__(
        self, settings: ClipSettings, rig: Rig, working_pixels: int, min_contrast: float
    ) -> None:
        self._settings = settings
        self._working_pixels, self._min_contrast = working_pixels, min_contrast
        camera = rig.cameras[0]
        self._camera = camera.resized(*working_size((camera.width, camera.height), working_pixels))
        self._scale = REFERENCE_WIDTH / self._camera.width
        self.survey = Survey()
        self._image: NDArray[np.uint8] | None = None
        self._begun: NDArray[np.float32] = np.zeros((0, 2), np.float32)
        self._here = self._begun
        self._chain, self._stamp_ns = 0, -STEP_NS

    def look(self, frame: Frame) -> None:
        """Follow the points into a frame; choose it, or not."""
        if frame.stamp_ns - self._stamp_ns < STEP_NS and self._stamp_ns >= 0:
            return
        self._stamp_ns = frame.stamp_ns
        self.survey.frames += 1
        view = frame.views[0]
        image = working_image(view.image, self._working_pixels)
        if float(image[::4, ::4].std()) < self._min_contrast:
            self.survey.dark += 1
            self._image = None
            return
        if self._image is None:
            self._begin(frame, image, new_chain=True, moved_px=0.0)
            return
        found, good = there_and_back(self._image, image, self._begun, self._here)
        self._here = np.asarray(np.where(good[:, None], found, self._here), np.float32)
        share = float(good.mean()) if len(good) else 0.0
        if share < LOST_SHARE or int(good.sum()) < FEWEST_POINTS // 2:
            self._begin(frame, image, new_chain=True, moved_px=0.0)
            return
        moved = self._motion(self._begun[good], found[good])
        if moved >= self._settings.parallax_px or share < self._settings.min_overlap:
            self._begin(frame, image, new_chain=False, moved_px=moved)

    def _begin(
        self, frame: Frame, image: NDArray[np.uint8], new_chain: bool, moved_px: float
    ) -> None:
        corners = cv2.goodFeaturesToTrack(image, POINTS, 0.01, 8.0)
        found = np.zeros((0, 2)) if corners is None else corners.reshape(-1, 2)
        points = np.asarray(found, np.float32)
        if len(points) < FEWEST_POINTS:
            self._image = None
            return
        self._chain += new_chain
        self._image, self._begun, self._here = image, points, points.copy()
        blur = blur_effect(image)
        self.survey.chosen.append(Chosen(frame.index, frame.stamp_ns, self._chain, moved_px, blur))

    def _motion(self, before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
        """Motion of the nearer points by translation, pixels at 640 px width."""
        a, b = (
            camera_normalise(self._camera, torch.from_numpy(xy).double())[0]
            for xy in (before, after)
        )
        turned = homogeneous(a) @ rotation_from_matches(a, b).T
        left = turned[:, :2] / turned[:, 2:].clamp_min(1e-6) - b
        return float(left.norm(dim=1).quantile(NEARER)) * self._camera.focal_px * self._scale


def survey(
    frames: Iterable[Frame],
    rig: Rig,
    settings: ClipSettings,
    working_pixels: int,
    min_contrast: float,
    advance: Callable[[], None] = lambda: None,
) -> Survey:
    """Go through a recording once."""
    surveyor = Surveyor(settings, rig, working_pixels, min_contrast)
    for frame in frames:
        surveyor.look(frame)
        advance()
    return surveyor.survey


def planned(name: str, found: Survey, settings: ClipSettings, cameras: int) -> ClipPlan:
    """Clips of what was found.

    Raises:
        SourceError: the recording cannot teach; says why.
    """
    if not found.chosen:
        raise SourceError(f'{name}: cannot teach: {_nothing_chosen(found)}')
    first, last = found.chosen[0].stamp_ns, found.chosen[-1].stamp_ns
    judged_from = last - round(settings.held_out * (last - first))
    runs = runs_of(found.chosen, settings, cameras)
    teach = [run for run in runs if run[-1].stamp_ns < judged_from]
    judge = [run for run in runs if run[0].stamp_ns >= judged_from]
    least_judges = max(2, settings.fewest // 4)
    if len(teach) < settings.fewest or len(judge) < least_judges:
        raise SourceError(
            f'{name}: cannot teach: {_too_few(found)} ({len(teach)} clips to learn from, '
            f'{settings.fewest} are needed; {len(judge)} to judge by, {least_judges} are needed)'
        )
    return ClipPlan(
        tuple(_indices(run) for run in spread(teach, settings.most)),
        tuple(_indices(run) for run in spread(judge, MOST_JUDGES)),
    )


def runs_of(
    chosen: Sequence[Chosen], settings: ClipSettings, cameras: int
) -> list[tuple[Chosen, ...]]:
    """All runs of sharp frames of one chain with enough translation."""
    views = settings.views if cameras == 1 else max(2, (settings.views + 1) // 2)
    found = []
    for begin in range(len(chosen)):
        for stride in settings.strides:
            end = begin + stride * (views - 1)
            if end >= len(chosen):
                continue
            run = chosen[begin : end + 1 : stride]
            links = chosen[begin + 1 : end + 1]
            moving = sum(link.moved_px >= MOVING_PX for link in links)
            if (
                run[0].chain == run[-1].chain
                and moving >= MOVING_SHARE * len(links)
                and all(frame.blur < BLURRED for frame in run)
            ):
                found.append(tuple(run))
    return found


def spread(runs: Sequence[tuple[Chosen, ...]], most: int) -> list[tuple[Chosen, ...]]:
    """At most so many of the runs, evenly."""
    if len(runs) <= most:
        return list(runs)
    return [runs[round(place)] for place in np.linspace(0, len(runs) - 1, most)]


def _indices(run: Iterable[Chosen]) -> tuple[int, ...]:
    return tuple(frame.index for frame in run)


def _nothing_chosen(found: Survey) -> str:
    if found.dark >= 0.5 * max(found.frames, 1):
        return f'{found.dark} of {found.frames} frames have no contrast: covered lens or darkness'
    return f'no frame has enough corners to follow ({found.frames} looked at): no texture'


def _too_few(found: Survey) -> str:
    """The reason that most of the frames have."""
    chosen = found.chosen
    if found.dark >= 0.5 * found.frames:
        return _nothing_chosen(found)
    blurred = sum(frame.blur >= BLURRED for frame in chosen)
    if blurred >= 0.5 * len(chosen):
        return f'{blurred} of {len(chosen)} frames are blurred'
    broken = Counter(frame.chain for frame in chosen)
    if len(chosen) < 3:
        return 'the camera stands still: hardly anything moves'
    if found.moved_px < MOVING_PX * len(chosen):
        return 'the camera turns and does not travel: no parallax'
    if len(broken) > 0.5 * len(chosen):
        return 'points are lost from frame to frame: too fast, too few frames, or no texture'
    return 'too short, or too little motion'


def blur_effect(image: NDArray[np.uint8], size: int = 11) -> float:
    """How much of the contrast between neighbours survives blurring, 0 sharp to 1 blurred.

    The larger one of the two directions: motion blurs one of them. Source: Crete et al., The Blur
    Effect: Perception and Estimation with a New No-Reference Perceptual Blur Metric, SPIE 2007.
    """
    grey = image.astype(np.float32)
    worst = 0.0
    for axis, kernel in ((1, (size, 1)), (0, (1, size))):
        blurred = cv2.blur(grey, kernel)
        before = np.abs(np.diff(grey, axis=axis))
        after = np.abs(np.diff(blurred, axis=axis))
        lost = np.maximum(before - after, 0.0)
        total = float(before.sum())
        worst = max(worst, 1.0 if total <= 0.0 else (total - float(lost.sum())) / total)
    return worst


@dataclass(frozen=True)
class Clip:
    """The images of a clip.

    Attributes:
        frames: index of each time.
        images: of each time and camera, cameras of one time after each other; grey, working size.
        masks: of each image, True where features may lie; None: everywhere.
        cameras: of each image.
    """

    frames: tuple[int, ...]
    images: tuple[NDArray[np.uint8], ...]
    masks: tuple[NDArray[np.bool_] | None, ...]
    cameras: tuple[Camera, ...]


class ClipImages:
    """The images of chosen frames, in memory; of the first cameras of a rig."""

    def __init__(self, rig: Rig, cameras: int, working_pixels: int) -> None:
        self._working_pixels = working_pixels
        self._cameras = tuple(
            camera.resized(*working_size((camera.width, camera.height), working_pixels))
            for camera in rig.cameras[:cameras]
        )
        self._images: dict[int, tuple[NDArray[np.uint8], ...]] = {}
        self._masks: dict[int, tuple[NDArray[np.bool_] | None, ...]] = {}

    @classmethod
    def of(
        cls,
        frames: Iterable[Frame],
        wanted: Collection[int],
        rig: Rig,
        cameras: int,
        working_pixels: int,
        advance: Callable[[], None] = lambda: None,
    ) -> ClipImages:
        """Of the frames of a recording whose index is wanted."""
        images = cls(rig, cameras, working_pixels)
        for frame in frames:
            if frame.index in wanted:
                images.take(frame)
            advance()
        return images

    def take(self, frame: Frame) -> None:
        """Keep the images of a frame."""
        views = frame.views[: len(self._cameras)]
        self._images[frame.index] = tuple(
            working_image(view.image, self._working_pixels) for view in views
        )
        self._masks[frame.index] = tuple(view.mask for view in views)

    def clip(self, frames: Sequence[int]) -> Clip:
        """The clip of these frames."""
        return Clip(
            tuple(frames),
            tuple(image for index in frames for image in self._images[index]),
            tuple(mask for index in frames for mask in self._masks[index]),
            self._cameras * len(frames),
        )
