"Runs that can be trusted: typed parameters, provenance, nothing stale, nothing lost, sweeps that survive."
import json, os, random, shutil, signal, string, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import nbformat, numpy as np, pandas as pd, papermill, pytest

from conftest import FORKS, Script, refused, sentence
from cxr_influence.data.files import InputError
from cxr_influence.review.queue import read_review
from cxr_influence.runs import runs as module
from cxr_influence.runs.parameters import (_read_parameters, check_parameters, experiments,
    parameters_of)
from cxr_influence.runs.runs import _read_record, _run_name, _status, repeat, run
from cxr_influence.runs.sweeps import collect, plan, sweep

ROW = 'with open(f"{out}/row.csv", "w") as file: file.write(f"result\\n{a / b}\\n")'
FIRST = 'a: float = 1.\nb: float = 2.\ntext: str = ""\nfile: str = ""\nout: str = "by-hand"'
RECORDED = ['import pandas as pd\nfrom cxr_influence.runs.runs import end_run, start_run\nout = start_run("tiny", globals(), reads=["file"])',
            'end_run(pd.DataFrame([{"result": a / b}]))']

def write(path, *cells):
    cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    cells[0].metadata['tags'] = ['parameters']
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': dict(name='python3', display_name='x', language='python')}), path)
    return path

@pytest.fixture
def tiny(tmp_path, monkeypatch):
    "A notebook that divides, and notes each execution."
    monkeypatch.chdir(tmp_path)
    return write(tmp_path/'tiny.ipynb', FIRST, f'with open({str(tmp_path/"executed")!r}, "a") as log: log.write("x")', ROW)

def executed(tmp_path): return len((tmp_path/'executed').read_text()) if (tmp_path/'executed').exists() else 0

# Parameters

def first(kind, default='None'): return _read_parameters(f'x: {kind} = {default} # a comment')

n, f = random.randrange(1, 9999), random.random()
@pytest.mark.parametrize('kind, given, wanted', [
    ('int', np.int64(n), n), ('int', str(n), n), ('int', float(n), n), ('Optional[int]', 'None', None), ('Optional[int]', n, n),
    ('float', n, float(n)), ('float', str(f), f), ('float', np.float32(.5), .5), ('bool', 'true', True), ('bool', 'No', False), ('bool', 1, True),
    ('bool', np.bool_(False), False), ('str', n, str(n)), ('str', Path('a')/'b', 'a/b'), ('Optional[str]', None, None),
    ('list[float]', f, [f]), ('list[float]', f'{f}, {n}', [f, n]), ('list[float]', np.array([f, n]), [f, n]), ('list[int]', n, [n]),
    ('list[int]', range(3), [0, 1, 2]), ('list[int]', {3, 1, 2}, [1, 2, 3]), ('list[int]', f'[{n}]', [n]), ('list[int]', pd.Index([n]), [n]), ('list[str]', "['influence']", ['influence']),
    ('list[str]', 'top, random', ['top', 'random']), ('list[str]', '[top, random]', ['top', 'random']), ('list[str]', 'top', ['top']),
    ('Optional[list[str]]', 'top,random', ['top', 'random']), ('Optional[list[str]]', None, None), ('list[str]', '007', ['007']),
    ('dict[int, int]', '{64: 32}', {64: 32}), ('dict[int, int]', {'64': '32'}, {64: 32}), ('Union[int, str]', 'all', 'all'), ('int | None', 'none', None)])
def test_a_parameter_comes_as_number_text_list_or_scalar(kind, given, wanted):
    got = check_parameters({'x': given}, first(kind))['x']
    assert got == wanted and type(got) is type(wanted)
    assert json.loads(json.dumps(got)) == (got if not isinstance(got, dict) else {str(key): value for key, value in got.items()})

@pytest.mark.parametrize('kind, given', [
    ('int', 'two'), ('int', n + .5), ('int', True), ('int', None), ('int', [1, 2]), ('int', 'inf'), ('float', 'nan'), ('float', ''), ('float', float('inf')),
    ('bool', 'maybe'), ('bool', 2), ('bool', None), ('str', None), ('str', ['a']), ('list[int]', '1,two'), ('list[int]', None), ('list[float]', [[1]]),
    ('Optional[int]', 'two'), ('dict[int, int]', '3'), ('list[int]', "[__import__('os').getpid()]"), ('int', object()), ('Optional[int]', 'x' * 10**5)])
