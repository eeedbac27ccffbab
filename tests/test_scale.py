"Several processes, and several machines' worth of them: the tables of one process, and one sentence when something fails."
import json, os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat, numpy as np, pandas as pd, pytest, torch

from cxr_influence.attribution.scoring import influence
from cxr_influence.data.batches import load_data
from cxr_influence.evidence.subsets import read_scores, run_subsets, subset_grid
from cxr_influence.training.checkpoints import list_checkpoints
from cxr_influence.training.distributed import _alone, join_processes
from cxr_influence.training.resume import fit, read_history

BIN = Path(sys.executable).parent
TWO = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes=2', '--num_machines=1', '--main_process_port=0',
       '--mixed_precision=no', '--dynamo_backend=no']
SIZE = 32
QUIET = {**os.environ, 'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}

def launch(cwd, *words, launcher=TWO, seconds=300):
    "Run a command, by default in two processes."
    return subprocess.run([*launcher, *map(str, words)], cwd=cwd, env=QUIET, capture_output=True, text=True, timeout=seconds)

def cxr_run(cwd, experiment, name, **parameters):
    given = [word for key, value in parameters.items() for word in ('-p', f'{key}={value}')]
    return succeed(cwd, BIN/'cxr_run', experiment, '--name', name, '--runs', 'runs', *given)

def succeed(cwd, *words):
    done = launch(cwd, *words)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done

@pytest.fixture(scope='module')
def study(phantom, tmp_path_factory):
    "Training by its command, scoring and retraining, each by two processes. An image store of its own, as a user has it."
    folder = tmp_path_factory.mktemp('scale')
    (folder/'settings.ini').write_text('')
    checkpoints = folder/'checkpoints'
    said = [succeed(folder, BIN/'cxr_baseline', '--data', phantom, '--recipe', 'small', '--image-size', SIZE, '--epochs', 2, '--batch-size', 16,
                    '--checkpoints', checkpoints)]
    said += [cxr_run(folder, 'influence', 'two', data=phantom, checkpoints=checkpoints)]
    said += [cxr_run(folder, 'subsets', 'two', data=phantom, checkpoints=checkpoints, scores=folder/'runs/influence/two/influence.csv',
                     valuations='influence', fractions='0.4', rules='top,random', seeds='0,1', retrained=folder/'retrained')]
    return folder, checkpoints, said

@pytest.mark.long('two processes')
def test_two_processes_train_score_and_retrain(study):
    "Each step's folder is that of one process: written by the main one, which alone prints its row."
    folder, checkpoints, said = study
    for experiment, done, word in zip(['_runs/baseline', 'runs/influence', 'runs/subsets'], said, ['Checkpoints are in', 'The run is in', 'The run is in']):
        path, = (folder/experiment).glob('[!.]*')
        record = json.loads((path/'run.json').read_text())
        assert record['status'] == 'complete' and len(pd.read_csv(path/'row.csv')) == 1
        assert done.stdout.count(word) == 1
    assert [checkpoint.facts['processes'] for checkpoint in list_checkpoints(checkpoints)] == [2, 2]
    assert len(pd.read_csv(folder/'results/baseline.csv')) == 17 and said[0].stdout.count('baseline.csv') == 1

@pytest.mark.long('two processes')
def test_scores_of_two_processes_are_those_of_one(study, phantom):
    "The validation gradient is added up in another order, so float32 differs in its last digits; images and their losses are equal."
    folder, checkpoints, _ = study
    two = pd.read_csv(folder/'runs/influence/two/influence.csv', index_col='image')
    one = influence(checkpoints, load_data(phantom, SIZE, folder/'_data'), folder/'one.csv', device='cpu')
    assert two.index.equals(one.index) and list(two) == list(one)
    np.testing.assert_allclose(two.loss, one.loss, rtol=1e-5)
    for name in two.columns.drop('rank'):
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=5e-3 * one[name].abs().max(), err_msg=name)

