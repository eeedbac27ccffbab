"Retraining on part of the images: what is kept, shared, resumed, and run side by side."
import os, signal, subprocess, sys, threading, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import FORKS, Script, hurt, in_a_new_process, refused, sentence
from cxr_influence.data.labels import FINDINGS
from cxr_influence.evidence import retraining
from cxr_influence.evidence.retraining import (_made_of, _keep_best, retrain, run_side_by_side,
    without)
from cxr_influence.training.checkpoints import Recipe, best_checkpoint, list_checkpoints
from cxr_influence.training.resume import _note_signals, fit, read_history
from cxr_influence.training.loop import _Training, predict

RECIPE = Recipe('densenet_small', epochs=2, batch_size=16)
ROOT = str(Path(retraining.__file__).parents[2])

@pytest.fixture
def rng(): return np.random.default_rng()

def test_images_left_out_change_their_split_and_nothing_else(data, rng):
    names = rng.choice(data.train.index, 20, replace=False)
    part = without(data, names)
    assert set(data.train.index) - set(part.train.index) == set(names) and (part.frame.split[names] == 'unused').all()
    assert part.frame.drop(columns='split').equals(data.frame.drop(columns='split')) and part.store is data.store
    assert without(data, []).fingerprint == data.fingerprint
    assert without(without(data, names[:5]), names[5:]).fingerprint == part.fingerprint
    assert without(data, names[0]).fingerprint == without(data, names[:1]).fingerprint # one name as text

def test_names_that_are_not_of_training_images(data):
    with refused('2 of 3 names', 'data.train.index'): without(data, ['a.png', data.test.index[0], data.train.index[0]])
    with refused('1 of 1'): without(without(data, data.train.index[:1]), data.train.index[:1])

@pytest.mark.long
def test_logits_are_those_of_the_last_or_of_the_best_checkpoint(data, tmp_path):
    recipe, rows = RECIPE._replace(epochs=4), np.r_[data.rows('test')[::-1], data.rows('validation')]
    fit(data, tmp_path/'plain', recipe, 3, 'cpu')
    for choose_best, checkpoint in [(False, list_checkpoints(tmp_path/'plain')[-1]), (True, best_checkpoint(tmp_path/'plain'))]:
        logits = retrain(data, recipe, 3, rows, tmp_path/'out', choose_best, 'cpu')
        assert logits.index.equals(data.frame.index[rows]) and list(logits) == list(FINDINGS)
        assert logits.attrs['epoch'] == checkpoint.facts['epoch']
        np.testing.assert_allclose(logits, predict(checkpoint.model(), data, rows), atol=1e-6)
    assert not [path for path in (tmp_path/'out').iterdir() if path.is_dir()]

def test_averaged_weights_predict_where_they_are_kept(data, tmp_path):
    recipe, rows = RECIPE._replace(ema=.9), data.rows('test')
    fit(data, tmp_path/'plain', recipe, 0, 'cpu')
    last = list_checkpoints(tmp_path/'plain')[-1]
    logits = retrain(data, recipe, 0, rows, tmp_path/'out', device='cpu')
    np.testing.assert_allclose(logits, predict(last.model(averaged=True), data, rows), atol=1e-6)
    assert not np.allclose(logits, predict(last.model(), data, rows), atol=1e-6)

def test_it_trains_nothing_twice(data, tmp_path, monkeypatch):
    rows = data.rows('test')
    before = retrain(data, RECIPE, 0, rows, tmp_path, device='cpu')
    monkeypatch.setattr(retraining, 'fit', lambda *a, **k: pytest.fail('trained again'))
    again = retrain(data, RECIPE._replace(compile=True), np.int64(0), list(rows), tmp_path, device='cpu')
    assert again.equals(before) and again.attrs == before.attrs

