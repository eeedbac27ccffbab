"Training that is killed, stopped, or finds its disk full; in one process and in two."
import errno, json, os, random, resource, shutil, signal, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np, pytest, torch
from filelock import FileLock

from conftest import FORKS, flip_a_bit, refused, sentence
from cxr_influence.data import files
from cxr_influence.training import resume
from cxr_influence.training.checkpoints import Checkpoint, Recipe, list_checkpoints
from cxr_influence.attribution.scoring import influence
from cxr_influence.evidence import bank
from cxr_influence.evidence.retraining import retrain
from cxr_influence.training.loop import _schedule, _Training
from cxr_influence.training.networks import make_model
from cxr_influence.training.resume import read_history, trained

RECIPE = Recipe('densenet_small', epochs=3, batch_size=16)
fit = partial(resume.fit, device='cpu')
FILES = ['model.safetensors', 'optimizer.safetensors']

def train(data, out, threads=1, limit=None, save_minutes=5, **changes):
    "In a process of its own: `fit`, on one thread, perhaps with files of at most `limit` bytes."
    torch.set_num_threads(threads)
    if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try: fit(data, out, RECIPE._replace(**changes), save_minutes=save_minutes)
    except Exception as error: Path(f'{out}.error').write_text(f'{type(error).__name__}: {error}')

@pytest.fixture(scope='module')
def start(data):
    "Start `train` in a process whose parent has torch loaded already."
    def begin(out, data=data, **changes):
        process = FORKS.Process(target=train, args=(data, out), kwargs=changes)
        process.start()
        return process
    first = FORKS.Process(target=os.getpid) # it waits until the parent has loaded torch, which no one is to count as its training
    first.start()
    first.join()
    return begin

def same(a, b, epoch=3, files=FILES):
    a, b = Path(a)/f'epoch_{epoch:03d}', Path(b)/f'epoch_{epoch:03d}'
    return all((a/name).read_bytes() == (b/name).read_bytes() for name in files)

@pytest.mark.long
def test_killed_twenty_times_at_random_moments_it_ends_in_the_same_bytes(start, data, tmp_path):
    """Every step is saved, so that kills hit steps, writing, validation and renaming alike. Half of the images: three steps an epoch.

    A machine so busy that five minutes do not suffice for twenty kills makes do with the first five and more."""
    start = partial(start, data=data.with_frame(data.frame.assign(split=data.frame.split.mask(data.frame.index.isin(data.train.index[::2]), 'unused'))))
    whole, out, kills, ends = tmp_path/'whole', tmp_path/'killed', 0, 0
    begun = time.perf_counter()
    start(whole, save_minutes=0, ema=.9).join()
    seconds = time.perf_counter() - begun
    rng, stages = np.random.default_rng(), set()
    def more(): return kills < 5 or kills < 20 and time.perf_counter() - begun < 300
    while more() or not (out/'epoch_003').is_dir():
        process = start(out, save_minutes=0, ema=.9)
        process.join(rng.uniform(0, .7 * seconds) if more() else None)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            stages |= {path.name for path in out.glob('*')}
            if not any(name.startswith(('unfinished', 'epoch')) for name in stages): seconds *= 1.3 # busier than when it was measured
        elif more(): # it came to its end: compare, and begin again
            assert same(whole, out, files=FILES + ['average.safetensors'])
            shutil.rmtree(out)
    assert same(whole, out, files=FILES + ['average.safetensors'])
    assert any(name.startswith('unfinished') for name in stages)
    facts = [Checkpoint(folder/'epoch_003').facts for folder in [whole, out]]
    for name in ['step', 'updates', 'learning_rate', 'train_loss', 'validation_loss', 'validation_auroc']:
        assert facts[0][name] == facts[1][name], name
    assert not list(out.glob('unfinished_*'))

