"""The recipe: what is read, what is refused and in which words, and what comes out again."""

import dataclasses
import inspect

import pytest

import cli
from toolkit.errors import UsageError
from toolkit.recipes.recipe import (
    DataAugmentation,
    Recipe,
    RunSettings,
    load_recipe,
    parse_recipe,
    preset_names,
    recipe_from_flags,
    recipe_keys,
)

DESIGN_FILE = """// Training config for final CIFAR-10 run
{ "optimizer": "SGD", "momentum": 0.9, "learning_rate": 0.05, "lr_schedule": "cosine_annealing_150ep",
  "weight_decay": 5e-4, "dropout_rate": 0.3, "batch_size": 32, "epochs": 150,
  "data_augmentation": { "random_crop": true, "crop_padding": 4, "horizontal_flip": true, "mixup_alpha": 0.2 },
  "early_stopping": false }
"""


def test_the_designs_own_file_is_the_preset_reference(tmp_path):
    path = tmp_path / "final.json"
    path.write_text(DESIGN_FILE)
    recipe = load_recipe(str(path))
    assert recipe == load_recipe("reference") == Recipe()
    assert (recipe.lr_schedule, recipe.epochs, recipe.data_augmentation.mixup_alpha) == ("cosine_annealing", 150, 0.2)


def test_keys_of_earlier_versions_are_ignored_where_they_were_not_used():
    unused = {"ema_decay": 0.0, "distillation_temperature": 4.0, "data_augmentation": {"random_erasing": 0.0}}
    assert Recipe.from_dict({"epochs": 3, **unused}) == Recipe.from_dict({"epochs": 3})
    with pytest.raises(UsageError, match=r"unknown key 'ema_decay' \(removed from this version\); the keys are"):
        Recipe.from_dict({"ema_decay": 0.999})
    with pytest.raises(UsageError, match="unknown key 'anything'"):
        Recipe.from_dict({"anything": None})


@pytest.mark.parametrize("name", preset_names())
def test_presets_come_back_from_their_own_toml(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.as_toml())
    assert load_recipe(str(path)) == recipe
    assert Recipe.from_dict(recipe.as_dict()) == recipe


def test_every_key_survives_toml(tmp_path):
    recipe = Recipe(
        optimizer="Adam",
        lr_schedule="step_decay",
        lr_milestones=(3, 5),
        early_stopping=4,
        data_augmentation=DataAugmentation(random_crop=False, mixup_alpha=0.0),
        run=RunSettings(model="m6", seed=3, val_size=100, precision="bfloat16"),
    )
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.as_toml())
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"learning_rte": 0.1},
            r"unknown key 'learning_rte' \(did you mean 'learning_rate'\?\); the keys are optimizer",
        ),
        (
            {"data_augmentation": {"cutout": 1}},
            "unknown key 'data_augmentation.cutout'; the keys are random_crop, crop_p",
        ),
        ({"run": {"model": "vgg"}}, "run.model must be one of resnet20, resnet20-wide, resnet32, m6, not 'vgg'"),
        ({"optimizer": "sgd"}, "optimizer must be one of SGD, Adam, Muon, not 'sgd'"),
        ({"lr_schedule": "exponential"}, "lr_schedule must be one of cosine_annealing, step_decay, linear"),
        ({"lr_schedule": "cosine_annealing_90ep"}, "'cosine_annealing_90ep', but epochs is 150: make them agree"),
        ({"epochs": 0}, "epochs must be a whole number from 1 to 1000000, not 0"),
        ({"epochs": 1.5}, "epochs must be a whole number, not 1.5"),
        ({"epochs": True}, "epochs must be a whole number, not True"),
        ({"epochs": "10"}, "epochs must be a whole number, not '10'"),
        ({"momentum": 1}, "momentum must be a number from 0 to 0.9999, not 1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number from 0 to 1000000, not nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be a number from 0 to 1000000, not inf"),
        ({"learning_rate": -0.1}, "learning_rate must be a number from 0 to 1000000, not -0.1"),
        ({"dropout_rate": 1.0}, "dropout_rate must be a number from 0 to 0.9999"),
        ({"data_augmentation": {"random_crop": 1}}, "random_crop must be true or false, not 1"),
        ({"data_augmentation": {"crop_padding": 40}}, "crop_padding must be a whole number from 0 to 16, not 40"),
        ({"data_augmentation": True}, "data_augmentation must be a table of keys, not True"),
        ({"early_stopping": True}, "early_stopping must be false or a whole number of epochs from 1, not True"),
        ({"early_stopping": 0}, "early_stopping must be false or a whole number of epochs from 1, not 0"),
        ({"early_stopping": 5, "run": {"val_size": 0}}, "run.val_size cannot be 0"),
        ({"lr_schedule": "step_decay"}, "step_decay needs lr_milestones"),
        ({"lr_milestones": [10]}, "lr_milestones goes with lr_schedule step_decay"),
        ({"lr_schedule": "step_decay", "lr_milestones": [150]}, "must lie before the end, 150"),
        ({"epochs": 5, "warmup_epochs": 6}, "warmup_epochs 6 must be less than epochs 5"),
        ({"lr_milestones": "10"}, "lr_milestones must be a list of whole numbers"),
        ({"optimizer": "Adam", "nesterov": True}, "nesterov needs optimizer SGD"),
    ],
)
def test_refused_by_name(values, message):
    with pytest.raises(UsageError, match=f"my.toml: .*{message}|my.toml: {message}"):
        Recipe.from_dict(values, where="my.toml")


