"""A comparison with a method, a stream and a model of one's own.

python examples/compare_from_python.py
"""

from torch import nn

from avalanche_mgem.experiment import METHODS, NamedStream, compare


def small_network(sample_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    channels, height, width = sample_shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (height // 2) * (width // 2), n_classes),
    )


def main() -> None:
    by_layer = METHODS["mgem-pd"].variant("by layer", parameter_groups="layer")
    everything_but_the_head = METHODS["mgem-p"].variant(
        "head is free",
        parameter_groups={"convolution": ["0"]},
        unassigned_parameters="free",
    )
    compare(
        ["naive", "gem", by_layer, everything_but_the_head],
        stream=NamedStream("rotated-digits", {"n_experiences": 4, "train_per_experience": 200}),
        model=small_network,
        seeds=2,
        out="mgem-from-python",
    )


if __name__ == "__main__":
    main()
