# SPDX-License-Identifier: Apache-2.0
"""The one tree of settings: every default, range and description stands here and nowhere else.

YAML files and ROS parameters hold overrides only and are read into this tree. Unknown keys are
refused with the nearest known name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mv_matcher_ros.errors import SettingsError


class Section(BaseModel):
    """A group of settings: immutable, unknown keys and numbers that are not finite refused."""

    model_config = ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False)


# Keypoints of a view that one graph takes.
MOST_IN_GRAPH = 4096


class DetectorSettings(Section):
    """Keypoints and descriptors of one image."""

    name: Literal['sift', 'orb', 'learned'] = Field(
        'learned', description='Detector and descriptor.'
    )
    weights: str = Field(
        '', description='Of the learned detector: file, or name of shipped ones; empty: light.'
    )
    max_keypoints: int = Field(
        1200,
        ge=50,
        le=8000,
        description='Strongest keypoints kept per image; of each, where a rig has several pairs.',
    )
    contrast_threshold: float = Field(
        0.02, ge=0.0, le=0.2, description='SIFT: weakest contrast kept; lower finds more.'
    )
    working_pixels: int = Field(
        480_000,
        ge=0,
        le=100_000_000,
        description='Images with more pixels are scaled down to so many before detection and '
        'tracking; 0 keeps them.',
    )
    border_px: int = Field(
        4, ge=0, le=100, description='Keypoints nearer to the image border are dropped.'
    )


class MatchingSettings(Section):
    """Descriptor matching."""

    matcher: Literal['auto', 'nearest', 'multiview', 'streaming'] = Field(
        'auto',
        description='Nearest neighbours, the graph network over several keyframes, or the same '
        'with what earlier keyframes gave kept instead of computed anew. auto: the network where '
        'there are weights for the detector, on a CPU only for views of which nothing is known.',
    )
    weights: str = Field(
        '',
        description='Of the graph network: file, or name of shipped ones; empty: the light ones '
        'for the detector.',
    )
    views: int = Field(
        5,
        ge=2,
        le=10,
        description='Views in one graph: the new one, keyframes, other cameras; and at most that '
        'many begin a map.',
    )
    graph_keypoints: int = Field(
        512,
        ge=16,
        le=MOST_IN_GRAPH,
        description='Strongest keypoints of a view that enter the graph.',
    )
    min_confidence: float = Field(
        0.1, ge=0.0, le=1.0, description='Least confidence of a match of the graph network.'
    )
    known_poses: bool = Field(
        True, description='Tell the graph network the relative poses that are known.'
    )
    ratio: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description='Largest ratio of best to second-best descriptor distance of nearest '
        'neighbours; 0: what suits the detector (learned 0.9, others 0.8).',
    )
    guided_ratio: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description='The same when a predicted position limits the search; 0: learned 0.95, '
        'others 0.85.',
    )
    search_radius_px: float = Field(
        20.0, gt=0.0, description='Search radius around a predicted position, at 640 px width.'
    )
    wide_radius_px: float = Field(
        60.0, gt=0.0, description='Second try when the first finds too few, at 640 px width.'
    )


class PoseEstimatorSettings(Section):
    """Poses of several views from the matches between them alone."""

    relative: Literal['both', 'eight_point', 'robust'] = Field(
        'both',
        description='Pose of a pair: weighted eight-point, a robust solver, or the second where '
        'the first does not hold.',
    )
    inlier: float = Field(
        3.0, gt=0.0, description='Largest epipolar or reprojection error of an inlier, in sigma.'
    )
    min_mass: float = Field(
        10.0,
        ge=0.0,
        description='Least sum of confidences of agreeing matches for the weighted eight-point.',
    )
    min_inlier_share: float = Field(
        0.9,
        ge=0.0,
        le=1.0,
        description='Least share of the confidence that agrees; below it a robust solver runs.',
    )
    min_robust_share: float = Field(
        0.25, ge=0.0, le=1.0, description='Least share of matches that the robust pose explains.'
    )
    rotation_share: float = Field(
        0.9,
        gt=0.0,
        le=1.0,
        description='Two views whose matches a turn explains to this share have no baseline.',
    )
    iterations: int = Field(10, ge=0, le=100, description='Bundle adjustment over all views.')


class TrackingSettings(Section):
    """Pose of a new frame against the landmarks of the window."""

    min_inliers: int = Field(
        15, ge=6, description='Fewer inliers than this are no measurement of the pose.'
    )
    degraded_inliers: int = Field(
        30, ge=6, description='Below this many inliers the status is DEGRADED.'
    )
    min_inlier_ratio: float = Field(
        0.25, ge=0.0, le=1.0, description='Smallest share of matches that agree with the pose.'
    )
    inlier_px: float = Field(
        3.0, gt=0.0, description='Largest reprojection error of an inlier, in units of its sigma.'
    )
    coasting_s: float = Field(
        0.5, ge=0.0, description='How long the motion model may stand in for measurements.'
    )
    reinitialise_s: float = Field(
        2.0,
        ge=0.0,
        description='LOST for longer than this, and seeing something, starts a new map at the '
        'last pose.',
    )
    max_speed_mps: float = Field(
        40.0, gt=0.0, description='Bound of the motion model on linear speed (metric sensors).'
    )
    max_rotation_dps: float = Field(
        360.0,
        gt=0.0,
        description='Bound of the motion model on turning speed, degrees per second.',
    )


class KeyframeSettings(Section):
    """When a frame becomes a keyframe and how many are kept."""

    window: int = Field(15, ge=3, le=30, description='Keyframes in the sliding window.')
    min_overlap: float = Field(
        0.8,
        gt=0.0,
        le=1.0,
        description='New keyframe when fewer than this share of the last one is tracked.',
    )
    parallax_px: float = Field(
        50.0,
        gt=0.0,
        description='New keyframe when tracks moved this far (median, at 640 px width).',
    )
    delay_s: float = Field(
        0.2,
        ge=0.0,
        le=2.0,
        description='A keyframe is worked on beside the tracking, and used from the first frame '
        'this much later; in the live node as soon as it can be.',
    )
    min_tracked: int = Field(
        80, ge=10, description='New keyframe when fewer landmarks than this are tracked.'
    )
    map_lag: int = Field(
        5,
        ge=1,
        le=30,
        description='A keyframe goes to the map once so many newer ones refined it.',
    )


class InitialisationSettings(Section):
    """Start of a map without metric scale."""

    min_matches: int = Field(
        60, ge=20, description='Fewest matches of the first and the newest view.'
    )
    min_parallax_deg: float = Field(
        1.0, gt=0.0, description='Angle between the rays that `min_landmarks` points must reach.'
    )
    min_landmarks: int = Field(
        40, ge=10, description='Fewest landmarks with enough parallax, or depth, at the start.'
    )


class LandmarkSettings(Section):
    """Triangulation and culling of landmarks."""

    min_parallax_deg: float = Field(
        0.3, gt=0.0, description='Smallest ray angle at which a point is triangulated.'
    )
    max_reprojection_px: float = Field(
        3.0, gt=0.0, description='Observations beyond this are dropped, in units of sigma.'
    )


class StereoSettings(Section):
    """Stereo matching; the rig need not be rectified."""

    pairs: int = Field(
        1,
        ge=1,
        le=4,
        description='Stereo pairs of the rig that are used, looking wherever they do: its first '
        'two cameras, the next two, and so on. Where they are mounted must be known.',
    )
    epipolar_px: float = Field(2.0, gt=0.0, description='Largest distance from the epipolar line.')
    min_depth_baselines: float = Field(
        1.5, gt=0.0, description='Nearest depth that is searched, in baselines.'
    )
    self_calibration: bool = Field(
        True,
        description='Learn from motion how a pair is turned and what its focal lengths are, where '
        'that is not as calibrated, and correct its depths. Replay begins again with it.',
    )
    disparity_error_px: str = Field(
        '',
        description='What is known of that already: three numbers for each pair, separated by '
        'commas, as run and the node say them (yaw, focal length, roll; each at most 1).',
    )

    @field_validator('disparity_error_px')
    @classmethod
    def _are_numbers(cls, text: str) -> str:
        parts = [part for part in text.split(',') if part.strip()]
        try:
            small = all(abs(float(part)) <= 1.0 for part in parts)
        except ValueError:
            small = False
        if not small or len(parts) % 3:
            raise ValueError('should be three numbers for each pair, none beyond 1, or nothing')
        return text

    @property
    def known_errors_px(self) -> list[list[float]]:
        """The three numbers of each pair in `disparity_error_px`."""
        numbers = [float(part) for part in self.disparity_error_px.split(',') if part.strip()]
        return [numbers[i : i + 3] for i in range(0, len(numbers), 3)]


class DistortionCheckSettings(Section):
    """Radial distortion that the calibration has left, found in what the keyframes see."""

    enabled: bool = Field(
        True,
        description='Where one camera surely has some left, replay takes it into account: it '
        'begins again with the corrected calibration, and says so; the mapping node says so. '
        'Stereo keeps its calibration.',
    )
    keyframes: int = Field(10, ge=5, le=60, description='In a row; so many say something once.')
    groups: int = Field(3, ge=2, le=100, description='Groups of keyframes that must have spoken.')
    sure: float = Field(
        4.0, gt=0.0, description='Standard deviations from none at which it is beyond doubt.'
    )
    least_px: float = Field(
        1.0, ge=0.0, description='It matters from so many pixels in the corner of the image.'
    )


class DepthSettings(Section):
    """Depth images (RGB-D)."""

    min_m: float = Field(0.3, ge=0.0, description='Nearest valid depth.')
    max_m: float = Field(8.0, gt=0.0, description='Farthest valid depth.')
    sigma_at_1m_m: float = Field(
        0.0015,
        gt=0.0,
        description='Depth noise at 1 m (0.0015 is a Kinect); grows with the square of depth.',
    )


class BundleAdjustmentSettings(Section):
    """Windowed bundle adjustment."""

    iterations: int = Field(
        3, ge=1, le=100, description='Most Levenberg-Marquardt iterations per keyframe.'
    )
    point_steps: int = Field(
        2, ge=0, le=10, description='Steps of the landmarks alone inside each iteration.'
    )
    kernel: Literal['none', 'huber', 'cauchy'] = Field('cauchy', description='Robust kernel.')
    kernel_width: float = Field(1.5, gt=0.0, description='Width of the kernel, in units of sigma.')
    marginal_prior: bool = Field(
        True, description='Keep what old keyframes knew as a prior on the window.'
    )


class CovarianceSettings(Section):
    """What poses err by, beside what bundle adjustment knows: it takes the noise of keypoints for
    independent and the calibration for true."""

    noise: float = Field(
        1.0, gt=0.0, description='Standard deviations of bundle adjustment times this.'
    )
    share: float = Field(
        0.005,
        ge=0.0,
        le=1.0,
        description='A step from keyframe to keyframe errs by this share of its length besides.',
    )
    turn_share: float = Field(
        0.0025, ge=0.0, le=1.0, description='And by this share of the angle that it turns by.'
    )
    turn_deg: float = Field(
        0.01, ge=0.0, le=90.0, description='And by so many degrees in its direction.'
    )


class ZeroMotionSettings(Section):
    """Gate that holds the pose while the camera stands still."""

    enabled: bool = Field(True, description='Hold the pose while nothing moves.')
    max_flow_px: float = Field(
        0.25,
        ge=0.0,
        description='Median motion since the held frame below which the camera stands still.',
    )


class ImageQualitySettings(Section):
    """Checks of the image before anything is estimated."""

    min_keypoints: int = Field(40, ge=0, description='Fewer keypoints than this: no texture.')
    min_contrast: float = Field(
        4.0,
        ge=0.0,
        description='Smallest standard deviation of grey values: covered lens, darkness.',
    )


class PlaceSettings(Section):
    """Places seen before, by descriptors of whole images."""

    weights: str = Field(
        '', description='Of the place descriptor: file, or name of shipped ones; empty: light.'
    )
    min_keypoints: int = Field(50, ge=1, description='Images with fewer keypoints show no place.')
    gap_s: float = Field(
        10.0, ge=0.0, description='Keyframes younger than this are no places seen before.'
    )
    candidates: int = Field(
        20, ge=1, le=1000, description='Most similar keyframes that are looked at.'
    )
    min_score: float = Field(
        0.3, ge=-1.0, le=1.0, description='Least similarity of a keyframe that is looked at.'
    )
    min_share: float = Field(
        0.4,
        ge=0.0,
        le=2.0,
        description='Least similarity, as a share of that to the last keyframe, which says how '
        'similar images of one place are here.',
    )
    island: int = Field(
        3, ge=0, le=100, description='Keyframes so near to each other are one candidate place.'
    )
    reach: int = Field(
        6,
        ge=0,
        le=1000,
        description='From one keyframe to the next a candidate place moves so many at most.',
    )
    consecutive: int = Field(
        3, ge=1, le=20, description='Keyframes in a row that must see a place for it to be told.'
    )


class LoopSettings(Section):
    """When a keyframe shows a place of the map."""

    views: int = Field(
        5, ge=2, le=16, description='Views of the graph: the keyframe and those it may show.'
    )
    tried: int = Field(2, ge=1, le=10, description='Candidate places that are looked at.')
    max_error_px: float = Field(
        4.0, gt=0.0, description='Landmarks agree within this distance (at 640 px width).'
    )
    min_inliers: int = Field(30, ge=8, description='So many landmarks have to agree.')
    min_inlier_share: float = Field(
        0.3, ge=0.0, le=1.0, description='And this share of the matches.'
    )
    min_spread: float = Field(
        0.06,
        ge=0.0,
        le=0.5,
        description='Least standard deviation of those in the image, as a share of its size.',
    )


class CullingSettings(Section):
    """What a map that grows lets go of."""

    share: float = Field(
        0.9,
        ge=0.0,
        le=2.0,
        description='A keyframe goes when three others see this share of the landmarks that it '
        'does not see alone; above 1: none.',
    )
    newest: int = Field(20, ge=2, le=1000, description='The newest keyframes stay.')
    every: int = Field(10, ge=1, le=1000, description='Keyframes between two cullings.')
    max_sigma: float = Field(
        0.25,
        gt=0.0,
        description='Largest uncertainty of a landmark that one keyframe sees, as a share of its '
        'distance.',
    )


class MapAdjustmentSettings(Section):
    """Bundle adjustment of a whole map, at its end."""

    enabled: bool = Field(
        True,
        description='Adjust the map once there are no more keyframes; not that of several stereo '
        'pairs, of which it holds what the first one saw.',
    )
    group: int = Field(
        60, ge=4, le=400, description='Keyframes adjusted together; half of them overlap.'
    )
    rounds: int = Field(2, ge=1, le=10, description='Times that every group has its turn.')
    iterations: int = Field(15, ge=1, le=100, description='Steps of a group.')
    kernel_width: float = Field(2.0, gt=0.0, description='Of the Cauchy kernel, in sigma.')


class PoseGraphSettings(Section):
    """Optimisation of keyframes and loops, and which loops are believed."""

    alone_chance: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description='A loop is believed alone where at most this share of mistaken ones would '
        'agree with what is known by chance.',
    )
    agreeing_loops: int = Field(
        2,
        ge=1,
        le=100,
        description='Loops of so many images must agree before any of them is believed that '
        'could agree by chance, or that joins two segments.',
    )
    overconfidence: float = Field(
        3.0,
        ge=1.0,
        le=100.0,
        description='So many times too small may reported standard deviations be; what disagrees '
        'by more contradicts.',
    )
    compared_loops: int = Field(
        24, ge=1, le=1000, description='A new loop is compared with so many of its nearest.'
    )
    kernel_width: float = Field(
        5.0, ge=0.0, description='Width of the robust kernel of loops, in sigma; 0: none.'
    )
    log_scale_sigma: float = Field(
        0.005,
        gt=0.0,
        le=1.0,
        description='Without metric scale: what the logarithm of the scale drifts from keyframe '
        'to keyframe.',
    )
    drift_share: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description='What only shows over a long way, such as errors of the calibration: each '
        'step errs by this share of its length besides (standard deviation).',
    )
    drift_deg: float = Field(
        0.05, ge=0.0, le=90.0, description='And by so many degrees in its direction.'
    )
    iterations: int = Field(
        3, ge=0, le=100, description='Most further steps of the optimiser after loops.'
    )
    urgent: float = Field(
        5.0,
        ge=0.0,
        description='Loops that are off by this many of their own sigma are worked in at once.',
    )
    waiting_keyframes: int = Field(
        120, ge=0, le=10_000, description='Other loops are worked in after so many keyframes.'
    )
    moved: float = Field(
        0.01,
        ge=0.0,
        description='Keyframes that move by this much, in units of the map, are reported.',
    )
    turned_deg: float = Field(
        0.1, ge=0.0, description='And those that turn by this much, degrees.'
    )


class PointInferenceSettings(Section):
    """Points for keypoints of a map's keyframes that see no landmark."""

    infer_points: bool = Field(
        True,
        description='Infer their depths from those of the landmarks around them, where there are '
        'weights for the detector, and merge what several keyframes say of a point.',
    )
    weights: str = Field(
        '', description='Of that network: file, or name of shipped ones; empty: the light ones.'
    )
    min_confidence: float = Field(
        0.1, ge=0.0, lt=1.0, description='Inferred points have to be surer than this.'
    )
    merge_px: float = Field(
        2.0, ge=0.0, le=20.0, description='Keypoints of a view nearer than this are one.'
    )


