"JupyterLab and the review widget, worked in Chromium as a person works them; skipped where there is none."
import contextlib, json, os, secrets, shutil, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import nbformat, pytest

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

def shoot(page, name):
    if SHOTS: page.screenshot(path=Path(SHOTS)/f'{name}.png')

def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]

def private_places(folder):
    "Variables that keep Jupyter's settings, layouts and notes in a folder, and its news quiet."
    quiet = folder/'settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    quiet.parent.mkdir(parents=True, exist_ok=True)
    quiet.write_text('{"fetchNews": "false"}')
    places = {f'JUPYTER_{name}_DIR': str(folder/name.lower()) for name in ['CONFIG', 'DATA', 'RUNTIME']}
    return places | {f'JUPYTERLAB_{name}_DIR': str(folder/name.lower()) for name in ['SETTINGS', 'WORKSPACES']}

CELLS = '''() => jupyterapp.shell.currentWidget.content.widgets.map(({ model, promptNode }) => ({
    source: model.sharedModel.getSource(), code: model.type === 'code', state: model.executionState, count: model.executionCount,
    outputs: model.type === 'code' ? model.outputs.toJSON() : [] }))'''

READY = '''notebook => {
    const { context, sessionContext } = window.jupyterapp?.shell.currentWidget ?? {}
    return context?.path === notebook && context.isReady && sessionContext.isReady && sessionContext.session?.kernel?.status === 'idle'
        && !document.getElementById('jupyterlab-splash') }'''
TAKEN = '''before => jupyterapp.shell.currentWidget.content.widgets.some(({ model }) =>
    model.executionState === 'running' || model.type === 'code' && !before.includes(model.executionCount))'''

class Lab:
    "JupyterLab on loopback, with a token, in a folder; one of its notebooks, open in a browser."
    def __init__(self, folder, browser, notebook='queue.ipynb', command=(sys.executable, '-m', 'jupyterlab', '--allow-root', '--ip=127.0.0.1'), own=None, **env):
        from playwright.sync_api import TimeoutError as late
        self.folder, self.notebook, self.token, self.port = folder, notebook, secrets.token_hex(16), free_port()
        own = own or folder # for Jupyter's files
        self.log = open(own/'lab.log', 'w')
        self.process = subprocess.Popen(
            [*command, '--no-browser', f'--port={self.port}', f'--IdentityProvider.token={self.token}', '--LabApp.expose_app_in_browser=True',
             '--ServerApp.port_retries=0'],
            cwd=folder, env={**os.environ, **private_places(own), **env}, stdout=self.log, stderr=self.log, start_new_session=True)
        self.late, self.page = late, browser.new_page(viewport={'width': 1280, 'height': 900})

    def request(self, path, method='GET', body=None, token=True):
        request = urllib.request.Request(f'http://127.0.0.1:{self.port}{path}', method=method, data=body,
                                         headers={'Authorization': f'token {self.token}'} if token else {})
        with urllib.request.urlopen(request, timeout=30) as answer: return answer.read()

    def said(self): return Path(self.log.name).read_text()

    def open(self):
        for _ in range(240):
            try: self.request('/api/status'); break
            except OSError: time.sleep(.25)
            assert self.process.poll() is None, self.said()
        self.page.goto(f'http://127.0.0.1:{self.port}/lab/tree/{self.notebook}?token={self.token}')
        self.page.wait_for_function(READY, arg=self.notebook, timeout=120_000)

    def idle(self): self.page.locator('.jp-Notebook-ExecutionIndicator[data-status=idle]').first.wait_for(state='attached', timeout=60_000)

    def theme(self, name):
        self.page.evaluate("name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", f'JupyterLab {name}')

    def menu(self, name, item):
        "Choose an item of a menu; Lab may still be filling it."
        entry = self.page.locator('.lm-Menu-itemLabel', has_text=item).first
        for _ in range(20):
            self.page.get_by_role('menuitem', name=name, exact=True).first.click()
            with contextlib.suppress(self.late): return entry.click(timeout=1000)
            self.page.keyboard.press('Escape')
        raise AssertionError(f'no {item} in the menu {name}')

    def cells(self): return self.page.evaluate(CELLS)

    def run_all(self, seconds, meanwhile=lambda: None):
        "Run > Run All Cells; the code cells once all have run or one has failed."
        def counts(): return [cell['count'] for cell in self.cells()]
        before = {*counts()}
        for _ in range(10): # until the kernel takes it
            self.menu('Run', 'Run All Cells')
            with contextlib.suppress(self.late):
                self.page.wait_for_function(TAKEN, arg=[*before], timeout=20_000)
                break
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            code = [cell for cell in self.cells() if cell['code'] and cell['source'].strip()]
            failed = [output for cell in code for output in cell['outputs'] if output['output_type'] == 'error']
            done = all(cell['count'] and cell['count'] not in before and cell['state'] == 'idle' for cell in code)
            if failed or done: break
            meanwhile()
            time.sleep(.3)
        assert not failed, f'{failed[0]["ename"]}: {failed[0]["evalue"]}'
        assert done, f'not done in {seconds} s; {sum(cell["state"] == "running" for cell in code)} of {len(code)} cells wait'
        return code

    def run(self):
        "Run the first cell until the review widget is there."
        cell, was = self.page.locator('.jp-CodeCell').first, self.page.locator('.jp-InputPrompt').first.inner_text()
        for _ in range(10): # until the kernel takes it
            cell.locator('.cm-content').click()
            self.page.keyboard.press('Control+Enter')
            with contextlib.suppress(self.late):
                self.page.wait_for_function('was => ![was, "[ ]:"].includes(document.querySelector(".jp-InputPrompt").innerText)', arg=was, timeout=4000)
                break
        try: self.page.wait_for_function('() => document.querySelector(".cxr-review, .jp-OutputArea-output [data-mime-type*=error]")', timeout=60_000)
        except self.late as error:
            shoot(self.page, 'lab_failed')
            raise AssertionError(f'{self.page.inner_text("body")}\n{self.said()[-5000:]}') from error
        return self.page.locator('.cxr-review').last

    def saved(self):
        "Save the notebook; return it."
        path = self.folder/self.notebook
        before = path.stat().st_mtime_ns
        self.menu('File', 'Save Notebook')
        for _ in range(600): # Lab does not write it in one go
            time.sleep(.1)
            with contextlib.suppress(ValueError):
                if path.stat().st_mtime_ns != before: return nbformat.read(path, 4)
        raise AssertionError('The notebook was not saved.')

    def close(self):
        self.page.close()
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(60)
        self.log.close()

def one_cell(path, source):
    "A notebook of one cell."
    kernel = {'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata=kernel), path)

SEEN = '''view => {
    const canvas = view.querySelector('canvas'), { loaded, image } = view.dataset
    if (!loaded || loaded !== image || !canvas.width) return false
    const { data } = canvas.getContext('2d').getImageData(0, canvas.height >> 1, canvas.width, 1)
    return data.some((value, i) => i % 4 < 3 && value > 40) }'''

def loaded(view, timeout=20_000):
    "Wait for the radiograph; return its image's name."
    handle = view.element_handle()
    handle.owner_frame().wait_for_function(SEEN, arg=handle, timeout=timeout)
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
