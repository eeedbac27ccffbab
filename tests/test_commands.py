"The commands in a shell, and the experiments by papermill, as a person would run them."
import ast, json, os, re, shutil, signal, subprocess, sys, time
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import nbformat
import pandas as pd
import pytest, requests

import cxr_influence
from cxr_influence.data.nih import read_nih
from cxr_influence.runs import cli, pipeline
from cxr_influence.runs.parameters import experiments, parameters_of
from conftest import ci

BIN, ROOT = Path(sys.executable).parent, Path(__file__).resolve().parents[1]

COMMANDS = ['cxr_demo', 'cxr_run', 'cxr_sweep', 'cxr_collect', 'cxr_report', 'cxr_baseline', 'cxr_influence', 'cxr_subset', 'cxr_phantom', 'cxr_download']

def shell(folder, *words):
    done = subprocess.run([BIN/words[0], *map(str, words[1:])], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}'})
    return done.returncode, done.stdout + done.stderr

def within(command, *words):
    "Call a command in this process: its exit code and what it prints. A process of its own would first import for five seconds."
    with redirect_stdout(StringIO()) as text, redirect_stderr(text):
        try: code = command([str(word) for word in words]) or 0
        except SystemExit as end: code = end.code or 0
    return code, text.getvalue()

@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    "Call a command in this process, in an empty folder: its exit code and what it prints."
    monkeypatch.chdir(tmp_path)
    def call(command, *words):
        function = getattr(pipeline, command, None) or getattr(cli, command)
        try: code = function([str(word) for word in words]) or 0
        except SystemExit as end: code = end.code or 0
        captured = capfd.readouterr()
        return code, captured.out + captured.err
    return call

