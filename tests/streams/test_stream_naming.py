import pytest
from text_cases import WordTokenizer, make_task, write_task

from avalanche_mgem.streams import (
    NAMED_SOURCES,
    STREAM_KINDS,
    make_stream,
    parse_stream_name,
    stream_files,
)

SINGLE_KINDS = [kind for kind in STREAM_KINDS if kind != "domains"]


@pytest.mark.parametrize("kind", list(STREAM_KINDS))
@pytest.mark.parametrize(
    "source", ["digits", "mnist", "fashion-mnist", "my/file.npz", "my-file.npz", "a:b.npz"]
)
@pytest.mark.parametrize("separator", ["-", ":"])
def test_a_name_is_kind_and_source(kind, source, separator):
    assert parse_stream_name(f"{kind}{separator}{source}") == (kind, source)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("permuted-digit", "permuted-digits"),
        ("permutted:digits", "permuted-digits"),
        ("rotate-mnist", "rotated-mnist"),
        ("spilt-mnist", "split-mnist"),
    ],
)
def test_an_unknown_name_gets_the_nearest_and_the_valid_ones(name, nearest):
    with pytest.raises(ValueError, match=f"stream='{name}' .* did you mean .*{nearest}") as caught:
        parse_stream_name(name)
    text = str(caught.value)
    assert all(each in text for each in (*STREAM_KINDS, *NAMED_SOURCES, "domains-digit-five"))


@pytest.mark.parametrize("name", ["", "permuted", "permuted-", "split:.npz", "xyz", "split_digits"])
def test_names_without_kind_or_source_are_refused(name):
    with pytest.raises(ValueError, match=f"stream='{name}' is unknown.*KIND:FILE.npz"):
        parse_stream_name(name)


@pytest.mark.parametrize("kind", SINGLE_KINDS)
def test_a_stream_is_made_by_name(kind):
    stream = make_stream(f"{kind}-digits", n_experiences=2, train_per_experience=9)
    assert [len(each.dataset) for each in stream.train_stream] == [9, 9]


def test_a_stream_is_made_over_the_users_file(arrays, write_npz, tmp_path):
    write_npz(arrays, "mine.npz")
    stream = make_stream("split:mine.npz", data_root=tmp_path, n_experiences=3)
    assert [len(each.dataset) for each in stream.test_stream] == [1, 1, 1]


def test_mnist_is_looked_for_in_data_root(mnist_root):
    stream = make_stream("rotated-mnist", data_root=mnist_root, download=False, n_experiences=2)
    assert stream.train_stream[0].dataset[0][0].shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("kind", "name", "nearest"),
    [
        ("permuted", "n_experience", "n_experiences"),
        ("permuted", "max_angle", ""),
        ("rotated", "angle", "max_angle"),
        ("split", "classes_order", "class_order"),
        ("split", "data", ""),
        ("split", "image_siz", "image_size"),
        ("split", "domains", ""),
        ("domains", "domain", "domains"),
    ],
)
def test_an_unknown_argument_gets_the_nearest(kind, name, nearest):
    hint = f"did you mean .*{nearest}" if nearest else "known: "
    with pytest.raises(ValueError, match=f"{name}=1 is no argument of {kind} streams.*{hint}"):
        make_stream(f"{kind}-mnist", **{"n_experiences": 2, name: 1})


def test_n_experiences_is_asked_for():
    with pytest.raises(ValueError, match="split streams need n_experiences, got seed"):
        make_stream("split-digits", seed=1)


def test_streams_of_domains_are_named_by_set_or_list():
    assert parse_stream_name("domains-digit-five") == ("domains", "digit-five")
    assert parse_stream_name("domains:a.npz,mnist") == ("domains", "a.npz,mnist")
    with pytest.raises(ValueError, match="did you mean 'domains-digit-five'"):
        parse_stream_name("domains-digit-fiv")
    with pytest.raises(ValueError, match=r"stream='domains:a\.npz,b' is unknown"):
        parse_stream_name("domains:a.npz,b")


def test_stream_files_are_those_that_decide_the_samples(arrays, write_npz, tmp_path, mnist_root):
    mine, usps = write_npz(arrays, "mine.npz"), write_npz(arrays, "usps.npz")
    write_npz(arrays, "root/mnist.npz")
    assert stream_files("split-digits") == []
    assert stream_files("split:no.npz", data_root=tmp_path) == []
    assert stream_files("split:mine.npz", data_root=tmp_path) == [mine]
    assert stream_files("domains:mine.npz,digits,usps", data_root=tmp_path) == [mine, usps]
    assert stream_files("domains-digit-five", data_root=tmp_path) == [usps]
    assert stream_files("domains-digit-five", data_root=tmp_path, domains="mnist") == []
    # torchvision's own files come first
    assert stream_files("split-mnist", data_root=mnist_root) == []


def test_text_is_a_stream_of_tasks_in_data_root(tmp_path):
    for name in ("colours", "shades"):
        write_task(tmp_path, make_task(name))
    given = {"tasks": "shades,colours", "tokenizer": WordTokenizer()}
    stream = make_stream("text", data_root=tmp_path, train_per_task=6, **given)
    assert [each.task_name for each in stream.train_stream] == ["shades", "colours"]
    assert [len(each.dataset) for each in stream.train_stream] == [6, 6]
    files = stream_files("text", data_root=tmp_path, tasks="colours")
    assert {path.parent for path in files} == {tmp_path / "colours"}
    assert len(files) == 3
    assert stream_files("text", tasks="1") == []
    with pytest.raises(ValueError, match="n_experiences is no argument of text streams"):
        make_stream("text", n_experiences=2, **given)
    with pytest.raises(ValueError, match="text streams need tasks and tokenizer, got tasks"):
        make_stream("text", tasks="1")
    with pytest.raises(ValueError, match="did you mean 'text'"):
        make_stream("txt")
