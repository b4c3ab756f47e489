from pathlib import Path

import pytest

from mobilemamba.data.imagenet_labels import find_val_labels, imagenet_classes, read_val_labels
from mobilemamba.errors import DataError

PICTURES = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 5)]
WNIDS = ["n01751748", "n09193705", "n02105855", "n04263257"]
LABELS = [65, 970, 230, 809]  # the first four of the real validation part


def test_classes() -> None:
    wnids, names = imagenet_classes()
    assert len(wnids) == len(set(wnids)) == len(set(names)) == 1000
    assert (wnids[0], names[0]) == ("n01440764", "tench")
    assert (wnids[-1], names[-1]) == ("n15075141", "toilet tissue")
    assert [wnids[label] for label in LABELS] == WNIDS
    assert [names[i] for i in (134, 517)] == ["crane (n02012849)", "crane (n03126707)"]
    assert [names[i] for i in (638, 639)] == ["maillot", "maillot, tank suit"]


FORMS = {
    "names and ids": "".join(f"{name} {wnid}\n" for name, wnid in zip(PICTURES, WNIDS, strict=True)),
    "names and numbers": "".join(f"{name} {label}\n" for name, label in zip(PICTURES, LABELS, strict=True)),
    "tabs": "".join(f"{name}\t{label}\n" for name, label in zip(PICTURES, LABELS, strict=True)),
    "commas": "".join(f"{name},{label}\n" for name, label in zip(PICTURES, LABELS, strict=True)),
    "paths": "".join(f"val/{name} {label}\n" for name, label in zip(PICTURES, LABELS, strict=True)),
    "any order, and more": "".join(
        f"{name} {label}\n" for name, label in reversed(list(zip([*PICTURES, "x.JPEG"], [*LABELS, 5], strict=True)))
    ),
    "ids": "".join(f"{wnid}\n" for wnid in WNIDS),
    "windows": "\ufeff" + "".join(f"{wnid}\r\n" for wnid in WNIDS) + "\r\n",
    "kaggle": "ImageId,PredictionString\n"
    + "".join(f"{name[:-5]},{w} 85 1 499 272 {w} 1 2 3 4 \n" for name, w in zip(PICTURES, WNIDS, strict=True)),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path: Path, form: str) -> None:
    (tmp_path / "labels").write_text(FORMS[form], newline="")
    assert read_val_labels(tmp_path / "labels", PICTURES) == LABELS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has 0 lines for 4 pictures"),
        ("\n".join(WNIDS[:3]), r"has 3 lines for 4 pictures: give"),
        ("\n".join([*WNIDS, WNIDS[0]]), r"has 5 lines for 4 pictures"),
        ("\n".join([*WNIDS[:3], "n00000001"]), r"line 4: n00000001 is none of the 1,000"),
        ("\n".join([*WNIDS[:3], "tench"]), r"line 4: 'tench' is no class: expected a WordNet id or a number from 0"),
        ("\n".join(f"{name} 1000" for name in PICTURES), r"line 1: '1000' is no class: .* from 0 to 999"),
        ("\n".join(f"{name} -1" for name in PICTURES), r"line 1: '-1' is no class"),
        ("\n".join(f"{name} 7" for name in PICTURES[1:]), r"no label for 1 of 4 pictures, the first is \S+01.JPEG"),
        (f"{PICTURES[0]} 1\n{PICTURES[1]}", r"line 2: expected a picture's name and its class"),
        (f"{PICTURES[0]} 1\n{PICTURES[0]} 2", r"line 2: \S+ has had another class before"),
        ("ImageId,PredictionString\nx,\n", r"line 2: expected a picture's name and its class"),
        ("ImageId,PredictionString\nx,dog 1 2 3 4\n", r"line 2: 'dog' is no class"),
        ("\0\1\2", r"has 1 lines"),
        ("1\n2\n3\n4\n", r"development kit's numbers .*: give as data.val_labels a file of lines such as"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_val_labels(tmp_path / "labels.txt", PICTURES)
    assert str(tmp_path / "labels.txt") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00\xd8")
    for file in (tmp_path / "labels.txt", tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError, match=r"cannot be read as a text of labels .* data.val_labels"):
            read_val_labels(file, PICTURES)


@pytest.mark.parametrize(
    "place",
    [
        "LOC_val_solution.csv",
        "val.txt",
        "../../../LOC_val_solution.csv",
    ],
)
def test_well_known_places(tmp_path: Path, place: str) -> None:
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    root.mkdir(parents=True)
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).touch()
    assert find_val_labels(root).samefile(root / place)


def test_no_labels_anywhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val has no class folders and .* no file with the labels .* data.val_labels"):
        find_val_labels(tmp_path)