def test_the_name_states_all_that_decides(data, rng):
    rows = data.rows('test')
    def name(data=data, recipe=RECIPE, seed=0, rows=rows, best=False): return str(_made_of(data, recipe, seed, rows, best))
    changed = [dict(learning_rate=.1), dict(epochs=3), dict(weights='imagenet'), dict(ema=.9), dict(mixed_precision='bf16'),
               dict(loss=retraining_loss(gamma=0)), dict(loss=retraining_loss(gamma=1))]
    other = data.with_frame(data.frame.assign(Hernia=1 - data.frame.Hernia))
    names = {name(), name(other), name(seed=1), name(rows=rows[::-1]), name(best=True), name(without(data, data.train.index[:1])),
             *(name(recipe=RECIPE._replace(**change)) for change in changed)}
    assert len(names) == 6 + len(changed)

def retraining_loss(gamma):
    from cxr_influence.training.losses import FocalLoss
    return FocalLoss(gamma=gamma)

def test_only_the_best_and_the_last_checkpoint_stay(data, tmp_path):
    for folder, after in [('all', None), ('few', lambda _: _keep_best(tmp_path/'few'))]:
        fit(data, tmp_path/folder, Recipe('densenet_small', epochs=5, batch_size=64), device='cpu', after_epoch=after)
    best = best_checkpoint(tmp_path/'all')
    assert best_checkpoint(tmp_path/'few').facts['epoch'] == best.facts['epoch']
    assert {c.facts['epoch'] for c in list_checkpoints(tmp_path/'few')} == {best.facts['epoch'], 5}
    assert sorted(path.name for path in (tmp_path/'few').rglob('removed.json')) == ['removed.json'] * (5 - len({best.facts['epoch'], 5}))
    speed = ['images_per_second', 'seconds']
    pd.testing.assert_frame_equal(read_history(tmp_path/'few').drop(columns=speed), read_history(tmp_path/'all').drop(columns=speed))

@pytest.mark.parametrize('loses', ['nothing', 'history', 'last'])
def test_what_was_removed_is_not_trained_again(data, tmp_path, monkeypatch, loses):
    recipe, run = Recipe('densenet_small', epochs=5, batch_size=64), tmp_path/'run'
    prune = lambda _: _keep_best(run)
    fit(data, run, recipe, device='cpu', after_epoch=prune)
    weights = {name: tensor.clone() for name, tensor in list_checkpoints(run)[-1]._tensors('model.safetensors').items()}
    before = best_checkpoint(run).facts['epoch'] if best_checkpoint(run).facts['epoch'] < 5 else None
    if loses == 'history': (run/'history.csv').unlink()
    if loses == 'last': os.truncate(run/'epoch_005/model.safetensors', 100)
    steps, step = [], _Training._take_step
    monkeypatch.setattr(_Training, '_take_step', lambda self, *rest: (steps.append(self.epochs), step(self, *rest))[1])
    assert len(fit(data, run, recipe, device='cpu', after_epoch=prune)) == 5
    assert set(steps) == (set(range(before or 0, 5)) if loses == 'last' else set())
    assert all(weights[name].equal(tensor) for name, tensor in list_checkpoints(run)[-1]._tensors('model.safetensors').items())

@pytest.mark.parametrize('harm', ['a bit', 'its end'])
def test_damaged_facts_of_a_removed_checkpoint_do_not_count(data, tmp_path, harm):
    recipe, run = Recipe('densenet_small', epochs=4, batch_size=64), tmp_path/'run'
    history = fit(data, run, recipe, device='cpu', after_epoch=lambda _: _keep_best(run))
    path = sorted(run.glob('*/removed.json'))[-1]
    content = bytearray(path.read_bytes())
    at = content.index(b'"epoch": ') + len('"epoch": ')
    content[at] ^= 1 # the number of another epoch: still JSON
    path.write_bytes(content if harm == 'a bit' else content[:-9])
    again = fit(data, run, recipe, device='cpu')
    columns = ['learning_rate', 'train_loss', 'validation_loss', 'validation_auroc']
    pd.testing.assert_frame_equal(again[columns], history[columns])
    assert path.parent.name in {one.folder.name for one in list_checkpoints(run)} # made again

def test_two_that_meet_train_once(data, tmp_path, monkeypatch):
    seen = []
    def slow(data, recipe, seed, rows, folder, *rest):
        seen.append(folder)
        folder.mkdir()
        time.sleep(.5)
        return pd.DataFrame(0., data.frame.index[rows], list(FINDINGS))
    monkeypatch.setattr(retraining, '_train_and_predict', slow)
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: retrain(data, RECIPE, 0, data.rows('test'), tmp_path, device='cpu'), range(3)))
    assert len(seen) == 1 and done[0].equals(done[1]) and done[0].equals(done[2])
    assert [path.suffix for path in tmp_path.iterdir() if path.name[0] != '.'] == ['.parquet']

