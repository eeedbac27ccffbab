"""Runs that are hurt: each stage in a process of its own, killed, starved or damaged, then run again and compared with the undisturbed one.

`make faults`, or `python tests/faults.py [--rounds 30] [--out _runs/faults] [--only kill]`, writes a table with one row per fault;
`test_faults.py` tries a few of them."""
import argparse, contextlib, hashlib, json, multiprocessing, os, random, resource, shutil, signal, subprocess, sys, tempfile, time, traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import torch
from tqdm import tqdm

from cxr_influence.attribution import scoring
from cxr_influence.attribution.pairwise import pairwise
from cxr_influence.attribution.scoring import influence
from cxr_influence.data import store as stores
from cxr_influence.data.batches import load_data
from cxr_influence.data.files import InputError, project_path
from cxr_influence.evidence.comparison import subset_draws
from cxr_influence.evidence.subsets import run_subsets, subset_grid
from cxr_influence.phantom.dataset import make_phantom
from cxr_influence.training.checkpoints import Recipe
from cxr_influence.training.resume import fit

# --- the stages: what a user calls, in the current folder, with small blocks so that there are many moments ---

RECIPE, SIZE, DECODED = Recipe('densenet_small', epochs=2, batch_size=16), 32, 256

def data(): return load_data('phantom', SIZE, 'stores')

def decode():
    stores._BLOCK_BYTES = DECODED**2 * 8
    load_data('phantom', DECODED, 'decoded')

def train(): fit(data(), 'run', RECIPE, device='cpu', save_minutes=0)

def score():
    scoring._BLOCK_IMAGES = 8
    influence('run', data(), 'scores/influence.csv', batch_size=8, device='cpu')

def pairs(): pairwise('run', data(), 'pairs', matrix=True, top=3, memory=6e6, batch_size=8, device='cpu')

def retrain(workers=None):
    given = data()
    order = [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) for name in given.train.index]
    seeds = (0, 1) if workers else (0,)
    grid = subset_grid(pd.Series(order, given.train.index, dtype=float), given.frame, {'remove': [.3]}, ['bottom'], seeds, reference=None)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context('fork')) if workers and workers > 0 else None
    if workers is None: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}) # one core: one after the other, here
    with pool or contextlib.nullcontext():
        rows = run_subsets('run', given, grid, 'retrained', executor=pool)
    return rows.drop(columns='seconds').to_csv() + subset_draws(rows, given.frame, resamples=5).to_csv()

def retrain_in_processes(): return retrain(2)
def retrain_by_default(): return retrain(-1)

EXPERIMENT = {'parameters': 'seed: int = 0 # of the numbers\nout: str = "_runs/toy/by-hand" # folder',
    'first': 'from cxr_influence.runs.runs import end_run, start_run\nfolder = start_run("toy", globals())',
    'work': 'import time\nimport numpy as np, pandas as pd\nnumbers = np.random.default_rng(seed).normal(size=1000)\n'
            'time.sleep(.3)\npd.Series(numbers).to_csv(folder/"numbers.csv")\ntime.sleep(.3)',
    'last': 'end_run(pd.DataFrame([dict(mean=numbers.mean(), largest=numbers.max())]))'}

def write_experiment(path):
    cells = [nbformat.v4.new_code_cell(text, metadata={'tags': ['parameters']} if name == 'parameters' else {}) for name, text in EXPERIMENT.items()]
    nb = nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'Python', 'language': 'python'}})
    nbformat.write(nb, path)

def sweep():
    from cxr_influence.runs.sweeps import sweep as do
    table = do('toy.ipynb', {'seed': [1, 2]}, runs='runs')
    if 'status' in table and (table.status != 'complete').any():
        raise InputError(f'In the frame: {"; ".join(str(error) for error in table.error if isinstance(error, str))}')
    return table[['mean', 'largest']].to_csv(index=False)

STAGES = dict(decode=decode, train=train, score=score, pairs=pairs, retrain=retrain, sweep=sweep,
              retrain_in_processes=retrain_in_processes, retrain_by_default=retrain_by_default)
NEEDS = dict(decode=[], train=['stores'], score=['stores', 'run'], pairs=['stores', 'run'], retrain=['stores', 'run'], sweep=[],
             retrain_in_processes=['stores', 'run'], retrain_by_default=['stores', 'run'])
