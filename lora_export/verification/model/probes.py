"""Makes probes: seeded inputs inside a model's declared domain, of sizes that are never traced.

A proof on the traced sizes says little: a graph with a fixed dimension agrees there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.errors import InputError, UsageError
from lora_export.models.inputs.arrays import read_arrays
from lora_export.models.inputs.grammar import FLOATS
from lora_export.records import Span, example_sizes, size_of, spans_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from lora_export.records import InputSpec

    #: Arrays of the declared dtypes, by input name.
    Probe = dict[str, NDArray[Any]]

BATCHES = (1, 3)
"""The batch sizes of the probes."""

LENGTHS = (7, 19, 13, 9, 21, 15)
"""The other sizes of the probes. None is 2 modulo 3, as every traced size is."""

SHORT = (6, 4, 3, 1)
"""The sizes for a dimension that takes none of LENGTHS."""

FEW = 3
"""The size of the only probe of a large model."""


def make_probes(
    specs: Sequence[InputSpec],
    seed: int,
    tokens: Sequence[int] = (),
    rounds: int = 1,
    *,
    few: int = 0,
) -> list[Probe]:
    """Make seeded probes: batches of 1 and 3, and odd lengths, none of which was traced.

    Integers lie in [0, high), or in [0, 2) without a declared high. Floats are standard normal, and
    bools are random. An input with `mask` in its name is a mask of real right padding: the first
    row is full, and no row is empty. A row that is alone in each probe is full in the first one,
    and padded in the others; that of an only probe is padded.

    Args:
        specs: the model's inputs.
        seed: of the random numbers.
        tokens: tokens whose rows an adapter has trained. Every second id is one of them, because
            random ids would hardly meet them.
        rounds: multiplies the rows; without a dimension that counts samples, the probes.
        few: make only one probe, of so many short samples. The time that a large model takes grows
            with the number of tokens.

    Returns:
        one dict a probe: input name -> array of the declared dtype.

    Raises:
        UsageError: a dimension has no size that the model takes.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    tables = _few_sizes(specs, few) if few else _size_tables(specs, rounds)
    probes = [
        _probe(specs, sizes, random, is_first=not (place or few))
        for place, sizes in enumerate(tables)
    ]
    if tokens and (ids := _ids(specs, max(tokens))):
        leading = next(spec.leading[1] if spec.leading else 0 for spec in specs if spec.name == ids)
        for probe in probes:
            places = probe[ids][..., leading::2]  # a view
            places[...] = np.resize(np.asarray(tokens), places.shape)
    return probes


def probe_of_sizes(specs: Sequence[InputSpec], sizes: Mapping[str, int], seed: int) -> Probe:
    """Make one seeded probe as `make_probes` does, with these sizes of the named dimensions."""
    import numpy as np

    return _probe(specs, sizes, np.random.default_rng(seed))


def other_sizes(specs: Sequence[InputSpec]) -> list[dict[str, int]]:
    """List the traced sizes with one dimension at a time changed to its size in `make_probes`."""
    traced = example_sizes(specs)
    return [{**traced, name: table[name]} for name in traced for table in _size_tables(specs)]


def _ids(specs: Sequence[InputSpec], largest: int) -> str | None:
    """Return the input of the widest domain, if the largest token is in it."""
    domains = {spec.name: spec.high or 0 for spec in specs if not _is_mask(spec)}
    name = max(domains, key=lambda name: domains[name], default=None)
    return name if name is not None and domains[name] > largest else None


def _size_tables(specs: Sequence[InputSpec], rounds: int = 1) -> list[dict[str, int]]:
    spans, batch = spans_of(specs), _batch_name(specs)
    lengths = [name for name in spans if name != batch]
    tables = []
    for turn, size in enumerate(BATCHES):
        table = {} if batch is None else {batch: size * rounds}
        for place, name in enumerate(lengths):
            usable = usable_numbers(name, spans[name])
            table[name] = spans[name].size(usable[(place + turn) % len(usable)])
        tables.append(table)
    return tables * rounds if batch is None else tables


def usable_numbers(name: str, span: Span) -> list[int]:
    """List the numbers of a span that probes may have, the usual ones where it holds any.

    Raises:
        UsageError: it holds none: the least size is beyond the table of positions.
    """
    usable = [n for n in LENGTHS if span.holds(n)] or [n for n in SHORT if span.holds(n)]
    if not usable:
        raise UsageError(
            f"the model takes {span.most} of {name!r} at most, and {span.size(1)} at least",
            hint="--input 'name=dtype[dim,dim]<high' for each input, with sizes that it takes",
            cause="usage/model-inputs",
        )
    return usable


def _few_sizes(specs: Sequence[InputSpec], samples: int) -> list[dict[str, int]]:
    """Return the sizes of one small probe."""
    spans, batch = spans_of(specs), _batch_name(specs)
    table = {} if batch is None else {batch: samples}
    few = {name: min(FEW, max(usable_numbers(name, span))) for name, span in spans.items()}
    return [{**{name: span.size(few[name]) for name, span in spans.items()}, **table}]


def _batch_name(specs: Sequence[InputSpec]) -> str | None:
    """Return the dynamic dimension that counts samples: by its name, else the first leading one."""
    names = list(example_sizes(specs))
    named = [name for name in names if "batch" in name.lower()]
    leading = [spec.dims[0] for spec in specs if spec.dims and isinstance(spec.dims[0], str)]
    return next(iter([*named, *leading]), None)


