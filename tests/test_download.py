"Fetching NIH's archives from a server with bad manners, onto a disk with too little room."
import errno, gzip, hashlib, io, os, random, re, shutil, signal, subprocess, sys, tarfile, threading, time, types, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image

import cxr_influence.data.download as module
from cxr_influence.data.nih import find_files, read_nih
from cxr_influence.data.download import (_check_disk, _choose_archives, download, _fetch,
    _is_unpacked, _nih_files, plan_download, _unpack)
from cxr_influence.data.files import InputError

BLOCK = 1 << 16 # bytes that may be on their way when a line breaks

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site, name = self.server.site, self.path[1:]
        if site.refusals: return self.send_error(site.refusals.pop(0))
        if name.startswith('static/'): # as Box does: a public link leads to another address
            self.send_response(302)
            self.send_header('Location', site.url + name[7:])
            return self.end_headers()
        if name not in site.files: return self.send_error(404)
        data, tag = site.files[name], site.tag and f'"{hashlib.md5(site.files[name]).hexdigest()}"'
        span = self.headers.get('Range') if site.ranges else None
        if span and site.honest and self.headers.get('If-Range') not in (None, tag): span = None
        start = int(re.sub(r'\D', '', span)) if span else 0
        if start >= len(data) and start: return self.send_error(416)
        self.send_response(206 if span else 200)
        if site.from_zero: start = 0
        if site.length: self.send_header('Content-Length', len(data) - start)
        if span: self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        if tag: self.send_header('ETag', tag)
        self.send_header('Content-Type', site.kind)
        self.end_headers()
        stop = min(len(data), start + site.cuts.pop(0)) if site.cuts else len(data)
        site.log.append((name, start, stop))
        for at in range(start, stop, 50_000):
            self.wfile.write(data[at:min(at + 50_000, stop)])
            time.sleep(site.pause)
    def log_message(self, *text): pass

@pytest.fixture
def site(monkeypatch):
    "A server whose manners are its attributes."
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.handle_error = lambda *_: None # a client that hangs up is part of the test
    server.site = site = types.SimpleNamespace(files={'f': random.Random(1).randbytes(1_000_003)}, cuts=[], log=[], refusals=[], ranges=True,
        tag=True, honest=True, length=True, from_zero=False, kind='application/gzip', pause=0, url=f'http://127.0.0.1:{server.server_port}/')
    threading.Thread(target=server.serve_forever, args=[.01], daemon=True).start()
    yield site
    server.shutdown()
    server.server_close()

@pytest.fixture
def waits(monkeypatch):
    "No waiting in tests; the waits asked for are kept."
    asked, sleep = [], time.sleep
    monkeypatch.setattr(module.time, 'sleep', lambda seconds: asked.append(seconds) if seconds >= .5 else sleep(seconds))
    return asked

def sums(data): return dict(size=len(data), checksum=hashlib.md5(data).hexdigest())
def one_sentence(error): return '\n' not in str(error.value) and len(str(error.value)) < 330

# One file

@pytest.mark.parametrize('seed', range(5))
def test_a_file_cut_anywhere_comes_whole_and_its_pieces_are_sent_once(site, waits, tmp_path, seed):
    data, rng = site.files['f'], random.Random(seed)
    site.cuts = [rng.randrange(BLOCK, 250_000) for _ in range(rng.randrange(3, 9))]
    cuts = len(site.cuts)
    path = _fetch(site.url + 'f', tmp_path/'f', **sums(data))
    assert path.read_bytes() == data
    sent = sum(stop - start for _, start, stop in site.log)
    assert len(data) < sent <= len(data) + cuts*BLOCK # with restarts it would be more
    assert all(start > 0 for _, start, _ in site.log[1:])
    assert [p.name for p in tmp_path.iterdir()] == ['f']

def test_a_later_process_goes_on_too(site, waits, tmp_path):
    data, site.cuts = site.files['f'], [700_000]
    with pytest.raises(InputError, match='cut'): _fetch(site.url + 'f', tmp_path/'f', tries=1)
    here = (tmp_path/'f.part').stat().st_size
    assert 700_000 - BLOCK < here <= 700_000
    assert _fetch(site.url + 'f', tmp_path/'f').read_bytes() == data
    assert site.log[1:] == [('f', here, len(data))]

