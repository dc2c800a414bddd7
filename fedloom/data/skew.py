"""Uneven partitions: clients that differ in labels, in size, or by where their data comes from.

As in `fedloom.data.partition`, each function returns the indices of every client, in ascending order; the
parts are disjoint and leave nothing out, and depend on the arguments alone.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int64

from fedloom.data.randomness import numpy_rng
from fedloom.errors import UserError

Shares = list[Int64[np.ndarray, " _share"]]

ATTEMPTS = 1000
"""Draws before a Dirichlet partition counts as impossible."""
_MOST_NUMBERS = 10**7
"""Numbers that these draws make altogether, a few seconds: many labels and clients mean fewer draws."""


def dirichlet(
    labels: Sequence[str],
    clients: int,
    alpha: float,
    min_size: int,
    seed: int,
    option: str = "num_clients",
) -> Shares:
    """Divides each label's examples among the clients in proportions drawn from Dirichlet(alpha).

    A small alpha gives every client a few labels of its own, a large one (100) nearly equal shares of all.
    The whole draw is repeated until every client has `min_size` examples. Source: Hsu et al. 2019,
    arXiv:1909.06335, in the form of Yurochkin et al. 2019, arXiv:1905.12022 (a draw per label, over clients),
    which leaves no example out.

    Args:
        labels: The examples' labels.
        clients: How many clients share them.
        alpha: Concentration, the same for all clients; above 0.
        min_size: The fewest examples that a client may have; at least 1.
        seed: The seed of the run.
        option: The option that gave `clients`, for messages.

    Raises:
        UserError: If no draw gave every client `min_size` examples, or a number is out of range.
    """
    _check_room(len(labels), clients, min_size, option)
    if not 0 < alpha < float("inf"):
        raise UserError(f"alpha is {alpha}; it must be above 0 (0.1: very uneven, 100: nearly even).")
    _, classes = np.unique(np.asarray(labels), return_inverse=True)
    _check_labels(int(classes.max()) + 1, clients)
    taken = _draw(np.bincount(classes), clients, alpha, min_size, seed)
    order = numpy_rng(seed, "dirichlet order").permutation(len(labels))
    by_label = order[np.argsort(classes[order], kind="stable")]
    owners = np.repeat(np.tile(np.arange(clients), len(taken)), taken.ravel())
    by_client = by_label[np.argsort(owners, kind="stable")]
    return [np.sort(part) for part in np.split(by_client, np.cumsum(taken.sum(axis=0))[:-1])]


def quantity(
    examples: int, clients: int, alpha: float, min_size: int, seed: int, option: str = "num_clients"
) -> Shares:
    """Deals the examples out at random, in shares whose sizes are drawn from Dirichlet(alpha).

    It is `dirichlet` with one label for all. Arguments and errors are as there; `examples` says how many
    there are. Source: Li et al. 2022, arXiv:2102.02079 ("quantity skew").
    """
    return dirichlet([""] * examples, clients, alpha, min_size, seed, option)


def shards(
    labels: Sequence[str], clients: int, labels_per_client: int, seed: int, option: str = "num_clients"
) -> Shares:
    """Gives every client examples of exactly `labels_per_client` labels.

    A label's examples are divided evenly among the clients that have it, and a label with more examples has
    more such clients. After McMahan et al. 2017, arXiv:1602.05629, whose shards of equal size may lie across
    the border of two labels; these never do.

    Args:
        labels: The examples' labels.
        clients: How many clients share them.
        labels_per_client: Labels of each client.
        seed: The seed of the run.
        option: The option that gave `clients`, for messages.

    Raises:
        UserError: If there are too few labels, clients or examples for that.
    """
    _check_room(len(labels), clients, 1, option)
    names, classes = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.bincount(classes)
    _check_labels(len(names), clients)
    if not 1 <= labels_per_client <= len(names):
        listed = ", ".join(map(str, names[:10])) + (", ..." if len(names) > 10 else "")
        raise UserError(
            f"labels_per_client is {labels_per_client}; the data has {len(names)} labels ({listed}), so it "
            f"must be 1 to {len(names)}."
        )
    pairs = clients * labels_per_client
    if pairs < len(names):
        raise UserError(
            f"labels_per_client is {labels_per_client}, so {clients} clients have {pairs} of the "
            f"{len(names)} labels at most, and the others' examples would be left out. Use "
            f"--labels_per_client {-(-len(names) // clients)} or more, or more clients."
        )
    room = np.minimum(counts, clients)
    if room.sum() < pairs:
        raise UserError(
            f"labels_per_client is {labels_per_client}, which needs an example for each of {pairs} pairs of "
            f"client and label, but the data can fill {room.sum()} at most. Use a smaller "
            "--labels_per_client, or fewer clients."
        )
    rng = numpy_rng(seed, "shards")
    owners = _assign(_owners(counts, room, pairs), clients, labels_per_client, rng)
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    order = rng.permutation(len(labels))
    by_label = order[np.argsort(classes[order], kind="stable")]
    for having, members in zip(owners, np.split(by_label, np.cumsum(counts)[:-1]), strict=True):
        for client, share in zip(having, np.array_split(members, len(having)), strict=True):
            parts[client].append(share)
    return [np.sort(np.concatenate(part)) for part in parts]


def by_field(values: Sequence[Hashable], clients: int | None = None, option: str = "num_clients") -> Shares:
    """Keeps the examples of each value (author, hospital, topic) together.

    Where there are more values than clients, the next largest value's examples go to the client that has the
    fewest so far. Nothing is drawn.

    Args:
        values: The examples' values.
        clients: How many clients share them; None: one for each value.
        option: The option that gave `clients`, for messages.

    Raises:
        UserError: If there are fewer values than clients.
    """
    sizes = Counter(values)
    clients = len(sizes) if clients is None else clients
    if not 1 <= clients <= len(sizes):
        raise UserError(
            f"{option} is {clients}, but the field has {len(sizes)} different values and the examples of "
            f"one stay together. Use --{option} 1 to {len(sizes)}, or another field."
        )
    # By name where sizes are equal, so that the order of the rows does not matter.
    largest_first = sorted(sizes, key=lambda value: (-sizes[value], str(value)))
    loads = np.zeros(clients, dtype=np.int64)
    client_of: dict[Hashable, int] = {}
    for value in largest_first:
        client_of[value] = int(loads.argmin())
        loads[client_of[value]] += sizes[value]
    having = np.array([client_of[value] for value in values], dtype=np.int64)
    return [np.flatnonzero(having == client) for client in range(clients)]


def _check_room(examples: int, clients: int, min_size: int, option: str) -> None:
    if clients < 1 or min_size < 1:
        raise UserError(f"{option} is {clients} and min_size {min_size}; both must be at least 1.")
    if clients * min_size > examples:
        fixes = [f"--min_size {examples // clients} or less"] if examples >= clients else []
        fixes += [f"--{option} {examples // min_size} or less"] if examples >= min_size else []
        raise UserError(
            f"{option} is {clients} and min_size {min_size}, which needs {clients * min_size} examples, "
            f"but there are {examples}. Use {', or '.join([*fixes, 'more data'])}."
        )


def _check_labels(labels: int, clients: int) -> None:
    if labels * clients > _MOST_NUMBERS:
        raise UserError(
            f"there are {labels:,} labels to divide among {clients:,} clients, more than goes by label: each "
            "must stand for many examples. Use --partition quantity or --partition iid."
        )


def _draw(
    counts: Int64[np.ndarray, " labels"], clients: int, alpha: float, min_size: int, seed: int
) -> Int64[np.ndarray, "labels clients"]:
    """Draws how many examples of each label every client takes."""
    best = -1
    attempts = min(ATTEMPTS, _MOST_NUMBERS // (clients * len(counts)))
    for attempt in range(attempts):
        rng = numpy_rng(seed, "dirichlet", attempt)
        proportions = rng.dirichlet(np.full(clients, alpha), size=len(counts))
        if not np.allclose(proportions.sum(axis=1), 1.0):
            continue  # so small an alpha that all proportions were rounded to 0, or to no number
        ends = np.floor(np.cumsum(proportions, axis=1) * counts[:, None]).astype(np.int64)
        ends[:, -1] = counts  # the sum of proportions may round to a little less than 1
        taken = np.diff(ends, axis=1, prepend=0)
        smallest = int(taken.sum(axis=0).min())
        if smallest >= min_size:
            return taken
        best = max(best, smallest)
    lower = f"--min_size {best} or less, " if best > 0 else ""
    raise UserError(
        f"min_size is {min_size}, but none of {attempts} draws with alpha {alpha:g} gave each of the "
        f"{clients} clients so many of the {counts.sum()} examples; the best gave the smallest client "
        f"{max(best, 0)}. Use {lower}a larger --alpha, or fewer clients."
    )


def _owners(
    counts: Int64[np.ndarray, " labels"], room: Int64[np.ndarray, " labels"], pairs: int
) -> Int64[np.ndarray, " labels"]:
    """How many clients have each label: at least one, at most `room`, otherwise in proportion to `counts`."""
    owners = np.ones_like(counts)
    # The next one goes to the label whose owners have most examples each (D'Hondt's rule).
    waiting = [(-float(count), label) for label, count in enumerate(counts) if room[label] > 1]
    heapq.heapify(waiting)
    for _ in range(pairs - len(counts)):
        _, label = heapq.heappop(waiting)
        owners[label] += 1
        if owners[label] < room[label]:
            heapq.heappush(waiting, (-counts[label] / owners[label], label))
    return owners


def _assign(
    owners: Int64[np.ndarray, " labels"], clients: int, labels_per_client: int, rng: np.random.Generator
) -> list[list[int]]:
    """Deals `labels_per_client` different labels out to each client; returns each label's clients."""
    left = owners.copy()
    having: list[list[int]] = [[] for _ in owners]
    for client in rng.permutation(clients):
        # Whoever takes the labels with most owners still missing leaves the others a choice to the end.
        tie = rng.permutation(len(left))
        for label in np.lexsort((tie, -left))[:labels_per_client]:
            having[label].append(int(client))
            left[label] -= 1
    return having
