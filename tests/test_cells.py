"Cells that need data, time or a GPU are skipped in a notebook, and say why."
import json, re
from pathlib import Path

import pytest, torch
from IPython.core.interactiveshell import InteractiveShell

from cxr_influence.runs import cells

ROOT = Path(__file__).parents[1]

@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    "Run cells one by one as a notebook does; what they print, and the names they leave."
    shell = InteractiveShell()
    monkeypatch.setattr(cells, 'get_ipython', lambda: shell)
    monkeypatch.setattr(cells, '_SKIPPED', set())
    monkeypatch.setenv('NIH14', str(tmp_path/'absent'))
    monkeypatch.delenv('LONG', raising=False)
    cells.guard_cells()
    cells.guard_cells()
    def call(*sources):
        capsys.readouterr()
        results = [shell.run_cell(source) for source in sources]
        call.failed = [result.error_in_exec or result.error_before_exec for result in results]
        return capsys.readouterr().out.splitlines()
    call.names = shell.user_ns
    return call

@pytest.mark.parametrize('given', ['nowhere/at/all', ''])
def test_a_page_without_data_runs_to_its_end(run, monkeypatch, given):
    monkeypatch.setenv('NIH14', given)
    said = run('n = 2', '#| data\nframe = read(n)\ntable = frame.sum()', '#| data\nprint(table)', 'm = n + 1', '#| slow\nk = m')
    assert said == ['Skipped: set NIH14 to a folder of NIH ChestX-ray14.']*2
    assert not any(run.failed) and 'frame' not in run.names and run.names['m'] == run.names['k'] == 3

def test_with_data_the_same_cells_run(run, monkeypatch, tmp_path):
    run('#| data\nframe = 1')
    monkeypatch.setenv('NIH14', str(tmp_path))
    assert run('#| slow\nframe + 1') == ['Skipped: it needs frame of a cell that was skipped.']
    assert run('#| data\nframe = 1', '#| slow\nprint(frame)') == ['1'] and not any(run.failed)

def test_long_work_asks_first_and_says_how_long(run, monkeypatch):
    said, = run('#| slow 2 h\ndone = True')
    assert said.startswith('Skipped: it takes about 2 h') and 'LONG' in said and 'done' not in run.names
    run(said.rpartition("set LONG=1: ")[2]) # what the sentence gives does what it promises
    assert run('#| slow 2 h\ndone = True') == ['This takes about 2 h on two cores.'] and run.names['done']
    monkeypatch.delenv('LONG')
    assert run('#| slow 9 min\nsoon = True') == ['This takes about 9 min on two cores.'] and run.names['soon']

def test_a_package_that_is_not_installed_is_named(run):
    assert run('#| slow\nimport os\nfrom not_there.part import one\none') == ['Skipped: it needs not_there: pip install not_there.']
    assert not any(run.failed) and run('#| slow\none()') == ['Skipped: it needs one of a cell that was skipped.']

def test_a_gpu_is_asked_of_torch(run, monkeypatch):
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: False)
    assert run('#| gpu\nfast = 1') == ['Skipped: this computer has no GPU that PyTorch can use.']
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: True)
    assert run('#| gpu\nfast = 1') == [] and run.names['fast'] == 1

def test_what_is_not_marked_is_left_as_it_is(run):
    assert run('x = [i for i in range(3)]', '%time y = 1', '# | data in a comment\nz = 1', 'print("#| data")') [-1] == '#| data'
    run('#| slow 2 min\na = 1\nraise KeyError("line 3")')
    trace = run.failed[0].__traceback__
    while trace.tb_next: trace = trace.tb_next
    assert trace.tb_lineno == 3 # as in the notebook

def test_every_page_with_such_cells_guards_them():
    for file in sorted(ROOT.glob('nbs/**/*.ipynb')):
        sources = [''.join(cell['source']) for cell in json.loads(file.read_text())['cells'] if cell['cell_type'] == 'code']
        marked = [source for source in sources if re.match(r'#\|\s*(data|gpu|slow)\b', source)]
        for source in marked: assert cells._needs(source), f'{file}: {source.splitlines()[0]}'
        if marked and file.parent.name != 'benchmarks': # which run as a whole, by name
            assert any('\nguard_cells()' in source for source in sources), file