def test_it_gives_up_after_some_tries_in_vain_with_growing_waits(site, waits, tmp_path):
    site.cuts = [300_000] + [0]*9
    with pytest.raises(InputError, match='cut.*the same command resumes') as error: _fetch(site.url + 'f', tmp_path/'f', tries=4, wait=1)
    assert waits == [1, 2, 4] and len(site.log) == 4 and one_sentence(error)

def test_cuts_with_progress_do_not_use_up_the_tries(site, waits, tmp_path):
    site.cuts = [90_000]*9
    assert _fetch(site.url + 'f', tmp_path/'f', tries=2).read_bytes() == site.files['f']

def test_a_server_that_cannot_begin_in_the_middle_begins_again(site, waits, tmp_path):
    site.ranges, site.cuts = False, [500_000]
    assert _fetch(site.url + 'f', tmp_path/'f', **sums(site.files['f'])).read_bytes() == site.files['f']
    assert [start for _, start, _ in site.log] == [0, 0]

def test_going_on_through_a_redirection(site, waits, tmp_path):
    site.cuts = [500_000]
    assert _fetch(site.url + 'static/f', tmp_path/'f').read_bytes() == site.files['f']
    assert site.log[1][1] > 500_000 - BLOCK

def test_a_server_that_begins_elsewhere_than_asked(site, waits, tmp_path):
    site.from_zero, site.cuts = True, [500_000]
    assert _fetch(site.url + 'f', tmp_path/'f').read_bytes() == site.files['f']

def test_a_server_that_does_not_tell_the_length(site, waits, tmp_path):
    site.length = False
    assert _fetch(site.url + 'f', tmp_path/'f', **sums(site.files['f'])).read_bytes() == site.files['f']

@pytest.mark.parametrize('honest', [True, False]) # whether If-Range is honoured
@pytest.mark.parametrize('tag,extra', [(True, 0), (True, 77), (False, 77)]) # known by its tag, by both, by its size
def test_pieces_of_two_versions_are_never_joined(site, waits, tmp_path, honest, tag, extra):
    site.honest, site.tag, site.cuts = honest, tag, [400_000]
    with pytest.raises(InputError): _fetch(site.url + 'f', tmp_path/'f', tries=1)
    site.files['f'] = random.Random(2).randbytes(len(site.files['f']) + extra)
    assert _fetch(site.url + 'f', tmp_path/'f').read_bytes() == site.files['f']
    if honest and tag: assert site.log[1:] == [('f', 0, len(site.files['f']))] # one answer was enough

def test_with_a_checksum_a_joined_file_is_noticed_even_without_tags(site, waits, tmp_path):
    site.tag, site.cuts, old = False, [400_000], site.files['f']
    with pytest.raises(InputError): _fetch(site.url + 'f', tmp_path/'f', tries=1, **sums(old))
    site.files['f'] = random.Random(2).randbytes(len(old))
    with pytest.raises(InputError, match='wrong file'): _fetch(site.url + 'f', tmp_path/'f', **sums(old))
    assert list(tmp_path.iterdir()) == []
    site.files['f'] = old
    assert _fetch(site.url + 'f', tmp_path/'f', **sums(old)).read_bytes() == old

def test_a_part_longer_than_the_file_is_begun_again(site, waits, tmp_path):
    site.cuts = [400_000]
    with pytest.raises(InputError): _fetch(site.url + 'f', tmp_path/'f', tries=1)
    with open(tmp_path/'f.part', 'ab') as part: part.write(bytes(2_000_000))
    assert _fetch(site.url + 'f', tmp_path/'f').read_bytes() == site.files['f']

def test_a_part_that_was_whole_when_the_power_went_is_not_fetched_again(site, tmp_path):
    data = site.files['f']
    _fetch(site.url + 'f', tmp_path/'g')
    (tmp_path/'g').rename(tmp_path/'f.part')
    module._write_note(tmp_path/'f.part', {'bytes': len(data), 'version': sums(data)['checksum']})
    site.log.clear()
    assert _fetch(site.url + 'f', tmp_path/'f', **sums(data)).read_bytes() == data and site.log == []

