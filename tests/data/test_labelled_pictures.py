from mobilemamba.data.labelled_pictures import FileSource


def test_file_source() -> None:
    source = FileSource([("a/0.png", 3), ("b/1.png", 0)])
    assert source.labels.tolist() == [3, 0]
    assert source.name(1) == source.open(1) == "b/1.png"