@pytest.mark.parametrize("text", ["{", "[1, 2]", "epochs 3", '{"epochs": 1, "epochs": 2}', "epochs = 1\nepochs = 2"])
def test_neither_toml_nor_json(text):
    with pytest.raises(UsageError, match="neither valid TOML nor valid JSON"):
        parse_recipe(text, where="x") and Recipe.from_dict(parse_recipe(text, where="x"))


def test_a_comment_sign_inside_json_text_is_no_comment():
    assert parse_recipe('  // one\n{"optimizer": "http://x"}', where="x") == {"optimizer": "http://x"}


def test_no_such_recipe_names_the_presets():
    with pytest.raises(UsageError, match="no recipe .slow.: give a file, or one of .*fast, finetune, reference"):
        load_recipe("slow")


def test_a_schedule_that_is_left_takes_its_milestones_along():
    stepped = Recipe.from_dict({"lr_schedule": "step_decay", "lr_milestones": [75, 113]})
    assert stepped.replace({"lr_schedule": "linear"}).lr_milestones == ()


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "notepad.toml").write_text("epochs = 3\n", encoding="utf-8-sig")
    assert load_recipe(str(tmp_path / "notepad.toml")).epochs == 3


def test_epochs_alone_may_be_changed():
    assert load_recipe("reference").replace({"epochs": 1}).epochs == 1


def test_every_key_has_a_flag_with_the_right_type():
    parameters = inspect.signature(cli.train).parameters
    for key in recipe_keys():
        assert key.name in parameters, key.flag
        assert parameters[key.name].default is None


def test_every_field_is_a_key():
    fields = [f.name for c in (Recipe, DataAugmentation, RunSettings) for f in dataclasses.fields(c)]
    assert [key.name for key in recipe_keys()] == [n for n in fields if n not in ("data_augmentation", "run")]
    assert all(key.help for key in recipe_keys())


def test_flags_become_nested_values():
    flags = {
        "epochs": 3,
        "mixup_alpha": 0.0,
        "seed": None,
        "early_stopping": "false",
        "lr_milestones": "3,5",
        "name": "x",
    }
    assert recipe_from_flags(flags) == {
        "lr_milestones": [3, 5],
        "epochs": 3,
        "early_stopping": False,
        "data_augmentation": {"mixup_alpha": 0.0},
    }


@pytest.mark.parametrize("flags", [{"early_stopping": "no"}, {"lr_milestones": "3;5"}])
def test_flags_that_cannot_be_read(flags):
    with pytest.raises(UsageError, match="takes"):
        recipe_from_flags(flags)