@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "The four commands, one after the other, in an empty folder, and the last once more in this process; each one's output."
    folder = tmp_path_factory.mktemp('study')
    said = [shell(folder, 'cxr_phantom', 'data/NIH14', '--n', 130, '--size', 64)]
    broken = read_nih(folder/'data/NIH14', n=120).query('split == "train"').index[5] # it is skipped, now and by every later step
    next((folder/'data/NIH14').rglob(broken)).write_bytes(b'')
    said += [shell(folder, 'cxr_baseline', '--n', 120, '--skip', '--epochs', 2, '--recipe', 'small', '--image-size', 32),
             shell(folder, 'cxr_influence', '--checkpoints', './checkpoints', '--output', 'results/influence.csv'),
             shell(folder, 'cxr_subset', '--mode', 'remove', '--fractions', .5, '--seeds', 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        said.append(within(pipeline.cxr_subset, '--mode', 'select', '--fractions', .5, '--seeds', 1))
    assert [code for code, _ in said] == [0] * 5, '\n'.join(text for _, text in said)
    return folder, [text for _, text in said]

@pytest.mark.long('cxr commands')
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

@pytest.mark.long('cxr commands')
def test_a_second_call_finds_the_work_done(study, monkeypatch):
    folder, _ = study
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob('checkpoints/*/*')} | {
        path: path.stat().st_mtime_ns for path in folder.glob('_runs/retrained/*')}
    assert within(pipeline.cxr_subset, '--mode', 'remove', '--fractions', .5, '--seeds', 1)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before

@pytest.mark.long('cxr commands')
def test_the_executed_notebook_has_the_parameters_and_no_error(study):
    folder, _ = study
    run, = (folder/'_runs/baseline').iterdir()
    facts = json.loads((run/'run.json').read_text())
    assert facts['status'] == 'complete' and facts['parameters']['recipe'] == 'small' and facts['peak_memory_mb'] > 100
    cells = json.loads((run/'notebook.ipynb').read_text())['cells']
    assert any("recipe = \"small\"" in ''.join(cell['source']) for cell in cells)

@pytest.mark.parametrize('words, answer', [
    (['cxr_baseline'], 'No data in data/NIH14'), (['cxr_baseline', '--data', 'nowhere'], 'cxr_phantom _data/phantom'),
    (['cxr_baseline', '--loss', 'hinge'], "invalid choice: 'hinge'"), (['cxr_baseline', '--epoch', 'x'], 'invalid int value'),
    (['cxr_influence'], 'No checkpoints in checkpoints'), (['cxr_subset', '--mode', 'drop'], "invalid choice: 'drop'"),
    (['cxr_subset'], 'No scores at results/influence.csv'), (['cxr_phantom', 'x', '--n', '3'], 'n=3 is invalid')],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '')
def test_what_is_wrong_is_said_in_a_sentence(here, tmp_path, words, answer):
    code, text = here(*words)
    assert code == 2 and answer in text and 'Traceback' not in text, text
    assert list(tmp_path.iterdir()) == []

@pytest.mark.long('cxr commands')
def test_an_error_inside_the_notebook_arrives_as_a_sentence(study, here):
    folder, _ = study
    code, text = here('cxr_baseline', '--data', folder/'data/NIH14', '--recipe', 'small', '--image_size', 31)
    assert code == 2 and 'image_size is 31' in text and 'Traceback' not in text, text

@pytest.mark.long('cxr commands')
def test_papermill_runs_an_experiment(study, tmp_path):
    folder, _ = study
    code, text = shell(tmp_path, 'papermill', ROOT/'nbs/experiments/baseline.ipynb', 'out.ipynb', '-p', 'data', folder/'data/NIH14',
                       '-p', 'epochs', 1, '-p', 'on_error', 'skip', '-p', 'out', 'run', '--no-progress-bar')
    assert code == 0, text
    assert pd.read_csv(tmp_path/'run/row.csv').epochs[0] == 1 and (tmp_path/'run/findings.png').stat().st_size > 5000

@pytest.mark.parametrize('command', ['import', *COMMANDS, 'cxr_run baseline', 'cxr_sweep subsets'])
def test_the_import_and_help_are_light(tmp_path, command):
    "Neither loads what only a run needs."
    words = ['-c', 'import cxr_influence.runs.pipeline; print("usage:")'] if command == 'import' else [BIN/command.split()[0], *command.split()[1:], '--help']
    done = subprocess.run([sys.executable, '-X', 'importtime', *words], cwd=tmp_path, capture_output=True, text=True)
    loaded = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines() if line.startswith('import time:')}
    assert done.returncode == 0 and 'usage:' in done.stdout and 'cxr_influence.runs.cli' in loaded, done.stderr
    assert not loaded & {'torch', 'pandas', 'matplotlib', 'sklearn', 'papermill', 'nbconvert', 'nbformat'}

@pytest.mark.long
def test_the_demonstration_ends_in_one_report_of_four_chapters(tmp_path):
    code, text = shell(tmp_path, 'cxr_demo', '--n', 130, '--epochs', 1, '--seeds', 1)
    assert code == 0 and all(f'{step}/4' in text for step in range(1, 5)), text
    page = (tmp_path/'results/report.html').read_text()
    chapters = re.findall(r'<h2>(.*?)</h2>', page)
    assert chapters == ['Summary', 'Contents', 'The classifier', 'Influence', 'Subsets', 'Model card', 'What was run', 'Tables']
    assert len(list(tmp_path.glob('_runs/*/*/run.json'))) == 4
    summary = page[page.index('>Summary<'):page.index('>Contents<')]
    assert 'compared with random' in page and 'With one retraining of a subset' in summary and 'a small demonstration' in summary
    assert all(f'Subsets: {mode} images' in page for mode in ['remove', 'select']) and page.count('data:image/png') > 3

# --- what users of command lines expect

@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_states_its_version_and_no_default_that_is_none(here, tmp_path, command):
    code, text = here(command, '--version')
    assert (code, text.strip()) == (0, f'cxr_influence {cxr_influence.__version__}')
    code, text = here(command, '--help')
    assert code == 0 and 'None' not in text and 'default: )' not in text and 'default: False' not in text

def test_the_help_names_what_decides_a_default(here, tmp_path):
    text = ' '.join(here('cxr_baseline', '--help')[1].split())
    for option in ['--image-size', '--backbone', '--weights', '--loss', '--epochs', '--batch-size', '--learning-rate']:
        assert "(default: the recipe's)" in text.rpartition(f' {option} ')[2][:160], option
    assert 'default: 0)' not in text.replace('augmentation (default: 0)', '')

