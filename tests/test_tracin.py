"The laws that scores must obey, on fresh random networks and inputs in float64; and captum's word for them."
import numpy as np
import pandas as pd
import pytest, torch, torchvision
from torch import nn

from cxr_influence import tracin
from cxr_influence.batches import normalise
from cxr_influence.labels import FINDINGS
from cxr_influence.losses import FocalLoss
from cxr_influence.models import replace_head, weights_checksum
from cxr_influence.tracin import (directional_scores, gradient, gradient_scores, image_losses, influence,
                                  per_sample_gradients, plain_scores, score_checkpoint)
from cxr_influence.checkpoints import list_checkpoints

def densenet(): return torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=14)
def resnet(): return replace_head(torchvision.models.resnet18())
def transformer():
    return torchvision.models.VisionTransformer(image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16,
                                                mlp_dim=24, num_classes=14)

@pytest.fixture(params=[densenet, resnet, transformer], ids=lambda make: make.__name__)
def case(request):
    "A random network whose running statistics are not at their start, a loss, and random images."
    torch.seed()
    model = request.param().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=.1); nn.init.uniform_(module.running_var, .5, 2)
            nn.init.uniform_(module.weight, .5, 1.5); nn.init.normal_(module.bias, std=.1)
    loss = FocalLoss(gamma=float(torch.rand(()) * 3), class_weights=torch.rand(14) * 7 + 1)
    def images(n): return torch.randn(n, 3, 32, 32).double(), (torch.rand(n, 14) < .2).double()
    return model.eval(), loss, images

def close(a, b): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))

def whole(model, loss, x, y): return gradient(model, image_losses(model, loss, x, y).mean())
def by_finding(model, loss, x, y):
    parts = [gradient(model, part) for part in loss(model(x), y).mean(0)]
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

def test_both_fast_ways_are_the_plain_one(case):
    model, loss, images = case
    (x, y), (x_val, y_val) = images(6), images(5)
    plain = plain_scores(model, loss, x, y, whole(model, loss, x_val, y_val))
    close(directional_scores(model, loss, x, y, whole(model, loss, x_val, y_val))[0], plain)
    scores, squares, losses = gradient_scores(model, loss, x, y, by_finding(model, loss, x_val, y_val))
    close(scores.sum(1), plain)
    close(losses, image_losses(model, loss, x, y).detach())
    own = [gradient(model, image_losses(model, loss, x[i:i+1], y[i:i+1]).sum()) for i in range(6)]
    close(squares, torch.stack([sum(g.square().sum() for g in one.values()) for one in own]))

def test_a_score_depends_on_nothing_but_its_image(case):
    model, loss, images = case
    (x, y), (x_val, y_val) = images(7), images(4)
    v, order = by_finding(model, loss, x_val, y_val), torch.randperm(7)
    scores, squares, _ = gradient_scores(model, loss, x, y, v)
    close(torch.cat([gradient_scores(model, loss, x[i:i+1], y[i:i+1], v)[0] for i in range(7)]), scores)
    close(gradient_scores(model, loss, x[order], y[order], v)[0], scores[order])
    copied = gradient_scores(model, loss, torch.cat([x, x[:1]]), torch.cat([y, y[:1]]), v)
    close(copied[0][-1], scores[0]); close(copied[1][-1], squares[0])
    assert len({round(float(s), 12) for s in scores.sum(1)}) == 7

def test_a_doubled_validation_set_changes_nothing(case):
    model, loss, images = case
    (x, y), (x_val, y_val) = images(3), images(4)
    twice = whole(model, loss, torch.cat([x_val, x_val]), torch.cat([y_val, y_val]))
    close(plain_scores(model, loss, x, y, twice), plain_scores(model, loss, x, y, whole(model, loss, x_val, y_val)))

def test_the_mean_of_pairwise_scores_is_influence_and_their_diagonal_self_influence(case):
    model, loss, images = case
    (x, y), (x_val, y_val) = images(4), images(3)
    flat = lambda x, y: torch.cat([g.flatten(1) for g in per_sample_gradients(model, loss, x, y)[0].values()], 1)
    pairs = flat(x, y) @ flat(x_val, y_val).T
    close(pairs.mean(1), directional_scores(model, loss, x, y, whole(model, loss, x_val, y_val))[0])
    close((flat(x, y) @ flat(x, y).T).diagonal(), gradient_scores(model, loss, x, y, by_finding(model, loss, x_val, y_val))[1])

