"""From `git clone` to ten reviewed images, as a newcomer goes, by the clock: `make newcomer`, or ARGS=--install for the environment too.

Clone, environment, JupyterLab, *Find mislabeled images* run from top to bottom, ten answers by keyboard, read back from the
file. Without --install it uses the Python that runs it, for 6 GB of packages say more about the network than about us."""
import subprocess, sys, tempfile, time
from contextlib import ExitStack
from pathlib import Path

from cxr_influence.review.queue import read_review
from driven import CHROMIUM, Lab, loaded, press, shoot

ROOT = Path(__file__).resolve().parents[1]
PAGE, ANSWERS, LIMIT = 'nbs/tutorials/find_mislabeled_images.ipynb', 10, 15*60 # seconds

FIND = '''() => {
    const { content } = jupyterapp.shell.currentWidget
    const place = content.widgets.findIndex(({ model }) => model.type === 'code' && /^review\\(/m.test(model.sharedModel.getSource()) && model.outputs.length)
    if (place < 0) return false
    content.activeCellIndex = place
    content.scrollToCell(content.widgets[place], 'start')
    return true }'''

class Clock:
    "Seconds that each step took."
    def __init__(self): self.begun, self.last, self.steps = time.monotonic(), time.monotonic(), {}
    def note(self, step):
        self.steps[step], self.last = time.monotonic() - self.last, time.monotonic()
        print(f'{self.steps[step]:7.1f} s  {step}', flush=True)

def clone(folder):
    subprocess.run(['git', 'clone', '-q', '--no-hardlinks', ROOT, folder], check=True)
    return folder

def environment(folder, install):
    "The Python of the clone."
    if not install: return sys.executable
    subprocess.run(['bash', '.ci/env.sh', '.venv'], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return str(folder/'.venv/bin/python')

def answer(lab):
    "Ten answers by keyboard: one in four is unsure."
    assert lab.page.evaluate(FIND), f'{PAGE} shows no review queue'
    view = lab.page.locator('.cxr-review').first
    first = loaded(view, 60_000)
    view.locator('canvas').click()
    names = {first} | {press(view, 'u' if number % 4 == 3 else 'a') for number in range(ANSWERS)}
    shoot(lab.page, 'newcomer')
    return names

def main():
    from playwright.sync_api import sync_playwright
    clock, install = Clock(), '--install' in sys.argv[1:]
    if not CHROMIUM: sys.exit('There is no Chromium to drive: apt-get install chromium')
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        folder = clone(place/'cxr_influence')
        clock.note('git clone')
        python = environment(folder, install)
        clock.note('environment' if install else 'environment: there already')
        (place/'jupyter').mkdir()
        lab = Lab(folder, browser, PAGE, (python, '.ci/lab.py'), place/'jupyter', TQDM_DISABLE='', PYTHONPATH=str(folder), NIH14=str(place/'absent'))
        stack.callback(lab.close)
        lab.open()
        clock.note('JupyterLab, the tutorial open')
        lab.run_all(LIMIT)
        clock.note('Run All Cells')
        names = answer(lab)
        clock.note(f'{ANSWERS} answers')
        files = sorted(folder.glob('_runs/**/review.csv'), key=lambda file: file.stat().st_mtime)
        done = {name for file in files for name in read_review(file).image}
        assert len(names & done) >= ANSWERS, f'{len(names & done)} of {ANSWERS} answers are in {files}'
    total = time.monotonic() - clock.begun
    print(f'{total:7.1f} s  in all: {ANSWERS} images reviewed, {"" if total < LIMIT else "NOT "}under fifteen minutes')
    return total > LIMIT

if __name__ == '__main__': sys.exit(main())
