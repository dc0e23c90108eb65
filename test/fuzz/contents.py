# SPDX-License-Identifier: Apache-2.0
"""What the readers are given before it is spoiled: small files of every kind, as written by us."""

from __future__ import annotations

import io
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / 'mapping'))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / 'models'))

import made_maps
import numpy as np
import superglue_reference
import superpoint_reference
import torch
import yaml
from mutations import Evil
from torch import nn

from mv_matcher_ros.datatypes import Camera, Features, Rig, Trajectory
from mv_matcher_ros.files.trajectory import write_tum
from mv_matcher_ros.mapping.g2o import Edge, PoseGraphFile, write_g2o
from mv_matcher_ros.mapping.map_folder import save_map
from mv_matcher_ros.models import weights
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.place_descriptor import PlaceNetwork
from mv_matcher_ros.models.point_inference import PointInferenceNetwork
from mv_matcher_ros.models.profiles import (
    DetectorProfile,
    MatcherProfile,
    PlaceProfile,
    PointProfile,
)
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.ros import keyframe_messages

Tree = dict[str, bytes]
TURNED = [0.0, 0, 1, 0.1, -1, 0, 0, 0.2, 0, -1, 0, 0.3, 0, 0, 0, 1]


def files_of(folder: Path) -> Tree:
    """Content of the files of a folder by their path in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def maps(folder: Path) -> list[Tree]:
    """Maps of three, one and no keyframes."""
    for number, sensor in ((0, 'mono'), (1, 'rgbd'), (3, 'stereo')):
        save_map(made_maps.made_map(number, sensor), folder / sensor / 'map')
    return [files_of(folder / sensor) for sensor in ('mono', 'rgbd', 'stereo', 'stereo')]


def own_weights(folder: Path) -> list[Tree]:
    """Files of each of our networks."""
    for name, network in _NETWORKS:
        path = folder / name / f'{name}.safetensors'
        weights.save_weights(path, name, network.profile, network.state_dict(), {'from': 'x'})  # type: ignore[arg-type]
    return [files_of(folder / name) for name, _ in _NETWORKS]


def _networks() -> list[tuple[str, nn.Module]]:
    """One of each kind, as small as they get."""
    torch.manual_seed(0)
    matcher = MatcherProfile(
        descriptor_size=8, width=8, attention_size=8, blocks=1, encoder=(8,), confidence_size=4
    )
    detector = DetectorProfile(
        widths=(4, 4, 4, 4), head_width=8, detail_width=4, descriptor_size=8
    )
    points = PointProfile(descriptor_size=8, width=8, attention_size=8, rounds=1)
    place = PlaceProfile(descriptor_size=8, words=4, size=8)
    return [
        ('matcher', MatcherNetwork(matcher)), ('detector', DetectorNetwork(detector)),
        ('place', PlaceNetwork(place)), ('points', PointInferenceNetwork(points)),
    ]  # fmt: skip


_NETWORKS = _networks()


def odd_weights(rng: random.Random) -> Tree:
    """Weights whose hash is right and whose tensors are not."""
    if rng.random() < 0.6:
        return public_weights(rng)
    name, network = rng.choice(_NETWORKS)
    state = network.state_dict()
    for _ in range(rng.choice((1, 1, 3))):
        key = rng.choice(list(state))
        spoiled = rng.choice(_ODD_DENSE)(state[key]).clone()
        state[rng.choice((key, key, 'x', '../x', 'a\nb'))] = spoiled
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'{name}.safetensors'
        weights.save_weights(path, name, network.profile, state, {})  # type: ignore[arg-type]
        return {path.name: path.read_bytes()}


_ODD_DENSE: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    torch.Tensor.double, torch.Tensor.half, torch.Tensor.int, torch.Tensor.bool,
    torch.Tensor.cfloat, torch.Tensor.bfloat16, lambda t: t.reshape(-1)[:0], lambda t: t[None],
    lambda t: torch.full(t.shape, torch.nan), lambda t: torch.full(t.shape, -torch.inf),
    lambda t: torch.zeros(()), lambda t: t.to(torch.float8_e4m3fn), lambda t: t.reshape(-1)[1:],
    lambda t: torch.full(t.shape, 3e39, dtype=torch.double),
)  # fmt: skip


def public_weights(rng: random.Random) -> Tree:
    """A checkpoint in public naming with small tensors, some odd; or a pickle that acts."""
    kind = rng.choice(('detector', 'matcher'))
    content: Any = {name: tensor.clone() for name, tensor in _SMALL[kind].items()}
    for _ in range(rng.choice((0, 1, 3))):
        name = rng.choice(list(content))
        content[rng.choice((name, name, name, 'x', 7))] = rng.choice(_ODD)()
    if rng.random() < 0.3:
        content = rng.choice((content, [content], {'state_dict': content}, {'a': content}))
    if rng.random() < 0.1:
        content = rng.choice((Evil(), {'state_dict': Evil()}, {'bin_score': Evil()}))
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=rng.random() < 0.6)
    return {f'{kind}.pth': stream.getvalue()}


_ODD = (
    lambda: torch.zeros(()), lambda: torch.zeros(0), lambda: torch.zeros(1).expand(2**40),
    lambda: torch.zeros(1, dtype=torch.complex64), lambda: torch.zeros(2, 2).to_sparse(),
    lambda: torch.zeros(3, device='meta'), lambda: torch.full((4,), torch.nan), lambda: 'a string',
    lambda: torch.zeros(4, 4, 4, 4, 4), lambda: nn.Parameter(torch.ones(2)), lambda: None,
    lambda: torch.zeros(4, dtype=torch.bool), lambda: torch.zeros(1).expand(2**20, 2**20),
    lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.quint8),
)  # fmt: skip


def _small(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same names; each side no longer than four."""
    return {
        name: tensor[tuple(slice(0, 4) for _ in tensor.shape)].clone()
        for name, tensor in state.items()
    }


