"From a folder of checkpoints to a table of scores: the sum, its refusals, its resumption, its company."
import json, os, shutil, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest, torch
from conftest import Script, hurt, in_a_new_process, refused, rewrite, sentence

from cxr_influence.attribution import scoring
from cxr_influence.data.batches import Data, batches, normalise
from cxr_influence.training.checkpoints import Checkpoint, list_checkpoints
from cxr_influence.data.files import _digest
from cxr_influence.data.labels import FINDINGS
from cxr_influence.training.networks import weights_checksum
from cxr_influence.attribution.pairwise import open_pairwise, pairwise
from cxr_influence.attribution.scoring import (_Loader, breakdown, _check_repeats, influence,
    query_losses, score_checkpoint, sum_by, verify)
from cxr_influence.attribution.tracin import gradient, plain_scores

@pytest.fixture
def double(monkeypatch):
    "Let checkpoints and batches be in float64."
    before = Checkpoint.model
    monkeypatch.setattr(Checkpoint, 'model', lambda self: before(self).double())
    monkeypatch.setattr('cxr_influence.data.batches.normalise', lambda pixels: normalise(pixels).double())

def rows_of(frame): return {split: np.flatnonzero(frame.split == split) for split in ['train', 'validation']}

def by_definition(checkpoints, data:Data, chosen=None, columns=slice(None), direction=None):
    "Every number as the formula says it: one backward pass a training image, one for the validation loss, at each checkpoint."
    rows, total = rows_of(data.frame), 0
    for checkpoint in list_checkpoints(checkpoints):
        model, loss = checkpoint.model(), checkpoint.loss()
        (x, y, _), (x_val, y_val, _) = (next(batches(data, r, 1000)) for r in [rows['train'], rows['validation'] if chosen is None else chosen])
        v = gradient(model, loss(model(x_val), y_val)[:, columns].sum(1).mean())
        if direction: v = direction(checkpoint, v)
        total = total + checkpoint.facts['learning_rate'] * plain_scores(model, loss, x, y, v)
    return total.detach().numpy()

def near(found, expected): np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())

@pytest.mark.long
def test_the_table_is_the_sum_over_checkpoints(data, checkpoints, tmp_path, double):
    frame = data.frame
    women = (frame.split == 'validation') & (frame.sex == 'F')
    scores = influence(checkpoints, data, tmp_path/'influence.csv', groups={'women': women}, device='cpu')
    near(scores.influence, by_definition(checkpoints, data))
    near(scores.influence_Effusion, by_definition(checkpoints, data, columns=[2]) )
    near(scores.influence_women, by_definition(checkpoints, data, np.flatnonzero(women)))
    near(scores[[f'influence_{f}' for f in FINDINGS]].sum(axis=1), scores.influence)
    def adamw(checkpoint, v):
        moments, seen = checkpoint.moments(), 1 - .999 ** checkpoint.facts['updates']
        return {name: t / ((moments[f'{name}.exp_avg_sq'].double() / seen).sqrt() + 1e-8) for name, t in v.items()}
    near(scores.optimiser_aware, by_definition(checkpoints, data, direction=adamw))
    near(breakdown(tmp_path/'influence.csv').sum(axis=1), scores.influence)
    assert scores.influence.nunique() == len(scores) == (frame.split == 'train').sum() and scores['cosine'].abs().max() <= 1
    assert sorted(scores['rank']) == list(range(1, len(scores) + 1)) and scores.influence.idxmax() == scores['rank'].idxmin()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'influence.csv', index_col='image'), scores, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path/'influence.parquet'), scores, check_like=True)
    assert json.loads((tmp_path/'influence.json').read_text())['difference_to_definition'] < 1e-8
    sums = sum_by(scores, frame, 'patient')
    near(sums.influence.sum(), scores.influence.sum())
    assert sums.images.sum() == len(scores)
    with refused('no column hat'): sum_by(scores, frame, 'hat')

@pytest.mark.long
def test_one_direction_and_a_last_layer(data, checkpoints, tmp_path, double):
    whole = influence(checkpoints, data, tmp_path/'a.csv', per_finding=False, device='cpu')
    near(whole.influence, by_definition(checkpoints, data))
    head = influence(checkpoints, data, tmp_path/'b.csv', per_finding=False, layers='classifier', device='cpu')
    near(head.influence, by_definition(checkpoints, data, direction=lambda _, v: {n: t for n, t in v.items() if n.startswith('classifier')}))
    both = influence(checkpoints, data, tmp_path/'c.csv', layers='classifier', device='cpu')
    near(both.influence, head.influence)
    said = sentence(influence, checkpoints, data, tmp_path/'d.csv', layers='features.denseblock9', device='cpu')
    assert 'No layer features.denseblock9' in said and 'features.conv0' in said and 'classifier' in said

