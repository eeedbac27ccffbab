"""Run every check, three or more at a time, and end on the line `N passed, M failed, K skipped`.

Those that take longest take turns, so that two slow cores are done within an hour: a commit runs every sixth of them,
which ones its hash decides, and those that it changed. `--all` runs all of them: before a release, and once a week."""
import multiprocessing, os, shutil, subprocess, sys, tempfile, time
import xml.etree.ElementTree as xml
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT, BIN = Path(__file__).resolve().parents[1], Path(sys.executable).parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
WORKERS = max(3, min(4, CORES)) # three even on two cores: tests wait a lot, for processes and locks
THREADS = str(max(1, CORES//WORKERS))
ENV = {**os.environ, 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}', 'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT/".ci/without"}', 'MPLBACKEND': 'agg',
       'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': THREADS, 'MKL_NUM_THREADS': THREADS, 'PYTHONUNBUFFERED': '1'}
PARTS = 6 # of the tests, side by side with each other and with the notebooks
LIMIT = 7200 if sys.argv[1:] == ['--all'] else 2400 # seconds for a check; with all that takes long, a part of the tests needs more
ENOUGH = 2700 # seconds after which, on a slow machine, no further check begins; those left are named
TURNS = 6 # in which checks that take long are run
SKIPPED = 77 # a check's exit code when it cannot be done here

def call(*command, cwd=ROOT, env=ENV):
    "Run a command; return its exit code and all it printed."
    with tempfile.TemporaryFile('w+', errors='replace') as said:
        try:
            done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, timeout=LIMIT)
            code, end = done.returncode, ''
        except subprocess.TimeoutExpired as late: code, end = 1, f'\nIt was stopped after {late.timeout:.0f} s.\n'
        said.seek(0)
        return code, said.read() + end

def tracked():
    "The files of the working tree that git has or would take."
    listed = subprocess.check_output(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT, text=True)
    return [ROOT/name for name in sorted(set(listed.split('\0'))) if name and (ROOT/name).is_file()]

# A check returns (passed, failed, skipped, what it printed).
def one(code, text): return (0, 0, 1, text) if code == SKIPPED else (int(code == 0), int(code != 0), 0, text)

def in_step():
    "Modules and notebooks are what nbdev_export and nbdev_clean make of them. Done on a copy: nothing here is touched."
    with tempfile.TemporaryDirectory() as folder:
        copy, env = Path(folder).resolve(), {**ENV, 'PYTHONPATH': folder}
        for file in tracked():
            (copy/file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy/file.relative_to(ROOT))
        for module in (copy/'cxr_influence').glob('*/*.py'): module.unlink() # `__init__.py` beside them is written by hand
        for command in 'nbdev_export', 'nbdev_clean':
            code, text = call(BIN/command, cwd=copy, env=env)
            if code: return one(code, text)
        names = {f.relative_to(ROOT) for f in tracked()} | {f.relative_to(copy) for f in copy.rglob('cxr_influence/**/*.py')}
        names = sorted(n for n in names if n.suffix == '.ipynb' or n.parts[0] == 'cxr_influence')
        read = lambda file: file.read_bytes() if file.exists() else None
        stale = [str(n) for n in names if read(ROOT/n) != read(copy/n)]
    return one(bool(stale), f'Not in step with the notebooks: {", ".join(stale)}. `make prepare` mends it.\n' if stale else '')

# What nearly every page imports, some five seconds a process: a fork of one that has it begins at once.
IMPORTS = ['torch', 'torchvision', 'torchmetrics.functional.classification', 'accelerate', 'pandas', 'pyarrow.parquet', 'scipy.stats',
           'sklearn.metrics', 'sklearn.model_selection', 'matplotlib.pyplot', 'seaborn', 'PIL.Image', 'nbformat', 'nbdev.test', 'IPython']
FORKS = multiprocessing.get_context('forkserver') if sys.platform == 'linux' else None

def notebook(file):
    "Run a page in a process of its own."
    if not FORKS: return one(*call(BIN/'nbdev_test', '--path', file, '--do_print', '--timing', '--n_workers', 0))
    with tempfile.NamedTemporaryFile('r', errors='replace') as said:
        page = FORKS.Process(target=run_page, args=(str(file), said.name))
        page.start()
        page.join(LIMIT)
        late = page.is_alive()
        if late:
            page.kill()
            page.join()
        return one(page.exitcode, said.read() + (f'\nIt was stopped after {LIMIT} s.\n' if late else ''))

def run_page(file, said):
    "Run a page in this process, which prints to a file."
    with open(said, 'a') as to, open(os.devnull) as nothing:
        for stream, other in (0, nothing), (1, to), (2, to): os.dup2(other.fileno(), stream)
    os.chdir(ROOT)
    from nbdev.test import nbdev_test
    try: nbdev_test(file, do_print=True, timing=True, n_workers=0)
    finally: # joblib's workers stay for five minutes, and the end of this process would wait for them
        from joblib.externals.loky import reusable_executor
        if reusable_executor._executor: reusable_executor._executor.shutdown(kill_workers=True)

def tests(files):
    "Some files of tests/, counted one by one."
    with tempfile.TemporaryDirectory() as folder:
        code, text = call(sys.executable, '-m', 'pytest', '-q', '-rfEs', '-p', 'no:cacheprovider', '--durations=15',
                          f'--junitxml={folder}/tests.xml', *files)
        report = Path(folder)/'tests.xml'
        suites = xml.parse(report).getroot().iter('testsuite') if report.exists() else []
        count = {k: 0 for k in ('tests', 'failures', 'errors', 'skipped')}
        for suite in suites: count = {k: v + int(suite.get(k, 0)) for k, v in count.items()}
    bad = count['failures'] + count['errors']
    return max(0, count['tests'] - bad - count['skipped']), bad or int(code != 0), count['skipped'], text