_SMALL = {
    'detector': _small(superpoint_reference.random_state()),
    'matcher': _small(superglue_reference.random_state(width=8)),
}


def calibrations() -> list[Tree]:
    """Every form that `read_calibration` knows."""
    camera = {'width': 64, 'height': 48, 'intrinsics': [50.0, 51.0, 31.5, 23.5]}
    bent = camera | {'model': 'radtan', 'distortion': [0.1, -0.2, 0.001, 0.002, 0.3]}
    wide = camera | {'model': 'equidistant', 'distortion': [0.1, 0.2, 0.3, 0.4]}
    rig = {
        'body_axes': 'rep103', 'rate_hz': 20, 'depth_scale': 1000,
        'cameras': {
            'left': bent | {'body_from_camera': TURNED}, 'right': wide | {'baseline_m': 0.1},
        },
    }  # fmt: skip
    euroc = {
        'T_BS': {'rows': 4, 'cols': 4, 'data': TURNED}, 'rate_hz': 20, 'resolution': [64, 48],
        'camera_model': 'pinhole', 'intrinsics': [50.0, 51, 31, 23],
        'distortion_model': 'radial-tangential', 'distortion_coefficients': [0.1, 0.2, 0, 0],
    }  # fmt: skip
    one = {
        'camera_model': 'pinhole', 'intrinsics': [50, 51, 31, 23], 'resolution': [64, 48],
        'distortion_model': 'equidistant', 'distortion_coeffs': [0.1, 0.2, 0.3, 0.4],
    }  # fmt: skip
    steps = np.reshape(TURNED, (4, 4)).tolist()
    left, right = _camera_info(0.0), _camera_info(-5.0)
    opencv = yaml.safe_dump(left).replace('camera_matrix:', 'camera_matrix: !!opencv-matrix')
    contents: list[dict[str, Any]] = [
        {'cal.yaml': bent}, {'cal.yaml': rig}, {'cam0/sensor.yaml': euroc},
        {'cal.yaml': {'cam0': one, 'cam1': one | {'T_cn_cnm1': steps}}}, {'cal.yaml': left},
        {'left.yaml': left, 'right.yaml': right}, {'cal.yaml': '%YAML:1.0\n---\n' + opencv},
        {'cal.txt': '# depth_scale 5000\n50 51 31.5 23.5 0.1 -0.2 0.001 0.002 0.3 64 48\n'},
        {'left.yaml': camera, 'right.yaml': camera | {'body_from_camera': TURNED}},
    ]  # fmt: skip
    return [
        {
            name: (said if isinstance(said, str) else yaml.safe_dump(said)).encode()
            for name, said in content.items()
        }
        for content in contents
    ]


