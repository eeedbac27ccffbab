"Checkpoints that are not one run, weights made elsewhere, and models trained elsewhere."
import argparse, collections, datetime, hashlib, json, random, re, shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch, torchvision
from safetensors.torch import load_file, save_file

from conftest import refused, rewrite
from cxr_influence.attribution.pairwise import pairwise
from cxr_influence.attribution.scoring import influence
from cxr_influence.data.files import InputError
from cxr_influence.data.labels import FINDINGS
from cxr_influence.evidence.subsets import run_subsets
from cxr_influence.evidence.valuations import gradient_norms, valuations
from cxr_influence.runs.pipeline import _root_of
from cxr_influence.training import networks
from cxr_influence.training.checkpoints import (_FACTS, Checkpoint, Recipe, best_checkpoint,
    list_checkpoints)
from cxr_influence.training.imports import import_checkpoint
from cxr_influence.training.evaluation import evaluate_checkpoint
from cxr_influence.training.loop import predict
from cxr_influence.training.model_card import write_model_card
from cxr_influence.training.networks import (_make_network, make_model, match_weights,
    weights_checksum)
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
def test_an_epoch_of_another_run_is_refused(data, copied, tmp_path, facts, words):
    epoch = random.randint(1, 3)
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

# weights made elsewhere

def network(backbone='densenet_small'):
    torch.manual_seed(torch.seed() % 2**32)
    model = _make_network(backbone)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d): module.running_mean.normal_()
    return model

@pytest.fixture(scope='module')
def net(): return network()

@pytest.fixture
def state(net): return dict(net.state_dict())

def same(model, net): return weights_checksum(model) == weights_checksum(net)

DOT = re.compile(r'^(.*denselayer\d+\.(?:norm|relu|conv))((?:[12])\.(?:weight|bias|running_mean|running_var))$') # torchvision's, backwards
def published(state):
    "The names of torchvision's published DenseNet files, written before PyTorch 0.4.1."
    return {DOT.sub(r'\1.\2', name): t for name, t in state.items() if not name.endswith('num_batches_tracked')}

def test_imagenets_own_file_of_densenet121(tmp_path):
    net = torchvision.models.densenet121()
    old = published(net.state_dict())
    assert len(old) == 606 and 'features.denseblock4.denselayer16.conv.2.weight' in old and old['classifier.weight'].shape == (1000, 1024)
    torch.save(old, tmp_path/'densenet121.pth', _use_new_zipfile_serialization=False)
    model = make_model('densenet121', tmp_path/'densenet121.pth', seed=4)
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in model.state_dict().items() if not name.startswith('classifier'))
    assert torch.equal(model.classifier.weight, make_model('densenet121', seed=4).classifier.weight)
    assert model.weights_facts['head'] == 'new: the file has 1000 outputs'
    table = match_weights(tmp_path/'densenet121.pth')
    assert table.what.value_counts().to_dict() == {'renamed': 58 * 10, 'found': 606 - 580 - 2, 'new': 121 + 2, 'left out': 2}

def test_imagenets_weights_come_through_torchvisions_cache_with_their_old_names(tmp_path, monkeypatch):
    net = torchvision.models.densenet121()
    entry = torchvision.models.get_model_weights('densenet121').DEFAULT
    (tmp_path/'checkpoints').mkdir()
    path = tmp_path/'checkpoints'/entry.url.rsplit('/', 1)[1]
    torch.save(published(net.state_dict()), path)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(path := path.with_name(f'densenet121-{digest[:8]}.pth'))
    monkeypatch.setattr(networks, '_known_weights', lambda backbone: [SimpleNamespace(url=f'https://x/{path.name}', get_state_dict=lambda **_: {})])
    model = make_model('densenet121', 'imagenet')
    assert torch.equal(model.features.conv0.weight, net.features.conv0.weight) and model.weights_facts['sha256'] == digest

PREFIXES = ['module.', '_orig_mod.', 'model.', 'backbone.', 'densenet121.', 'net.', 'encoder.']

@pytest.mark.parametrize('head', ['classifier.', 'classifier.0.', 'classifier.1.'])
@pytest.mark.parametrize('prefix', ['_orig_mod.', 'module._orig_mod.', '_orig_mod.module.', 'module.densenet121.', 'model.model.net.', None, None])
def test_prefixes_and_heads(net, state, tmp_path, prefix, head):
    if prefix is None: prefix = ''.join(random.choices(PREFIXES, k=random.randint(0, 4)))
    wrapped = {prefix + name.replace('classifier.', head): t for name, t in state.items()}
    torch.save({'epoch': 3, 'best_loss': .2, 'state_dict': wrapped}, tmp_path/'m-25012018-123527.pth.tar', _use_new_zipfile_serialization=random.random() < .5)
    assert same(make_model('densenet_small', tmp_path/'m-25012018-123527.pth.tar'), net), prefix