def test_what_does_not_fit_is_refused_by_name(kind, given):
    said = sentence(check_parameters, {'x': given}, first(kind))
    assert said.startswith('x is ') and 'a comment' in said and first(kind)[0].kind in said and len(said) < 200

def test_the_answers_of_one_reviewer_are_hers_alone(tmp_path):
    "In the experiment `relabelled`, so that numbers, rates and corrected labels are of the same answers."
    cell = next(one for one in nbformat.read(experiments()['relabelled'], 4).cells if one.id == 'rlb00007')
    def answers(name, **reviewers):
        rows = [dict(image=f'{number}.png', finding='Mass', old=0, new=1, reviewer=one, seconds=3, time='2026-01-31T12:00:00+00:00', shown='flagged')
                for one, count in reviewers.items() for number in range(count)]
        pd.DataFrame(rows).to_csv(tmp_path/name, index=False)
        return str(tmp_path/name)
    given = dict(review=answers('a.csv', anna=3, ben=7), random_review=answers('b.csv', anna=2, ben=5), seeds=[0, 1], out=tmp_path/'out')
    (tmp_path/'out').mkdir()
    for reviewer, counts in [('anna', (3, 2)), ('ben', (7, 5)), (None, (10, 7))]:
        names = dict(given, reviewer=reviewer, read_review=read_review, InputError=InputError)
        exec(cell.source, names)
        files = [names[part][seed] for part in ('by_score', 'at_random') for seed in (0, 1)]
        assert [len(read_review(file)) for file in files] == [counts[0]] * 2 + [counts[1]] * 2
    with refused('a.csv has no answer of eve'): exec(cell.source, names | dict(reviewer='eve'))

def test_defaults_are_read_as_python_reads_them():
    found = {one.name: one for one in _read_parameters('%time\na: str = "x = 1 # no" # a = b\nb: list[int] = [1, # one\n  2] # two\nc = 5\nd: float = 1 / 3')}
    assert found['a'].default == 'x = 1 # no' and found['a'].comment == 'a = b' and found['b'].default == [1, 2] and found['b'].comment == 'two'
    assert found['c'].kind == '' and found['d'].default == '1 / 3'

@pytest.mark.parametrize('name', sorted(experiments()))
def test_an_experiment_types_its_parameters_and_papermill_shows_them(name):
    known = parameters_of(name)
    assert all(one.kind and one.comment for one in known) and [one.name for one in known][-1] == 'out'
    assert check_parameters({one.name: one.default for one in known}, name) == {one.name: one.default for one in known}
    shown = papermill.inspect_notebook(str(experiments()[name]))
    assert list(shown) == [one.name for one in known]
    for one in known: assert shown[one.name]['inferred_type_name'] != 'None' and shown[one.name]['help'] == one.comment

def test_values_reach_the_notebook_as_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = write(tmp_path/'page.ipynb', 'text: str = ""\nmany: list[str] = []\nout: str = ""',
                 'import json\nwith open(f"{out}/got.json", "w") as file: json.dump([text, many], file)')
    wild = ''.join(random.choices(string.printable + 'äλ€😀', k=300)) + '"""\'\'\'\\"\n__import__("os").mkdir("harm")\n{text}#'
    folder = run(page, name='wild', text=wild, many=[wild, '\\'])
    assert json.loads((folder/'got.json').read_text()) == [wild, [wild, '\\']] and not (tmp_path/'harm').exists()

# What is refused before the work

def begin(name, tmp_path, monkeypatch, **given):
    "Execute an experiment's cells until its run has started, and return what they made."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, '_CURRENT', {})
    cells = [cell.source for cell in nbformat.read(experiments()[name], 4).cells if cell.cell_type == 'code']
    last = next(number for number, cell in enumerate(cells) if 'start_run(' in cell and not cell.startswith('import'))
    cells.insert(1, '# Parameters\n' + '\n'.join(f'{name} = {value!r}' for name, value in ({'out': str(tmp_path/'out')} | given).items()))
    space = {'In': ['']}
    for cell in cells[:last + 2]:
        space['In'].append(cell)
        exec(cell, space)
    module._CURRENT['lock'].release()
    return space

