# SPDX-License-Identifier: Apache-2.0
"""Data set folders, image folders and videos: what is read, what is refused, what is counted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from mv_matcher_ros.errors import CalibrationError, SourceError
from mv_matcher_ros.files.open import find_sequences, open_source, recognise

Write = Callable[..., list[np.ndarray]]
WIDTH, HEIGHT = 48, 32
CAMERA = {'width': WIDTH, 'height': HEIGHT, 'intrinsics': [40.0, 41.0, 23.5, 15.5]}
IDENTITY = '0 0 0 0 0 0 1'


@pytest.fixture
def kitti(tmp_path: Path, write_images: Write) -> Path:
    root = tmp_path / 'sequences' / '03'
    names = [f'{i:06d}.png' for i in range(5)]
    write_images(root / 'image_0', names)
    write_images(root / 'image_1', names)
    row = '40 0 23.5 {} 0 41 15.5 0 0 0 1 0'
    (root / 'calib.txt').write_text(f'P0: {row.format(0)}\nP1: {row.format(-20)}\n')
    (root / 'times.txt').write_text('\n'.join(f'{0.1 * i:.6e}' for i in range(5)))
    poses = '\n'.join(f'1 0 0 {i} 0 1 0 0 0 0 1 0' for i in range(5))
    (tmp_path / 'poses').mkdir()
    (tmp_path / 'poses' / '03.txt').write_text(poses)
    return root


def test_kitti(kitti: Path) -> None:
    source = open_source(kitti)
    assert (source.sensor, len(source)) == ('stereo', 5)
    assert source.rig.baseline_m == pytest.approx(0.5)
    assert source.rig.cameras[1].body_from_camera[0, 3] == pytest.approx(0.5)
    frames = list(source)
    assert [frame.stamp_ns for frame in frames] == [i * 100_000_000 for i in range(5)]
    assert [frame.index for frame in frames] == list(range(5))
    assert len(frames[0].views) == 2
    assert source.truth is not None
    assert source.truth.world_from_body[4, 0, 3] == 4
    assert open_source(kitti, sensor='mono').rig.baseline_m == 0
    with pytest.raises(SourceError, match=r'no rgbd \(KITTI has none\); available: stereo, mono'):
        open_source(kitti, sensor='rgbd')


def test_kitti_without_right_images_is_mono(kitti: Path) -> None:
    for image in (kitti / 'image_1').iterdir():
        image.unlink()
    assert open_source(kitti).sensor == 'mono'
    with pytest.raises(SourceError, match=r'no stereo \(no images in image_1\)'):
        open_source(kitti, sensor='stereo')


def test_kitti_left_without_right_is_dropped_and_counted(kitti: Path) -> None:
    (kitti / 'image_1' / '000002.png').unlink()
    source = open_source(kitti)
    assert [frame.stamp_ns // 10**8 for frame in source] == [0, 1, 3, 4]
    assert source.faults == {'image without right image, frame dropped': 1}


def test_kitti_faults(kitti: Path) -> None:
    calib = (kitti / 'calib.txt').read_text()
    (kitti / 'calib.txt').write_text(calib.replace('P1', 'Q1'))
    with pytest.raises(CalibrationError, match=r'calib\.txt: missing key "P1"'):
        open_source(kitti)
    (kitti / 'calib.txt').write_text(calib.replace('40 0', '0 0'))
    with pytest.raises(CalibrationError, match='not calibrated'):
        open_source(kitti)
    (kitti / 'calib.txt').write_text(calib)
    (kitti / 'times.txt').write_text('0\n1\n')
    with pytest.raises(SourceError, match=r'5 images, but times\.txt has 2 rows'):
        open_source(kitti)
    (kitti / 'times.txt').unlink()
    with pytest.raises(SourceError, match=r'times\.txt: no such file'):
        open_source(kitti)


def test_sizes_that_disagree(kitti: Path, write_images: Write) -> None:
    write_images(kitti / 'image_1', ['000003.png'], size=(WIDTH + 2, HEIGHT))
    source = open_source(kitti)
    seen = []
    with pytest.raises(
        CalibrationError,
        match=r'000003\.png: image of image_1 is 50x32, but its calibration is for 48x32',
    ):
        seen.extend(source)
    assert len(source) == 5
    wrong = CAMERA | {'width': 99}
    (kitti / 'cal.yaml').write_text(yaml.safe_dump(wrong))
    with pytest.raises(CalibrationError, match='48x32, but its calibration is for 99x32'):
        list(open_source(kitti, sensor='mono', calibration=kitti / 'cal.yaml'))


def test_unreadable_image_in_the_middle_is_skipped_and_counted(kitti: Path) -> None:
    (kitti / 'image_0' / '000001.png').write_bytes(b'not an image')
    (kitti / 'image_1' / '000003.png').write_bytes(b'')
    source = open_source(kitti)
    for _ in range(2):  # counts start again with the iteration
        assert [frame.index for frame in source] == [0, 2, 4]
        assert source.faults == {'unreadable image, frame skipped': 2}


def test_nothing_readable_is_an_error(kitti: Path) -> None:
    source = open_source(kitti, sensor='mono')
    for image in (kitti / 'image_0').iterdir():
        image.write_bytes(b'')
    with pytest.raises(
        SourceError, match=r'no readable frame .*unreadable image, frame skipped: 5'
    ):
        list(source)
    with pytest.raises(SourceError, match='no readable image'):
        open_source(kitti, sensor='mono')


def test_repeated_and_backward_stamps_are_dropped_and_counted(kitti: Path) -> None:
    (kitti / 'times.txt').write_text('0.0\n0.1\n0.1\n0.05\n0.2\n')
    source = open_source(kitti, sensor='mono')
    assert [frame.index for frame in source] == [0, 1, 4]
    assert source.faults == {
        'repeated time stamp, frame dropped': 1,
        'backwards time stamp, frame dropped': 1,
    }
    stereo = open_source(kitti, sensor='stereo')
    assert [frame.stamp_ns // 10**8 for frame in stereo] == [0, 1, 2]
    assert stereo.faults == source.faults


def test_slices(kitti: Path) -> None:
    def indices(**kwargs: int) -> list[int]:
        source = open_source(kitti, **kwargs)  # type: ignore[arg-type]
        found = [frame.index for frame in source]
        assert len(source) == len(found)
        return found

    assert indices(start=1, end=4) == [1, 2, 3]
    assert indices(stride=2) == [0, 2, 4]
    assert indices(start=1, stride=3) == [1, 4]
    assert indices(end=-1) == [0, 1, 2, 3]
    assert indices(start=-2) == [3, 4]
    assert indices(end=99) == [0, 1, 2, 3, 4]
    for wrong, message in (
        ({'start': 5}, r'no frames from 5 on, there are 5 \(the first is 0\)'),
        ({'start': 5, 'end': 7}, 'no frames from 5 on, there are 5'),
        ({'stride': 0}, 'stride 0 is not at least 1'),
        ({'start': 3, 'end': 3}, r'the end \(3\) is not after the start \(3\)'),
        ({'start': 4, 'end': 1}, r'the end \(1\) is not after the start \(4\)'),
        ({'start': -1, 'end': 2}, 'no frames from -1 to before 2, there are 5'),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(kitti, **wrong)  # type: ignore[arg-type]


def test_skipped_frames_are_not_decoded(kitti: Path) -> None:
    (kitti / 'image_0' / '000001.png').write_bytes(b'')
    source = open_source(kitti, sensor='mono', stride=2)
    assert len(list(source)) == 3
    assert source.faults == {}


def test_masks(kitti: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:20] = 1
    cv2.imwrite(str(kitti / 'mask.png'), mask)
    frame = next(iter(open_source(kitti, masks=kitti / 'mask.png')))
    assert frame.views[0].mask is not None
    np.testing.assert_array_equal(frame.views[0].mask, mask != 0)
    assert frame.views[1].mask is None
    frame = next(iter(open_source(kitti, masks=[None, kitti / 'mask.png'])))
    assert frame.views[0].mask is None
    assert frame.views[1].mask is not None
    cv2.imwrite(str(kitti / 'small.png'), mask[:5])
    with pytest.raises(CalibrationError, match='mask is 48x5, but the camera is 48x32'):
        open_source(kitti, masks=kitti / 'small.png')
    with pytest.raises(CalibrationError, match='3 masks given for 2'):
        open_source(kitti, masks=[kitti / 'mask.png'] * 3)


def test_tum_original_layout(tmp_path: Path, write_images: Write) -> None:
    root = tmp_path / 'rgbd_dataset_freiburg1_desk'
    rgb = ['10.000000.png', '10.033000.png', '10.066000.png', '10.500000.png']
    write_images(root / 'rgb', rgb, size=(640, 480), colour=True)
    depth = ['10.010000.png', '10.030000.png', '10.080000.png']
    (root / 'depth').mkdir()
    for i, name in enumerate(depth):
        cv2.imwrite(str(root / 'depth' / name), np.full((480, 640), 5000 * (i + 1), np.uint16))
    for kind, names in (('rgb', rgb), ('depth', depth)):
        rows = '\n'.join(f'{name[:-4]} {kind}/{name}' for name in names)
        (root / f'{kind}.txt').write_text(f'# stamp file\n{rows}\n')
    (root / 'groundtruth.txt').write_text(f'# t x y z\n9.99 {IDENTITY}\n10.1 {IDENTITY}\n')
    assert recognise(root) == 'tum'
    source = open_source(root)
    assert source.sensor == 'rgbd'
    assert source.faults == {'image without depth image, frame dropped': 1}
    assert source.rig.cameras[0].intrinsics == (517.3, 516.5, 318.6, 255.3)
    assert source.rig.cameras[0].model == 'radtan'
    frames = list(source)
    assert [frame.stamp_ns for frame in frames] == [10_000_000_000, 10_033_000_000, 10_066_000_000]
    for i, frame in enumerate(frames):
        assert frame.views[0].depth is not None
        assert np.all(frame.views[0].depth == i + 1)
    assert source.truth is not None
    assert len(source.truth) == 2
    assert len(open_source(root, sensor='mono')) == 4


def test_tum_with_its_own_calibration(tmp_path: Path, write_images: Write) -> None:
    # 9.5 comes after 10.25 in natural order of names: stamps decide.
    write_images(tmp_path / 'rgb', ['10.25.png', '9.5.png'])
    with pytest.raises(CalibrationError, match=r'no calibration; looked for calibration\.txt'):
        open_source(tmp_path)
    row = '40 41 23.5 15.5 0.1 0 0 0 0 48 32'
    (tmp_path / 'calibration.txt').write_text(f'# fx …\n{row}\n# depth_scale 2000 (…)\n')
    source = open_source(tmp_path)
    assert source.sensor == 'mono'
    assert [frame.stamp_ns for frame in source] == [9_500_000_000, 10_250_000_000]
    (tmp_path / 'depth').mkdir()
    for name in ('10.25.png', '9.5.png'):
        cv2.imwrite(str(tmp_path / 'depth' / name), np.full((HEIGHT, WIDTH), 3000, np.uint16))
    frame = next(iter(open_source(tmp_path)))
    assert frame.views[0].depth is not None
    assert np.all(frame.views[0].depth == 1.5)
    cv2.imwrite(str(tmp_path / 'depth' / '9.5.png'), np.ones((9, 9), np.uint16))
    with pytest.raises(CalibrationError, match='depth is 9x9, but the image is 48x32'):
        list(open_source(tmp_path))
    (tmp_path / 'calibration.txt').write_text(row)
    with pytest.raises(CalibrationError, match='missing key "depth_scale"'):
        open_source(tmp_path)
    (tmp_path / 'calibration.txt').write_text('40 41\n')
    with pytest.raises(CalibrationError, match=r'calibration\.txt: 2 values; expected "fx fy'):
        open_source(tmp_path)


@pytest.fixture
def euroc(tmp_path: Path, write_images: Write) -> Path:
    root = tmp_path / 'V1_99'
    stamps = [1403715273262142976 + i * 50_000_000 for i in range(4)]
    for i, kept in enumerate((stamps, [stamps[0], stamps[2], stamps[3] + 1000])):
        folder = root / 'mav0' / f'cam{i}'
        write_images(folder / 'data', [f'{stamp}.png' for stamp in kept])
        rows = '\n'.join(f'{stamp},{stamp}.png' for stamp in kept)
        (folder / 'data.csv').write_text(f'#timestamp [ns],filename\n{rows}\n')
        pose = np.eye(4)
        pose[1, 3] = 0.11 * i
        sensor = {
            'T_BS': {'rows': 4, 'cols': 4, 'data': pose.ravel().tolist()},
            'resolution': [WIDTH, HEIGHT],
            'camera_model': 'pinhole',
            'intrinsics': [40.0, 41.0, 23.5, 15.5],
            'distortion_model': 'radial-tangential',
            'distortion_coefficients': [0.1, 0.0, 0.0, 0.0],
        }
        (folder / 'sensor.yaml').write_text(yaml.safe_dump(sensor))
    return root


def test_euroc(euroc: Path) -> None:
    for path in (euroc, euroc / 'mav0'):
        source = open_source(path)
        assert source.sensor == 'stereo'
        assert source.rig.body_axes == 'rep103'
        assert source.rig.baseline_m == pytest.approx(0.11)
        assert len(list(source)) == 3
        assert source.faults == {'image without right image, frame dropped': 1}
        assert source.truth is None
    (euroc / 'mav0' / 'cam1' / 'sensor.yaml').unlink()
    with pytest.raises(CalibrationError, match=r'sensor\.yaml: no such calibration file'):
        open_source(euroc)
    assert len(open_source(euroc, sensor='mono')) == 4


def test_tartanair_v1(tmp_path: Path, write_images: Write) -> None:
    names = [f'{i:06d}_left.png' for i in range(3)]
    write_images(tmp_path / 'image_left', names, size=(640, 480), colour=True)
    write_images(tmp_path / 'image_right', names, size=(640, 480), colour=True)
    (tmp_path / 'pose_left.txt').write_text(f'{IDENTITY}\n' * 3)
    source = open_source(tmp_path)
    assert source.sensor == 'stereo'
    assert source.rig.baseline_m == 0.25
    assert len(list(source)) == 3
    (tmp_path / 'depth_left').mkdir()
    for i in range(3):
        np.save(
            tmp_path / 'depth_left' / f'{i:06d}_left_depth.npy',
            np.full((480, 640), i + 0.5, np.float32),
        )
    frames = list(open_source(tmp_path))
    assert frames[2].views[0].depth is not None
    assert np.all(frames[2].views[0].depth == 2.5)


def test_image_folder(tmp_path: Path, write_images: Write) -> None:
    images = write_images(tmp_path, ['shot1.png', 'shot2.png', 'shot10.png'], colour=True)
    with pytest.raises(
        CalibrationError,
        match=r'without a calibration; give --calibration FILE or put calibration\.yaml',
    ):
        open_source(tmp_path)
    path = tmp_path / 'other.yaml'
    path.write_text(yaml.safe_dump(CAMERA))
    source = open_source(tmp_path, calibration=path)
    assert source.faults == {'no stamps and no rate_hz, 10 Hz assumed': 1}
    (tmp_path / 'calibration.yaml').write_text(yaml.safe_dump(CAMERA | {'rate_hz': 4}))
    source = open_source(tmp_path)
    assert source.faults == {}
    frames = list(source)
    # Stamps follow the numbers in the names: seven images are missing.
    assert [frame.stamp_ns for frame in frames] == [250_000_000, 500_000_000, 2_500_000_000]
    for frame, image in zip(frames, images, strict=True):
        np.testing.assert_array_equal(frame.views[0].image, image)
    (tmp_path / 'times.txt').write_text('1.5\n1.75\n2\n')
    assert [frame.stamp_ns for frame in open_source(tmp_path)] == [
        1_500_000_000,
        1_750_000_000,
        2 * 10**9,
    ]
    (tmp_path / 'times.txt').write_text('1.5\n')
    with pytest.raises(SourceError, match=r'times\.txt: 1 rows for 3 images'):
        open_source(tmp_path)


def test_the_images_of_a_sequence_lead_to_the_sequence(kitti: Path) -> None:
    with pytest.raises(SourceError, match=r'image_0: images of the kitti sequence .*/03; open'):
        open_source(kitti / 'image_0')
    (kitti / 'cal.yaml').write_text(yaml.safe_dump(CAMERA))
    assert len(open_source(kitti / 'image_0', calibration=kitti / 'cal.yaml')) == 5


def test_some_images_among_other_things_are_no_recording(
    tmp_path: Path, write_images: Write
) -> None:
    write_images(tmp_path, ['screenshot.png', 'plot.png'])
    for name in ('a.txt', 'b.txt', 'c.txt'):
        (tmp_path / name).write_text('')
    with pytest.raises(
        SourceError, match='not a recording: 2 of 5 entries are images, and there is no calib'
    ):
        open_source(tmp_path)
    (tmp_path / 'a.txt').write_text(yaml.safe_dump(CAMERA))
    assert len(open_source(tmp_path, calibration=tmp_path / 'a.txt')) == 2


def test_image_folder_with_nanosecond_names(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path / 'images', ['1403715273262142976.png', '1403715273312143104.png'])
    (tmp_path / 'camera_info.yaml').write_text(yaml.safe_dump(CAMERA))
    source = open_source(tmp_path)
    assert [frame.stamp_ns for frame in source] == [1403715273262142976, 1403715273312143104]
    assert source.faults == {}


def test_stereo_image_folder_and_depth(tmp_path: Path, write_images: Write) -> None:
    cameras = {'left': CAMERA, 'right': CAMERA | {'baseline_m': 0.2}}
    (tmp_path / 'calibration.yaml').write_text(
        yaml.safe_dump({'cameras': cameras, 'rate_hz': 10, 'depth_scale': 1000})
    )
    write_images(tmp_path / 'left', ['1.png', '2.png', '3.png'])
    assert open_source(tmp_path).sensor == 'mono'
    write_images(tmp_path / 'right', ['1.png', '3.png'])
    source = open_source(tmp_path)
    assert source.sensor == 'stereo'
    assert [frame.stamp_ns for frame in source] == [100_000_000, 300_000_000]
    assert source.faults == {'image without right image, frame dropped': 1}
    (tmp_path / 'depth').mkdir()
    for i in range(1, 4):
        cv2.imwrite(
            str(tmp_path / 'depth' / f'{i}.png'), np.full((HEIGHT, WIDTH), 1500, np.uint16)
        )
    source = open_source(tmp_path)
    assert source.sensor == 'rgbd'
    assert len(source.rig.cameras) == 1
    assert open_source(tmp_path, sensor='stereo').sensor == 'stereo'


def four_cameras() -> dict[str, object]:
    back = [-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, -1, -0.3, 0, 0, 0, 1]
    return {
        'left': CAMERA,
        'right': CAMERA | {'baseline_m': 0.2},
        'back': CAMERA | {'body_from_camera': back},
        'back_right': CAMERA | {'baseline_m': 0.1},
    }


def test_two_stereo_pairs_in_a_folder(tmp_path: Path, write_images: Write) -> None:
    (tmp_path / 'calibration.yaml').write_text(
        yaml.safe_dump({'cameras': four_cameras(), 'rate_hz': 10}, sort_keys=False)
    )
    names = ['1.png', '2.png', '3.png']
    for number, folder in enumerate(four_cameras()):
        write_images(tmp_path / folder, names[number > 2 :])
    assert len(open_source(tmp_path).rig.cameras) == 2  # a rig of more cameras changes nothing
    source = open_source(tmp_path, pairs=2)
    assert source.sensor == 'stereo'
    assert [frame.stamp_ns for frame in source] == [200_000_000, 300_000_000]
    assert all(len(frame.views) == 4 for frame in source)
    assert source.faults == {'image without image of every other camera, frame dropped': 1}
    # The right camera of the second pair is beside its left one, which looks back.
    np.testing.assert_allclose(source.rig.cameras[3].body_from_camera[:3, 3], (-0.1, 0, -0.3))
    assert source.rig.pair(1).baseline_m == pytest.approx(0.1)
    with pytest.raises(SourceError, match=r'4 cameras in the calibration, stereo\.pairs is 3'):
        open_source(tmp_path, 'stereo', pairs=3)
    write_images(tmp_path / 'back_right', [])
    for image in (tmp_path / 'back_right').iterdir():
        image.unlink()
    with pytest.raises(SourceError, match=r'no images in .*back_right'):
        open_source(tmp_path, 'stereo', pairs=2)


def test_two_pairs_of_a_euroc_folder_and_of_what_has_none(euroc: Path, kitti: Path) -> None:
    with pytest.raises(SourceError, match=r'no images in .*cam2'):
        open_source(euroc, 'stereo', pairs=2)
    for number in (2, 3):
        shutil.copytree(euroc / 'mav0' / f'cam{number - 2}', euroc / 'mav0' / f'cam{number}')
    source = open_source(euroc, pairs=2)
    assert [camera.name for camera in source.rig.cameras] == ['cam0', 'cam1', 'cam2', 'cam3']
    assert {len(frame.views) for frame in source} == {4}
    with pytest.raises(SourceError, match=r'2 calibrated cameras, but stereo\.pairs is 2'):
        open_source(kitti, 'stereo', pairs=2)


def write_video(path: Path, count: int, rate_hz: float = 20.0) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), rate_hz, (WIDTH, HEIGHT))
    for i in range(count):
        writer.write(np.full((HEIGHT, WIDTH, 3), min(20 * i, 255), np.uint8))
    writer.release()


def test_video(tmp_path: Path) -> None:
    path = tmp_path / 'drive.avi'
    write_video(path, 10)
    with pytest.raises(CalibrationError, match=r'give --calibration FILE or put drive\.yaml'):
        open_source(path)
    (tmp_path / 'drive.yaml').write_text(yaml.safe_dump(CAMERA))
    source = open_source(path)
    assert len(source) == 10
    frames = list(source)
    assert [frame.stamp_ns for frame in frames] == [i * 50_000_000 for i in range(10)]
    for i, frame in enumerate(frames):
        assert abs(float(frame.views[0].image.mean()) - 20 * i) < 5
    part = open_source(path, start=2, end=9, stride=3)
    assert [frame.index for frame in part] == [2, 5, 8]
    assert abs(float(next(iter(part)).views[0].image.mean()) - 40) < 5
    (tmp_path / 'drive.yaml').write_text(yaml.safe_dump(CAMERA | {'rate_hz': 2}))
    assert [frame.stamp_ns for frame in open_source(path)][:2] == [0, 500_000_000]
    with pytest.raises(SourceError, match='no stereo'):
        open_source(path, sensor='stereo')
    path.write_bytes(b'no video')
    with pytest.raises(SourceError, match=r'drive\.avi: cannot be opened as a video'):
        open_source(path)


def test_video_that_ends_early(tmp_path: Path) -> None:
    """A camera that lost power: the head promises more frames than there are."""
    path = tmp_path / 'drive.avi'
    write_video(path, 60)
    data = path.read_bytes()
    path.write_bytes(data[: int(0.8 * len(data))])
    (tmp_path / 'drive.yaml').write_text(yaml.safe_dump(CAMERA))
    source = open_source(path)
    found = len(list(source))
    assert 10 < found < len(source) == 60
    # The last frame may be there in part.
    assert sum(source.faults.values()) == 60 - found
    assert source.faults['video ends early, frames missing'] >= 59 - found


def test_text_files_that_are_not_text(kitti: Path, euroc: Path) -> None:
    for path, folder in (
        (kitti / 'calib.txt', kitti),
        (kitti / 'times.txt', kitti),
        (euroc / 'mav0' / 'cam0' / 'data.csv', euroc),
    ):
        path.write_bytes(b'\xff\xfe\x00\x01')
        with pytest.raises(SourceError, match=f'{path.name}: not a readable text file'):
            open_source(folder)
        path.write_text('0\n')


def test_what_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match='nowhere: no such file or folder'):
        open_source(tmp_path / 'nowhere')
    with pytest.raises(SourceError, match='the folder is empty'):
        open_source(tmp_path)
    (tmp_path / 'notes.txt').write_text('hello')
    with pytest.raises(
        SourceError, match=r'not a recording; looked for kitti: calib\.txt'
    ) as raised:
        open_source(tmp_path)
    assert '\n' not in str(raised.value)
    with pytest.raises(SourceError, match=r'notes\.txt: not a recording; files may be bags'):
        open_source(tmp_path / 'notes.txt')


def test_topics_are_for_bags(kitti: Path) -> None:
    with pytest.raises(SourceError, match='are for bags'):
        open_source(kitti, topics={'image': '/cam'})


def test_sensor_that_does_not_exist(kitti: Path) -> None:
    with pytest.raises(SourceError, match='sensor "lidar" is unknown'):
        open_source(kitti, sensor='lidar')  # type: ignore[arg-type]


def test_find_sequences(tmp_path: Path, kitti: Path, euroc: Path, write_images: Write) -> None:
    assert find_sequences(tmp_path) == [euroc, kitti]
    assert find_sequences(kitti) == [kitti]
    plain = tmp_path / 'photos'
    write_images(plain, ['a.png'])
    assert plain not in find_sequences(tmp_path)
    (plain / 'calibration.yaml').write_text(yaml.safe_dump(CAMERA))
    assert plain in find_sequences(tmp_path)
    (tmp_path / 'bags').mkdir()
    for name in ('MH_01.bag', 'MH_02.bag'):
        (tmp_path / 'bags' / name).touch()
    found = find_sequences(tmp_path)
    assert tmp_path / 'bags' / 'MH_01.bag' in found
    assert tmp_path / 'bags' not in found
    (tmp_path / 'none').mkdir()
    with pytest.raises(SourceError, match='no sequences in it; looked for'):
        find_sequences(tmp_path / 'none')