@pytest.mark.parametrize('place', ['', 'state_dict', 'model_state_dict', 'model', 'net', 'weights', 'checkpoint.state_dict'])
def test_places_in_a_file(net, state, tmp_path, place):
    for word in reversed(place.split('.') if place else []): state = {'epoch': 3, 'best_loss': .2, word: state, 'optimizer': {'state': {0: {'exp_avg': torch.ones(3)}}}}
    torch.save(state, tmp_path/'w.pt')
    assert same(make_model('densenet_small', tmp_path/'w.pt'), net)

@pytest.mark.parametrize('inside', ['module', '_orig_mod'])
def test_a_part_that_was_wrapped(net, state, tmp_path, inside):
    save_file({name.replace('features.', f'features.{inside}.'): t for name, t in state.items()}, tmp_path/'w.safetensors')
    assert same(make_model('densenet_small', tmp_path/'w.safetensors'), net)

def test_lightning_an_average_and_what_others_add(net, state, tmp_path):
    extra = {'criterion.pos_weight': torch.ones(14), 'val_auroc.preds': torch.ones(3), 'model.features.total_ops': torch.zeros(1)}
    torch.save({'pytorch-lightning_version': '2.0', 'global_step': 7, 'state_dict': {f'model.{k}': t for k, t in state.items()} | extra,
                'optimizer_states': [{'state': {0: {'exp_avg': torch.ones(3)}}}], 'hyper_parameters': argparse.Namespace(lr=1e-3)}, tmp_path/'last.ckpt')
    model = make_model('densenet_small', tmp_path/'last.ckpt')
    assert same(model, net) and model.weights_facts['tensors'] == {'renamed': len(state), 'left out': 3}
    averaged = torch.optim.swa_utils.AveragedModel(net)
    torch.save(averaged.state_dict(), tmp_path/'swa.pth')
    assert same(make_model('densenet_small', tmp_path/'swa.pth'), net)
    other = network().state_dict()
    torch.save({'model': state, 'ema': other}, tmp_path/'ema.pth')
    assert same(make_model('densenet_small', tmp_path/'ema.pth'), net)
    torch.save({'student': state, 'teacher': other}, tmp_path/'two.pth')
    with refused('two.pth', 'student', 'teacher', 'save one'): make_model('densenet_small', tmp_path/'two.pth')

@pytest.mark.parametrize('new', [True, False])
@pytest.mark.parametrize('thing', [np.float64(.81), np.float32(1), np.int64(3), np.bool_(True), np.ones(14), np.array(['a', 'b']), argparse.Namespace(lr=1),
    collections.defaultdict(list, a=[1]), collections.deque([1, 2]), datetime.datetime(2024, 6, 12), Path('x'), torch.get_rng_state(), {'auc': [np.float64(1)]}],
    ids=lambda thing: type(thing).__name__)
def test_what_lies_beside_the_weights(net, state, tmp_path, thing, new):
    torch.save({'epoch': 3, 'beside': thing, 'state_dict': state}, tmp_path/'w.pth', _use_new_zipfile_serialization=new)
    assert same(make_model('densenet_small', tmp_path/'w.pth'), net)
    torch.save(state | {'best': thing}, tmp_path/'flat.pth', _use_new_zipfile_serialization=new)
    if not isinstance(thing, torch.Tensor): assert same(make_model('densenet_small', tmp_path/'flat.pth'), net)

@pytest.mark.parametrize('new', [True, False])
@pytest.mark.parametrize('kind', ['<f4', '>f4', '<f8', 'f2'])
def test_arrays_of_numpy_instead_of_tensors(net, state, tmp_path, kind, new):
    arrays = {name: np.asarray(t).astype(kind) if t.is_floating_point() else t.numpy() for name, t in state.items()}
    arrays['classifier.weight'] = np.asfortranarray(arrays['classifier.weight'])
    for content in [arrays, {'epoch': np.int64(3), 'auroc': np.ones(3), 'state_dict': {f'module.{k}': a for k, a in arrays.items()}}]:
        torch.save(content, tmp_path/'w.pth', _use_new_zipfile_serialization=new)
        found = make_model('densenet_small', tmp_path/'w.pth').state_dict()
        for name, t in state.items(): assert torch.equal(found[name], torch.tensor(arrays[name].astype(arrays[name].dtype.newbyteorder('='))).to(t.dtype)), name
    torch.save({name: np.array([Evil(tmp_path/'ran')], dtype=object) for name in state}, tmp_path/'w.pth', _use_new_zipfile_serialization=new)
    with refused('w.pth', 'safe to read'): make_model('densenet_small', tmp_path/'w.pth')
    assert not (tmp_path/'ran').exists()

