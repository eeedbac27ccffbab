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
    "Press keys one by one; after those that answer, wait for the next image."
    page = view.element_handle().owner_frame().page
    for key in keys:
        turn = view.get_attribute('data-turn')
        page.keyboard.press(key)
        if key in ('a', 'u', 's', 'z', 'n', 'Enter', 'y', 'x'):
            page.wait_for_function('([view, turn]) => view.dataset.turn !== turn', arg=[view.element_handle(), turn], timeout=20_000)
            if view.get_attribute('data-image'): loaded(view)

def shoot(page, name):
    if SHOTS: page.screenshot(path=Path(SHOTS)/f'{name}.png')

def test_lab_by_keyboard(lab, twenty):
    lab.open()
    view = lab.run()
    first, seen = loaded(view), []
    view.locator('canvas').click()
    shoot(lab.page, 'lab_light')
    seen.append(first)
    press(view, 'a')
    done = read_review(twenty/'review.csv')
    assert list(done.image) == [first] and (done.new == done.old).all() and set(done.reviewer) == {'Ada'}