@pytest.mark.long('two processes')
def test_retrainings_of_two_processes_are_bitwise_those_of_one(study, phantom):
    "Each process trains its share alone, so nothing is rounded otherwise."
    folder, checkpoints, _ = study
    data, threads = load_data(phantom, SIZE, folder/'_data'), torch.get_num_threads()
    scores = read_scores(folder/'runs/influence/two/influence.csv')
    grid = subset_grid(scores.influence, data.frame, {'remove': [.4]}, ['top', 'random'], [0, 1])
    torch.set_num_threads(1) # as in each of the two
    try:
        with ThreadPoolExecutor(1) as pool: one = run_subsets(checkpoints, data, grid, folder/'alone', executor=pool)
    finally: torch.set_num_threads(threads)
    two = pd.read_csv(folder/'runs/subsets/two/subsets_remove.csv')
    timed = ['seconds', 'retrained']
    one.drop(columns=timed).to_csv(folder/'one.csv', index=False)
    pd.testing.assert_frame_equal(two.drop(columns=timed), pd.read_csv(folder/'one.csv'), check_exact=True)
    kept = [sorted(path.name for path in (folder/name).glob('[!.]*')) for name in ['retrained', 'alone']]
    assert kept[0] == kept[1]
    for name in kept[0]:
        if name.endswith('.parquet'): pd.testing.assert_frame_equal(*(pd.read_parquet(folder/f/name) for f in ['retrained', 'alone']), check_exact=True)

@pytest.mark.long('two processes')
def test_training_of_two_processes_is_that_of_one(study, phantom):
    "Gradients are added up in another order, which AdamW enlarges step by step: tables agree less from epoch to epoch."
    folder, checkpoints, _ = study
    data, baseline = load_data(phantom, SIZE, folder/'_data'), list_checkpoints(checkpoints)[0]
    one, two = fit(data, folder/'alone_run', baseline.recipe(), baseline.facts['seed'], device='cpu'), read_history(checkpoints)
    np.testing.assert_allclose(two.learning_rate, one.learning_rate, rtol=1e-12)
    np.testing.assert_allclose(two.train_loss, one.train_loss, rtol=.1)
    kept = [sorted(str(path.relative_to(run)) for path in run.rglob('*.*')) for run in [checkpoints, folder/'alone_run']]
    assert kept[0] == kept[1]

@pytest.mark.long('two processes')
def test_a_complete_run_returns_at_once_in_two_processes(study, phantom):
    folder, checkpoints, _ = study
    before = (folder/'runs/influence/two/run.json').read_bytes()
    done = cxr_run(folder, 'influence', 'two', data=phantom, checkpoints=checkpoints)
    assert done.stdout.count('The run is in') == 1 and (folder/'runs/influence/two/run.json').read_bytes() == before

CELLS = '''a: int = 1 # a number
out: str = "by-hand"''', '''import os
from cxr_influence.data.files import InputError
from cxr_influence.runs.runs import end_run, start_run
from cxr_influence.training.distributed import join_processes
out = start_run("failing", globals())
processes = join_processes()''', '''processes.wait()
if os.environ["RANK"] in {ranks}: raise {error}
processes.wait()'''

@pytest.mark.long
@pytest.mark.parametrize('ranks, error', [('01', 'InputError("a is unfit.")'), ('1', 'KeyError("a is unfit.")')])
def test_a_failure_of_one_process_ends_all_with_one_sentence(tmp_path, ranks, error):
    cells = [nbformat.v4.new_code_cell(cell.replace('{ranks}', repr(ranks)).replace('{error}', error)) for cell in CELLS]
    cells[0].metadata['tags'], cells[2].metadata['tags'] = ['parameters'], ['all_processes']
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/'failing.ipynb')
    done = launch(tmp_path, BIN/'cxr_run', 'failing.ipynb', seconds=120)
    ours = [line for line in done.stderr.splitlines() if line.startswith('cxr_run: ')]
    assert done.returncode and len(ours) == 1 and 'a is unfit.' in ours[0] and not done.stdout, done.stderr
    record = json.loads((tmp_path/'_runs/failing/default/run.json').read_text())
    assert record['status'] in ('failed', 'interrupted') and not (tmp_path/'_runs/failing/default/row.csv').exists()

@pytest.mark.long
def test_an_experiment_without_a_shared_part_is_refused(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELLS[0], metadata={'tags': ['parameters']})]), tmp_path/'plain.ipynb')
    done = launch(tmp_path, BIN/'cxr_run', 'plain.ipynb', seconds=120)
    assert done.returncode and done.stderr.count('plain runs in one process') == 1 and not list(tmp_path.glob('_runs/*/*'))

def test_a_process_can_work_alone(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '1') # of a launch whose other processes are not there
    with _alone():
        with _alone(): assert join_processes('cpu').count == 1
        assert join_processes('cpu').main
