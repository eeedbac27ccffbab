"Duplicates: known copies are found, unrelated images are not, and the block size changes nothing."
import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_influence.data.batches import Data
from cxr_influence.data.duplicates import (_describe_pairs, find_duplicates, _near_pairs,
    _perceptual_hashes, _pixel_difference, show_duplicates)
from cxr_influence.data.files import InputError
from cxr_influence.data.nih import read_nih
from cxr_influence.data.store import decode
from cxr_influence.phantom.dataset import make_phantom, read_truth

class Store(SimpleNamespace):
    "Pixels in memory, read as a store's."
    def __getitem__(self, rows): return self.pixels[rows]

def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG', quality=40)
    return np.asarray(Image.open(file))

CHANGES = {'as it is': lambda a: a, 'brighter': lambda a: np.clip(a * 1. + 20, 0, 255).astype('uint8'),
           'less contrast': lambda a: (.7 * a + 30).astype('uint8'), 'as JPEG': jpeg,
           'moved': lambda a: np.pad(a, ((1, 0), (0, 1)), mode='edge')[:-1, 1:],
           'resized': lambda a: np.asarray(Image.fromarray(a).resize((96, 96)).resize(a.shape[::-1]))}

@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    "150 phantoms of whom none is a copy."
    root = make_phantom(tmp_path_factory.mktemp('audit')/'phantom', n=150, seed=11, duplicates=0)
    frame = read_nih(root)
    return Data(frame, decode(frame, root, 128, root.parent/'store'))

def plant(clean, change, rows, split='test'):
    "Add changed copies of the rows, as test images of patients of their own."
    frame, store = clean.frame, clean.store
    copies = frame.iloc[rows].assign(patient=range(10**6, 10**6 + len(rows)), split=split)
    copies.index = [f'copy{row:04d}.png' for row in rows]
    both = pd.concat([frame, copies])
    both.index.name = 'image'
    pixels = np.concatenate([store.pixels, np.stack([change(store.pixels[row]) for row in rows])])
    return Data(both, Store(pixels=pixels, names=both.index, size=128))

@pytest.mark.parametrize('change', CHANGES)
def test_a_planted_copy_is_found_and_comes_first(clean, change):
    frame = clean.frame
    rows = np.flatnonzero(frame.split == 'train')[5:85:8]
    found = find_duplicates(plant(clean, CHANGES[change], rows))
    crossing = found[found.split != found.other_split]
    pairs = set(zip(crossing.image, crossing.other))
    planted = {(frame.index[row], f'copy{row:04d}.png') for row in rows}
    more = [frame.patient[image] == frame.patient.iloc[int(other[4:8])] for image, other in pairs - planted]
    assert planted <= pairs and all(more) and len(more) <= 1 # a follow-up of the same patient may look like the copy
    assert (found.index[:len(pairs)] == crossing.index).all() and not crossing.same_patient.any()
    assert crossing.difference.is_monotonic_increasing
    own = crossing[[pair in planted for pair in zip(crossing.image, crossing.other)]]
    assert own.same_labels.all() and set(own.kind) == ({'identical'} if change == 'as it is' else {'near'})

def test_strangers_are_not_reported(clean):
    found = find_duplicates(clean)
    assert found.same_patient.all() and len(found) <= 2
    candidates = find_duplicates(clean, distance=60, difference=1)
    assert not candidates.same_patient.all(), 'there were strangers to refuse'

def test_the_order_of_alarm(clean):
    frame = clean.frame
    row, = np.flatnonzero(frame.split == 'train')[[3]]
    copies = {split: plant(clean, CHANGES['as it is'], [row], split) for split in ('test', 'train')}
    both = pd.concat([copies['test'].frame, copies['train'].frame.iloc[-1:].rename(index=lambda name: 'a' + name)])
    pixels = np.concatenate([copies['test'].store.pixels, copies['train'].store.pixels[-1:]])
    follow_up = both.iloc[[row]].rename(index=lambda name: 'follow_up.png').assign(Mass=1 - both.Mass.iloc[row])
    both, pixels = pd.concat([both, follow_up]), np.concatenate([pixels, pixels[[row]]])
    found = find_duplicates(Data(both, Store(pixels=pixels, names=both.index, size=128)))
    kinds = list(zip(found.split != found.other_split, found.same_patient))
    assert kinds[:6] == [(True, False)]*2 + [(True, True)] + [(False, False)]*2 + [(False, True)]
    assert (found.kind[:6] == 'identical').all()
    assert found.same_labels[5] == False and found.other[5] == 'follow_up.png'

