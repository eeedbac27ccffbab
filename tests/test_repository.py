"What holds for the repository as a whole: its shape, its notebooks, and what its modules may not do."
import ast, importlib, json, os, re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest, yaml

from conftest import ci, pytest_collection_modifyitems

ROOT = Path(__file__).resolve().parents[1]
config = ConfigParser(delimiters=['='])
config.read(ROOT/'settings.ini', encoding='utf-8')
SETTINGS = config['DEFAULT']
LISTED = subprocess.check_output(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, text=True).split('\n')
NOTEBOOKS = {name: json.loads((ROOT/name).read_text(encoding='utf-8')) for name in sorted(LISTED) if name.endswith('.ipynb') and (ROOT/name).exists()}
NUMBERED = {name: nb for name, nb in NOTEBOOKS.items() if re.fullmatch(r'nbs/\d_\w+/\d\d_\w+\.ipynb', name)}
EXPERIMENTS = {name: nb for name, nb in NOTEBOOKS.items() if name.startswith('nbs/experiments/')}
MODULE = {name: '.'.join(part.partition('_')[2] for part in name[4:-6].split('/')) for name in NUMBERED} # page -> module
ORDER = list(MODULE.values()) # the modules, first to last
FILES = {m: ROOT/'cxr_influence'/f'{m.replace(".", "/")}.py' for m in ORDER}
TREES = {m: ast.parse(file.read_text(encoding='utf-8')) for m, file in FILES.items() if file.exists()}
PUBLIC = [(m, n) for m, tree in TREES.items() for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))
          and n.name[0] != '_' and not n.decorator_list]
COMMANDS = dict(c.split('=') for c in SETTINGS['console_scripts'].split())

def source(cell): return ''.join(cell['source'])
def nodes(module, kind): return [n for n in ast.walk(TREES[module]) if isinstance(n, kind)]
def called(call): return ast.unparse(call.func)
def keyword(call, name): return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)

def imported(module):
    "The dotted names that a module imports."
    names = [a.name for n in nodes(module, ast.Import) for a in n.names]
    for n in nodes(module, ast.ImportFrom):
        here = ['cxr_influence', *module.split('.')]
        base = '.'.join(filter(None, [*here[:len(here) - n.level], n.module] if n.level else [n.module]))
        names += [f'{base}.{a.name}' for a in n.names]
    return names

def used_modules(module):
    "The modules of the package that a module imports from."
    names = [name.removeprefix('cxr_influence.') for name in imported(module) if name.startswith('cxr_influence.')]
    return {next((m for m in ORDER if name == m or name.startswith(f'{m}.')), name) for name in names}

def title(name): return next(source(c) for c in NOTEBOOKS[name]['cells'] if c['cell_type'] == 'markdown').splitlines()[0]

def test_the_top_level_is_short():
    assert {name.split('/')[0] for name in LISTED if name and (ROOT/name).exists()} == {
        '.binder', '.ci', '.github', '.gitignore', 'CITATION.cff', 'LICENSE', 'MANIFEST.in', 'Makefile', 'README.md', '_quarto.yml',
        'cxr_influence', 'environment.yml', 'nbs', 'report', 'settings.ini', 'setup.py', 'tests'}

def test_licence_citation_and_environment_agree_with_the_settings():
    licence, citation = (ROOT/'LICENSE').read_text(), yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    assert 'Apache License' in licence and 'Version 2.0' in licence and 'END OF TERMS AND CONDITIONS' in licence
    assert (citation['version'], citation['license'], SETTINGS['license']) == (SETTINGS['version'], 'Apache-2.0', 'apache2')
    assert citation['title'] and citation['authors'] and citation['cff-version']
    assert importlib.import_module('cxr_influence').__version__ == SETTINGS['version']
    assert yaml.safe_load((ROOT/'environment.yml').read_text())['dependencies'][-1] == {'pip': ['-e .[dev]']}

