# SPDX-License-Identifier: Apache-2.0
"""Ways to run a network say the same; engines on disk; what a CUDA graph cannot capture."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mv_matcher_ros.config import (
    DetectorSettings,
    MatchingSettings,
    RuntimeSettings,
    read_settings,
)
from mv_matcher_ros.datatypes import Features, Matches
from mv_matcher_ros.errors import MissingDependencyError, ModelError, SettingsError
from mv_matcher_ros.models import engine_files, learned_matcher, rooms, runtime
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.engine_files import EngineFiles
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.learned import LearnedDetector
from mv_matcher_ros.models.learned_matcher import LearnedMatcher, SeenView, StreamingMatcher
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.place import Place
from mv_matcher_ros.models.profiles import DetectorProfile, MatcherProfile
from mv_matcher_ros.models.runtime import Runner
from mv_matcher_ros.models.static import StaticDetector, StaticMatcher
from mv_matcher_ros.models.streaming import StreamingNetwork
from mv_matcher_ros.models.weights import save_detector, save_matcher
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.worlds.presets import make_rig

CPU = torch.device('cpu')
MATCHER = MatcherProfile(
    descriptor_size=16, width=16, attention_size=8, blocks=1, encoder=(8,), confidence_size=4
)
DETECTOR = DetectorProfile(widths=(4, 4, 8, 8), head_width=16, descriptor_size=8, threshold=0.0)
EAGER = RuntimeSettings(device='cpu', precision='fp32', execution='eager')


def network(seed: int = 0) -> MatcherNetwork:
    torch.manual_seed(seed)
    made = MatcherNetwork(MATCHER)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def matcher(runtime: RuntimeSettings = EAGER, seed: int = 0, views: int = 4) -> LearnedMatcher:
    settings = MatchingSettings(min_confidence=0.0, graph_keypoints=48, views=views)
    return LearnedMatcher(network(seed), settings, runtime)


def seen(counts: Sequence[int]) -> list[Features]:
    """Views of the same keypoints, so that there is something to match."""
    generator = torch.Generator().manual_seed(0)
    place = 400.0 * torch.rand(60, 2, generator=generator)
    description = torch.randn(60, 16, generator=generator)
    found = []
    for count in counts:
        noisy = description + 0.2 * torch.randn(60, 16, generator=generator)
        descriptors = nn.functional.normalize(noisy, dim=1)[:count]
        scores = torch.rand(count, generator=generator)
        found.append(Features(place[:count], descriptors, scores, torch.ones(count), (640, 480)))
    return found


def known_poses(features: Sequence[Features]) -> KnownPoses:
    count = len(features)
    poses = torch.eye(4).repeat(1, count, 1, 1)
    poses[0, :, 0, 3] = 0.1 * torch.arange(count)
    room = max(map(len, features))
    plane = torch.zeros(1, count, room, 2)
    for row, view in zip(plane[0], features, strict=True):
        row[: len(view)] = view.keypoints_xy / 300.0
    sigma = torch.full((1, count, count), 2.0 / 300.0)
    sigma[0, 0, 1] = sigma[0, 1, 0] = torch.inf
    return KnownPoses.of(plane, poses, sigma)


def same(got: Matches, expected: Matches) -> None:
    assert torch.equal(got.views, expected.views)
    assert torch.equal(got.keypoints, expected.keypoints)
    # Of another room, distances have another last bit (`SecondLook`).
    torch.testing.assert_close(got.confidence, expected.confidence, rtol=1e-4, atol=3e-4)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], ...]]:
    """Fixed shapes without a compiler: the shapes for which engines were asked."""
    shapes: list[tuple[tuple[int, ...], ...]] = []

    def engine(self: EngineFiles, module: nn.Module, example: Any, place: Place) -> nn.Module:
        shapes.append(tuple(tuple(part.shape) for part in example))
        return module

    monkeypatch.setattr(EngineFiles, 'engine', engine)
    return shapes


COMPILED = EAGER.model_copy(update={'execution': 'compiled'})


# ----------------------------------------------------------------- fixed shapes


@pytest.mark.parametrize('counts', [(40, 30), (40, 0), (0, 0, 0), (48, 20, 33), (10, 60, 20, 9)])
@pytest.mark.parametrize('informed', [False, True])
def test_fixed_shapes_change_nothing(
    counts: tuple[int, ...], informed: bool, uncompiled: list[Any]
) -> None:
    features = seen(counts)
    known = known_poses(features) if informed else None
    fixed = matcher(COMPILED)
    expected = matcher().match(features, known=known)
    same(fixed.match(features, known=known), expected)
    newest = [(view, len(counts) - 1) for view in range(len(counts) - 1)]
    same(fixed.match(features, newest, known), matcher().match(features, newest, known))
    if sum(counts) > 60:
        assert len(expected) > 10


def test_a_window_needs_three_engines_and_no_more(uncompiled: list[Any]) -> None:
    """Whatever number of views, keypoints and pairs it has, and whether poses are known."""
    fixed = matcher(COMPILED)
    fixed.prepare()
    assert len(uncompiled) == 3
    for counts in ((40, 30), (5, 30, 20), (48, 48, 48, 48), (0, 3, 0)):
        features = seen(counts)
        pairs = [(view, len(counts) - 1) for view in range(len(counts) - 1)]
        fixed.match(features, pairs, known_poses(features))
        fixed.match(features, pairs)
        fixed.match(features)
    assert len(uncompiled) == 3


def test_sizes_of_many_views_are_ready_too(
    uncompiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a window has room for fewer keypoints a view than two views."""
    monkeypatch.setattr(rooms, 'MOST_NODES', 96)
    monkeypatch.setitem(learned_matcher.STEPS, 'compiled', 3)
    fixed = matcher(COMPILED)
    fixed.prepare()
    assert {shapes[0][1:3] for shapes in uncompiled} == {
        (views, most >> step) for views, most in ((2, 48), (4, 24)) for step in range(3)
    }


