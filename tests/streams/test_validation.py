"""What is held out of training: its proportions, its seed, and that all else stays."""

from collections import Counter

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from data_sets import by_classes
from text_cases import WordTokenizer, make_task
from tiny import tiny_data
from torch.utils.data import TensorDataset

from avalanche_mgem.streams import permuted_stream, scenario_from_datasets, split_stream
from avalanche_mgem.streams.text import label_words_of, text_stream
from avalanche_mgem.streams.validation import with_validation

DATA = tiny_data()


def numbered_pairs():
    """Samples that say which they are: the first feature is their number."""
    pairs, start = [], 0
    for train, test in by_classes(TensorDataset):
        x = train.tensors[0].clone()
        x[:, 0] = torch.arange(start, start + len(x))
        start += len(x)
        pairs.append((TensorDataset(x, train.tensors[1]), test))
    return list(zip(*pairs, strict=True))


STREAMS = {
    "permuted": lambda: permuted_stream(DATA, n_experiences=3, train_per_experience=36),
    "split": lambda: split_stream(DATA, n_experiences=3),
    "split by task": lambda: split_stream(DATA, n_experiences=3, task_labels=True),
    "data sets": lambda: scenario_from_datasets(*numbered_pairs(), task_labels=True),
    "nc": lambda: nc_benchmark(
        *(TensorDataset(DATA.x_train, DATA.y_train),) * 2, 3, task_labels=True, seed=0
    ),
}


def items(dataset):
    return [(tuple(x.flatten().tolist()), int(y), int(t)) for x, y, t in dataset]


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_each_sample_is_trained_on_or_held_out(name, share):
    plain = STREAMS[name]()
    made = with_validation(plain, share, seed=3)
    assert len(made.train_stream) == len(made.validation_stream) == len(made.test_stream) == 3
    for i in range(3):
        train, held_out = made.train_stream[i].dataset, made.validation_stream[i].dataset
        whole = items(plain.train_stream[i].dataset)
        left, taken = items(train), items(held_out)
        assert Counter(left + taken) == Counter(whole)
        assert len(taken) == max(1, round(share * len(whole)))
        assert left == [item for item in whole if item not in set(taken)]  # in their order
        counts, of_whole = Counter(y for _, y, _ in taken), Counter(y for _, y, _ in whole)
        assert all(abs(counts[y] - share * n) < 1 for y, n in of_whole.items())
        assert items(made.test_stream[i].dataset) == items(plain.test_stream[i].dataset)
        for attribute in ("task_labels", "classes_in_this_experience", "current_experience"):
            expected = getattr(plain.train_stream[i], attribute)
            expected = sorted(expected) if isinstance(expected, list) else expected
            assert getattr(made.train_stream[i], attribute) == expected
        assert made.validation_stream[i].task_labels == made.train_stream[i].task_labels


def test_the_seed_decides_which_and_the_random_state_stays():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    made = [with_validation(STREAMS["data sets"](), 0.25, seed=seed) for seed in (0, 0, 1)]
    drawn = [items(scenario.validation_stream[0].dataset) for scenario in made]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_plain_stream_stays_what_it_is():
    plain = STREAMS["split"]()
    before = items(plain.train_stream[1].dataset)
    with_validation(plain, 0.5, seed=0)
    assert items(plain.train_stream[1].dataset) == before
    assert list(plain.streams) == ["train", "test"]


def test_texts_keep_how_they_are_padded_and_what_classes_are_called():
    tasks = [
        make_task(n, w, n_train=24) for n, w in (("a", ("red", "blue")), ("b", ("cat", "dog")))
    ]
    plain = text_stream(tasks, tokenizer=WordTokenizer())
    made = with_validation(plain, 0.25, seed=0)
    assert label_words_of(made) == label_words_of(plain)
    collate = plain.train_stream[0].dataset.collate_fn
    for stream in (made.train_stream, made.validation_stream):
        assert stream[1].dataset.collate_fn == collate
        assert stream[1].task_name == "b"
        collate([stream[1].dataset[0], stream[1].dataset[1]])
    assert [len(s[0].dataset) for s in (made.train_stream, made.validation_stream)] == [18, 6]


def test_an_experience_with_nothing_to_hold_out_is_named():
    one_each = TensorDataset(DATA.x_train[:3], torch.arange(3))
    plain = scenario_from_datasets([one_each], [one_each])
    with pytest.raises(ValueError, match=r"validation=0\.1 needs .* experience 0 has 3 samples"):
        with_validation(plain, 0.1, seed=0)