@pytest.mark.long
@pytest.mark.parametrize('per_finding', [True, False])
def test_batch_size_changes_no_score(data, checkpoints, tmp_path, double, per_finding):
    checkpoint = list_checkpoints(checkpoints)[0]
    one, many = (score_checkpoint(checkpoint, data, tmp_path/f'{size}.csv', per_finding, batch_size=size, device='cpu') for size in [1, 32])
    assert one.index.equals(many.index)
    np.testing.assert_allclose(one, many, rtol=1e-8, atol=1e-8 * many.influence.abs().max())

@pytest.mark.long
def test_twice_the_learning_rate_is_twice_the_score(data, checkpoints, tmp_path, double):
    copy = shutil.copytree(checkpoints, tmp_path/'checkpoints')
    for path in copy.glob('epoch_*/checkpoint.json'):
        facts = json.loads(path.read_text())
        rewrite(path, json.dumps(facts | {'learning_rate': 2 * facts['learning_rate']}))
    one, two = (influence(run, data, tmp_path/f'{run.parent.name}.csv', per_finding=False, device='cpu') for run in [checkpoints, copy])
    near(two.influence, 2 * one.influence)

def test_scoring_is_in_evaluation_mode_and_moves_nothing(data, checkpoints, tmp_path, monkeypatch):
    checkpoint = list_checkpoints(checkpoints)[-1]
    def score(name): return score_checkpoint(checkpoint, data, tmp_path/name, False, device='cpu')
    model = checkpoint.model()
    before, expected = weights_checksum(model), score('a.csv')
    monkeypatch.setattr(checkpoint, 'model', lambda: model.train())
    pd.testing.assert_frame_equal(score('b.csv'), expected)
    assert model.training and weights_checksum(model) == before

def test_a_buffer_that_changes_is_an_error():
    class Counting(torch.nn.Module):
        def __init__(self): super().__init__(); self.register_buffer('calls', torch.zeros(()))
        def forward(self, x): self.calls += 1; return x
    model = Counting()
    with pytest.raises(RuntimeError, match='Scoring changed the model'):
        with scoring._scoring(model): model(torch.zeros(1))

def test_loaders_that_shuffle_augment_or_run_dry_are_refused(data):
    x, y, i = next(batches(data, np.arange(12), 12))
    dataset = torch.utils.data.TensorDataset(x, y)
    _check_repeats(_Loader(data, np.arange(12), 4))
    _check_repeats(torch.utils.data.DataLoader(dataset, 4))
    with refused('shuffles', 'shuffle=False'): _check_repeats(torch.utils.data.DataLoader(dataset, 4, shuffle=True))
    class Augmented(torch.utils.data.Dataset):
        def __len__(self): return 12
        def __getitem__(self, i): return x[i] + torch.rand(()), y[i]
    with refused('no augmentation'): _check_repeats(torch.utils.data.DataLoader(Augmented(), 4))
    with refused('no generator'): _check_repeats(iter([(x[:4], y[:4]), (x[4:8], y[4:8])]))

@pytest.mark.parametrize('change, words', [
    ({'learning_rate': None}, ['learning rate None', 'epoch_002']), ({'learning_rate': float('nan')}, ['learning rate nan']),
    ({'learning_rate': -.1}, ['learning rate -0.1']), ({'validation_loss': 3.}, ['recorded a validation loss of 3.0000', 'another loss'])])
def test_a_checkpoint_that_says_something_else_is_refused(data, checkpoints, tmp_path, change, words):
    copy = shutil.copytree(checkpoints, tmp_path/'checkpoints')
    path = copy/'epoch_002/checkpoint.json'
    rewrite(path, json.dumps(json.loads(path.read_text()) | change))
    with refused(*words): influence(copy, data, tmp_path/'a.csv', per_finding=False, device='cpu')
    assert not (tmp_path/'a.csv').exists()

def test_another_loss_than_the_runs_is_refused(data, checkpoints, tmp_path):
    copy = shutil.copytree(checkpoints, tmp_path/'checkpoints')
    for number in 1, 2: # first one checkpoint, then both
        path = copy/f'epoch_00{number}/checkpoint.json'
        facts = json.loads(path.read_text())
        facts['loss'] = {**facts['loss'], 'gamma': facts['loss']['gamma'] + 1}
        rewrite(path, json.dumps(facts))
        with refused('epoch_001', 'of another run than', 'loss is') if number == 1 else refused('another loss'): influence(copy, data, tmp_path/'a.csv', per_finding=False, device='cpu')