# Pages that take a minute or more beside others, the longest first: they take turns, and tutorials, too, which are run twice.
LONG = ['02_valuations', 'what_tracin_measures', '09_bank', 'why_it_is_fast', '03_subsets', '10_peers', '04_comparison', '05_label_errors',
        '06_pools', '08_whole_run', '05_pairwise', '01_retraining', 'sweep_on_a_cluster', '01_queue', '03_densenet', '02_runs',
        '06_faithfulness', '04_scoring', '03_sweeps', '05_cli', 'what_it_costs', '09_every_step', '06_resume']

def turn():
    "Which of the turns this commit has; the first where git does not know it."
    known = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
    return int(known.stdout[:8] or '0', 16) % TURNS

def changed():
    "The files that differ from the commit before this one, as paths from the root; none where there is none."
    listed = subprocess.run(['git', 'diff', '--name-only', '-z', 'HEAD~1'], cwd=ROOT, capture_output=True, text=True)
    return {name for name in listed.stdout.split('\0') if name}

# Cheap pages with cells that need NIH's data: they must say so, and go on.
WITHOUT_DATA = ['nbs/1_data/03_nih.ipynb', 'nbs/1_data/10_composition.ipynb']

def waiting(long, mine, new=()):
    "Those of the long ones that have another turn and are not new."
    return [one for place, one in enumerate(long) if place % TURNS != mine and one not in new]

def main():
    every = sys.argv[1:] == ['--all']
    if not every and sys.argv[1:]: sys.exit(f'{" ".join(sys.argv[1:])}: the only option is --all')
    if not every: ENV.update(TURN=f'{turn()}/{TURNS}', CHANGED='\n'.join(changed())) # tests/conftest.py reads them
    lessons = [f for f in tracked() if f.suffix == '.ipynb' and not (f.parent/'.notest').exists()
               and not any(p[0] in '._' for p in f.relative_to(ROOT).parts)]
    tutorials = [f for f in lessons if f.parent.name == 'tutorials'] # run twice instead, in a clone
    lessons = [f for f in lessons if f not in tutorials]
    lessons.sort(key=lambda file: LONG.index(file.stem) if file.stem in LONG else len(LONG))
    long = tutorials + [file for file in lessons if file.stem in LONG]
    others = [] if every else waiting(long, turn(), {ROOT/name for name in changed()})
    tutorials, lessons = ([file for file in some if file not in others] for some in (tutorials, lessons))
    files = sorted((ROOT/'tests').glob('test_*.py'), key=lambda file: -file.stat().st_size) # dealt out, so that each part takes about as long
    parts = {f'tests, part {part + 1} of {PARTS}': lambda part=part: tests(files[part::PARTS]) for part in range(PARTS)}
    twice = {f'{f.relative_to(ROOT)}, twice': lambda f=f: one(*call(sys.executable, '.ci/twice.py', f)) for f in tutorials}
    twice['pages without data, twice'] = lambda: one(*call(sys.executable, '.ci/twice.py', *WITHOUT_DATA))
    checks = {**parts, **twice, **{str(f.relative_to(ROOT)): lambda f=f: notebook(f) for f in lessons},
              'modules and notebooks in step': in_step,
              'README.md in step': lambda: one(*call(sys.executable, '.ci/readme.py', '--check')),
              'vulnerabilities of the packages': lambda: one(*call(sys.executable, '.ci/audit.py'))}
    def timed(check):
        since = time.time()
        if not every and since - start > ENOUGH: return 0, 0, 1, f'not begun: the others took {ENOUGH/60:.0f} minutes', 0
        try: result = check()
        except Exception as error: result = one(1, f'{type(error).__name__}: {error}\n')
        return *result, time.time() - since
    os.environ.update(ENV) # of the process that pages are forks of
    if FORKS: FORKS.set_forkserver_preload(IMPORTS)
    total, start = [0, 0, len(others)], time.time()
    if not every: print(f'Their turn comes with other commits, or with ARGS=--all: {len(others)} pages ({", ".join(f.stem for f in others)}), '
                        f'tests marked long, and {TURNS - 1} in {TURNS} of the pages that Chromium opens')
    print(f'{len(lessons) + len(tutorials)} notebooks, the tests, the site among them, and what is generated, {WORKERS} at a time', flush=True)
    with ThreadPoolExecutor(WORKERS) as pool:
        begun = {pool.submit(timed, check): name for name, check in checks.items()}
        for done in as_completed(begun):
            passed, failed, skipped, text, seconds = done.result()
            total = [a + b for a, b in zip(total, (passed, failed, skipped))]
            verdict = 'FAILED' if failed else 'skipped' if not passed else 'passed'
            if not passed or failed or begun[done].startswith('tests'): print('-'*100, text.rstrip(), '-'*100, sep='\n')
            print(f'{verdict:8}{seconds:6.1f} s  {begun[done]}', flush=True)
    print(f'in {time.time() - start:.0f} s')
    print('{} passed, {} failed, {} skipped'.format(*total), flush=True)
    return total[1] > 0

if __name__ == '__main__': sys.exit(main())
