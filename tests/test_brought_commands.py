"Own tables, pools, classes and other kernels, through the commands; parameters as people write them."
import json, shutil, subprocess, sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import refused
from test_commands import here, within # noqa: F401, a fixture
from cxr_influence.attribution.pools import load_pool, score_images
from cxr_influence.attribution.scoring import influence
from cxr_influence.data.batches import Data, load_data
from cxr_influence.data.store import decode
from cxr_influence.data.tables import read_dataset
from cxr_influence.runs import pipeline
from cxr_influence.runs.parameters import check_parameters, parameters_of
from cxr_influence.runs.report import find_study, report
from cxr_influence.training.checkpoints import Recipe, list_checkpoints
from cxr_influence.training.resume import fit

SIZE, CLASSES = 32, ['Normal', 'Effusion', 'Other']
DESCRIBED = dict(table='labels.csv', image='file', patient='who', split='part', findings=CLASSES, only=True)

def make_folder(folder, images=60, first=0, split=True):
    "Random images of exclusive classes, and their table."
    rng = np.random.default_rng()
    (folder/'png').mkdir(parents=True)
    files = [f'{i + first:03d}.png' for i in range(images)]
    for name in files: Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(folder/'png'/name)
    table = pd.DataFrame({'file': files, 'who': [f'p{i + first}' for i in range(images)]})
    if split: table['part'] = (['train'] * 4 + ['validation', 'test']) * (images // 6)
    table[CLASSES] = np.eye(3, dtype=int)[np.arange(images) // 6 % 3 if split else rng.integers(0, 3, images)]
    table.to_csv(folder/'labels.csv', index=False)
    return folder

@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "A folder of one's own, described in it, through the commands: trained with softmax, scored, and a pool."
    folder = tmp_path_factory.mktemp('own')
    (make_folder(folder/'data')/'dataset.json').write_text(json.dumps(DESCRIBED))
    make_folder(folder/'pool', 12, 500, split=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        said = [within(pipeline.cxr_baseline, '--data', 'data', '--loss', 'softmax', '--recipe', 'small', '--image-size', SIZE, '--epochs', 2),
                within(pipeline.cxr_influence), within(pipeline.cxr_influence, '--pool', 'pool', '--output', 'results/pool.csv')]
    assert [code for code, _ in said] == [0] * 3, '\n'.join(text for _, text in said)
    return folder, said

@pytest.mark.long('softmax and a pool')
def test_softmax_and_a_pool_from_the_command_line(study, tmp_path):
    folder, said = study
    facts = list_checkpoints(folder/'checkpoints')[0].facts
    assert facts['loss']['kind'] == 'softmax' and facts['findings'] == CLASSES
    assert [*pd.read_csv(folder/'results/baseline.csv', index_col=0).index] == [*CLASSES, 'macro', 'micro', 'weighted']
    card = (folder/'results/model_card.md').read_text()
    assert '3 exclusive classes' in card and '--loss softmax' in card
    data = load_data(folder/'data', SIZE, tmp_path)
    pool = load_pool(folder/'pool', folder/'checkpoints', tmp_path)
    assert len(pool) == 12 and pool.findings == CLASSES
    right = score_images(folder/'checkpoints', pool, data, tmp_path/'right.csv', device='cpu')
    found = pd.read_csv(folder/'results/pool.csv', index_col='image')
    np.testing.assert_allclose(found[right.columns], right, rtol=1e-4, atol=1e-6 * right.influence.abs().max())
    own = pd.read_csv(folder/'results/influence.csv', index_col='image')
    assert {*own.index} == {*data.train.index} and not {*own.index} & {*found.index}
    assert 'cxr_subset' in said[1][1] and 'cxr_subset' not in said[2][1]

@pytest.mark.long('softmax and a pool')
def test_a_pool_is_no_part_of_a_study_and_a_chapter_of_its_own(study, tmp_path, monkeypatch):
    folder, _ = study
    pool, whole = ([path for path in (folder/'_runs/influence').iterdir() if ('"pool": null' in (path/'run.json').read_text()) == known][0] for known in [False, True])
    assert find_study(folder/'_runs')['influence'] == whole and pool not in find_study(folder/'_runs').values()
    page = report([pool], tmp_path/'report.html').read_text()
    assert 'not trained on' in page and 'Influence of the training images' not in page

@pytest.mark.long('softmax and a pool')
def test_a_pool_that_cannot_be_scored_is_refused(study, here, tmp_path):
    folder, _ = study
    run, data = folder/'checkpoints', load_data(folder/'data', SIZE, tmp_path)
    for pool in [tmp_path/'nowhere', folder/'data/labels.csv']:
        code, text = here('cxr_influence', '--checkpoints', run, '--pool', pool, '--output', 'other/other.csv')
        assert code == 2 and f'pool is {pool}' in text.splitlines()[-1], text
    assert not (tmp_path/'other').exists()
    def changed(name, change, described=None):
        table = pd.read_csv(make_folder(tmp_path/name, 6, 700, split=False)/'labels.csv')
        change(table).to_csv(tmp_path/name/'labels.csv', index=False)
        if described: (tmp_path/name/'dataset.json').write_text(json.dumps({key: value for key, value in (DESCRIBED | described).items() if key != 'split'}))
        return tmp_path/name
    def score(pool): return score_images(run, load_pool(pool, run, tmp_path), data, tmp_path/'x.csv', device='cpu')
    none = changed('none', lambda table: table.assign(Normal=0, Effusion=0, Other=0))
    with refused('700.png', 'no class'): score(none)
    with refused('700.png', 'not known'): score(changed('unknown', lambda table: table.assign(Normal=np.nan, Effusion=np.nan, Other=np.nan)))
    with refused('other findings', 'Normal'): score(changed('turned', lambda table: table, dict(findings=CLASSES[::-1])))
    with refused('Effusion'): score(changed('lacking', lambda table: table.drop(columns='Effusion')))
    with refused('also a target image'): score(folder/'data')
    (none/'labels.csv').unlink()
    with refused('labels.csv', 'missing'): score(none)

# Parameters, kernels and platforms

@pytest.mark.parametrize('given, value', [
    (dict(fractions='[0.3]'), [.3]), (dict(fractions=.3), [.3]), (dict(fractions='0.1,0.3'), [.1, .3]), (dict(fractions='0.1, 0.3'), [.1, .3]),
    (dict(seeds='[0]'), [0]), (dict(seeds=0), [0]), (dict(seeds='0,2'), [0, 2]), (dict(valuations='influence'), ['influence']),
    (dict(rules='top,random'), ['top', 'random']), (dict(rules="['top', 'random']"), ['top', 'random']), (dict(valuations='None'), None)])
def test_papermills_text_becomes_the_list_that_is_meant(given, value):
    assert [*check_parameters(given, parameters_of('subsets')).values()] == [value]

@pytest.mark.parametrize('given, words', [(dict(fractions='many'), 'list[float]'), (dict(seeds='1.5'), 'list[int]'), (dict(seeds=[0, 'x']), 'list[int]')])
def test_text_that_is_no_list_is_refused_by_its_name(given, words):
    with refused(words, *given): check_parameters(given, parameters_of('subsets'))

@pytest.mark.parametrize('source, value', [
    ('value = "a=b"', 'a=b'), ('value = 3 # default = 3', 3), ('value = 1; other = 2', 1), ('value = "a # b"', 'a # b'), ('value: str = "a=b;c" # x = 3', 'a=b;c'),
    ('value = ("a="\n  "b") # = c', 'a=b'), ('value = out = "x"', 'x'), ('value = """a\n# b = 3"""', 'a\n# b = 3'), ('value = [1, # = 2\n 3]', [1, 3])])
def test_parameters_are_read_as_python_reads_them(source, value, tmp_path):
    cell = nbformat.v4.new_code_cell(f'{source}\nout = "x"', metadata={'tags': ['parameters']})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path/'t.ipynb')
    known = {one.name: one.default for one in parameters_of(tmp_path/'t.ipynb')}
    assert known['value'] == value and known['out'] == 'x' and {*known} <= {'value', 'out', 'other'}
    assert check_parameters({'value': 'a=c'}, parameters_of(tmp_path/'t.ipynb'))['value'] == 'a=c'

def test_a_cell_without_parameters_is_named(tmp_path):
    for source, tags, words in [('value, out = 1, "x"', ['parameters'], 'one a line'), ('value = 1', [], 'no cell')]:
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, metadata={'tags': tags})]), tmp_path/'t.ipynb')
        with refused('t.ipynb', words, 'parameters'): parameters_of(tmp_path/'t.ipynb')