def test_another_size_is_noticed_before_fetching(site, tmp_path):
    with pytest.raises(InputError, match=r'offers 1,000,003 bytes where 5 are expected') as error: _fetch(site.url + 'f', tmp_path/'f', size=5)
    assert one_sentence(error) and list(tmp_path.iterdir()) == []

def test_another_size_is_noticed_where_the_server_does_not_tell(site, tmp_path):
    site.length = False
    with pytest.raises(InputError, match='[0-9,]{6,} bytes where 5 are'): _fetch(site.url + 'f', tmp_path/'f', size=5)
    assert list(tmp_path.iterdir()) == []

def test_a_wrong_checksum_removes_what_came(site, tmp_path):
    with pytest.raises(InputError, match='SHA256 is .* where 0{64} is expected. It was removed') as error: _fetch(site.url + 'f', tmp_path/'f', checksum='0'*64)
    assert len(error.value.args) == 1 and list(tmp_path.iterdir()) == []

def test_a_file_of_ones_own_is_kept_and_a_right_one_used(site, tmp_path):
    (tmp_path/'f').write_bytes(b'mine')
    with pytest.raises(InputError, match='move it away'): _fetch(site.url + 'f', tmp_path/'f', **sums(site.files['f']))
    assert (tmp_path/'f').read_bytes() == b'mine'
    (tmp_path/'f').write_bytes(site.files['f'])
    _fetch(site.url + 'f', tmp_path/'f', **sums(site.files['f']))
    assert site.log == []

def test_what_a_network_refuses_is_one_sentence(site, waits, tmp_path):
    with pytest.raises(InputError, match='404') as error: _fetch(site.url + 'nowhere', tmp_path/'f')
    assert one_sentence(error) and waits == []
    with pytest.raises(InputError, match='Connection refused') as error: _fetch('http://127.0.0.1:1/f', tmp_path/'f')
    assert one_sentence(error) and waits == [1, 2, 4, 8]
    with pytest.raises(InputError, match='cannot be fetched') as error: _fetch('not an address', tmp_path/'f')
    site.kind = 'text/html; charset=utf-8'
    with pytest.raises(InputError, match='web page') as error: _fetch(site.url + 'f', tmp_path/'f')
    assert one_sentence(error) and list(tmp_path.iterdir()) == []

def test_a_busy_server_is_asked_again(site, waits, tmp_path):
    site.refusals = [503, 429, 500]
    assert _fetch(site.url + 'f', tmp_path/'f').read_bytes() == site.files['f']
    site.refusals = [503]*99
    with pytest.raises(InputError, match='cannot be fetched') as error: _fetch(site.url + 'f', tmp_path/'g', tries=3)
    assert one_sentence(error) and len(site.refusals) > 90

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_a_full_disk_by_the_system_itself(site, tmp_path):
    (tmp_path/'f.part').symlink_to('/dev/full')
    with pytest.raises(InputError, match=r'disk of .* is full, 1\.00MB of f are missing.*the same command resumes') as error: _fetch(site.url + 'f', tmp_path/'f')
    assert one_sentence(error)

def fills_up(after):
    "`open`, on a disk with room for so many bytes more."
    left = [after]
    def opens(path, mode='r'):
        file = open(path, mode, **({'buffering': 0} if 'b' in mode else {}))
        if mode not in ('ab', 'wb', 'xb'): return file
        class Full(io.RawIOBase):
            def writable(self): return True
            def write(self, data):
                took = file.write(bytes(data)[:left[0]])
                left[0] -= took
                if took < len(data): raise OSError(errno.ENOSPC, 'No space left on device')
                return took
            def tell(self): return file.tell()
            def close(self): file.close()
        return Full()
    return opens

def test_a_full_disk_keeps_what_came_and_the_same_call_goes_on(site, tmp_path, monkeypatch):
    data = site.files['f']
    with monkeypatch.context() as patch:
        patch.setattr(module, 'open', fills_up(300_000), raising=False)
        with pytest.raises(InputError, match=r'full, 700kB of f are missing, what came is kept'): _fetch(site.url + 'f', tmp_path/'f', **sums(data))
    assert (tmp_path/'f.part').read_bytes() == data[:300_000]
    assert _fetch(site.url + 'f', tmp_path/'f', **sums(data)).read_bytes() == data
    assert site.log[1:] == [('f', 300_000, len(data))]

