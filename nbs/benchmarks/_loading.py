"""Other ways to load radiographs, compared with the image store; measures of speed and memory.
The page beside this file, loading.ipynb, shows them at work."""
import json, os, subprocess, sys, tarfile, threading, time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from joblib import cpu_count
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from cxr_influence.data.batches import MEAN, STD, Data, batches, normalise
from cxr_influence.data.files import InputError
from cxr_influence.data.labels import FINDINGS
from cxr_influence.data.images import read_image
from cxr_influence.data.store import ImageStore, decode, open_store

# ---- a file for each image, opened when it is needed

class Files(Dataset):
    "Images decoded on demand: `(image, target, row)`."
    def __init__(self, paths, targets:Tensor, read): # `read`: path -> tensor
        self.paths, self.targets, self.read = [str(path) for path in paths], targets, read

    def __len__(self): return len(self.paths)
    def __getitem__(self, row:int): return self.read(self.paths[row]), self.targets[row], row

def changes(size:int) -> list: # transforms of one image
    "Torchvision's transforms that do what `augment` does."
    return [v2.RandomResizedCrop(size, (.81, 1), (1, 1)), v2.RandomHorizontalFlip(),
            v2.RandomRotation(5, v2.InterpolationMode.BILINEAR), v2.ColorJitter(.1, .1)]

def open_colour(path:str) -> Image.Image: return Image.open(path).convert('RGB')

def usual(
    size:int, # side of the square
    augmented:bool=False,
) -> v2.Compose: # path -> float32 (3, size, size)
    "Make the transforms that most repositories have, in their order."
    resize = changes(size) if augmented else [v2.Resize((size, size))]
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([open_colour, *resize, *tensor, v2.Normalize([MEAN] * 3, [STD] * 3)])

def open_grey(path:str) -> Tensor: return decode_image(path, ImageReadMode.GRAY)

def careful(
    size:int|None=None, # side of the square; None: files have it already
) -> v2.Compose: # path -> uint8 (1, size, size)
    "Decode with torchvision, as grey bytes, and resize if need be."
    return v2.Compose([open_grey, *([v2.Resize((size, size))] if size else [])])

def loader(
    data:Dataset,
    workers:int=2,
    passes:int=1, # an epoch is every image so many times
    batch_size:int=64,
): # a function that begins an epoch: `x` (b, 3, size, size), `y` (b, 14) and `i` (b,)
    "Wrap a data set in torch's `DataLoader`, shuffled, with workers that persist over epochs."
    sampler = RandomSampler(data, num_samples=passes * len(data))
    inside = DataLoader(data, batch_size, sampler=sampler, num_workers=workers,
                        persistent_workers=workers > 0,
                        collate_fn=getattr(data, 'collate', None))
    return lambda: map(finish, inside)

def finish(batch:tuple) -> tuple: # bytes become normalised floats
    x, y, i = batch
    return x if x.is_floating_point() else normalise(x.flatten(0, -3)), y, i

# ---- resized once: small files, one array, shards

def write_copies(
    paths:pd.Series, # image -> path
    folder:str|Path,
    size:int, # side of the square
    suffix:str='.png', # or '.jpg', of quality 95
) -> list: # the new paths, in order
    "Write a grey copy of every file; a size larger than the source's enlarges it."
    Path(folder).mkdir(parents=True, exist_ok=True)
    copies = [Path(folder, Path(name).name).with_suffix(suffix) for name in paths.index]
    def write(path, copy): Image.fromarray(read_image(path, size)[0]).save(copy, quality=95)
    with ThreadPoolExecutor(cpu_count()) as pool: list(pool.map(write, paths, copies))
    return copies

class Packed(Dataset):
    "Rows of a store's array: one at a time with random changes, or a batch at once."
    def __init__(self, store:ImageStore, targets:Tensor, change=None): # of (1, size, size)
        self.store, self.targets, self.change = store, targets, change
        if change is None: self.__getitems__, self.collate = self.take, tuple

    def __len__(self): return len(self.store)
    def __getitem__(self, row:int): # one, changed
        image = torch.from_numpy(self.store.pixels[row][None])
        return self.change(image), self.targets[row], row
    def take(self, rows:list): # a batch, as it is
        return torch.from_numpy(self.store.pixels[rows]), self.targets[rows], torch.tensor(rows)

def write_shards(
    contents, # bytes of each image: a file's, or its pixels
    folder:str|Path,
    suffix:str, # 'png', 'jpg', or 'raw' for pixels
    count:int=8, # of shards
) -> list: # their paths
    "Write tar files whose members are named by row."
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [str(Path(folder, f'{suffix}-{shard:03d}.tar')) for shard in range(count)]
    files = [tarfile.open(path, 'w') for path in paths]
    for row, content in enumerate(contents):
        member = tarfile.TarInfo(f'{row:08d}.{suffix}')
        member.size = len(content)
        files[row % count].addfile(member, BytesIO(content))
    for file in files: file.close()
    return paths

