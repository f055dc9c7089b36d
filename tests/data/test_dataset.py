"""Finding, reading, splitting and identifying data sets; the real CIFAR-10 where $CIFAR_DATA names it."""

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10 as TORCHVISION_CIFAR10
from torchvision.datasets import CIFAR100 as TORCHVISION_CIFAR100

from tests.support.pictures import open_pictures, pixels_of, write_split_folder
from tests.support.sources import FixedSource, colored_images
from toolkit.data import cifar
from toolkit.data.cifar import CIFAR10, CIFAR100, CLASS_NAMES, MEAN, STD, read_cifar
from toolkit.data.dataset import DataSource, check_data, fetch_data, find_data, identify_data, write_samples
from toolkit.data.images import Images
from toolkit.data.split import split
from toolkit.data.synthetic import DRAWN_CLASSES
from toolkit.errors import ToolkitError, UsageError

BATCHES = CIFAR10.archive.folder


def write_batches(folder: Path) -> Path:
    """Write files with CIFAR-10's names and four images each; their MD5s differ from the real ones."""
    (folder / BATCHES).mkdir(parents=True)
    for number, name in enumerate(CIFAR10.archive.files):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 3072), dtype=np.uint8)
        batch = {"data": pixels, "labels": [number, 1, 2, 3], "label_names": list(CLASS_NAMES)}
        (folder / BATCHES / name).write_bytes(pickle.dumps(batch, protocol=4))
    return folder


def expecting(folder: Path) -> cifar.Cifar:
    """CIFAR-10 with the MD5s of the files in `folder`."""
    files = {name: hashlib.md5((folder / BATCHES / name).read_bytes()).hexdigest() for name in CIFAR10.archive.files}
    return replace(CIFAR10, archive=replace(CIFAR10.archive, files=files))


def replace_archive(monkeypatch: pytest.MonkeyPatch, which: cifar.Cifar, **changes: Any) -> None:
    """Let the toolkit expect an archive of other places or checksums."""
    changed = replace(which, archive=replace(which.archive, **changes))
    monkeypatch.setitem(cifar.BY_NAME, which.name, changed)


# Which data are used


def test_the_named_folder_comes_before_the_variable_and_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_batches(cache)
    assert find_data().folder == cache
    monkeypatch.setenv("CIFAR_DATA", str(write_batches(tmp_path / "variable")))
    assert find_data().folder == tmp_path / "variable"
    named = write_batches(tmp_path / "named")
    assert find_data(str(named)) == DataSource(name="cifar10", folder=named, class_names=CLASS_NAMES)


def test_the_batches_folder_itself_may_be_named(cache: Path, tmp_path: Path) -> None:
    write_batches(tmp_path)
    assert find_data(str(tmp_path / BATCHES)).folder == tmp_path


def test_a_relative_folder_may_be_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_batches(tmp_path) / BATCHES)
    assert find_data(".").folder == tmp_path


