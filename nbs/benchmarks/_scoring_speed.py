"""Ways to score training images, ours and others', set up to be timed, and their peak memory.
The page beside this file, scoring_speed.ipynb, shows them at work."""
import copy, os, warnings
from itertools import accumulate
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import TensorDataset

from _training_speed import again, repeated
from cxr_influence.attribution.layerwise import (_watch_layers, gradient_scores,
    per_sample_gradients, self_influence)
from cxr_influence.attribution.tracin import (directional_scores, gradient, image_losses,
    plain_scores)

GENERAL = directional_scores, _watch_layers # for any network; `fastest(model)` for DenseNet

# ---- one batch

def scoring_ways(
    model:nn.Module, # in evaluation mode
    loss,
    batch, # (x, y) images to score
    validation, # (x, y) target images
    passes=GENERAL, # as from `fastest`
    last:str='classifier', # the last layer
) -> dict: # name -> a function that makes a generator of passes over the batch
    "Set up every way to score a batch; the validation gradients are made beforehand."
    directional, watch = passes
    whole = gradient(model, image_losses(model, loss, *validation).mean())
    losses = loss(model(validation[0]), validation[1]).mean(0) # of each finding
    parts = [gradient(model, part) for part in losses]
    findings = {name: torch.stack([whole[name], *[part[name] for part in parts]])
                for name in whole}
    images, _ = per_sample_gradients(model, loss, *validation, watch=watch)
    head = {name: own for name, own in images.items() if name.startswith(f'{last}.')}
    def score(vectors): return lambda: gradient_scores(model, loss, *batch, vectors, watch)
    pairs = f'pairs with {len(validation[0])} images'
    return repeated({
        'one direction': lambda: directional(model, loss, *batch, whole),
        f'{len(parts) + 1} directions and self-influence': score(findings),
        'self-influence': lambda: self_influence(model, loss, *batch, watch=watch),
        pairs: score(images), f'{pairs}, last layer': score(head)})

def usual_ways(
    model:nn.Module, # in evaluation mode
    loss,
    batch, # (x, y) images
) -> dict: # name -> a function that makes a generator of passes over the batch
    "Set up the baselines: inference, a training step, and TracIn's definition."
    whole = gradient(model, image_losses(model, loss, *batch).mean())
    return repeated({
        'inference': torch.no_grad()(lambda: model(batch[0])),
        'training step, without the step':
            lambda: gradient(model, image_losses(model, loss, *batch).sum()),
        'one backward pass an image': lambda: plain_scores(model, loss, *batch, whole)})

# ---- whole jobs: from a checkpoint, training and validation images to scores

def our_jobs(
    model:nn.Module, # in evaluation mode
    loss,
    train, # (x, y)
    validation, # (x, y)
    batch_size:int,
    passes=GENERAL, # as from `fastest`
    last:str='classifier',
) -> dict: # name -> a function that gives (n,) or (n, validation) scores
    "Set up whole jobs as this package does them."
    directional, watch = passes
    batches = [*zip(*(part.split(batch_size) for part in train))]
    head = [name for name, _ in model.named_parameters() if name.startswith(f'{last}.')]
    def batched(score): return torch.cat([score(x, y) for x, y in batches])
    def total():
        v = gradient(model, image_losses(model, loss, *validation).mean())
        return batched(lambda x, y: directional(model, loss, x, y, v)[0])
    def pairs(names=None):
        images, _ = per_sample_gradients(model, loss, *validation, names, watch)
        return batched(lambda x, y: gradient_scores(model, loss, x, y, images, watch).products)
    def own(): return batched(lambda x, y: self_influence(model, loss, x, y, watch=watch))
    return {'influence': total, 'pairs': pairs, 'self-influence': own,
            'pairs, last layer': lambda: pairs(head)}