def test_all_learning_rates_zero(data, checkpoints, tmp_path):
    copy = shutil.copytree(checkpoints, tmp_path/'checkpoints')
    for path in copy.glob('epoch_*/checkpoint.json'): rewrite(path, json.dumps(json.loads(path.read_text()) | {'learning_rate': 0.}))
    with refused('All learning rates', 'are zero'): influence(copy, data, tmp_path/'a.csv', per_finding=False, device='cpu')

def test_patients_in_two_roles_and_strange_groups_are_refused(data, checkpoints, tmp_path):
    frame = data.frame
    straddling = frame.copy()
    straddling.loc[straddling.index[straddling.split == 'validation'][0], 'patient'] = straddling.patient[straddling.split == 'train'].iloc[0]
    with refused('patient'): influence(checkpoints, data.with_frame(straddling), tmp_path/'a.csv', device='cpu')
    test = frame.index[frame.split == 'test'][:1]
    with refused(test[0], 'no validation image but one of split test'): query_losses(frame, groups={'some': test})
    with refused('nobody.png'): query_losses(frame, groups={'some': ['nobody.png']})
    with refused('Group none has no validation image'): query_losses(frame, groups={'none': frame.age > 200})
    said = influence(checkpoints, data, tmp_path/'b.csv', per_finding=False, against='test', device='cpu')
    assert len(said) and json.loads((tmp_path/'b.json').read_text())['against'] == 'test'

@pytest.mark.parametrize('per_finding', [True, False])
def test_an_image_whose_scores_are_not_numbers_is_named(data, checkpoints, tmp_path, monkeypatch, per_finding):
    frame = data.frame
    row = rows_of(frame)['train'][5]
    real = scoring.batches
    def broken(*arguments):
        for x, y, i in real(*arguments): x[np.flatnonzero(np.asarray(i) == row)] = torch.nan; yield x, y, i
    monkeypatch.setattr(scoring, 'batches', broken)
    with refused('1 scores are not numbers', frame.index[row]):
        influence(checkpoints, data, tmp_path/'a.csv', per_finding=per_finding, device='cpu')
    assert not (tmp_path/'a.csv').exists()

