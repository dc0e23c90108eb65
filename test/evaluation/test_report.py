# SPDX-License-Identifier: Apache-2.0
"""The report is parsed as a browser would, and what it says is compared with the data."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.evaluation import report_svg
from mv_matcher_ros.evaluation.plots import save_plots
from mv_matcher_ros.evaluation.report import write_report
from mv_matcher_ros.evaluation.run_evaluation import evaluate_run
from mv_matcher_ros.files.trajectory import write_tum

VOID = {'meta', 'img', 'br', 'link', 'input', 'hr'}


class Page(HTMLParser):
    """Checks that tags close, and gathers texts, pictures, links, tiles and drawings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.cells: dict[str, list[str]] = {}
        self.data = ''
        self.feed(text)
        assert self.open == [], 'tags left open'

    def handle_starttag(self, tag, attributes):
        values = {name: value or '' for name, value in attributes}
        self.elements.append((tag, values))
        if tag == 'img':
            self.images.append(values['src'])
        self.links += [values[name] for name in ('href', 'src') if name in values and tag != 'img']
        if tag not in VOID:
            self.open.append((tag, values.get('class', values.get('id', ''))))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, {name: value or '' for name, value in attributes}))

    def handle_endtag(self, tag):
        opened, _ = self.open.pop()
        assert opened == tag, f'<{opened}> closed by </{tag}>'

    def handle_data(self, data):
        tag, name = self.open[-1] if self.open else ('', '')
        if (tag, name) == ('script', 'frames'):
            self.data = data
        elif tag not in ('script', 'style'):
            self.texts.append(data)
            self.cells.setdefault(name or tag, []).append(data)

    @property
    def text(self) -> str:
        return ' '.join(' '.join(self.texts).split())

    def tiles(self) -> dict[str, str]:
        """Name of each tile → its value."""
        names, values = self.cells['name'], self.cells['value']
        return dict(zip(names, (v.strip() for v in values if v.strip()), strict=True))


@pytest.fixture
def noisy(path):
    truth = path(150, step_m=0.5)
    rng = np.random.default_rng(4)
    poses = truth.world_from_body.copy()
    poses[:, :3, 3] += rng.normal(0, 0.2, (150, 3))
    growing = np.arange(1, 151)[:, None, None] * np.diag([0.08] * 3 + [1e-8] * 3)
    return truth, Trajectory(truth.stamps_ns, poses, growing)


@pytest.fixture
def folder(noisy, make_run, tmp_path):
    return make_run(tmp_path / 'run', noisy[1], lost=range(60, 75))


def test_headline_numbers_are_those_of_the_evaluation(noisy, folder):
    truth, _ = noisy
    result = evaluate_run(folder, truth)
    page = Page(write_report(folder, truth).read_text(encoding='utf-8'))
    tiles = page.tiles()
    assert float(tiles['ATE after SE(3) alignment']) == pytest.approx(
        result.ate.translation_m.rmse, abs=6e-4
    )
    assert float(tiles['Path']) == pytest.approx(result.path_m, abs=0.06)
    assert float(tiles['Scale']) == pytest.approx(result.scale, abs=6e-5)
    assert float(tiles['Coverage']) == pytest.approx(100 * 135 / 150, abs=0.06)
    assert int(tiles['Keyframes']) == 30
    assert result.drift_short is not None
    assert float(tiles['Drift']) == pytest.approx(result.drift_short.t_rel_percent, abs=6e-3)
    summary = json.loads((folder / 'run.json').read_text())
    assert float(tiles['Speed']) == pytest.approx(summary['fps'], abs=0.06)
    assert float(tiles['Latency']) == pytest.approx(summary['latency_ms']['total']['p50'], abs=0.6)
    assert 'lost once' in page.text
    assert 'too short' in page.text
    assert result.nees is not None
    assert f'{result.nees.nees_per_dof:.3g} per degree of freedom' in page.text


def test_the_page_needs_nothing_from_elsewhere(noisy, folder):
    text = write_report(folder, noisy[0]).read_text(encoding='utf-8')
    page = Page(text)
    assert page.links == []
    assert not re.search(r'(?:https?:)?//(?!www\.w3\.org)[a-z]+\.', text)
    assert '@import' not in text
    assert 'url(' not in text
    assert len(page.images) >= 3
    for source in page.images:
        assert base64.b64decode(source.removeprefix('data:image/jpeg;base64,'))[:2] == b'\xff\xd8'
    assert 'prefers-color-scheme: dark' in text
    assert '{{' not in text


def test_text_of_the_run_is_escaped(noisy, folder):
    text = write_report(folder, noisy[0]).read_text(encoding='utf-8')
    assert '<1>' not in text
    assert '<dark>' not in text
    page = Page(text)
    assert 'walk <1>' in page.text
    assert 'too <dark>' in page.text


def test_the_error_under_the_pointer_is_that_of_the_frame(noisy, folder):
    truth, _ = noisy
    result = evaluate_run(folder, truth)
    linked = json.loads(Page(write_report(folder, truth).read_text(encoding='utf-8')).data)
    errors = linked['fields']['f0']
    assert len(errors) == len(linked['x']) == 150
    assert all(errors[k] is None for k in range(60, 75))
    shown = [float(value.removesuffix(' m')) for value in errors if value is not None]
    np.testing.assert_allclose(shown, result.ate.translation_errors_m, rtol=1e-3)
    assert linked['x'] == sorted(linked['x'])
    above, side = linked['path']
    assert above[0] is not None
    assert above[65] is None
    assert [at and at[0] for at in above] == [at and at[0] for at in side]


