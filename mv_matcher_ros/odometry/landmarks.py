# SPDX-License-Identifier: Apache-2.0
"""New landmarks at a keyframe, and their tracks.

They come from measured depth and from epipolar matches with older keyframes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.epipolar import epipolar_lines, homogeneous
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.joint_matching import JointMatches
from mv_matcher_ros.odometry.projection import project
from mv_matcher_ros.odometry.seeing import SeeingCameras, moved, of_each
from mv_matcher_ros.odometry.window import Keyframe, Window

# Older keyframes a new one is matched with to find new landmarks, newest first.
PARTNERS = 3
# New points may disagree with the poses this many times more than those that stay: matches that
# had to agree would confirm a wrong pose. After bundle adjustment what disagrees is culled.
PROVISIONAL = 4.0
# Relative depth error beyond which a depth makes no landmark yet (parallax may later).
MAX_RELATIVE_DEPTH_SIGMA = 1.0 / 3.0
# Radius of the search for known landmarks in older keyframes, at 640 px width; poses are known
# there.
COMPLETION_RADIUS_PX = 10.0


class LandmarkMaker:
    """Creates landmarks and completes their tracks over the window.

    Of a rig of several cameras a new landmark comes from two views of the same one; any other
    camera finds it again where it projects.
    """

    def __init__(
        self, settings: Settings, cameras: SeeingCameras, matcher: NearestNeighbourMatcher
    ) -> None:
        self._settings = settings
        self._matcher = matcher
        self._cameras = cameras
        self._completion_radius = cameras.on_plane(COMPLETION_RADIUS_PX)

    def from_depth(self, window: Window, keyframe: Keyframe) -> int:
        """Landmarks of features with measured depth that see none yet; returns how many."""
        observation = keyframe.observation
        new = (
            (keyframe.landmark < 0)
            & observation.inverse_depth.isfinite()
            & (observation.inverse_depth > 0)
        ).nonzero()[:, 0]
        # Relative σ of depth = relative σ of inverse depth: no point from no more than noise.
        new = new[
            observation.inverse_depth_sigma[new]
            < MAX_RELATIVE_DEPTH_SIGMA * observation.inverse_depth[new]
        ]
        if len(new) == 0:
            return 0
        plane = observation.plane_xy[new]
        rays = torch.cat([plane, torch.ones(len(new), 1, dtype=plane.dtype)], dim=1)
        local = rays / observation.inverse_depth[new][:, None]
        world_from_camera = self._cameras.world_from_camera(keyframe.world_from_body)
        world = moved(of_each(world_from_camera, observation.camera[new]), local)
        rows = window.landmarks.add(world, observation.features.descriptors[new])
        keyframe.landmark[new] = rows
        return len(new)

    def from_links(self, window: Window, keyframe: Keyframe, links: Tensor) -> int:
        """Landmarks of (K, 2) features of the keyframe before and this one; returns how many."""
        other = window.keyframes[-2]
        free = (keyframe.landmark[links[:, 1]] < 0) & (other.landmark[links[:, 0]] < 0)
        return self._triangulate(window, keyframe, other, links[free].flip(1))

    def from_joint_matches(self, window: Window, keyframe: Keyframe, joint: JointMatches) -> int:
        """Landmarks from matches of the graph network; returns how many are new.

        What contradicts the poses by more than bundle adjustment can mend is left out.
        """
        made = 0
        for other in reversed(window.keyframes):
            if other.observation.index not in joint.of_keyframe or other is keyframe:
                continue
            pairs, confidence = joint.of_keyframe[other.observation.index]
            chosen = keyframe.landmark[pairs[:, 0]] < 0
            chosen &= self._near_lines(keyframe, other, pairs)
            pairs, confidence = pairs[chosen], confidence[chosen].double()
            unseen = other.landmark[pairs[:, 1]] < 0
            made += self._use(window, keyframe, other, pairs)
            used = keyframe.landmark[pairs[:, 0]] >= 0
            keyframe.weight[pairs[used, 0]] = confidence[used]
            other.weight[pairs[used & unseen, 1]] = confidence[used & unseen]
        return made

    def from_parallax(self, window: Window, keyframe: Keyframe) -> int:
        """Landmarks triangulated with older keyframes; returns how many.

        Matches with features that see a known landmark find that one again.
        """
        made = 0
        others = [other for other in window.keyframes if other is not keyframe]
        for other in reversed(others[-PARTNERS:]):
            for number in range(len(self._cameras)):
                pairs = self._epipolar_matches(keyframe, other, number)
                made += self._use(window, keyframe, other, pairs)
        return made

    def _use(self, window: Window, keyframe: Keyframe, other: Keyframe, pairs: Tensor) -> int:
        """Landmarks seen again, and new ones, from (K, 2) matches; returns how many are new."""
        known = other.landmark[pairs[:, 1]] >= 0
        self._rejoin(window, keyframe, pairs[known], other)
        return self._triangulate(window, keyframe, other, pairs[~known])

    def _near_lines(self, keyframe: Keyframe, other: Keyframe, pairs: Tensor) -> Tensor:
        """(K,) bool, matches (K, 2) of a camera that lie near each other's epipolar lines."""
        ours = homogeneous(keyframe.observation.plane_xy[pairs[:, 0]])
        near = torch.zeros(len(pairs), dtype=torch.bool)
        for number, of_it in self._by_camera(keyframe, other, pairs):
            theirs = other.observation.plane_xy[pairs[of_it, 1]]
            lines = epipolar_lines(self.relative(other, keyframe, number), theirs)
            distance = (ours[of_it] * lines).sum(1).abs()
            near[of_it] = distance < self._provisional(keyframe, pairs[of_it, 0])
        return near

    def _by_camera(
        self, keyframe: Keyframe, other: Keyframe, pairs: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """Of each camera its number and (K,) bool, the matches (K, 2) that are both its own."""
        ours = keyframe.observation.camera[pairs[:, 0]]
        theirs = other.observation.camera[pairs[:, 1]]
        for number in range(len(self._cameras)):
            yield number, (ours == number) & (theirs == number)

    def complete_tracks(self, window: Window) -> None:
        """Look for the landmarks in the keyframes that do not see them yet.

        In the newest keyframe for all, in the others for those that are new since the last time.
        What is found must agree with the projection within its uncertainty.
        """
        newest = window.keyframes[-1]
        new = window.landmarks.alive & ~window.landmarks.sought
        window.landmarks.sought[:] = True
        for keyframe in window.keyframes:
            sought = window.landmarks.alive if keyframe is newest else new
            for number in range(len(self._cameras)):
                self._complete(window, keyframe, number, sought.clone())

    def _complete(self, window: Window, keyframe: Keyframe, number: int, sought: Tensor) -> None:
        """The landmarks (P,) that are sought with one camera of a keyframe."""
        observation, its = keyframe.observation, keyframe.observation.camera == number
        free = ((keyframe.landmark < 0) & its).nonzero()[:, 0]
        sought[keyframe.landmark[(keyframe.landmark >= 0) & its]] = False
        rows = sought.nonzero()[:, 0]
        if len(free) == 0 or len(rows) == 0:
            return
        camera_from_world = self._cameras.camera_from_world(keyframe.world_from_body)[number]
        expected = project(window.landmarks, rows, camera_from_world)
        ahead = expected.depth > 0
        rows, plane = rows[ahead], expected.plane_xy[ahead]
        pairs, _ = self._matcher.match_near(
            (plane, window.landmarks.descriptor[rows]),
            (observation.plane_xy[free], observation.features.descriptors[free]),
            self._completion_radius[number],
        )
        rows, found = rows[pairs[:, 0]], free[pairs[:, 1]]
        error = project(window.landmarks, rows, camera_from_world).mahalanobis(
            observation.plane_xy[found], observation.sigma[found]
        )
        good = error < self._settings.landmarks.max_reprojection_px
        keyframe.landmark[found[good]] = rows[good]

    def _epipolar_matches(self, keyframe: Keyframe, other: Keyframe, number: int) -> Tensor:
        """(K, 2) features of one camera near epipolar lines: free ones here, and any there."""
        here, there = keyframe.observation, other.observation
        free = ((keyframe.landmark < 0) & (here.camera == number)).nonzero()[:, 0]
        any_there = there.rows_of(number)
        ours = homogeneous(here.plane_xy[free])
        relative = self.relative(other, keyframe, number)
        lines = epipolar_lines(relative, there.plane_xy[any_there])
        limit = self._provisional(keyframe, free)
        near = (ours.float() @ lines.float().T).abs() < limit.float()[:, None]
        similarity = here.features.descriptors[free] @ there.features.descriptors[any_there].T
        pairs, _ = self._matcher.match_guided(similarity, near)
        return torch.stack([free[pairs[:, 0]], any_there[pairs[:, 1]]], dim=1)

    def _rejoin(self, window: Window, keyframe: Keyframe, pairs: Tensor, other: Keyframe) -> None:
        """Matches with features that see a landmark: see it too, where it projects here."""
        rows = other.landmark[pairs[:, 1]]
        new = ~torch.isin(rows, keyframe.landmark)
        pairs, rows = pairs[new], rows[new]
        if len(rows) == 0:
            return
        camera_from_world = self._cameras.camera_from_world(keyframe.world_from_body)
        its = of_each(camera_from_world, keyframe.observation.camera[pairs[:, 0]])
        expected = project(window.landmarks, rows, its)
        error = expected.mahalanobis(
            keyframe.observation.plane_xy[pairs[:, 0]], keyframe.observation.sigma[pairs[:, 0]]
        )
        good = (error < self._settings.landmarks.max_reprojection_px) & (expected.depth > 0)
        keyframe.landmark[pairs[good, 0]] = rows[good]

    def _triangulate(
        self, window: Window, keyframe: Keyframe, other: Keyframe, pairs: Tensor
    ) -> int:
        return sum(
            self._triangulate_seen_by(number, window, keyframe, other, pairs[of_it])
            for number, of_it in self._by_camera(keyframe, other, pairs)
            if bool(of_it.any())
        )

    def _triangulate_seen_by(
        self, number: int, window: Window, keyframe: Keyframe, other: Keyframe, pairs: Tensor
    ) -> int:
        relative = self.relative(other, keyframe, number)  # keyframe_from_other
        ours = keyframe.observation.plane_xy[pairs[:, 0]]
        theirs = other.observation.plane_xy[pairs[:, 1]]
        inverse_depth, turned = inverse_depth_from_pair(theirs, ours, relative)
        ray = homogeneous(ours)
        cosine = (turned * ray).sum(1) / (turned.norm(dim=1) * ray.norm(dim=1))
        parallax = torch.arccos(cosine.clamp(-1.0, 1.0))
        local = homogeneous(theirs) / inverse_depth.clamp_min(1e-12)[:, None]
        there = se3.transform(relative, local)
        error = (there[:, :2] / there[:, 2:].clamp_min(1e-9) - ours).norm(dim=1)
        limits = self._settings.landmarks
        good = (
            (inverse_depth > 0)
            & (there[:, 2] > 0)
            & (parallax > math.radians(limits.min_parallax_deg))
            & (error < self._provisional(keyframe, pairs[:, 0]))
        )
        if not bool(good.any()):
            return 0
        world_from_camera = self._cameras.world_from_camera(other.world_from_body)[number]
        world = se3.transform(world_from_camera, local[good])
        rows = window.landmarks.add(
            world, keyframe.observation.features.descriptors[pairs[good, 0]]
        )
        keyframe.landmark[pairs[good, 0]] = rows
        other.landmark[pairs[good, 1]] = rows
        return len(rows)

    def _provisional(self, keyframe: Keyframe, features: Tensor) -> Tensor:
        """(K,) largest disagreement of a new landmark with features, on the normalised plane."""
        limit = PROVISIONAL * self._settings.landmarks.max_reprojection_px
        return limit * keyframe.observation.sigma[features]

    def depth_in(
        self, window: Window, keyframe: Keyframe, rows: Tensor, camera: int = 0
    ) -> Tensor:
        """(K,) depth of landmark rows in one camera of a keyframe."""
        camera_from_world = self._cameras.camera_from_world(keyframe.world_from_body)[camera]
        return se3.transform(camera_from_world, window.landmarks.position[rows])[:, 2]

    def relative(self, source: Keyframe, target: Keyframe, camera: int = 0) -> Tensor:
        """(4, 4) one camera at the target from the same at the source."""
        body = se3.inverse(target.world_from_body) @ source.world_from_body
        cameras = self._cameras
        return cameras.camera_from_body[camera] @ body @ cameras.body_from_camera[camera]


def inverse_depth_from_pair(
    plane_xy: Tensor, other_xy: Tensor, other_from_here: Tensor
) -> tuple[Tensor, Tensor]:
    """Inverse depth of rays of one camera from their matches in another, by least squares.

    A point x/ρ of this camera lies in the other at R x + ρ t up to scale, so that
    ρ (t₁ − u t₃, t₂ − v t₃) = (u (Rx)₃ − (Rx)₁, v (Rx)₃ − (Rx)₂).

    Args:
        plane_xy: (N, 2) on the normalised plane here.
        other_xy: (N, 2) there.
        other_from_here: (4, 4).

    Returns:
        (N,) inverse depth here, and (N, 3) the rays turned into the other camera's axes.
    """
    turned = homogeneous(plane_xy) @ other_from_here[:3, :3].T
    translation = other_from_here[:3, 3]
    slope = translation[:2] - other_xy * translation[2]
    value = other_xy * turned[:, 2:] - turned[:, :2]
    return (slope * value).sum(1) / slope.square().sum(1).clamp_min(1e-18), turned
