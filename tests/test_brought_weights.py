"Checkpoints that are not one run, weights made elsewhere, and models trained elsewhere."
import json, shutil

import pytest, torch

from conftest import refused, rewrite
from cxr_influence.attribution.pairwise import pairwise
from cxr_influence.attribution.scoring import influence
from cxr_influence.evidence.valuations import gradient_norms, valuations
from cxr_influence.training.checkpoints import Checkpoint, Recipe, best_checkpoint, list_checkpoints
from cxr_influence.training.resume import fit, read_history

RECIPE = Recipe('densenet_small', epochs=3, batch_size=32)

# a folder of checkpoints that is not one run

@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('one')/'run'
    fit(data, folder, RECIPE, device='cpu')
    return folder

@pytest.fixture
def copied(run, tmp_path): return shutil.copytree(run, tmp_path/'run')

def change(folder, **facts):
    path = folder/'checkpoint.json'
    known = json.loads(path.read_text()) | facts
    rewrite(path, json.dumps({name: value for name, value in known.items() if value is not ...}))

DOORS = {
    'influence': lambda run, data, out: influence(run, data, out/'scores.csv', per_finding=False, device='cpu'),
    'pairwise': lambda run, data, out: pairwise(run, data, out/'pairs', images=data.validation.index[:1], device='cpu'),
    'history': lambda run, data, out: valuations(run, data, out/'values', ['aum'], device='cpu'),
    'last layer': lambda run, data, out: valuations(run, data, out/'values', 'last_layer', device='cpu'),
    'grand': lambda run, data, out: gradient_norms(run, data, out/'grand', device='cpu')}

def refused_at_every_door(run, data, out, *words):
    for door in DOORS.values():
        with refused(*words): door(run, data, out)
    assert not out.exists() or not [path for path in out.rglob('*') if path.suffix in ('.csv', '.parquet', '.npy')]

@pytest.mark.parametrize('name', ['best', 'epoch_001 (copy)', 'epoch_002.bak', 'zz'])
def test_a_copy_of_an_epoch_is_refused(data, copied, tmp_path, name):
    epoch = 1 if '1' in name else 2
    shutil.copytree(copied/f'epoch_{epoch:03d}', copied/name)
    refused_at_every_door(copied, data, tmp_path/'out', name, f'epoch_{epoch:03d}', f'both epoch {epoch}', 'move one')
    with refused(name): list_checkpoints(copied)

def test_a_link_to_an_epoch_is_refused(data, copied, tmp_path):
    (copied/'latest').symlink_to('epoch_003')
    refused_at_every_door(copied, data, tmp_path/'out', 'latest', 'both epoch 3')

@pytest.mark.parametrize('facts, words', [
    ({'seed': 7}, 'seed is 7, there 0'), ({'data': 'f' * 12}, "data is 'ffffffffffff'"), ({'backbone': 'resnet18'}, "backbone is 'resnet18'"),
    ({'loss': {'gamma': 0.}}, 'loss is'), ({'image_size': 32}, 'image_size is 32'), ({'batch_size': 8}, 'batch_size is 8, there 32'),
    ({'run': 'another'}, "run is 'another'")])
@pytest.mark.parametrize('epoch', [1, 2, 3])
def test_an_epoch_of_another_run_is_refused(data, copied, tmp_path, facts, words, epoch):
    change(copied/f'epoch_{epoch:03d}', **facts)
    with refused(f'epoch_{epoch:03d} is of another run than', words, 'move it'): DOORS['influence'](copied, data, tmp_path/'out')
    if facts in ({'seed': 7}, {'run': 'another'}): refused_at_every_door(copied, data, tmp_path/'out', words)

def test_the_same_training_elsewhere_is_another_run(data, run, copied, tmp_path):
    fit(data, tmp_path/'again', RECIPE, device='cpu')
    shutil.rmtree(copied/'epoch_002')
    shutil.copytree(tmp_path/'again/epoch_002', copied/'epoch_002')
    refused_at_every_door(copied, data, tmp_path/'out', 'epoch_002 is of another run', 'run is')