def test_an_empty_variable_is_ignored(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_DATA", "")
    assert check_data().folder == cache


def test_demo_is_the_drawn_set_and_dot_demo_a_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_batches(tmp_path / "demo")
    assert find_data("demo") == DataSource(name="demo", folder=None, class_names=DRAWN_CLASSES)
    assert find_data("./demo").folder == tmp_path / "demo"


@pytest.mark.parametrize("chosen_by", ["--data", "$CIFAR_DATA"])
@pytest.mark.parametrize("found", ["does not exist", "is not a folder", "does not hold", "lacks test_batch"])
def test_a_named_folder_without_the_data_is_refused_and_not_written_to(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen_by: str, found: str
) -> None:
    folder = tmp_path / "named"
    match found:
        case "is not a folder":
            folder.touch()
        case "does not hold":
            folder.mkdir()
        case "lacks test_batch":
            (write_batches(folder) / BATCHES / "test_batch").unlink()
    before = sorted(tmp_path.rglob("*"))
    if chosen_by == "$CIFAR_DATA":
        monkeypatch.setenv("CIFAR_DATA", str(folder))
    with pytest.raises(ToolkitError) as refused:
        find_data(str(folder) if chosen_by == "--data" else None)
    message = str(refused.value)
    for part in [chosen_by, str(folder), found, BATCHES, "train/CLASS/", f"cifar data --fetch --data {folder}"]:
        assert part in message
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_cache_without_fetch_is_an_error(cache: Path) -> None:
    with pytest.raises(ToolkitError, match="`cifar data --fetch`"):
        find_data(fetch=False)
    assert not cache.exists()


def test_a_failed_download_explains_how_to_provide_the_data_by_hand(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_archive(monkeypatch, CIFAR10, urls=("http://127.0.0.1:9/cifar-10-python.tar.gz",))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ToolkitError, match=r"127.0.0.1:9.*by hand.*cifar-10-python.tar.gz.*--data FOLDER") as failed:
        find_data()
    assert str(failed.value).isprintable()


def test_status_of_missing_damaged_and_complete_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = check_data()
    assert (status.chosen_by, status.folder, status.complete) == ("the cache folder", cache, False)
    assert set(status.files.values()) == {"missing"}
    write_batches(cache)
    assert set(check_data().files.values()) == {"damaged"}
    assert check_data().train_count == 0
    md5s = {name: hashlib.md5((cache / BATCHES / name).read_bytes()).hexdigest() for name in CIFAR10.archive.files}
    replace_archive(monkeypatch, CIFAR10, files=md5s)
    status = check_data()
    assert (status.complete, status.train_count, status.test_count) == (True, 50_000, 10_000)


def test_data_sets_by_name(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name means the cache folder, unless `$CIFAR_DATA` holds that data set."""
    write_batches(cache)
    assert find_data("cifar10") == find_data() == DataSource("cifar10", cache, CLASS_NAMES)
    with pytest.raises(
        ToolkitError, match=r"CIFAR-100 is not in the cache folder .*`cifar data --fetch --data cifar100`"
    ):
        find_data("cifar100", fetch=False)
    monkeypatch.setenv("CIFAR_DATA", str(write_batches(tmp_path / "variable")))
    assert find_data("cifar10").folder == tmp_path / "variable"
    monkeypatch.setenv("CIFAR_DATA", "demo")
    assert find_data("cifar10").folder == cache
    assert find_data().name == "demo"
    monkeypatch.setenv("CIFAR_DATA", "cifar10")
    assert find_data().folder == cache


def test_a_folder_of_pictures_is_not_written_to(cache: Path, tmp_path: Path) -> None:
    pets = write_split_folder(tmp_path / "pets")
    before = sorted(tmp_path.rglob("*"))
    status = check_data(str(pets))
    assert (status.name, status.folder, status.complete) == ("pictures", pets, True)
    assert (status.train_count, status.test_count) == (None, None)  # not decoded
    for named in (str(pets), "demo"):
        with pytest.raises(UsageError, match="only cifar10 and cifar100 can be downloaded"):
            fetch_data(named)
    assert sorted(tmp_path.rglob("*")) == before


def test_status_of_the_drawn_set(cache: Path) -> None:
    status = check_data("demo")
    assert (status.name, status.folder, status.complete) == ("demo", None, True)
    assert (status.train_count, status.test_count) == (4_000, 1_000)


# Reading


def test_the_files_and_md5s_are_those_of_torchvision() -> None:
    meta = TORCHVISION_CIFAR10.meta
    known = dict(TORCHVISION_CIFAR10.train_list + TORCHVISION_CIFAR10.test_list) | {meta["filename"]: meta["md5"]}
    assert CIFAR10.archive.files == known
    assert CIFAR10.archive.md5 == TORCHVISION_CIFAR10.tgz_md5
    assert CIFAR10.archive.urls[0] == TORCHVISION_CIFAR10.url
    assert CIFAR10.archive.folder == TORCHVISION_CIFAR10.base_folder


def test_cifar100_is_that_of_torchvision() -> None:
    reader = TORCHVISION_CIFAR100
    files = dict([*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])])
    archive = CIFAR100.archive
    assert (archive.files, archive.md5, archive.urls[0]) == (files, reader.tgz_md5, reader.url)
    assert archive.folder == reader.base_folder
    assert len(set(CIFAR100.class_names)) == 100


def test_reads_pixels_and_labels_in_the_files_order(tmp_path: Path) -> None:
    write_batches(tmp_path)
    train = read_cifar(expecting(tmp_path), tmp_path, train=True)
    test = read_cifar(expecting(tmp_path), tmp_path, train=False)
    assert (len(train), len(test)) == (20, 4)
    assert train.images.dtype == torch.uint8
    assert train.images.is_contiguous()
    assert train.labels.tolist() == [label for batch in range(5) for label in (batch, 1, 2, 3)]
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)  # a row: red, then green, then blue
    assert torch.equal(train.images[:4], torch.from_numpy(pixels.reshape(4, 3, 32, 32)))


@pytest.mark.parametrize("train", [True, False])
def test_damaged_files_are_refused_with_a_remedy(tmp_path: Path, train: bool) -> None:
    source = DataSource(name="cifar10", folder=write_batches(tmp_path), class_names=CLASS_NAMES)
    with pytest.raises(ToolkitError, match=r"damaged or incomplete.*cifar data --fetch --data"):
        source.train() if train else source.test()


def test_other_class_names_are_refused(tmp_path: Path) -> None:
    write_batches(tmp_path)
    meta = {"label_names": list(CLASS_NAMES[::-1])}
    (tmp_path / BATCHES / "batches.meta").write_bytes(pickle.dumps(meta))
    with pytest.raises(ToolkitError, match="have other class names"):
        read_cifar(expecting(tmp_path), tmp_path, train=True)


def test_sizes_and_balance_of_the_drawn_set() -> None:
    source = find_data("demo")
    train, test = source.train(), source.test()
    assert (len(train), len(test)) == (4_000, 1_000)
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10


def test_take_keeps_images_and_labels_together() -> None:
    images = Images(images=torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), labels=torch.arange(4))
    taken = images.take(torch.tensor([3, 1]))
    assert taken.images.flatten().tolist() == taken.labels.tolist() == [3, 1]


# Validation split


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    fraction=st.floats(0, 0.6),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_split_is_sorted_disjoint_complete_and_in_proportion(labels: list[int], fraction: float, seed: int) -> None:
    val_size = int(fraction * len(labels))
    tensor = torch.tensor(labels)
    try:
        train, val = split(tensor, val_size, seed=seed)
    except UsageError:  # only where some class would keep no image
        assert val_size > len(labels) - len(set(labels))
        return
    assert sorted(train.tolist() + val.tolist()) == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist())
    assert val.tolist() == sorted(val.tolist())
    assert len(val) == val_size
    kept = {label: int((tensor[train] == label).sum()) for label in set(labels)}
    assert min(kept.values()) >= 1
    if min(kept.values()) > 1:  # else a class may have passed a part of its share on to others
        for label, count in kept.items():
            assert abs(labels.count(label) - count - val_size * labels.count(label) / len(labels)) < 1


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=60), share=st.floats(0.001, 0.999))
@settings(deadline=None)
def test_a_share_holds_out_of_each_class(labels: list[int], share: float) -> None:
    tensor = torch.tensor(labels)
    train, val = split(tensor, share, seed=0)
    assert sorted(train.tolist() + val.tolist()) == list(range(len(labels)))
    for label in set(labels):
        count, held_out = labels.count(label), int((tensor[val] == label).sum())
        assert held_out == (0 if count == 1 else min(max(1, round(share * count)), count - 1))


@given(kinds=st.lists(st.integers(0, 11), min_size=1, max_size=60), share=st.floats(0.001, 0.999))
@settings(deadline=None)
def test_equal_digests_of_a_class_stay_on_one_side(kinds: list[int], share: float) -> None:
    """Twelve pictures in three classes, each any number of times; no more are held out than without repetitions."""
    labels, digests = torch.tensor([kind % 3 for kind in kinds]), [bytes([kind]) for kind in kinds]
    train, val = split(labels, share, seed=0, digests=digests)
    assert sorted(train.tolist() + val.tolist()) == list(range(len(labels)))
    assert not {kinds[index] for index in train} & {kinds[index] for index in val}
    most = split(labels, share, seed=0)[1]
    counts = [labels[indices].bincount(minlength=3) for indices in (val, most)]
    assert (counts[0] <= counts[1]).all()


def test_digests_that_all_differ_change_nothing() -> None:
    labels, digests = torch.arange(100) % 7, [bytes([index]) for index in range(100)]
    for val_size in (0, 0.1, 30):
        without, with_digests = (split(labels, val_size, seed=0, digests=given) for given in (None, digests))
        assert torch.equal(without[0], with_digests[0])
        assert torch.equal(without[1], with_digests[1])


def test_a_class_of_one_picture_is_never_held_out() -> None:
    labels = torch.tensor([0] * 6 + [1] + [2] * 3)
    train, val = split(labels, 7, seed=0)
    assert labels[train].tolist() == [0, 1, 2]
    assert len(val) == 7
    with pytest.raises(UsageError, match="of 10 training images in 3 classes at most 7 can be held out"):
        split(labels, 8, seed=0)


def test_split_depends_on_its_arguments_alone() -> None:
    labels = torch.arange(100) % 10
    torch.manual_seed(1)
    first = split(labels, 20, seed=7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = split(labels, 20, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert not torch.equal(split(labels, 20, seed=8)[1], first[1])


def test_no_validation_images() -> None:
    train, val = split(torch.arange(10), 0, seed=0)
    assert train.tolist() == list(range(10))
    assert val.shape == (0,)
    assert val.dtype == torch.int64


@pytest.mark.parametrize("val_size", [-1, 100, 101, 1_000])
def test_impossible_validation_sizes_are_usage_errors(val_size: int) -> None:
    with pytest.raises(UsageError, match=str(val_size)):
        split(torch.arange(100) % 10, val_size, seed=0)


# Identity and samples


def test_identity_is_a_sha256_of_pixels_then_labels() -> None:
    images = Images(images=torch.arange(6, dtype=torch.uint8).view(2, 3, 1, 1), labels=torch.tensor([1, 258]))
    expected = hashlib.sha256(bytes(range(6)) + bytes([1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0])).hexdigest()
    assert identify_data("demo", images) == {"name": "demo", "train_sha256": expected}


def test_samples_are_the_first_test_images_of_each_class(tmp_path: Path) -> None:
    source = find_data("demo")
    paths = write_samples(source, tmp_path / "new", per_class=2)
    names = [f"{name}-000{number}.png" for name in DRAWN_CLASSES for number in (1, 2)]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    test = source.test()
    second_ring = (test.labels == DRAWN_CLASSES.index("ring")).nonzero()[1].item()
    with Image.open(tmp_path / "new" / "ring-0002.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(picture), test.images[second_ring].permute(1, 2, 0).numpy())


def test_samples_of_classes_with_similar_names_have_files_of_their_own(tmp_path: Path) -> None:
    source = FixedSource("colored", None, ("a:b", "a?b"), test_images=colored_images(2, seed=1))
    paths = write_samples(source, tmp_path)
    assert len({path.name for path in paths}) == 2
    for path, image in zip(paths, source.test().images, strict=True):
        with Image.open(path) as picture:
            assert np.array_equal(np.asarray(picture), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("per_class", [0, -1, 101])
def test_impossible_numbers_of_samples_are_usage_errors(tmp_path: Path, per_class: int) -> None:
    with pytest.raises(UsageError, match=r"1 to 100"):
        write_samples(find_data("demo"), tmp_path, per_class=per_class)


# The real CIFAR-10


@pytest.mark.realdata
@pytest.mark.skipif(os.environ.get("CIFAR_DATA", "demo") in ("", "demo"), reason="$CIFAR_DATA names no folder")
class TestRealData:
    @pytest.fixture(scope="class")
    def train(self) -> Images:
        return find_data().train()

    def test_checksums(self) -> None:
        status = check_data()
        assert set(status.files.values()) == {"ok"}
        assert (status.train_count, status.test_count) == (50_000, 10_000)

    def test_shapes_and_class_counts(self, train: Images) -> None:
        test = find_data().test()
        assert train.images.shape == (50_000, 3, 32, 32)
        assert test.images.shape == (10_000, 3, 32, 32)
        assert train.labels.bincount().tolist() == [5_000] * 10
        assert test.labels.bincount().tolist() == [1_000] * 10

    def test_mean_and_std_are_those_that_normalize(self, train: Images) -> None:
        values = torch.arange(256, dtype=torch.float64) / 255
        for channel in range(3):
            counts = torch.bincount(train.images[:, channel].flatten(), minlength=256).double()
            mean = (counts * values).sum() / counts.sum()
            std = ((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt()
            assert round(mean.item(), 4) == MEAN[channel]
            assert round(std.item(), 4) == STD[channel]

    def test_the_split_holds_out_500_of_each_class(self, train: Images) -> None:
        train_indices, val_indices = split(train.labels, 5_000, seed=0)
        assert len(train_indices) == 45_000
        assert train.labels[val_indices].bincount().tolist() == [500] * 10

    def test_written_out_as_png_files_it_gives_the_same_tensors(self, train: Images, tmp_path: Path) -> None:
        test = find_data().test()
        parts = {"train": train.take(torch.arange(300)), "test": test.take(torch.arange(200))}
        for name, images in parts.items():
            for number, (pixels, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
                folder = tmp_path / "png" / name / CLASS_NAMES[label]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        source = open_pictures(tmp_path / "png")
        assert source.class_names == CLASS_NAMES
        for images, read in ((parts["train"], source.train()), (parts["test"], source.test())):
            assert len(read) == len(images)
            for label in range(10):
                assert pixels_of(read.images[read.labels == label]) == pixels_of(images.images[images.labels == label])

    def test_identity(self, train: Images) -> None:
        known = "973ef2abb5897efc795681a4d79a6f5f642fa2bcb1a828f7476017c89db53a57"
        assert identify_data("cifar10", train) == {"name": "cifar10", "train_sha256": known}