@pytest.mark.parametrize('name, given, words', [
    ('faithfulness', dict(seeds=[0]), 'seeds is [0]: give at least 2 values'), ('faithfulness', dict(models=1), 'models is [1]'),
    ('subsets', dict(rules=['top']), 'rules'), ('subsets', dict(rules=['top', 'bottom']), 'it lacks random'), ('subsets', dict(rules=['best', 'random']), 'top, bottom'),
    ('subsets', dict(fractions=[.5, 1.]), 'fractions is [0.5, 1.0]'), ('subsets', dict(mode='drop'), "mode is 'drop'"), ('subsets', dict(seeds=[]), 'seeds is []'),
    ('subsets', dict(budget='time'), 'budget'), ('subsets', dict(scores='nowhere.csv'), 'nowhere.csv'), ('baseline', dict(epochs='two'), "epochs is 'two'"),
    ('baseline', dict(epochs=0), 'epochs is 0: it must be above 0'), ('baseline', dict(recipe='large'), 'small, smooth, default'), ('baseline', dict(image_size=31), 'image_size is 31'),
    ('baseline', dict(epoch=3), "no parameter 'epoch'"), ('baseline', dict(loss='hinge'), 'focal'), ('influence', dict(batch_size=0), 'batch_size is 0'),
    ('label_errors', dict(share=1.5), 'share is 1.5'), ('label_errors', dict(finding='Cold'), 'Effusion'), ('label_errors', dict(kinds=['any']), 'one_finding'),
    ('label_errors', dict(repaired_by='hope'), 'influence'), ('relabelled', dict(score='hope'), 'influence'), ('relabelled', dict(error=1.5), 'error is 1.5'),
    ('relabelled', dict(seeds=[0]), 'at least 2'), ('relabelled', dict(reviewed=0), 'reviewed is 0')])
def test_what_can_be_refused_is_refused_before_the_work(name, given, words, tmp_path, monkeypatch):
    with refused(words): begin(name, tmp_path, monkeypatch, **given)
    assert not (tmp_path/'out/row.csv').exists() and (given.get('scores') or not (tmp_path/'out').exists())

def test_an_experiment_converts_and_records_its_parameters(tmp_path, monkeypatch):
    space = begin('subsets', tmp_path, monkeypatch, fractions=.3, seeds='2', valuations="['influence']", checkpoints='nowhere')
    assert (space['fractions'], space['seeds'], space['valuations']) == ([.3], [2], ['influence'])
    record = _read_record(tmp_path/'out')
    assert record['parameters']['seeds'] == [2] and record['status'] == 'running' and record['keeps'] == ['retrained']

def test_stations_fit_each_other(tmp_path, monkeypatch):
    "A table of influence serves the subsets with their defaults: the scores that it has."
    path = tmp_path/'influence.csv'
    pd.DataFrame({'image': ['1.png'], 'influence': [.1], 'rank': [1], 'loss': [.2]}).to_csv(path, index=False)
    assert begin('subsets', tmp_path, monkeypatch, scores=str(path))['valuations'] == ['influence', 'loss']
    with refused('el2n'): begin('subsets', tmp_path, monkeypatch, scores=str(path), valuations=['influence', 'el2n'])

# Provenance, whichever way the notebook was run

PROVENANCE = {'experiment', 'parameters', 'version', 'source', 'start', 'end', 'seconds', 'host', 'process', 'device', 'cores', 'threads', 'python', 'torch', 'status',
              'error', 'reads', 'paths', 'peak_memory_mb'}

