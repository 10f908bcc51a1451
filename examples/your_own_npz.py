"""A comparison on arrays of your own: any .npz with x_train, y_train, x_test and y_test.

python examples/your_own_npz.py
"""

import numpy as np

from avalanche_mgem.experiment import NamedStream, Training, compare


def main() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 6, 450)
    points = random.normal(size=(6, 20))[labels] + 0.5 * random.normal(size=(450, 20))
    np.savez(
        "points.npz",
        x_train=points[:300],  # float [N, F]; uint8 and images [N, H, W] or [N, H, W, C] too
        y_train=labels[:300],
        x_test=points[300:],
        y_test=labels[300:],
    )
    compare(
        ["naive", "replay", "gem", "mgem-d"],
        stream=NamedStream("split:points.npz", {"n_experiences": 3}),
        training=Training(memory=24, epochs=2),
        seeds=2,
        out="points-compared",
    )


if __name__ == "__main__":
    main()
