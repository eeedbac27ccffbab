"A table's own findings, however many and however named, from its file to scores and commands."
import json, re, shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import sentence
from cxr_influence.attribution.layerwise import gradient_scores
from cxr_influence.attribution.pairwise import pairwise
from cxr_influence.attribution.scoring import _check_groups, influence, query_losses, score_checkpoint
from cxr_influence.attribution.tracin import directional_scores, plain_scores
from cxr_influence.data.batches import Data, batches, load_data
from cxr_influence.data.labels import FINDINGS, _check_findings, decode_labels, findings_of
from cxr_influence.data.nih import fingerprint
from cxr_influence.data.splits import take_patients
from cxr_influence.data.store import decode
from cxr_influence.data.tables import read_dataset
from cxr_influence.evidence.comparison import subset_draws
from cxr_influence.evidence.label_errors import LabelNoise, inject_label_noise, only_finding
from cxr_influence.evidence.retraining import without
from cxr_influence.evidence.subsets import run_subsets, subset_grid
from cxr_influence.evidence.valuations import VALUATIONS, valuations
from cxr_influence.measures.intervals import bootstrap_auroc, paired_difference
from cxr_influence.measures.metrics import choose_thresholds, per_finding
from cxr_influence.measures.results import evaluate
from cxr_influence.training.checkpoints import Recipe, list_checkpoints, save_checkpoint
from cxr_influence.training.evaluation import evaluate_checkpoint
from cxr_influence.training.imports import import_checkpoint
from cxr_influence.training.losses import FocalLoss, _sized, training_loss
from cxr_influence.training.model_card import write_model_card
from cxr_influence.training.networks import make_model
from cxr_influence.training.resume import fit

RNG, SIZE = np.random.default_rng(), 32
SMALL = Recipe('densenet_small', epochs=2, batch_size=16, learning_rate=1e-3)
NAMES = {1: ['Covid'], 3: ['Rib fracture', 'Tube, malpositioned', 'épanchement'], 40: [f'Sign {i}' for i in range(40)]}

