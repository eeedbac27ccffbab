"The review widget: its messages without a browser; and in Chromium JupyterLab's queue and the page, worked by keyboard."
import base64, io, json, os, re, secrets, shutil, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import nbformat, numpy as np, pandas as pd, pytest
from PIL import Image

from cxr_influence.data.batches import load_data
from cxr_influence.data.files import InputError
from cxr_influence.phantom.dataset import make_phantom
from cxr_influence.review import queue as queue_module, widget as module
from cxr_influence.review.queue import Review, read_review, review_queue
from cxr_influence.review.widget import review, review_page

CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('google-chrome')
SHOTS = os.environ.get('SCREENSHOTS') # a folder that keeps the pictures

@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api', reason='no Playwright: pip install playwright')
    if not CHROMIUM: pytest.skip('no Chromium: apt-get install chromium')
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield chromium
        chromium.close()

@pytest.fixture(scope='module')
def twenty(tmp_path_factory):
    "A folder with a phantom of some twenty training images."
    folder = tmp_path_factory.mktemp('review')
    make_phantom(folder/'phantom', n=40, size=256, seed=secrets.randbelow(2**31), duplicates=.1)
    return folder

CELL = '''import os, sys
from pathlib import Path
import numpy as np, pandas as pd
from cxr_influence.data.batches import load_data
from cxr_influence.review.widget import review
Path('pid').write_text(str(os.getpid()))
data = load_data('phantom', 64, stores='stores')
rng = np.random.default_rng(0)
scores = pd.Series(rng.uniform(size=len(data.train)), data.train.index)
probabilities = pd.DataFrame(rng.uniform(size=(len(data), 14)), data.frame.index, data.findings)
review(scores, data, 'review.csv', 'Ada', n=20, probabilities=probabilities)'''