@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_states_how_to_resume(data, tmp_path, number):
    def press(history): os.kill(os.getpid(), number)
    before = signal.getsignal(number) # of a job in the background SIGINT is ignored
    with pytest.raises(KeyboardInterrupt, match='the same call resumes from there'):
        fit(data, tmp_path/'run', RECIPE, after_epoch=press)
    state, = (tmp_path/'run').glob('unfinished_*')
    facts = Checkpoint(state, 'unfinished.json').facts
    assert facts['epoch'] == 1 and facts['step'] == list_checkpoints(tmp_path/'run')[0].facts['step'] + 1
    assert signal.getsignal(number) == before
    fit(data, tmp_path/'run', RECIPE)
    fit(data, tmp_path/'whole', RECIPE)
    assert same(tmp_path/'run', tmp_path/'whole')

def test_a_disk_that_fills_up_loses_nothing(start, tmp_path):
    out = tmp_path/'run'
    start(out, epochs=3, save_minutes=60).join()
    size = (out/'epoch_001/optimizer.safetensors').stat().st_size
    for epoch in [2, 3]: shutil.rmtree(out/f'epoch_{epoch:03d}')
    start(out, epochs=3, limit=size - 1).join()
    error = Path(f'{out}.error').read_text()
    assert error.startswith('InputError') and 'epoch_002 could not be written' in error and 'make room' in error
    assert sorted(path.name for path in out.glob('*_*')) == ['epoch_001']
    start(out).join()
    start(tmp_path/'whole').join()
    assert same(out, tmp_path/'whole')

def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(data, tmp_path):
    (tmp_path/'file').touch()
    with refused('file/run cannot be written', 'choose another folder'):
        fit(data, tmp_path/'file/run', RECIPE)

def test_a_second_call_waits_for_the_folder_and_names_it(data, tmp_path, capsys):
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path/'.run.lock'):
            second = pool.submit(fit, data, tmp_path/'run', RECIPE._replace(epochs=1))
            with pytest.raises(TimeoutError): second.result(timeout=2)
            assert not (tmp_path/'run').exists()
        assert len(second.result(timeout=120)) == 1
    assert f'Another process trains in {tmp_path/"run"}: waiting' in capsys.readouterr().err

def test_of_two_that_meet_the_second_finds_the_run_complete(start, tmp_path):
    both = [start(tmp_path/'run') for _ in range(2)]
    for process in both:
        process.join(240)
        assert process.exitcode == 0
    assert not Path(f'{tmp_path/"run"}.error').exists()
    start(tmp_path/'whole').join()
    assert same(tmp_path/'run', tmp_path/'whole')
    written = [(tmp_path/'run'/f'epoch_00{epoch}').stat().st_mtime for epoch in [1, 2, 3]]
    assert written == sorted(written) # once each, one after the other
    assert sorted(path.name for path in (tmp_path/'run').iterdir()) == ['epoch_001', 'epoch_002', 'epoch_003', 'history.csv']

def test_a_call_that_would_wait_for_itself_is_refused(data, tmp_path):
    def again(history): fit(data, tmp_path/'run', RECIPE)
    with refused('This process already trains in', 'choose another folder'):
        fit(data, tmp_path/'run', RECIPE, after_epoch=again)
    assert len(fit(data, tmp_path/'run', RECIPE)) == 3

def test_what_a_killed_run_left_behind_goes_with_the_next_call(data, tmp_path):
    fit(data, tmp_path/'run', RECIPE._replace(epochs=1))
    os.remove(tmp_path/'run/history.csv')
    shutil.copytree(tmp_path/'run/epoch_001', tmp_path/'run/unfinished_00000003')
    fit(data, tmp_path/'run', RECIPE._replace(epochs=1))
    assert sorted(path.name for path in (tmp_path/'run').iterdir()) == ['epoch_001', 'history.csv']

# --- damage ---

@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    "A run of three epochs that keeps an average."
    out = tmp_path_factory.mktemp('whole')/'run'
    fit(data, out, RECIPE._replace(ema=.9))
    return out

ALL = FILES + ['average.safetensors']

def read_all(checkpoint):
    checkpoint.model()
    checkpoint.model(averaged=True)
    checkpoint.moments()