@pytest.mark.long
def test_run_papermill_and_a_plain_kernel_leave_the_same_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = write(tmp_path/'page.ipynb', FIRST, *RECORDED)
    by_run = run(page, a='3', b=2)
    papermill.execute_notebook(str(page), 'out.ipynb', dict(a='3', b=2, out='plain'), progress_bar=False, kernel_name='python3')
    one, other = _read_record(by_run), _read_record(tmp_path/'plain')
    assert PROVENANCE <= set(one) and PROVENANCE <= set(other)
    assert one['parameters'] == other['parameters'] == dict(a=3., b=2., text='', file='') and one['source'] == other['source']
    assert one['status'] == other['status'] == 'complete' and one['error'] is other['error'] is None
    assert (tmp_path/'plain/row.csv').read_text() == (by_run/'row.csv').read_text() == 'result\n1.5\n'
    assert 'page' in (by_run/'log.txt').read_text()
    with pytest.raises(papermill.PapermillExecutionError, match='ZeroDivisionError'):
        papermill.execute_notebook(str(page), 'out.ipynb', dict(b=0, out='plain'), progress_bar=False, kernel_name='python3')
    record = _read_record(tmp_path/'plain')
    assert record['status'] == 'failed' and 'ZeroDivisionError' in record['error'] and record['parameters']['b'] == 0
    assert _read_record(tmp_path/'plain/earlier/1')['parameters']['a'] == 3. # nothing was removed
    with pytest.raises(papermill.PapermillExecutionError, match="no parameter 'c'"):
        papermill.execute_notebook(str(page), 'out.ipynb', dict(c=1, out='other'), progress_bar=False, kernel_name='python3')
    assert not (tmp_path/'other').exists()

def test_the_commit_is_that_of_the_package(tmp_path, monkeypatch):
    def repository(root):
        root.mkdir(parents=True, exist_ok=True)
        for words in (['init', '-q'], ['add', '-A', '-f'], ['-c', 'user.name=x', '-c', 'user.email=x@x', 'commit', '-q', '--allow-empty', '-m', 'x']):
            subprocess.run(['git', *words], cwd=root, check=True)
    own, installed = tmp_path/'own/cxr_influence', tmp_path/'user/.venv/lib/site-packages/cxr_influence'
    for folder in (own, installed): shutil.copytree(Path(module.__file__).parents[1]/'runs', folder)
    (tmp_path/'own/settings.ini').write_text('')
    for root in ('own', 'user'): repository(tmp_path/root)
    monkeypatch.setattr(module, '_PACKAGE', installed)
    assert module._commit() == {}
    monkeypatch.setattr(module, '_PACKAGE', own)
    commit = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=own, capture_output=True, text=True).stdout
    assert commit.startswith(module._commit()['commit']) and module._commit()['changed_since'] is False
    before = module._source_hash()
    with open(own/'runs.py', 'a') as file: file.write('CHANGED = 1\n')
    assert module._source_hash() != before and module._commit()['changed_since'] is True

# Never stale

def test_a_finished_run_is_not_run_again_and_never_stale(tiny, tmp_path, monkeypatch):
    (tmp_path/'images').mkdir()
    (tmp_path/'images/1.png').write_bytes(b'pixels')
    given = dict(a=n, file='images')
    folder = run(tiny, **given)
    for _ in range(2): assert run(tiny, **given) == folder and executed(tmp_path) == 1
    notebook = nbformat.read(tiny, 4)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell('Other words.'))
    nbformat.write(notebook, tiny)
    assert run(tiny, **given) == folder and executed(tmp_path) == 1
    (tmp_path/'images/1.png').write_bytes(b'others')
    assert run(tiny, **given) == folder and executed(tmp_path) == 2
    monkeypatch.setattr(module, '_source_hash', lambda: 'other code')
    assert run(tiny, **given) == folder and executed(tmp_path) == 3
    notebook.cells[-1].source += '\n# more'
    nbformat.write(notebook, tiny)
    assert run(tiny, **given) == folder and executed(tmp_path) == 4
    assert run(tiny, again=True, **given) == folder and executed(tmp_path) == 5
    assert all((folder/f'earlier/{number}/row.csv').is_file() for number in range(1, 5)) # and nothing is lost

SUM = 'import pandas as pd\nread = [pd.read_csv(one).x.sum() for one in [table, *others] if one]\npd.DataFrame([{"result": sum(read)}]).to_csv(f"{out}/row.csv", index=False)'
STARTS = 'from cxr_influence.runs.runs import end_run, start_run\nout = start_run("sums", globals(), reads=["table"])'
ENDS = 'import pandas as pd\nend_run(pd.DataFrame([{"result": pd.read_csv(table).x.sum()}]))'