def test_the_drawn_path_is_the_path_at_one_scale(noisy, folder):
    """From the positions on the page back to metres: distances agree in both views."""
    _, estimate = noisy
    linked = json.loads(Page(write_report(folder).read_text(encoding='utf-8')).data)
    kept = np.array([at is not None for at in linked['path'][0]])
    above, side = (np.array([at for at in view if at is not None]) for view in linked['path'])
    points = estimate.world_from_body[kept, :3, 3]
    spread = np.ptp(points, axis=0)
    across = 1 if spread[1] > 1.6 * spread[0] else 0
    along = 1 - across
    per_metre = np.ptp(above[:, 0]) / spread[across]
    assert np.ptp(above[:, 1]) == pytest.approx(per_metre * spread[along], abs=0.3)
    assert np.ptp(side[:, 1]) == pytest.approx(per_metre * spread[2], abs=0.3)
    # Up is up: a higher point stands higher on the page.
    assert np.corrcoef(side[:, 1], points[:, 2])[0, 1] == pytest.approx(-1.0, abs=1e-3)


def test_lost_frames_and_statuses_are_marked(noisy, folder):
    page = Page(write_report(folder, noisy[0]).read_text(encoding='utf-8'))
    lost = [values for _, values in page.elements if values.get('class') == 'lost']
    assert len(lost) == 2  # one gap, in two views
    assert 'LOST 15' in page.text
    assert 'TRACKING 135' in page.text
    assert '6.00 s 60 LOST too <dark>' in page.text


def test_without_truth_there_are_no_errors_but_a_report(folder):
    page = Page(write_report(folder).read_text(encoding='utf-8'))
    assert 'ATE' not in page.text
    assert 'there is no truth' in page.text
    assert float(page.tiles()['Coverage']) == 90.0
    assert len(page.images) >= 3


def test_a_truth_that_does_not_fit_is_said_in_the_report(noisy, folder):
    truth, _ = noisy
    elsewhere = Trajectory(truth.stamps_ns + 10**15, truth.world_from_body)
    page = Page(write_report(folder, elsewhere).read_text(encoding='utf-8'))
    assert 'No comparison with the truth: no poses in common' in page.text


def test_a_run_that_never_started_has_a_report(noisy, make_run, tmp_path):
    truth, estimate = noisy
    folder = make_run(tmp_path / 'run', estimate, lost=range(150))
    page = Page(write_report(folder, truth).read_text(encoding='utf-8'))
    assert 'The run has no poses.' in page.text
    assert float(page.tiles()['Coverage']) == 0.0


@pytest.mark.parametrize('count', [1, 2, 3])
def test_tiny_runs_have_a_report(path, make_run, tmp_path, count):
    few = path(count)
    page = Page(write_report(make_run(tmp_path / 'run', few), few).read_text(encoding='utf-8'))
    assert float(page.tiles()['Coverage']) == 100.0


def test_a_trajectory_file_alone_has_a_report(noisy, tmp_path):
    truth, estimate = noisy
    write_tum(tmp_path / 'estimate.tum', estimate)
    out = tmp_path / 'page.html'
    page = Page(
        write_report(tmp_path / 'estimate.tum', truth, out=out).read_text(encoding='utf-8')
    )
    assert 'ATE after SE(3) alignment' in page.tiles()


def test_long_runs_stay_small(path, make_run, tmp_path):
    long = path(4000, step_m=0.1)
    file = write_report(make_run(tmp_path / 'run', long), long)
    assert file.stat().st_size < 2_000_000
    Page(file.read_text(encoding='utf-8'))


def test_changed_settings_come_first(noisy, folder):
    file = folder / 'run.json'
    summary = json.loads(file.read_text())
    summary['settings']['detector']['max_keypoints'] = 777
    file.write_text(json.dumps(summary))
    page = Page(write_report(folder).read_text(encoding='utf-8'))
    assert 'Changed settings (1) detector.max_keypoints 777 default' in page.text


def test_thinning_keeps_peaks_and_gaps():
    x = np.arange(100_000.0)
    y = np.zeros(100_000)
    y[54_321] = 7.0
    y[54_400:60_000] = np.nan
    thin_x, thin_y = report_svg.thin(x, y)
    assert len(thin_x) <= report_svg.MAX_POINTS
    assert thin_x[np.nanargmax(thin_y)] == 54_321
    assert np.isnan(thin_y).any()
    assert report_svg.path_data(thin_x, thin_y).count('M') == 2


@pytest.mark.parametrize(
    ('low', 'high', 'expected'),
    [(0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-7.0, 9.0, [-5, 0, 5]), (3.0, 3.0, [3.0])],
)
def test_ticks_are_round(low, high, expected):
    np.testing.assert_allclose(report_svg.ticks(low, high), expected, atol=1e-12)


def test_plots_are_written(noisy, folder):
    files = save_plots(folder, evaluate_run(folder, noisy[0]))
    assert {file.name for file in files} >= {'trajectory.png', 'error.png'}
    for file in files:
        assert file.read_bytes()[:4] == b'\x89PNG'
    assert save_plots(folder)[0].name == 'trajectory.png'
