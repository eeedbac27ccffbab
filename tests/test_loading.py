"The race of loaders: every way gives the same batches, the measures are sane, and the page runs from end to end."
import json, os, sys
from pathlib import Path

import pandas as pd
import pytest, torch

from cxr_influence.data.batches import Data, batches
from cxr_influence.data.nih import find_files, find_images, read_nih
from cxr_influence.data.store import decode
from cxr_influence.data.labels import FINDINGS
from cxr_influence.data.files import InputError
from cxr_influence.runs.runs import run

BENCHMARKS = Path(__file__).resolve().parents[1]/'nbs/benchmarks'
sys.path.insert(0, str(BENCHMARKS))
import _loading as loading

pytestmark = pytest.mark.filterwarnings('ignore:The image decoding and encoding') # torchvision's, for torchcodec
SIZE = 32 # half of the phantom's, so that every way has to resize

@pytest.fixture(scope='module')
def made(phantom, tmp_path_factory):
    "Thirty images: their store at half size, their targets, their paths, and the batch expected."
    frame, folder = read_nih(phantom).iloc[:30], tmp_path_factory.mktemp('loading')
    store, paths = decode(frame, phantom, SIZE, folder/'store'), find_images(frame.index, find_files(phantom), phantom)
    x, y, _ = next(batches(Data(frame, store), range(30), 30))
    return folder, store, y, paths, x

def way(name, made, workers):
    folder, store, y, paths, _ = made
    some = dict(workers=workers, batch_size=8)
    if name == 'usual': return loading.loader(loading.Files(paths, y, loading.usual(SIZE)), **some)
    if name == 'careful': return loading.loader(loading.Files(paths, y, loading.careful(SIZE)), **some)
    if name == 'packed': return loading.loader(loading.Packed(store, y), **some)
    if name in ('.png', '.jpg'):
        return loading.loader(loading.Files(loading.write_copies(paths, folder/name[1:], SIZE, name), y, loading.careful()), **some)
    pytest.importorskip('webdataset')
    suffix = name.split()[1]
    contents = [row.tobytes() for row in store.pixels] if suffix == 'raw' else [
        path.read_bytes() for path in loading.write_copies(paths, folder/f'for-{suffix}', SIZE, f'.{suffix}')]
    return loading.shards(loading.write_shards(contents, folder/f'shards-{name}-{workers}', suffix), y, SIZE, **some)

@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('name, far', [('usual', .06), ('careful', .06), ('.png', 0), ('.jpg', .06), ('packed', 0),
                                       ('shards raw', 0), ('shards png', 0), ('shards jpg', .06)])
def test_every_way_gives_the_batches_of_the_store(made, name, far, workers):
    *_, y, _, x = made
    given = list(way(name, made, workers)())
    assert [len(i) for *_, i in given] == [8, 8, 8, 6] or (name.startswith('shards') and workers) # workers end with a part each
    theirs, labels, i = map(torch.cat, zip(*given))
    assert theirs.shape == (30, 3, SIZE, SIZE) and theirs.dtype == torch.float32
    assert torch.equal(i.sort().values, torch.arange(30)) and not torch.equal(i, torch.arange(30)) # each once, shuffled
    assert torch.equal(labels, y[i]) and (theirs - x[i]).abs().mean() <= far
    apart = (theirs[:, None] - x[None]).abs().flatten(2).mean(2) # of every image from every other
    assert torch.equal(apart.argmin(1), i)

@pytest.mark.parametrize('name', ['usual', 'packed', 'shards raw'])
def test_more_passes_give_every_image_so_often(made, name):
    folder, store, y, paths, _ = made
    data = {'usual': loading.Files(paths, y, loading.usual(SIZE)), 'packed': loading.Packed(store, y)}
    if name in data: epoch = loading.loader(data[name], 0, passes=3, batch_size=8)
    else:
        pytest.importorskip('webdataset')
        epoch = loading.shards(loading.write_shards(map(bytes, store.pixels), folder/'passes', 'raw'), y, SIZE, 0, passes=3, batch_size=8)
    for _ in range(2): assert torch.equal(torch.cat([i for *_, i in epoch()]).bincount(), torch.full((30,), 3))