class Shard:
    "Decode a sample of a shard: `(image, target, row)`."
    def __init__(self, targets:Tensor, size:int): self.targets, self.size = targets, size
    def __call__(self, sample:dict):
        row = int(sample['__key__'])
        suffix = next(name for name in sample if not name.startswith('__'))
        data = torch.frombuffer(bytearray(sample[suffix]), dtype=torch.uint8)
        if suffix == 'raw': image = data.view(1, self.size, self.size)
        else: image = decode_image(data, ImageReadMode.GRAY)
        return image, self.targets[row], row

def shards(
    paths:list, # as from `write_shards`
    targets:Tensor, # (n, 14)
    size:int,
    workers:int=2,
    passes:int=1,
    batch_size:int=64,
): # a function that begins an epoch, as that of `loader`
    "Read shards through WebDataset, shuffled in a buffer of 1,000. Raises `InputError`."
    try: import webdataset
    except ImportError:
        raise InputError('shards are read by WebDataset: pip install webdataset.') from None
    data = webdataset.WebDataset(paths, shardshuffle=len(paths))
    data = data.repeat(nepochs=passes).shuffle(1000).map(Shard(targets, size))
    data = data.batched(batch_size, collation_fn=default_collate)
    inside = DataLoader(data, None, num_workers=workers, persistent_workers=workers > 0)
    return lambda: map(finish, inside)

# ---- measures

def race(
    ways:dict, # name -> a function that begins an epoch
    rounds:int=3,
) -> pd.DataFrame: # index: the name; `median`, `low` and `high`, images per second
    "Time an epoch of each way, in turn, after one epoch of each that is not counted."
    rates = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, epoch in ways.items():
            start, images = time.perf_counter(), 0
            for x, y, i in epoch(): images += len(i) # a batch stays until the next
            if turn: rates[name].append(images / (time.perf_counter() - start))
    table = pd.DataFrame(rates).agg(['median', 'min', 'max']).T
    return table.set_axis(['median', 'low', 'high'], axis=1)

def megabytes() -> tuple: # resident, private
    "Read this process's memory; on Linux, private is without the pages of mapped files."
    memory = psutil.Process().memory_info()
    return memory.rss / 1e6, (memory.rss - getattr(memory, 'shared', 0)) / 1e6

def watch(
    step, # a function
    **arguments, # of it
) -> dict: # `seconds`, `resident_mb`, `private_mb`, `before_mb` (private), the step's own
    "Call a function and note its peak memory, read a hundred times per second."
    seen, done, start = [megabytes()], threading.Event(), time.perf_counter()
    def look():
        while not done.wait(.01): seen.append(megabytes())
    thread = threading.Thread(target=look)
    thread.start()
    try: result = step(**arguments)
    finally:
        done.set()
        thread.join()
    resident, private = np.max([*seen, megabytes()], axis=0)
    return {**(result or {}), 'seconds': time.perf_counter() - start, 'resident_mb': resident,
            'private_mb': private, 'before_mb': seen[0][1]}

def apart(
    step, # a function of this file
    **arguments, # of it: numbers and texts
) -> dict: # as from `watch`
    "Call a step in a fresh Python (this file as a script). Raises `RuntimeError` if it fails."
    given = json.dumps(arguments, default=str)
    done = subprocess.run([sys.executable, __file__, step.__name__, given],
                          capture_output=True, text=True)
    if done.returncode: raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])

def fill_memory(megabytes:int, seconds:float=.1) -> None:
    "Hold so much memory for a moment: the step whose answer is known."
    held = np.ones(megabytes * 10**6, np.uint8)
    time.sleep(seconds)

# ---- many images: a few files with many names

def many_names(n:int) -> list: return [f'{number:08d}_000.png' for number in range(n)]

def repeat_files(
    paths:list, # of a few files
    folder:str|Path, # on the same disk
    n:int, # names wanted
) -> None:
    "Give files so many names (hard links) that there are n of them."
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(many_names(n)):
        path = Path(folder, name)
        if not path.exists(): os.link(paths[number % len(paths)], path)

def decode_many(folder:str, n:int, size:int, out:str) -> None:
    "Decode the first n names of a folder: a step for `apart`."
    decode(pd.DataFrame(index=pd.Index(many_names(n), name='image')), folder, size, out)

def read_many(out:str, epochs:int=3) -> dict: # `open_ms`; fastest and slowest seconds
    "Open a store and take epochs of batches in random order: a step for `apart`."
    marks = [time.perf_counter()]
    store = open_store(out)
    marks.append(time.perf_counter())
    data = Data(pd.DataFrame(0., index=store.names, columns=list(FINDINGS)), store)
    for epoch in range(epochs):
        for _ in batches(data, np.random.default_rng(epoch).permutation(len(store))): pass
        marks.append(time.perf_counter())
    seconds = np.diff(marks)
    return {'open_ms': 1e3 * seconds[0], 'fastest_seconds': min(seconds[1:]),
            'slowest_seconds': max(seconds[1:])}

if __name__ == '__main__':
    print(json.dumps(watch(globals()[sys.argv[1]], **json.loads(sys.argv[2]))))