def test_binder_installs_what_the_tutorials_need_and_the_home_page_leads_there():
    "Its script is read, not run: there is no Binder here."
    script = ROOT/'.binder/postBuild'
    assert os.access(script, os.X_OK) and subprocess.run(['bash', '-n', script]).returncode == 0
    assert "-e '.[lab]'" in script.read_text()
    assert yaml.safe_load((ROOT/'.binder/environment.yml').read_text())['dependencies'] == ['python=3.11', 'pip']
    owner = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['repo-url'].removeprefix('https://github.com/')
    led = re.findall(r'https://mybinder.org/v2/gh/(\S+?)/main\?labpath=([^)\s]+)', (ROOT/'README.md').read_text(encoding='utf-8'))
    assert len(led) == 4 and {who for who, _ in led} == {owner} and all((ROOT/page).exists() for _, page in led)

def test_make_test_and_ci_run_the_same():
    ci, make = (ROOT/'.ci/run').read_text(), (ROOT/'Makefile').read_text()
    assert all(script in text for script in ('.ci/env.sh', '.ci/test.py') for text in (ci, make))
    if shutil.which('make'):
        steps = subprocess.check_output(['make', '-n', 'test', 'VENV=v'], cwd=ROOT, text=True)
        assert re.findall(r'\.ci/\w+\.\w+', steps) == ['.ci/env.sh', '.ci/test.py']

def test_every_check_that_takes_long_has_its_turn(monkeypatch):
    test, stems = ci('test'), {file.stem for file in (ROOT/'nbs').rglob('*.ipynb')}
    assert test.turn() in range(test.TURNS) and set(test.LONG) <= stems
    left = [set(test.waiting(test.LONG, mine)) for mine in range(test.TURNS)]
    assert set.intersection(*left) == set() and all(len(some) >= len(test.LONG)*.6 for some in left)
    assert all(set(test.LONG[:3]) & set(test.waiting(test.LONG, mine, test.LONG[:3])) == set() for mine in range(test.TURNS))
    assert all((ROOT/name).suffix for name in test.changed())
    GROUP = [f'tests/test_{i}.py::test[{i}]' for i in (1, 3, 5)]
    class Item:
        def __init__(self, name, long): self.nodeid, self.long, self.skipped = name, long, False
        def get_closest_marker(self, name): return self.long and pytest.mark.long(*['together']*(self.nodeid in GROUP)).mark
        def add_marker(self, mark): self.skipped = mark.name == 'skip'
    runs = []
    for mine in [None, *range(test.TURNS)]:
        items = [Item(f'tests/test_{i}.py::test[{i}]', i % 2) for i in range(400)]
        if mine is None: monkeypatch.delenv('TURN', raising=False)
        else: monkeypatch.setenv('TURN', f'{mine}/{test.TURNS}')
        pytest_collection_modifyitems(items)
        runs.append([not item.skipped for item in items])
    once = [sum(turns) for turns in zip(*runs[1:])]
    assert all(runs[0]) and once[::2] == [test.TURNS]*200 and once[1::2] == [1]*200
    assert all(sum(run[1::2]) < 200/test.TURNS*1.6 and sum(run[1:6:2]) in (0, 3) for run in runs[1:])
    monkeypatch.setenv('CHANGED', 'README.md\ntests/test_7.py')
    items = [Item('tests/test_7.py::test[7]', True), *(Item(f'tests/test_{i}.py::test[7]', True) for i in range(100, 400))]
    pytest_collection_modifyitems(items)
    assert not items[0].skipped and sum(item.skipped for item in items) > 200

def test_readme_leads_nowhere_that_is_not_there():
    links = re.findall(r'\]\(([^)\s#]+)', (ROOT/'README.md').read_text(encoding='utf-8'))
    assert [link for link in links if not re.match(r'[a-z]+:', link) and not (ROOT/link).exists()] == []

@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_page_says_what_it_is(name):
    first = next(source(c) for c in NOTEBOOKS[name]['cells'] if c['cell_type'] == 'markdown')
    assert re.match(r'# \S.*\n\s*\n> \S', first), 'a page starts with `# Title`, an empty line and `> one line about it`'