BEFORE = dict(score=['train'], pairs=['train'], retrain=['train']) # stages that remake what was removed

# --- what a stage has made: name -> checksum of what counts in it, without times ---

TIMES = {'seconds', 'images_per_second', 'modified', 'start', 'end', 'started', 'ended'}

def checksum(content): return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()[:16]

def json_facts(path):
    return checksum(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in TIMES | {'sums', 'key', 'run'}}, sort_keys=True))

def table_facts(path):
    table = pd.read_parquet(path) if path.suffix == '.parquet' else pd.read_csv(path)
    return checksum(table[[column for column in table if column not in TIMES]].to_csv())

def what_is_there(stage):
    "The results of a stage that bear a finished name in the current folder."
    here, found = Path(), {}
    def add(pattern, how=lambda path: checksum(path.read_bytes())):
        for path in here.glob(pattern):
            if any(mark in str(path) for mark in ('.part', '.old', '.damaged')): continue
            try: found[str(path)] = how(path)
            except Exception as error: found[str(path)] = f'unreadable: {type(error).__name__}'
    if stage == 'decode' and any(here.glob('decoded/*/store.json')):
        for name in ('pixels.npy', 'images.csv'): add(f'decoded/*/{name}')
    if stage == 'train':
        for name in ('model', 'optimizer'): add(f'run/epoch_*/{name}.safetensors')
        add('run/epoch_*/checkpoint.json', json_facts)
        add('run/history.csv', table_facts)
    if stage == 'score':
        add('scores/influence.csv'), add('scores/influence.parquet', table_facts), add('scores/influence.json', json_facts)
        add('scores/influence.checkpoints/epoch_*.parquet', table_facts)
    if stage == 'pairs' and Path('pairs/pairwise.json').exists():
        add('pairs/pairwise.npy'), add('pairs/strongest.parquet', table_facts), add('pairs/pairwise.json', json_facts)
    if stage.startswith('retrain'):
        add('retrained/*.json', json_facts), add('retrained/*.parquet', table_facts), add('retrained/logits/*.parquet', table_facts)
    if stage == 'sweep': add('runs/toy/*/row.csv', lambda path: checksum(pd.read_csv(path)[['mean', 'largest']].to_csv()))
    return found

# --- a stage in a process of its own ---

@contextlib.contextmanager
def clock_jumps_back(seconds, after):
    real, start = time.time, time.perf_counter()
    time.time = lambda: real() - (seconds if time.perf_counter() - start > after else 0)
    try: yield
    finally: time.time = real

def limit_files(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.RLIM_INFINITY))

def child(folder, stage, hurt, answer):
    "Run a stage, and send how it ended."
    os.setsid()
    os.chdir(folder)
    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    answer.send(('started', ''))
    try:
        try:
            if hurt.get('file_limit'): limit_files(hurt['file_limit'])
            with clock_jumps_back(3600, hurt['clock']) if 'clock' in hurt else contextlib.nullcontext(): returned = STAGES[stage]()
            end = 'done', returned or ''
        except InputError as error: end = 'sentence', str(error)
        except KeyboardInterrupt as error: end = 'stopped', str(error)
        except BaseException: end = 'traceback', traceback.format_exc()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt: end = 'stopped', '' # the second one, while the first was noted
    if hurt.get('file_limit'): resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    answer.send(end)
    answer.close()
    os._exit(0)

