"The image store: one door for every format, and nothing lost or wrong whenever it is killed, changed, damaged or starved."
import errno, io, json, multiprocessing, os, random, shutil, signal, threading, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from tqdm import tqdm

from conftest import flip_a_bit, sentence
from cxr_influence.training.checkpoints import Recipe
from cxr_influence.data import store as stores
from cxr_influence.data import files
from cxr_influence.data.batches import Data, batches, load_data, _pixels_on, _without_skipped
from cxr_influence.data.nih import fingerprint, read_nih
from cxr_influence.data.images import read_image
from cxr_influence.data.store import decode, open_store, verify_store
from cxr_influence.data.files import InputError
from cxr_influence.training.checkpoints import list_checkpoints
from cxr_influence.training.resume import fit

@pytest.fixture
def copy(phantom, tmp_path): return shutil.copytree(phantom, tmp_path/'copy')

def same(one, other): return one.names.equals(other.names) and np.array_equal(one.pixels, other.pixels) and one.index.crc32.equals(other.index.crc32)

# --- formats ---

GREY = np.linspace(0, 255, 40 * 48).reshape(40, 48).round().astype(np.uint8)

def dicom(path, values, kind='MONOCHROME2', bits=12, **elements):
    file = Dataset()
    file.file_meta = FileMetaDataset(TransferSyntaxUID=ExplicitVRLittleEndian)
    file.SOPClassUID = DigitalXRayImageStorageForPresentation
    file.set_pixel_data(values, kind, bits)
    for name, value in elements.items(): setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path

@pytest.mark.parametrize('mode', ['L', 'LA', 'RGB', 'RGBA', 'P', 'I;16', 'I'])
@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_grey_is_grey_in_every_mode(tmp_path, mode, suffix):
    image = Image.fromarray(GREY.astype(np.uint16) * 257) if mode.startswith('I') else Image.fromarray(GREY).convert(mode)
    if mode == 'I': image = Image.fromarray(GREY.astype(np.int32) * 257)
    if mode in ('LA', 'RGBA'): image.putalpha(Image.fromarray(255 - GREY))
    if (mode, suffix) == ('I', '.png') or (mode, suffix) == ('LA', '.tif') : suffix = '.tif' if mode == 'I' else '.png'
    image.save(tmp_path/f'x{suffix}')
    pixels, width, height = read_image(tmp_path/f'x{suffix}', 48)
    expected = np.asarray(Image.fromarray(GREY).resize((48, 48), Image.Resampling.LANCZOS))
    assert (width, height) == (48, 40) and pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.astype(int), expected, atol=1)

def test_a_jpeg_whatever_its_name(tmp_path):
    Image.fromarray(GREY).convert('RGB').save(tmp_path/'x.jpg', quality=95)
    (tmp_path/'x.jpg').rename(tmp_path/'x.png')
    np.testing.assert_allclose(read_image(tmp_path/'x.png', 40)[0].astype(int), read_image_of(GREY, 40), atol=12)

def read_image_of(grey, size): return np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.LANCZOS)).astype(int)

@pytest.mark.parametrize('bits, dtype', [(8, np.uint8), (10, np.uint16), (12, np.uint16), (16, np.uint16)])
@pytest.mark.parametrize('kind', ['MONOCHROME1', 'MONOCHROME2'])
def test_dicom_of_every_depth(tmp_path, bits, dtype, kind):
    top = 2**bits - 1
    values = (GREY / 255 * top).round().astype(dtype)
    path = dicom(tmp_path/'x.dcm', top - values if kind == 'MONOCHROME1' else values, kind, bits)
    np.testing.assert_allclose(read_image(path, 40)[0].astype(int), read_image_of(GREY, 40), atol=1)

