"""The states of all random number generators of a process."""

import random

import numpy as np
import torch


def get_random_states() -> dict:
    """Take down where Python, NumPy and torch are in their streams.

    Returns:
        dict: Integers, strings, tuples and tensors alone, so that
        ``torch.load(..., weights_only=True)`` reads it. ``cuda`` (of the
        current device) is there only once the process uses one.
    """
    name, keys, *rest = np.random.get_state()
    states = dict(
        python=random.getstate(),
        numpy=(name, torch.from_numpy(keys.astype(np.int64)), *rest),
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict) -> None:
    """Go on with the streams that :func:`get_random_states` took down."""
    version, words, gauss = states['python']
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())


def seed_batch(*entropy: int) -> None:
    """Seed Python, NumPy and torch's CPU generator from integers.

    Other devices keep their streams: data is made on the CPU.

    Args:
        *entropy: Non-negative integers; other integers, other streams.
    """
    words = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    # torch.manual_seed would also note down a seed for devices, each time.
    torch.default_generator.manual_seed(int(words[2]))
