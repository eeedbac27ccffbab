"One small phantom, one trained run of it, and the real images where they are."
import importlib.util, multiprocessing, os, runpy, signal, sys, zlib
from pathlib import Path

os.environ.setdefault('TQDM_DISABLE', '1') # before tqdm is imported

import pytest, torch

from cxr_influence.data import files
from cxr_influence.data.batches import Data
from cxr_influence.data.files import InputError, _write_whole
from cxr_influence.data.nih import read_nih
from cxr_influence.data.store import decode
from cxr_influence.phantom.dataset import make_phantom
from cxr_influence.training.checkpoints import Recipe
from cxr_influence.training.resume import fit

REAL = Path(os.environ.get('NIH14', Path(__file__).resolve().parents[2]/'shared/nih14-mini'))

def pytest_configure(config):
    config.addinivalue_line('markers', 'long(group): takes ten seconds or more beside others on two cores; in .ci/test.py such tests take turns, a group together')

def pytest_collection_modifyitems(items):
    "Where TURN is `k/n`, run one in n of the tests that take long; which ones, their names decide. Those of a file in CHANGED run, too."
    if not (turn := os.environ.get('TURN')): return
    (mine, turns), changed = map(int, turn.split('/')), os.environ.get('CHANGED', '').splitlines()
    for item in items:
        mark = item.get_closest_marker('long')
        if mark and item.nodeid.partition('::')[0] not in changed and zlib.crc32((mark.args or (item.nodeid,))[0].encode()) % turns != mine:
            item.add_marker(pytest.mark.skip(reason='takes long: its turn comes with another commit, or with `make test ARGS=--all`'))

@pytest.fixture(scope='session')
def phantom(tmp_path_factory): return make_phantom(tmp_path_factory.mktemp('data')/'phantom', n=120, size=64, seed=7)

@pytest.fixture(scope='session')
def data(phantom, tmp_path_factory):
    frame = read_nih(phantom)
    return Data(frame, decode(frame, phantom, 64, tmp_path_factory.mktemp('store')/'store'))

@pytest.fixture(scope='session')
def checkpoints(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')/'checkpoints'
    fit(data, folder, Recipe('densenet_small', epochs=2, batch_size=16), device='cpu')
    return folder

@pytest.fixture(scope='session')
def real():
    if not (REAL/'Data_Entry_2017_v2020.csv').is_file(): pytest.skip(f'no real radiographs in {REAL}')
    return REAL

@pytest.fixture
def fresh(): return torch.Generator().manual_seed(torch.seed() % 2**32)

def refused(*words):
    "Expect one InputError of one line that says all the words."
    class Refused:
        def __enter__(self): return self
        def __exit__(self, kind, error, trace):
            assert kind and issubclass(kind, InputError), f'{kind}: {error}'
            assert all(word in str(error) for word in words) and '\n' not in str(error), str(error)
            return True
    return Refused()

def ci(name):
    "A script of .ci as a module."
    spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().parents[1]/f'.ci/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def rewrite(path, text):
    "Write a file on purpose, with its checksum."
    _write_whole(path, text, checksum=True)

def flip_a_bit(path, rng):
    "Flip a random bit of a file in its place, and return which."
    with open(path, 'r+b') as file:
        place, bit = rng.randrange(os.path.getsize(path)), rng.randrange(8)
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
    return f'{path}: bit {bit} of byte {place}'

def sentence(function, *arguments, **keywords):
    "The InputError that a call must raise, which is one line."
    with pytest.raises(InputError) as caught: function(*arguments, **keywords)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 900
    return str(caught.value)

def hurt(path, how, rng):
    "Flip a bit, cut a file short, or empty it; its times stay as they are."
    stat, content = path.stat(), bytearray(path.read_bytes())
    if how == 'flip': content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes({'flip': content, 'cut': content[:rng.integers(len(content))], 'empty': b''}[how])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

def in_a_new_process():
    "Forget which files were found whole."
    files._WHOLE.clear()

# Processes of their own that begin at once, as forks of one that has imported what else takes each five seconds.
FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(['cxr_influence.training.resume', 'cxr_influence.attribution.pairwise', 'cxr_influence.evidence.subsets',
                              'cxr_influence.evidence.valuations', 'cxr_influence.runs.sweeps'])

def _run_script(words, log):
    os.setsid()
    for number in (1, 2): os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    torch.set_num_threads(1)
    sys.argv = words
    runpy.run_path(words[0], run_name='__main__')

class Script:
    "A script that runs in such a process, a session of its own, on one thread; what it prints goes to a file beside it."
    def __init__(self, *words):
        words = [str(word) for word in words]
        self.log = Path(f'{words[0]}.{os.urandom(4).hex()}.log')
        self.process = FORKS.Process(target=_run_script, args=(words, str(self.log)))
        self.process.start()
        self.pid = self.process.pid
    def poll(self): return self.process.exitcode
    def wait(self, seconds=300):
        self.process.join(seconds)
        assert self.poll() is not None, f'{self.pid} has not ended after {seconds} s'
        return self.poll()
    def send_signal(self, number): os.kill(self.pid, number)
    def kill(self): os.killpg(self.pid, signal.SIGKILL)
    def said(self): return self.log.read_text()

LAUNCH = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes=2', '--num_machines=1',
          '--main_process_port=0', '--mixed_precision=no', '--dynamo_backend=no']