class Launcher:
    "Starts stages from a process that has imported everything and holds no threads."
    def __init__(self):
        here = str(Path(__file__).resolve().parent)
        paths = [here, str(Path(here).parent), *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))]
        os.environ.update(OMP_NUM_THREADS='1', TQDM_DISABLE='1', PYTHONWARNINGS='ignore', PYTHONPATH=os.pathsep.join(dict.fromkeys(paths)))
        self.context = multiprocessing.get_context('forkserver')
        self.context.set_forkserver_preload(['faults', 'cxr_influence.runs.sweeps'])

    def __call__(self, folder, stage, while_running=None, patience=300, **hurt):
        "Run a stage, perhaps hurt from outside meanwhile; return how it ended, the text and the seconds."
        mine, its = self.context.Pipe(duplex=False)
        process = self.context.Process(target=child, args=(str(folder), stage, hurt, its))
        process.start()
        its.close()
        mine.recv() # started
        start = time.perf_counter()
        if while_running: while_running(process.pid)
        end = None
        try:
            if mine.poll(patience): end = mine.recv()
        except EOFError: pass
        seconds, self.returned = time.perf_counter() - start, None
        if end and end[0] == 'done': end, self.returned = ('done', ''), end[1]
        if end is None and process.is_alive() and seconds >= patience: end = 'hangs', f'still running after {patience} s'
        with contextlib.suppress(ProcessLookupError, PermissionError): os.killpg(process.pid, signal.SIGKILL) # what it left behind
        process.join()
        if end is None: end = ('killed' if process.exitcode == -signal.SIGKILL else 'stopped' if process.exitcode in (1, -signal.SIGTERM, -signal.SIGINT)
                               else 'crash'), f'exit code {process.exitcode}'
        return *end, seconds

# --- faults from outside ---

def wait(seconds): time.sleep(max(0, seconds))

def kill_after(seconds, whole_group=True):
    def act(pid):
        wait(seconds)
        with contextlib.suppress(ProcessLookupError): (os.killpg if whole_group else os.kill)(pid, signal.SIGKILL)
    return act

def signals(number, moments):
    def act(pid):
        for moment in moments:
            wait(moment)
            with contextlib.suppress(ProcessLookupError): os.killpg(pid, number)
    return act

def kill_a_worker(seconds, words):
    "Kill one process below a stage, as the kernel does for want of memory, at some moment after there is one."
    def workers(pid):
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    line = ' '.join(process.cmdline())
                    if any(word in line for word in words) and 'tracker' not in line: yield process
    def act(pid):
        until = time.monotonic() + 60
        while time.monotonic() < until and not (found := list(workers(pid))): time.sleep(.02)
        wait(seconds)
        for process in random.sample(found, len(found)):
            with contextlib.suppress(psutil.Error):
                process.kill()
                return
    return act

def can_mount():
    if os.name != 'posix' or os.geteuid() != 0: return False
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder], capture_output=True)
        if done.returncode == 0: subprocess.run(['umount', folder])
        return done.returncode == 0

class Disk:
    "A small disk of its own: a tmpfs whose size and writability can be changed while it is used."
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=512m', 'tmpfs', str(folder)], check=True)
    def change(self, options): subprocess.run(['mount', '-o', f'remount,{options}', str(self.folder)], check=True)
    def used(self):
        facts = os.statvfs(self.folder)
        return (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    def close(self): subprocess.run(['umount', '-l', str(self.folder)], check=True)

# --- damage to files ---

def flip_a_bit(path, rng):
    content = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    rewrite(path, content)
    return f'bit {bit} of byte {place:,}'

def truncate(path, rng):
    length = rng.randrange(1, path.stat().st_size)
    rewrite(path, path.read_bytes()[:length])
    return f'at {length:,} bytes'

def empty(path, rng):
    rewrite(path, b'')
    return 'to 0 bytes'

def rewrite(path, content):
    "Change a file as a disk does: its times stay."
    facts = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))

DAMAGES = {'one flipped bit': flip_a_bit, 'truncated': truncate, 'emptied': empty}