@pytest.fixture
def sums(tmp_path, monkeypatch):
    "A notebook that adds up tables, and two folders of one project that each have one of that name."
    (tmp_path/'.git').mkdir()
    for number, name in enumerate('ab', 1):
        (tmp_path/name).mkdir()
        (tmp_path/name/'own.csv').write_text(f'x\n{number}\n')
    monkeypatch.chdir(tmp_path/'a')
    return write(tmp_path/'sums.ipynb', 'table: str = "own.csv"\nothers: list[str] = []\nout: str = "by-hand"', SUM)

def result(folder): return pd.read_csv(folder/'row.csv').result[0]

def test_a_table_by_default_or_in_a_list_is_not_stale(sums, tmp_path):
    (tmp_path/'b/own.csv').write_text('x\n10\n')
    for first, second in [(1, 10), (2, 20)]:
        Path('own.csv').write_text(f'x\n{first}\n')
        (tmp_path/'b/own.csv').write_text(f'x\n{second}\n')
        assert result(run(sums)) == first and result(run(sums, others=['../b/own.csv'])) == first + second

@pytest.mark.parametrize('noted', [False, True])
def test_a_path_from_another_folder_is_another_file(sums, tmp_path, monkeypatch, noted):
    page = write(tmp_path/'sums.ipynb', 'table: str = "own.csv"\nout: str = "by-hand"', STARTS, ENDS) if noted else sums
    for number, name in enumerate('ab', 1):
        monkeypatch.chdir(tmp_path/name)
        assert result(run(page, table='own.csv')) == number
    begun = _read_record(run(page, table='own.csv'))['start']
    assert _read_record(run(page, table='own.csv'))['start'] == begun # the same file: the same run

def test_where_a_notebook_writes_is_no_input(sums, tmp_path):
    Path('cache').mkdir()
    page = write(tmp_path/'caching.ipynb', 'table: str = "own.csv"\ncache: str = "cache"\nothers: list[str] = []\nout: str = "by-hand"',
                 'open(f"{cache}/kept.txt", "w").write(out)', SUM)
    begun = _read_record(run(page))['start']
    assert _read_record(run(page))['start'] == begun
    Path('own.csv').write_text('x\n7\n')
    assert result(run(page)) == 7

def test_a_machine_that_works_elsewhere_finds_the_same_files(sums, tmp_path, monkeypatch):
    "As a worker of Dask does, which was started in another folder than the notebook that asks it."
    folder, here = tmp_path/'_runs/sums/one', str(tmp_path/'a')
    monkeypatch.chdir(tmp_path)
    def ask(): return module._run(sums, {'others': ['../b/own.csv']}, folder, cwd=here)
    assert result(ask()) == 1 + 2
    begun = _read_record(folder)['start']
    assert result(ask()) == 3 and _read_record(folder)['start'] == begun
    (tmp_path/'b/own.csv').write_text('x\n5\n')
    assert result(ask()) == 1 + 5

def training_of(folder, identity, epoch=1):
    "What tells whose the checkpoints in a folder are."
    (folder/f'epoch_{epoch:03d}').mkdir(parents=True, exist_ok=True)
    (folder/f'epoch_{epoch:03d}/checkpoint.json').write_text(json.dumps(dict(epoch=epoch) | ({'run': identity} if identity else {})))

@pytest.mark.parametrize('identity, same', [('first', True), ('second', False), (None, True)]) # earlier versions gave none
def test_a_folder_that_holds_another_training_is_another_run(tmp_path, monkeypatch, identity, same):
    monkeypatch.chdir(tmp_path)
    cell = 'checkpoints: str = "ck"\nkept: str = "shared"\nout: str = "by-hand"'
    folder = module.start_run('tiny', dict(checkpoints='ck', kept='shared', out='by-hand', In=['', cell]), keeps=['checkpoints', 'kept'])
    training_of(tmp_path/'ck', 'first')
    module.end_run(pd.DataFrame([dict(result=n)]))
    wanted = dict(parameters=_read_record(folder)['parameters'])
    assert module._is_complete(folder, wanted)
    shutil.rmtree('ck')
    assert module._is_complete(folder, wanted) # there is none
    training_of(tmp_path/'ck', identity)
    assert module._is_complete(folder, wanted) == same
    assert module._differences(_read_record(folder), wanted) == ([] if same else ['checkpoints'])