def test_captum_agrees(case, tmp_path):
    captum = pytest.importorskip('captum.influence')
    model, loss, images = case
    (x, y), (x_val, y_val) = images(5), images(3)
    rates, paths = [1e-3, 4e-4], []
    for number in range(2):
        with torch.no_grad():
            for p in model.parameters(): p.add_(torch.randn_like(p) * .01)
        paths.append(tmp_path/f'{number}.pt'); torch.save(model.state_dict(), paths[-1])
    def load(model, path):
        model.load_state_dict(torch.load(path, weights_only=True))
        return rates[paths.index(path)]
    theirs = captum.TracInCP(model, torch.utils.data.TensorDataset(x, y), paths, checkpoints_load_func=load, batch_size=1,
                             loss_fn=lambda z, y: loss(z, y).sum(1))
    total, own, pairs = 0, 0, 0
    for path in paths:
        rate = load(model, path)
        scores, squares, _ = gradient_scores(model, loss, x, y, by_finding(model, loss, x_val, y_val))
        total, own = total + rate * scores.sum(1), own + rate * squares
    close(total, theirs.influence((x_val, y_val), aggregate=True)[0].detach() / len(x_val))
    close(own, theirs.self_influence(outer_loop_by_checkpoints=True).detach())

# From here on: the whole way, from a folder of checkpoints to a table.

def double(monkeypatch):
    "Let checkpoints and batches be in float64."
    before = tracin.Checkpoint.model
    monkeypatch.setattr(tracin.Checkpoint, 'model', lambda self: before(self).double())
    monkeypatch.setattr('cxr_influence.batches.normalise', lambda pixels: normalise(pixels).double())

def test_batch_size_changes_no_score(data, checkpoints, monkeypatch):
    double(monkeypatch)
    checkpoint = list_checkpoints(checkpoints)[0]
    frame, store = data
    for per_finding in [True, False]:
        one, many = (score_checkpoint(checkpoint, store, frame, per_finding, size, 'cpu') for size in [1, 32])
        assert one.index.equals(many.index)
        np.testing.assert_allclose(one, many, rtol=1e-8, atol=1e-8 * many.influence.abs().max())

def test_the_table_is_the_sum_over_checkpoints(data, checkpoints, tmp_path, monkeypatch):
    double(monkeypatch)
    frame, store = data
    scores = influence(checkpoints, store, frame, tmp_path/'influence.csv', device='cpu')
    rows = {role: np.flatnonzero(frame.role == role) for role in ['train', 'validation']}
    total = 0
    for checkpoint in list_checkpoints(checkpoints):
        model, loss = checkpoint.model(), checkpoint.loss()
        (x, y, _), (x_val, y_val, _) = (next(tracin.batches(store, frame, rows[r], 1000)) for r in ['train', 'validation'])
        total = total + checkpoint.facts['learning_rate'] * plain_scores(model, loss, x, y, whole(model, loss, x_val, y_val))
    np.testing.assert_allclose(scores.influence, total, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(scores[[f'influence_{f}' for f in FINDINGS]].sum(axis=1), scores.influence, rtol=1e-9)
    assert scores.influence.nunique() == len(scores) == len(rows['train'])
    assert sorted(scores['rank']) == list(range(1, len(scores) + 1)) and scores.influence.idxmax() == scores['rank'].idxmin()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'influence.csv', index_col='image'), scores, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path/'influence.parquet'), scores, check_like=True)

def test_scoring_is_in_evaluation_mode_and_moves_nothing(data, checkpoints, monkeypatch):
    frame, store = data
    checkpoint = list_checkpoints(checkpoints)[-1]
    model = checkpoint.model()
    before, expected = weights_checksum(model), score_checkpoint(checkpoint, store, frame, False, device='cpu')
    monkeypatch.setattr(checkpoint, 'model', lambda: model.train())
    assert score_checkpoint(checkpoint, store, frame, False, device='cpu').equals(expected)
    assert model.training and weights_checksum(model) == before

def test_kept_scores_are_used_again_and_only_for_the_same_weights(data, checkpoints, tmp_path, monkeypatch):
    frame, store = data
    first = influence(checkpoints, store, frame, tmp_path/'a.csv', per_finding=False, device='cpu')
    calls = []
    real = tracin.score_checkpoint
    monkeypatch.setattr(tracin, 'score_checkpoint', lambda *a, **k: calls.append(a[0].folder.name) or real(*a, **k))
    assert influence(checkpoints, store, frame, tmp_path/'a.csv', per_finding=False, device='cpu').equals(first) and not calls
    kept = tmp_path/'a.checkpoints/epoch_001.parquet'
    part = pd.read_parquet(kept); part.attrs['key'][0] = 'other weights'; part.to_parquet(kept)
    assert influence(checkpoints, store, frame, tmp_path/'a.csv', per_finding=False, device='cpu').equals(first)
    assert calls == ['epoch_001']