def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(whole, tmp_path):
    rng = random.Random(os.urandom(8))
    for name in [*ALL, 'checkpoint.json'] * 6:
        folder = shutil.copytree(whole/'epoch_002', tmp_path/'run/epoch_002', dirs_exist_ok=True)
        flipped = flip_a_bit(folder/name, rng)
        said = sentence(lambda: read_all(Checkpoint(folder)))
        assert f'{folder/name} is damaged' in said and 'train again' in said, flipped
        shutil.rmtree(folder)

def test_the_last_good_checkpoint_is_named(whole, tmp_path):
    run, rng = shutil.copytree(whole, tmp_path/'run'), random.Random(os.urandom(8))
    last = list_checkpoints(run)[2]
    flip_a_bit(run/'epoch_003/model.safetensors', rng)
    assert f"from the last good one, {run/'epoch_002'}." in sentence(last.model)
    flip_a_bit(run/'epoch_002/optimizer.safetensors', rng)
    assert f"from the last good one, {run/'epoch_001'}." in sentence(last.model)
    (run/'epoch_001/average.safetensors').unlink()
    assert 'or from the beginning.' in sentence(last.model)
    assert f"{run/'epoch_001/average.safetensors'} is missing" in sentence(list_checkpoints(run)[0].model, True)

@pytest.mark.parametrize('damage', ['a bit', 'cut', 'empty', 'gone'])
def test_a_damaged_run_is_trained_again_where_it_is_damaged(data, whole, tmp_path, capsys, damage):
    run, rng = shutil.copytree(whole, tmp_path/'run'), random.Random(os.urandom(8))
    hurt = sorted(rng.sample([1, 2, 3], rng.randint(1, 3)))
    for epoch in hurt:
        path = run/f'epoch_00{epoch}'/rng.choice([*ALL, 'checkpoint.json'])
        if damage == 'a bit': flip_a_bit(path, rng)
        elif damage == 'gone': path.unlink()
        else: os.truncate(path, 0 if damage == 'empty' else rng.randrange(1, path.stat().st_size))
    history = fit(data, run, RECIPE._replace(ema=.9))
    assert list(history.index) == [1, 2, 3] and all(same(run, whole, epoch, ALL) for epoch in [1, 2, 3])
    said = capsys.readouterr().err
    for epoch in [1, 2, 3]: assert (f"{run/f'epoch_00{epoch}'} is damaged: it is trained again" in said) == (epoch in hurt)
    assert sorted(path.name for path in run.glob('*.damaged')) == [f'epoch_00{epoch}.damaged' for epoch in hurt]
    fit(data, run, RECIPE._replace(ema=.9))
    assert not capsys.readouterr().err

@pytest.mark.parametrize('damage', ['a bit', 'cut', 'empty'])
def test_a_damaged_state_between_epochs_costs_the_epoch(data, whole, tmp_path, capsys, damage):
    run, rng = tmp_path/'run', random.Random(os.urandom(8))
    def press(history): os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): fit(data, run, RECIPE._replace(ema=.9), after_epoch=press)
    state, = run.glob('unfinished_*')
    path = state/rng.choice([*ALL, 'unfinished.json'])
    if damage == 'a bit': flip_a_bit(path, rng)
    else: os.truncate(path, 0 if damage == 'empty' else rng.randrange(1, path.stat().st_size))
    fit(data, run, RECIPE._replace(ema=.9))
    assert all(same(run, whole, epoch, ALL) for epoch in [1, 2, 3]) and f'{state} is damaged' in capsys.readouterr().err

def test_a_repair_that_is_killed_is_repaired_by_the_next_call(data, whole, tmp_path, monkeypatch):
    run, rng, step = shutil.copytree(whole, tmp_path/'run'), random.Random(os.urandom(8)), _Training._take_step
    for epoch in [1, 2]: flip_a_bit(run/f'epoch_00{epoch}'/rng.choice(ALL), rng)
    left = iter(range(rng.randint(0, 9)))
    def dies(self, *arguments):
        if next(left, None) is None: raise MemoryError
        return step(self, *arguments)
    with monkeypatch.context() as patch:
        patch.setattr(_Training, '_take_step', dies)
        with pytest.raises(MemoryError): fit(data, run, RECIPE._replace(ema=.9), save_minutes=0)
    fit(data, run, RECIPE._replace(ema=.9))
    assert all(same(run, whole, epoch, ALL) for epoch in [1, 2, 3])