@pytest.mark.parametrize('words', [['cxr_run', 'baseline'], ['cxr_run', ROOT/'nbs/experiments/subsets.ipynb'], ['cxr_sweep', 'influence']], ids=str)
def test_the_help_of_an_experiment_lists_its_parameters(here, tmp_path, words):
    code, text = here(*words, '--help')
    assert code == 0, text
    for one in parameters_of(words[1]):
        if one.name == 'out': continue
        assert re.search(rf'^  {one.name} +{re.escape(one.kind)} = {re.escape(repr(one.default))}.*{re.escape(one.comment)}$', text, re.M), one

def test_help_without_an_experiment_lists_them(here, tmp_path):
    code, text = here('cxr_run', '--help')
    assert code == 0 and all(name in text for name in experiments()), text

def test_old_spellings_of_options_are_still_taken(here, tmp_path):
    code, text = here('cxr_phantom', 'one', '--n=20', '--size', 32, '--label_errors', 0.2)
    assert code == 0 and here('cxr_phantom', 'two', '--n', 20, '--size=32', '--label-errors=0.2')[0] == 0, text
    assert (tmp_path/'one/phantom_truth.csv').read_bytes() == (tmp_path/'two/phantom_truth.csv').read_bytes()

# --- a small experiment of the user's own

def notebook(folder, *lines, name='addition'):
    "An experiment that adds two numbers; the lines run before it has a row."
    cell = nbformat.v4.new_code_cell
    parameters = cell('a: int = 1 # the first number\nb: float = 2. # the second\nout: str = "by-hand" # folder')
    parameters.metadata['tags'] = ['parameters']
    begin = cell(f'import pandas as pd\nfrom cxr_influence.runs.runs import end_run, start_run\nout = start_run("{name}", globals())')
    end = cell('row = pd.DataFrame([{"total": a + b}])\nend_run(row)')
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# Addition'), parameters, begin, *map(cell, lines), end])
    nbformat.write(made, folder/f'{name}.ipynb')
    return f'{name}.ipynb'

def only_run(folder, name='addition'):
    run, = (folder/'_runs'/name).glob('*/run.json')
    return run.parent, json.loads(run.read_text())

@pytest.mark.long
def test_a_run_prints_its_row_is_complete_and_can_be_repeated(here, tmp_path):
    made = notebook(tmp_path)
    code, text = here('cxr_run', made, '-p', 'a=5', '--name', 'five')
    assert code == 0 and re.search(r'total +7\b', text) and '_runs/addition/five' in text, text
    run, facts = only_run(tmp_path)
    assert run.name == 'five' and facts['parameters']['a'] == 5 and facts['status'] == 'complete' and (run/'log.txt').is_file()
    executed = (run/'notebook.ipynb').stat().st_mtime_ns
    code, text = here('cxr_run', made, '-p', 'a=5', '--name', 'five')
    assert code == 0 and 'complete' in text and (run/'notebook.ipynb').stat().st_mtime_ns == executed
    code, text = here('cxr_run', run)
    assert code == 2 and '--again' in text
    code, text = shell(tmp_path, 'cxr_run', '--again', run)
    assert code == 0 and 'agree' in text, text

@pytest.mark.long
def test_a_repeated_run_with_other_numbers_is_told(here, tmp_path):
    made = notebook(tmp_path, 'import random\nb = random.SystemRandom().random()')
    assert here('cxr_run', made)[0] == 0
    run, _ = only_run(tmp_path)
    code, text = here('cxr_run', '--again', run)
    assert code == 1 and 'differ' in text and 'Traceback' not in text, text

@pytest.mark.parametrize('words, answer', [
    (['-p', 'a=two'], 'a is'), (['-p', 'c=3'], "no parameter 'c'"), (['-p', 'a'], 'name=value'), (['-p', 'a=1', '-p', 'a=2'], 'twice'),
    (['-p', 'b=nan'], 'b is'), (['--runs', 'addition.ipynb'], 'runs'), (['--name', '../../elsewhere'], 'name'),
    (['-p', 'name=x'], 'name is an argument of every run'), (['-p', 'runs=x'], 'rename the parameter')], ids=str)
