"Write README.md, and the pictures in it, from nbs/index.ipynb; with --check, say whether they are up to date."
import base64, json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK, PICTURES = ROOT/'nbs/index.ipynb', ROOT/'nbs/images'
text = lambda value: value if isinstance(value, str) else ''.join(value or '')

def from_root(markdown):
    "Links are written for the notebook's folder; README.md stands one above it."
    def moved(match):
        target = match[2]
        if re.match(r'[a-z]+:|#|/', target): return match[0]
        return match[1] + (target[3:] if target.startswith('../') else f'nbs/{target}')
    return re.sub(r'(\]\(|\bsrc=")([^)"\s]+)', moved, markdown)

def shown(output, pictures):
    "One output as Markdown; a picture goes to its own file."
    if output['output_type'] == 'stream': return '' if output.get('name') == 'stderr' else f'```text\n{text(output["text"]).rstrip()}\n```'
    data = output.get('data', {})
    if 'image/png' in data:
        name = f'index-{len(pictures) + 1}.png'
        pictures[name] = base64.b64decode(text(data['image/png']))
        return f'![](nbs/images/{name})'
    if 'text/markdown' in data: return from_root(text(data['text/markdown']))
    if 'text/html' in data: return re.sub(r'<style.*?</style>\s*|^\s+', '', text(data['text/html']), flags=re.S | re.M).strip()
    return f'```text\n{text(data["text/plain"]).rstrip()}\n```' if 'text/plain' in data else ''

def readme():
    "The text of README.md and its pictures by name."
    parts, pictures = [], {}
    for cell in json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']:
        source, says = text(cell['source']), lambda what: re.search(rf'^#\|\s*{what}\s*$', text(cell['source']), re.M)
        if cell['cell_type'] == 'markdown': parts.append(from_root(re.sub(r'^:::.*\n?', '', source, flags=re.M)))
        if cell['cell_type'] != 'code' or says('hide') or says(r'include:\s*false'): continue
        code = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()
        if code and not says(r'echo:\s*false'): parts.append(f'```python\n{code}\n```')
        if not says(r'output:\s*false'): parts += [shown(o, pictures) for o in cell['outputs']]
    note = '<!-- Made from nbs/index.ipynb by `make prepare`: edit that. -->'
    title, *rest = [p.strip() for p in parts if p.strip()]
    return '\n\n'.join([title, note, *rest]) + '\n', pictures

body, pictures = readme()
files = {ROOT/'README.md': body.encode(), **{PICTURES/name: data for name, data in pictures.items()}}
stale = [f for f, data in files.items() if not f.exists() or f.read_bytes() != data]
extra = [f for f in PICTURES.glob('index-*.png') if f not in files]
if '--check' in sys.argv:
    if stale + extra: sys.exit(f'Not made from nbs/index.ipynb as it is: {", ".join(str(f.relative_to(ROOT)) for f in stale + extra)}. `make prepare` mends it.')
else:
    for file in extra: file.unlink()
    for file in stale: file.parent.mkdir(exist_ok=True), file.write_bytes(files[file])