SCRIPT = '''
import sys
from cxr_influence.data.batches import Data
from cxr_influence.data.nih import read_nih
from cxr_influence.data.store import decode
from cxr_influence.evidence.retraining import retrain
from cxr_influence.training.checkpoints import Recipe
if __name__ == '__main__':
    root, store, out, epochs = sys.argv[1:]
    frame = read_nih(root)
    data = Data(frame, decode(frame, root, 64, store))
    recipe = Recipe('densenet_small', epochs=int(epochs), batch_size=16)
    print(retrain(data, recipe, 0, data.rows('test'), out, device='cpu').shape)
'''

def script(tmp_path, phantom, data, out, epochs):
    (tmp_path/'script.py').write_text(SCRIPT)
    return [str(word) for word in [tmp_path/'script.py', phantom, data.store.folder, out, epochs]]

def environment():
    return os.environ | {'TQDM_DISABLE': '1', 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': ROOT}

@pytest.mark.long
def test_a_killed_retraining_resumes_and_gives_the_same(phantom, data, tmp_path):
    process = Script(*script(tmp_path, phantom, data, tmp_path/'out', 8))
    until = time.monotonic() + 120
    while not list((tmp_path/'out').glob('*/epoch_002')) and process.poll() is None and time.monotonic() < until: time.sleep(.01)
    process.kill()
    process.wait()
    assert not list((tmp_path/'out').glob('*.parquet')) and list((tmp_path/'out').glob('*/epoch_*'))
    recipe, rows, threads = RECIPE._replace(epochs=8), data.rows('test'), torch.get_num_threads()
    torch.set_num_threads(1) # as the killed one; two would round otherwise, and training amplifies it
    try: resumed, whole = [retrain(data, recipe, 0, rows, tmp_path/name, device='cpu') for name in ['out', 'whole']]
    finally: torch.set_num_threads(threads)
    np.testing.assert_array_equal(resumed, whole)
    assert not [path for path in (tmp_path/'out').iterdir() if path.is_dir()]

LATE = '''
import os, sys, time, pandas as pd
from cxr_influence.evidence import retraining
from cxr_influence.training.checkpoints import Checkpoint
clear, write, read = retraining._remove_parts, pd.DataFrame.to_parquet, Checkpoint.model
def late(*given): time.sleep(.5); clear(*given)
def slow(*given): write(*given); time.sleep(1.5)
def late_reader(*given, **settings): time.sleep(3); return read(*given, **settings)
if os.environ['LOCAL_RANK'] == '0': pd.DataFrame.to_parquet = slow # half written for long
else: retraining._remove_parts, Checkpoint.model = late, late_reader
sys.argv = sys.argv[1:]
exec(open(sys.argv[0]).read())
'''

@pytest.mark.long
def test_no_process_removes_what_another_is_writing_or_has_yet_to_read(phantom, data, tmp_path):
    (tmp_path/'late.py').write_text(LATE)
    call = [*LAUNCH, str(tmp_path/'late.py'), *script(tmp_path, phantom, data, tmp_path/'out', 1)]
    done = subprocess.run(call, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and len(list((tmp_path/'out').glob('*.parquet'))) == 1, done.stderr

LAUNCH = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes=2', '--num_machines=1',
          '--main_process_port=0', '--mixed_precision=no', '--dynamo_backend=no']

@pytest.mark.long
def test_two_processes_retrain_as_one(phantom, data, tmp_path):
    call = [*LAUNCH, *script(tmp_path, phantom, data, tmp_path/'out', 2)]
    for _ in range(2): # trained, then read
        done = subprocess.run(call, env=environment(), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.count('14)') == 2, done.stderr[-2000:]
    path, = [path for path in (tmp_path/'out').iterdir() if path.name[0] != '.']
    one = retrain(data, RECIPE, 0, data.rows('test'), tmp_path/'one', device='cpu')
    two = pd.read_parquet(path) # rounded otherwise, which AdamW enlarges
    assert two.index.equals(one.index) and np.corrcoef(two.to_numpy().ravel(), one.to_numpy().ravel())[0, 1] > .9

def wait_and_square(number, seconds):
    time.sleep(seconds)
    return number**2

def threads(): return torch.get_num_threads()
def fail(): raise KeyError('a bug')
def die(): os.kill(os.getpid(), signal.SIGKILL)

@pytest.mark.long
def test_results_come_in_the_order_of_the_calls(rng):
    calls = [(number, float(rng.uniform(0, .1))) for number in range(8)]
    expected = [number**2 for number in range(8)]
    with ThreadPoolExecutor(4) as pool: assert run_side_by_side(wait_and_square, calls, 'squares', pool) == expected
    with ThreadPoolExecutor(4) as pool:
        assert run_side_by_side(wait_and_square, calls, 'squares', pool, rng.integers(1, 9, 8)) == expected
    assert run_side_by_side(wait_and_square, calls) == expected

def test_the_longest_begin(monkeypatch):
    begun = []
    with ThreadPoolExecutor(1) as pool: run_side_by_side(lambda name: begun.append(name), [('short',), ('long',)], 'calls', pool, [1, 5])
    assert begun == ['long', 'short']

def test_cores_are_divided_and_the_bars_come_back(monkeypatch):
    before, bars = torch.get_num_threads(), os.environ.get('TQDM_DISABLE')
    monkeypatch.setattr(retraining, 'cpu_count', lambda: 2)
    assert run_side_by_side(threads, [()] * 2) == [1, 1]
    assert torch.get_num_threads() == before and os.environ.get('TQDM_DISABLE') == bars

def test_a_bug_keeps_its_traceback():
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyError, match='a bug'): run_side_by_side(fail, [()], 'calls', pool)

def test_a_killed_process_is_reported_in_a_sentence():
    with ProcessPoolExecutor(1, FORKS) as pool:
        with refused('was killed', '0 of 1 calls', 'resume'): run_side_by_side(die, [()], 'calls', pool)

def note_signals_until_told(path): # as `fit` does, which then saves
    with _note_signals() as noted:
        path.write_text(str(os.getpid()))
        while not noted: time.sleep(.01)
        raise KeyboardInterrupt

def test_where_an_idle_process_is_killed_the_one_at_work_ends(tmp_path):
    path, late = tmp_path/'at-work', []
    def kill_the_idle(pool):
        while not (path.is_file() and path.read_text()): time.sleep(.01)
        time.sleep(.5)
        at_work = int(path.read_text())
        os.kill(*set(pool._processes) - {at_work}, signal.SIGKILL) # it holds the lock that the one at work wants next
        time.sleep(20)
        if pool._executor_manager_thread: late.append(True), os.kill(at_work, signal.SIGKILL)
    with ProcessPoolExecutor(2, FORKS) as pool:
        for _ in range(2): pool.submit(time.sleep, .5)
        threading.Thread(target=kill_the_idle, args=(pool,), daemon=True).start()
        with refused('was killed', '0 of 1 calls', 'resume'): run_side_by_side(note_signals_until_told, [(path,)], 'calls', pool)
    assert not late

def test_after_a_fault_no_other_call_begins():
    begun = []
    def call(number):
        begun.append(number)
        time.sleep(.5 * number)
        if number == 0: fail()
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyError): run_side_by_side(call, [(0,), (1,), (2,), (3,)], 'calls', pool)
    assert begun in ([0], [0, 1])