def test_a_run_that_cannot_be_is_refused_before_it_begins(here, tmp_path, words, answer):
    made = notebook(tmp_path)
    code, text = here('cxr_run', made, *words)
    assert code == 2 and answer in text and 'Traceback' not in text and len(text.splitlines()) == 1, text
    assert [path.name for path in tmp_path.iterdir()] == [made]

@pytest.mark.long
@pytest.mark.parametrize('line, code, answer', [
    ('1 / 0', 1, 'division by zero'), ('import os\nos.kill(os.getpid(), 9)', 1, 'was killed'),
    ('from cxr_influence.data.files import InputError\nraise InputError("the data is too small")', 2, 'the data is too small')], ids=['error', 'dead kernel', 'bad input'])
def test_a_failure_inside_is_one_sentence_and_the_rest_is_beside_the_run(here, tmp_path, line, code, answer):
    made = notebook(tmp_path, 'print("to be kept")', line)
    found, text = shell(tmp_path, 'cxr_run', made) if 'kill' in line else here('cxr_run', made)
    assert found == code and answer in text and 'Traceback' not in text and text.count('\n') == 1, text
    run, facts = only_run(tmp_path)
    assert facts['status'] == 'failed' and answer in facts['error'] and (code == 2 or str(run.relative_to(tmp_path)) in text)
    assert 'to be kept' in (run/'log.txt').read_text() and (run/'notebook.ipynb').is_file()

@pytest.mark.long
@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_has_the_exit_code_of_its_signal(tmp_path, number, code):
    made = notebook(tmp_path, 'from pathlib import Path\nimport time\nPath("begun").touch()\ntime.sleep(120)')
    job = subprocess.Popen([BIN/'cxr_run', made], cwd=tmp_path, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while job.poll() is None and not (tmp_path/'begun').exists(): time.sleep(.1)
    os.killpg(job.pid, number) if number == signal.SIGINT else job.send_signal(number)
    _, text = job.communicate(timeout=60)
    assert job.returncode == code and 'stopped' in text and 'Traceback' not in text, text
    assert only_run(tmp_path)[1]['status'] == 'interrupted'

@pytest.mark.long('cxr commands')
def test_a_reader_that_closes_the_pipe_is_no_error(study):
    folder, _ = study
    done = subprocess.run(f'{BIN}/cxr_collect _runs/baseline | true', cwd=folder, shell=True, capture_output=True, text=True)
    assert done.stderr == ''

# --- sweeps

@pytest.mark.long
def test_a_sweep_of_four_with_one_failing_has_four_rows(here, tmp_path):
    made = notebook(tmp_path, 'assert (a, b) != (2, 20.), "two and twenty"')
    (tmp_path/'grid.yaml').write_text('a: [1, 2]\nb: [10, 2.0e1]')
    code, text = here('cxr_sweep', made, '-f', 'grid.yaml', '--dry-run')
    assert code == 0 and len(re.findall(r'^.*\b(?:10|20)\b', text, re.M)) == 4 and not (tmp_path/'_runs').exists(), text
    code, text = shell(tmp_path, 'cxr_sweep', made, '-f', 'grid.yaml', '--workers', 2, '-o', 'tables/rows.csv')
    assert code == 1 and '1 of 4 runs' in text and 'Traceback' not in text, text
    rows = pd.read_csv(tmp_path/'tables/rows.csv')
    assert rows.a.tolist() == [1, 1, 2, 2] and rows.b.tolist() == [10, 20, 10, 20]
    assert rows.status.tolist() == ['complete'] * 3 + ['failed'] and rows.total.tolist()[:3] == [11, 21, 12]
    assert 'two and twenty' in rows.error[3] and rows.error[:3].isna().all()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob('_runs/addition/*/notebook.ipynb')}
    code, text = here('cxr_sweep', made, '-f', 'grid.yaml', '--dry-run')
    assert code == 0 and text.count('complete') >= 3, text
    notebook(tmp_path)
    code, text = here('cxr_collect', '_runs/addition', '-o', 'all.csv')
    assert code == 0 and len(pd.read_csv(tmp_path/'all.csv')) == 4 and {path: path.stat().st_mtime_ns for path in times} == times, text

