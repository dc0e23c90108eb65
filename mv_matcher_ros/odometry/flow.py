# SPDX-License-Identifier: Apache-2.0
"""Follows the features of the newest keyframe from image to image, without detection.

Pyramidal Lucas-Kanade (Bouguet, Pyramidal implementation of the Lucas Kanade feature tracker,
2001) as OpenCV has it, started where the motion model expects each feature, and checked by
following it back (Kalal et al., Forward-backward error, ICPR 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.datatypes import Frame
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.camera import camera_project
from mv_matcher_ros.geometry.epipolar import homogeneous
from mv_matcher_ros.odometry.blur import detected_noise, edge_width_px, followed_noise
from mv_matcher_ros.odometry.observation import Observation, Observer
from mv_matcher_ros.odometry.pair_alignment import FollowedDepth
from mv_matcher_ros.odometry.seeing import SeeingCameras, moved, of_each
from mv_matcher_ros.odometry.tracking import Tracked, Tracker
from mv_matcher_ros.odometry.window import Landmarks

SEARCH: dict[str, Any] = {
    'winSize': (21, 21),
    'maxLevel': 3,
    'criteria': (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.02),
    'flags': cv2.OPTFLOW_USE_INITIAL_FLOW,
}
# Followed there and back, a feature must come out where it began, in pixels of the working image.
ROUND_TRIP_PX = 0.5
# Fewer landmarks than this are not worth following.
FEWEST = 10


@dataclass(frozen=True)
class Target:
    """What is followed: a snapshot, untouched by whoever refines the window meanwhile.

    Attributes:
        observation: N features of one frame.
        landmarks: row i is the landmark that feature i sees; not alive where it sees none.
        world_from_body: (4, 4) pose of the frame.
    """

    observation: Observation
    landmarks: Landmarks
    world_from_body: Tensor

    @classmethod
    def of(
        cls, observation: Observation, landmark: Tensor, landmarks: Landmarks, pose: Tensor
    ) -> Target:
        """From (N,) rows in `landmarks`, −1 for features that see none."""
        row = landmark.clamp_min(0)
        if len(landmarks) == 0:
            row, landmarks = torch.zeros_like(row), Landmarks.nowhere()
        snapshot = Landmarks(
            landmarks.position[row],
            landmarks.covariance[row],
            observation.features.descriptors,
            (landmark >= 0) & landmarks.alive[row],
            landmarks.seen[row],
            landmarks.sought[row],
        )
        return cls(observation, snapshot, pose)


@dataclass(frozen=True)
class Followed:
    """Features found again in a new frame, and the pose that explains them.

    Attributes:
        target: what was followed.
        observation: K features of the new frame.
        origin: (K,) int64, the feature of the target that each one is.
        kept: (K,) bool, all but those that contradict the pose.
        tracked: `feature` counts in `observation`, `landmark` in `target.landmarks`.
    """

    target: Target
    observation: Observation
    origin: Tensor
    kept: Tensor
    tracked: Tracked

    @property
    def left(self) -> float:
        """Share of the target's landmarks that are still followed and agree with the pose."""
        return self.tracked.inliers / max(int(self.target.landmarks.alive.sum()), 1)

    def moved(self) -> float:
        """Median motion of the inliers on the normalised plane since the target's image.

        Infinite without inliers.
        """
        good = self.tracked.inlier
        if not bool(good.any()):
            return float('inf')
        here = self.observation.plane_xy[self.tracked.feature[good]]
        there = self.target.observation.plane_xy[self.tracked.landmark[good]]
        return float((here - there).norm(dim=1).median())


@dataclass(frozen=True)
class Carried:
    """Features of a keyframe that are the same as some that were followed into its image.

    Attributes:
        index: of the frame whose features were followed.
        origin: (K,) int64, those features.
        feature: (K,) int64, the features of the keyframe.
        offset_xy: (K, 2) float32, how far the latter are from where the former came out, pixels.
    """

    index: int
    origin: Tensor
    feature: Tensor
    offset_xy: Tensor