def test_verify_finds_a_wrong_table(data, checkpoints, tmp_path):
    checkpoint = list_checkpoints(checkpoints)[0]
    scores = score_checkpoint(checkpoint, data, tmp_path/'one.csv', False, device='cpu')
    assert verify(checkpoint, scores, data) < .02
    averaged = scores.assign(influence=np.repeat(scores.influence.groupby(np.arange(len(scores)) // 8).mean(), 8)[:len(scores)].to_numpy())
    with refused('differ by', 'please report'): verify(checkpoint, averaged, data)

@pytest.mark.long
def test_finished_blocks_and_checkpoints_are_used_again_and_only_for_the_same(data, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, '_BLOCK_IMAGES', 16)
    def score(name): return influence(checkpoints, data, tmp_path/name, device='cpu')
    whole, passes = score('a.csv'), []
    real = scoring._score_rows
    monkeypatch.setattr(scoring, '_score_rows', lambda *a: passes.append(len(a[2].rows)) or real(*a))
    pd.testing.assert_frame_equal(score('a.csv'), whole)
    assert not passes
    class Enough(Exception): pass
    def interrupted(*a):
        if len(passes) == 2: raise Enough
        passes.append(1)
        return real(*a)
    monkeypatch.setattr(scoring, '_score_rows', interrupted)
    with pytest.raises(Enough): score('b.csv')
    assert len(list((tmp_path/'b.checkpoints').glob('*/*.parquet'))) == 2 and not (tmp_path/'b.csv').exists()
    passes.clear()
    monkeypatch.setattr(scoring, '_score_rows', lambda *a: passes.append(len(a[2].rows)) or real(*a))
    pd.testing.assert_frame_equal(score('b.csv'), whole)
    assert sum(passes) == 2 * len(whole) - 32
    assert (tmp_path/'b.csv').read_bytes() == (tmp_path/'a.csv').read_bytes()
    kept = tmp_path/'a.checkpoints/epoch_001.parquet'
    part = pd.read_parquet(kept); part.attrs['key'] = 'other weights'; part.to_parquet(kept)
    passes.clear()
    pd.testing.assert_frame_equal(score('a.csv'), whole)
    assert sum(passes) == len(whole)

SCRIPT = '''
import sys, pandas as pd
from cxr_influence.attribution import scoring
from cxr_influence.attribution.pairwise import pairwise
from cxr_influence.data.batches import Data
from cxr_influence.data.nih import read_nih
from cxr_influence.data.store import open_store
scoring._BLOCK_IMAGES = 16
phantom, store, checkpoints, out = sys.argv[1:]
data = Data(read_nih(phantom), open_store(store))
scoring.influence(checkpoints, data, out + '/influence.csv')
pairwise(checkpoints, data, out + '/pairs', matrix=True, top=3, memory=3e6)
'''

def command(data, phantom, checkpoints, out):
    script = out.with_suffix('.py')
    script.write_text(SCRIPT)
    return [script, phantom, data.store.folder, checkpoints, out]

def quiet(): return os.environ | {'TQDM_DISABLE': '1', 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}

@pytest.mark.long
def test_killed_and_resumed_is_uninterrupted(data, phantom, checkpoints, tmp_path):
    *script, _ = command(data, phantom, checkpoints, tmp_path/'out')
    for seen in ['influence.checkpoints/epoch_001/*.parquet', 'influence.checkpoints/epoch_001.parquet', 'pairs/blocks/*.parquet']:
        process = Script(*script, tmp_path/'out')
        while not list((tmp_path/'out').glob(seen)) and process.poll() is None: time.sleep(.02)
        process.kill(); process.wait()
    assert not (tmp_path/'out/pairs/pairwise.json').exists()
    for name in 'out', 'other':
        process = Script(*script, tmp_path/name)
        assert process.wait() == 0, process.said()
    for name in 'influence.csv', 'pairs/pairwise.npy', 'pairs/pairwise.json':
        assert (tmp_path/'out'/name).read_bytes() == (tmp_path/'other'/name).read_bytes(), name

@pytest.mark.long
def test_two_processes_are_one(data, phantom, checkpoints, tmp_path):
    call = [str(word) for word in command(data, phantom, checkpoints, tmp_path/'two')]
    launch = [shutil.which('accelerate', path=os.path.dirname(sys.executable)), 'launch', '--multi_gpu', '--num_processes=2', '--num_machines=1',
              '--main_process_port=0', '--mixed_precision=no', '--dynamo_backend=no']
    done = subprocess.run([*launch, *call], env=quiet(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Script(*call[:-1], tmp_path/'one').wait() == 0
    one, two = (pd.read_parquet(tmp_path/name/'influence.parquet') for name in ['one', 'two'])
    assert one.index.equals(two.index)
    for name in one: # float32: the validation gradient is added up in another order
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=5e-3 * one[name].abs().max() if name != 'rank' else 3)
    one, two = (np.load(tmp_path/name/'pairs/pairwise.npy') for name in ['one', 'two'])
    np.testing.assert_allclose(two, one, rtol=0, atol=5e-3 * np.abs(one).max())

@pytest.mark.long
def test_pairs_obey_the_laws(data, checkpoints, tmp_path, double):
    frame = data.frame
    train = frame.index[frame.split == 'train']
    scores = influence(checkpoints, data, tmp_path/'influence.csv', device='cpu')
    strong = pairwise(checkpoints, data, tmp_path/'pairs', matrix=True, top=4, memory=1e7, device='cpu')
    matrix = np.load(tmp_path/'pairs/pairwise.npy', mmap_mode='r')
    facts = json.loads((tmp_path/'pairs/pairwise.json').read_text())
    assert facts['training_images'] == list(train) and facts['images'] == list(frame.index[frame.split == 'validation'])
    np.testing.assert_allclose(matrix.mean(0), scores.influence, rtol=1e-4, atol=1e-5 * scores.influence.abs().max()) # kept in float32
    table = pd.DataFrame(matrix, index=facts['images'], columns=train)
    for name, of_one in strong.groupby('image'):
        ordered = table.loc[name].sort_values(ascending=False)
        assert list(of_one[of_one['rank'] > 0].sort_values('rank').training_image) == list(ordered.index[:4])
        assert list(of_one[of_one['rank'] < 0].sort_values('rank').training_image)[::-1] == list(ordered.index[:-5:-1])
    own = pairwise(checkpoints, data, tmp_path/'own', images=train[:6], matrix=True, top=1, device='cpu')
    np.testing.assert_allclose(np.load(tmp_path/'own/pairwise.npy')[:, :6].diagonal(), scores.self_influence[train[:6]], rtol=1e-5)
    by_finding = sum(pairwise(checkpoints, data, tmp_path/f, images=train[:2], finding=f, matrix=True, device='cpu') is not None
                     and np.load(tmp_path/f/'pairwise.npy') for f in FINDINGS)
    np.testing.assert_allclose(by_finding, np.load(tmp_path/'own/pairwise.npy')[:2], rtol=1e-4, atol=1e-5 * np.abs(by_finding).max())
    assert len(own) == 12

def test_pairs_refuse(data, checkpoints, tmp_path):
    frame = data.frame
    def ask(**settings): return sentence(pairwise, checkpoints, data, tmp_path/'pairs', device='cpu', **settings)
    assert 'No image nobody.png' in ask(images=['nobody.png'])
    assert 'a query image twice' in ask(images=[frame.index[0]] * 2)
    assert 'Unknown finding' in ask(images=frame.index[:1], finding='Flu')
    assert not (tmp_path/'pairs/strongest.parquet').exists()

@pytest.mark.long
def test_kept_pairs_are_not_used_for_other_learning_rates(data, checkpoints, tmp_path, double):
    frame = data.frame
    copy = shutil.copytree(checkpoints, tmp_path/'checkpoints')
    def ask(): return pairwise(copy, data, tmp_path/'pairs', images=frame.index[:2], top=2, device='cpu')
    before = ask()
    for path in copy.glob('epoch_*/checkpoint.json'):
        facts = json.loads(path.read_text())
        rewrite(path, json.dumps(facts | {'learning_rate': 2 * facts['learning_rate']}))
    near(ask().score, 2 * before.score)

def test_more_processes_than_images_to_score_against(data, checkpoints):
    frame = data.frame
    checkpoint, crowd = list_checkpoints(checkpoints)[0], scoring.Processes(0, 3, torch.device('cpu'))
    few = _Loader(data, rows_of(frame)['validation'][:2])
    with refused('2 target images', '3 processes'): \
        scoring._find_directions(checkpoint, checkpoint.model().eval(), few, scoring._Query(query_losses(frame, False)), crowd)

@pytest.mark.parametrize('on', [True, False])
def test_scoring_sets_the_precision_and_leaves_cudnn_as_it_is(on):
    "`torch.backends.cudnn.flags(allow_tf32=False)` alone turns cuDNN off: on an H200 that halved the speed at least."
    cudnn, newer = torch.backends.cudnn, hasattr(torch.backends.cuda.matmul, 'fp32_precision') # which refuse to read the older flags
    state = lambda: (cudnn.enabled, cudnn.benchmark, cudnn.deterministic)
    def precise(): return {torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision} == {'ieee'} if newer \
        else not cudnn.allow_tf32 and torch.get_float32_matmul_precision() == 'highest'
    with cudnn.flags(enabled=on, benchmark=not on, deterministic=on, allow_tf32=True):
        before = state()
        with scoring._scoring(torch.nn.Linear(2, 1)): assert state() == before and precise()
        assert state() == before and cudnn.allow_tf32

@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, 'fp32_precision'), reason='before PyTorch 2.9')
@pytest.mark.parametrize('asked', ['cuda', 'older'])
def test_a_user_may_have_asked_for_tf32_in_either_way(asked):
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        if asked == 'cuda': matmul.fp32_precision = 'tf32'
        else: torch.set_float32_matmul_precision('high')
        with scoring._scoring(torch.nn.Linear(2, 1)): assert matmul.fp32_precision == 'ieee'
        assert matmul.fp32_precision == 'tf32'
    finally:
        torch.set_float32_matmul_precision('highest')
        matmul.fp32_precision = before

# Runs one can trust: company, damage, full disks, late refusals

@pytest.mark.long
def test_two_scorers_of_one_output_share_the_work(data, phantom, checkpoints, tmp_path):
    call = command(data, phantom, checkpoints, tmp_path/'out')
    two = [Script(*call) for _ in range(2)]
    assert [process.wait() for process in two] == [0, 0], [process.said() for process in two]
    assert ''.join(process.said() for process in two).count('waiting for it') >= 1 # the first to come worked, the other waited
    scores = influence(checkpoints, data, tmp_path/'alone.csv')
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path/'out/influence.parquet'), scores, rtol=1e-3, atol=1e-3 * scores.influence.abs().max())
    assert open_pairwise(tmp_path/'out/pairs').shape == (len(data.validation), len(data.train))
    assert not [*(tmp_path/'out').rglob('*.part')]