@pytest.mark.long
def test_a_killed_worker_of_dask_is_reported_in_a_sentence():
    distributed = pytest.importorskip('distributed', reason='distributed is not installed: no test of Dask')
    import dask
    with dask.config.set({'distributed.scheduler.allowed-failures': 0}):
        with distributed.LocalCluster(1, threads_per_worker=1, dashboard_address=None, host='127.0.0.1') as cluster, distributed.Client(cluster) as client:
            with refused('was killed', '0 of 1 calls', 'resume'): run_side_by_side(die, [()], 'calls', client.get_executor())

@pytest.mark.long
def test_a_cluster_of_dask_keeps_the_order():
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster, distributed.Client(cluster) as client:
        assert run_side_by_side(pow, [(2, 3), (3, 2), (5, 1)], 'powers', client.get_executor()) == [8, 9, 5]

# Runs one can trust

@pytest.mark.long
def test_damaged_logits_are_made_again(data, tmp_path, capsys):
    rng, rows = np.random.default_rng(), data.rows('test')
    def ask():
        in_a_new_process()
        return retrain(data, RECIPE, 0, rows, tmp_path, device='cpu')
    logits, path = ask(), next(tmp_path.glob('[!.]*.parquet'))
    for how in ['flip', 'flip', 'cut', 'empty']:
        hurt(path, how, rng)
        pd.testing.assert_frame_equal(ask(), logits)
        assert f'{path.name} is damaged' in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]