@pytest.mark.parametrize('grid, answer', [
    (None, 'grid.yaml'), ('', 'is not a grid'), ('a', 'is not a grid'), ('[1, 2]', 'is not a grid'), ('a: [1\n', 'YAML'), ('a: [1]\na: [2]', 'a twice'),
    ('a: []', 'is empty'), ('c: [1]', "no parameter 'c'"), ('a: [one]', 'a is'), ('a: [1]\nb: !!python/object/apply:os.mkdir [owned]', 'YAML'),
    ('out: [one, two]', 'out')], ids=str)
def test_a_grid_that_cannot_be_run_is_refused(here, tmp_path, grid, answer):
    made = notebook(tmp_path)
    if grid is not None: (tmp_path/'grid.yaml').write_text(grid)
    before = sorted(tmp_path.iterdir())
    code, text = here('cxr_sweep', made, '-f', 'grid.yaml')
    assert code == 2 and answer in text and 'Traceback' not in text and sorted(tmp_path.iterdir()) == before, text

@pytest.mark.parametrize('words, answer', [
    (['cxr_sweep', 'baseline'], '-f grid.yaml'), (['cxr_collect', 'nowhere'], 'nowhere'), (['cxr_report', 'nowhere'], 'nowhere'),
    (['cxr_run'], 'required'), (['cxr_run', 'bass'], 'baseline, '), (['cxr_run', 'bass', '--help'], None), (['cxr_report', '.', '-o', 'report.pdf'], '.html'),
    (['cxr_sweep', 'baseline', '-f', 'grid.yaml', '--workers', '0'], 'workers is 0'), (['cxr_collect', '.', '-o', 'rows.xlsx'], '.csv')], ids=str)
def test_bad_words_are_refused(here, tmp_path, words, answer):
    code, text = here(*words)
    assert code == (2 if answer else 0) and (answer or 'experiments: ') in text and 'Traceback' not in text, text
    assert list(tmp_path.iterdir()) == []

@pytest.mark.parametrize('name', ['workers', 'name', 'grid'])
def test_a_parameter_with_the_name_of_an_argument_is_refused_in_a_sweep(here, tmp_path, name):
    (tmp_path/'grid.yaml').write_text('a: [1]')
    code, text = here('cxr_sweep', notebook(tmp_path), '-f', 'grid.yaml', '-p', f'{name}=1', '--dry-run')
    assert code == 2 and f'{name} is an argument' in text and 'Traceback' not in text, text