@pytest.mark.parametrize('epochs', [[2], [1], [1, 2]])
@pytest.mark.parametrize('how', ['missing', 'removed', 'damaged'])
def test_every_epoch_must_be_there(data, copied, tmp_path, epochs, how):
    for epoch in epochs:
        folder = copied/f'epoch_{epoch:03d}'
        if how == 'missing': shutil.rmtree(folder)
        if how == 'removed': Checkpoint(folder)._remove()
        if how == 'damaged': folder.rename(folder.with_suffix('.damaged'))
    remedy = 'in another folder' if how == 'removed' else 'makes it again'
    refused_at_every_door(copied, data, tmp_path/'out', f'lacks epoch {", ".join(map(str, epochs))}', remedy)
    assert best_checkpoint(copied).facts['epoch'] not in epochs and read_history(copied).index[-1] == 3

def test_weights_under_another_epochs_number_are_refused(data, copied, tmp_path):
    facts = Checkpoint(copied/'epoch_002').facts
    shutil.rmtree(copied/'epoch_002')
    shutil.copytree(copied/'epoch_001', copied/'epoch_002')
    change(copied/'epoch_002', **{name: facts[name] for name in ['epoch', 'step', 'learning_rate']})
    refused_at_every_door(copied, data, tmp_path/'out', 'epoch_002 has the weights of', 'epoch_001')
    for epoch in [1, 2, 3]: change(copied/f'epoch_{epoch:03d}', checksums=...) # as in earlier versions
    refused_at_every_door(copied, data, tmp_path/'out', 'epoch_002 has the weights of', 'epoch_001')

def test_checkpoints_of_earlier_versions_have_no_id(data, run, copied, tmp_path):
    right = DOORS['influence'](run, data, tmp_path/'right')
    labels = data.fingerprint.partition('-')[0]
    for epoch, noted in enumerate([labels, labels, data.fingerprint], 1): change(copied/f'epoch_{epoch:03d}', run=..., data=noted)
    assert DOORS['influence'](copied, data, tmp_path/'old').equals(right)
    assert fit(data, copied, RECIPE, device='cpu').index.tolist() == [1, 2, 3]
    change(copied/'epoch_002', seed=5)
    refused_at_every_door(copied, data, tmp_path/'out', 'epoch_002 is of another run', 'seed is 5, there 0')

def test_a_run_keeps_its_id(data, copied, tmp_path):
    name = Checkpoint(copied/'epoch_001').facts['run']
    shutil.rmtree(copied/'epoch_001')
    (copied/'epoch_003/model.safetensors').write_bytes(b'')
    fit(data, copied, RECIPE, device='cpu')
    assert {one.facts['run'] for one in list_checkpoints(copied)} == {name} and len(name) == 12
    fit(data, tmp_path/'other', RECIPE._replace(epochs=1), device='cpu')
    assert Checkpoint(tmp_path/'other/epoch_001').facts['run'] != name

def test_training_is_refused_beside_a_copy_or_a_stranger(data, copied):
    shutil.copytree(copied/'epoch_001', copied/'best')
    with refused('best', 'both epoch 1'): fit(data, copied, RECIPE, device='cpu')
    change(copied/'best', epoch=4, seed=3)
    with refused('best is of another run', 'seed is 3'): fit(data, copied, RECIPE, device='cpu')
    assert (copied/'epoch_003').is_dir()

@pytest.mark.parametrize('facts, words', [({'epoch': '2'}, "epoch as '2'"), ({'epoch': 1.5}, 'epoch as 1.5'), ({'epoch': True}, 'epoch as True'),
    ({'loss': 'bce'}, "loss as 'bce'"), ({'image_size': None}, 'image_size as None'), ({'findings': None}, 'findings as None')])
def test_facts_of_another_type_are_named(data, copied, tmp_path, facts, words):
    change(copied/'epoch_002', **facts)
    refused_at_every_door(copied, data, tmp_path/'out', 'epoch_002', words)

def test_a_loss_of_other_settings_is_named(data, copied, tmp_path):
    for epoch in [1, 2, 3]: change(copied/f'epoch_{epoch:03d}', loss={'pos_weight': 2.})
    with refused('epoch_001', 'no FocalLoss', 'pos_weight', 'settings()'): DOORS['influence'](copied, data, tmp_path/'out')