class FlowTracker:
    """Pose of a frame from the landmarks of a target, followed through every image since.

    Each feature is followed in the images of the camera that saw it.
    """

    def __init__(
        self,
        cameras: SeeingCameras,
        observer: Observer,
        tracker: Tracker,
        depth: FollowedDepth | None = None,
    ) -> None:
        self._cameras = cameras
        self._depth = depth
        self._observer = observer
        self._tracker = tracker
        self.reset()

    def reset(self) -> None:
        """Follow nothing."""
        self._target: Target | None = None
        self._origin = torch.zeros(0, dtype=torch.int64)
        self._pixels = np.zeros((0, 2), np.float32)  # of the working images
        self._frame: Frame | None = None  # in which they are there
        self._images: list[NDArray[np.uint8]] = []
        self._edges_px = self._target_edges_px = np.zeros(0)  # widest since; in its image
        self._pose = torch.eye(4, dtype=torch.float64)

    def start(self, target: Target, frame: Frame) -> None:
        """Follow a target from its own frame on."""
        self._target = target
        self._origin = torch.arange(len(target.observation))
        pixels = target.observation.features.keypoints_xy.numpy()
        self._pixels = self._working(pixels, target.observation.camera)
        self._frame, self._images = frame, self._working_images(frame)
        self._edges_px = self._target_edges_px = _edges_px(self._images)
        self._pose = target.world_from_body

    def hand_on(self, target: Target, frame: Frame, carried: Carried, pose: Tensor) -> None:
        """Follow the features of a later keyframe instead, from the last image on.

        Those that were followed so far are where they are; the others are sought there. Sought
        in the next image, from one as far back as a keyframe takes, many would be lost.

        Args:
            target: of the keyframe; frame: its own.
            carried: what its features have to do with those that were followed.
            pose: (4, 4) of the last image that was followed into, in the world of the target.
        """
        before, last, images = self._target, self._frame, self._images
        origin, pixels, edges_px = self._origin, self._pixels, self._edges_px
        self.start(target, frame)
        if before is None or last is None or before.observation.index != carried.index:
            return
        place = torch.full((len(before.observation),), -1)
        place[origin] = torch.arange(len(origin))
        row = place[carried.origin]
        still = row >= 0
        feature = carried.feature[still]
        scale = self._scales(target.observation.camera[feature])
        others = np.ones(len(target.observation), np.bool_)
        others[feature.numpy()] = False
        found, good = self._searched(target, last, images, pose, others)
        found[feature.numpy()] = pixels[row[still]] + carried.offset_xy[still].numpy() * scale
        good[feature.numpy()] = True
        self._origin, self._pixels = torch.from_numpy(good.nonzero()[0]), found[good]
        self._frame, self._images, self._pose = last, images, pose
        self._edges_px = np.maximum(edges_px, self._edges_px)

    def renew(self, target: Target) -> bool:
        """Go on with the same features, whose landmarks and pose are known better now.

        Returns whether these features are followed.
        """
        old = self._target
        if old is None or (old.observation.index, len(old.observation)) != (
            target.observation.index,
            len(target.observation),
        ):
            return False
        since = se3.inverse(old.world_from_body) @ self._pose
        self._pose = se3.normalise(target.world_from_body @ since)
        self._target = target
        return True

    def track(self, frame: Frame, guess: Tensor, deep: bool = True) -> Followed | None:
        """Pose near a guess, or None when too little can be followed; then it is over.

        Args:
            frame: the next one.
            guess: (4, 4) world_from_body.
            deep: measure depth, too, where a second camera can.
        """
        target = self._target
        if target is None or int(target.landmarks.alive[self._origin].sum()) < FEWEST:
            self._target = None
            return None
        images = self._working_images(frame)
        edges_px = np.maximum(self._edges_px, _edges_px(images))
        found, good = self._searched(target, frame, images, guess)
        origin, pixels = self._origin[torch.from_numpy(good)], found[good]
        observation, valid = self._observe(target, frame, origin, pixels, edges_px)
        origin, pixels = origin[valid], pixels[valid.numpy()]
        sees = target.landmarks.alive[origin].nonzero()[:, 0]
        if self._depth is not None and deep:
            observation = self._depth.added(
                frame, observation, target.landmarks, sees, origin[sees], guess
            )
        tracked = self._tracker.solve_pose(
            target.landmarks, observation, sees, origin[sees], guess, 'optical flow'
        )
        if tracked is None or not self._tracker.believable(tracked):
            self._target = None
            return None
        kept = torch.ones(len(origin), dtype=torch.bool)
        kept[sees] = tracked.inlier
        followed = Followed(target, observation, origin, kept, tracked)
        self._origin, self._pixels = origin[kept], pixels[kept.numpy()]
        self._frame, self._images, self._pose = frame, images, tracked.world_from_body
        self._edges_px = edges_px
        return followed

    def _searched(
        self,
        target: Target,
        frame: Frame,
        images: list[NDArray[np.uint8]],
        guess: Tensor,
        which: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(K, 2) where the followed features are in the images of a frame, and (K,) if they are.

        What a covered camera shows is not looked at, nor what a mask hides, nor features that are
        not among `which` (K,).
        """
        camera = target.observation.camera[self._origin]
        points = self._points(target)
        shift = self._projected(points, camera, guess)
        shift = shift - self._projected(points, camera, self._pose)
        found, good = self._pixels.copy(), np.zeros(len(camera), np.bool_)
        blind = self._observer.blind(frame)
        for number, (before, image) in enumerate(zip(self._images, images, strict=True)):
            if number not in blind:
                of_it = (camera == number).numpy()
                of_it = of_it if which is None else of_it & which
                xy = self._pixels[of_it]
                found[of_it], good[of_it] = there_and_back(before, image, xy, xy + shift[of_it])
        full = self._full(found, camera)
        for number, view in enumerate(self._observer.views(frame)):
            if view.mask is not None:
                of_it = (camera == number).numpy()
                good[of_it] &= in_mask(view.mask, full[of_it])
        return found, good

    def _observe(
        self,
        target: Target,
        frame: Frame,
        origin: Tensor,
        pixels: NDArray[np.float32],
        edges_px: NDArray[np.float64],
    ) -> tuple[Observation, Tensor]:
        """The followed features as an observation, and the (K,) mask of those it could hold."""
        source = target.observation.chosen(origin)
        features = replace(
            source.features, keypoints_xy=torch.from_numpy(self._full(pixels, source.camera))
        )
        source = replace(source, features=features)
        parts = [
            self._cameras.part(source, number).features.noisier(
                followed_noise(widest) / detected_noise(own)
            )
            for number, (own, widest) in enumerate(
                zip(self._target_edges_px, edges_px, strict=True)
            )
        ]
        return self._observer.complete(frame, parts)

    def _points(self, target: Target) -> Tensor:
        """(K, 3) what the followed features see; the median depth of their camera stands in."""
        alive = target.landmarks.alive[self._origin]
        camera = target.observation.camera[self._origin]
        world = target.landmarks.position[self._origin]
        camera_from_world = self._cameras.camera_from_world(target.world_from_body)
        depth = moved(of_each(camera_from_world, camera[alive]), world[alive])[:, 2]
        own = [depth[camera[alive] == number] for number in range(len(self._cameras))]
        typical = torch.stack([(each if len(each) else depth).median() for each in own])
        world_from_camera = torch.stack([se3.inverse(pose) for pose in camera_from_world])
        rays = homogeneous(target.observation.plane_xy[self._origin]) * typical[camera][:, None]
        guessed = moved(of_each(world_from_camera, camera), rays)
        return torch.where(alive[:, None], world, guessed)

    def _projected(
        self, points: Tensor, camera: Tensor, world_from_body: Tensor
    ) -> NDArray[np.float32]:
        """(K, 2) pixels of the working image of the camera (K,) of each of the points (K, 3)."""
        pixels = points.new_zeros(len(points), 2)
        camera_from_world = self._cameras.camera_from_world(world_from_body)
        for number, its in enumerate(self._cameras.cameras):
            of_it = camera == number
            local = se3.transform(camera_from_world[number], points[of_it])
            pixels[of_it] = camera_project(its, local)[0]
        return self._working(pixels.float().numpy(), camera)

    def _working_images(self, frame: Frame) -> list[NDArray[np.uint8]]:
        return [self._observer.working_image(view.image) for view in self._observer.views(frame)]

    def _working(self, xy: NDArray[np.float32], camera: Tensor) -> NDArray[np.float32]:
        return ((xy + 0.5) * self._scales(camera) - 0.5).astype(np.float32)

    def _full(self, xy: NDArray[np.float32], camera: Tensor) -> NDArray[np.float32]:
        return ((xy + 0.5) / self._scales(camera) - 0.5).astype(np.float32)

    def _scales(self, camera: Tensor) -> NDArray[np.float32]:
        """(K, 2) of the working images of the camera (K,) of each feature."""
        scales = [self._observer.working_scale(number) for number in range(len(self._cameras))]
        return np.stack(scales)[camera.numpy()]


def _edges_px(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    return np.array([edge_width_px(image) for image in images])


def in_mask(mask: NDArray[np.bool_], xy: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(K,) whether the nearest pixels of points (K, 2) may hold features; none outside."""
    x, y = np.rint(np.nan_to_num(xy, nan=-1.0)).astype(np.int64).T
    height, width = mask.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    allowed: NDArray[np.bool_] = inside & mask[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return allowed


def there_and_back(
    source: NDArray[np.uint8],
    target: NDArray[np.uint8],
    xy: NDArray[np.float32],
    expected_xy: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Points of one grey image in another, and whether the way back ends where it began.

    Args:
        source, target: (H, W) images.
        xy: (N, 2) in the source; expected_xy: (N, 2) where to begin in the target.

    Returns:
        (N, 2) positions in the target and (N,) mask of those to be trusted.
    """
    if len(xy) == 0:
        return xy.copy(), np.zeros(0, np.bool_)
    begin = np.nan_to_num(expected_xy, nan=-1.0).astype(np.float32)
    found, there, _ = cv2.calcOpticalFlowPyrLK(source, target, xy, begin.copy(), **SEARCH)
    # The way back begins off by as much as the way there did: a search that stays where it is put
    # must not pass.
    again = xy + (found - begin)
    back, returned, _ = cv2.calcOpticalFlowPyrLK(target, source, found, again, **SEARCH)
    height, width = target.shape
    inside = (found >= 0).all(1) & (found[:, 0] <= width - 1) & (found[:, 1] <= height - 1)
    same = np.abs(back - xy).max(1) < ROUND_TRIP_PX
    trusted = (there[:, 0] > 0) & (returned[:, 0] > 0) & inside & same
    return np.asarray(found, np.float32), np.asarray(trusted, np.bool_)
