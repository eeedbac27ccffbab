"JupyterLab as a newcomer meets it: progress, `make lab`, where stored numbers come from, pages run twice, a tutorial run through the interface."
import json, os, pty, re, select, shutil, subprocess, sys, time, urllib.error
from pathlib import Path

import nbformat, pytest
from nbclient import NotebookClient

from cxr_influence.data.files import _progress
from conftest import ci
from driven import Lab, browser, one_cell, shoot # noqa: F401: browser is a fixture

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {name: value for name, value in os.environ.items() if name not in ('TQDM_DISABLE', 'CXR_RUN', 'CXR_PROGRESS')} | {'PYTHONPATH': str(ROOT)}

# ---------------------------------------------------------------- progress

LOOP = '''
import time
from cxr_influence.data.files import _progress
for _ in _progress(range(26), 'outer', unit='image'):
    for _ in _progress(range(2), 'inner'): time.sleep(.03)
for _ in _progress(range(3), 'brief'): pass
with _progress(about='by hand', total=20) as bar:
    for _ in range(12):
        time.sleep(.1)
        bar.update()
'''

def test_a_log_has_one_line_of_what_took_long():
    done = subprocess.run([sys.executable, '-c', LOOP], env=SHOWN, capture_output=True, text=True, check=True)
    outer, by_hand = done.stderr.splitlines()
    assert re.match(r'outer: 100% 26/26 \[00:0[1-9]<00:00, .*image/s\]$', outer) and by_hand.startswith('by hand: 60% 12/20') and not done.stdout

def test_a_shell_has_a_bar_that_goes():
    parent, child = pty.openpty()
    subprocess.run(['stty', 'rows', '30', 'cols', '90'], stdin=child, check=True)
    process = subprocess.Popen([sys.executable, '-c', LOOP], env=SHOWN, stdin=child, stdout=child, stderr=child)
    os.close(child)
    seen = b''
    while select.select([parent], [], [], 60)[0]:
        try: read = os.read(parent, 4096)
        except OSError: break # it has ended
        if not read: break
        seen += read
    assert process.wait() == 0
    lines = seen.decode().split('\r')
    assert any('outer' in line and '%|' in line for line in lines) and not any('brief' in line for line in lines)
    assert not lines[-1].strip() and not lines[-2].strip() # wiped

@pytest.mark.parametrize('how', ['a log', 'a kernel'])
def test_progress_can_be_switched_off(how, tmp_path):
    silent = SHOWN | {'TQDM_DISABLE': '1'}
    if how == 'a log': assert subprocess.run([sys.executable, '-c', LOOP], env=silent, capture_output=True, check=True).stderr == b''
    else: assert outputs(LOOP, silent) == []

def outputs(source, env):
    "What a cell leaves in a notebook, run by nbclient, without widget states."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    client = NotebookClient(nb, kernel_name='python3', timeout=120)
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(env): patch.delenv(name)
        for name, value in env.items(): patch.setenv(name, value)
        client.execute()
    assert 'widgets' not in nb.metadata
    nbformat.validate(nb)
    return nb.cells[0].outputs

@pytest.mark.parametrize('without', ['', 'import sys; sys.modules["ipywidgets"] = None\n'], ids=['', 'without ipywidgets'])
def test_a_notebook_keeps_nothing_of_it(without):
    left = outputs(without + 'import warnings; warnings.simplefilter("error")' + LOOP, SHOWN)
    assert len(left) == 2 and all(one.output_type == 'display_data' and not ''.join(one.data.values()) for one in left), left

