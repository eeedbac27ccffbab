"Recipes are what they are called, and published numbers are on the page with their split."
import numpy as np
import pytest

from conftest import sentence
from cxr_influence.data.labels import FINDINGS
from cxr_influence.training.losses import LOSSES
from cxr_influence.training.networks import list_backbones
from cxr_influence.training.recipes import (_OFFICIAL, PUBLISHED, _RANDOM, RECIPES, _UNKNOWN,
    describe_recipe, published, recipe)

@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_is_complete_and_trainable(name):
    settings = recipe(name)
    assert settings.keys() == recipe('default').keys()
    assert settings['loss'] in LOSSES and settings['backbone'] in {'densenet_small', *list_backbones()}
    assert settings['epochs'] > 0 and settings['batch_size'] > 0 and 0 < settings['learning_rate'] < 1 and 0 <= settings['warmup'] < 1
    assert describe_recipe(name).str.len().drop('published').gt(10).all()

def test_a_recipe_is_a_copy_and_none_keeps_its_value():
    changed = recipe('dacnet', epochs=3, batch_size=None)
    assert changed['epochs'] == 3 and changed['batch_size'] == RECIPES['dacnet']['batch_size']
    changed['loss'] = 'bce'
    assert recipe('dacnet')['loss'] == 'focal' and recipe('dacnet')['epochs'] == RECIPES['dacnet']['epochs']
    assert recipe('default', weight_decay=0.)['weight_decay'] == 0. # zero is a value

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

def test_splits_are_told_apart_wherever_a_number_is_shown():
    assert set(PUBLISHED['split']) == {_RANDOM, _OFFICIAL, _UNKNOWN}
    assert not (PUBLISHED['split'] == _OFFICIAL)[PUBLISHED.images.isin([22_433, 22_294])].any()
    for name in RECIPES:
        shown = published(name)
        assert list(shown.index) == [*FINDINGS, 'macro'] and shown.loc['macro'].notna().all()
        assert all(column.endswith((f'({_RANDOM})', f'({_OFFICIAL})')) for column in shown)
        assert ((shown > .5) & (shown < 1) | np.isnan(shown)).all().all()