def test_the_home_folder_is_found_after_an_equals_sign(here, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    start = tmp_path/'home/runs/addition/one'
    start.mkdir(parents=True)
    (start/'run.json').write_text(json.dumps(dict(experiment='addition', status='failed', error='no')))
    code, text = here('cxr_collect', '~/runs', '--output=~/t.csv')
    assert code == 0 and len(pd.read_csv(tmp_path/'home/t.csv')) == 1 and not (tmp_path/'~').exists(), text
    (tmp_path/'grid.yaml').write_text('- {data: ~/d, others: [~/e, f~]}')
    assert cli._read_grid('grid.yaml', {}) == [dict(data=f'{tmp_path}/home/d', others=[f'{tmp_path}/home/e', 'f~'])]
    assert cli._pairs(['data=~/d', 'text=a~/b']) == dict(data=f'{tmp_path}/home/d', text='a~/b')

def test_the_reason_of_a_failure_is_printed_to_its_end(here, tmp_path):
    reason = f'{"a/long/path/" * 9}labels.csv, row 17: Effusion is {"x" * 70}: write 1 or 0.'
    for name, facts in dict(good=dict(status='complete'), bad=dict(status='failed', error=reason)).items():
        (tmp_path/f'runs/{name}').mkdir(parents=True)
        (tmp_path/f'runs/{name}/run.json').write_text(json.dumps(dict(experiment='addition') | facts))
        (tmp_path/f'runs/{name}/row.csv').write_text('total\n3\n')
    code, text = here('cxr_collect', 'runs')
    assert code == 0 and ' '.join(text.split()).endswith(f'bad: {reason}'), text

def test_a_step_is_named_by_what_is_not_the_default_and_the_next_one_can_be_pasted(here, tmp_path, monkeypatch):
    from cxr_influence.runs import runs
    asked = []
    monkeypatch.setattr(runs, 'run', lambda experiment, again, **given: asked.append(given) or tmp_path/'one')
    monkeypatch.setattr(pipeline, '_root_of', lambda checkpoints, data: 'd')
    (tmp_path/'one').mkdir()
    code, text = here('cxr_influence', '--checkpoints', 'ck ü', '--output', 'my results/a.csv')
    assert code == 0 and asked == [dict(data='d', checkpoints='ck ü')]
    assert text.splitlines()[-1].endswith("--checkpoints 'ck ü' --scores 'my results/a.csv'"), text

# --- refused before the work

@pytest.mark.parametrize('words, answer', [
    (['cxr_subset', '--rules', 'top'], 'add random'), (['cxr_subset', '--rules', 'random,best'], "Unknown rule 'best'"),
    (['cxr_subset', '--scores', 'scores.csv', '--valuations', 'influence,beauty'], 'beauty'), (['cxr_subset', '--budget', 'hours'], "invalid choice: 'hours'"),
    (['cxr_subset', '--fractions', '0.3,1.5'], 'fraction is 1.5'), (['cxr_subset', '--fractions', 'many'], "fractions is 'many'"),
    (['cxr_subset', '--fractions', 'nan'], 'fraction is nan'), (['cxr_subset', '--seeds', 0], 'seeds is 0'), (['cxr_subset', '--seeds', 'x'], 'invalid int'),
    (['cxr_subset', '--rules', 'random,random'], 'twice'), (['cxr_subset', '--scores', 'scores.csv', '--results', 'scores.csv'], 'results is scores.csv'),
    (['cxr_subset', '--scores', 'scores.csv', '--checkpoints', 'nowhere'], 'No checkpoints in nowhere'),
    (['cxr_influence', '--output', 'scores.txt'], 'ends in .csv'), (['cxr_influence', '--output', 'scores.csv/influence.csv'], 'cannot be written'),
    (['cxr_influence', '--batch-size', 0], 'batch_size is 0'), (['cxr_influence', '--data', 'nowhere'], 'No checkpoints'),
    (['cxr_baseline', '--data', '.', '--epochs', 0], 'epochs is 0'), (['cxr_baseline', '--data', '.', '--learning-rate', 'nan'], 'learning_rate is nan'),
    (['cxr_baseline', '--data', '.', '--results', 'scores.csv'], 'results is scores.csv'), (['cxr_baseline', '--data', '.', '--checkpoints', 'scores.csv/a'], 'checkpoints is'),
    (['cxr_baseline', '--data', '.', '--backbone', 'resnet9000'], 'resnet9000'), (['cxr_baseline', '--data', '.', '--weights', 'nothing.pth'], 'nothing.pth'),
    (['cxr_demo', '--seeds', 0], 'seeds is 0'), (['cxr_demo', '--epochs', 0], 'epochs is 0'), (['cxr_demo', '--n', 3], 'n=3 is invalid'),
    (['cxr_demo', '--data', 'nowhere'], 'No data in nowhere'), (['cxr_demo', '--results', 'scores.csv'], 'results is scores.csv'),
    (['cxr_phantom', 'scores.csv/phantom'], 'cannot be written'), (['cxr_phantom', 'x', '--label-errors', 2], 'label_errors'),
    (['cxr_download', '--archives', '13'], '13'), (['cxr_download', '--out', 'scores.csv'], 'out is scores.csv'),
    (['cxr_download', '--plan', '--source', 'kaggle', '--archives', 1], 'do not give --archives')], ids=lambda words: ' '.join(map(str, words)) if isinstance(words, list) else '')
def test_what_cannot_be_is_refused_before_the_work(here, tmp_path, words, answer):
    (tmp_path/'scores.csv').write_text('image,influence\na.png,1\n')
    code, text = here(*words)
    assert code == 2 and answer in text and 'Traceback' not in text, text
    assert [path.name for path in tmp_path.iterdir()] == ['scores.csv']

# --- the package

@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "A folder into which the wheel is installed, without the packages that it needs."
    source = tmp_path_factory.mktemp('source')
    for name in ('settings.ini', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'): shutil.copy(ROOT/name, source)
    for name in ('cxr_influence', 'nbs/experiments'): shutil.copytree(ROOT/name, source/name, ignore=shutil.ignore_patterns('__pycache__'))
    target, pip = tmp_path_factory.mktemp('installed'), [sys.executable, '-m', 'pip']
    for words in [['wheel', '.', '--no-build-isolation', '-w', 'out'], ['install', '--target', target, 'out/cxr_influence-*.whl']]:
        words = [str(next(source.glob(word))) if '*' in str(word) else str(word) for word in words]
        done = subprocess.run([*pip, *words, '--no-deps', '--no-index', '--quiet'], cwd=source, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return target

@pytest.mark.long
def test_the_wheel_runs_an_experiment_in_a_repository_of_the_user(installed, tmp_path):
    "Nothing of the checkout is needed, and the commit of the user's repository is not taken for that of the package."
    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b.c']
    for words in (['init', '-q'], ['commit', '-q', '--allow-empty', '-m', 'mine']): subprocess.run([*git, *words], cwd=tmp_path, check=True)
    mine = subprocess.check_output(['git', 'rev-parse', 'HEAD'], cwd=tmp_path, text=True).strip()
    env = {**os.environ, 'PYTHONPATH': str(installed), 'PYTHONDONTWRITEBYTECODE': '1'}
    words = ['-p', 'n=100', '-p', 'epochs=1', '-p', 'recipe=small', '-p', 'image_size=32', '--name', 'first']
    done = subprocess.run([sys.executable, installed/'bin/cxr_run', 'baseline', *words], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path/'_runs/baseline/first'
    facts = json.loads((run/'run.json').read_text())
    assert facts['status'] == 'complete' and facts['parameters'] | dict(n=100, epochs=1) == facts['parameters']
    assert facts.get('commit', '')[:7] != mine[:7] and not facts.get('changed_since')
    assert facts['version'] == cxr_influence.__version__ and len(pd.read_csv(run/'row.csv')) == 1
    assert str(ROOT) not in (run/'notebook.ipynb').read_text()

def test_links_and_pictures_of_the_package_lead_to_the_repository(installed):
    metadata = next(installed.glob('*.dist-info/METADATA')).read_text(encoding='utf-8')
    text = re.sub(r'```.*?```', '', metadata, flags=re.S)
    links = re.findall(r'\]\(([^)\s]+)', text) + re.findall(r'\b(?:src|href)="([^"]+)', text)
    assert len(links) > 20 and not [link for link in links if not re.match(r'https?://|#|data:', link)]
    base = 'https://raw.githubusercontent.com/cxr-influence/cxr_influence/main/'
    pictures = re.findall(r'!\[[^\]]*\]\(([^)\s]+)', text)
    assert pictures and all(link.startswith(base) and (ROOT/link.removeprefix(base)).is_file() for link in pictures)
    pages = [link.partition('/blob/main/')[2] for link in links if '/blob/main/' in link]
    assert pages and all((ROOT/page.partition('#')[0]).exists() for page in pages)

def test_jupyterlab_is_an_extra_that_the_environment_has(installed):
    needs = re.findall(r'^Requires-Dist: (.*)$', next(installed.glob('*.dist-info/METADATA')).read_text(encoding='utf-8'), re.M)
    assert sorted(need.partition(';')[2].strip() for need in needs if need.startswith('jupyterlab')) == ['extra == "dev"', 'extra == "lab"']
    assert "-e '.[dev]'" in (ROOT/'.ci/env.sh').read_text()

def test_every_package_that_a_module_imports_is_required():
    import configparser
    from importlib.metadata import packages_distributions
    config = configparser.ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    normal = lambda name: re.sub(r'[-_.]+', '-', name).lower()
    named = {normal(re.match(r'[\w.-]+', word)[0]) for key in ('requirements', 'optional_requirements') for word in config['DEFAULT'][key].split()}
    named |= {'jinja2', 'nbformat', 'nbclient', 'jupyter-client', 'ipython', 'traitlets', 'huggingface-hub', 'urllib3', 'beautifulsoup4', 'mistune', 'markupsafe'} # of papermill, nbconvert, ipykernel, accelerate, requests
    imported = set()
    for file in (ROOT/'cxr_influence').rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import): imported |= {one.name.split('.')[0] for one in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: imported.add(node.module.split('.')[0])
    places = packages_distributions()
    lacking = {name for name in imported - set(sys.stdlib_module_names) - {'cxr_influence'} if not named & {normal(one) for one in places.get(name, [name])}}
    assert lacking == set()

@pytest.mark.skipif(not shutil.which('make'), reason='no make')
def test_jupyterlab_listens_to_this_machine_only_and_wants_a_token(tmp_path):
    line = subprocess.check_output(['make', '-n', 'lab', f'VENV={BIN.parent}'], cwd=ROOT, text=True).splitlines()[-1]
    words = [word.strip('"') for word in line.replace('"/bin', '/bin').replace('bin"', 'bin').split()]
    (tmp_path/'jupyter_server_config.py').write_text("c.ServerApp.ip = '0.0.0.0'\n")
    env = {**os.environ, 'JUPYTER_CONFIG_DIR': str(tmp_path), 'JUPYTER_RUNTIME_DIR': str(tmp_path), 'JUPYTER_TOKEN': ''}
    env.pop('JUPYTER_TOKEN')
    job = subprocess.Popen([*words, '--no-browser', '--allow-root', '--ServerApp.port=0'], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        facts = None
        while job.poll() is None and not facts: # it is there before it is written
            time.sleep(.1)
            with suppress(StopIteration, ValueError): facts = json.loads(next(tmp_path.glob('jpserver-*.json')).read_text())
        assert facts['hostname'] == '127.0.0.1' and len(facts['token']) > 20
        answer = None
        while job.poll() is None and answer is None: # nor does it listen at once
            time.sleep(.1)
            with suppress(requests.ConnectionError): answer = requests.get(f'{facts["url"]}api/contents', timeout=30)
        assert answer.status_code == 403
    finally:
        job.terminate()
        job.wait(30)

# --- the audit of the packages

@pytest.fixture(scope='module')
def audit(): return ci('audit')

def package(name, *vulnerabilities): return dict(name=name, version='1.0', vulns=[dict(id=label, fix_versions=fixes) for label, fixes in vulnerabilities])

@pytest.mark.parametrize('packages, code, said', [
    ([package('pillow'), package('zipp')], 0, '2 of 2'), ([dict(name='pillow', skip_reason='not found')], 77, 'no vulnerability data'),
    ([package('Pillow', ('CVE-1', ['1.1']))], 1, 'Raise its bound'), ([package('pillow', ('CVE-1', []))], 77, 'no fix published'),
    ([package('zipp', ('CVE-1', ['1.1']))], 77, 'fixed in 1.1'), ([package('zipp', ('CVE-1', [])), package('torch', ('CVE-2', ['2']))], 1, 'torch 1.0: CVE-2')], ids=str)
def test_only_what_the_settings_can_mend_blocks(audit, packages, code, said):
    found, lines = audit.verdict(packages, audit.named())
    assert found == code and said in '\n'.join(lines)

def test_no_network_is_no_failure(audit, monkeypatch, capsys):
    "Whatever becomes of pip-audit: not installed, too slow, without an answer."
    for replace in [dict(SECONDS=0.01), dict(audit=lambda: (None, 'no network'))]:
        with monkeypatch.context() as patch:
            for name, value in replace.items(): patch.setattr(audit, name, value)
            assert audit.main() == 77 and 'kipped' in capsys.readouterr().out