@pytest.mark.parametrize('name', NOTEBOOKS)
def test_stored_outputs_hold_no_error_and_no_home_folder(name):
    outputs = [o for c in NOTEBOOKS[name]['cells'] for o in c.get('outputs', [])]
    assert not [o['evalue'] for o in outputs if o['output_type'] == 'error']
    seen = ''.join(json.dumps({k: v for k, v in o.get('data', {}).items() if 'image' not in k}) + ''.join(o.get('text', '')) for o in outputs)
    assert re.findall(r'(?<![\w.])/(?:root|home|Users|work)/\S+', seen) == []

@pytest.mark.parametrize('name', NUMBERED)
def test_a_numbered_notebook_makes_the_module_of_its_name(name):
    exports = [m for c in NUMBERED[name]['cells'] for m in re.findall(r'^#\|\s*default_exp\s+(\S+)', source(c), re.M)]
    assert exports == [MODULE[name]] and exports[0] in TREES

def test_every_module_has_its_notebook():
    files = [f.relative_to(ROOT/'cxr_influence').with_suffix('') for f in (ROOT/'cxr_influence').rglob('*.py')]
    assert {'.'.join(f.parts) for f in files if f.name not in ('__init__', '_modidx')} == set(ORDER)

def test_no_two_pages_have_one_title():
    titles = [title(name) for name in NOTEBOOKS]
    assert sorted({t for t in titles if titles.count(t) > 1}) == []

@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_page_stands_in_one_section_of_the_sidebar(name):
    sections = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    patterns = [p for s in sections for p in ([s['contents']] if isinstance(s['contents'], str) else s['contents'])]
    assert sum(Path(name).match(p) and p.count('/') == name.count('/') for p in patterns) == 1

def test_no_name_is_public_twice():
    names = [n.name for _, n in PUBLIC]
    assert sorted({name for name in names if names.count(name) > 1}) == []

MANY = {'read_dataset', *COMMANDS} # a reader that names columns, and console commands

@pytest.mark.parametrize('module, function', [(m, n.name) for m, n in PUBLIC if isinstance(n, ast.FunctionDef)])
def test_a_public_function_has_at_most_seven_parameters(module, function):
    given = next(n for m, n in PUBLIC if (m, n.name) == (module, function)).args
    assert function in MANY or len(given.posonlyargs + given.args + given.kwonlyargs) <= 7

def test_every_verb_of_the_package_is_there():
    import cxr_influence as cxr
    assert all(callable(getattr(cxr, name)) for name in cxr.__all__)

def test_importing_the_package_is_quick():
    code = "import sys, cxr_influence; print([m for m in ('torch', 'pandas', 'nbconvert', 'papermill') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip() == '[]'

def test_the_kernel_of_an_experiment_imports_no_papermill():
    code = "import sys, cxr_influence.runs.runs; print([m for m in ('papermill', 'nbformat', 'jsonschema') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip() == '[]'

@pytest.mark.parametrize('module', TREES)
def test_a_module_imports_only_earlier_ones(module):
    assert used_modules(module) <= set(ORDER[:ORDER.index(module)]) | {'__version__'}

def test_arrows_between_wings_are_few_and_none_leads_upward():
    wings = list(dict.fromkeys(m.partition('.')[0] for m in ORDER))
    arrows = {(used.partition('.')[0], m.partition('.')[0]) for m in TREES for used in used_modules(m) & set(ORDER)}
    arrows = {(a, b) for a, b in arrows if a != b}
    assert len(wings) <= 12 and len(arrows) <= 25 and all(wings.index(a) < wings.index(b) for a, b in arrows)