class Lab:
    "JupyterLab on loopback, with a token, in a folder; a notebook with one cell, open in a browser."
    def __init__(self, folder, browser):
        self.folder, self.token = folder, secrets.token_hex(16)
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.port = free.getsockname()[1]
        cell = nbformat.v4.new_code_cell(CELL)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder/'queue.ipynb')
        places = {f'JUPYTER_{name}_DIR': str(folder/name.lower()) for name in ['CONFIG', 'DATA', 'RUNTIME']}
        places |= {f'JUPYTERLAB_{name}_DIR': str(folder/name.lower()) for name in ['SETTINGS', 'WORKSPACES']}
        self.log = open(folder/'lab.log', 'w')
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={self.port}',
             f'--IdentityProvider.token={self.token}', '--LabApp.news_url=', '--ServerApp.port_retries=0'],
            cwd=folder, env={**os.environ, **places}, stdout=self.log, stderr=self.log, start_new_session=True)
        self.page = browser.new_page(viewport={'width': 1280, 'height': 900})

    def request(self, path, method='GET', body=None):
        request = urllib.request.Request(f'http://127.0.0.1:{self.port}{path}', method=method,
                                         data=body, headers={'Authorization': f'token {self.token}'})
        with urllib.request.urlopen(request, timeout=30) as answer: return answer.read()

    def open(self):
        for _ in range(240):
            try: self.request('/api/status'); break
            except OSError: time.sleep(.25)
            assert self.process.poll() is None, (self.folder/'lab.log').read_text()
        self.page.goto(f'http://127.0.0.1:{self.port}/lab/tree/queue.ipynb?token={self.token}')
        self.page.locator('.jp-CodeCell .cm-content').first.wait_for(timeout=60_000)

    def run(self):
        self.page.locator('.jp-CodeCell .cm-content').first.click()
        self.page.keyboard.press('Shift+Enter')
        view = self.page.locator('.cxr-review')
        view.last.wait_for(timeout=90_000)
        return view.last

    def close(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(20)
        self.log.close()

@pytest.fixture
def lab(twenty, browser):
    started = Lab(twenty, browser)
    try: yield started
    finally: started.close()

def loaded(view, timeout=20_000):
    "Wait for the radiograph; return its image's name."
    handle = view.element_handle()
    handle.owner_frame().wait_for_function('view => view.dataset.loaded && view.dataset.loaded === view.dataset.image', arg=handle, timeout=timeout)
    return view.get_attribute('data-image')

def press(view, *keys):
    "Press keys one by one; after those that answer, wait for the next image, and return its name."
    page = view.element_handle().owner_frame().page
    for key in keys:
        turn = view.get_attribute('data-turn')
        page.keyboard.press(key)
        if key in ('a', 'u', 's', 'z', 'n', 'Enter', 'y', 'x'):
            page.wait_for_function('([view, turn]) => view.dataset.turn !== turn', arg=[view.element_handle(), turn], timeout=20_000)
            if view.get_attribute('data-image'): loaded(view)
    return view.get_attribute('data-image')

@pytest.fixture(scope='module')
def many(twenty):
    "The folder's data, with a queue of eight images and random scores and probabilities."
    data, rng = load_data(twenty/'phantom', 64, stores=twenty/'stores'), np.random.default_rng()
    scores = pd.Series(rng.uniform(size=len(data.train)), data.train.index)
    probabilities = pd.DataFrame(rng.uniform(size=(len(data), 14)), data.frame.index, data.findings)
    return review_queue(scores, data, 8, controls=.25, probabilities=probabilities)

def shoot(page, name):
    if SHOTS: page.screenshot(path=Path(SHOTS)/f'{name}.png')


def answered(folder): return read_review(folder/'review.csv') if (folder/'review.csv').exists() else pd.DataFrame({'image': []})

def test_lab_by_keyboard(lab, twenty):
    "Ten images; the kernel killed in the middle; the answers are those of the keys."
    lab.open()
    view = lab.run()
    frame, seen = load_data(twenty/'phantom', 64, stores=twenty/'stores').frame, [loaded(view)]
    view.locator('canvas').click()
    shoot(lab.page, 'lab_light')
    for key in ['i', 'w', 'w', 'l', '+', 'ArrowLeft']: lab.page.keyboard.press(key)
    lab.page.wait_for_function('view => JSON.parse(view.querySelector("canvas").dataset.view).zoom > 1', arg=view.element_handle())
    graded = json.loads(view.locator('canvas').get_attribute('data-view'))
    assert graded['inverted'] and graded['window'] == 224 and graded['level'] == 120
    lab.page.keyboard.press('r')
    for keys in [['a'], ['u'], ['a']]: seen += [press(view, *keys)]
    asked = view.locator('.cxr-asked').get_attribute('data-finding')
    seen += [press(view, '1234567890cdefghjkmopqtv'[list(frame.columns[-14:]).index(asked)], 'Enter')] # relabelled
    press(view, 'a')
    assert press(view, 'z') == seen[4] # taken back
    skipped = seen[4]
    del seen[4]
    seen += [press(view, 's')]
    done = answered(twenty).set_index('image')
    assert list(done.index) == seen[:4] and set(done.reviewer) == {'Ada'} and (done.seconds > 0).all()
    assert list(done.new.isna()) == [False, True, False, False]
    assert (done.new == done.old)[seen[:3]].to_list() == [True, False, True] and done.new[seen[3]] == 1 - done.old[seen[3]]
    assert done.finding[seen[3]] == asked
    os.kill(int((twenty/'pid').read_text()), signal.SIGKILL)
    lab.page.keyboard.press('a') # nobody takes it
    lab.page.get_by_role('button', name='Ok').first.click(timeout=30_000) # Lab reports that the kernel died
    assert list(answered(twenty).image) == seen[:4]
    lab.page.wait_for_function('() => !document.querySelector(".jp-Dialog")')
    again = lab.run()
    assert loaded(again, 60_000) == skipped # only answers are in the file: it is in its place again
    again.locator('canvas').click()
    for _ in range(6): press(again, 'a')
    assert answered(twenty).image.nunique() == 10

def open_file(browser, path):
    "A page of a file, and the requests that it makes."
    page, asked = browser.new_page(viewport={'width': 900, 'height': 900}, accept_downloads=True), []
    page.on('request', lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    return page, page.locator('.cxr-review'), asked

def test_page_by_keyboard(browser, many, tmp_path):
    "Answers of the page come back as its CSV, also after it was closed; nothing is requested from elsewhere."
    path = review_page(many, tmp_path/'review.html')
    page, view, asked = open_file(browser, path)
    names, first = list(many.table.index), many.table.iloc[0]
    assert loaded(view) == names[0]
    shoot(page, 'page_light')
    assert press(view, 'a') == names[1] and press(view, 'u') == names[2] and press(view, 's') == names[3]
    other = next(name for name in many.data.findings if name != many.table.finding[names[3]])
    press(view, '1234567890cdefghjkmopqtv'[many.data.findings.index(other)], 'a')
    page.reload()
    assert loaded(view) == names[4] # it resumes
    assert press(view, 'a', 'z') == names[4]
    page.get_by_role('button', name='Save answers').click()
    assert 'your name' in view.locator('.cxr-status').inner_text()
    page.keyboard.type('Grace, "MD"')
    with page.expect_download() as saved: page.get_by_role('button', name='Save answers').click()
    saved.value.save_as(tmp_path/'back.csv')
    back = read_review(tmp_path/'back.csv').set_index(['image', 'finding'])
    assert set(back.reviewer) == {'Grace, "MD"'} and len(back) == 4
    right = back.new == back.old
    assert right[names[0], first.finding] and right[names[3], many.table.finding[names[3]]]
    assert np.isnan(back.new[names[1], many.table.finding[names[1]]])
    noticed = back.loc[names[3], other]
    assert noticed.shown == 'noticed' and noticed.new == 1 - noticed.old
    assert (back.shown.drop((names[3], other)).droplevel(1) == many.table.shown[[names[0], names[1], names[3]]]).all()
    assert list(Review(many, tmp_path/'back.csv', 'Grace, "MD"').waiting) == [names[2], *names[4:]]
    assert all(url.startswith(('file:', 'data:', 'blob:')) for url in asked)

def test_blinded_page(browser, many, tmp_path):
    "Label, probability and score are not on the screen until an image is answered, and then they are."
    page, view, _ = open_file(browser, review_page(many, tmp_path/'review.html', 'Grace', blinded=True))
    first = loaded(view)
    hidden = view.inner_text()
    assert not re.search('labelled|in doubt|%|absent|unknown', hidden.replace('Absent', '')), hidden
    page.keyboard.press('a')
    assert 'label is hidden' in view.locator('.cxr-status').inner_text()
    assert press(view, 'y') == first and 'labelled' in view.inner_text()
    page.emulate_media(color_scheme='dark')
    shoot(page, 'page_blinded_dark')
    assert press(view, 'Enter') != first and 'labelled' not in view.inner_text()