def test_dicom_windows_rescales_and_tables(tmp_path):
    values = (GREY / 255 * 4095).round().astype(np.uint16)
    half = dicom(tmp_path/'w.dcm', values, WindowCenter=1024, WindowWidth=2048)
    expected = np.clip(GREY / 255 * 4095 / 2048, 0, 1) * 255
    np.testing.assert_allclose(read_image(half, 40)[0].astype(int), read_image_of(expected.astype(np.uint8), 40), atol=6)
    signed = dicom(tmp_path/'s.dcm', (values.astype(np.int32) - 2048).astype(np.int16), RescaleIntercept=2048, RescaleSlope=1)
    np.testing.assert_allclose(read_image(signed, 40)[0].astype(int), read_image_of(GREY, 40), atol=1)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], np.arange(4095, -1, -1).astype('<u2').tobytes() # upside down
    table['LUTDescriptor'].VR, table['LUTData'].VR = 'US', 'OW'
    upside_down = dicom(tmp_path/'t.dcm', values, VOILUTSequence=Sequence([table]))
    np.testing.assert_allclose(read_image(upside_down, 40)[0].astype(int), read_image_of(255 - GREY, 40), atol=2)

def test_files_that_are_no_radiographs(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(buffer, 'PNG')
    png = buffer.getvalue()
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path/'float.tif')
    dicom(tmp_path/'colour.dcm', np.stack([GREY] * 3, -1), 'RGB', 8)
    whole = dicom(tmp_path/'whole.dcm', GREY, bits=8).read_bytes()
    bad = {'truncated.png': (png[:len(png) // 2], 'truncated'), 'empty.png': (b'', 'empty'), 'flipped.png': (png[:60] + bytes(40) + png[100:], ''),
           'web.png': (b'\n<!DOCTYPE html><html>', 'web page'), 'noise.png': (os.urandom(300), ''), 'cut.dcm': (whole[:-900], ''),
           'float.tif': (None, 'floating-point'), 'colour.dcm': (None, 'one grey frame'), 'magic.dcm': (bytes(128) + b'DICM', '')}
    for name, (content, word) in bad.items():
        if content is not None: (tmp_path/name).write_bytes(content)
        said = sentence(read_image, tmp_path/name, 32)
        assert name in said and word in said and 'cannot be decoded' in said and 'download it again' in said
    (tmp_path/'folder.png').mkdir()
    assert 'folder.png cannot be decoded' in sentence(read_image, tmp_path/'folder.png', 32)
    assert 'nowhere.png' in sentence(read_image, tmp_path/'nowhere.png', 32)
    Image.new('1', (20_000, 20_000)).save(tmp_path/'bomb.png') # 50 kB that would take 400 MB as grey
    assert 'bomb.png cannot be decoded' in sentence(read_image, tmp_path/'bomb.png', 32)
    Image.new('1', (11_000, 9_000)).save(tmp_path/'bomb.png') # Pillow only warns
    with pytest.warns(Image.DecompressionBombWarning): assert '11000 x 9000' in sentence(read_image, tmp_path/'bomb.png', 32)

def test_without_pydicom_it_says_what_to_install(tmp_path, monkeypatch):
    path = dicom(tmp_path/'x.dcm', GREY, bits=8)
    monkeypatch.setitem(__import__('sys').modules, 'pydicom', None)
    assert 'pip install pydicom' in sentence(read_image, path, 32)

# --- interruptions ---

fork = multiprocessing.get_context('fork')
SIZE = 512

def alone(function, *arguments):
    tqdm.set_lock(threading.RLock()) # a forked process shares its parent's, and would take it along when killed
    function(*arguments)

def in_child(function, *arguments):
    "Run in a process of its own, and return it, started."
    process = fork.Process(target=alone, args=(function, *arguments))
    process.start()
    return process

@pytest.fixture(scope='module')
def wanted(phantom, tmp_path_factory):
    frame = read_nih(phantom)
    return frame, decode(frame, phantom, SIZE, tmp_path_factory.mktemp('wanted')/'store')

def slowly(frame, root, out): # blocks of 8, some milliseconds an image
    stores.read_image, plain = (lambda path, size, bits: (time.sleep(.004), plain(path, size, bits))[1]), stores.read_image
    decode(frame, root, SIZE, out)

def test_killed_at_any_moment_it_resumes_and_ends_in_the_same_bytes(phantom, wanted, tmp_path, monkeypatch):
    frame, expected = wanted
    monkeypatch.setattr(stores, '_BLOCK_BYTES', SIZE**2 * 8) # eight images
    rng, out, seen, journal = random.Random(os.urandom(8)), tmp_path/'store', [0], tmp_path/'store.part/journal.csv'
    def noted():
        try: return max(journal.read_text().count('\n') - 1, 0)
        except FileNotFoundError: return len(frame) * (out.exists() or (tmp_path/'store.part/store.json').exists())
    for _ in range(20):
        process, target = in_child(slowly, frame, phantom, out), seen[-1] + rng.randrange(30)
        while process.is_alive() and noted() < target: time.sleep(.001)
        time.sleep(rng.uniform(0, .02))
        process.kill()
        process.join()
        seen.append(noted())
    assert any(0 < count < len(frame) for count in seen) and seen == sorted(seen) # killed in the middle; nothing is lost
    store = decode(frame, phantom, SIZE, out)
    assert same(store, expected) and (out/'pixels.npy').read_bytes() == (expected.folder/'pixels.npy').read_bytes()
    verify_store(store)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.store.lock', 'store']

def stop_at(name, after, frame, root, out):
    step = getattr(stores, name)
    def stopped(*arguments):
        if name == '_publish_store' and not (arguments[0]/'store.json').exists(): return step(*arguments) # the one at the beginning
        if after: step(*arguments)
        os._exit(9)
    setattr(stores, name, stopped)
    decode(frame, root, 64, out)

@pytest.mark.parametrize('after', [False, True])
@pytest.mark.parametrize('name', ['_prepare', '_take_over', '_fill_rows', '_seal', '_publish_store'])
def test_killed_between_steps_while_an_older_store_is_replaced(copy, tmp_path, name, after):
    frame, out = read_nih(copy), tmp_path/'store'
    decode(frame, copy, 64, out)
    shutil.copy(copy/'images'/frame.index[4], copy/'images'/frame.index[3])
    process = in_child(stop_at, name, after, frame, copy, out)
    process.join()
    assert process.exitcode == 9
    store = decode(frame, copy, 64, out)
    assert same(store, decode(frame, copy, 64, tmp_path/'fresh')) and not list(tmp_path.glob('store.*'))

def test_a_kill_between_the_two_renames(copy, tmp_path):
    frame, out = read_nih(copy), tmp_path/'store'
    expected = decode(frame, copy, 64, tmp_path/'fresh')
    shutil.copytree(expected.folder, tmp_path/'store.part')
    shutil.copytree(expected.folder, tmp_path/'store.old')
    assert same(decode(frame, copy, 64, out), expected) and not list(tmp_path.glob('store.*'))

def test_a_journal_counts_only_where_the_pixels_agree(copy, tmp_path, monkeypatch):
    frame, out, part = read_nih(copy), tmp_path/'store', tmp_path/'store.part'
    expected = decode(frame, copy, 64, tmp_path/'fresh')
    monkeypatch.setattr(stores, '_seal', lambda *_: (_ for _ in ()).throw(InputError('stopped')))
    sentence(decode, frame, copy, 64, out)
    monkeypatch.undo()
    journal = (part/'journal.csv').read_text()
    assert journal.count('\n') == len(frame) + 1
    with stores._PixelFile(part/'pixels.npy') as rows: rows[11] = bytes(64 * 64) # a page that never reached the disk
    (part/'journal.csv').write_text(journal[:-7]) # a line cut short
    calls = []
    monkeypatch.setattr(stores, 'read_image', lambda path, size, bits: (calls.append(Path(path).name), read_image(path, size, bits))[1])
    assert same(decode(frame, copy, 64, out), expected) and sorted(calls) == sorted([frame.index[11], frame.index[-1]])

def test_two_processes_at_once_make_one_store(phantom, tmp_path):
    frame, out = read_nih(phantom), tmp_path/'store'
    processes = [in_child(decode, frame, phantom, 64, out) for _ in range(3)]
    for process in processes: process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert same(open_store(out), decode(frame, phantom, 64, tmp_path/'alone'))

def test_the_number_of_threads_changes_nothing(phantom, tmp_path, monkeypatch):
    frame, made = read_nih(phantom), []
    for threads in [1, 7]:
        monkeypatch.setattr(stores, 'cpu_count', lambda: threads)
        made.append(decode(frame, phantom, 64, tmp_path/f'{threads}'))
    assert same(*made) and (made[0].folder/'images.csv').read_bytes() == (made[1].folder/'images.csv').read_bytes()

# --- changes and damage ---

@pytest.fixture
def counted(monkeypatch):
    calls = []
    monkeypatch.setattr(stores, 'read_image', lambda path, size, bits: (calls.append(Path(path).name), read_image(path, size, bits))[1])
    return calls

def test_only_what_changed_is_decoded_again(copy, tmp_path, counted):
    frame, out = read_nih(copy), tmp_path/'store'
    before = decode(frame[5:], copy, 64, out)
    assert len(counted) == len(frame) - 5 and before.names.equals(frame.index[5:])
    counted.clear()
    decode(frame[5:], copy, 64, out)
    assert counted == []
    shutil.copy(copy/'images'/frame.index[8], copy/'images'/frame.index[7]) # one changed, five added, two gone
    after = decode(frame[:-2], copy, 64, out)
    assert sorted(counted) == sorted([*frame.index[:5], frame.index[7]])
    assert (after.pixels[7] == after.pixels[8]).all() and (before.pixels[2] != after.pixels[7]).any() # an open store keeps what it had
    assert same(after, decode(frame[:-2], copy, 64, tmp_path/'fresh'))
    counted.clear()
    assert same(decode(frame[:-2][::-1], copy, 64, out), decode(frame[:-2][::-1], copy, 64, tmp_path/'backwards'))
    assert len(counted) == len(frame) - 2 # another order: copied, and decoded once for the comparison
    decode(frame[:-2], copy, 48, out)
    assert open_store(out).size == 48

def test_skipping_lists_what_was_left_out_and_is_undone(copy, tmp_path, counted):
    frame, out = read_nih(copy), tmp_path/'store'
    kept = [(copy/'images'/frame.index[row]).read_bytes() for row in (3, 77)]
    for row, content in [(3, b''), (77, b'<html>')]: (copy/'images'/frame.index[row]).write_bytes(content)
    assert frame.index[3] in sentence(decode, frame, copy, 64, out)
    store = decode(frame, copy, 64, out, on_error='skip')
    assert store.names.equals(frame.index.delete([3, 77])) and list(store.skipped) == list(frame.index[[3, 77]])
    assert (store.pixels[5] == read_image(copy/'images'/store.names[5], 64)[0]).all() and '2 skipped' in repr(store)
    fewer = _without_skipped(frame, store)
    assert fewer.index.equals(store.names) and fewer.attrs['report'][-1]['state'] == 'unreadable'
    assert fewer.attrs['report'][-1]['names'] == list(store.skipped)
    counted.clear()
    assert same(decode(frame, copy, 64, out, on_error='skip'), store) and counted == []
    assert frame.index[3] in sentence(decode, frame, copy, 64, out) # asked to raise, it does, and keeps the store
    assert same(open_store(out), store)
    (copy/'images'/frame.index[3]).write_bytes(kept[0])
    assert list(decode(frame, copy, 64, out, on_error='skip').skipped) == [frame.index[77]] # one is repaired
    (copy/'images'/frame.index[77]).write_bytes(kept[1])
    counted.clear()
    assert same(decode(frame, copy, 64, out), decode(frame, copy, 64, tmp_path/'fresh')) and len(counted) <= len(frame) + 4
    for name in frame.index: (copy/'images'/name).write_bytes(b'')
    assert 'None of' in sentence(decode, frame, copy, 64, tmp_path/'none', on_error='skip')
    assert 'on_error' in sentence(decode, frame, copy, 64, out, on_error='ignore')

def test_names_that_look_like_numbers_or_nothing(tmp_path):
    names = ['007', '1e5', 'NA', 'null', 'True']
    for number, name in enumerate(names): Image.fromarray(GREY // (number + 1)).save(tmp_path/f'{name}.png')
    frame = pd.DataFrame(index=pd.Index(names, name='image'))
    for _ in range(2): store = decode(frame, tmp_path, 32, tmp_path/'store/store')
    assert list(store.names) == names and store.pixels[0].max() > store.pixels[1].max() > store.pixels[4].max()

def test_load_data_can_skip(copy, tmp_path):
    frame = read_nih(copy)
    (copy/'images'/frame.index[3]).write_bytes(b'')
    sentence(load_data, copy, 64, tmp_path/'stores')
    fewer = load_data(copy, 64, tmp_path/'stores', on_error='skip')
    assert fewer.store.names.equals(fewer.frame.index) and len(fewer) == len(frame) - 1
    assert 'unreadable' in repr(fewer.report)
    assert sum(len(i) for _, _, i in batches(fewer, np.arange(len(fewer)))) == len(fewer)

def test_absent_images_and_links_to_nowhere(copy, tmp_path):
    frame = read_nih(copy)
    path = copy/'images'/frame.index[9]
    path.unlink()
    assert frame.index[9] in sentence(decode, frame, copy, 64, tmp_path/'store')
    path.symlink_to('nowhere')
    assert f'{frame.index[9]} cannot be decoded' in sentence(decode, frame, copy, 64, tmp_path/'store')
    path.unlink()
    path.mkdir()
    assert f'{frame.index[9]} cannot be decoded' in sentence(decode, frame, copy, 64, tmp_path/'store')

@pytest.mark.parametrize('damage', ['pixels cut', 'pixels gone', 'index edited', 'json cut', 'json of another', 'a row changed'])
def test_damage_is_noticed_and_repaired(copy, tmp_path, damage):
    frame, out = read_nih(copy), tmp_path/'store'
    expected = decode(frame, copy, 64, tmp_path/'fresh')
    decode(frame, copy, 64, out)
    if damage == 'pixels cut': os.truncate(out/'pixels.npy', 5000)
    if damage == 'pixels gone': (out/'pixels.npy').unlink()
    if damage == 'index edited': (out/'images.csv').write_text((out/'images.csv').read_text().replace(frame.index[1], frame.index[2]))
    if damage == 'json cut': os.truncate(out/'store.json', 20)
    if damage == 'json of another': (out/'store.json').write_text(json.dumps({'size': 64, 'images': 3, 'index_sha256': '', 'skipped': {}}))
    if damage == 'a row changed':
        with stores._PixelFile(out/'pixels.npy') as rows: rows[5] = bytes(64 * 64)
        assert frame.index[5] in sentence(verify_store, open_store(out))
        shutil.rmtree(out)
    else: assert 'damaged' in sentence(lambda: open_store(out).names)
    assert same(decode(frame, copy, 64, out), expected)

# --- bits that flip ---

def all_pixels(data): return np.concatenate([x[:, 0].numpy() for x, _, _ in batches(data, np.arange(len(data)), 32)])

def test_no_flipped_bit_goes_unnoticed_and_each_is_repaired(copy, tmp_path, capsys):
    rng, out, lines = random.Random(os.urandom(8)), tmp_path/'store', 0
    frame = read_nih(copy).iloc[:40]
    expected = all_pixels(Data(frame, decode(frame, copy, 64, out)))
    for name in ['pixels.npy'] * 10 + ['images.csv', 'store.json', '.images.csv.crc32', '.store.json.crc32'] * 3:
        flipped = flip_a_bit(out/name, rng)
        store = decode(frame, copy, 64, out)
        assert np.array_equal(all_pixels(Data(frame, store)), expected), flipped
        assert ('damaged' in capsys.readouterr().err) or name.startswith('.'), flipped # there a blank may change
        verify_store(open_store(out))
        if not name.startswith('.'): lines += 1
    assert lines == 16

def test_a_flipped_bit_without_the_image_names_it(copy, tmp_path):
    rng, frame = random.Random(os.urandom(8)), read_nih(copy).iloc[:20]
    for number in range(20):
        out = tmp_path/f'{number}'
        header = decode(frame, copy, 64, out).pixels.offset
        flipped = flip_a_bit(out/'pixels.npy', rng)
        place = int(flipped.split()[-1])
        said = sentence(lambda: all_pixels(Data(frame, open_store(out))))
        assert 'is damaged' in said and 'decode again' in said, flipped
        assert place < header or frame.index[(place - header) // 64**2] in said, flipped

def test_a_header_of_which_numpy_says_much_is_one_short_sentence(copy, tmp_path):
    frame, out = read_nih(copy).iloc[:12], tmp_path/'store'
    decode(frame, copy, 64, out)
    with open(out/'pixels.npy', 'r+b') as file:
        file.seek(9) # the header's length, longer than NumPy reads unasked
        file.write(b'\x7f')
    said = sentence(lambda: open_store(out))
    assert 'is damaged' in said and 'decode again' in said and len(said) < 300 + len(str(out))

def test_a_damaged_row_whose_image_is_another_by_now_is_not_taken_from_it(copy, tmp_path, capsys):
    frame, out = read_nih(copy), tmp_path/'store'
    store = decode(frame, copy, 64, out)
    with stores._PixelFile(out/'pixels.npy') as rows: rows[4] = bytes(64 * 64)
    shutil.copy(copy/'images'/frame.index[5], copy/'images'/frame.index[4])
    assert frame.index[4] in sentence(lambda: open_store(out, copy)[4])
    os.remove(copy/'images'/frame.index[4])
    assert frame.index[4] in sentence(lambda: open_store(out, copy)[[3, 4]])
    assert (open_store(out, copy)[:4] == store.pixels[:4]).all() and not capsys.readouterr().err

@pytest.mark.parametrize('length', [0, 100, 5000])
@pytest.mark.parametrize('name', ['pixels.npy', 'images.csv', 'store.json'])
def test_what_is_cut_short_is_made_again_with_a_line(copy, tmp_path, capsys, name, length):
    frame, out = read_nih(copy), tmp_path/'store'
    expected = decode(frame, copy, 64, tmp_path/'fresh')
    decode(frame, copy, 64, out)
    os.truncate(out/name, min(length, os.path.getsize(out/name) - 1))
    assert 'is damaged' in sentence(lambda: open_store(out).index)
    assert same(decode(frame, copy, 64, out), expected)
    assert capsys.readouterr().err.count('store is damaged: its images are decoded again.') == 1

def test_an_image_replaced_behind_its_size_and_time_is_noticed(copy, tmp_path, counted, monkeypatch):
    frame, out = read_nih(copy), tmp_path/'store'
    before = Data(frame, decode(frame, copy, 64, out))
    path = copy/'images'/frame.index[3]
    stat, content = path.stat(), (copy/'images'/frame.index[4]).read_bytes()
    shorter, longer = sorted([path.read_bytes(), content], key=len)
    path.write_bytes(longer) # files of one length: what follows the end of an image is not read
    decode(frame, copy, 64, out)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    decode(frame, copy, 64, out)
    other = shorter + bytes(len(longer) - len(shorter))
    counted.clear()
    path.write_bytes(other)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns)) # as rsync or cp -p set it
    after = Data(frame, decode(frame, copy, 64, out))
    assert counted == [frame.index[3]] and same(after.store, decode(frame, copy, 64, tmp_path/'fresh'))

def test_an_image_that_was_touched_is_read_once_and_not_decoded(copy, tmp_path, counted, monkeypatch):
    frame, out, read = read_nih(copy), tmp_path/'store', []
    before = decode(frame, copy, 64, out)
    counted.clear()
    source = stores._source
    monkeypatch.setattr(stores, '_source', lambda path: (read.append(Path(path).name), source(path))[1])
    os.utime(copy/'images'/frame.index[7])
    shutil.copy2(copy/'images'/frame.index[8], tmp_path/'same')
    os.replace(tmp_path/'same', copy/'images'/frame.index[8]) # another file of the same bytes and time
    for expected in [list(frame.index[7:9]), []]:
        read.clear()
        assert same(decode(frame, copy, 64, out), before)
        assert sorted(read) == expected and counted == []

def test_pixels_are_part_of_the_fingerprint(copy, tmp_path):
    before = load_data(copy, 64, tmp_path/'stores')
    names = before.frame.index
    assert before.matches(before.fingerprint) and before.matches(fingerprint(before.frame)) # the latter of earlier versions
    assert load_data(copy, 64, tmp_path/'others').fingerprint == before.fingerprint
    shutil.copy(copy/'images'/names[4], copy/'images'/names[3])
    after = load_data(copy, 64, tmp_path/'stores')
    assert after.store.folder == before.store.folder and fingerprint(after.frame) == fingerprint(before.frame)
    assert after.fingerprint != before.fingerprint and not after.matches(before.fingerprint)

def test_a_store_of_an_earlier_version_opens(copy, tmp_path, counted):
    frame, out = read_nih(copy), tmp_path/'store'
    store = decode(frame, copy, 64, out)
    index = pd.read_csv(out/'images.csv').drop(columns=['changed', 'source']).to_csv(index=False)
    info = {name: value for name, value in store.info.items() if name != 'pixels'}
    info['index_sha256'] = stores.hashlib.sha256(index.encode()).hexdigest()
    for name in ['images.csv', 'store.json']: files._remove(out/name)
    (out/'images.csv').write_text(index)
    (out/'store.json').write_text(json.dumps(info))
    counted.clear()
    again = decode(frame, copy, 64, out)
    assert counted == [] and same(again, store) and again.checksum == store.checksum
    verify_store(again)
    (out/'images.csv').write_text(index.replace(frame.index[1], frame.index[2]))
    assert 'is damaged' in sentence(lambda: open_store(out).names)

def test_a_store_in_a_folder_that_cannot_be_written_is_read(copy, tmp_path, monkeypatch):
    frame, out = read_nih(copy), tmp_path/'store'
    store = decode(frame, copy, 64, out)
    def read_only(*_): raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(files.FileLock, 'acquire', read_only)
    assert same(decode(frame, copy, 64, out), store)
    os.utime(copy/'images'/frame.index[7]) # touched: read, and not noted
    assert same(decode(frame, copy, 64, out), store)
    assert f'{out} cannot be written (Read-only file system)' in sentence(decode, frame[1:], copy, 64, out)
    assert same(open_store(out), store)

# --- files with a checksum ---

def killed(path, step, after): # in a child: write, and die at a system call
    name, original = step, getattr(files.os, step)
    def die(*arguments):
        if after: original(*arguments)
        os._exit(9)
    setattr(files.os, name, die)
    files._write_whole(path, os.urandom(100), checksum=True)

def test_a_process_killed_while_it_writes_leaves_a_whole_file(tmp_path):
    path = tmp_path/'kept'
    files._write_whole(path, b'first', checksum=True)
    for step in ['fsync', 'replace'] * 3:
        for after in [False, True]:
            before = path.read_bytes()
            in_child(killed, path, step, after).join()
            assert (path.read_bytes() == before) == ((step, after) != ('replace', True))
            files._check(path)
    with open(files._checksum_path(path), 'ab') as file: file.write(b'\n0123') # a line cut short
    files._write_whole(path, b'last', checksum=True)
    assert files._check(path).read_bytes() == b'last'

def test_kept_tables_are_made_again_whatever_happened_to_them(tmp_path, capsys):
    rng, path, made = random.Random(os.urandom(8)), tmp_path/'table.parquet', []
    def make(): return made.append(1) or pd.DataFrame({'score': np.arange(50.)}, index=[f'{i}.png' for i in range(50)])
    expected = files._kept(path, 'key', make)
    for number in range(60):
        if number % 3: flipped = flip_a_bit(path, rng)
        else: os.truncate(path, rng.randrange(path.stat().st_size))
        pd.testing.assert_frame_equal(files._kept(path, 'key', make), expected)
        assert len(made) == number + 2 and f'{path} is damaged' in capsys.readouterr().err
        pd.testing.assert_frame_equal(files._kept(path, 'key', make), expected)
        assert len(made) == number + 2
    files._checksum_path(path).unlink() # of an earlier version: it is read
    pd.testing.assert_frame_equal(files._kept(path, 'key', make), expected)
    os.truncate(path, 50)
    pd.testing.assert_frame_equal(files._kept(path, 'key', make), expected)
    assert len(made) == 62

def test_a_clock_that_jumps_leaves_no_damage_unnoticed(tmp_path, monkeypatch):
    rng, path = random.Random(os.urandom(8)), tmp_path/'kept'
    for clock in [0, 2 * 10**18]:
        monkeypatch.setattr(files.time, 'time_ns', lambda: clock)
        files._write_whole(path, os.urandom(1000), checksum=True)
        for _ in range(2): files._check(path)
        time.sleep(.02) # file systems note times in steps
        flipped = flip_a_bit(path, rng)
        assert 'kept is damaged' in sentence(files._check, path), flipped

def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path/'kept'
    files._write_whole(path, b'first', checksum=True)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for step in ['fsync', 'replace']:
        with monkeypatch.context() as patch:
            patch.setattr(files.os, step, lambda *_: (_ for _ in ()).throw(full))
            assert f'{path} cannot be written (No space left on device)' in sentence(files._write_whole, path, b'second', True)
        assert files._check(path).read_bytes() == b'first'
        assert sorted(one.name for one in tmp_path.iterdir()) == ['.kept.crc32', 'kept']

# --- disks ---

def test_a_full_disk_keeps_what_is_decoded(phantom, tmp_path, monkeypatch):
    frame, out = read_nih(phantom), tmp_path/'store'
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(stores.shutil, 'disk_usage', lambda path: usage._replace(free=100_000))
        assert 'GB are free' in sentence(decode, frame, phantom, 64, out)
    monkeypatch.setattr(stores, '_BLOCK_BYTES', 64**2 * 8)
    append, count = stores._append_journal, iter(range(10))
    def full(part, lines):
        if next(count) == 3: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(part, lines)
    with monkeypatch.context() as patch:
        patch.setattr(stores, '_append_journal', full)
        said = sentence(decode, frame, phantom, 64, out)
        assert 'No space left' in said and str(out) in said and 'kept' in said
    assert len((tmp_path/'store.part/journal.csv').read_text().splitlines()) == 25
    assert same(decode(frame, phantom, 64, out), decode(frame, phantom, 64, tmp_path/'fresh'))

def test_folders_that_cannot_be_written(phantom, tmp_path):
    frame = read_nih(phantom)
    (tmp_path/'file').write_text('')
    for out in [tmp_path/'file/store', Path('/proc/nowhere/store')]:
        said = sentence(decode, frame, phantom, 64, out)
        assert str(out) in said and 'cannot be written' in said

def test_opening_reads_almost_nothing(phantom, tmp_path, monkeypatch):
    store = decode(read_nih(phantom), phantom, 64, tmp_path/'store')
    (tmp_path/'store/images.csv').unlink()
    assert len(open_store(tmp_path/'store')) == len(store) # neither the index nor a pixel is read

def test_a_part_of_the_patients_is_read_again_as_it_was_trained(phantom, tmp_path):
    data = load_data(phantom, 64, tmp_path/'stores', n=60)
    fit(data, tmp_path/'run', Recipe('densenet_small', epochs=1, batch_size=16), device='cpu')
    facts = list_checkpoints(tmp_path/'run')[0].facts
    again = load_data(facts['root'], facts['image_size'], tmp_path/'stores', **facts['reading'])
    assert len(again) < len(read_nih(phantom)) and again.fingerprint == facts['data'] == data.fingerprint

def test_the_store_goes_to_a_device_that_has_room(phantom, tmp_path, monkeypatch):
    store = decode(read_nih(phantom), phantom, 64, tmp_path/'store')
    device = torch.device('meta') # stands for an accelerator: it has a name and holds nothing
    assert _pixels_on(store, device).device.type == 'cpu' and store.__dict__.pop('held')
    monkeypatch.setattr('cxr_influence.data.batches._free_bytes', lambda device: 3 * store.pixels.nbytes)
    assert _pixels_on(store, device).device == device and _pixels_on(store, device) is _pixels_on(store, device)
    monkeypatch.setattr('cxr_influence.data.batches._free_bytes', lambda device: 2 * store.pixels.nbytes - 1)
    store.__dict__.pop('held')
    assert _pixels_on(store, device).device.type == 'cpu'
    for name in ['cpu', 'cpu:0', torch.device('cpu', 0)]: _pixels_on(store, name)
    assert len(store.held) == 2 # a device has several names, and holds the pixels once