def test_a_damaged_run_of_other_settings_is_left_alone(data, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path/'run')
    flip_a_bit(run/'epoch_002/model.safetensors', random.Random(os.urandom(8)))
    with refused('seed', 'differ'): fit(data, run, RECIPE._replace(ema=.9), seed=1)
    assert not list(run.glob('*.damaged'))

def test_checkpoints_of_an_earlier_version_load_and_resume(data, whole, tmp_path, capsys):
    "Without checksums, and with a fingerprint of names, labels and splits alone."
    run = shutil.copytree(whole, tmp_path/'run')
    for checkpoint in list_checkpoints(run):
        facts = {name: value for name, value in checkpoint.facts.items() if name != 'checksums'}
        facts['data'] = facts['data'].partition('-')[0]
        files._remove(checkpoint.folder/'checkpoint.json')
        (checkpoint.folder/'checkpoint.json').write_text(json.dumps(facts))
    for checkpoint in list_checkpoints(run): read_all(checkpoint)
    shutil.rmtree(run/'epoch_003')
    fit(data, run, RECIPE._replace(ema=.9))
    assert same(run, whole, 3, ALL) and not capsys.readouterr().err
    os.truncate(run/'epoch_002/optimizer.safetensors', 1000)
    assert 'optimizer.safetensors is damaged' in sentence(list_checkpoints(run)[1].moments)
    fit(data, run, RECIPE._replace(ema=.9))
    assert same(run, whole, 2, ALL) and f"{run/'epoch_002'} is damaged" in capsys.readouterr().err

def test_a_clock_that_jumps_back_does_no_harm(data, whole, tmp_path, monkeypatch):
    now = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, 'time', lambda: float(next(now)))
    monkeypatch.setattr(time, 'time_ns', lambda: next(now) * 10**9)
    def press(history): os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): fit(data, tmp_path/'run', RECIPE._replace(ema=.9), after_epoch=press)
    for number, folder in enumerate(sorted((tmp_path/'run').glob('*_*'))): os.utime(folder, (10**9 - number,) * 2) # the newest is the oldest
    history = fit(data, tmp_path/'run', RECIPE._replace(ema=.9))
    assert all(same(tmp_path/'run', whole, epoch, ALL) for epoch in [1, 2, 3])
    assert (history.seconds > 0).all() and (history.images_per_second > 0).all()

def test_a_read_only_folder_is_refused_before_the_work_and_a_complete_run_in_it_is_read(data, whole, tmp_path, monkeypatch):
    def read_only(*_, **__): raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    (tmp_path/'run').mkdir()
    monkeypatch.setattr(_Training, '_take_step', lambda *_: pytest.fail('it trains'))
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, 'TemporaryFile', read_only)
        with refused(f"{tmp_path/'run'} cannot be written (Read-only file system)"): fit(data, tmp_path/'run', RECIPE)
    monkeypatch.setattr(FileLock, 'acquire', read_only)
    with refused(f"{tmp_path/'run'} cannot be written (Read-only file system)"): fit(data, tmp_path/'run', RECIPE)
    assert len(fit(data, whole, RECIPE._replace(ema=.9))) == 3

def test_a_loss_that_is_no_number_names_the_images_and_keeps_the_last_good_checkpoint(data, tmp_path, monkeypatch):
    frame, original = data.frame, _Training._take_step
    def broken(self, x, y, *rest):
        if self.step == 8: x = x * float('nan')
        return original(self, x, y, *rest)
    monkeypatch.setattr(_Training, '_take_step', broken)
    message = sentence(fit, data, tmp_path/'run', RECIPE, save_minutes=0)
    assert 'nan at step 9' in message and 'lower learning_rate' in message
    named = [name for name in frame.index[frame.split == 'train'] if name in message]
    assert len(named) == 8 and 'more' in message
    assert [checkpoint.facts['epoch'] for checkpoint in list_checkpoints(tmp_path/'run')] == [1]
    monkeypatch.undo()
    fit(data, tmp_path/'run', RECIPE)
    fit(data, tmp_path/'whole', RECIPE)
    assert same(tmp_path/'run', tmp_path/'whole')