def test_a_link_that_leads_nowhere_stops_no_run(tmp_path):
    (tmp_path/'images').mkdir()
    (tmp_path/'images/a.png').write_bytes(b'pixels')
    (tmp_path/'images/b.png').symlink_to(tmp_path/'gone.png')
    before = module._stamp(tmp_path/'images')
    (tmp_path/'gone.png').write_bytes(b'back')
    assert before and module._stamp(tmp_path/'images') != before

def test_a_plan_knows_how_long_other_runs_took(tiny, tmp_path):
    for name, status, seconds in [('a=8', 'complete', 30.), ('other/a=9', 'complete', 50.), ('a=9', 'failed', 1.), ('a=8/earlier/1', 'complete', 999.)]:
        module._note(tmp_path/'_runs/tiny'/name, status=status, seconds=seconds)
    assert plan(tiny, {'a': [1., 2.]}, name='mine').seconds.tolist() == [40., 40.]
    module._note(tmp_path/'_runs/tiny/a=8', seconds=None)
    assert plan(tiny, {'a': [1.]}, runs=tmp_path/'none').seconds.isna().all()

def test_repeat_says_whether_the_numbers_agree(tiny, tmp_path):
    folder = run(tiny, a=n)
    assert repeat(folder).agrees.all() and executed(tmp_path) == 2
    page = write(tmp_path/'chance.ipynb', FIRST, 'import random\nb = random.random()', ROW)
    assert not repeat(run(page)).agrees.any()
    with refused('holds no complete run'): repeat(tmp_path/'nowhere')

# This interpreter, always; one at a time; nothing lost

def test_a_kernel_of_another_environment_does_not_matter(tiny, tmp_path, monkeypatch):
    spec = tmp_path/'jupyter/kernels/python3'
    spec.mkdir(parents=True)
    (spec/'kernel.json').write_text(json.dumps(dict(argv=['/bin/false', '{connection_file}'], display_name='other', language='python')))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'jupyter'))
    assert _status(run(tiny)) == 'complete'

def test_two_who_meet_at_a_run_share_it(tiny, tmp_path):
    with ThreadPoolExecutor(3) as pool: folders = [job.result() for job in [pool.submit(run, tiny, a=n) for _ in range(3)]]
    assert len(set(folders)) == 1 and executed(tmp_path) == 1

def test_the_order_of_parameters_does_not_matter(tiny, tmp_path):
    assert run(tiny, a=3., b=7.) == run(tiny, b=7., a=3.) and executed(tmp_path) == 1

def test_a_name_belongs_to_one_run(tiny, tmp_path):
    folder = run(tiny, name='mine', a=1)
    with refused('holds a run with other parameters (a is 1.0, and 2.0 is wanted)'): run(tiny, name='mine', a=2)
    assert (folder/'row.csv').read_text() == 'result\n0.5\n'
    table = sweep(tiny, {'a': [1, 2], 'b': [4]}, name='theirs')
    assert table.result.tolist() == [.25, .5] and len(list(tmp_path.glob('_runs/tiny/theirs/*'))) == 2
    for bad in ('../x', '/x', '.x'):
        with refused('name is'): run(tiny, name=bad)

def test_names_state_what_differs_and_are_safe():
    assert _run_name(dict(learning_rate=.001, seed=2)) == 'learning_rate=0.001,seed=2'
    wild = [''.join(random.choices(string.printable, k=k)) for k in range(1, 300, 7)]
    names = [_run_name(dict(text=text, many=[text] * 3)) for text in wild]
    assert len(set(names)) == len(set(wild)) and all(len(name) < 100 and set(name) <= set(string.ascii_letters + string.digits + '_.+-=,~') for name in names)

SLOW = 'import time\nfrom pathlib import Path\nif not (Path(out)/"begun").exists():\n    (Path(out)/"begun").touch()\n    time.sleep(300)'

