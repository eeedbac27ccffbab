"A few of the faults of `make faults`: whatever hurts a run, the same call afterwards gives the undisturbed result, or a sentence says what is damaged."
import os, random, shutil

import pytest

import faults

STAGES, rng = ('decode', 'train', 'score', 'pairs', 'retrain'), random.Random(os.urandom(8))
TARGETS = [target for target, (_, stage, _) in faults.TARGETS.items() if stage in STAGES]

@pytest.fixture(scope='module')
def shop(tmp_path_factory): return faults.Workshop(tmp_path_factory.mktemp('faults')/'shop', STAGES)

def survives(shop, function, *arguments):
    found = faults.attempt(shop, function, *arguments)
    if found is None: pytest.skip('no small disk can be mounted here')
    assert found['outcome'] in faults.FINE, str(found)
    assert '\n' not in found['text'] and 'Traceback' not in found['text'], str(found)

@pytest.mark.parametrize('stage', STAGES)
def test_killed_at_any_moment(shop, stage): survives(shop, faults.try_kill, stage)

@pytest.mark.parametrize('how', ['Ctrl-C twice', 'SIGTERM'])
def test_stopped_by_a_signal(shop, how): survives(shop, faults.try_kill, rng.choice(STAGES), how)

@pytest.mark.parametrize('number', range(3))
def test_on_a_disk_that_fills(shop, number): survives(shop, faults.try_full_disk, rng.choice(STAGES))

def test_with_a_limit_on_files(shop): survives(shop, faults.try_file_limit, rng.choice(STAGES))

@pytest.mark.parametrize('number', range(3))
def test_in_a_read_only_folder(shop, number): survives(shop, faults.try_read_only, rng.choice(STAGES), rng.choice(['before', 'done']))

def test_while_the_clock_jumps_back(shop): survives(shop, faults.try_clock, rng.choice(STAGES))

def test_when_a_worker_is_killed_for_memory(shop): survives(shop, faults.try_worker, 'retrain_in_processes')

@pytest.mark.parametrize('number', range(8))
def test_with_a_damaged_file(shop, number): survives(shop, faults.try_damage, rng.choice(TARGETS), rng.choice([*faults.DAMAGES]))

# --- the harness itself ---

def test_the_harness_notices_what_differs(shop):
    folder = shop.begin('score', shop.folder/'noticed', 'done')
    shop.launch.returned = shop.returned['score']
    assert shop.agrees(folder, 'score')
    name = rng.choice(sorted(shop.expected['score']))
    (folder/name).write_bytes((folder/name).read_bytes()[:-9])
    assert not shop.agrees(folder, 'score') and not shop.agrees(folder, 'score', whole=False)
    (folder/name).unlink()
    assert not shop.agrees(folder, 'score') and shop.agrees(folder, 'score', whole=False)
    shutil.rmtree(folder)

def test_the_harness_judges():
    def judged(first, again, equal=True, half=False): return faults.row('', '', '', first, '', again, equal, half)['outcome']
    assert judged('killed', 'done') == judged('stopped', 'done') == judged('done', 'done') == 'equal'
    assert judged('sentence', 'done') == 'clear sentence, then equal' and judged('sentence', 'sentence') == 'lost'
    assert judged('traceback', 'done') == judged('crash', 'done') == judged('hangs', 'done') == 'traceback'
    assert judged('killed', 'traceback') == 'traceback later'
    assert judged('done', 'done', equal=False) == judged('sentence', 'done', equal=False) == 'silently different'
    assert judged('killed', 'done', half=True) == 'half-written taken for whole'

def test_the_harness_tells_how_a_process_ended(shop, tmp_path):
    assert shop.launch(tmp_path, 'decode')[0] == 'sentence' # no images
    assert shop.launch(shop.begin('train', tmp_path/'killed'), 'train', faults.kill_after(.05))[0] == 'killed'
    assert shop.launch(shop.begin('score', tmp_path/'late'), 'score', patience=.01)[0] == 'hangs'