HARMS = ['flip', 'flip', 'flip', 'cut', 'empty']

@pytest.mark.long
def test_damaged_scores_are_made_again(data, checkpoints, tmp_path, capsys):
    rng = np.random.default_rng()
    def score(): return influence(checkpoints, data, tmp_path/'a.csv', per_finding=False, device='cpu')
    whole, kept = score(), tmp_path/'a.checkpoints'
    files_of = {name: (kept/name).read_bytes() for name in ['epoch_001.parquet', 'epoch_002.parquet']}
    for how in HARMS:
        name = str(rng.choice([*files_of]))
        hurt(kept/name, how, rng)
        in_a_new_process()
        pd.testing.assert_frame_equal(score(), whole)
        assert f'{name} is damaged' in capsys.readouterr().err
        assert (kept/name).read_bytes() == files_of[name]

def test_damaged_blocks_are_made_again(data, checkpoints, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng()
    monkeypatch.setattr(scoring, '_BLOCK_IMAGES', 16)
    checkpoint, real, done = list_checkpoints(checkpoints)[0], scoring._score_rows, []
    def score(): return score_checkpoint(checkpoint, data, tmp_path/'a.csv', False, device='cpu')
    whole = score_checkpoint(checkpoint, data, tmp_path/'b.csv', False, device='cpu')
    for how in HARMS[2:]:
        class Enough(Exception): pass
        def interrupted(*given):
            if len(done) == 3: raise Enough
            done.append(1)
            return real(*given)
        monkeypatch.setattr(scoring, '_score_rows', interrupted)
        with pytest.raises(Enough): score()
        monkeypatch.setattr(scoring, '_score_rows', real)
        blocks = [*(tmp_path/'a.checkpoints/epoch_001').glob('[0-9]*.parquet')]
        assert len(blocks) == 3
        hurt(blocks[rng.integers(3)], how, rng)
        in_a_new_process()
        pd.testing.assert_frame_equal(score(), whole)
        assert 'is damaged' in capsys.readouterr().err
        shutil.rmtree(tmp_path/'a.checkpoints')
        done.clear()

@pytest.mark.long
def test_damaged_pairs_are_made_again_and_never_opened(data, checkpoints, tmp_path, capsys):
    rng, out = np.random.default_rng(), tmp_path/'pairs'
    def score(): return pairwise(checkpoints, data, out, data.validation.index[:6], top=2, matrix=True, memory=2e6, device='cpu')
    strongest, matrix = score(), out/'pairwise.npy'
    assert len([*(out/'blocks').glob('*.parquet')]) > 1
    content, row = matrix.read_bytes(), open_pairwise(out).iloc[2].copy()
    for how in [*HARMS, 'flip', 'flip']:
        block = [*(out/'blocks').glob('0*.parquet')][0]
        path = [matrix, matrix, matrix, out/'pairwise.json', block][rng.integers(5)]
        hurt(path, how, rng)
        in_a_new_process()
        if path in (matrix, out/'pairwise.json'):
            assert 'damaged' in sentence(open_pairwise, out)
        pd.testing.assert_frame_equal(score(), strongest)
        if path in (matrix, block): assert 'damaged' in capsys.readouterr().err
        assert matrix.read_bytes() == content and open_pairwise(out).iloc[2].equals(row)

def test_a_matrix_that_is_missing_incomplete_or_of_another_call_is_not_opened(data, checkpoints, tmp_path):
    out, few = tmp_path/'pairs', data.validation.index[:2]
    assert 'matrix=True' in sentence(open_pairwise, out)
    pairwise(checkpoints, data, out, few, top=1, device='cpu')
    assert 'without the matrix' in sentence(open_pairwise, out)
    pairwise(checkpoints, data, out, few, top=1, matrix=True, device='cpu')
    assert list(open_pairwise(out).index) == list(few)
    mapped = np.load(out/'pairwise.npy', mmap_mode='r')
    before = mapped.copy()
    pairwise(checkpoints, data, out, data.validation.index[:3], top=1, matrix=True, device='cpu')
    assert (mapped == before).all() and len(open_pairwise(out)) == 3 # whoever has it open keeps it
    (out/'pairwise.npy').unlink()
    assert 'matrix=True' in sentence(open_pairwise, out)

@pytest.mark.long
def test_a_disk_that_fills_is_a_sentence_and_the_same_call_resumes(data, checkpoints, tmp_path, monkeypatch):
    def score(name): return influence(checkpoints, data, tmp_path/name/'a.csv', per_finding=False, device='cpu')
    def pairs(name): return pairwise(checkpoints, data, tmp_path/name/'pairs', data.validation.index[:3], top=1, matrix=True, device='cpu')
    monkeypatch.setattr(scoring, '_BLOCK_IMAGES', 32)
    for ask in score, pairs:
        whole, real = ask('whole'), os.fsync
        rng, left = np.random.default_rng(), [0]
        def full(descriptor):
            left[0] -= 1
            if left[0] < 0: raise OSError(28, 'No space left on device')
            return real(descriptor)
        for _ in range(4):
            left[0] = int(rng.integers(0, 5)) # a call that finds all else kept writes five times
            monkeypatch.setattr(os, 'fsync', full)
            said = sentence(ask, 'full')
            monkeypatch.setattr(os, 'fsync', real)
            assert 'No space left on device' in said and 'free some space' in said
            assert not [*(tmp_path/'full').rglob('*.part')]
        pd.testing.assert_frame_equal(ask('full'), whole)

def test_a_matrix_for_which_there_is_no_room_is_refused_before_the_work(data, checkpoints, tmp_path, monkeypatch):
    def full(*given): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'posix_fallocate', full)
    monkeypatch.setattr('cxr_influence.attribution.pairwise._score_pairs', lambda *given: pytest.fail('worked'))
    assert 'No space left' in sentence(pairwise, checkpoints, data, tmp_path/'pairs', matrix=True, device='cpu')
    assert not (tmp_path/'pairs/pairwise.npy').exists()