class ReducedLoss(nn.Module):
    "A loss as captum needs it: a module that states how it reduces."
    def __init__(self, loss, reduction:str): # `none`: one number per image; `sum`
        super().__init__()
        self.loss, self.reduction = loss, reduction
    def forward(self, z, y):
        own = self.loss(z, y).sum(1)
        return own if self.reduction == 'none' else own.sum()

def read_weights(model:nn.Module, path) -> float: # the learning rate by which captum multiplies
    "Read a checkpoint as captum asks for it."
    model.load_state_dict(torch.load(path, weights_only=True))
    return 1.

def captum_jobs(
    model:nn.Module, # in evaluation mode
    loss,
    train, # (x, y)
    validation, # (x, y)
    batch_size:int,
    folder:str|Path, # for the checkpoint that captum reads
    last:str='classifier',
) -> dict: # the same names, captum's scores
    "Set up the same jobs as captum does them."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # of its progress bar
        from captum.influence import TracInCP, TracInCPFast
    path = Path(folder) / 'captum.pt'
    torch.save(model.state_dict(), path)
    given = TensorDataset(*train), [path], read_weights
    full = TracInCP(model, *given, loss_fn=ReducedLoss(loss, 'none'), batch_size=batch_size)
    fast = TracInCPFast(model, model.get_submodule(last), *given,
                        loss_fn=ReducedLoss(loss, 'sum'), batch_size=batch_size)
    count = len(validation[0])
    return {
        'influence': lambda: full.influence(validation, aggregate=True)[0].detach() / count,
        'pairs': lambda: full.influence(validation).detach().T,
        'self-influence': lambda: full.self_influence(outer_loop_by_checkpoints=True).detach(),
        'pairs, last layer': lambda: fast.influence(validation).detach().T}

def kronfluence_analyzer(model:nn.Module, loss, device:torch.device, folder:str|Path):
    "Wrap model and loss for kronfluence."
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.task import Task
    class Summed(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return loss(model(batch[0]), batch[1]).sum()
        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)
    return Analyzer('speed', prepare_model(copy.deepcopy(model), Summed()), Summed(),
                    cpu=device.type == 'cpu', disable_tqdm=True, log_level=40,
                    output_dir=str(folder))

def kronfluence_jobs(
    model:nn.Module, # in evaluation mode
    loss,
    train, # (x, y)
    validation, # (x, y)
    batch_size:int,
    folder:str|Path, # where it keeps its scores
) -> dict: # the same names, kronfluence's scores, without BatchNorm's parameters
    "Set up the same jobs as kronfluence does them, with the identity for its curvature."
    from kronfluence.arguments import FactorArguments, ScoreArguments
    analyzer = kronfluence_analyzer(model, loss, train[0].device, folder)
    seen, targets = TensorDataset(*train), TensorDataset(*validation)
    fresh = dict(overwrite_output_dir=True)
    analyzer.fit_all_factors('identity', seen, batch_size, **fresh,
                             factor_args=FactorArguments(strategy='identity'))
    def pairs(aggregate=False):
        settings = ScoreArguments(aggregate_query_gradients=aggregate)
        analyzer.compute_pairwise_scores('pairs', 'identity', targets, seen, len(targets),
                                         batch_size, score_args=settings, **fresh)
        return analyzer.load_pairwise_scores('pairs')['all_modules'].T
    def own():
        analyzer.compute_self_scores('self', 'identity', seen, batch_size, **fresh)
        return analyzer.load_self_scores('self')['all_modules']
    return {'influence': lambda: pairs(True)[:, 0] / len(targets), 'pairs': pairs,
            'self-influence': own}

# ---- memory

def peak_memory(
    call,
    device='cpu',
) -> int: # bytes
    "Measure how far a call raises the memory that PyTorch holds, by allocator or profiler."
    if torch.device(device).type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault('KINETO_LOG_LEVEL', '9') # silences the profiler
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen: call()
    events = sorted(seen.events(), key=lambda event: event.time_range.end)
    return max(accumulate((event.self_cpu_memory_usage for event in events), initial=0))