@pytest.mark.long
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_is_known_as_such_and_resumes(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = write(tmp_path/'slow.ipynb', FIRST, SLOW, ROW)
    (tmp_path/'script.py').write_text(f'from cxr_influence.runs.runs import run\nrun({str(page)!r}, a=3)')
    child = Script(tmp_path/'script.py')
    folder = tmp_path/'_runs/slow/a=3.0'
    while not (folder/'begun').exists(): assert child.poll() is None and not time.sleep(.1)
    assert _status(folder) == 'running'
    child.send_signal(number)
    assert child.wait(60) != 0 and _status(folder) == 'interrupted'
    assert _status(run(page, a=3)) == 'complete' and not (folder/'earlier').exists() and _read_record(folder)['attempts'] == 2

def test_a_dead_kernel_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = write(tmp_path/'dying.ipynb', FIRST, 'import os\nprint("before", flush=True)', 'os.kill(os.getpid(), 9)')
    said = sentence(run, page)
    folder = tmp_path/'_runs/dying/default'
    assert 'SIGKILL' in said and 'log.txt' in said and 'before' in (folder/'log.txt').read_text() and (folder/'notebook.ipynb').is_file()
    record = _read_record(folder)
    assert record['status'] == 'failed' and record['error'] == said and record['seconds'] > 0

# Sweeps

def test_a_sweep_of_four_with_one_failing_is_a_frame_of_four(tiny, tmp_path):
    grid = {'a': [1, 2], 'b': [0, 4]}
    assert (plan(tiny, grid).status == 'new').all() and executed(tmp_path) == 0
    table = sweep(tiny, [dict(a=1, b=0), dict(a=1, b=4), dict(a=2, b=4), dict(a=3, b=4)])
    assert list(table.columns) == ['a', 'b', 'result', 'status', 'error', 'seconds'] and table.a.tolist() == [1, 1, 2, 3]
    assert table.status.tolist() == ['failed'] + ['complete'] * 3 and table.error.notna().tolist() == [True] + [False] * 3
    assert 'ZeroDivisionError' in table.error.iloc[0] and table.result.iloc[1:].tolist() == [.25, .5, .75]
    failed = tmp_path/'_runs/tiny'/table.index[0]
    assert {'notebook.ipynb', 'log.txt', 'run.json'} <= {path.name for path in failed.iterdir()} and 'ZeroDivisionError' in (failed/'log.txt').read_text()
    assert executed(tmp_path) == 4 and sweep(tiny, {'a': [1, 2, 3], 'b': [4]}).result.tolist() == [.25, .5, .75] and executed(tmp_path) == 4
    assert plan(tiny, grid).status.tolist() == ['failed', 'complete', 'new', 'complete']
    seen = collect('_runs/tiny')
    assert len(seen) == 4 and set(seen.columns) == {'a', 'b', 'result', 'status', 'error', 'seconds'}
    with refused('ZeroDivisionError'): sweep(tiny, {'b': [0]}, stop=True)
    with refused('seed'): sweep(tiny, {'seed': [1]})
    with refused('a is'): sweep(tiny, {'a': [1, 'x']})
    assert executed(tmp_path) == 5

@pytest.mark.long
@pytest.mark.parametrize('by, harm', [('run', 'a bit'), ('run', 'the file'), ('papermill', 'its end')])
def test_damaged_results_are_not_used_and_made_again(tmp_path, monkeypatch, harm, by):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path/'tiny.ipynb', FIRST, *RECORDED)
    if by == 'run': folder = run(path, a=3., b=7.)
    else:
        papermill.execute_notebook(path, tmp_path/'o.ipynb', dict(a=3., b=7.))
        folder = tmp_path/'by-hand'
    row, content = folder/'row.csv', (folder/'row.csv').read_bytes()
    spoilt = bytearray(content)
    spoilt[-random.randrange(2, 9)] ^= 1 # a digit becomes another
    if harm == 'the file': row.unlink()
    else: row.write_bytes({'a bit': spoilt, 'its end': content[:-5]}[harm])
    assert _status(folder) == 'damaged'
    table = collect(folder)
    assert table.status.tolist() == ['damaged'] and 'row.csv' in table.error.iloc[0] and 'result' not in table
    with refused('no complete run'): repeat(folder)
    if by == 'papermill': papermill.execute_notebook(path, tmp_path/'o.ipynb', dict(a=3., b=7.))
    else:
        assert plan(path, {'a': [3.]}, b=7.)['status'].tolist() == ['damaged']
        assert sweep(path, {'a': [3.]}, b=7.)['result'].round(12).tolist() == [round(3 / 7, 12)]
    assert _status(folder) == 'complete' and row.read_bytes() == content
    assert (folder/'row.csv.damaged').exists() == (harm != 'the file') # nothing is lost