def test_a_folder_that_cannot_be_written_is_refused_before_the_work(data, checkpoints, tmp_path, monkeypatch):
    (tmp_path/'file').touch()
    for name in '_find_directions', '_score_rows': monkeypatch.setattr(scoring, name, lambda *given: pytest.fail('worked'))
    assert 'cannot be written' in sentence(influence, checkpoints, data, tmp_path/'file/a.csv', device='cpu')
    assert 'cannot be written' in sentence(pairwise, checkpoints, data, tmp_path/'file/pairs', device='cpu')
    def denied(lock, seconds): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr('cxr_influence.training.resume._acquire', denied)
    assert 'Permission denied' in sentence(influence, checkpoints, data, tmp_path/'a.csv', device='cpu')
    assert 'Permission denied' in sentence(pairwise, checkpoints, data, tmp_path/'pairs', device='cpu')

def test_what_a_killed_scorer_left_half_written_is_removed(data, checkpoints, tmp_path):
    left = [tmp_path/name for name in ['a.csv.9-9.part', 'a.checkpoints/epoch_001.parquet.9-9.part', 'a.checkpoints/epoch_001/0000000.parquet.9-9.part',
                                       'pairs/pairwise.json.9-9.part', 'pairs/blocks/0000000.parquet.9-9.part']]
    others = [tmp_path/name for name in ['b.csv.9-9.part', 'notes.part']]
    for path in [*left, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    influence(checkpoints, data, tmp_path/'a.csv', per_finding=False, device='cpu')
    pairwise(checkpoints, data, tmp_path/'pairs', data.validation.index[:1], top=1, device='cpu')
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)