@pytest.mark.long('softmax and a pool')
def test_a_run_of_ones_own_table_is_scored_whatever_kernel_is_called_python3(study, tmp_path, monkeypatch):
    "Trained in Python from a table in its folder; JUPYTER_PATH, as cluster modules set it, leads to a kernel that cannot start."
    folder, _ = study
    (tmp_path/'jupyter/kernels/python3').mkdir(parents=True)
    spec = {'argv': [sys.executable, '-S', '-m', 'ipykernel_launcher_of_another', '-f', '{connection_file}'], 'display_name': 'Python 3', 'language': 'python'}
    (tmp_path/'jupyter/kernels/python3/kernel.json').write_text(json.dumps(spec))
    own = shutil.copytree(folder/'data', tmp_path/'data')
    (own/'dataset.json').unlink()
    table = {name: value for name, value in DESCRIBED.items() if name != 'table'}
    frame = read_dataset(own/'labels.csv', own, **table)
    data = Data(frame, decode(frame, own, SIZE, tmp_path/'store'))
    fit(data, tmp_path/'run', Recipe('densenet_small', epochs=1, batch_size=16), device='cpu')
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'jupyter'))
    monkeypatch.chdir(tmp_path)
    code, text = within(pipeline.cxr_influence, '--checkpoints', 'run', '--output', 'x.csv', '--total-only')
    assert code == 0, text
    right = influence(tmp_path/'run', data, tmp_path/'right.csv', per_finding=False, device='cpu').influence
    found = pd.read_csv(tmp_path/'x.csv', index_col='image').influence
    np.testing.assert_allclose(found, right[found.index], rtol=1e-4, atol=1e-6 * right.abs().max())

@pytest.mark.long('softmax and a pool')
def test_rules_that_cannot_be_compared_are_refused_before_any_training(study, here, tmp_path):
    folder, _ = study
    for rules in ['top', 'top,bottom', 'random,random', 'random,best']:
        code, text = here('cxr_subset', '--checkpoints', folder/'checkpoints', '--scores', folder/'results/influence.csv', '--fractions', .3, '--seeds', 1,
                          '--rules', rules, '--results', 'r')
        assert code == 2 and 'rule' in text.splitlines()[-1], text
    assert not [*tmp_path.rglob('*.json')] and not [*tmp_path.rglob('*.parquet')]

@pytest.mark.long
def test_the_commands_run_without_what_windows_lacks():
    code = ("import sys; sys.modules |= dict.fromkeys(['resource', 'fcntl', 'termios', 'pwd'])\nimport cxr_influence.runs.cli, cxr_influence.runs.pipeline, cxr_influence.runs.runs, "
            "cxr_influence.runs.sweeps, cxr_influence.runs.report, cxr_influence.evidence.subsets\nprint(cxr_influence.runs.runs._peak_memory())")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == 'None', done.stderr