def stream(learned: LearnedMatcher, features: Sequence[Features], told: bool) -> list[Matches]:
    """Each view against the two before it."""
    streaming = StreamingMatcher(learned)
    streaming.prepare()
    past: list[SeenView] = []
    found = []
    for view in features:
        poses = torch.eye(4).repeat(len(past), 1, 1)
        poses[:, 0, 3] = 0.1
        sigma = torch.full((len(past),), 2.0 / 300.0)
        said = (poses, sigma) if told and past else ()
        now, matches = streaming.match(view, view.keypoints_xy / 300.0, past, *said)
        past = [*past, now][-2:]
        found.append(matches)
    return found


@pytest.mark.parametrize('told', [False, True])
def test_fixed_shapes_change_nothing_one_view_after_another(
    told: bool, uncompiled: list[Any]
) -> None:
    features = seen((40, 30, 60, 0, 44, 48))
    expected = stream(matcher(), features, told)
    got = stream(matcher(COMPILED), features, told)
    for one, other in zip(got, expected, strict=True):
        same(one, other)
    assert len(uncompiled) == 1
    assert sum(map(len, expected)) > 60


@pytest.mark.parametrize('counts', [(48, 30, 40, 45), (48, 10, 9, 8), (40, 0, 0, 0, 20, 20)])
@pytest.mark.parametrize('execution', ['eager', 'graphs'])
def test_views_that_came_when_more_room_was_needed(
    counts: tuple[int, ...], execution: str, uncompiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they keep is larger than what is needed once their neighbours are gone."""
    features = seen(counts)
    in_one_room = stream(matcher(COMPILED), features, told=True)
    if execution == 'graphs':  # as with graphs: several sizes
        monkeypatch.setitem(learned_matcher.STEPS, 'compiled', 3)
    got = stream(matcher(COMPILED if execution == 'graphs' else EAGER), features, told=True)
    for one, other in zip(got, in_one_room, strict=True):
        same(one, other)
    assert sum(map(len, got)) > 10


def test_an_engine_is_ready_when_the_odometry_is_made(
    tmp_path: Path, uncompiled: list[Any]
) -> None:
    profile = MATCHER.model_copy(update={'descriptor_size': 8})
    save_matcher(tmp_path / 'm.safetensors', MatcherNetwork(profile))
    save_detector(tmp_path / 'd.safetensors', DetectorNetwork(DETECTOR))
    settings = read_settings({
        'detector.name': 'learned', 'detector.weights': str(tmp_path / 'd.safetensors'),
        'matching.matcher': 'streaming', 'matching.weights': str(tmp_path / 'm.safetensors'),
        'matching.graph_keypoints': 32, 'runtime.execution': 'compiled', 'runtime.device': 'cpu',
        'sensor': 'mono',
    })  # fmt: skip
    OdometryEngine(settings, make_rig('mono', (160, 120)))
    assert len(uncompiled) == 5  # detector, two views, windows, one view after another
    assert uncompiled[0] == ((1, 1, 120, 160), (1, 120, 160))


def test_graphs_and_engines_not_used_for_long_are_forgotten(uncompiled: list[Any]) -> None:
    place = Place(CPU, torch.float32, 'compiled')
    run = Runner(Doubled(), place, EngineFiles())
    for size in range(runtime.MOST_SHAPES + 1):
        assert torch.equal(run(torch.ones(size + 1))[0], 2.0 * torch.ones(size + 1))
        run(torch.ones(1))
    assert len(uncompiled) == runtime.MOST_SHAPES + 1
    run(torch.ones(1))
    run(torch.ones(2))
    assert len(uncompiled) == runtime.MOST_SHAPES + 2


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (2.0 * x,)


# ------------------------------------------------------------- compiled engines


@pytest.mark.slow
def test_an_engine_is_built_once_for_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = COMPILED.model_copy(update={'engines': str(tmp_path)})
    features = seen((40, 30))
    expected = matcher().match(features)
    same(matcher(compiled).match(features), expected)
    assert 'building the engine' in caplog.text
    (path,) = tmp_path.glob('*.pt2')
    said = path.with_suffix('.json').read_text()
    assert '"execution": "compiled"' in said
    assert '"precision": "cpu fp32 compiled"' in said
    assert not list(tmp_path.glob('.building*'))

    def refuse(*_: object) -> None:
        raise RuntimeError('built again')

    monkeypatch.setattr(engine_files, '_INDUCTOR', (refuse, engine_files._load_inductor))
    same(matcher(compiled).match(features), expected)
    with pytest.raises(ModelError, match='built again'):
        matcher(compiled, seed=1).match(features)
    assert list(tmp_path.glob('*.pt2')) == [path]


def test_equal_weights_in_another_profile_are_another_engine() -> None:
    """Iterations, thresholds and heads are compiled in and leave no trace in the weights."""
    place, example = Place(CPU, torch.float32, 'compiled'), (torch.ones(3),)
    ours = engine_files.description(StaticMatcher(network()), example, place)
    assert engine_files.description(StaticMatcher(network()), example, place) == ours
    for change in ({'iterations': 9}, {'threshold': 0.5}, {'heads': 4}, {'sinkhorn': 'log'}):
        other = MatcherNetwork(MATCHER.model_copy(update=change))
        other.load_state_dict(network().state_dict())
        theirs = engine_files.description(StaticMatcher(other), example, place)
        assert theirs['weights'] == ours['weights']
        assert theirs != ours


def test_inputs_in_another_order_of_memory(uncompiled: list[Any]) -> None:
    """An engine reads what it is given with the strides of the inputs it was built with."""

    class Strides(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (torch.tensor(x.stride()),)

    run = Runner(Strides(), Place(CPU, torch.float32, 'compiled'), EngineFiles())
    assert run(torch.ones(3, 2).mT)[0].tolist() == run(torch.ones(2, 3))[0].tolist() == [3, 1]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    files = EngineFiles(tmp_path / 'file')
    with pytest.raises(ModelError, match=r'no engine can be kept here .*runtime\.engines'):
        files.engine(Doubled(), (torch.ones(3),), Place(CPU, torch.float32, 'compiled'))


def test_an_engine_that_does_not_load_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: nn.Module, __: object, path: Path) -> None:
        path.write_bytes(b'nonsense')

    monkeypatch.setattr(engine_files, '_INDUCTOR', (write, engine_files._load_inductor))
    with pytest.raises(ModelError, match=r'pt2: this engine does not load .* delete the file'):
        EngineFiles(tmp_path).engine(
            Doubled(), (torch.ones(3),), Place(CPU, torch.float32, 'compiled')
        )


def test_what_hinders_a_build_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Restless(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (x[x > 0],) if bool(x.sum() > 0) else (x,)

    monkeypatch.setenv('CXX', 'no-such-compiler')
    files = EngineFiles(tmp_path)
    with pytest.raises(ModelError, match=r'cannot build an engine for restless-.*install g\+\+'):
        files.engine(Restless(), (torch.ones(3),), Place(CPU, torch.float32, 'compiled'))
    assert not list(tmp_path.iterdir())


def test_torch_tensorrt_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r'torch_tensorrt.*\[tensorrt\]'):
        EngineFiles(tmp_path).engine(
            Doubled(), (torch.ones(3),), Place(CPU, torch.float32, 'tensorrt')
        )


@pytest.mark.parametrize('execution', ['graphs', 'tensorrt'])
def test_ways_that_need_a_gpu_are_refused_on_a_cpu(execution: str) -> None:
    with pytest.raises(SettingsError, match=f'{execution} is for CUDA'):
        matcher(EAGER.model_copy(update={'execution': execution}))


# --------------------------------------------------------------------- capture


class FromHost(TorchDispatchMode):
    """Notes operations that take a tensor of the host."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__()
        self._faults = faults

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if any(isinstance(x, Tensor) and x.ndim and not x.is_meta for x in args):
            self._faults.append(str(func))
        return func(*args, **(kwargs or {}))


class FromValues(TorchFunctionMode):
    """Notes tensors made of Python's values: these are copied from the host."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__()
        self._faults = faults

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor):
            self._faults.append(str(func))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """What a capture does not allow is noted."""
    faults: list[str] = []
    with FromHost(faults), FromValues(faults):
        yield faults


def functional(module: nn.Module) -> Callable[..., Any]:
    """The module with parameters that have no values."""
    empty = {
        name: torch.empty_like(part, device='meta') for name, part in module.named_parameters()
    }
    return lambda *inputs: torch.func.functional_call(module, empty, inputs)


def recorded(run: Runner) -> list[tuple[nn.Module, tuple[Tensor, ...]]]:
    calls: list[tuple[nn.Module, tuple[Tensor, ...]]] = []

    def note(inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        calls.append((run._module, inputs))
        return run._module

    run._made = note  # type: ignore[method-assign, assignment]
    return calls


def modules() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """What is captured, with the inputs it gets."""
    learned = matcher(COMPILED)
    streaming = StreamingMatcher(learned)
    detector = LearnedDetector(DetectorNetwork(DETECTOR), DetectorSettings(), COMPILED)
    plain = MATCHER.model_copy(update={'threshold': 0.2, 'sinkhorn': 'log', 'normalised': False})
    released = LearnedMatcher(MatcherNetwork(plain), MatchingSettings(), COMPILED)
    runs = (learned._run, streaming._run, detector._run, released._run)
    calls = [*map(recorded, runs)]
    learned.prepare()
    released.prepare()
    streaming.prepare()
    detector.prepare(100, 75)
    return {
        'two views': calls[0][0],
        'a window': calls[0][-1],
        'streaming': calls[1][0],
        'detector': calls[2][0],
        "SuperGlue's form": calls[3][0],
    }


@pytest.mark.parametrize(
    'name', ['two views', 'a window', 'streaming', 'detector', "SuperGlue's form"]
)
def test_nothing_waits_for_the_device_or_comes_from_the_host(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without values: what needs one, or mixes in one of the host, is an error."""
    module, inputs = modules()[name]
    assert isinstance(module, StaticMatcher | StreamingNetwork | StaticDetector)
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: contextlib.nullcontext())
    run = functional(module)
    there = [part.to('meta') for part in inputs]
    with torch.inference_mode(), watched() as faults:
        outputs = run(*there)
    assert faults == []
    assert all(part.is_meta for part in outputs)