def test_settings_that_cannot_work_are_refused_before_the_work(data, checkpoints, tmp_path, monkeypatch):
    for name in '_find_directions', '_score_rows': monkeypatch.setattr(scoring, name, lambda *given: pytest.fail('worked'))
    monkeypatch.setattr('cxr_influence.attribution.pairwise._score_pairs', lambda *given: pytest.fail('worked'))
    def refuse(function, *words, **settings):
        said = sentence(function, checkpoints, data, tmp_path/'a.csv', device='cpu', **settings)
        assert all(word in said for word in words), said
    refuse(influence, 'split tset', 'train', against='tset')
    refuse(influence, 'Group Hernia', groups={'Hernia': data.frame.sex == 'F'})
    refuse(influence, 'No layer', layers='head')
    for size in [0, -1, 2.5, '32']:
        refuse(influence, 'batch_size is', batch_size=size)
        refuse(pairwise, 'batch_size is', batch_size=size)
        refuse(pairwise, 'top is', top=size)
    refuse(pairwise, 'memory is', memory=0)
    refuse(pairwise, 'images is empty', images=[])
    refuse(pairwise, 'No layer', layers='head')

def test_what_reads_scores_says_what_is_missing_or_damaged(data, checkpoints, tmp_path):
    assert 'score again' in sentence(breakdown, tmp_path/'a.csv')
    scores = influence(checkpoints, data, tmp_path/'a.csv', device='cpu')
    assert 'is not in the frame' in sentence(sum_by, scores, data.frame[1:], 'patient')
    for name in 'a.json', 'a.checkpoints/epoch_002.parquet':
        hurt(tmp_path/name, 'flip', np.random.default_rng())
        in_a_new_process()
        assert 'score again' in sentence(breakdown, tmp_path/'a.csv') and name in sentence(breakdown, tmp_path/'a.csv')
        influence(checkpoints, data, tmp_path/'a.csv', device='cpu')

# What a user changes between two calls

@pytest.mark.long
def test_blocks_of_two_calls_that_round_otherwise_make_one_table(data, checkpoints, tmp_path, monkeypatch):
    "As after a stop, with another number of threads: each call has its own norm of the direction."
    monkeypatch.setattr(scoring, '_BLOCK_IMAGES', 32)
    whole, keep, find = influence(checkpoints, data, tmp_path/'whole.csv', device='cpu'), scoring._Blocks.keep, scoring._find_directions
    def stop(blocks, table, path):
        keep(blocks, table, path)
        raise KeyboardInterrupt
    monkeypatch.setattr(scoring._Blocks, 'keep', stop)
    with pytest.raises(KeyboardInterrupt): influence(checkpoints, data, tmp_path/'a.csv', device='cpu')
    monkeypatch.setattr(scoring._Blocks, 'keep', keep)
    monkeypatch.setattr(scoring, '_find_directions', lambda *given: (found := find(*given))._replace(norm=found.norm * (1 + 1e-9)))
    pd.testing.assert_frame_equal(influence(checkpoints, data, tmp_path/'a.csv', device='cpu'), whole)
    assert all(pd.read_parquet(path).attrs['key'] for path in (tmp_path/'a.checkpoints').glob('*.parquet'))