@pytest.mark.long
def test_a_run_shows_its_progress_where_it_was_started(tmp_path):
    "And its log has one line; its notebook has nothing."
    cells = [nbformat.v4.new_code_cell('seed = 0 # the seed\nout = ""', metadata={'tags': ['parameters']}),
             nbformat.v4.new_code_cell('from cxr_influence.runs.runs import start_run, end_run\nimport pandas as pd\nparameters = dict(seed=seed)' + LOOP)]
    kernel = {'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path/'short.ipynb')
    code = ("import sys; from pathlib import Path; from cxr_influence.runs import runs\n"
            "folder = Path(sys.argv[1]); folder.mkdir(); runs._execute(Path('short.ipynb'), folder, dict(seed=1))")
    done = subprocess.run([sys.executable, '-c', code, 'run'], cwd=tmp_path, env=SHOWN, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = [line for line in (tmp_path/'run/log.txt').read_text().splitlines() if '%' in line]
    assert [line.partition(':')[0] for line in log] == ['outer', 'by hand']
    shown = [line for line in done.stderr.splitlines() if line.startswith('short: ')]
    assert len(shown) == 1 and '%' in shown[0]
    assert not [one for cell in nbformat.read(tmp_path/'run/notebook.ipynb', 4).cells for one in cell.get('outputs', []) if '%' in str(one)]

def test_progress_has_one_place():
    "No module draws a bar of its own."
    drawn = {file.stem for file in (ROOT/'cxr_influence').glob('*/*.py') if re.search(r'\btqdm\(|tqdm\.auto|\btrange\b', file.read_text())}
    assert drawn <= {'files'} and callable(_progress)

# ---------------------------------------------------------------- make lab

def test_make_lab_listens_to_this_machine_and_keeps_its_token():
    pytest.importorskip('jupyterlab')
    settings = ci('lab').settings
    plain = settings([], root=False, screen=True)
    assert '--ServerApp.ip=127.0.0.1' in plain and not [one for one in plain if 'token' in one or 'root=' in one or one in ('--allow-root', '--no-browser')]
    assert {'--allow-root', '--no-browser'} <= set(settings([], root=True, screen=False))
    other = settings(['--ip=0.0.0.0', '--port=9000'], root=True, screen=False)
    assert other[-2:] == ['--ip=0.0.0.0', '--port=9000'] and '--ServerApp.ip=127.0.0.1' not in other

# ---------------------------------------------------------------- in Chromium

TUTORIALS = sorted(file.stem for file in (ROOT/'nbs/tutorials').glob('*.ipynb'))
SHORT = ['quickstart'] if 'quickstart' in TUTORIALS else ['find_mislabeled_images'] # here; the others with SCREENSHOTS set

def shrink(file):
    "Make a tutorial's phantom small, show progress of short work, too, and leave out what then holds no longer."
    nb = nbformat.read(file, 4)
    first = next(cell for cell in nb.cells if cell.cell_type == 'code')
    first.source = f'from cxr_influence.data import files; files._SOON = 0\n{first.source}'
    for cell in nb.cells:
        if cell.cell_type != 'code': continue
        cell.source = re.sub(r'\bn=(\d{3,})', 'n=160', cell.source)
        if file.stem == 'quickstart': cell.source = re.sub(r'\bepochs=\d+', 'epochs=3', cell.source)
        cell.source = '\n'.join(line for line in cell.source.splitlines() if not line.startswith('assert '))
        cell.outputs, cell.execution_count = [], None
    nbformat.write(nb, file)

@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    "A fresh clone, with small tutorials."
    folder = ci('twice').clone(tmp_path_factory.mktemp('newcomer')/'cxr_influence')
    for name in TUTORIALS: shrink(folder/f'nbs/tutorials/{name}.ipynb')
    return folder

@pytest.fixture(scope='module')
def lab(checkout, browser, tmp_path_factory):
    "As `make lab` starts it."
    started = Lab(checkout, browser, f'nbs/tutorials/{SHORT[0]}.ipynb', (sys.executable, '.ci/lab.py'), tmp_path_factory.mktemp('jupyter'),
                  TQDM_DISABLE='', PYTHONPATH=str(checkout), NIH14=str(checkout/'data/absent'))
    try: yield started
    finally: started.close()

NUMBERS = [r'learning_rate=[\d.e-]+', r'\bn=\d+', r'seed=\d+']

def change_a_number(lab):
    "Change the first number of a training or of the data that stands in a cell, by keyboard; return the new line."
    cells = lab.cells()
    number = next(pattern for pattern in NUMBERS if any(cell['code'] and re.search(pattern, cell['source']) for cell in cells))
    place, cell = next((place, cell) for place, cell in enumerate(cells) if cell['code'] and re.search(number, cell['source']))
    old = re.search(number, cell['source'])[0]
    new = {'learning_rate=': 'learning_rate=1e-3', 'n=': 'n=140', 'seed=': 'seed=3'}[old.partition('=')[0] + '=']
    lab.page.evaluate('place => { const { content } = jupyterapp.shell.currentWidget; content.activeCellIndex = place; content.mode = "edit"; content.activate() }', place)
    lab.page.locator('.jp-Cell.jp-mod-active .cm-content').click()
    lab.page.keyboard.press('Control+A')
    lab.page.keyboard.insert_text(cell['source'].replace(old, new))
    assert new in lab.cells()[place]['source'] != cell['source']
    return old, new

BARS = '() => document.querySelectorAll(".jp-OutputArea-output progress").length'
WATCH = '''() => { // notes a bar even if it comes and goes between two looks
    window.barSeen = false
    const watch = new MutationObserver(() => {
        if (document.querySelector('.jp-OutputArea-output progress')) { window.barSeen = true; watch.disconnect() } })
    watch.observe(document.body, { childList: true, subtree: true }) }'''

def results(code): return [json.dumps(output.get('data', output.get('text'))) for cell in code for output in cell['outputs']]

@pytest.mark.long('lab')
def test_lab_needs_its_token_and_shows_the_project(lab):
    lab.open()
    with pytest.raises(urllib.error.HTTPError, match='403'): lab.request('/api/contents', token=False)
    names = {one['name'] for one in json.loads(lab.request('/api/contents'))['content']}
    assert {'nbs', 'README.md', 'Makefile'} <= names
    line, *more = lab.said().splitlines()
    assert line == f'JupyterLab: http://127.0.0.1:{lab.port}/lab/tree/nbs?token={lab.token}  (Ctrl-C ends it)'
    assert not more or 'Only this container' in more[0]

@pytest.mark.long('lab')
@pytest.mark.parametrize('name', TUTORIALS if os.environ.get('SCREENSHOTS') else SHORT)
def test_a_tutorial_is_run_a_number_is_changed_and_it_is_run_again(lab, name):
    lab.notebook, bars = f'nbs/tutorials/{name}.ipynb', []
    lab.open()
    lab.page.evaluate(WATCH)
    def look():
        bars.append(lab.page.evaluate(BARS))
        if bars[-1] and sum(map(bool, bars)) == 3: shoot(lab.page, f'{name}_progress')
    first = lab.run_all(300, look)
    shoot(lab.page, f'{name}_1')
    assert lab.page.evaluate('() => window.barSeen') and not lab.page.evaluate(BARS) # seen while it worked, gone now
    saved = lab.saved()
    text = json.dumps(saved)
    assert 'widgets' not in saved.metadata and '<progress' not in text and not re.search(r'\d%\|', text)
    change_a_number(lab)
    again = lab.run_all(300)
    shoot(lab.page, f'{name}_2')
    assert results(again) != results(first)
    assert {'_data'} <= {one['name'] for one in json.loads(lab.request('/api/contents'))['content']}

REVIEW = '''import numpy as np, pandas as pd
from cxr_influence.data.batches import load_data
from cxr_influence.phantom.dataset import make_phantom
from cxr_influence.review.widget import review
data = load_data(make_phantom('phantom', n=40, size=64), 64, stores='stores')
review(pd.Series(np.random.default_rng(0).uniform(size=len(data.train)), data.train.index), data, 'review.csv', n=8)'''

@pytest.mark.long
def test_a_converted_page_shows_the_queue_as_a_gallery(browser, tmp_path):
    "nbconvert, as VS Code and the site, cannot run the widget: the images of the queue stand in, each with its description."
    from nbconvert import HTMLExporter
    one_cell(tmp_path/'page.ipynb', REVIEW)
    nb = nbformat.read(tmp_path/'page.ipynb', 4)
    NotebookClient(nb, kernel_name='python3', timeout=120, store_widget_state=False, resources={'metadata': {'path': str(tmp_path)}}).execute() # as JupyterLab saves it
    (tmp_path/'page.html').write_text(HTMLExporter().from_notebook_node(nb)[0], encoding='utf-8')
    page = browser.new_page(viewport={'width': 1000, 'height': 800})
    page.goto((tmp_path/'page.html').as_uri(), wait_until='commit') # its scripts from elsewhere are not needed
    pictures = page.locator('.jp-OutputArea-output img')
    pictures.nth(7).wait_for(timeout=30_000)
    assert pictures.count() == 8 and all(pictures.nth(i).get_attribute('alt').startswith('Radiograph') for i in range(8))
    assert all(pictures.nth(i).evaluate('image => image.complete && image.naturalWidth > 20 && image.getBoundingClientRect().width > 20') for i in range(8))
    shoot(page, 'nbconvert')

# ---------------------------------------------------------------- where stored numbers come from, and pages run twice

def page_of(*cells): return nbformat.v4.new_notebook(cells=[*cells])

def shown(source): return nbformat.v4.new_code_cell(source, outputs=[nbformat.v4.new_output('stream', text='0.7')])

def test_a_page_says_where_its_numbers_come_from(monkeypatch):
    made_on = ci('made_on')
    nb, plain = page_of(shown('#| data\nauroc')), page_of(shown('auroc'))
    made_on.note(nb, Path('nbs/tutorials/x.ipynb'))
    made_on.note(nb, Path('nbs/tutorials/x.ipynb')) # again: still one
    made_on.note(plain, Path('nbs/4_training/x.ipynb'))
    assert len(nb.cells) == 2 and nb.cells[1].id == made_on.NAME
    nbformat.validate(nb)
    import platform, torch
    for part in [f'{torch.get_num_threads()} thread', f'PyTorch {torch.__version__.partition("+")[0]}', f'Python {platform.python_version()}', 'second digit', '`data`']:
        assert part in nb.cells[1].source
    assert '`data`' not in plain.cells[1].source
    silent, experiment = page_of(nbformat.v4.new_code_cell('x = 1')), page_of(shown('x'))
    made_on.note(silent, Path('nbs/howto/x.ipynb'))
    made_on.note(experiment, Path('nbs/experiments/x.ipynb'))
    assert len(silent.cells) == len(experiment.cells) == 1

@pytest.mark.long
def test_a_page_run_twice_must_go_on_without_data_and_find_what_it_kept(tmp_path, monkeypatch):
    "Pages with faults that the check is for, and one without."
    twice, folder = ci('twice'), tmp_path/'nbs/tutorials'
    folder.mkdir(parents=True)
    monkeypatch.delenv('NIH14', raising=False)
    monkeypatch.chdir(tmp_path)
    guard = 'from cxr_influence.runs.cells import guard_cells\nguard_cells()'
    pages = {'good': [guard, '#| data\n1/0', 'x = 1'], 'unguarded': ['#| data\nx = 1'], 'once': ["open('kept.txt', 'x').close()"], 'never': ['1/0']}
    verdicts = {}
    for name, cells in pages.items():
        one_cell(folder/f'{name}.ipynb', '')
        nb = nbformat.read(folder/f'{name}.ipynb', 4)
        nb.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        nbformat.write(nb, folder/f'{name}.ipynb')
        line, verdicts[name] = twice.check(tmp_path, Path(f'nbs/tutorials/{name}.ipynb'))
        assert f'{name}.ipynb' in line
    assert verdicts['good'] == [] and verdicts['unguarded'] == ['no cell says that it is skipped']
    assert verdicts['once'][0].startswith('the second time: FileExistsError') and verdicts['never'] == ['ZeroDivisionError: division by zero']
    monkeypatch.setattr(twice, 'execute', lambda file: (40., [], ''))
    assert twice.check(tmp_path, Path('nbs/tutorials/good.ipynb'))[1][-1] == 'the second run did not find what the first had kept'

def test_a_clone_has_what_git_has_and_nothing_else(tmp_path):
    folder = ci('twice').clone(tmp_path/'clone')
    assert (folder/'settings.ini').is_file() and not (folder/'_data').exists() and not (folder/'_runs').exists()
    assert (folder/'nbs/index.ipynb').read_bytes() == (ROOT/'nbs/index.ipynb').read_bytes()
