"""JupyterLab on this checkout: its root is the project, so that `_runs`, `_data` and `results` are in sight, and it opens at nbs.

It listens to this machine only and asks for a token, unless the arguments say otherwise. It works for root, as in a
container, and where no browser can be opened; all it prints is its address."""
import os, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

def settings(given, root, screen):
    "JupyterLab's arguments for `make lab`, where `given` are the user's own."
    mine = [f'--ServerApp.root_dir={ROOT}', '--LabApp.default_url=/lab/tree/nbs', '--Application.log_level=ERROR']
    if not any(one.startswith(('--ip=', '--ServerApp.ip=')) for one in given): mine.append('--ServerApp.ip=127.0.0.1')
    if root: mine.append('--allow-root') # Jupyter asks for it
    if not screen: mine.append('--no-browser')
    return [*mine, *given]

def main():
    container = Path('/.dockerenv').exists() or Path('/run/.containerenv').exists()
    screen = sys.platform != 'linux' or bool(os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY'))
    if container and len(sys.argv) == 1: print('Only this container reaches the address below. From outside: publish a port, and make lab ARGS=--ip=0.0.0.0', flush=True)
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, '-m', 'jupyterlab', *settings(sys.argv[1:], hasattr(os, 'geteuid') and os.geteuid() == 0, screen)])

if __name__ == '__main__': main()
