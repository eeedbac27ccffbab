"""Measure a machine's accelerator: correctness, precisions, speed, memory, limits. `make gpu` runs it.
The page beside this file, accelerators.ipynb, shows what it writes to the folder machines."""
import argparse, datetime, json, os, platform, re, shlex, shutil, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from _scoring_speed import peak_memory, scoring_ways, usual_ways
from _training_speed import images_per_second, new_training, our_steps
from cxr_influence.attribution.densenet import fastest
from cxr_influence.attribution.scoring import influence
from cxr_influence.attribution.tracin import _check_once, _full_precision, gradient, image_losses
from cxr_influence.data.batches import Data, batches
from cxr_influence.data.files import _write_whole
from cxr_influence.data.labels import FINDINGS
from cxr_influence.data.store import decode
from cxr_influence.data.tables import read_dataset
from cxr_influence.phantom.dataset import make_phantom
from cxr_influence.training.checkpoints import Recipe
from cxr_influence.training.distributed import join_processes
from cxr_influence.training.losses import FocalLoss
from cxr_influence.training.networks import best_device, make_model
from cxr_influence.training.resume import fit

ROOT = Path(__file__).resolve().parents[2]
BACKBONE = 'densenet121'
NIH_TRAINING, CHECKPOINTS = 86_524, 5 # images of NIH's own training list; of a study
def validation_images(n:int) -> int: return max(4, n // 40) # target images among n of a whole job

# ---- what the machine is and can do

def wait(device) -> None:
    "Wait until a device has done what it was given."
    module = getattr(torch, device.type, None)
    if device.type != 'cpu' and hasattr(module, 'synchronize'): module.synchronize()

def seconds_of_each(calls:dict, device, least:float=.3, rounds:int=5, long:float=5) -> dict: # name -> seconds a call, the median of its rounds
    "Time calls in turn, so that a busy moment meets all; short ones so often that a round takes a while, long ones once."
    def taken(name, n=1):
        start = time.perf_counter()
        for _ in range(n): calls[name]()
        wait(device)
        return (time.perf_counter() - start) / n
    found = {name: taken(name) for name in calls} # warms up
    short = {name: max(1, round(least / max(taken(name), 1e-9))) for name in calls if found[name] < long}
    each = [{name: taken(name, n) for name, n in short.items()} for _ in range(rounds)]
    return found | {name: statistics.median(one[name] for one in each) for name in short}

def seconds_of(call, device) -> float: return seconds_of_each({'it': call}, device)['it']

def processor_name() -> str:
    "Name the processor, as Linux does where it can be read."
    try: lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError: lines = []
    named = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return named[0] if named else platform.processor() or platform.machine()

def describe_machine(device) -> dict:
    "Name the device and the versions."
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else processor_name()
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == 'cuda' else None
    return {'device': name, 'type': device.type, 'memory_bytes': memory, 'processor_cores': os.cpu_count(), 'threads': torch.get_num_threads(),
            'torch': torch.__version__, 'cuda': torch.version.cuda, 'python': platform.python_version(),
            'date': datetime.date.today().isoformat()}

def measure_limits(device, n:int) -> dict: # FLOP/s by precision, bytes/s
    "Measure how fast the device multiplies matrices, and how fast it copies."
    found = {}
    for name, kind, fast in [('float32', torch.float32, False), ('TF32', torch.float32, True), ('bf16', torch.bfloat16, False)]:
        if fast and device.type != 'cuda': continue
        a, b = (torch.randn(n, n, device=device).to(kind) for _ in range(2))
        with precision(fast): found[f'{name} FLOP/s'] = 2 * n**3 / seconds_of(lambda: a @ b, device)
    block = torch.zeros(4 * n * n, device=device)
    other = torch.empty_like(block)
    found['bytes/s'] = 2 * block.nbytes / seconds_of(lambda: other.copy_(block), device)
    return found

class precision: # `with precision(fast)`: TF32 or float32 in matrix products and convolutions
    def __init__(self, fast:bool): self.fast = fast
    def __enter__(self):
        self.before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.fast
    def __exit__(self, *_): torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.before

# ---- one batch

class Work(TorchDispatchMode):
    "Count operations as PyTorch does, and the bytes that are read and written, as if each went to memory."
    def __init__(self):
        super().__init__()
        self.flop = self.bytes = 0
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        count = flop_registry.get(function._overloadpacket)
        if count: self.flop += count(*args, **kwargs, out_val=out)
        if not function.is_view:
            self.bytes += sum(t.nbytes for t in tree_leaves([args, kwargs, out]) if isinstance(t, torch.Tensor))
        return out

def batch_ways(model, loss, x, y) -> dict: # name -> a call
    "Set up inference, a gradient, and each way to score a batch."
    validation = torch.randn(8, *x.shape[1:], device=x.device), torch.zeros(8, y.shape[1], device=y.device)
    with _check_once():
        ways = usual_ways(model, loss, (x, y)) | scoring_ways(model, loss, (x, y), validation, fastest(model))
    del ways['one backward pass an image']
    return {name: lambda steps=way(): next(steps) for name, way in ways.items()}

def measure_ways(device, size:int, counts) -> list: # rows
    "Measure every way at several batch sizes: speed, memory, work and traffic."
    rows, model = [], make_model(BACKBONE).to(device).eval()
    loss = FocalLoss().to(device)
    for count in counts:
        x, y = torch.randn(count, 3, size, size, device=device), (torch.rand(count, 14, device=device) < .1).float()
        try:
            with _full_precision(), _check_once():
                ways = batch_ways(model, loss, x, y)
                taken = seconds_of_each(ways, device)
                for name, call in ways.items():
                    seconds = taken[name]
                    row = {'way': name, 'image_size': size, 'batch_size': count, 'images_per_second': count / seconds,
                           'peak_memory_bytes': peak_memory(call, device)}
                    with Work() as work: call()
                    rows.append(row | {'flop': work.flop, 'bytes': work.bytes, 'seconds': seconds})
        except torch.OutOfMemoryError: break # larger batches do not fit either
    return rows

def compare_precisions(device, x, y) -> list: # rows
    "Compare scores in float32 and TF32 with float64: relative error and rank correlation."
    torch.manual_seed(0)
    model = make_model(BACKBONE).eval()
    def scores(kind, fast=False):
        net, loss = model.to(device, kind), FocalLoss().to(device, kind)
        images, labels = x.to(device, kind), y.to(device, kind)
        with precision(fast):
            v = gradient(net, image_losses(net, loss, images, labels).mean())
            directional, watch = fastest(net)
            return {'one direction': directional(net, loss, images, labels, v)[0].double().cpu()}
    exact, rows = scores(torch.float64), []
    for name, kind, fast in [('float32', torch.float32, False), ('TF32', torch.float32, True)]:
        if fast and device.type != 'cuda': continue
        for way, own in scores(kind, fast).items():
            error = (own - exact[way]).abs().max() / exact[way].abs().max()
            rank = pd.Series(own).corr(pd.Series(exact[way]), method='spearman')
            rows.append({'way': way, 'precision': name, 'largest_error': float(error), 'rank_correlation': float(rank)})
    return rows

# ---- a whole job

def many_images(folder:Path, n:int, size:int) -> Data:
    "Write n radiographs, copies of 200 synthetic ones, with a table, and read and decode them."
    root = make_phantom(folder / 'few', n=200, size=size)
    files = sorted((root / 'images').glob('*.png'))
    images = folder / 'images'
    images.mkdir()
    names = [f'{number:07}.png' for number in range(n)]
    for number, name in enumerate(names): shutil.copyfile(files[number % len(files)], images / name)
    labels = pd.DataFrame((torch.rand(n, 14, generator=torch.Generator().manual_seed(0)) < .1).int().numpy(), columns=FINDINGS)
    few = validation_images(n)
    table = labels.assign(file=names, who=range(n), split=['validation'] * few + ['train'] * (n - few - 1) + ['test'])
    table.to_csv(folder / 'table.csv', index=False)
    frame = read_dataset(folder / 'table.csv', images, image='file', patient='who', split='split', findings={name: name for name in FINDINGS})
    return Data(frame, decode(frame, images, size, folder / 'store'))

def measure_job(folder:Path, device, n:int, size:int, epochs:int=1) -> dict:
    "Decode, train and score n images from files, and scale to NIH's training images."
    start = time.perf_counter()
    data, found = many_images(folder, n, size), {'images': n, 'image_size': size}
    found['decoding: images/s, with writing them'] = n / (time.perf_counter() - start)
    rows, start = data.rows('train'), time.perf_counter()
    for x, _, _ in batches(data, rows, 256, device): pass
    wait(device)
    found['store to device: images/s'] = len(rows) / (time.perf_counter() - start)
    batch = 64 if device.type != 'cpu' else 16
    for name in ['no', 'bf16']:
        training = new_training(data, BACKBONE, batch, join_processes(device), name)
        found[f'training, {name}: images/s'] = images_per_second(our_steps(training), batch, 20 if device.type != 'cpu' else 2)
        del training
    fit(data, folder / 'run', Recipe(BACKBONE, loss=FocalLoss(), epochs=epochs, batch_size=batch), device=device)
    for per_finding, name in [(False, 'total only'), (True, 'per finding')]:
        start = time.perf_counter()
        influence(folder / 'run', data, folder / f'{per_finding}.csv', per_finding=per_finding, device=device)
        seconds = time.perf_counter() - start
        found[f'scoring, {name}: images/s'] = len(rows) * epochs / seconds
        found[f'scoring, {name}: minutes for {NIH_TRAINING:,} x {CHECKPOINTS}'] = seconds / len(rows) / epochs * NIH_TRAINING * CHECKPOINTS / 60
    return found

def run_tests() -> dict:
    "Run the tests that use the accelerator."
    command = [sys.executable, '-m', 'pytest', '-q', '-rfEs', '-p', 'no:cacheprovider', 'tests/test_device.py']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {'passed': done.returncode == 0, 'last line': done.stdout.strip().splitlines()[-1], 'output': '' if not done.returncode else done.stdout[-4000:]}

def measure(device, n:int, size:int, counts, matrix:int, out:Path) -> dict:
    "Measure all; what is measured is written after each part, so that a stop loses nothing."
    given = shlex.join(sys.argv[1:])
    found = {'machine': describe_machine(device), 'command': f'make gpu ARGS="{given}"' if given else 'make gpu'}
    def note(part, call):
        start = time.perf_counter()
        try: found[part] = call()
        except Exception as error: found[part] = {'error': f'{type(error).__name__}: {error}'}
        print(f'{part}: {time.perf_counter() - start:.0f} s', flush=True)
        _write_whole(out, json.dumps(found, indent=1))
    with tempfile.TemporaryDirectory() as folder:
        some = torch.rand(48, 3, size, size, generator=torch.Generator().manual_seed(0))
        labels = (torch.rand(48, 14, generator=torch.Generator().manual_seed(1)) < .1).float()
        note('limits', lambda: measure_limits(device, matrix))
        note('precisions', lambda: compare_precisions(device, some, labels))
        note('tests', run_tests)
        note('job', lambda: measure_job(Path(folder), device, n, size))
        note('ways', lambda: measure_ways(device, size, counts))
    return found

def main() -> int:
    ask = argparse.ArgumentParser(description='Measure the accelerator of this machine, in about ten minutes.')
    ask.add_argument('--device', help='such as cpu, to try the command; default: the accelerator')
    ask.add_argument('--images', type=int, default=20_000, help='images of the whole job')
    ask.add_argument('--size', type=int, default=224, help='their side, in pixels')
    ask.add_argument('--batches', type=int, nargs='+', default=[32, 64, 128, 256, 512])
    ask.add_argument('--matrix', type=int, default=8192, help='side of the matrices multiplied')
    ask.add_argument('--out', type=Path, help='default: machines/, beside this file, under the name of the device')
    asked = ask.parse_args()
    device = torch.device(asked.device) if asked.device else best_device()
    if device.type == 'cpu' and not asked.device:
        print('There is no accelerator that PyTorch can use: nothing is measured. '
              'To try the command: make gpu ARGS="--device cpu --images 700 --size 64 --batches 4 8 --matrix 2048"')
        return 1
    if asked.images < 200: ask.error(f'--images is {asked.images}: give 200 or more')
    name = re.sub(r'[^a-z0-9]+', '-', describe_machine(device)['device'].lower()).strip('-')
    out = asked.out or Path(__file__).with_name('machines') / f'{name}.json'
    found = measure(device, asked.images, asked.size, asked.batches, asked.matrix, out)
    print(json.dumps({part: found[part] for part in ['machine', 'limits', 'precisions', 'tests', 'job']}, indent=1))
    return int(any('error' in part for part in found.values()) or not found['tests'].get('passed'))

if __name__ == '__main__': sys.exit(main())