@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_a_first_layer_of_one_channel_sees_grey_as_it_did(net, state, tmp_path, prefix):
    grey = torch.randn(len(state['features.conv0.weight']), 1, *state['features.conv0.weight'].shape[2:])
    torch.save({prefix + k: t for k, t in (state | {'features.conv0.weight': grey}).items()}, tmp_path/'w.pth')
    model, x = make_model('densenet_small', tmp_path/'w.pth').eval(), torch.randn(2, 1, 64, 64)
    conv = model.features.conv0
    right = torch.nn.functional.conv2d(x, grey, stride=conv.stride, padding=conv.padding)
    torch.testing.assert_close(conv(x.expand(-1, 3, -1, -1)), right, rtol=1e-4, atol=1e-4)
    assert model.weights_facts['tensors']['made three channels'] == 1
    table = match_weights(tmp_path/'w.pth', 'densenet_small').set_index('here')
    assert table.what['features.conv0.weight'] == 'made three channels' and (table.what == 'made three channels').sum() == 1

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (Path.touch, (self.path,))

@pytest.mark.parametrize('new', [True, False])
def test_no_code_in_a_file_is_run(state, tmp_path, new):
    before = set(torch.serialization.get_safe_globals())
    for content in [{'state_dict': state, 'beside': Evil(tmp_path/'ran')}, Evil(tmp_path/'ran'), {'state_dict': Evil(tmp_path/'ran')}]:
        torch.save(content, tmp_path/'w.pth', _use_new_zipfile_serialization=new)
        try: make_model('densenet_small', tmp_path/'w.pth')
        except InputError: pass
        assert not (tmp_path/'ran').exists()
    assert set(torch.serialization.get_safe_globals()) == before

def test_a_whole_model_is_refused(net, tmp_path):
    for new in [True, False]:
        torch.save(net, tmp_path/'whole.pth', _use_new_zipfile_serialization=new)
        with refused('whole.pth', 'state_dict()'): make_model('densenet_small', tmp_path/'whole.pth')

@pytest.mark.parametrize('name', ['densenet-20240612.pth', 'm-25012018.pth', 'densenet121-20240612.pth', 'run-deadbeef.pth', 'w-00000000.safetensors'])
def test_a_date_in_a_name_is_no_checksum(net, state, tmp_path, name):
    save_file(state, tmp_path/name) if name.endswith('safetensors') else torch.save(state, tmp_path/name)
    assert same(make_model('densenet_small', tmp_path/name), net)

@pytest.mark.parametrize('backbone', ['densenet121', 'resnet18', 'vit_b_16'])
def test_a_damaged_file_of_torchvisions_own_name_is_refused(tmp_path, backbone):
    name = networks._known_weights(backbone)[0].url.rsplit('/', 1)[1]
    torch.save({'a': torch.zeros(1)}, tmp_path/name)
    with refused(name, 'SHA-256'): make_model(backbone, tmp_path/name)

@pytest.mark.parametrize('outputs', [1, 13, 15, 20])
def test_a_head_of_other_outputs(net, state, tmp_path, outputs):
    torch.save(state | {'classifier.weight': torch.randn(outputs, 512)[:, :state['classifier.weight'].shape[1]], 'classifier.bias': torch.randn(outputs)}, tmp_path/'h.pth')
    model = make_model('densenet_small', tmp_path/'h.pth', seed=2)
    assert model.weights_facts['head'] == f'new: the file has {outputs} outputs' and model.weights_facts['tensors'] == {'left out': 2, 'new': 2}
    assert torch.equal(model.classifier.weight, make_model('densenet_small', seed=2).classifier.weight)
    assert torch.equal(model.features.conv0.weight, net.features.conv0.weight)

def test_outputs_are_taken_by_name(state, tmp_path):
    names = [*FINDINGS, 'No Finding', 'Fracture']
    random.shuffle(names)
    weight, bias = torch.randn(16, state['classifier.weight'].shape[1]), torch.randn(16)
    torch.save({'module.' + k: t for k, t in (state | {'classifier.weight': weight, 'classifier.bias': bias}).items()}, tmp_path/'h.pth')
    spelt = [name.replace('_', ' ').lower() for name in names]
    for given in [names, spelt, tuple(names)]:
        model = make_model('densenet_small', tmp_path/'h.pth', outputs=given)
        for row, finding in enumerate(FINDINGS):
            assert torch.equal(model.classifier.weight[row], weight[names.index(finding)]) and model.classifier.bias[row] == bias[names.index(finding)]
    for wrong, words in [(names[:-1], 'outputs names 15'), ([*names[:-1], names[0]], 'twice')]:
        with refused(words): make_model('densenet_small', tmp_path/'h.pth', outputs=wrong)

