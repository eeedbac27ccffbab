"""Plain training loops to compare with, images per second, and what a batch keeps in memory.
The page beside this file, training_speed.ipynb, shows them at work."""
import time
from itertools import islice

import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from cxr_influence.data.batches import MEAN, STD, Data, batches
from cxr_influence.data.labels import FINDINGS
from cxr_influence.training.checkpoints import Recipe
from cxr_influence.training.distributed import Processes
from cxr_influence.training.losses import FocalLoss
from cxr_influence.training.loop import _run_settings, _Training
from cxr_influence.training.networks import make_model

class FileDataset(Dataset):
    "Radiographs from their files, one at a time, changed at random."
    def __init__(self, paths, targets, image_size:int):
        self.paths, self.targets = list(paths), targets
        self.change = v2.Compose([
            v2.Resize((image_size, image_size)), v2.RandomAffine(5, (.05, .05), (1, 1.1)),
            v2.RandomHorizontalFlip(), v2.ColorJitter(.1, .1), v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize([MEAN], [STD])])

    def __len__(self): return len(self.paths)
    def __getitem__(self, i):
        image = self.change(Image.open(self.paths[i]).convert('L'))
        return image.expand(3, -1, -1), self.targets[i]

def plain_steps(
    frame:pd.DataFrame,
    paths, # (n,) of the frame's images
    image_size:int,
    backbone:str,
    batch_size:int,
    device:torch.device,
): # yields the loss of each step
    "Train as a tutorial would: PIL, single precision, torch's default memory layout."
    targets = torch.tensor(frame[list(FINDINGS)].to_numpy('float32'))
    loader = DataLoader(FileDataset(paths, targets, image_size), batch_size, shuffle=True)
    model, loss = make_model(backbone).to(device).train(), FocalLoss().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    for x, y in loader:
        value = loss(model(x.to(device)), y.to(device)).sum(1).mean()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield value.item()

def new_training(
    data:Data,
    backbone:str,
    batch_size:int,
    processes:Processes,
    precision:str='no', # or `bf16`, `fp16`
    compile:bool=False,
) -> _Training: # that keeps nothing
    "Set up `fit`'s own training on all of the images, to be measured."
    recipe = Recipe(backbone, loss=FocalLoss(), epochs=1, batch_size=batch_size,
                    learning_rate=1e-4, warmup=0., mixed_precision=precision)
    everything = data.with_frame(data.frame.assign(split='train'))
    run = _run_settings(everything, recipe, 0, processes.device)
    return _Training(everything, run, processes, compile=compile)

def our_steps(training:_Training): # yields the loss of each step
    "Train as `fit` does."
    size, device = training.run['batch_size'], training.processes.device
    for x, y, _ in batches(training.data, training.rows, size, device, torch.Generator()):
        yield training._take_step(x, y, len(x)).item() / len(x)

def tuned_step(
    x:torch.Tensor, # (b, 3, size, size)
    y:torch.Tensor, # (b, 14)
    backbone:str,
    bf16:bool=False,
    compile:bool=False,
): # a function that takes a step on this batch
    "Set up a step as a good user of plain PyTorch writes it: channels last, AdamW at once."
    model, loss = make_model(backbone).to(x.device).train(), FocalLoss().to(x.device)
    model.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, foreach=True)
    if compile: model.compile()
    def step():
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16): logits = model(x)
        value = loss(logits.float(), y).sum(1).mean()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.item()
    return step

def steps_a_second(
    backbone:str,
    batch, # (x, y) of one network
    count:int, # steps measured, after one to warm up
    threads:int,
) -> float:
    "Measure `tuned_step` in this process, with so many threads."
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try: return images_per_second(again(tuned_step(*batch, backbone)), 1, count)
    finally: torch.set_num_threads(before)

def ensemble_steps(
    backbone:str,
    x:torch.Tensor, # (k, b, 3, size, size): a batch of each network
    y:torch.Tensor, # (k, b, 14)
): # a function that takes a step of all networks
    """Set up steps of k networks as one `vmap` (model ensembles of `torch.func`). Their BatchNorm
    keeps no running statistics, which `vmap` cannot write to."""
    models, loss = [make_model(backbone, seed=k).train() for k in range(len(x))], FocalLoss()
    for layer in (part for model in models for part in model.modules()):
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    weights, _ = stack_module_state(models)
    optimizer = torch.optim.AdamW(weights.values(), 1e-4, foreach=True)
    def value(weights, x, y):
        return loss(functional_call(models[0], weights, (x,)), y).sum(1).mean()
    def step():
        vmap(value)(weights, x, y).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return step

def images_per_second(
    steps, # a generator that takes one step at a time
    batch_size:int,
    count:int, # steps measured, after one to warm up
) -> float:
    "Time some steps."
    next(steps)
    start = time.perf_counter()
    for _ in islice(steps, count): pass
    return batch_size * count / (time.perf_counter() - start)

def again(call): # yields without end
    "Repeat a call, once per step, as `compare_speed` measures it."
    while True: yield call()

def repeated(calls:dict) -> dict: # name -> a function that makes a generator of calls
    return {name: lambda call=call: again(call) for name, call in calls.items()}

def compare_speed(
    ways:dict, # name -> a function that makes a generator of steps; the first is the baseline
    batch_size:int,
    count:int=3,
    rounds:int=3,
) -> pd.DataFrame: # one row per way: `images per second` (median), `lowest`, `highest`, ratio
    "Measure ways in turn, several rounds; the ratio to the first is taken within a round."
    rates = pd.DataFrame([
        {name: images_per_second(way(), batch_size, count) for name, way in ways.items()}
        for _ in tqdm(range(rounds), 'rounds', leave=False)])
    first = rates.columns[0]
    ratio = rates.div(rates[first], axis=0).median()
    return pd.DataFrame({'images per second': rates.median(), 'lowest': rates.min(),
                         'highest': rates.max(), f'times {first}': ratio})

def kept_bytes(
    model:nn.Module,
    x:torch.Tensor, # (b, 3, size, size)
) -> int:
    "Bytes kept for the backward pass, each storage once, without the weights."
    weights = [*model.parameters(), *model.buffers()]
    kept, own = {}, {p.untyped_storage().data_ptr() for p in weights}
    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor # alive, so that no address is reused
        return tensor
    def same(tensor): return tensor
    with torch.autograd.graph.saved_tensors_hooks(note, same): result = model.train()(x)
    del result
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)

def batch_costs(
    data:Data,
    backbone:str,
    sizes, # of batches
    processes:Processes,
    count:int=3, # steps measured
) -> pd.DataFrame: # index `batch size`: `ms per image`, `GB kept`
    "Measure what batches of several sizes cost."
    rows = []
    for size in tqdm(list(sizes), 'batch sizes', leave=False):
        training = new_training(data, backbone, size, processes)
        x, _, _ = next(batches(data, training.rows, size, processes.device))
        kept = kept_bytes(training.model, x.contiguous(memory_format=torch.channels_last))
        rate = images_per_second(our_steps(training), size, count)
        rows.append((size, 1000 / rate, kept / 1e9))
    table = pd.DataFrame(rows, columns=['batch size', 'ms per image', 'GB kept'])
    return table.set_index('batch size')