def test_kill_9_while_fetching(site, tmp_path):
    data, site.pause = site.files['f'], .05
    code = f'from cxr_influence.data.download import _fetch; _fetch({site.url + "f"!r}, {str(tmp_path/"f")!r})'
    process = subprocess.Popen([sys.executable, '-c', code])
    part = tmp_path/'f.part'
    for _ in range(1200):
        if part.exists() and part.stat().st_size > 200_000: break
        time.sleep(.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    here, site.pause = part.stat().st_size, 0
    assert 200_000 < here < len(data)
    assert _fetch(site.url + 'f', tmp_path/'f').read_bytes() == data and site.log[1:] == [('f', here, len(data))]

# Archives

def tar_of(*members):
    "A .tar.gz of (name, content) or of ready TarInfos."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:gz') as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo): tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()

def odd(name, kind, target=''):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info

def zip_of(name, mode=0o100644):
    out, info = io.BytesIO(), zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(out, 'w') as zipped: zipped.writestr('images/good.png', b'1'), zipped.writestr(info, b'/etc/passwd')
    return out.getvalue()

GOOD = ('images/good.png', b'1')
EVIL = {'up.tar.gz': tar_of(GOOD, ('../evil', b'2')), 'deep.tar.gz': tar_of(GOOD, ('images/../../evil', b'2')),
        'absolute.tar.gz': tar_of(GOOD, ('/tmp/cxr_evil', b'2')), 'windows.tar.gz': tar_of(GOOD, ('C:\\evil', b'2')),
        'back.tar.gz': tar_of(GOOD, ('..\\evil', b'2')), 'link.tar.gz': tar_of(GOOD, odd('images/l', tarfile.SYMTYPE, '/etc/passwd')),
        'inner.tar.gz': tar_of(GOOD, odd('images/l', tarfile.SYMTYPE, 'good.png')), 'hard.tar.gz': tar_of(GOOD, odd('h', tarfile.LNKTYPE, 'images/good.png')),
        'pipe.tar.gz': tar_of(GOOD, odd('images/p', tarfile.FIFOTYPE)), 'device.tar.gz': tar_of(GOOD, odd('images/d', tarfile.CHRTYPE)),
        'up.zip': zip_of('../evil'), 'absolute.zip': zip_of('/tmp/cxr_evil'), 'link.zip': zip_of('images/l', 0o120777)}

@pytest.mark.parametrize('name', EVIL)
def test_nothing_is_unpacked_of_an_archive_that_leads_out(tmp_path, name):
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/name).write_bytes(EVIL[name])
    with pytest.raises(InputError, match=f'{name} holds .*nothing of it was unpacked') as error: _unpack(tmp_path/'in'/name, tmp_path/'in/out')
    assert one_sentence(error) and sorted(p.name for p in tmp_path.rglob('*')) == sorted(['in', name])
    assert not Path('/tmp/cxr_evil').exists()

@pytest.mark.parametrize('name', ['a.b..png', 'images/..a', 'images/a..'])
def test_two_dots_in_a_name_are_no_harm(tmp_path, name):
    (tmp_path/'a.tar.gz').write_bytes(tar_of((name, b'2')))
    assert (_unpack(tmp_path/'a.tar.gz', tmp_path/'out')/name).read_bytes() == b'2'