def _camera_info(offset: float) -> dict[str, Any]:
    """A camera_info file; `offset` is P[3]."""
    p = [48, 0, 30, offset, 0, 48, 22, 0, 0, 0, 1, 0]
    return {
        'image_width': 64, 'image_height': 48, 'camera_name': 'narrow',
        'camera_matrix': {'rows': 3, 'cols': 3, 'data': [50, 0, 31.5, 0, 51, 23.5, 0, 0, 1]},
        'distortion_model': 'plumb_bob',
        'distortion_coefficients': {'rows': 1, 'cols': 5, 'data': [0.1, -0.2, 0.001, 0.0, 0.3]},
        'rectification_matrix': {'rows': 3, 'cols': 3, 'data': [1, 0, 0, 0, 1, 0, 0, 0, 1]},
        'projection_matrix': {'rows': 3, 'cols': 4, 'data': p},
    }  # fmt: skip


def trajectories(folder: Path) -> list[Tree]:
    """TUM, KITTI, EuRoC, TartanAir and g2o."""
    poses = np.tile(np.reshape(TURNED, (4, 4)), (4, 1, 1))
    stamps = 1_700_000_000_123_456_789 + 50_000_000 * np.arange(4)
    write_tum(folder / 'a.tum', Trajectory(stamps, poses))
    edges = [Edge(k, k + 1, poses[0], np.eye(6)) for k in range(3)]
    write_g2o(folder / 'a.g2o', PoseGraphFile(dict(enumerate(poses)), edges, (0,)))
    kitti = '\n'.join(' '.join(map(str, TURNED[:12])) for _ in range(4))
    times = '\n'.join(f'{0.1 * k:e}' for k in range(4))
    asl = '\n'.join(f'{stamp},1,2,3,1,0,0,0,4,5,6' for stamp in stamps)
    tartan = '\n'.join('1 2 3 0 0 0 1' for _ in stamps)
    return [
        {'a.tum': (folder / 'a.tum').read_bytes()},
        {'a.g2o': (folder / 'a.g2o').read_bytes()},
        {'poses.txt': kitti.encode(), 'times.txt': times.encode()},
        {'data.csv': f'#timestamp\n{asl}\n'.encode()},
        {'pose_left.txt': tartan.encode()},
    ]


def keyframes() -> list[Tree]:
    """Messages of keyframes with three, one and no features, as bytes."""
    trees = []
    rig = Rig((Camera(64, 48, (50.0, 50.0, 31.5, 23.5), 'radtan', (0.1,)),))
    for count in (3, 3, 1, 0):
        full = torch.ones(count, dtype=torch.float64)
        features = Features(
            torch.ones(count, 2), torch.ones(count, 8), full.float(), full.float(), (64, 48)
        )
        plane, first = torch.ones(count, 2).double(), torch.zeros(count, dtype=torch.int64)
        seen = Observation(10**18, 3, features, plane, full, full, full, first)
        eye = torch.eye(4, dtype=torch.float64)
        record = KeyframeRecord(
            seen, 0, 7, eye, eye, torch.eye(6).double(), torch.arange(count),
            torch.ones(count, 3).double(), torch.ones(count, 3, 3).double(), True,
        )  # fmt: skip
        sent = keyframe_messages.SentKeyframe(record, 'run', 'mono', rig, 'abc', 'base', 'odom')
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **keyframe_messages._arrays(sent))
        trees.append({'keyframe.npz': stream.getvalue()})
    return trees
