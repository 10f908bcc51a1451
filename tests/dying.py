"""A stream that ends the process that it is sent to, before that has imported anything heavy."""

import os
import signal


class Dying:
    """Kills who unpickles it."""

    def __reduce__(self):
        return _die, ()


def _die():
    os.kill(os.getpid(), signal.SIGKILL)