# what is damaged -> (pattern, stage that uses it, how the folder was left: 'done', 'one epoch' or 'killed')
TARGETS = {
    'weights, to score': ('run/epoch_*/model.safetensors', 'score', 'before'),
    'moments, to score': ('run/epoch_*/optimizer.safetensors', 'score', 'before'),
    'facts of a checkpoint, to score': ('run/epoch_*/checkpoint.json', 'score', 'before'),
    'weights, for pairs': ('run/epoch_*/model.safetensors', 'pairs', 'before'),
    'weights, to retrain': ('run/epoch_*/model.safetensors', 'retrain', 'before'),
    'weights, to resume': ('run/epoch_001/model.safetensors', 'train', 'one epoch'),
    'moments, to resume': ('run/epoch_001/optimizer.safetensors', 'train', 'one epoch'),
    'facts, to resume': ('run/epoch_001/checkpoint.json', 'train', 'one epoch'),
    'unfinished state, to resume': ('run/unfinished_*/*', 'train', 'killed'),
    'decoded pixels, to train': ('stores/*/pixels.npy', 'train', 'before'),
    'list of decoded images, to train': ('stores/*/images.csv', 'train', 'before'),
    'facts of the store, to train': ('stores/*/store.json', 'train', 'before'),
    'decoded pixels, to score': ('stores/*/pixels.npy', 'score', 'before'),
    'unfinished store, to decode': ('decoded/*.part/*', 'decode', 'killed'),
    'kept scores of a checkpoint': ('scores/influence.checkpoints/*.parquet', 'score', 'done'),
    'kept block of scores': ('scores/influence.checkpoints/*/*.parquet', 'score', 'killed'),
    'finished scores': ('scores/influence.*', 'score', 'done'),
    'kept block of pairs': ('pairs/blocks/*.parquet', 'pairs', 'done'),
    'matrix of pairs': ('pairs/pairwise.npy', 'pairs', 'done'),
    'table or facts of pairs': ('pairs/[sp]*[!y]', 'pairs', 'done'),
    'kept row of a retraining': ('retrained/*.json', 'retrain', 'done'),
    'kept probabilities of a retraining': ('retrained/*.parquet', 'retrain', 'done'),
    'kept logits of a retraining': ('retrained/logits/*.parquet', 'retrain', 'row lost'),
    'row of a run': ('runs/toy/*/row.csv', 'sweep', 'done'),
    'facts of a run': ('runs/toy/*/run.json', 'sweep', 'done'),
}

# --- the workshop: one undisturbed run, and trials that begin from it ---

class Workshop:
    "An undisturbed run of every stage, and the folders of trials."
    def __init__(self, folder, stages=('decode', 'train', 'score', 'pairs', 'retrain', 'sweep')):
        self.folder, self.launch, self.stages, self.rng = Path(folder), Launcher(), stages, random.Random(os.urandom(8))
        self.base, self.expected, self.returned, self.seconds, self.bytes, self.tmpfs = self.folder/'base', {}, {}, {}, {}, can_mount()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_experiment(self.folder/'toy.ipynb')
        make_phantom(self.folder/'phantom', n=60, size=64, seed=self.rng.randrange(10**6))
        self.base.mkdir()
        self.link(self.base)
        for stage in stages:
            before = size_of(self.base)
            end, text, self.seconds[stage] = self.launch(self.base, stage)
            assert end == 'done', text
            self.expected[stage], self.bytes[stage] = self.there(self.base, stage), size_of(self.base) - before
            self.returned[stage] = self.launch.returned
            assert self.expected[stage]
        for stage in ('retrain_in_processes', 'retrain_by_default'): self.seconds[stage] = 2 * self.seconds.get('retrain', 0)

    def link(self, folder):
        for name in ('phantom', 'toy.ipynb'): os.symlink(self.folder/name, folder/name)

    def there(self, folder, stage):
        here = os.getcwd()
        os.chdir(folder)
        try: return what_is_there(stage)
        finally: os.chdir(here)

    def begin(self, stage, folder, state='before'):
        "Lay out the folder of a trial: what the stage needs, and perhaps what it has made."
        folder.mkdir(exist_ok=True)
        self.link(folder)
        made = [path.name for path in self.base.iterdir() if not path.is_symlink()]
        wanted = NEEDS[stage] if state in ('before', 'killed') else made if state in ('done', 'row lost') else [*NEEDS[stage], 'run']
        for name in wanted:
            if name in made: (shutil.copytree if (self.base/name).is_dir() else shutil.copy2)(self.base/name, folder/name)
        if state == 'one epoch':
            shutil.rmtree(folder/'run/epoch_002')
            (folder/'run/history.csv').unlink(missing_ok=True)
        if state == 'row lost':
            for path in folder.glob('retrained/*.json'): path.unlink()
        return folder

    def agrees(self, folder, stage, whole=True):
        "Whether a stage made what the undisturbed one made; where not `whole`, whether what is there is of it."
        expected = self.expected.get(stage) or self.reference(stage)
        found, same = self.there(folder, stage), self.launch.returned == self.returned[stage]
        return same and found == expected if whole else all(expected.get(name) == value for name, value in found.items() if not harmless(name))

    def reference(self, stage):
        "The undisturbed result of a stage that few trials need, made when one does."
        folder = self.begin(stage, self.folder/f'base-{stage}')
        end, text, self.seconds[stage] = self.launch(folder, stage)
        assert end == 'done', text
        self.expected[stage], self.returned[stage] = self.there(folder, stage), self.launch.returned
        return self.expected[stage]