@pytest.mark.parametrize('changes, words', [
    (dict(epochs=0), 'epochs is 0'), (dict(epochs=1.5), 'epochs is 1.5'), (dict(epochs='3'), "epochs is '3'"),
    (dict(batch_size=0), 'batch_size is 0'), (dict(batch_size=1), 'a batch of fewer than 2'),
    (dict(learning_rate=-1), 'learning_rate is -1'), (dict(learning_rate=float('nan')), 'learning_rate is nan'),
    (dict(weight_decay=-.1), 'weight_decay is -0.1'), (dict(warmup=1), 'warmup is 1'), (dict(warmup=None), 'warmup is None'),
    (dict(ema=1.5), 'ema is 1.5'), (dict(clip=0), 'clip is 0'), (dict(loss='focal'), "training_loss('focal', data.frame)"),
    (dict(mixed_precision='half'), 'use no, bf16, fp16'), (dict(backbone='densenet9000'), 'Unknown backbone')])
def test_settings_that_make_no_sense_are_named(data, tmp_path, changes, words):
    with refused(words): fit(data, tmp_path/'run', RECIPE._replace(**changes))
    assert not (tmp_path/'run').exists()

def test_a_recipe_is_a_recipe(data, tmp_path):
    for other in ['densenet_small', RECIPE._asdict()]:
        with refused('give a Recipe'): fit(data, tmp_path/'run', other)

def test_a_recipe_comes_back_from_its_checkpoint_and_trains_the_same(data, tmp_path):
    recipe = RECIPE._replace(epochs=1, weight_decay=.1, clip=5., warmup=.1, ema=.5, mixed_precision='no')
    fit(data, tmp_path/'run', recipe, seed=3)
    back = Checkpoint(tmp_path/'run/epoch_001').recipe()
    assert back._replace(loss=None) == recipe
    fit(data, tmp_path/'again', back, seed=3)
    assert same(tmp_path/'run', tmp_path/'again', 1)

@pytest.mark.parametrize('changes', [dict(mixed_precision='bf16'), dict(ema=.9), dict(weight_decay=.1, clip=.5, warmup=.5)])
def test_what_is_asked_for_is_kept_and_compared(data, tmp_path, changes):
    history = fit(data, tmp_path/'run', RECIPE._replace(epochs=1, **changes))
    facts = Checkpoint(tmp_path/'run/epoch_001').facts
    assert np.isfinite(history.train_loss).all()
    assert all(facts[name] == value for name, value in changes.items())
    with refused(*changes, 'differ'): fit(data, tmp_path/'run', RECIPE._replace(epochs=1))

def test_a_run_resumes_although_the_weights_it_began_with_are_gone(data, tmp_path):
    fit(data, tmp_path/'first', RECIPE._replace(epochs=1))
    weights = shutil.copy(tmp_path/'first/epoch_001/model.safetensors', tmp_path/'weights.safetensors')
    fit(data, tmp_path/'run', RECIPE._replace(weights=weights))
    shutil.rmtree(tmp_path/'run/epoch_003')
    os.remove(weights)
    fit(data, tmp_path/'run', RECIPE._replace(weights=weights))
    facts = [checkpoint.facts['weights_facts'] for checkpoint in list_checkpoints(tmp_path/'run')]
    assert facts[0] == facts[2]

def test_the_average_is_the_running_average(data, tmp_path):
    fit(data, tmp_path/'run', RECIPE._replace(epochs=1, ema=.5), save_minutes=0)
    checkpoint = list_checkpoints(tmp_path/'run')[0]
    own, average = checkpoint.model(), checkpoint.model(averaged=True)
    assert any(not torch.equal(p, q) for p, q in zip(own.parameters(), average.parameters()))
    assert not own.training and not average.training