CONTENT = random.Random(3).randbytes(50_000)
WHOLE = tar_of(GOOD, ('images/big.png', CONTENT))
DAMAGE = {'cut': WHOLE[:len(WHOLE)//2], 'cut at the end': WHOLE[:-5], 'gzip sum': WHOLE[:-8] + b'fourfour', 'a bit': WHOLE[:30_000] + bytes([WHOLE[30_000] ^ 1]) + WHOLE[30_001:],
          'empty': b'', 'html': b'<html>no</html>', 'no tar': gzip.compress(b'no tar'*999)}

@pytest.mark.parametrize('what', DAMAGE)
def test_a_damaged_archive_is_said_to_be_and_leaves_nothing(tmp_path, what):
    (tmp_path/'a.tar.gz').write_bytes(DAMAGE[what])
    with pytest.raises(InputError, match='is damaged .*delete it') as error: _unpack(tmp_path/'a.tar.gz', tmp_path/'out')
    assert one_sentence(error) and [p.name for p in tmp_path.iterdir()] == ['a.tar.gz']

def test_a_damaged_zip(tmp_path):
    (tmp_path/'a.zip').write_bytes(zip_of('images/a')[:-30])
    with pytest.raises(InputError, match='is damaged'): _unpack(tmp_path/'a.zip', tmp_path/'out')

def test_unpacked_once_and_begun_again_after_a_kill(tmp_path, monkeypatch):
    (tmp_path/'a.tar.gz').write_bytes(WHOLE)
    (tmp_path/'out.part/images').mkdir(parents=True) # what kill -9 leaves
    (tmp_path/'out.part/images/half.png').write_bytes(b'half')
    opened, read = [], module._read_members
    monkeypatch.setattr(module, '_read_members', lambda archive: opened.append(archive) or read(archive))
    for _ in range(3): _unpack(tmp_path/'a.tar.gz', tmp_path/'out')
    assert len(opened) == 1 and _is_unpacked(tmp_path/'out') and (tmp_path/'out/images/big.png').read_bytes() == CONTENT
    assert sorted(p.name for p in (tmp_path/'out').rglob('*.png')) == ['big.png', 'good.png'] and not (tmp_path/'out.part').exists()

def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path/'a.tar.gz').write_bytes(WHOLE)
    (tmp_path/'out').mkdir()
    with pytest.raises(InputError, match='move it away'): _unpack(tmp_path/'a.tar.gz', tmp_path/'out')
    assert list((tmp_path/'out').iterdir()) == []

def test_a_disk_too_full_to_unpack(tmp_path, monkeypatch):
    (tmp_path/'a.tar.gz').write_bytes(WHOLE)
    with monkeypatch.context() as patch:
        patch.setattr(module, 'open', fills_up(20_000), raising=False)
        with pytest.raises(InputError, match='disk of .* is full, a.tar.gz does not fit unpacked') as error: _unpack(tmp_path/'a.tar.gz', tmp_path/'out')
    assert one_sentence(error) and [p.name for p in tmp_path.iterdir()] == ['a.tar.gz']
    assert (_unpack(tmp_path/'a.tar.gz', tmp_path/'out')/'images/big.png').read_bytes() == CONTENT

# The whole

@pytest.fixture
def nih(site):
    "A small copy on the server: three archives, two lists, a table. Its list of files."
    names = [f'{patient:08d}_{visit:03d}.png' for patient in range(1, 19) for visit in range(2)]
    def png(i):
        out = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(256, size=(100, 100), dtype='uint8')).save(out, 'PNG')
        return out.getvalue()
    rows = [f'{n},No Finding,{i % 2},{int(n[:8])},60,F,PA' for i, n in enumerate(names)]
    site.files = {'Data_Entry_2017_v2020.csv': '\n'.join(['Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position', *rows]).encode(),
                  'train_val_list.txt': '\n'.join(n for n in names if int(n[:8]) % 3).encode(), 'test_list.txt': '\n'.join(n for n in names if int(n[:8]) % 3 == 0).encode()}
    for k in range(3): site.files[f'images_{k + 1:03d}.tar.gz'] = tar_of(*[(f'images/{n}', png(12*k + i)) for i, n in enumerate(names[12*k:12*k + 12])])
    return pd.DataFrame([(name, len(data), 12 if name.endswith('.gz') else 0, sums(data)['checksum'], site.url + name) for name, data in site.files.items()],
                        columns=['file', 'bytes', 'images', 'checksum', 'url']).set_index('file')

def asked(site): return [name for name, _, _ in site.log]

def test_a_copy_that_can_be_read(site, nih, tmp_path, capsys):
    out = download(tmp_path/'NIH14', files=nih)
    assert len(read_nih(out)) == 36 and asked(site) == list(nih.index)
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith('.')) == ['Data_Entry_2017_v2020.csv', 'images_001', 'images_002', 'images_003', 'test_list.txt', 'train_val_list.txt']
    said = capsys.readouterr().out
    assert 'images_003.tar.gz' in said and re.search(r'needs .*B of disk, .*B are free', said)
    site.log.clear()
    assert download(tmp_path/'NIH14', files=nih) == out and site.log == []