def test_changed_images_differ_and_keep_their_targets(made):
    _, store, y, paths, x = made
    torch.manual_seed(0)
    change = loading.v2.Compose(loading.changes(SIZE))
    for data in [loading.Files(paths, y, loading.usual(SIZE, augmented=True)), loading.Packed(store, y, change)]:
        theirs, labels, i = next(loading.loader(data, 0, batch_size=30)())
        assert torch.equal(labels, y[i]) and theirs.shape == x.shape
        assert ((theirs - x[i]).abs().flatten(1).mean(1) > .01).all() and abs(theirs.mean() - x.mean()) < .3

def test_without_webdataset_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'webdataset', None)
    with pytest.raises(InputError, match='pip install webdataset'): loading.shards([], torch.zeros(0, 14), SIZE)

def test_a_race_counts_images_and_leaves_the_first_epoch_out():
    epochs = []
    table = loading.race({'ours': lambda: epochs.append(0) or iter([(None, None, range(5)), (None, None, range(3))])}, rounds=2)
    assert len(epochs) == 3 and list(table.columns) == ['median', 'low', 'high']
    assert 0 < table.low['ours'] <= table['median']['ours'] <= table.high['ours']

@pytest.mark.long
def test_a_step_apart_tells_time_and_memory(tmp_path):
    facts = loading.apart(loading.fill_memory, megabytes=200, seconds=.2)
    assert facts['seconds'] >= .2 and facts['before_mb'] + 190 < facts['private_mb'] < facts['before_mb'] + 260
    assert facts['private_mb'] <= facts['resident_mb']
    with pytest.raises(RuntimeError, match='No image store'): loading.apart(loading.read_many, out=tmp_path)

def test_many_names_make_a_store_of_few_files(made, tmp_path):
    *_, paths, _ = made
    few = loading.write_copies(paths[:4], tmp_path/'few', SIZE)
    loading.repeat_files(few, tmp_path/'many', 10)
    loading.decode_many(tmp_path/'many', 10, SIZE, tmp_path/'store')
    pixels = loading.open_store(tmp_path/'store').pixels
    assert len(pixels) == 10 and all((pixels[row] == pixels[row % 4]).all() for row in range(10))
    assert loading.read_many(tmp_path/'store').keys() == {'open_ms', 'fastest_seconds', 'slowest_seconds'}

@pytest.mark.long
def test_the_page_runs_and_leaves_its_tables(phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get('PYTHONPATH')])))
    folder = run(BENCHMARKS/'loading.ipynb', name='tiny', data=str(phantom), sources=20, source_size=128, image_size=SIZE, batch_size=8,
                 passes=1, rounds=1, sizes=[20, 40])
    row, grown = pd.read_csv(folder/'row.csv').iloc[0], pd.read_csv(folder/'growth.csv', index_col='images')
    ways = pd.read_csv(folder/'race.csv', index_col='way')
    assert row.images == 20 and row.times_the_usual > 0 and row.best_other in ways.index
    assert {'PIL, 128 px', 'torchvision, small PNG', 'memory map, no workers', 'the store'} <= set(ways.index)
    assert list(grown.index) == [20, 40] and (grown.decode_private_mb > 50).all() and (folder/'growth.png').stat().st_size > 5000
    assert not (folder/'files').exists() and json.loads((folder/'run.json').read_text())['status'] == 'complete'
    cells = json.loads((folder/'notebook.ipynb').read_text())['cells']
    outputs = [output for cell in cells for output in cell.get('outputs', [])]
    for output in outputs: output.get('data', {}).pop('image/png', None) # a picture's letters may spell any word
    text = ''.join(cell['source'] if isinstance(cell['source'], str) else ''.join(cell['source']) for cell in cells) + json.dumps(outputs)
    assert [name for name in FINDINGS if name in text] == [] # no label, and so no image, is told