class MappingSettings(Section):
    """The map beside the odometry."""

    folder: str = Field(
        '', description='Of the map: read at the start, if there is one, and saved; empty: none.'
    )
    grow: bool = Field(
        True, description='Extend the map; false: only say where the body is on it.'
    )
    save_every_s: float = Field(
        60.0, ge=0.0, description='A map that grows is saved so often; 0: only when asked to.'
    )
    lost_after: int = Field(
        3, ge=1, le=100, description='Keyframes in a row that are not found on a map: lost.'
    )
    keypoints: int = Field(
        600, ge=50, le=4096, description='Kept of a keyframe: those with landmarks first.'
    )
    loops: LoopSettings = LoopSettings()
    pose_graph: PoseGraphSettings = PoseGraphSettings()
    culling: CullingSettings = CullingSettings()
    adjustment: MapAdjustmentSettings = MapAdjustmentSettings()
    places: PlaceSettings = PlaceSettings()
    points: PointInferenceSettings = PointInferenceSettings()


class RuntimeSettings(Section):
    """How the engine runs on this machine."""

    seed: int = Field(
        0, ge=0, description='Seed of every random choice: same input and seed, same trajectory.'
    )
    threads: int = Field(
        1,
        ge=0,
        le=256,
        description='Threads of torch; small problems gain nothing from more. 0 leaves it alone.',
    )
    opencv_threads: int = Field(
        0, ge=0, le=256, description='Threads of OpenCV (feature detection); 0 leaves it alone.'
    )
    device: Literal['auto', 'cpu', 'cuda'] = Field(
        'auto', description='Where networks run; auto takes a CUDA GPU if there is one.'
    )
    precision: Literal['auto', 'fastest', 'fp32', 'bf16', 'fp16'] = Field(
        'auto',
        description='Of networks; auto: fp16 on CUDA, fp32 on a CPU; fastest: on a CPU bf16 where '
        'it proves faster at start-up (poses may then differ from run to run).',
    )
    execution: Literal['auto', 'eager', 'graphs', 'compiled', 'tensorrt'] = Field(
        'auto',
        description='How networks run: as they are, as CUDA graphs, or compiled once for this '
        'machine by a C++ compiler or torch-tensorrt. auto: graphs on CUDA, eager on a CPU.',
    )
    engines: str = Field(
        '', description='Folder of compiled engines; empty: ~/.cache/mv_matcher_ros/engines.'
    )


