"A lesson can be changed and run again, and keeps nothing of the computer that it ran on."
import json, os, re, tempfile
from pathlib import Path

import nbformat, pytest
from nbclient import NotebookClient

from cxr_influence.data.batches import load_data
from cxr_influence.data.files import InputError
from cxr_influence.phantom.dataset import make_phantom
from cxr_influence.training.checkpoints import Recipe
from cxr_influence.training.resume import read_history, trained
from conftest import ci

ROOT = Path(__file__).parents[1]
PAGES = {str(file.relative_to(ROOT/'nbs')): json.loads(file.read_text(encoding='utf-8')) for file in sorted(ROOT.glob('nbs/*/*.ipynb'))}
LESSONS = {name: page for name, page in PAGES.items() if re.match(r'\d_|tutorials|howto|explanations', name)}
FIT_ITSELF = {'4_training/06_resume.ipynb', '6_evidence/01_retraining.ipynb'} # which teach it

def cells(page): return [''.join(cell['source']) for cell in page['cells'] if cell['cell_type'] == 'code']

def texts(page):
    "Everything a page shows as text."
    for cell in page['cells']:
        for output in cell.get('outputs', []):
            yield ''.join(output.get('text', ''))
            yield from (''.join(content) for kind, content in output.get('data', {}).items() if kind.startswith('text/'))

@pytest.fixture
def project(tmp_path, monkeypatch):
    "An empty project, and a kernel's folder in it."
    (tmp_path/'settings.ini').touch()
    (tmp_path/'nbs/tutorials').mkdir(parents=True)
    monkeypatch.chdir(tmp_path/'nbs/tutorials')
    return tmp_path

def test_a_changed_phantom_stands_beside_the_first(project):
    changes = [{}, {'n': 24}, {'size': 32}, {'label_errors': .3}, {'seed': 3}, {'duplicates': .1}, {'test_fraction': .4}]
    first = dict(n=20, size=48)
    roots = [make_phantom(**first | change) for change in changes]
    assert len({root.resolve() for root in roots}) == len(changes)
    assert all(root.resolve().parent == project/'_data' for root in roots)
    before = (roots[0]/'phantom.json').stat().st_mtime_ns
    assert make_phantom(**first) == roots[0] and (roots[0]/'phantom.json').stat().st_mtime_ns == before
    assert roots[0].name == 'phantom-n=20,size=48' and not list((project/'_data').glob('.*'))
    with pytest.raises(InputError, match='its settings name it'): make_phantom(roots[0], n=30, size=48)

def test_a_changed_number_trains_beside_and_the_same_is_found(project, capsys):
    data, recipe = load_data(make_phantom(n=60, size=32), 32), Recipe('densenet_small', epochs=1, batch_size=16)
    capsys.readouterr()
    first = trained(data, recipe, device='cpu')
    history = read_history(first)
    others = [trained(data, recipe._replace(learning_rate=2e-3), device='cpu'), trained(data, recipe, seed=1, device='cpu'),
              trained(load_data(make_phantom(n=60, size=32, label_errors=.3), 32), recipe, device='cpu')]
    assert trained(data, recipe, device='cpu') == first and read_history(first).equals(history)
    assert len({first, *others}) == 4 and all(folder.resolve().parent == project/'_runs/trained' for folder in others)
    said = capsys.readouterr()
    assert said.out == '' and str(project) not in said.err
    lines = [line for line in said.err.splitlines() if line.startswith(('Found', 'Trained'))]
    assert lines == [f'{done} _runs/trained/{folder.name}' for done, folder in
                     zip(['Trained']*4 + ['Found'], [first, *others, first])]

def changed(page, *changes):
    "The first cells of a page, up to its training, with other text in them."
    notebook = nbformat.read(ROOT/'nbs'/page, as_version=4)
    last = next(number for number, cell in enumerate(notebook.cells) if cell.cell_type == 'code' and re.search(r'\btrained\(', cell.source))
    notebook.cells = [cell for cell in notebook.cells[:last + 1] if cell.cell_type == 'code']
    for old, new in changes:
        assert any(old in cell.source for cell in notebook.cells), old
        for cell in notebook.cells: cell.source = cell.source.replace(old, new)
    return notebook

@pytest.mark.long
def test_a_tutorial_is_changed_and_run_again(project, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    small = ('n=400', 'n=60'), ('epochs=8', 'epochs=1')
    for more in [], [('2e-3', '1e-3'), ('label_errors=.2', 'label_errors=.1')]:
        notebook = changed('tutorials/quickstart.ipynb', *small, *more)
        NotebookClient(notebook, timeout=300, kernel_name='python3', resources={'metadata': {'path': str(project/'nbs/tutorials')}}).execute()
    assert len(list(project.glob('_runs/trained/*/history.csv'))) == 2
    assert len(list(project.glob('_data/phantom-*/phantom.json'))) == 2

@pytest.mark.parametrize('name', sorted(LESSONS))
def test_a_lesson_has_no_fixed_folder_for_what_a_number_changes(name):
    sources = [source for source in cells(LESSONS[name]) if not re.search(r'^#\|\s*export', source, re.M)]
    fixed = [source for source in sources if re.search(r"make_phantom\((project_path\()?'[^']*'\)?,", source)]
    assert not fixed, 'leave the folder out: the phantom is then named after its settings'
    if name not in FIT_ITSELF:
        runs = [source for source in sources if re.search(r'\bfit\(', source) and "project_path('" in source]
        assert not runs, 'train with trained(data, recipe)'

@pytest.mark.parametrize('name', PAGES)
def test_a_page_keeps_no_progress_and_no_folder_of_a_computer(name):
    for text in texts(PAGES[name]):
        assert '\r' not in text and not re.search(r'\d+%\||^(Found|Trained) \S+/\S+$', text, re.M), text[:200]
        assert not re.search(r'(?<![\w.<])/(tmp|root|home|Users|work|var)/', text), text[:200]

@pytest.fixture(scope='module')
def notebooks(): return ci('notebooks')

def test_what_is_kept_of_an_output(notebooks):
    def stream(text, name='stderr'): return {'output_type': 'stream', 'name': name, 'text': text}
    noise = stream('\rtraining:  40%|####      | 3/7\r\nFound _runs/trained/a-1\nTrained /tmp/x/b-2\n')
    folder = tempfile.mkdtemp()
    shown = {'output_type': 'execute_result', 'data': {'text/plain': f"PosixPath('{folder}/run')", 'image/png': '/tmp/'}}
    widget = {'output_type': 'display_data', 'data': {notebooks.WIDGET: {}, 'text/html': '<p>12 images</p>'}}
    kept = notebooks.tidy([noise, stream(f'Trained /x/y\n{folder}/a is damaged: it is made again.\n'), shown,
                           stream(f'{ROOT}/_data/b and {folder}\nFound it all\n', 'stdout'), widget])
    assert [output.get('text') for output in kept] == ['…/a is damaged: it is made again.\n', None, '_data/b and …\nFound it all\n', None]
    assert kept[-1]['data'] == {'text/html': '<p>12 images</p>'}
    assert kept[1]['data'] == {'text/plain': "PosixPath('…/run')", 'image/png': '/tmp/'}