def harmless(name): return name == 'run/history.csv' # rewritten after every epoch

def size_of(folder): return sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in folder.rglob('*') if path.is_file())

# --- trials ---

def row(fault, stage, detail, first, text, again, equal, half=False, again_text='', seconds=0.):
    "Judge a trial: how the hurt call ended, how the same call ended afterwards, and whether the result is the undisturbed one."
    bad = {'traceback', 'crash', 'hangs'}
    if half: outcome = 'half-written taken for whole'
    elif first in bad: outcome = 'traceback'
    elif again in bad: outcome = 'traceback later'
    elif again == 'sentence': outcome = 'lost'
    elif not equal: outcome = 'silently different'
    else: outcome = 'clear sentence, then equal' if first == 'sentence' else 'equal'
    return dict(fault=fault, stage=stage, detail=detail, outcome=outcome, first=first, again=again, text=last_line(text), later=last_line(again_text),
                seconds=round(seconds, 2), trace=text if first == 'traceback' else again_text if again == 'traceback' else '')

def last_line(text): return (text.strip().splitlines() or [''])[-1][:300]

def rerun(shop, folder, stage): return shop.launch(folder, stage)

def try_kill(shop, stage, how='kill -9'):
    rng, folder = shop.rng, shop.begin(stage, shop.folder/'trial')
    moment = rng.uniform(0, shop.seconds[stage] * 1.02)
    if how == 'kill -9': act = kill_after(moment, whole_group=stage != 'sweep' or rng.random() < .5)
    elif how == 'Ctrl-C twice': act = signals(signal.SIGINT, [moment, rng.uniform(.01, .5)])
    else: act = signals(signal.SIGTERM, [moment])
    first, text, _ = shop.launch(folder, stage, act)
    half = not shop.agrees(folder, stage, whole=False)
    again, later, seconds = rerun(shop, folder, stage)
    return row(how, stage, f'after {moment:.2f} of {shop.seconds[stage]:.2f} s', first, text, again, shop.agrees(folder, stage), half, later, seconds)

def try_full_disk(shop, stage):
    share, folder = shop.rng.uniform(.02, .98), shop.folder/'disk'
    if not shop.tmpfs: return try_file_limit(shop, stage)
    disk = Disk(folder)
    try:
        shop.begin(stage, folder)
        disk.change(f'size={int(disk.used() + share * shop.bytes[stage]) // 4096 * 4096}')
        first, text, _ = shop.launch(folder, stage)
        half = not shop.agrees(folder, stage, whole=False)
        disk.change('size=512m')
        again, later, seconds = rerun(shop, folder, stage)
        return row('full disk', stage, f'{share:.0%} of what it needs', first, text, again, shop.agrees(folder, stage), half, later, seconds)
    finally: disk.close(), folder.rmdir()

def try_file_limit(shop, stage):
    limit, folder = int(10 ** shop.rng.uniform(1, 5.5)), shop.begin(stage, shop.folder/'trial')
    first, text, _ = shop.launch(folder, stage, file_limit=limit)
    half = not shop.agrees(folder, stage, whole=False)
    again, later, seconds = rerun(shop, folder, stage)
    return row('file too large (quota)', stage, f'at {limit:,} bytes', first, text, again, shop.agrees(folder, stage), half, later, seconds)

def try_read_only(shop, stage, state='before', with_stores=False):
    detail = ('nothing is done yet' if state == 'before' else 'all is done') + ', decoded images too' * with_stores
    if not shop.tmpfs: return None
    folder = shop.folder/'disk'
    disk = Disk(folder)
    try:
        shop.begin(stage, folder, state)
        if 'stores' in NEEDS[stage] and not with_stores: # the images are on another disk
            shutil.move(folder/'stores', shop.folder/'trial')
            os.symlink(shop.folder/'trial', folder/'stores')
        disk.change('ro')
        first, text, _ = shop.launch(folder, stage)
        disk.change('rw')
        again, later, seconds = rerun(shop, folder, stage)
        return row('read-only folder', stage, detail, first, text, again, shop.agrees(folder, stage), False, later, seconds)
    finally: disk.close(), folder.rmdir()