def test_the_watch_sees_what_a_capture_does_not_allow() -> None:
    x = torch.empty(3, device='meta')
    host = torch.ones(3)
    with watched() as faults:
        torch.tensor([1.0, 2.0, 3.0], device='meta') + x
        host.to('meta')
    assert len(faults) == 2
    with pytest.raises((NotImplementedError, RuntimeError)):
        x[x > 0]


def test_a_graph_that_cannot_be_captured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError('CUDA out of memory\nmore')

    monkeypatch.setattr(runtime, 'CapturedGraph', full)
    run = Runner(Doubled(), Place(CPU, torch.float32, 'graphs'), EngineFiles())
    with pytest.raises(
        ModelError, match=r'Doubled for inputs \(3,\): CUDA out of memory \(runtime'
    ):
        run(torch.ones(3))


# ------------------------------------------------------------------------- GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('execution', ['eager', 'graphs', 'compiled'])
@pytest.mark.parametrize('told', [False, True])
def test_a_gpu_says_the_same(execution: str, told: bool, tmp_path: Path) -> None:
    there = RuntimeSettings(
        device='cuda',
        precision='fp32',
        execution=execution,
        engines=str(tmp_path),  # type: ignore[arg-type]
    )
    features = seen((40, 30, 44, 48))
    known = known_poses(features) if told else None
    learned = matcher(there)
    for _ in range(2):  # each replay of one graph, with other features between
        same(learned.match(features, known=known), matcher().match(features, known=known))
        other = features[::-1]
        same(learned.match(other), matcher().match(other))
    got, expected = (stream(matcher(how), features, told) for how in (there, EAGER))
    for one, other in zip(got, expected, strict=True):
        same(one, other)
