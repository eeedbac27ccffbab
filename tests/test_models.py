"Backbones, image sizes, and weights from every source; what is wrong is named."
import hashlib, sys

import pytest, torch, torchvision
from safetensors.torch import save_file

from conftest import refused
from cxr_influence.data.batches import MEAN, STD
from cxr_influence.data.labels import FINDINGS
from cxr_influence.training.checkpoints import Recipe, best_checkpoint
from cxr_influence.training.networks import (_check_image_size, _densenet_small, _known_weights,
    _make_network, list_backbones, make_model)
from cxr_influence.training.weights import _match
from cxr_influence.training.resume import fit

@pytest.mark.parametrize('backbone', list_backbones())
def test_every_backbone_has_fourteen_outputs_at_224(backbone):
    if any(word in backbone for word in ['vit_h', 'vit_l', 'regnet_y_128gf', 'convnext_large', 'efficientnet_v2_l', 'swin_b', 'swin_v2_b']):
        pytest.skip('large, and built like its smaller ones')
    with torch.device('meta'):
        model = _make_network(backbone, 224).eval()
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, len(FINDINGS))

@pytest.mark.long
@pytest.mark.parametrize('backbone', ['resnet18', 'efficientnet_b0', 'convnext_tiny', 'vit_b_16', 'swin_t'])
def test_one_of_each_family_trains_and_comes_back(data, tmp_path, backbone):
    fit(data, tmp_path/'run', Recipe(backbone, epochs=1, batch_size=44), device='cpu')
    model = best_checkpoint(tmp_path/'run').model()
    assert model(torch.randn(2, 3, data.store.size, data.store.size)).shape == (2, 14)

def test_sizes_that_a_network_cannot_take(data, tmp_path):
    with refused('vit_b_16', '100 pixels', 'use 224'): _check_image_size('vit_b_16', 100)
    with refused('maxvit_t', '64 pixels'): make_model('maxvit_t', image_size=64)
    with refused('alexnet', '32 pixels'): make_model('alexnet', image_size=32)
    for backbone in ['googlenet', 'inception_v3', 'squeezenet1_0', 'fcn_resnet50', 'resnet']:
        with refused(backbone, 'list_backbones'): make_model(backbone)

@pytest.fixture
def state():
    torch.manual_seed(torch.seed() % 2**32)
    return {name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor for name, tensor in _densenet_small().state_dict().items()}

@pytest.mark.parametrize('write', ['safetensors', 'pth', 'state_dict', 'module', 'folder'])
def test_a_file_is_read_in_all_its_forms(state, tmp_path, write):
    path = tmp_path/('model.safetensors' if write in ('safetensors', 'folder') else 'weights.pth')
    if path.suffix == '.safetensors': save_file(state, path)
    else: torch.save({'pth': state, 'state_dict': {'state_dict': state}, 'module': {f'module.{k}': v for k, v in state.items()}}[write], path)
    model = make_model('densenet_small', tmp_path if write == 'folder' else path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items() if not name.startswith('classifier'))
    assert torch.equal(model.classifier.weight, make_model('densenet_small').classifier.weight)
    counts = {'left out': 2, 'new': 2} | ({'renamed': len(state) - 2} if write == 'module' else {})
    assert model.weights_facts == {'source': 'file', 'file': path.name, 'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
                                   'tensors': counts, 'head': 'new: the file has 1000 outputs'}

def test_torchvisions_file_is_found_in_a_folder_and_compared_with_its_name(tmp_path, monkeypatch):
    state = {name.replace('.norm1.', '.norm.1.').replace('.conv2.', '.conv.2.') if 'denselayer' in name else name: tensor
             for name, tensor in torchvision.models.densenet121().state_dict().items()}
    name = _known_weights('densenet121')[0].url.rsplit('/', 1)[1]
    assert name.startswith('densenet121-') and {*_match(_make_network('densenet121'), state, name).table.here} >= {*torchvision.models.densenet121().state_dict()}
    torch.save(state, tmp_path/name)
    with refused(name, 'SHA-256'): make_model('densenet121', tmp_path)
    right = hashlib.sha256((tmp_path/name).read_bytes()).hexdigest()[:8]
    (tmp_path/name).rename(tmp_path/f'densenet121-{right}.pth')
    assert make_model('densenet121', tmp_path/f'densenet121-{right}.pth').weights_facts['sha256'].startswith(right)

def test_imagenet_through_torchvisions_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda *a, **k: (_ for _ in ()).throw(OSError('no network')))
    with refused('resnet18', 'no network', 'https://', 'give the file'): make_model('resnet18', 'imagenet')
    with refused('densenet_small', 'no ImageNet weights'): make_model('densenet_small', 'imagenet')

@pytest.mark.parametrize('damage', ['cut', 'pickle', 'other', 'list'])
def test_files_that_are_no_weights(state, tmp_path, damage):
    path = tmp_path/'weights.pth'
    torch.save({'cut': state, 'other': {'a': torch.zeros(1)}, 'list': [1], 'pickle': state}[damage], path)
    if damage == 'cut': path.write_bytes(path.read_bytes()[:1000])
    if damage == 'pickle': path.write_bytes(b'cos\nsystem\n(S"echo hacked"\ntR.')
    with refused('weights.pth'): make_model('densenet_small', path)

def test_a_transformer_takes_weights_of_another_size(tmp_path):
    torch.save(make_model('vit_b_32', image_size=64).state_dict(), tmp_path/'vit.pth')
    model = make_model('vit_b_32', tmp_path/'vit.pth', image_size=96)
    assert model.eval()(torch.randn(1, 3, 96, 96)).shape == (1, 14)

def test_a_model_of_torchxrayvision_computes_the_same_here(monkeypatch):
    xrv = pytest.importorskip('torchxrayvision')
    theirs = xrv.models.DenseNet(num_classes=18).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(.5, 2)
    theirs.targets = [name.replace('Hernia', '') for name in xrv.datasets.default_pathologies]
    monkeypatch.setattr(xrv.models, 'DenseNet', lambda weights: theirs)
    ours = make_model('densenet121', 'xrv:densenet121-res224-all', seed=3)
    grey = torch.rand(1, 1, 224, 224)
    with torch.no_grad():
        inner = (slice(None), slice(None), slice(4, -4), slice(4, -4)) # the border is padded with another grey
        a = ours.eval().features[:2](((grey - MEAN) / STD).expand(-1, 3, -1, -1))[inner]
        b = theirs.features[:2](2048 * grey - 1024)[inner]
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2 * float(b.std()))
    for i, finding in enumerate(FINDINGS):
        row = theirs.classifier.weight[theirs.targets.index(finding)] if finding in theirs.targets else make_model(seed=3).classifier.weight[i]
        assert torch.equal(ours.classifier.weight[i], row), finding
    assert ours.weights_facts['source'] == 'torchxrayvision, densenet121-res224-all'

def test_torchxrayvision_absent_or_without_the_weights(monkeypatch):
    with refused('xrv:', 'densenet121'): make_model('resnet18', 'xrv:densenet121-res224-nih')
    monkeypatch.setitem(sys.modules, 'torchxrayvision', None)
    with refused('pip install torchxrayvision'): make_model('densenet121', 'xrv:densenet121-res224-nih')

def test_a_seed_makes_the_same_network():
    one, same, other = (make_model('densenet_small', seed=seed).state_dict() for seed in [1, 1, 2])
    assert all(torch.equal(one[name], same[name]) for name in one) and not torch.equal(one['classifier.weight'], other['classifier.weight'])