def test_parts_of_another_scoring_are_not_added_up(data, checkpoints, tmp_path):
    scores = influence(checkpoints, data, tmp_path/'a.csv', device='cpu')
    np.testing.assert_allclose(breakdown(tmp_path/'a.csv').sum(axis=1), scores.influence, rtol=1e-3, atol=1e-6)
    score_checkpoint(list_checkpoints(checkpoints)[0], data, tmp_path/'a.csv', layers='classifier', device='cpu')
    with refused('of another scoring', 'score again'): breakdown(tmp_path/'a.csv')

def test_weights_of_images_are_not_ignored(data, checkpoints, tmp_path):
    weighted = data.weighted(np.linspace(0, 2, len(data)))
    for call in [influence, pairwise]:
        with refused('have weights', 'every_step or unroll'): call(checkpoints, weighted, tmp_path/'a.csv', device='cpu')

def test_a_name_keeps_its_end(data, checkpoints, tmp_path):
    with refused('lr0.01', 'ends in .csv'): influence(checkpoints, data, tmp_path/'lr0.01', device='cpu')
    assert not [*tmp_path.iterdir()]

def test_labels_corrected_in_place_are_other_data(data):
    own = Data(data.frame.copy(), data.store)
    before = own.fingerprint
    assert before == data.fingerprint
    own.frame.iloc[3, own.frame.columns.get_loc('Mass')] = 1 - own.frame.Mass.iloc[3]
    assert own.fingerprint != before == data.fingerprint

@pytest.mark.long
def test_numbers_of_numpy_are_numbers(data, checkpoints, tmp_path):
    names = np.array(['classifier'])
    one = pairwise(checkpoints, data, tmp_path/"one", top=np.int64(2), layers=names, device='cpu')
    assert one.equals(pairwise(checkpoints, data, tmp_path/"two", top=2, layers=["classifier"], device="cpu"))
    scores = influence(checkpoints, data, tmp_path/'s.csv', per_finding=False, layers={'classifier'}, device='cpu')
    assert scores.equals(influence(checkpoints, data, tmp_path/'s.csv', per_finding=False, layers='classifier', device='cpu'))
    assert _digest([np.int64(3), np.arange(2), Path('a'), {'b'}]) == _digest([3, [0, 1], 'a', ['b']])

def test_groups_without_a_name_are_counted(data, checkpoints, tmp_path):
    scores = influence(checkpoints, data, tmp_path/'s.csv', per_finding=False, layers='classifier', device='cpu')
    frame = data.frame.assign(hospital=['a', None] * (len(data) // 2))
    assert sum_by(scores, frame, 'hospital').images.sum() == len(scores)

def test_a_misspelt_setting_is_named(data, checkpoints, tmp_path):
    assert 'batchsize is no setting: use one of batch_size, device' in sentence(influence, checkpoints, data, tmp_path/'a.csv', batchsize=4)

def test_a_table_has_no_facts_of_one_checkpoint(data, checkpoints, tmp_path):
    assert influence(checkpoints, data, tmp_path/'a.csv', per_finding=False, device='cpu').attrs == {}

def test_target_images_that_do_not_fit_are_differentiated_in_smaller_batches(data, checkpoints, tmp_path, double, monkeypatch):
    before, sizes = scoring._weighted_gradients, []
    def small(model, loss, loader, *given):
        sizes.append(loader.batch_size)
        if loader.batch_size > 4: raise torch.OutOfMemoryError('no room')
        return before(model, loss, loader, *given)
    whole = influence(checkpoints, data, tmp_path/'a.csv', device='cpu')
    monkeypatch.setattr(scoring, '_weighted_gradients', small)
    near(influence(checkpoints, data, tmp_path/'b.csv', device='cpu').influence, whole.influence)
    assert {64, 4} <= {*sizes}

def test_a_model_may_read_the_older_settings():
    with scoring._scoring(torch.nn.Linear(2, 1)):
        assert not torch.backends.cudnn.allow_tf32
        with torch.backends.cudnn.flags(enabled=False): pass # the usual way around a fault of an LSTM's
