"""Selection against a stable NumPy sort, on every float type and under every transformation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsparse import compiled
from jaxsparse.selection import _cut, global_top_k_masks, kernels, kth_largest, top_k_mask
from jaxsparse.selection.top_k import grown_mask
from tests import reference

BATCH = 500
FEW = _cut._FEW
SHAPES = {"bfloat16": (9, 7), "float16": (3, 4, 5), "float32": (65,), "float64": (33,)}


@pytest.fixture(scope="module", params=["histogram", "counting", "compiled"])
def way(request):
    """Digits are settled by a histogram for many scores on a CPU and by counts elsewhere: here, by
    both for any number. On one CPU device a compiled kernel does it where there is one.

    The way follows backend and size, with no public switch, so it is put in by hand, and whatever
    was compiled before is dropped. (Along an axis, digits are always counted.)
    """
    if request.param == "compiled":
        if not kernels.exist():
            pytest.skip("no compiled kernel")
        with compiled.kernels("compiled"):
            yield request.param
        return
    patch = pytest.MonkeyPatch()
    patch.setattr(_cut, "_FEW", 0 if request.param == "histogram" else 2**31)
    jax.clear_caches()
    assert _cut._width(1, None) == (16 if request.param == "histogram" else 1)
    with compiled.kernels("xla"):
        yield request.param
    patch.undo()
    jax.clear_caches()


@pytest.fixture(params=list(SHAPES))
def dtype(request):
    """A float type, with 64 bits switched on for the one that needs them."""
    if request.param == "float64":
        jax.config.update("jax_enable_x64", True)
    yield jnp.dtype(request.param)
    jax.config.update("jax_enable_x64", False)


def random_scores(rng, dtype, shape):
    """Rows of six kinds: any bits at all, few values, normal, subnormal, mostly zero, constant."""
    unsigned = np.dtype(f"uint{dtype.itemsize * 8}")
    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan], dtype)
    smallest = np.array([1, 2, 3], unsigned).view(dtype)
    special = np.concatenate([special, smallest, -smallest])
    sign = rng.integers(0, 2, shape).astype(unsigned) << unsigned.type(unsigned.itemsize * 8 - 1)
    tiny = rng.integers(0, 1 << jnp.finfo(dtype).nmant, shape, unsigned)
    kinds = [
        rng.integers(0, np.iinfo(unsigned).max, shape, unsigned, endpoint=True).view(dtype),
        rng.choice(special, shape),
        rng.standard_normal(shape).astype(dtype),
        (tiny | sign).view(dtype),
        (rng.standard_normal(shape) * (rng.random(shape) < 0.1)).astype(dtype),
        np.broadcast_to(rng.choice(special, (shape[0],) + (1,) * (len(shape) - 1)), shape),
    ]
    kind = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) % len(kinds)
    return np.choose(kind, [x.view(unsigned) for x in map(np.ascontiguousarray, kinds)]).view(dtype)


def same_number(a, b):
    """Equal with the sign of zero, or both NaN."""
    return bool(np.isnan(a) and np.isnan(b)) or (a == b and np.signbit(a) == np.signbit(b))


def test_agrees_with_a_stable_sort(dtype, way):
    """Two batches of 500 for each type and way; each case is also a k-th largest."""

    @jax.jit
    @jax.vmap
    def select(x, k, where):
        return top_k_mask(x, k, where=where), kth_largest(x, k)

    rng = np.random.default_rng(dtype.itemsize)
    shape = SHAPES[dtype.name]
    n = int(np.prod(shape))
    for batch in range(2):
        x = random_scores(rng, dtype, (BATCH, *shape))
        k = np.concatenate([[0, n, 1] * 4, rng.integers(0, n + 1, BATCH - 12)]).astype(np.int32)
        where = rng.random(x.shape) < rng.random((BATCH,) + (1,) * len(shape)) + 1 - batch
        masks, values = select(jnp.asarray(x), k, where)
        assert masks.dtype == bool and values.dtype == dtype
        for i in range(BATCH):
            assert np.array_equal(masks[i], reference.top_k_mask(x[i], k[i], where[i])), (i, k[i])
            expected = reference.kth_largest(x[i], max(k[i], 1))
            assert same_number(np.asarray(values[i]), expected), (i, k[i])


@pytest.mark.parametrize("axis", [0, -2])
def test_agrees_along_an_axis(axis):
    rng = np.random.default_rng(1)
    x = random_scores(rng, jnp.dtype("float32"), (12, 10, 14))
    shape = x.shape[: axis % 3] + x.shape[axis % 3 + 1 :]
    k = rng.integers(0, x.shape[axis] + 1, shape).astype(np.int32)
    where = rng.random(x.shape) < 0.7

    some = top_k_mask(x, k, axis=axis, where=where)
    assert np.array_equal(some, reference.top_k_mask_along(x, k, axis, where))


def test_global_agrees_with_a_sort_of_all_leaves(way):
    """Two batches of 500 trees of three types; a scalar and an empty leaf are among the four."""

    @jax.jit
    @jax.vmap
    def select(leaves, k, where):
        names = ("b", "d", "a", "c")
        tree = dict(zip(names, leaves, strict=True)) | {"none": None, "text": "dense"}
        eligible = dict(zip(names, where, strict=True)) | {"none": None, "text": None}
        masks = global_top_k_masks(tree, k, where=eligible)
        assert masks.pop("none") is None and masks.pop("text") == "dense"
        return masks

    rng = np.random.default_rng(2)
    layout = {"float32": (3, 5), "bfloat16": (), "float16": (7,), "float64": (4, 0)}
    for batch in range(2):
        leaves = [
            random_scores(rng, jnp.dtype(dtype), (BATCH, *shape)) for dtype, shape in layout.items()
        ]
        leaves[3] = leaves[3].astype(np.float32)
        k = rng.integers(0, 24, BATCH).astype(np.int32)
        where = [rng.random(x.shape) < 1 - 0.4 * batch for x in leaves]
        masks = select([jnp.asarray(x) for x in leaves], k, where)
        in_tree = [2, 0, 3, 1]
        for i in range(BATCH):
            scores, free = ([part[j][i] for j in in_tree] for part in (leaves, where))
            expected = reference.global_top_k_masks(scores, k[i], free)
            for name, mask in zip("abcd", expected, strict=True):
                assert np.array_equal(masks[name][i], mask), i


def test_global_keeps_subnormals_apart_beside_float64():
    jax.config.update("jax_enable_x64", True)
    try:
        leaves = [np.array([1, 3, 2, 0], np.uint32).view(np.float32), np.array([0.0, 1e-310])]
        found = global_top_k_masks([jnp.asarray(x) for x in leaves], 2)
    finally:
        jax.config.update("jax_enable_x64", False)
    assert [x.tolist() for x in found] == [[False, True, True, False], [False, False]]


def test_numpy_arrays_are_arrays_too():
    x = np.array([1.0, 3.0, 2.0], np.float32)
    assert np.asarray(top_k_mask(x, 2)).tolist() == [False, True, True]
    assert np.asarray(global_top_k_masks({"a": x}, 1)["a"]).tolist() == [False, True, False]


def test_ties_beyond_the_first_digit_of_the_index(way):
    """More equal scores than one 16-bit digit of their order can number."""
    x = np.random.default_rng(3).integers(0, 2, (300, 300)).astype(np.float32)
    ones = int(x.sum())
    select = jax.jit(top_k_mask)
    for k in (1, ones - 7, ones, ones + 66_000 - ones // 2):
        assert np.array_equal(select(x, k), reference.top_k_mask(x, k)), k


def test_sizes_at_which_the_way_changes(monkeypatch):
    monkeypatch.setattr(_cut, "_FEW", FEW)
    assert _cut._width(FEW - 1, None) == 1 and _cut._width(FEW, None) == 16
    rng = np.random.default_rng(8)
    for n in (FEW - 1, FEW):
        x = random_scores(rng, jnp.dtype("float32"), (12, n))[rng.integers(12, size=n), range(n)]
        for k in (n // 10, n - 5):
            assert np.array_equal(top_k_mask(x, k), reference.top_k_mask(x, k)), (n, k)


@pytest.mark.parametrize("k", [0, 1])
def test_scalars_and_empty_arrays(k):
    assert top_k_mask(jnp.float32(jnp.nan), k).tolist() == bool(k)
    assert top_k_mask(jnp.zeros((0, 3)), 0).shape == (0, 3)
    assert global_top_k_masks({}, 0) == {}
    assert kth_largest(jnp.float32(-2), 1) == -2


def test_one_trace_for_every_k(count_traces):
    counted = count_traces(lambda x, k: top_k_mask(x, k))
    select, x = jax.jit(counted), jnp.array([3.0, 1.0, 2.0, 3.0])
    for k in range(5):
        assert np.array_equal(select(x, k), top_k_mask(x, k))
        assert int(select(x, jnp.int32(k)).sum()) == k
    assert counted.traces <= 2  # a Python int and an int32 array
    assert not select(x, -3).any() and select(x, 7).all()
    values = jax.jit(kth_largest)
    assert values(x, 0) == 3 and values(x, 9) == 1


def test_batches_nest_and_mix():
    x = random_scores(np.random.default_rng(4), jnp.dtype("float32"), (6, 8))
    ks = np.array([0, 3, 8], np.int32)
    over_k = jax.vmap(top_k_mask, (None, 0))
    over_both = jax.jit(jax.vmap(over_k, (0, None)))(x, ks)
    over_scores = jax.jit(jax.vmap(lambda row: top_k_mask(row, 3)))(x)
    rows = jax.jit(jax.vmap(lambda row, k: top_k_mask(row, k, axis=0)))(x, np.arange(6))
    for i in range(6):
        for j, k in enumerate(ks):
            assert np.array_equal(over_both[i, j], reference.top_k_mask(x[i], k))
        assert np.array_equal(over_scores[i], reference.top_k_mask(x[i], 3))
        assert np.array_equal(rows[i], reference.top_k_mask(x[i], i))


def test_scan_and_grad():
    x = random_scores(np.random.default_rng(5), jnp.dtype("float32"), (8, 16))
    ks = np.arange(8, dtype=np.int32) * 2
    _, masks = jax.lax.scan(lambda carry, a: (carry, top_k_mask(*a)), 0, (x, ks))
    assert all(
        np.array_equal(m, reference.top_k_mask(r, k)) for m, r, k in zip(masks, x, ks, strict=True)
    )

    def loss(w):
        masks = global_top_k_masks([w, -w], 3)
        kept = jnp.where(top_k_mask(jnp.abs(w), 2) | masks[0], w, 0)
        return jnp.sum(kept**2) + 100 * kth_largest(w, 1)

    w = jnp.array([1.0, -4.0, 3.0, 0.5])
    assert jax.jit(jax.grad(loss))(w).tolist() == [2, -8, 6, 0]
    _, tangent = jax.jvp(lambda w: kth_largest(w, 2), (w,), (w,))
    assert tangent == 0


@pytest.fixture
def sharded():
    """`sharded(spec, x)` puts an array on eight devices, four by two."""
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("x", "y"))
    return lambda spec, x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))


def only_counts_travel(select, *args):
    """The compiled function, after a look at what crosses devices."""
    program = jax.jit(select).lower(*args).compile()
    assert not re.search(r"\b(all-gather|all-to-all|sort)", program.as_text())
    return program(*args)


@pytest.mark.parametrize("spec", [("x",), (None, "y"), ("x", "y")], ids=str)
def test_sharded_arrays_stay_where_they_are(spec, sharded, way):
    """Same bits, the mask sharded like its scores, and only counts cross devices."""
    x = random_scores(np.random.default_rng(6), jnp.dtype("float32"), (24, 32))
    placed = sharded(spec, x)
    masks = only_counts_travel(
        lambda x, k: global_top_k_masks([x, jnp.abs(x)], k), placed, np.int32(123)
    )
    expected = reference.global_top_k_masks([x, np.abs(x)], 123)
    assert all(np.array_equal(a, b) for a, b in zip(masks, expected, strict=True))
    assert all(mask.sharding.is_equivalent_to(placed.sharding, 2) for mask in masks)


def test_sharded_rows_and_values(sharded):
    x = random_scores(np.random.default_rng(7), jnp.dtype("float32"), (24, 32))
    rows = np.arange(32, dtype=np.int32) % 25
    placed = sharded(("x", "y"), x)

    def select(x, k, rows):
        return top_k_mask(x, k), top_k_mask(x, rows, axis=0), kth_largest(x, k)

    mask, by_rows, value = only_counts_travel(select, placed, np.int32(123), rows)
    assert np.array_equal(mask, reference.top_k_mask(x, 123))
    assert np.array_equal(by_rows, reference.top_k_mask_along(x, rows, 0))
    assert same_number(np.asarray(value), reference.kth_largest(x, 123))
    for out in (mask, by_rows):
        assert out.sharding.is_equivalent_to(placed.sharding, 2)


@pytest.mark.parametrize("size", [1, 63, 5000, 300_000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_compiled_kernel_marks_what_xla_marks(dtype, size):
    """In pieces for several threads, with ties across them, and among some of the scores only."""
    if not kernels.exist():
        pytest.skip("no compiled kernel")
    rng = np.random.default_rng(size)
    scores = rng.normal(size=size).astype(np.float32)
    scores[::3] = np.round(scores[::3])
    scores[1::97], scores[2::89] = np.nan, np.inf
    scores, some = jnp.asarray(scores).astype(dtype), jnp.asarray(rng.random(size) < 0.3)
    for where in (None, some, ~some):
        for k in {0, 1, size // 9, size // 2, size}:
            found = []
            for name in ("compiled", "xla"):
                with compiled.kernels(name):
                    found.append(top_k_mask(scores, k, where=where))
            np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("n", [2**15, 200_000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_scores_agree_with_a_stable_sort(dtype, n):
    """So many that the compiled kernel, where there is one, starts from a sample."""
    rng = np.random.default_rng(n)
    for x in random_scores(rng, jnp.dtype(dtype), (6, n)):
        where = rng.random(n) < 0.3
        for k in (1, n // 1000, n // 10, n // 2, n - 1):
            mask, value = top_k_mask(x, k, where=where), kth_largest(x, k)
            assert np.array_equal(mask, reference.top_k_mask(x, k, where)), k
            assert np.array_equal(grown_mask(~where, x, k), ~where | mask), k
            assert same_number(np.asarray(value), reference.kth_largest(x, k)), k


@pytest.mark.parametrize("n", [2**15, 200_000])
def test_a_sample_that_misleads(n):
    """The scores that the compiled kernel looks at first are unlike all others."""
    places, random = [], 1
    count = min(n // 64, 2**14)
    for i in range(count):
        random = (random * 6364136223846793005 + 1442695040888963407) % 2**64
        places.append(n * i // count + (random >> 33) % (n // count))
    rng = np.random.default_rng(n)
    for shift in (-10, 10, np.where(np.arange(count) % 2, -10, 10)):
        x = rng.standard_normal(n).astype(np.float32)
        x[places] += shift
        for k in (n // 100, n // 2, n - n // 100):
            assert np.array_equal(top_k_mask(x, k), reference.top_k_mask(x, k)), (shift, k)


def test_no_compiled_kernel_in_what_is_exported_or_sharded(sharded):
    mask = jax.jit(lambda scores: top_k_mask(scores, 5))
    scores = jnp.arange(64.0).reshape(8, 8)
    assert ("jaxsparse_top" in mask.lower(scores).as_text()) == kernels.exist()
    assert "jaxsparse_top" not in str(jax.export.export(mask)(scores).mlir_module())
    assert "jaxsparse_top" not in mask.lower(sharded(("x",), scores)).as_text()