def _probe(
    specs: Sequence[InputSpec],
    sizes: Mapping[str, int],
    random: np.random.Generator,
    *,
    is_first: bool = True,
) -> Probe:
    # One table of row lengths for all masks of a probe: two masks must hide the same places.
    lengths: dict[tuple[int, ...], NDArray[Any]] = {}
    probe: Probe = {}
    for spec in specs:
        shape = _shape(spec, sizes)
        if _is_mask(spec) and len(shape) >= 2:
            if shape not in lengths:
                span = spec.spans.get(str(spec.dims[-1]), Span())
                lengths[shape] = _padding(shape, random, span.size(1), is_first=is_first)
            probe[spec.name] = lengths[shape].astype(spec.dtype)
        else:
            probe[spec.name] = _fill(spec, shape, random)
    return probe


def _padding(
    shape: tuple[int, ...], random: np.random.Generator, least: int, *, is_first: bool
) -> NDArray[Any]:
    """Return a mask of `shape`: True up to each row's random length, then False.

    The first row is full, unless it is alone in a later probe; the others have `least` or more.
    """
    import numpy as np

    width = shape[-1]
    lengths = random.integers(least, max(least + 1, width), size=shape[0])
    if is_first or shape[0] > 1:
        lengths[0] = width
    rows = np.arange(width) < lengths.reshape(-1, *([1] * (len(shape) - 1)))
    return np.broadcast_to(rows, shape)


def _fill(spec: InputSpec, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    import numpy as np

    if spec.dtype in FLOATS:
        return np.asarray(random.standard_normal(shape)).astype(spec.dtype)
    if _is_mask(spec):
        return np.ones(shape, dtype=spec.dtype)
    high = 2 if spec.high is None else spec.high
    values = np.asarray(random.integers(0, high, size=shape)).astype(spec.dtype)
    if spec.leading:
        # The declared value stands in the first places, and nowhere else.
        value, count = spec.leading
        values[values == value] = (value + 1) % high
        values[..., :count] = value
    return values


def _is_mask(spec: InputSpec) -> bool:
    return "mask" in spec.name.lower() and spec.dtype not in FLOATS


def _shape(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(size_of(dim, sizes) for dim in spec.dims)


def split_batch(specs: Sequence[InputSpec], probe: Mapping[str, NDArray[Any]]) -> list[Probe]:
    """Split a probe into probes of batch 1; the effect of batching on rounding is measured on them.

    Inputs without the batch dimension go to every sample as they are. The list is empty if no
    dimension counts samples.
    """
    batch = _batch_name(specs)
    axes = {spec.name: spec.dims.index(batch) for spec in specs if batch in spec.dims}
    if batch is None or not axes:
        return []
    name, axis = next(iter(axes.items()))
    return [
        {
            key: value.take([row], axis=axes[key]) if key in axes else value
            for key, value in probe.items()
        }
        for row in range(probe[name].shape[axis])
    ]


def load_probes(path: Path, specs: Sequence[InputSpec]) -> list[Probe]:
    """Read the user's own inputs from an `.npz` file as a probe.

    If they are several samples, the first of them alone is a second probe. A graph with a fixed
    batch size would agree on one size alone.

    path: an archive of one array for each input, of the declared dtype and shape.

    Raises:
        InputError: the file is no `.npz` archive, or an array is missing, unknown, of another
            dtype, of another shape, or out of the declared domain.
    """
    arrays = read_arrays(path)
    _check_names(path, arrays, specs)
    sizes: dict[str, int] = {}
    for spec in specs:
        _check_array(path, spec, arrays[spec.name], sizes)
    whole = {spec.name: arrays[spec.name] for spec in specs}
    samples = split_batch(specs, whole)
    return [whole, *samples[:1]] if len(samples) > 1 else [whole]


def _check_names(path: Path, arrays: Mapping[str, object], specs: Sequence[InputSpec]) -> None:
    wanted = {spec.name for spec in specs}
    if wanted != set(arrays):
        missing, unknown = sorted(wanted - set(arrays)), sorted(set(arrays) - wanted)
        raise InputError(
            f"inputs missing: {missing}, unknown: {unknown}",
            where=str(path),
            hint="give an archive with exactly the declared inputs",
            cause="input/probes",
        )


def _check_array(path: Path, spec: InputSpec, array: NDArray[Any], sizes: dict[str, int]) -> None:
    where = f"{path}: {spec.name}"
    if array.dtype.name != spec.dtype:
        raise InputError(
            f"has dtype {array.dtype}, declared is {spec.dtype}", where=where, cause="input/probes"
        )
    if array.ndim != len(spec.dims):
        raise InputError(
            f"has shape {array.shape}, declared is {list(spec.dims)}",
            where=where,
            cause="input/probes",
        )
    for size, dim in zip(array.shape, spec.dims, strict=True):
        wanted = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
        if size != wanted:
            raise InputError(
                f"has shape {array.shape}: dimension {dim!r} must be {wanted}",
                where=where,
                cause="input/probes",
            )
    if array.size == 0:
        raise InputError("holds no element", where=where, cause="input/probes")
    if spec.high is not None and not (array.min() >= 0 and array.max() < spec.high):
        raise InputError(
            f"holds values outside [0, {spec.high})", where=where, cause="input/probes"
        )
