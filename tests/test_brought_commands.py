"Own tables, pools, classes and other kernels, through the commands; parameters as people write them."
import json, os, shutil, subprocess, sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import refused
from test_brought_models import near # a comparison in float64
from test_commands import BIN, here, shell # noqa: F401, a fixture
from cxr_influence.attribution.pools import load_pool, score_images
from cxr_influence.attribution.scoring import influence
from cxr_influence.data.batches import load_data
from cxr_influence.data.labels import FINDINGS
from cxr_influence.data.tables import read_dataset
from cxr_influence.runs.parameters import check_parameters, experiments
from cxr_influence.runs.report import find_study, report
from cxr_influence.training.checkpoints import Recipe, list_checkpoints
from cxr_influence.training.losses import SoftmaxLoss
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
    said = [shell(folder, 'cxr_baseline', '--data', 'data', '--loss', 'softmax', '--recipe', 'small', '--image-size', SIZE, '--epochs', 2),
            shell(folder, 'cxr_influence'), shell(folder, 'cxr_influence', '--pool', 'pool', '--output', 'results/pool.csv')]
    assert [code for code, _ in said] == [0] * 3, '\n'.join(text for _, text in said)
    return folder, said

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

def test_a_pool_is_no_part_of_a_study_and_a_chapter_of_its_own(study, tmp_path, monkeypatch):
    folder, _ = study
    pool, whole = ([path for path in (folder/'_runs/influence').iterdir() if ('"pool": null' in (path/'run.json').read_text()) == known][0] for known in [False, True])
    assert find_study(folder/'_runs')['influence'] == whole and pool not in find_study(folder/'_runs').values()
    page = report([pool], tmp_path/'report.html').read_text()
    assert 'not trained on' in page and 'Influence of the training images' not in page

def test_a_pool_that_cannot_be_scored_is_refused(study, tmp_path):
    folder, _ = study
    run, data = folder/'checkpoints', load_data(folder/'data', SIZE, tmp_path)
    before = {*folder.glob('results/*')}
    for pool in ['nowhere', 'labels.csv']:
        code, text = shell(folder, 'cxr_influence', '--pool', pool, '--output', 'results/other.csv')
        assert code == 2 and f'pool is {pool}' in text.splitlines()[-1] and 'Traceback' not in text, text
    assert before == {*folder.glob('results/*')}
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