class ClipStoreSettings(Section):
    """Frames that the node keeps for `mv-matcher adapt`."""

    folder: str = Field('', description='Where they are kept; empty: none are.')
    most_mb: int = Field(
        500, ge=10, le=1_000_000, description='On disk, at most; the oldest go first.'
    )
    rate_hz: float = Field(8.0, gt=0.0, le=100.0, description='Frames a second, at most.')
    at_shutdown: bool = Field(
        False, description='Learn from them when the node ends, in a process that goes on.'
    )


class FrameSettings(Section):
    """Names of coordinate frames (REP-105)."""

    map: str = Field('map', description='Frame of the map, parent of odom; of the mapping node.')
    odom: str = Field('odom', description='Frame the poses are published in.')
    body: str = Field(
        'base_link',
        description='Frame whose pose is published, with `ros.extrinsics_from_tf`; '
        'without that, or empty: the first camera.',
    )
    prefix: str = Field(
        '',
        description='Before these names and that of `ros.guess_frame`, e.g. `robot1/` for '
        "`robot1/odom`; the names of the cameras' frames come from their drivers, with theirs.",
    )


class RosSettings(Section):
    """The ROS 2 node: topics, frames, quality of service."""

    image_transport: Literal['raw', 'compressed'] = Field(
        'raw', description='Image topics carry raw or compressed images.'
    )
    sync_slop_s: float = Field(
        0.01, ge=0.0, description='Largest stamp difference of images taken together.'
    )
    queue_size: int = Field(10, ge=1, le=1000, description='Depth of the input queues.')
    clock_jump_s: float = Field(
        1.0,
        ge=0.0,
        description='Stamps that go back by more: the clock was set back, and odometry begins '
        'anew. By less: the frame comes late, and is skipped.',
    )
    lossless: bool = Field(
        False, description='Answer every frame (replay) instead of only the newest one (live).'
    )
    autostart: bool = Field(
        True,
        description='Configure and activate at the start; off: a lifecycle manager does.',
    )
    publish_tf: bool = Field(
        True,
        description='Publish odom -> body on /tf; off: something else does, and map -> odom fits '
        'that.',
    )
    publish_map_tf: bool = Field(True, description='Publish map -> odom on /tf (mapping node).')
    publish_keyframes: bool = Field(
        False, description='Publish keyframes with their features, for a mapping node.'
    )
    keyframe_history: int = Field(
        100,
        ge=1,
        le=10_000,
        description='Keyframes kept for a mapping node that comes later, about 0.3 MB each.',
    )
    extrinsics_from_tf: bool = Field(
        False,
        description='Look body <- camera up in TF once; without it poses are of the first camera.',
    )
    depth_registered: bool = Field(
        True,
        description='The depth image belongs to the image pixel by pixel; off: it is of a camera '
        'of its own, with `depth/camera_info` and a place on TF, and is moved (60 ms for VGA).',
    )
    rectified: Literal['auto', 'always', 'never'] = Field(
        'auto',
        description='Whether the images are rectified: P of camera_info holds, and there is no '
        'distortion. auto: if the topic is called so (`image_rect`).',
    )
    calibration_file: str = Field(
        '',
        description='Calibration instead of camera_info, with the mounts of the cameras: any form '
        'of docs/calibration.md; one file, or one for each camera, separated by commas.',
    )
    tf_timeout_s: float = Field(
        1.0, ge=0.0, description='Without the camera in TF for longer, it is said.'
    )
    mask_topics: bool = Field(
        False,
        description='A mask comes with each image of the camera (stereo: of the left one), with '
        'its stamp, on `mask` (`left/mask`): black where no features may lie.',
    )
    mask_files: str = Field(
        '',
        description='Image that is black where no features may lie; of several stereo pairs one '
        'for each left camera, separated by commas.',
    )
    guess_frame: str = Field(
        '',
        description='Frame in which something else (wheel odometry) says on TF where the body is: '
        'poses are sought where it has moved. TF is then odom -> this frame. Empty: none.',
    )
    guess_wait_s: float = Field(
        0.05, ge=0.0, le=1.0, description='How long a frame waits for the guess at its stamp.'
    )
    path_length: int = Field(2000, ge=0, description='Poses kept in the published path.')
    input_reliability: Literal['best_effort', 'reliable'] = Field(
        'best_effort', description='QoS reliability of the inputs.'
    )
    frames: FrameSettings = FrameSettings()