@pytest.mark.parametrize('change, words', [
    (lambda s: s | {'attention.weight': torch.ones(2)}, 'unknown, the first: attention.weight'), (lambda s: s | {'features.extra.weight': torch.ones(2)}, 'features.extra.weight'),
    (lambda s: {k: t for k, t in s.items() if k != 'features.conv0.weight'}, 'missing, the first: features.conv0.weight'),
    (lambda s: s | {'features.conv0.weight': s['features.conv0.weight'][:, :2]}, 'another shape'),
    (lambda s: s | {'features.conv0.weight': s['features.conv0.weight'][:, :1, :-1]}, 'another shape'),
    (lambda s: s | {'features.norm0.weight': s['features.norm0.weight'] * float('nan')}, 'no finite numbers'),
    (lambda s: {f'{p}.{k}': t for p in ('net', 'ema') for k, t in s.items()}, 'two networks'),
    (lambda s: {k: t for k, t in s.items() if not k.startswith('classifier')} | {f'classifier.{i}.{e}': s[f'classifier.{e}'] for i in (0, 2) for e in ('weight', 'bias')}, 'one linear layer'),
    (lambda s: {'epoch': 3}, 'dictionary of tensors'), (lambda s: [1, 2], 'dictionary of tensors'), (lambda s: {}, 'dictionary of tensors')])
def test_what_does_not_fit_is_named(state, tmp_path, change, words):
    torch.save(change(state), tmp_path/'w.pth')
    with refused('w.pth', words): make_model('densenet_small', tmp_path/'w.pth')
    with refused('w.pth', words): match_weights(tmp_path/'w.pth', 'densenet_small')

def test_a_deeper_network_is_refused(tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path/'deep.pth')
    with refused('deep.pth', 'unknown', 'layer'): make_model('resnet18', tmp_path/'deep.pth')
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path/'flat.pth')
    with refused('flat.pth', 'missing'): make_model('resnet34', tmp_path/'flat.pth')

def test_a_checkpoints_own_head_is_never_replaced(copied):
    path = copied/'epoch_003/model.safetensors'
    state = load_file(path)
    save_file(state | {'classifier.weight': torch.zeros(15, state['classifier.weight'].shape[1]), 'classifier.bias': torch.zeros(15)}, path)
    change(copied/'epoch_003', checksums=...)
    with refused('epoch_003', 'does not fit', 'classifier'): Checkpoint(copied/'epoch_003').model()

# models trained elsewhere

def bring(run, data, tmp_path, **changes):
    "Import the epochs of a run, from files in somebody else's form."
    out = tmp_path/'brought'
    for one in list_checkpoints(run):
        path, epoch = tmp_path/f'{one.folder.name}.pth.tar', one.facts['epoch']
        torch.save({'state_dict': {f'module.{k}': t for k, t in one.model().state_dict().items()}, 'auc': np.float64(.8)}, path)
        known = dict(validation_loss=one.facts['validation_loss']) | changes
        import_checkpoint(path, 'densenet_small', one.loss(), one.facts['learning_rate'], data, out, epoch, **known)
    return out

def test_a_run_that_was_brought_scores_as_at_home(run, data, tmp_path):
    out = bring(run, data, tmp_path)
    for name in ['influence', 'pairwise']:
        ours, theirs = DOORS[name](run, data, tmp_path/'ours'), DOORS[name](out, data, tmp_path/'theirs')
        pd.testing.assert_frame_equal(ours, theirs)
    whole = influence(out, data, tmp_path/'whole.csv', device='cpu')
    assert 'optimiser_aware' not in whole and 'self_influence' in whole
    last = list_checkpoints(out)[-1]
    assert torch.equal(predict(last.model(), data, data.rows('test')), predict(list_checkpoints(run)[-1].model(), data, data.rows('test')))
    table = evaluate_checkpoint(last, data, 'cpu').table
    card = write_model_card(last.facts, table, data, tmp_path/'card').read_text()
    assert 'trained elsewhere' in card and 'epoch_003.pth.tar' in card
    with refused('elsewhere'): last.moments()