def test_some_archives_first_and_more_later(site, nih, tmp_path):
    assert len(read_nih(download(tmp_path, archives=[2], files=nih))) == 12
    site.log.clear()
    assert len(read_nih(download(tmp_path, archives='1-2', keep=True, files=nih))) == 24
    assert asked(site) == ['images_001.tar.gz'] and (tmp_path/'images_001.tar.gz').read_bytes() == site.files['images_001.tar.gz']

@pytest.mark.parametrize('archives', ['4', [0], '1,2,x', '1-', '-1', ',', [None], 3.5, '3-1'])
def test_archives_that_there_are_not(nih, archives):
    with pytest.raises(InputError): _choose_archives(nih, archives)

def test_archives_in_words_numbers_and_none(nih):
    chosen = lambda archives: [int(name[7:10]) for name in _choose_archives(nih, archives).index if name.startswith('images')]
    assert [chosen(a) for a in (None, '', '2', '1,3', '1-2', [3], range(2, 4), [])] == [[1, 2, 3], [1, 2, 3], [2], [1, 3], [1, 2], [3], [2, 3], []]

def test_interrupted_between_fetching_and_unpacking(site, nih, tmp_path, monkeypatch):
    def stop(*_): raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(module, '_unpack', stop)
        with pytest.raises(KeyboardInterrupt): download(tmp_path, files=nih)
    assert (tmp_path/'images_001.tar.gz').exists()
    site.log.clear()
    assert len(read_nih(download(tmp_path, files=nih))) == 36
    assert asked(site) == ['images_002.tar.gz', 'images_003.tar.gz'] and not list(tmp_path.glob('*.gz'))

def test_interrupted_while_unpacking(site, nih, tmp_path, monkeypatch):
    write, done = module._write_member, []
    def stop(*member):
        done.append(member)
        if len(done) == 17: raise KeyboardInterrupt # in the second archive
        return write(*member)
    with monkeypatch.context() as patch:
        patch.setattr(module, '_write_member', stop)
        with pytest.raises(KeyboardInterrupt): download(tmp_path, files=nih)
    assert len(find_files(tmp_path).index.str.extract(r'(\d{8}_\d{3}\.png)')[0].dropna()) == 12
    site.log.clear()
    assert len(read_nih(download(tmp_path, files=nih))) == 36 and asked(site) == ['images_003.tar.gz']

def test_too_little_disk_is_said_before_anything_is_fetched(site, nih, tmp_path, monkeypatch):
    plan = plan_download(nih, tmp_path)
    needed = {keep: module._disk_needed(plan, keep) for keep in (False, True)}
    assert nih.bytes.sum() < needed[False] < needed[True] < 2.1*nih.bytes.sum()
    for keep in needed:
        for free, fits in [(needed[keep], True), (needed[keep] - 1, False)]:
            monkeypatch.setattr(shutil, 'disk_usage', lambda folder: types.SimpleNamespace(free=free))
            if fits: assert 'are free.' in _check_disk(plan, tmp_path, keep)
            else:
                with pytest.raises(InputError, match='choose fewer archives') as error: download(tmp_path/'out', keep=keep, files=nih)
                assert one_sentence(error) and site.log == [] and not (tmp_path/'out').exists()

def test_the_plan_counts_what_is_there(site, nih, tmp_path):
    download(tmp_path, archives=[1], files=nih)
    (tmp_path/'images_002.tar.gz.part').write_bytes(bytes(1000))
    plan = plan_download(nih, tmp_path)
    assert plan.to_fetch.to_dict() == {**dict.fromkeys(nih.index, 0), 'images_002.tar.gz': nih.bytes['images_002.tar.gz'] - 1000, 'images_003.tar.gz': nih.bytes['images_003.tar.gz']}
    assert list(plan.to_unpack > 0) == [False, False, False, False, True, True]

def test_two_downloads_at_once(nih, tmp_path):
    with FileLock(tmp_path/'.download.lock'):
        with pytest.raises(InputError, match='Another download'): download(tmp_path, files=nih)

def test_a_file_where_the_folder_should_be(nih, tmp_path):
    (tmp_path/'out').write_text('')
    with pytest.raises(InputError, match='cannot be written to') as error: download(tmp_path/'out', files=nih)
    assert one_sentence(error)

# Other places