class Settings(Section):
    """All settings of the odometry engine and its node."""

    sensor: Literal['mono', 'stereo', 'rgbd'] = Field(
        'mono', description='Which sensor the frames come from.'
    )
    detector: DetectorSettings = DetectorSettings()
    matching: MatchingSettings = MatchingSettings()
    pose_estimator: PoseEstimatorSettings = PoseEstimatorSettings()
    tracking: TrackingSettings = TrackingSettings()
    keyframes: KeyframeSettings = KeyframeSettings()
    initialisation: InitialisationSettings = InitialisationSettings()
    landmarks: LandmarkSettings = LandmarkSettings()
    stereo: StereoSettings = StereoSettings()
    depth: DepthSettings = DepthSettings()
    distortion_check: DistortionCheckSettings = DistortionCheckSettings()
    bundle_adjustment: BundleAdjustmentSettings = BundleAdjustmentSettings()
    covariance: CovarianceSettings = CovarianceSettings()
    zero_motion: ZeroMotionSettings = ZeroMotionSettings()
    image_quality: ImageQualitySettings = ImageQualitySettings()
    mapping: MappingSettings = MappingSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    adaptation: ClipStoreSettings = ClipStoreSettings()
    ros: RosSettings = RosSettings()


def leaves(section: type[BaseModel] = Settings, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Every setting as (dotted name, pydantic FieldInfo), in the order of the tree."""
    for name, info in section.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from leaves(annotation, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', info


def flatten(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """{'a': {'b': 1}} → {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f'{prefix}{key}.'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{'a.b': 1} → {'a': {'b': 1}}."""
    tree: dict[str, Any] = {}
    for dotted, value in flat.items():
        *parents, leaf = dotted.split('.')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def nearest_name(unknown: str) -> str | None:
    """The known dotted name most like `unknown`, or None when nothing comes near."""
    known = [name for name, _ in leaves()]
    found = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
    if not found:  # a right leaf in the wrong section
        tails = {name.rsplit('.', 1)[-1]: name for name in known}
        found = [
            tails[t]
            for t in difflib.get_close_matches(unknown.rsplit('.', 1)[-1], tails, n=1, cutoff=0.7)
        ]
    return found[0] if found else None


def read_settings(overrides: Mapping[str, Any] | None = None, where: str = 'settings') -> Settings:
    """Settings with `overrides` (nested or dotted keys) applied over the defaults.

    Raises:
        SettingsError: an unknown key (with the nearest known name) or a value out of range; says
            where.
    """
    flat = flatten(overrides or {})
    known = {name for name, _ in leaves()}
    for name in flat:
        if name not in known:
            nearest = nearest_name(name)
            hint = f'; did you mean "{nearest}"?' if nearest else ''
            raise SettingsError(f'{where}: unknown setting "{name}"{hint}')
    try:
        return Settings.model_validate(unflatten(flat))
    except ValidationError as error:
        first = error.errors()[0]
        name = '.'.join(str(part) for part in first['loc'])
        raise SettingsError(f'{where}: {name} = {first.get("input")!r}: {first["msg"]}') from None


def load_settings(path: Path | str | None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a YAML file of overrides, then `overrides`.

    The file is plain or has the form of ROS parameters (`node: ros__parameters:`).

    Raises:
        SettingsError: the file is missing, not YAML, or holds an unknown key or a bad value.
    """
    merged: dict[str, Any] = {}
    if path is not None:
        merged.update(flatten(_read_yaml(Path(path))))
    merged.update(flatten(overrides or {}))
    return read_settings(merged, where=str(path) if path is not None else 'settings')


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise SettingsError(f'{path}: no such settings file') from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(
            f'{path}: not a readable YAML file: {str(error).splitlines()[0]}'
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f'{path}: a settings file holds "name: value" lines')
    for value in content.values():  # ROS form: /**: ros__parameters: …
        if isinstance(value, dict) and 'ros__parameters' in value:
            return dict(value['ros__parameters'] or {})
    return content
