"The commands in a shell, and the experiments by papermill, as a person would run them."
import json, os, re, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest

from cxr_influence.data.nih import read_nih

BIN, ROOT = Path(sys.executable).parent, Path(__file__).resolve().parents[1]

def shell(folder, *words):
    done = subprocess.run([BIN/words[0], *map(str, words[1:])], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}'})
    return done.returncode, done.stdout + done.stderr

@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "The four commands, one after the other, in an empty folder; each one's output."
    folder = tmp_path_factory.mktemp('study')
    said = [shell(folder, 'cxr_phantom', 'data/NIH14', '--n', 130, '--size', 64)]
    broken = read_nih(folder/'data/NIH14', n=120).query('split == "train"').index[5] # it is skipped, now and by every later step
    next((folder/'data/NIH14').rglob(broken)).write_bytes(b'')
    said += [shell(folder, 'cxr_baseline', '--n', 120, '--skip', '--epochs', 2, '--recipe', 'small'),
             shell(folder, 'cxr_influence', '--checkpoints', './checkpoints', '--output', 'results/influence.csv'),
             *[shell(folder, 'cxr_subset', '--mode', mode, '--fractions', .5, '--seeds', 1) for mode in ['remove', 'select']]]
    assert [code for code, _ in said] == [0] * 5, '\n'.join(text for _, text in said)
    return folder, [text for _, text in said]

def test_the_commands_do_what_they_say(study):
    folder, said = study
    results = folder/'results'
    for text in said[1:]:
        for line in text.splitlines():
            if line.startswith('wrote '): assert (folder/line[6:]).is_file()
    scores = pd.read_csv(results/'influence.csv', index_col='image')
    train = read_nih(folder/'data/NIH14', n=120).query('split == "train"').index
    assert len(scores) == len(train) - 1 and set(scores.index) < set(train)
    assert scores.influence.nunique() == len(scores) == json.loads((results/'influence.json').read_text())['training_images']
    baseline = pd.read_csv(results/'baseline.csv', index_col='finding')
    assert len(baseline) == 17 and (baseline.auroc.dropna() <= 1).all()
    remove, select = (pd.read_csv(results/f'subsets_{mode}.csv') for mode in ['remove', 'select'])
    assert list(remove.rule) == ['all', 'top', 'bottom', 'random', 'stratified']
    assert remove.auroc[0] == select.auroc[0] == pytest.approx(baseline.auroc['macro'])
    assert abs(remove.images[1] - len(scores) / 2) < 1
    if len(scores) % 2 == 0: assert remove.retrained[1] == select.retrained[2] # to remove the top half is to select the bottom one

def test_a_second_call_finds_the_work_done(study):
    folder, _ = study
    before = {path: path.stat().st_mtime_ns for path in folder.glob('checkpoints/*/*')} | {
        path: path.stat().st_mtime_ns for path in folder.glob('_runs/retrained/*')}
    assert shell(folder, 'cxr_subset', '--mode', 'remove', '--fractions', .5, '--seeds', 1)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before

def test_the_executed_notebook_has_the_parameters_and_no_error(study):
    folder, _ = study
    run, = (folder/'_runs/baseline').iterdir()
    facts = json.loads((run/'run.json').read_text())
    assert facts['complete'] and facts['parameters']['recipe'] == 'small' and facts['peak_memory_mb'] > 100
    cells = json.loads((run/'notebook.ipynb').read_text())['cells']
    assert any("recipe = \"small\"" in ''.join(cell['source']) for cell in cells)

@pytest.mark.parametrize('words, answer', [
    (['cxr_baseline'], 'No data in data/NIH14'), (['cxr_baseline', '--data', 'nowhere'], 'cxr_phantom _data/phantom'),
    (['cxr_baseline', '--loss', 'hinge'], "invalid choice: 'hinge'"), (['cxr_baseline', '--epoch', 'x'], 'invalid int value'),
    (['cxr_influence'], 'No checkpoints in checkpoints'), (['cxr_subset', '--mode', 'drop'], "invalid choice: 'drop'"),
    (['cxr_subset'], 'No scores at results/influence.csv'), (['cxr_phantom', 'x', '--n', '3'], 'n=3 is invalid')],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '')
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, words, answer):
    code, text = shell(tmp_path, *words)
    assert code != 0 and answer in text and 'Traceback' not in text, text
    assert list(tmp_path.iterdir()) == []

