"The command that measures an accelerator, tried on the processor; without an accelerator it measures nothing."
import json, subprocess, sys, time
from pathlib import Path

import pytest, torch

BENCHMARKS = Path(__file__).resolve().parents[1]/'nbs/benchmarks'
CPU = torch.device('cpu')

@pytest.fixture(scope='module')
def gpu():
    sys.path.insert(0, str(BENCHMARKS))
    try: import _gpu
    finally: sys.path.remove(str(BENCHMARKS))
    return _gpu

@pytest.fixture(scope='module')
def measured(gpu, tmp_path_factory):
    out = tmp_path_factory.mktemp('gpu')/'machine.json'
    gpu.run_tests = lambda: {'passed': True, 'last line': '', 'output': ''}
    gpu.BACKBONE = 'densenet_small' # the command takes DenseNet-121, which is ten times the work
    found = gpu.measure(CPU, 200, 32, [2], 64, out)
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    return found

@pytest.mark.long('make gpu')
def test_all_parts_are_measured(measured):
    assert not [part for part in measured.values() if 'error' in part]
    assert all(value > 0 for value in measured['limits'].values())
    assert {row['way'] for row in measured['ways']} >= {'inference', 'one direction', 'self-influence'}
    assert all(row['flop'] > 0 and row['bytes'] > 0 and row['images_per_second'] > 0 for row in measured['ways'])
    job = measured['job']
    rate, minutes = (next(value for name, value in job.items() if name.startswith('scoring, total only') and end in name) for end in ['images/s', 'minutes'])
    assert minutes == pytest.approx(86_524 * 5 / rate / 60)

def test_work_is_counted_as_by_hand(gpu):
    "A product of (8, 16) and (16, 4) takes 2·8·16·4 operations, and reads and writes 8·16 + 16·4 + 8·4 numbers of four bytes."
    a, b = torch.ones(8, 16), torch.ones(16, 4)
    with gpu.Work() as work: a @ b
    assert work.flop == 2 * 8 * 16 * 4 and work.bytes == 4 * (8 * 16 + 16 * 4 + 8 * 4)

@pytest.mark.long('make gpu')
def test_float32_scores_are_those_of_float64(measured):
    row, = measured['precisions']
    assert row['precision'] == 'float32' and row['largest_error'] < 1e-4 and row['rank_correlation'] > .999

def test_an_error_is_noted_and_the_rest_is_measured(gpu, tmp_path, monkeypatch):
    def fails(*_): raise TypeError('no float64 here')
    for name in ['measure_limits', 'measure_job', 'measure_ways', 'compare_precisions']: monkeypatch.setattr(gpu, name, lambda *_: {'a': 1})
    monkeypatch.setattr(gpu, 'measure_job', fails)
    found = gpu.measure(CPU, 200, 32, [2], 64, tmp_path/'x.json')
    assert found['job'] == {'error': 'TypeError: no float64 here'} and found['ways'] == {'a': 1}

@pytest.mark.long
def test_without_an_accelerator_nothing_is_measured(tmp_path):
    if torch.accelerator.is_available(): pytest.skip('there is one')
    done = subprocess.run([sys.executable, '_gpu.py', '--out', tmp_path/'x.json'], cwd=BENCHMARKS, capture_output=True, text=True)
    assert done.returncode == 1 and 'There is no accelerator' in done.stdout and not (tmp_path/'x.json').exists()

def test_calls_are_timed_in_turn_and_long_ones_once(gpu):
    made = []
    def call(name, seconds): return lambda: made.append(name) or time.sleep(seconds)
    found = gpu.seconds_of_each({'short': call('short', .01), 'other': call('other', .02), 'long': call('long', .2)}, CPU, .03, 3, .1)
    assert .01 <= found['short'] < found['other'] < found['long'] and made.count('long') == 1
    turns = ''.join(name[0] for name in made[3:])
    assert turns.count('so') >= 4 # two trials, and three rounds