@pytest.mark.parametrize('source,package', [('kaggle', 'kagglehub'), ('huggingface', 'huggingface_hub')])
def test_a_missing_client_is_named_with_its_command(tmp_path, monkeypatch, source, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: types.SimpleNamespace(free=10**12))
    with pytest.raises(InputError, match=f'pip install {package}') as error: download(tmp_path, source=source)
    assert one_sentence(error)

def test_kaggles_own_client_is_called(nih, tmp_path, monkeypatch):
    called = []
    client = types.SimpleNamespace(dataset_download=lambda *a, **k: called.append((a, k, os.environ['KAGGLEHUB_CACHE'])) or f'{tmp_path}/datasets/versions/3')
    monkeypatch.setitem(sys.modules, 'kagglehub', client)
    monkeypatch.delenv('KAGGLEHUB_CACHE', raising=False)
    assert download(tmp_path, source='kaggle', files=nih) == tmp_path/'datasets/versions/3'
    assert called == [(('nih-chest-xrays/data',), {}, str(tmp_path))] and 'KAGGLEHUB_CACHE' not in os.environ
    with pytest.raises(InputError, match='all archives'): download(tmp_path, source='kaggle', archives=[1], files=nih)
    monkeypatch.setenv('KAGGLEHUB_CACHE', str(tmp_path/'mine'))
    download(tmp_path, source='kaggle', files=nih)
    assert called[-1][2] == os.environ['KAGGLEHUB_CACHE'] == str(tmp_path/'mine')

def test_a_client_that_stops_is_one_sentence(nih, tmp_path, monkeypatch):
    def stop(*a, **k): raise RuntimeError('401 unauthorised')
    monkeypatch.setitem(sys.modules, 'kagglehub', types.SimpleNamespace(dataset_download=stop))
    with pytest.raises(InputError, match='kagglehub stopped .401 unauthorised') as error: download(tmp_path, source='kaggle', files=nih)
    assert one_sentence(error)

def test_hugging_faces_own_client_is_called_file_by_file(site, nih, tmp_path, monkeypatch):
    called = []
    def hf_hub_download(repo, name, repo_type, local_dir):
        called.append((repo, name, repo_type))
        path = Path(local_dir)/name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith('.zip'):
            with tarfile.open(fileobj=io.BytesIO(site.files[path.stem + '.tar.gz'])) as tar, zipfile.ZipFile(path, 'w') as zipped:
                for member in tar: zipped.writestr(member.name, tar.extractfile(member).read())
        else: path.write_bytes(site.files[path.name])
        return str(path)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(hf_hub_download=hf_hub_download))
    out = download(tmp_path, source='huggingface', archives=[1, 3], files=nih)
    assert called == [('alkzar90/NIH-Chest-X-ray-dataset', f'data/{name}', 'dataset') for name in
                      ('Data_Entry_2017_v2020.csv', 'train_val_list.txt', 'test_list.txt', 'images/images_001.zip', 'images/images_003.zip')]
    assert len(read_nih(out)) == 24 and not list(out.rglob('*.zip')) and site.log == []

def test_an_unknown_source(tmp_path):
    with pytest.raises(InputError, match='choose one of nih, kaggle, huggingface'): download(tmp_path, source='torrent')

# NIH's list

def test_nihs_list_is_whole():
    files = _nih_files()
    archives = files[files.images > 0]
    assert list(archives.index) == [f'images_{k:03d}.tar.gz' for k in range(1, 13)] and archives.images.sum() == 112_120 and archives.bytes.sum() == 45_079_862_784
    assert archives.checksum.str.fullmatch('[0-9a-f]{32}').all() and archives.checksum.is_unique and archives.url.str.fullmatch(r'https://nihcc\.box\.com/shared/static/[a-z0-9]{32}\.gz').all()
    assert files.checksum[files.images == 0].str.fullmatch('[0-9a-f]{64}').all() and files.url.is_unique

def test_the_tables_sums_are_those_of_real_copies(real):
    files, found = _nih_files(), find_files(real)
    for name in files.index[files.images == 0]:
        data = Path(found[name]).read_bytes()
        if name.startswith('Data_Entry'): data = data.replace(b'Patient Gender', b'Patient Sex', 1) # the mirrors' one other word
        assert (len(data), hashlib.sha256(data).hexdigest()) == (files.bytes[name], files.checksum[name])