def test_the_generator_outside_is_left_alone(data, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(data, tmp_path/'run', RECIPE._replace(epochs=1))
    assert torch.equal(torch.rand(3), expected)

def test_schedule_climbs_then_falls_and_uses_every_step():
    for steps in [1, 2, 7, 100]:
        for warmup in [0, .05, .5, .99]:
            shares = np.array([_schedule(step, steps, warmup) for step in range(steps)])
            top = shares.argmax()
            assert (shares > 0).all() and shares.max() <= 1
            assert (np.diff(shares[:top + 1]) > 0).all() and (np.diff(shares[top:]) < 0).all()

SCRIPT = '''
import sys, torch
from cxr_influence.data.batches import Data
from cxr_influence.data.nih import read_nih
from cxr_influence.data.store import decode
from cxr_influence.training import loop
from cxr_influence.training.checkpoints import Recipe
from cxr_influence.training.resume import fit
torch.set_num_threads(1)
root, store, out, precision, rate = sys.argv[1:]
if precision == 'float64':
    make_model, batches = loop.make_model, loop.batches
    loop.make_model = lambda *given, **more: make_model(*given, **more).double()
    loop.batches = lambda *arguments: ((x.double(), y, i) for x, y, i in batches(*arguments))
frame = read_nih(root)
recipe = Recipe('densenet_small', epochs=2, batch_size=18, learning_rate=float(rate))
fit(Data(frame, decode(frame, root, 64, store)), out, recipe, device='cpu', save_minutes=0)
'''
TWO = ['-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes=2', '--num_machines=1', '--main_process_port=0',
       '--mixed_precision=no', '--dynamo_backend=no']

def launch(tmp_path, name, launcher, *arguments):
    "Run the script; while another holds its folder, it waits."
    (tmp_path/'script.py').write_text(SCRIPT)
    said, environment = tmp_path/f'{name}.log', {**os.environ, 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, *launcher, tmp_path/'script.py', *arguments]
    with open(said, 'w') as log, FileLock(tmp_path/f'.{name}.lock'):
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        for _ in range(1200):
            if 'waiting for it' in said.read_text() or process.poll() is not None: break
            time.sleep(.1)
    assert process.wait(240) == 0, said.read_text()
    assert said.read_text().count('waiting for it') == 1

@pytest.mark.long
@pytest.mark.parametrize('precision, rate', [('float64', '1e-3'), ('float32', '1e-6')])
def test_two_processes_train_as_one(phantom, data, tmp_path, precision, rate):
    """Same global batches, some of an odd size; each image counts once; one process writes. AdamW's first steps go by the sign
    of a gradient, so in float32 a last digit soon becomes a first: there the two are compared at a rate that hardly moves."""
    images = len(data.train)
    assert images % 18 and any(len(part) % 2 for part in np.array_split(np.arange(images), -(-images // 18)))
    for name, launcher in [('one', []), ('two', TWO)]:
        launch(tmp_path, name, launcher, phantom, data.store.folder, tmp_path/name, precision, rate)
    one, two = read_history(tmp_path/'one'), read_history(tmp_path/'two')
    for column in ['train_loss', 'validation_loss']: np.testing.assert_allclose(two[column], one[column], rtol=1e-5)
    assert one.train_loss.iloc[1] < one.train_loss.iloc[0]
    assert Checkpoint(tmp_path/'two/epoch_002').facts['processes'] == 2
    files = [sorted(str(path.relative_to(tmp_path/name)) for path in (tmp_path/name).rglob('*.*')) for name in ['one', 'two']]
    assert files[0] == files[1]

# A folder for every setting

def test_every_setting_and_every_datum_has_a_folder_of_its_own(data, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, 'fit', lambda *given, **settings: None) # names are what is tested
    recipe = Recipe('densenet_small', epochs=2, batch_size=16)
    other = dict(epochs=3, batch_size=8, learning_rate=random.uniform(1e-4, 9e-4), weight_decay=0., warmup=.3, clip=1., ema=.9,
                 mixed_precision='bf16', smooth=True, logit_scale=.5, betas=(.8, .9), root_epsilon=1e-8)
    folders = [resume.trained(data, recipe._replace(**{name: value}), under=tmp_path) for name, value in other.items()]
    flipped = data.frame.assign(Mass=(data.frame.Mass == 0).astype(data.frame.Mass.dtype))
    folders += [resume.trained(data, recipe, under=tmp_path), resume.trained(data, recipe, 1, under=tmp_path),
                resume.trained(data.with_frame(flipped), recipe, under=tmp_path)]
    assert len({*folders}) == len(folders) and {folder.parent for folder in folders} == {tmp_path}
    assert resume.trained(data, Recipe('densenet_small', epochs=2, batch_size=16), under=tmp_path) == folders[-3]
    assert 'epochs is 0' in sentence(resume.trained, data, recipe._replace(epochs=0), under=tmp_path)

def test_a_stopped_run_is_found_by_its_settings_and_ends_in_the_same_bytes(data, tmp_path, capsys):
    recipe = Recipe('densenet_small', epochs=2, batch_size=16)
    def press(_): signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): resume.trained(data, recipe, under=tmp_path/'a', device='cpu', after_epoch=press)
    folders = [resume.trained(data, recipe, under=tmp_path/name, device='cpu') for name in 'aab']
    said = [line.split()[0] for line in capsys.readouterr().err.splitlines() if line.startswith(('Trained ', 'Found '))]
    assert said == ['Trained', 'Found', 'Trained']
    one, again, other = [(folder/'epoch_002/model.safetensors').read_bytes() for folder in folders]
    assert folders[0] == folders[1] and one == again == other and len(list((tmp_path/'a').glob('[!.]*'))) == 1

def test_another_file_of_weights_is_another_run(data, tmp_path):
    path, recipe = tmp_path/'own.pth', RECIPE._replace(epochs=1, weights=str(tmp_path/'own.pth'))
    def write(seed): torch.save(make_model('densenet_small', seed=seed).state_dict(), path)
    write(1)
    first, logits = trained(data, recipe, under=tmp_path/'runs'), retrain(data, recipe, 0, data.rows('test'), tmp_path/'kept')
    fit(data, tmp_path/'run', recipe)
    assert trained(data, recipe, under=tmp_path/'runs') == first and retrain(data, recipe, 0, data.rows('test'), tmp_path/'kept').equals(logits)
    write(2)
    assert trained(data, recipe, under=tmp_path/'runs') != first
    others = retrain(data, recipe, 0, data.rows('test'), tmp_path/'kept')
    assert not others.equals(logits)
    with refused('weights_sha256 differ'): fit(data, tmp_path/'run', recipe)
    with refused('own.pth is not the file that this run began with'): bank._start(first, data, [], 1, (0, 0), 'cpu')
    write(1)
    fit(data, tmp_path/'run', recipe) # it is complete
    path.unlink() # what is finished is found without it
    assert trained(data, recipe, under=tmp_path/'runs') == first
    assert retrain(data, recipe, 0, data.rows('test'), tmp_path/'kept').equals(others)

def test_a_state_before_the_first_update_in_fp16(data, tmp_path, monkeypatch):
    "The scaler leaves out the first steps, and AdamW then has no moments yet."
    recipe = RECIPE._replace(epochs=1, mixed_precision='fp16')
    monkeypatch.setattr(torch.amp.GradScaler, 'step', lambda scaler, optimizer: None)
    fit(data, tmp_path/'run', recipe, device='cpu', save_minutes=0)
    checkpoint, = list_checkpoints(tmp_path/'run')
    assert checkpoint.facts['updates'] == 0 and not any(t.any() for t in checkpoint.moments().values())
    assert np.isfinite(influence(tmp_path/'run', data, tmp_path/'s.csv', device='cpu')).all(axis=None)