def make_folder(folder, names, images=48, labels=None):
    "Random PNG files and their table."
    (folder/'png').mkdir(parents=True)
    files = [f'{i:03d}.png' for i in range(images)]
    for name in files: Image.fromarray(RNG.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(folder/'png'/name)
    split = ['train'] * (images - 20) + ['validation'] * 10 + ['test'] * 10
    table = pd.DataFrame({'file': files, 'who': [f'p{i}' for i in range(images)], 'part': split})
    values = RNG.integers(0, 2, (images, len(names))) if labels is None else labels
    values[[0, images - 20, images - 10]], values[[1, images - 19, images - 9]] = 0, 1 # both in each split
    table[list(names)] = values
    table.to_csv(folder/'labels.csv', index=False)
    return table

READ = dict(image='file', patient='who', split='part')
def read(folder, names, table=None, **more):
    return read_dataset(folder/'labels.csv' if table is None else table, folder, findings=names, **READ | {'only': True} | more)
def data_of(folder, frame): return Data(frame, decode(frame, folder, SIZE, folder.parent/f'{folder.name}-store-{fingerprint(frame)}'))

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Folder, data and run of as many findings as asked for, made once."
    known = {}
    def make(count):
        if count not in known:
            folder = tmp_path_factory.mktemp('own')/f'own{count}'
            make_folder(folder, NAMES[count])
            data = data_of(folder, read(folder, NAMES[count]))
            fit(data, folder.parent/'run', SMALL, device='cpu')
            known[count] = folder, data, folder.parent/'run'
        return known[count]
    return make

def gradient(model, loss, x, y, weights):
    "Gradient of a weighted sum of losses, in float64."
    value = (loss(model(x), y) * weights).sum()
    return torch.autograd.grad(value, [*model.parameters()])

def close(a, b): return np.abs(np.asarray(a) - np.asarray(b)).max() <= 2e-3 * max(np.abs(np.asarray(b)).max(), 1e-12)

@pytest.mark.long
@pytest.mark.parametrize('count', [1, 3, 40])
def test_every_engine_scores_as_the_definition_in_float64(made, tmp_path, count):
    folder, data, run = made(count)
    scores = influence(run, data, tmp_path/'scores.csv', device='cpu')
    total = influence(run, data, tmp_path/'total.csv', per_finding=False, device='cpu')
    head = influence(run, data, tmp_path/'head.csv', per_finding=False, layers='classifier', device='cpu')
    finding = NAMES[count][-1]
    query = data.validation.index[:1]
    pairs = pairwise(run, data, tmp_path/'pairs', images=query, top=3, finding=finding, device='cpu')
    rows, checked = data.rows('train')[:3], [*dict.fromkeys([0, count // 2, count - 1])]
    x, y, _ = next(iter(batches(data, rows, 8)))
    xv, yv, _ = next(iter(batches(data, data.rows('validation'), 64)))
    right, right_head = np.zeros((3, len(checked) + 1)), np.zeros(3)
    pair = {name: 0. for name in pairs.training_image}
    for checkpoint in list_checkpoints(run):
        model, loss, rate = checkpoint.model().double(), checkpoint.loss(), checkpoint.facts['learning_rate']
        assert model(xv.double()).shape == (10, count)
        each = [torch.zeros(10, count, dtype=torch.float64) for _ in checked]
        for weights, j in zip(each, checked): weights[:, j] = .1
        wanted = [torch.full((10, count), .1, dtype=torch.float64), *each]
        vs = [gradient(model, loss, xv.double(), yv.double(), weights) for weights in wanted]
        own = [gradient(model, loss, x[i:i+1].double(), y[i:i+1].double(), 1) for i in range(3)]
        right += rate * np.array([[sum(float((a * b).sum()) for a, b in zip(g, v)) for v in vs] for g in own])
        names = [name for name, _ in model.named_parameters()]
        last = [i for i, name in enumerate(names) if name.startswith('classifier')]
        right_head += rate * np.array([sum(float((g[i] * vs[0][i]).sum()) for i in last) for g in own])
        mask = torch.zeros(1, count, dtype=torch.float64)
        mask[0, -1] = 1
        asked = gradient(model, loss, xv[:1].double(), yv[:1].double(), mask)
        for name in pair:
            xt, yt, _ = next(iter(batches(data, [data.frame.index.get_loc(name)], 1)))
            g = gradient(model, loss, xt.double(), yt.double(), 1)
            pair[name] += rate * sum(float((a * b).sum()) for a, b in zip(g, asked))
    here = scores.loc[data.frame.index[rows]]
    assert close(here[['influence', *(f'influence_{NAMES[count][j]}' for j in checked)]], right)
    assert close(total.influence.loc[here.index], right[:, 0]) and close(head.influence.loc[here.index], right_head)
    assert close(pairs.score, [pair[name] for name in pairs.training_image])
    parts = scores[[f'influence_{name}' for name in NAMES[count]]]
    assert close(parts.sum(axis=1), scores.influence) and (scores.self_influence > 0).all()

@pytest.mark.parametrize('backbone', ['densenet_small', 'shufflenet_v2_x0_5'])
@pytest.mark.parametrize('count', [1, 3, 40])
def test_general_passes_of_a_head_of_any_size(backbone, count):
    model = make_model(backbone, seed=3, findings=NAMES[count]).eval()
    g = torch.Generator().manual_seed(int(RNG.integers(2**31)))
    x, y = torch.randn(3, 3, SIZE, SIZE, generator=g), (torch.rand(3, count, generator=g) > .5).float()
    loss = FocalLoss()
    direction = {name: torch.randn(p.shape, generator=g) for name, p in model.named_parameters()}
    double = make_model(backbone, seed=3, findings=NAMES[count]).eval().double()
    right = plain_scores(double, loss, x.double(), y.double(), {name: v.double() for name, v in direction.items()})
    found = gradient_scores(model, loss, x, y, {name: v[None] for name, v in direction.items()})
    assert loss(model(x), y).shape == (3, count)
    assert close(found.products[:, 0].detach(), right) and close(directional_scores(model, loss, x, y, direction)[0].detach(), right)

def test_names_of_nih_in_another_order(tmp_path):
    order = RNG.permutation(FINDINGS).tolist()
    if tuple(order) == FINDINGS: order = order[::-1]
    table = make_folder(tmp_path/'own', order)
    ours, theirs = read(tmp_path/'own', order, only=False), read(tmp_path/'own', order)
    assert findings_of(ours) == list(FINDINGS) and findings_of(theirs) == order
    assert fingerprint(ours) != fingerprint(theirs)
    truth = table.set_index('file')
    for frame in [ours, theirs]:
        data, k = data_of(tmp_path/'own', frame), int(RNG.integers(14))
        _, y, _ = next(iter(batches(data, range(48), 64)))
        assert (y[:, k].numpy() == truth[data.findings[k]].to_numpy()).all()
        weights = query_losses(frame)[f'influence_{order[k]}']
        assert np.flatnonzero(weights.sum(0)).tolist() == [data.findings.index(order[k])]
        row = frame.iloc[5]
        assert set(decode_labels(row[data.findings], data.findings).split('|')) - {'No Finding'} == {f for f in order if truth[f].iloc[5] == 1}
        assert data.positives['train'][order[k]] == truth[truth.part == 'train'][order[k]].sum()

def test_a_run_of_other_findings_is_refused_by_every_function(made, tmp_path):
    folder, data, run = made(3)
    renamed = data.with_frame(data.frame.copy())
    renamed.frame.attrs['findings'] = renamed.findings = NAMES[3][::-1]
    _, other, _ = made(40)
    before = {path: path.stat().st_mtime_ns for path in run.rglob('*')}
    for wrong in [renamed, other]:
        checkpoint = list_checkpoints(run)[0]
        for call in [lambda: influence(run, wrong, tmp_path/'a.csv', device='cpu'), lambda: pairwise(run, wrong, tmp_path/'p', device='cpu'),
                     lambda: valuations(run, wrong, tmp_path/'v', ['loss'], device='cpu'), lambda: evaluate_checkpoint(checkpoint, wrong, 'cpu'),
                     lambda: score_checkpoint(checkpoint, wrong, tmp_path/'b.csv', device='cpu'),
                     lambda: run_subsets(run, wrong, subset_grid(pd.Series(0., wrong.train.index, name='s'), wrong.frame), tmp_path/'r')]:
            said = sentence(call)
            assert 'other findings' in said and NAMES[3][0] in said and wrong.findings[0] in said, said
        assert 'findings' in sentence(fit, wrong, run, SMALL, device='cpu')
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob('*')} and not [*tmp_path.glob('*.csv')]

@pytest.mark.long
@pytest.mark.parametrize('count', [1, 3])
def test_valuations_subsets_evaluation_and_card(made, tmp_path, count):
    folder, data, run = made(count)
    checkpoint = list_checkpoints(run)[0]
    assert checkpoint.facts['findings'] == NAMES[count] and len(checkpoint.facts['loss']['class_weights']) == count
    found = evaluate_checkpoint(checkpoint, data, 'cpu')
    assert [*found.table.index] == [*NAMES[count], 'macro', 'micro', 'weighted'] and [*found.probabilities] == NAMES[count]
    card = write_model_card(checkpoint.facts, found.table, data, tmp_path).read_text()
    assert all(name in card for name in NAMES[count]) and f'{count} independent findings' in card
    assert not re.search('fourteen|Atelectasis|Hernia', card)
    names = [name for name in VALUATIONS.index if name not in ('confident', 'sla')] # which trains again
    values = valuations(run, data, tmp_path/'v', names, device='cpu')
    assert values.notna().all(axis=None) and values.shape == (28, len(names))
    grid = subset_grid(values[['loss']], data.frame, {'remove': [.3]}, ['random'], [0])
    rows = run_subsets(run, data, grid, tmp_path/'r')
    assert {f'auroc_{name}' for name in NAMES[count]} <= {*rows} and not {f'auroc_{name}' for name in FINDINGS} & {*rows}
    draws = subset_draws(rows, data.frame, resamples=5)
    assert {*draws.columns.unique('finding')} == {*NAMES[count], 'macro'}

def test_frames_keep_their_findings(made, tmp_path):
    folder, data, run = made(3)
    names, frame = NAMES[3], data.frame
    for part in [frame.copy(), frame[frame.split == 'train'], data.train, data.validation, data.test, frame.assign(age=3.), frame.iloc[::2],
                 frame.loc[frame.index[:9]], take_patients(frame, 30), without(data, data.train.index[:3]).frame, only_finding(frame, names[1]),
                 inject_label_noise(frame, LabelNoise('one_finding', finding=names[0], share=.2))[0], frame.sort_values('patient')]:
        assert findings_of(part) == names
    bare = pd.DataFrame(frame.to_dict('series'))
    assert 'findings' not in bare.attrs
    assert 'attrs' in sentence(findings_of, bare) and 'attrs' in sentence(Data, bare, data.store)
    assert data.with_frame(bare).findings == names and data.with_frame(bare).fingerprint == data.fingerprint
    assert 'findings' not in bare.attrs # it is the caller's
    assert 'lacks' in sentence(findings_of, frame.drop(columns=names[1]))
    assert 'Unknown finding' in sentence(only_finding, frame, 'Mass') and 'Unknown finding' in sentence(pairwise, run, data, tmp_path, finding='Mass', device='cpu')

def test_fingerprints_of_the_fourteen_are_as_before(data):
    bare = pd.DataFrame(data.frame.to_dict('series'))
    stated = bare.copy()
    stated.attrs['findings'] = list(FINDINGS)
    hashes = pd.util.hash_pandas_object(bare[['patient', 'split', *FINDINGS]]).to_numpy()
    import hashlib
    assert fingerprint(bare) == fingerprint(stated) == hashlib.sha256(hashes.tobytes()).hexdigest()[:12]

def test_other_names_are_other_data(made):
    frame = made(3)[1].frame
    other = frame.rename(columns={NAMES[3][0]: 'Other'})
    other.attrs['findings'] = ['Other', *NAMES[3][1:]]
    assert fingerprint(other) != fingerprint(frame)

def test_commands_read_the_table_by_dataset_json_or_the_facts_of_a_run(made, tmp_path):
    folder, data, run = made(3)
    facts = list_checkpoints(run)[0].facts
    again = load_data(facts['root'], SIZE, tmp_path/'stores', **facts['reading'])
    assert again.fingerprint == data.fingerprint and again.findings == NAMES[3]
    moved = shutil.copytree(folder, tmp_path/'moved')
    assert load_data(moved, SIZE, tmp_path/'stores', **facts['reading']).fingerprint == data.fingerprint
    description = dict(READ, table='labels.csv', findings=NAMES[3], only=True)
    (moved/'dataset.json').write_text(json.dumps(description))
    assert load_data(moved, SIZE, tmp_path/'stores').fingerprint == data.fingerprint
    few = load_data(moved, SIZE, tmp_path/'stores', n=30)
    assert 20 < len(few) < 48 and few.findings == NAMES[3]
    for text, said in [('{', 'not JSON'), ('[]', 'incomplete'), (json.dumps({'table': 'labels.csv'}), 'incomplete'),
                       (json.dumps(description | {'colour': 3}), 'colour'), (json.dumps(description | {'table': 'no.csv'}), 'no.csv'),
                       (json.dumps(description | {'image': 'nothing'}), 'nothing'), (json.dumps(description | {'only': False}), 'only=True')]:
        (moved/'dataset.json').write_text(text)
        assert said in sentence(load_data, moved, SIZE, tmp_path/'stores')
    by_hand = read(folder, NAMES[3], pd.read_csv(folder/'labels.csv'))
    assert 'dataset.json' in sentence(load_data, folder, SIZE, tmp_path/'stores', **by_hand.attrs['reading'])
    by_function = read(folder, {name: (lambda table, name=name: table[name]) for name in NAMES[3]})
    assert by_function.attrs['reading']['table'] == 'at hand'

@pytest.mark.parametrize('names', [['a', 'A'], ['split'], ['Macro'], [' a'], ['a|b'], ['a\nb'], [''], [3], [None], 'Mass', [], ['low']])
def test_what_cannot_name_a_finding_is_refused(names, tmp_path):
    assert 'finding' in sentence(_check_findings, names)
    path = tmp_path/'checkpoint'
    facts = dict(epoch=1, step=1, learning_rate=1e-3, loss={}, backbone='densenet_small', image_size=32, findings=names, data='x')
    if isinstance(names, list): assert 'checkpoint.json' in sentence(save_checkpoint, path, torch.nn.Linear(1, 1), None, facts)

def test_findings_are_ours_unless_asked(tmp_path):
    make_folder(tmp_path/'own', ['Mass', 'Covid'])
    assert 'only=True' in sentence(read, tmp_path/'own', ['Mass', 'Covid'], only=False)
    frame = read(tmp_path/'own', ['Mass'], only=False)
    assert findings_of(frame) == list(FINDINGS) and frame.Edema.isna().all()
    assert findings_of(read(tmp_path/'own', {'Covid': 'Covid', 'Lump': 'Mass'})) == ['Covid', 'Lump']
    frame = read(tmp_path/'own', {'Covid': 'Covid', 'No Finding': 'Mass'}, on_error='skip')
    assert findings_of(frame) == ['Covid'] and 'No Finding' not in frame
    table = pd.read_csv(tmp_path/'own/labels.csv').assign(seen='Covid;Wire')
    frame = read(tmp_path/'own', {'Wires': ['Wire', 'Pacer'], 'Covid': 'Covid'}, table, labels='seen')
    assert findings_of(frame) == ['Wires', 'Covid'] and frame[['Wires', 'Covid']].eq(1).all(axis=None)

def test_tables_name_findings_and_arrays_are_the_fourteen():
    y = pd.DataFrame(RNG.integers(0, 2, (40, 3)), columns=NAMES[3]).astype(float)
    y.iloc[0], y.iloc[1] = 0, 1
    p, patients = pd.DataFrame(RNG.random((40, 3)), columns=NAMES[3]), np.arange(40)
    found = evaluate(y, p, choose_thresholds(y, p), patients, resamples=20)
    fourteen = [np.tile(table, 5)[:, :14] for table in (y, p)]
    assert np.allclose(found.auroc[NAMES[3]], evaluate(*fourteen, np.full(14, .5), patients, 20).auroc[:3])
    assert [*bootstrap_auroc(y, p, patients, 5)] == NAMES[3] and [*paired_difference(y, p, p, patients, 5).index] == [*NAMES[3], 'macro']
    for call in [evaluate, per_finding, bootstrap_auroc]:
        more = {evaluate: (np.full(3, .5), patients), per_finding: (), bootstrap_auroc: (patients, 5)}[call]
        first = (np.mean,) if call is per_finding else ()
        assert 'do not name' in sentence(call, *first, y.to_numpy(), p.to_numpy(), *more)
        assert 'same findings' in sentence(call, *first, y, p[NAMES[3][::-1]], *more)

def test_losses_of_any_number_of_findings(made):
    data = made(3)[1]
    for name in ['focal', 'bce', 'weighted_bce']: assert training_loss(name, data.frame).class_weights.shape == (3,)
    assert _sized(FocalLoss(gamma=1.), data.findings).settings() == dict(gamma=1., label_smoothing=.05, class_weights=[1.] * 3)
    said = sentence(fit, data, '/nonexistent/run', SMALL._replace(loss=FocalLoss(class_weights=[2.] * 14)), device='cpu')
    assert '14 class weights' in said and '3 findings' in said
    assert 'name of a finding' in sentence(_check_groups, {NAMES[3][0]: []}, NAMES[3])

def test_imported_weights_of_own_findings(made, tmp_path):
    folder, data, run = made(3)
    weights = run/'epoch_001/model.safetensors'
    whole = import_checkpoint(weights, 'densenet_small', 'bce', 1e-3, data, tmp_path/'run')
    assert whole.facts['findings'] == NAMES[3] and whole.model()(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 3)
    turned = import_checkpoint(weights, 'densenet_small', FocalLoss(gamma=0.), 1e-3, data, tmp_path/'turned', outputs=NAMES[3][::-1])
    x = torch.randn(2, 3, SIZE, SIZE)
    assert torch.allclose(turned.model()(x), whole.model()(x).flip(1)) and turned.facts['loss']['class_weights'] == [1.] * 3
    assert 'outputs lacks' in sentence(import_checkpoint, weights, 'densenet_small', 'bce', 1e-3, data, tmp_path/'x', outputs=['a', 'b', 'c'])
    other = made(40)[1]
    assert '40 findings' in sentence(import_checkpoint, weights, 'densenet_small', 'bce', 1e-3, other, tmp_path/'y')
