"All that there is to say about the package stands in settings.ini; this hands it to setuptools."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

def long_description():
    "README.md for a package index: links and pictures lead to the repository, whatever page shows them."
    file = here/'README.md'
    if not file.exists(): return ''
    base = cfg['git_url'].replace('github.com', 'raw.githubusercontent.com') + f'/{cfg["branch"]}/'
    pages = f'{cfg["git_url"]}/blob/{cfg["branch"]}/'
    relative = r'(?![a-z]+:|[#/])'
    text = re.sub(rf'(!\[[^\]]*\]\(|\bsrc="){relative}', lambda found: found[1] + base, file.read_text(encoding='utf-8'))
    return re.sub(rf'(?<!!)(\[[^\[\]]*\]\(|\bhref="){relative}', lambda found: found[1] + pages, text)

extras = {name: cfg[f'{name}_requirements'].split() for name in ['lab', 'optional', 'dev']}
extras['dev'] += extras['lab'] + extras['optional']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    long_description=long_description(), long_description_content_type='text/markdown',
    author=cfg['author'], url=cfg['git_url'], license='Apache-2.0', python_requires='>=' + cfg['min_python'],
    classifiers=['Intended Audience :: Science/Research', 'Programming Language :: Python :: 3'],
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    # the experiments are notebooks, and part of the program: they ship inside the package
    packages=[*find_packages(include=['cxr_influence', 'cxr_influence.*']), 'cxr_influence.experiments'],
    package_dir={'cxr_influence': 'cxr_influence', 'cxr_influence.experiments': 'nbs/experiments'},
    package_data={'cxr_influence': ['figures.mplstyle'], 'cxr_influence.experiments': ['*.ipynb'],
                  'cxr_influence.training': ['published_auroc.csv'],
                  'cxr_influence.review': ['review.js', 'review.css']},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['cxr_influence=cxr_influence._modidx:d']},
    zip_safe=False)