def test_epochs_that_were_not_saved_are_no_gap(run, data, tmp_path):
    out = bring(run, data, tmp_path)
    shutil.rmtree(out/'epoch_001')
    assert len(DOORS['influence'](out, data, tmp_path/'out')) == len(data.train)

@pytest.mark.parametrize('absent', ['backbone', 'loss', 'learning_rate', 'data', 'out'])
def test_absent_facts_are_asked_for_by_name(net, state, data, tmp_path, absent):
    torch.save(state, tmp_path/'w.pth')
    facts = dict(backbone='densenet_small', loss='bce', learning_rate=1e-3, data=data, out=tmp_path/'run')
    del facts[absent]
    with refused(f'import_checkpoint needs {absent}'): import_checkpoint(tmp_path/'w.pth', **facts)
    assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('facts, words', [
    (dict(learning_rate=0), 'learning_rate is 0'), (dict(learning_rate='1e-3'), "learning_rate is '1e-3'"), (dict(learning_rate=float('nan')), 'learning_rate is nan'),
    (dict(loss=torch.nn.BCEWithLogitsLoss()), 'BCEWithLogitsLoss'), (dict(loss='hinge'), "loss is 'hinge'"), (dict(epoch=0), 'epoch is 0'), (dict(epoch=1.5), 'epoch is 1.5'),
    (dict(backbone='resnet18'), 'does not fit'), (dict(backbone='densenet9'), 'Unknown backbone'), (dict(colour='red'), 'Unknown fact colour'), (dict(data=3), 'data is 3'),
    (dict(outputs=[*FINDINGS[:-1], 'Cat']), f'lacks {FINDINGS[-1]}'), (dict(weights='imagenet'), 'weights is imagenet'), (dict(weights='no.pth'), 'No weights at no.pth')])
def test_facts_that_cannot_be_are_named(net, state, data, tmp_path, facts, words):
    torch.save(state, tmp_path/'w.pth')
    given = dict(weights=tmp_path/'w.pth', backbone='densenet_small', loss='bce', learning_rate=1e-3, data=data, out=tmp_path/'run') | facts
    with refused(words): import_checkpoint(**given)
    assert not (tmp_path/'run').exists()

def test_a_brought_head_must_have_the_findings(net, state, data, tmp_path):
    names = ['No Finding', *FINDINGS]
    weight = torch.randn(15, state['classifier.weight'].shape[1])
    torch.save(state | {'classifier.weight': weight, 'classifier.bias': torch.randn(15)}, tmp_path/'h.pth')
    given = tmp_path/'h.pth', 'densenet_small', 'bce', 1e-3, data, tmp_path/'run'
    with refused('15 outputs', 'outputs='): import_checkpoint(*given)
    assert torch.equal(import_checkpoint(*given, outputs=names).model().classifier.weight, weight[1:])
    with refused('epoch 1, too'): import_checkpoint(*given, outputs=names)
    with refused('loss is'): import_checkpoint(*given[:2], 'focal', *given[3:], 2, outputs=names)

def test_a_wrong_validation_loss_stops_scoring(run, data, tmp_path):
    with refused('recorded a validation loss of 99'): DOORS['influence'](bring(run, data, tmp_path, validation_loss=99.), data, tmp_path/'out')

def test_what_needs_a_recipe_asks_for_it_before_the_work(run, data, tmp_path):
    out = bring(run, data, tmp_path)
    with refused('does not state', 'trained again'): valuations(out, data, tmp_path/'values', ['aum', 'confident'], device='cpu')
    assert not (tmp_path/'values').exists()
    with refused('does not state', 'trained again'): run_subsets(out, data, pd.DataFrame(), tmp_path/'retrained')
    with refused('holds checkpoints of another run'): fit(data, out, RECIPE, device='cpu')

def test_a_folder_with_what_is_needed_and_nothing_else(run, data, tmp_path):
    "checkpoint.json written by hand: no root, no recipe, no id."
    for one in list_checkpoints(run):
        folder = tmp_path/'hand'/one.folder.name
        folder.mkdir(parents=True)
        shutil.copy(one.folder/'model.safetensors', folder)
        (folder/'checkpoint.json').write_text(json.dumps({name: one.facts[name] for name in _FACTS}))
    pd.testing.assert_frame_equal(DOORS['influence'](tmp_path/'hand', data, tmp_path/'a'), DOORS['influence'](run, data, tmp_path/'b'))
    with refused('does not state where its images are', '--data'): _root_of(str(tmp_path/'hand'))
    assert _root_of(str(tmp_path/'hand'), str(data.root)) == str(data.root)
    with refused('validation_auroc'): best_checkpoint(tmp_path/'hand')