@pytest.mark.long
def test_a_full_disk_is_a_sentence_and_what_was_trained_is_not_lost(data, tmp_path, monkeypatch):
    rows = data.rows('test')
    def full(*given, **settings): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(pd.DataFrame, 'to_parquet', full)
    said = sentence(retrain, data, RECIPE, 0, rows, tmp_path/'full', device='cpu')
    monkeypatch.undo()
    assert 'No space left on device' in said and not [*(tmp_path/'full').rglob('*.part')]
    monkeypatch.setattr('cxr_influence.training.loop._Training._take_step', lambda *a, **k: pytest.fail('trained again'))
    logits = retrain(data, RECIPE, 0, rows, tmp_path/'full', device='cpu')
    monkeypatch.undo()
    pd.testing.assert_frame_equal(logits, retrain(data, RECIPE, 0, rows, tmp_path/'whole', device='cpu'))

def test_what_cannot_work_is_refused_before_the_training(data, tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, 'fit', lambda *a, **k: pytest.fail('trained'))
    for rows in [[], [len(data)], [-1], ['a.png'], [.5], [[1]], data.test.index]:
        with refused('give row numbers from 0 to'): retrain(data, RECIPE, 0, rows, tmp_path/'out', device='cpu')
    assert not (tmp_path/'out').exists()
    (tmp_path/'file').touch()
    with refused('cannot be written'): retrain(data, RECIPE, 0, data.rows('test'), tmp_path/'file/out', device='cpu')
    with refused('costs are 1 for 2 calls'): run_side_by_side(pow, [(1, 1), (2, 2)], costs=[1])

def test_what_a_killed_retraining_left_half_written_is_removed(data, tmp_path):
    rows = data.rows('test')
    logits = retrain(data, RECIPE, 0, rows, tmp_path, device='cpu')
    path = next(tmp_path.glob('[!.]*.parquet'))
    left = path.with_name(f'{path.name}.9-9.part')
    left.touch()
    path.unlink()
    pd.testing.assert_frame_equal(retrain(data, RECIPE, 0, rows, tmp_path, device='cpu'), logits, check_flags=False)
    assert not left.exists()

@pytest.mark.long
def test_a_kernel_that_is_shut_down_does_not_wait_for_trackers(tmp_path):
    "ipykernel waits half a minute for child processes that ignore its signals, as trackers of shared memory do."
    import nbformat
    from nbclient import NotebookClient
    source = """
import time
import psutil
from cxr_influence.evidence import retraining
for again in range(2): assert sorted(retraining._as_they_end(abs, [(1, (2,)), (2, (-3,))])) == [(1, 2), (2, 3)]
def names(children): return sorted('tracker' if 'resource_tracker' in ' '.join(child.cmdline()) else 'worker' for child in children)
waited_for = names(get_ipython().kernel._process_children())
there = names(psutil.Process().children(recursive=True))
assert set(waited_for) == {'worker'} and set(there) == {'tracker', 'worker'}, (waited_for, there)
for child in get_ipython().kernel._process_children(): child.terminate() # as a kernel does that is shut down
end = time.monotonic() + 60
while get_ipython().kernel._process_children() and time.monotonic() < end: time.sleep(.1)
assert not get_ipython().kernel._process_children() # nor is one that has ended, and was not asked for its state, waited for
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': ROOT}}).execute()