def test_another_runs_results_are_never_in_a_row(tiny):
    "A run that is refused has a row, without the results of the one that has its name."
    sweep(tiny, {'a': [1]}, name='mine', b=2)
    row = sweep(tiny, {'a': [1]}, name='mine', b=4).iloc[0]
    assert row.status == 'failed' and 'other parameters' in row.error and 'result' not in row

def test_ctrl_c_in_a_sweep_stops_its_kernels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = write(tmp_path/'slow.ipynb', FIRST, SLOW, ROW)
    (tmp_path/'script.py').write_text(f'from cxr_influence.runs.sweeps import sweep\nsweep({str(page)!r}, {{"a": [1, 2, 3]}}, workers=2)')
    child = Script(tmp_path/'script.py')
    folders = [tmp_path/f'_runs/slow/a={a}.0' for a in (1, 2, 3)]
    while not all((folder/'begun').exists() for folder in folders[:2]): assert child.poll() is None and not time.sleep(.1)
    child.send_signal(signal.SIGINT)
    assert child.wait(90) != 0 and [_status(folder) for folder in folders] == ['interrupted'] * 2 + ['']
    folders[2].mkdir()
    (folders[2]/'begun').touch()
    assert sweep(page, {'a': [1, 2, 3]}).status.tolist() == ['complete'] * 3

DEADLY = 'import os\nfrom pathlib import Path\nif a == 1 and not (Path(out).parent/"killed").exists():\n    (Path(out).parent/"killed").touch()\n    os.kill(os.getppid(), 9)'

def test_a_sweep_under_a_launcher_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    with refused('start it without a launcher'): sweep(write(tmp_path/'page.ipynb', FIRST, ROW), {'a': [1]}, runs=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['page.ipynb']

@pytest.mark.long
def test_a_killed_worker_is_survived(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page, tables = write(tmp_path/'deadly.ipynb', FIRST, DEADLY, ROW), []
    for _ in range(2):
        with ProcessPoolExecutor(2, FORKS) as pool: tables.append(sweep(page, {'a': [1, 2, 3]}, pool))
    assert len(tables[0]) == 3 and tables[0].status.iloc[0] == 'interrupted' and 'killed' in tables[0].error.iloc[0]
    assert tables[1].status.tolist() == ['complete'] * 3 and tables[1].result.tolist() == [.5, 1, 1.5]

@pytest.mark.long
def test_dask_ends_a_sweep_complete_although_a_worker_is_killed(tmp_path, monkeypatch):
    distributed = pytest.importorskip('distributed', reason='distributed is not installed: no test of Dask')
    monkeypatch.chdir(tmp_path)
    page, settings = write(tmp_path/'deadly.ipynb', FIRST, DEADLY, ROW), {'a': [1, 2, 3, 4], 'b': [2]}
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, host='127.0.0.1') as cluster, distributed.Client(cluster) as client:
        table = sweep(page, settings, client.get_executor())
        assert client.submit(int, '3').result() == 3 # the executor is its owner's, and open
    assert (tmp_path/'_runs/deadly/killed').exists()
    (tmp_path/'others/deadly').mkdir(parents=True)
    (tmp_path/'others/deadly/killed').touch() # this one kills nobody: here, that would be pytest
    undisturbed = sweep(page, settings, runs='others')
    shown = ['a', 'b', 'result', 'status']
    pd.testing.assert_frame_equal(table[shown], undisturbed[shown])
    assert table.status.tolist() == ['complete'] * 4