def try_clock(shop, stage):
    rng, folder = shop.rng, shop.begin(stage, shop.folder/'trial')
    moment, jump = rng.uniform(0, shop.seconds[stage]), rng.uniform(0, shop.seconds[stage])
    first, text, _ = shop.launch(folder, stage, kill_after(moment))
    for path in folder.rglob('*'): # what was written an hour ahead of today's clock
        if not path.is_symlink() and 'phantom' not in path.parts: os.utime(path, (path.stat().st_atime + 3600, path.stat().st_mtime + 3600))
    again, later, seconds = shop.launch(folder, stage, clock=jump)
    return row('clock jumps back', stage, f'an hour, after {jump:.2f} s of a resumed run', first, text, again, shop.agrees(folder, stage), False, later, seconds)

def try_worker(shop, stage):
    folder = shop.begin(stage, shop.folder/'trial')
    shop.expected.get(stage) or shop.reference(stage)
    words = {'retrain_in_processes': ['forkserver', 'python'], 'retrain_by_default': ['loky'], 'sweep': ['ipykernel', 'papermill']}[stage]
    moment = shop.rng.uniform(0, .6 * shop.seconds[stage])
    first, text, _ = shop.launch(folder, stage, kill_a_worker(moment, words))
    again, later, seconds = rerun(shop, folder, stage)
    return row('worker killed for memory', stage, f'{moment:.2f} s after it began', first, text, again, shop.agrees(folder, stage), False, later, seconds)

def prepare_damage(shop, target):
    "Lay out a folder and choose the file to damage; a run that must have been killed is killed until the file is there."
    pattern, stage, state = TARGETS[target]
    for _ in range(40):
        folder = shop.begin(stage, shop.folder/'trial', state)
        if state == 'killed': shop.launch(folder, stage, kill_after(shop.rng.uniform(.3, .95) * shop.seconds[stage]))
        found = [path for path in folder.glob(pattern) if path.is_file() and path.stat().st_size > 1 and ('.part' not in str(path) or stage == 'decode')]
        if found: return folder, stage, shop.rng.choice(sorted(found))
        shutil.rmtree(folder)
    raise RuntimeError(f'no {pattern} in 40 tries')

def try_damage(shop, target, damage):
    folder, stage, path = prepare_damage(shop, target)
    where = DAMAGES[damage](path, shop.rng)
    first, text, _ = shop.launch(folder, stage)
    name, again, later, seconds = path.relative_to(folder), first, text, 0.
    if first != 'done':
        again, later, seconds = rerun(shop, folder, stage) # the same command
        for advice in (train_again, delete_it): # and after what the sentence advises
            if again != 'sentence' or not stands_for(path, folder, text): break
            advice(shop, folder, stage, path)
            again, later, seconds = rerun(shop, folder, stage)
    return row(damage, stage, f'{target}: {name}, {where}', first, text, again, shop.agrees(folder, stage), False, later, seconds)

def stands_for(path, folder, text): # whether a sentence names the damaged file, or a folder it is in
    relative = path.relative_to(folder)
    return any(str(part) in text for part in [relative, *relative.parents][:-1]) or path.name in text

def train_again(shop, folder, stage, path):
    for earlier in BEFORE.get(stage, []): rerun(shop, folder, earlier)

def delete_it(shop, folder, stage, path):
    "Delete the damaged file, the store it is in, or its checkpoint and those after it; and make it again."
    whole = path.parent.name.startswith(('epoch_', 'unfinished_')) or path.parent.parent.name in ('stores', 'decoded')
    places = [path.parent] if whole else [path]
    if path.parent.name.startswith('epoch_'): places = [other for other in path.parent.parent.glob('epoch_*') if other.name >= path.parent.name]
    for place in places:
        if place.is_dir(): shutil.rmtree(place)
        else: place.unlink(missing_ok=True)
    train_again(shop, folder, stage, path)

