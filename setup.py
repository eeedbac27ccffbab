"All that there is to say about the package stands in settings.ini; this hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
readme = here/'README.md'

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '', long_description_content_type='text/markdown',
    author=cfg['author'], url=cfg['git_url'], license='Apache-2.0', python_requires='>=' + cfg['min_python'],
    classifiers=['Intended Audience :: Science/Research', 'Programming Language :: Python :: 3'],
    install_requires=cfg['requirements'].split(),
    extras_require={'optional': cfg['optional_requirements'].split(),
                    'dev': cfg['dev_requirements'].split() + cfg['optional_requirements'].split()},
    # the experiments are notebooks, and part of the program: they ship inside the package
    packages=[*find_packages(include=['cxr_influence', 'cxr_influence.*']), 'cxr_influence.experiments'],
    package_dir={'cxr_influence': 'cxr_influence', 'cxr_influence.experiments': 'nbs/experiments'},
    package_data={'cxr_influence.experiments': ['*.ipynb'], 'cxr_influence.training': ['published_auroc.csv']},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['cxr_influence=cxr_influence._modidx:d']},
    zip_safe=False)
