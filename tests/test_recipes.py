"Recipes are what they are called, and published numbers are on the page with their split."
import numpy as np
import pytest

from conftest import sentence
from cxr_influence.data.labels import FINDINGS
from cxr_influence.training.losses import LOSSES
from cxr_influence.training.networks import list_backbones
from cxr_influence.training.checkpoints import Recipe
from cxr_influence.training.recipes import (_OFFICIAL, _RANDOM, _UNKNOWN, PUBLISHED, RECIPES,
                                            describe_recipe, published, recipe)

@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_is_complete_and_trainable(name):
    settings = recipe(name)
    assert isinstance(settings, Recipe) and settings.loss is None # made where the data is known
    assert RECIPES[name].loss in LOSSES and RECIPES[name].image_size in [64, 224]
    assert settings.backbone in {'densenet_small', *list_backbones()}
    assert settings.epochs > 0 and settings.batch_size > 0
    assert 0 < settings.learning_rate < 1 and 0 <= settings.warmup < 1
    assert describe_recipe(name).str.len().drop('published').gt(10).all()

def test_a_recipe_is_a_copy_and_none_keeps_its_value():
    changed = recipe('dacnet', epochs=3, batch_size=None)
    assert changed.epochs == 3 and changed.batch_size == RECIPES['dacnet'].recipe.batch_size
    assert recipe('dacnet') == RECIPES['dacnet'].recipe and recipe('dacnet').epochs == 25
    assert recipe('default', weight_decay=0.).weight_decay == 0. # zero is a value

def test_recipes_have_the_numbers_they_had():
    settings = ['epochs', 'batch_size', 'learning_rate', 'weight_decay', 'warmup', 'clip']
    had = {'small': (12, 16, 2e-3, .01, .05, 10.), 'default': (10, 32, 1e-4, .01, .05, 10.),
           'chexnet': (15, 16, 1e-3, 0., .05, 10.), 'zoogzog': (100, 16, 1e-4, 1e-5, .05, 10.),
           'dacnet': (25, 8, 5e-5, 1e-5, .05, 10.),
           'medical_mae': (75, 1024, 1e-3, .05, 5 / 75, 10.), 'smooth': (48, 128, 1e-3, .01, .25, 10.)}
    assert {name: tuple(getattr(recipe(name), key) for key in settings) for name in RECIPES} == had
    focal = [name for name, named in RECIPES.items() if named.loss == 'focal']
    assert focal == ['small', 'smooth', 'default', 'dacnet']

def test_unknown_names_are_answered_with_the_known_ones():
    assert all(name in sentence(recipe, 'resnet') for name in RECIPES)
    said = sentence(recipe, 'chexnet', momentum=.9)
    assert 'no momentum' in said and 'learning_rate' in said
    assert 'chexnet' in sentence(published, 'wang') and 'chexnet' in sentence(describe_recipe, '')

def test_published_means_agree_with_their_findings():
    values = PUBLISHED.set_index('system')
    means = values[list(FINDINGS)].astype(float).mean(axis=1)
    apart = (means - values['mean']).abs().dropna()
    assert len(apart) == 11 and apart.drop('arnoweng, improved').max() < .0011, apart # the exception is on the page

def test_the_split_is_named_wherever_a_number_is_shown():
    assert set(PUBLISHED['split']) == {_RANDOM, _OFFICIAL, _UNKNOWN}
    assert not (PUBLISHED['split'] == _OFFICIAL)[PUBLISHED.images.isin([22_433, 22_294])].any()
    for name in RECIPES:
        shown = published(name)
        assert list(shown.index) == [*FINDINGS, 'macro'] and shown.loc['macro'].notna().all()
        assert all(column.endswith((f'({_RANDOM})', f'({_OFFICIAL})')) for column in shown)
        assert ((shown > .5) & (shown < 1) | np.isnan(shown)).all().all()
