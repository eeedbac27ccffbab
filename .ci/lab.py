"""JupyterLab on this checkout: its root is the project, so that `_runs`, `_data` and `results` are in sight, and it opens at nbs.

It listens to this machine only and asks for a token, unless the arguments say otherwise. It works for root, as in a
container, and where no browser can be opened. What it prints is one line with its address, and errors."""
import os, sys
from pathlib import Path

from jupyterlab.labapp import LabApp

ROOT = Path(__file__).resolve().parents[1]

def settings(given, root, screen):
    "JupyterLab's arguments, where `given` are the user's own."
    mine = [f'--ServerApp.root_dir={ROOT}', '--LabApp.default_url=/lab/tree/nbs', '--Application.log_level=ERROR']
    if not any(one.startswith(('--ip=', '--ServerApp.ip=')) for one in given): mine.append('--ServerApp.ip=127.0.0.1')
    if root: mine.append('--allow-root') # Jupyter asks for it
    if not screen: mine.append('--no-browser')
    return [*mine, *given]

def address(info, outside):
    "The line that says where JupyterLab is, from what the server knows of itself."
    everywhere = info['hostname'] in ('', '*', '0.0.0.0', '::')
    host = '127.0.0.1' if everywhere or info['hostname'] == 'localhost' else info['hostname']
    token = f'?token={info["token"]}' if info['token'] else ''
    line = f'JupyterLab: http{"s"*info["secure"]}://{host}:{info["port"]}{info["base_url"]}lab/tree/nbs{token}  (Ctrl-C ends it)'
    if not outside or everywhere: return line
    return f'{line}\nOnly this container reaches that address. From outside: publish port {info["port"]} and make lab ARGS=--ip=0.0.0.0'

def main():
    root = hasattr(os, 'geteuid') and os.geteuid() == 0
    container = Path('/.dockerenv').exists() or Path('/run/.containerenv').exists()
    screen = sys.platform != 'linux' or bool(os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY'))
    arguments = settings(sys.argv[1:], root, screen)
    if {'--help', '--help-all', '-h', '--version', '--generate-config'} & {*arguments}: return LabApp.launch_instance(arguments)
    server = LabApp.initialize_server(argv=arguments)
    print(address(server.server_info(), container), flush=True)
    server.log.addFilter(lambda record: 'To access the server' not in str(record.msg)) # the same in six lines
    server.start()

if __name__ == '__main__': main()