def test_an_error_inside_the_notebook_arrives_as_a_sentence(study, tmp_path):
    folder, _ = study
    code, text = shell(tmp_path, 'cxr_baseline', '--data', folder/'data/NIH14', '--recipe', 'small', '--image_size', 31)
    assert code != 0 and 'image_size is 31' in text and 'Traceback' not in text, text
    assert not list(tmp_path.glob('_runs/*/*'))

def test_papermill_runs_an_experiment(study, tmp_path):
    folder, _ = study
    code, text = shell(tmp_path, 'papermill', ROOT/'nbs/experiments/baseline.ipynb', 'out.ipynb', '-p', 'data', folder/'data/NIH14',
                       '-p', 'epochs', 1, '-p', 'on_error', 'skip', '-p', 'out', 'run', '--no-progress-bar')
    assert code == 0, text
    assert pd.read_csv(tmp_path/'run/row.csv').epochs[0] == 1 and (tmp_path/'run/findings.png').stat().st_size > 5000

def test_the_command_trains_on_two_processes(study, tmp_path):
    "One of them writes notebook, table and checkpoints; the other helps to train."
    folder, _ = study
    code, text = shell(tmp_path, 'accelerate', 'launch', '--multi_gpu', '--num_processes=2', '--num_machines=1', '--main_process_port=0',
                       '--mixed_precision=no', '--dynamo_backend=no', BIN/'cxr_baseline', '--data', folder/'data/NIH14', '--skip',
                       '--recipe', 'small', '--epochs', 1, '--checkpoints', 'checkpoints')
    assert code == 0, text
    facts = json.loads((tmp_path/'checkpoints/epoch_001/checkpoint.json').read_text())
    assert facts['processes'] == 2 and facts['epochs'] == 1
    assert len(list(tmp_path.glob('_runs/*/*'))) == 1 and len(pd.read_csv(tmp_path/'results/baseline.csv')) == 17

@pytest.mark.parametrize('command', ['import'] + 'cxr_download cxr_phantom cxr_baseline cxr_influence cxr_subset cxr_demo'.split())
def test_the_import_and_help_are_light(tmp_path, command):
    "Neither loads what only a run needs."
    words = ['-c', 'import cxr_influence.runs.cli; print("usage:")'] if command == 'import' else [BIN/command, '--help']
    done = subprocess.run([sys.executable, '-X', 'importtime', *words], cwd=tmp_path, capture_output=True, text=True)
    loaded = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines() if line.startswith('import time:')}
    assert done.returncode == 0 and 'usage:' in done.stdout and 'cxr_influence.runs.cli' in loaded, done.stderr
    assert not loaded & {'torch', 'pandas', 'matplotlib', 'sklearn', 'papermill', 'nbconvert', 'nbformat'}

def test_the_demonstration_ends_in_one_report_of_four_chapters(tmp_path):
    code, text = shell(tmp_path, 'cxr_demo', '--n', 130, '--epochs', 1, '--seeds', 1)
    assert code == 0 and all(f'{step}/4' in text for step in range(1, 5)), text
    page = (tmp_path/'results/report.html').read_text()
    chapters = re.findall(r'<h1[^>]*>(.*?)<a', page)
    assert len(chapters) == 5 and chapters[0] == 'From radiographs to influence to subsets'
    assert len(list(tmp_path.glob('_runs/*/*/run.json'))) == 4 and chapters[3] == chapters[4] and len(set(chapters)) == 4
    opening = page[:page.index(chapters[1])]
    assert 'remove 10% by influence, top' in opening and 'select 30% by influence, top' in opening
    assert 'With one retraining of each subset' in opening and page.count('data:image/png') > 3