# --- all of it ---

def plan(shop, rounds=30):
    "The trials of the long form, as (name of the fault, function, arguments)."
    stages = [stage for stage in ('train', 'score', 'pairs', 'decode', 'retrain', 'train', 'score') if stage in shop.stages]
    sweeps = max(1, rounds // 8) if 'sweep' in shop.stages else 0
    jobs = [('kill', try_kill, (stages[i % len(stages)],)) for i in range(rounds - sweeps)] + [('kill', try_kill, ('sweep',))] * sweeps
    each = [stage for stage in shop.stages if stage != 'sweep']
    jobs += [('stop', try_kill, (stage, how)) for stage in shop.stages for how in ('Ctrl-C twice', 'SIGTERM')]
    jobs += [('disk', try_full_disk, (stage,)) for stage in shop.stages for _ in range(3)] + [('disk', try_file_limit, (stage,)) for stage in each]
    jobs += [('readonly', try_read_only, (stage, state)) for stage in shop.stages for state in ('before', 'done')]
    jobs += [('readonly', try_read_only, (stage, 'done', True)) for stage in ('train', 'score') if stage in shop.stages]
    jobs += [('clock', try_clock, (stage,)) for stage in each]
    jobs += [('worker', try_worker, (stage,)) for stage in ['retrain_in_processes'] * 2 + ['retrain_by_default', 'sweep'] if stage.split('_')[0] in shop.stages]
    jobs += [('damage', try_damage, (target, damage)) for target in TARGETS if TARGETS[target][1] in shop.stages for damage in DAMAGES]
    return jobs

def clear(shop):
    for name in ('trial', 'disk'): shutil.rmtree(shop.folder/name, ignore_errors=True)

def attempt(shop, function, *arguments):
    "One trial in a clean folder: a row of the table, or None where it cannot be tried here."
    clear(shop)
    return function(shop, *arguments)

def harm(out='_runs/faults', rounds=30, only=None, like='', stages=('decode', 'train', 'score', 'pairs', 'retrain', 'sweep')):
    "Try every fault; write and return a table with a row per trial."
    out = project_path(out)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder)/'shop', stages)
        jobs = [job for job in plan(shop, rounds) if only in (None, job[0]) and like in ' '.join(map(str, job[2]))]
        if not shop.tmpfs: print('No small disk can be mounted here (that takes root): a limit on the size of files stands in for a full disk, '
                                 'and read-only folders are not tried.', file=sys.stderr)
        bar = tqdm(jobs, 'faults', unit='fault', disable=False)
        for _, function, arguments in bar:
            rows.append(attempt(shop, function, *arguments))
            rows = [found for found in rows if found]
            table = pd.DataFrame(rows)
            table.drop(columns='trace').to_csv(out/'faults.csv', index=False)
            (out/'faults.json').write_text(json.dumps(rows, indent=1))
            bad = (~table.outcome.isin(FINE)).sum()
            bar.set_postfix_str(f'{len(table) - bad} survived, {bad} not')
    return table

FINE = ('equal', 'clear sentence, then equal')

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=30, help='kill -9 so many times (30)')
    parser.add_argument('--out', default='_runs/faults', help='folder of the table (_runs/faults)')
    parser.add_argument('--only', choices=['kill', 'stop', 'disk', 'readonly', 'clock', 'worker', 'damage'], help='one kind of fault')
    parser.add_argument('--like', default='', help='only trials whose arguments contain this text')
    parser.add_argument('--stages', default='decode,train,score,pairs,retrain,sweep')
    given = parser.parse_args()
    table = harm(given.out, given.rounds, given.only, given.like, tuple(given.stages.split(',')))
    print(table.groupby(['fault', 'outcome']).size().unstack(fill_value=0).to_string())
    for found in table[~table.outcome.isin(FINE)].itertuples():
        print(f'{found.outcome}: {found.fault}, {found.stage}, {found.detail}: {found.later if found.outcome in ("lost", "traceback later") else found.text}')
    print(f'wrote {Path(given.out)/"faults.csv"}')
    return int((~table.outcome.isin(FINE)).any())

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import faults # as its children know it
    sys.exit(faults.main())