def test_the_audit_finds_the_phantoms_copies(phantom, data):
    truth = read_truth(phantom).duplicate_of
    planted = {frozenset(pair) for pair in truth[truth != ''].items()}
    found = find_duplicates(data)
    assert planted and planted <= {frozenset(pair) for pair in zip(found.image, found.other)}

@pytest.mark.parametrize('block', [1, 7, 64, 90, 2048])
def test_blocks_of_any_size_give_every_pair(block):
    rng = np.random.default_rng()
    hashes = rng.integers(0, 256, (rng.integers(60, 91), rng.integers(1, 5)), dtype=np.uint8)
    hashes[5] = hashes[17]
    distance = int(rng.integers(0, 2 * hashes.shape[1] + 1))
    bits = [''.join(f'{byte:08b}' for byte in row) for row in hashes]
    slow = [(i, j, d) for i in range(len(bits)) for j in range(i + 1, len(bits))
            for d in [sum(x != y for x, y in zip(bits[i], bits[j]))] if d <= distance]
    pairs = _near_pairs(hashes, distance, block)
    assert [5, 17, 0] in pairs.tolist() and pairs.tolist() == [list(pair) for pair in slow]

@pytest.mark.parametrize('n', [0, 1])
def test_no_pair_in_less_than_two_images(n): assert _near_pairs(np.zeros((n, 32), np.uint8), 40).shape == (0, 3)

def test_an_odd_hash_size_is_padded_alike(data):
    codes = _perceptual_hashes(data.store, 9)
    assert codes.shape == (len(data), 11) and not (np.unpackbits(codes, axis=1)[:, 81:]).any()

def test_images_of_one_colour_are_compared_without_a_fuss():
    black, white = np.zeros((64, 64), 'uint8'), np.full((64, 64), 255, 'uint8')
    noise = np.random.default_rng().integers(0, 256, (64, 64), 'uint8')
    assert _pixel_difference(black, white) < 1e-6 and _pixel_difference(noise, noise) < 1e-3
    assert _pixel_difference(black, noise) > .9

def test_a_store_of_other_images_is_refused(clean):
    frame = clean.frame
    store = SimpleNamespace(names=clean.store.names, folder='store')
    for other in (frame[::-1], frame[:-1], frame.rename(index={frame.index[0]: 'x.png'})):
        with pytest.raises(InputError, match='not decoded from this frame'): find_duplicates(Data(other, store))

def test_nothing_found_is_an_empty_table_with_its_columns(clean):
    frame, store = clean.frame, clean.store
    few = Store(pixels=store.pixels[[0, 60]], names=frame.index[[0, 60]], size=128)
    found = find_duplicates(Data(frame.iloc[[0, 60]], few))
    assert not len(found) and {'image', 'other', 'kind', 'difference', 'same_patient'} <= set(found.columns)

def test_the_identical_pair_of_nih_is_found(real, tmp_path):
    frame = read_nih(real)
    row = frame.index.get_loc('00002658_001.png')
    some = frame.iloc[row - 150:row + 150]
    found = find_duplicates(Data(some, decode(some, real, 112, tmp_path/'store')))
    assert found[['image', 'other', 'kind']].to_numpy().tolist() == [['00002658_001.png', '00002658_002.png', 'identical']]
    assert found.same_patient.all() and (found.difference < 1e-3).all()

def test_an_unknown_label_agrees_with_an_unknown_one_only(data):
    frame = data.frame.iloc[[0, 0, 0]].assign(Mass=[np.nan, np.nan, 0])
    assert _describe_pairs(frame, np.array([[0, 1], [0, 2]])).same_labels.tolist() == [True, False]

def test_the_pairs_are_shown(data):
    found = find_duplicates(data)
    assert len(show_duplicates(data, found[:2]).axes) == 6