@pytest.mark.parametrize('module', TREES)
def test_a_module_needs_nothing_of_development_and_unpickles_nothing(module):
    assert not {name.split('.')[0] for name in imported(module)} & {'nbdev', 'execnb', 'pytest', 'pickle', 'dill', 'cloudpickle'}
    assert {name for name in imported(module) if name.split('.')[0] == 'joblib'} <= {'joblib.Parallel', 'joblib.cpu_count', 'joblib.delayed'}
    for call in nodes(module, ast.Call):
        if called(call).endswith('torch.load'): assert keyword(call, 'weights_only') == 'True', f'line {call.lineno}'
        assert keyword(call, 'allow_pickle') in (None, 'False'), f'line {call.lineno}'
        assert not called(call).endswith('read_pickle'), f'line {call.lineno}'

@pytest.mark.parametrize('module', TREES)
def test_a_module_asks_for_no_particular_device(module):
    cuda = lambda node: isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith('cuda')
    for call in nodes(module, ast.Call):
        assert not (isinstance(call.func, ast.Attribute) and call.func.attr == 'cuda'), f'line {call.lineno}: .cuda()'
        if called(call).split('.')[-1] == 'to': assert not any(map(cuda, call.args)), f'line {call.lineno}: .to("cuda")'
        assert not any(k.arg == 'device' and cuda(k.value) for k in call.keywords), f'line {call.lineno}: device="cuda"'
    for function in nodes(module, (ast.FunctionDef, ast.Lambda)):
        assert not any(map(cuda, function.args.defaults + function.args.kw_defaults)), f'line {function.lineno}: a default of "cuda"'

def test_the_experiments_are_there():
    assert {Path(name).stem for name in EXPERIMENTS} >= {'baseline', 'influence', 'subsets'}

@pytest.mark.parametrize('name', EXPERIMENTS)
def test_an_experiment_has_one_parameters_cell_and_defines_nothing(name):
    code = [c for c in EXPERIMENTS[name]['cells'] if c['cell_type'] == 'code']
    assert [source(c) != '' for c in code if 'parameters' in c['metadata'].get('tags', [])] == [True]
    tree = ast.parse('\n'.join(source(c) for c in code))
    assert not [n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]

@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_explains_itself(command):
    module, function = COMMANDS[command].split(':')
    assert callable(getattr(importlib.import_module(module), function))
    run = subprocess.run([Path(sys.executable).with_name(command), '--help'], cwd=ROOT, text=True, capture_output=True)
    assert run.returncode == 0 and 'usage' in run.stdout.lower() and '--help' in run.stdout, run.stderr

def test_a_wheel_holds_the_modules_the_experiments_and_the_commands(tmp_path):
    for name in ('settings.ini', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'): shutil.copy(ROOT/name, tmp_path)
    for name in ('cxr_influence', 'nbs/experiments'): shutil.copytree(ROOT/name, tmp_path/name)
    run = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '.', '--no-deps', '--no-build-isolation', '--no-index', '-w', 'out'],
                         cwd=tmp_path, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    wheel = zipfile.ZipFile(next((tmp_path/'out').glob('*.whl')))
    modules, experiments = [str(f.relative_to(ROOT)) for f in FILES.values()], [f'cxr_influence/{name[4:]}' for name in EXPERIMENTS]
    assert set(modules + experiments) <= set(wheel.namelist())
    entries = wheel.read(next(n for n in wheel.namelist() if n.endswith('entry_points.txt'))).decode()
    assert all(f'{command} = {target}' in entries for command, target in COMMANDS.items())

def test_every_parameter_of_a_public_name_has_a_comment():
    "Shape, unit or meaning stands beside it; `data` means the same everywhere, and `**settings` say what they are."
    bare = []
    for module in sorted((ROOT/'cxr_influence').glob('*/*.py')):
        source = module.read_text(encoding='utf-8')
        lines = source.splitlines()
        for one in ast.parse(source).body:
            if not isinstance(one, ast.FunctionDef) or one.name.startswith('_') or one.args.args[:1] and one.args.args[0].arg == 'self': continue
            given = [*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs, *filter(None, [one.args.vararg, one.args.kwarg])]
            bare += [f'{module.stem}.{one.name}: {arg.arg}' for arg in given if arg.arg != 'data' and '#' not in lines[arg.end_lineno - 1]]
    assert bare == []
