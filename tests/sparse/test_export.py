"""Sparse networks for other programs: there and back, and in a process without the library."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export as jax_export
from jax.experimental import sparse as jax_sparse

import jaxsparse
from jaxsparse import sparse
from jaxsparse.sparse import export


def random_kernel(shape=(12, 8), density=0.3, seed=0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    return generator.normal(size=shape).astype(dtype), generator.random(shape) < density


def network():
    """Parameters and masks of a small network."""
    kernel, mask = random_kernel()
    head, other = random_kernel((8, 3), 0.5, 1)
    params = {"fc": {"kernel": kernel, "bias": np.ones(8, np.float32)}, "head": head}
    masks = {"fc": {"kernel": mask, "bias": None}, "head": other}
    return jax.tree.map(jax.device_put, params), masks


def mlp(params, x):
    x = jax.nn.relu(x @ params["fc"]["kernel"] + params["fc"]["bias"])
    return x @ params["head"]


X = jax.device_put(np.random.default_rng(7).normal(size=(5, 12)).astype(np.float32))


@pytest.mark.parametrize(
    "kind, axes, shape",
    [
        ("bcoo", "flax", (12, 8)),
        ("bcsr", "flax", (12, 8)),
        ("scipy", "equinox", (8, 12)),
        ("scipy", "flax", (2, 2, 3, 8)),
    ],
)
def test_matrices(kind, axes, shape):
    """Equal to the masked product, and back to the same kernel, explicit zeros too."""
    values, mask = random_kernel(shape)
    values.flat[np.flatnonzero(mask)[0]] = 0.0
    kernel = sparse.CSR.from_dense(values, mask, axes=axes)
    matrix = getattr(export, f"to_{kind}")(kernel)
    dense = np.where(mask, values, 0)
    dense = dense if axes == "equinox" else dense.reshape(-1, 8).T
    np.testing.assert_allclose(
        matrix @ np.asarray(X).T, dense @ np.asarray(X).T, rtol=1e-4, atol=1e-5
    )
    again = export.from_matrix(matrix, shape=shape, axes=axes)
    np.testing.assert_array_equal(again.to_dense(), kernel.to_dense())
    np.testing.assert_array_equal(again.mask, mask)


def test_matrices_of_other_formats():
    """Blocks, and room to spare, which no matrix shows."""
    values, _ = random_kernel((8, 8))
    mask = np.kron(np.eye(2), np.ones((4, 4))) > 0
    for kernel in (
        sparse.Block.from_dense(values, mask, size=(4, 4)),
        sparse.CSR.from_dense(values, mask, capacity=40),
    ):
        matrix = export.to_scipy(kernel)
        assert matrix.nnz == 32
        np.testing.assert_array_equal(matrix.toarray().T, np.where(mask, values, 0))


def test_matrices_that_are_wrong():
    def bcoo(indices, shape=(2, 2)):
        indices = jnp.array(indices, jnp.int32)
        return jax_sparse.BCOO((jnp.ones(len(indices)), indices), shape=shape)

    assert export.from_matrix(bcoo([[1, 0], [2, 2]])).values.shape == (1,)  # JAX fills up so
    with pytest.raises(ValueError, match="outside"):
        export.from_matrix(bcoo([[0, 0], [0, 2]]))
    with pytest.raises(ValueError, match="twice"):
        export.from_matrix(bcoo([[1, 0], [1, 0]]))
    with pytest.raises(ValueError, match="does not hold"):
        export.from_matrix(bcoo([[1, 0]]), shape=(3, 2))
    with pytest.raises(TypeError, match="scipy"):
        export.from_matrix(np.ones((2, 2)))
    with pytest.raises(TypeError, match="compress"):
        export.to_bcsr(jnp.ones((2, 2)))
    unsorted = scipy.sparse.csr_array((np.array([1.0, 2.0]), [1, 0], [0, 2]), shape=(1, 2))
    assert export.from_matrix(unsorted).to_dense().tolist() == [[2.0], [1.0]]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_packed_file(tmp_path, dtype):
    """Back as it was, at the bytes that values and bits take."""
    params, masks = network()
    params["fc"]["kernel"] = params["fc"]["kernel"].astype(dtype)
    params["static"] = masks["static"] = "relu"
    file = tmp_path / "net.safetensors"
    export.save_packed(file, params, masks)
    found, alive = export.load_packed(file, like=params)
    assert found["static"] == "relu" and found["fc"]["kernel"].dtype == dtype
    want = jaxsparse.apply(params, masks)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(alive["head"], masks["head"])
    assert alive["fc"]["bias"].all()
    flat, _ = export.load_packed(file)
    np.testing.assert_array_equal(flat["fc/kernel"], found["fc"]["kernel"])
    data = file.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    living = [int(m.sum()) for m in (masks["fc"]["kernel"], masks["head"])]
    size = np.dtype(dtype).itemsize
    assert len(data) - head == living[0] * size + 96 // 8 + living[1] * 4 + 24 // 8 + 8 * 4


def test_packed_file_of_compressed_kernels(tmp_path):
    params, masks = network()
    export.save_packed(tmp_path / "a", params, masks)
    small = sparse.compress(params, masks | {"fc": masks["fc"] | {"bias": np.ones(8, bool)}})
    export.save_packed(tmp_path / "b", small)
    a, b = (export.load_packed(tmp_path / name) for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_packed_files_that_are_wrong(tmp_path):
    params, masks = network()
    file = tmp_path / "net"
    export.save_packed(file, params, masks)
    with pytest.raises(ValueError, match="fc/kernel"):
        export.load_packed(file, like=params | {"fc": params["fc"] | {"kernel": X}})
    with pytest.raises(ValueError, match="'head'"):
        export.load_packed(file, like={"fc": params["fc"]})
    with pytest.raises(FileNotFoundError):
        export.load_packed(tmp_path / "none")
    whole = file.read_bytes()
    for damaged in (whole[:-5], whole[:40], b"", b"not a file of tensors"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            export.load_packed(file)
    safetensors.numpy.save_file({"a": np.ones(3)}, file)
    with pytest.raises(ValueError, match="was not written by save_packed"):
        export.load_packed(file)
    export.save_packed(file, params, masks)
    tensors = safetensors.numpy.load_file(file)
    with safetensors.safe_open(file, "np") as opened:
        metadata = opened.metadata()
    safetensors.numpy.save_file(tensors | {"head": tensors["head"][1:]}, file, metadata)
    with pytest.raises(ValueError, match="damaged"):
        export.load_packed(file)
    with pytest.raises(TypeError, match="boolean"):
        export.save_packed(file, params, params)


@settings(max_examples=4, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(0, 99))
def test_2_4(groups, outputs, fan_in, seed):
    """Values and two-bit indices, and back; groups may hold fewer than two."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(4 * groups, outputs)).astype(np.float32)
    ranks = generator.random((groups, 4, outputs)).argsort(1)
    mask = (ranks < fan_in).reshape(values.shape)
    small = export.to_2_4(values, mask)
    assert small.values.shape == (outputs, 2 * groups)
    assert small.indices.shape == (outputs, -(-4 * groups // 8)) and small.indices.dtype == np.uint8
    dense, alive = export.from_2_4(small, values.shape)
    np.testing.assert_array_equal(dense, np.where(mask, values, 0))
    assert not (mask & ~np.asarray(alive)).any()
    if fan_in == 2:
        np.testing.assert_array_equal(alive, mask)


def test_2_4_of_the_pattern_and_of_convolutions():
    values, _ = random_kernel((3, 3, 8, 4))
    pattern = {"pattern": jaxsparse.n_m(2, 4), "axes": "flax"}
    mask = jaxsparse.prune_by_magnitude({"kernel": values}, 0.5, **pattern)["kernel"]
    small = export.to_2_4(values, mask)
    assert small.values.size == values.size // 2 and small.indices.size == values.size // 8
    found, alive = export.from_2_4(small, values.shape)
    np.testing.assert_array_equal(alive, mask)
    np.testing.assert_array_equal(found, jnp.where(mask, values, 0))
    with pytest.raises(ValueError, match="more than two"):
        export.to_2_4(values, np.ones(values.shape, bool))
    with pytest.raises(ValueError, match="4 does not divide"):
        export.to_2_4(np.ones((6, 2)), np.zeros((6, 2), bool))
    with pytest.raises(ValueError, match="must have values"):
        export.from_2_4(small, (3, 3, 8, 8))
    with pytest.raises(ValueError, match="twice"):
        export.from_2_4(small._replace(indices=jnp.zeros_like(small.indices)), values.shape)


@pytest.mark.parametrize("examples", [3, 5])
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("density", [0.0, 0.3])
def test_portable_products(density, fixed, examples):
    """A few examples skip zeros, more make the kernel dense."""
    x = X[:examples]
    values, mask = random_kernel(density=density)
    kernel = sparse.CSR.from_dense(values, mask, capacity=None if fixed else 40)
    with sparse.kernels("portable"):
        found, pull = jax.vjp(jax.jit(lambda x: x @ kernel), x)
        (of_x,) = pull(found)
        text = jax.jit(lambda x: x @ kernel).lower(x).as_text()
    assert "custom_call" not in text
    want = np.asarray(x) @ np.where(mask, values, 0)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_x, want @ np.where(mask, values, 0).T, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="kernel must be one of"):
        sparse.kernels("fast")


def test_memory_of_a_file(tmp_path):
    """Many examples need less than one copy of the dense kernel beside what the file holds."""
    values, mask = random_kernel((64, 128), density=0.05)
    kernel, x = sparse.CSR.from_dense(values, mask), jnp.ones((256, 64))
    export.save(tmp_path / "net", lambda k, x: x @ k, kernel, x)
    found = jax.jit(export.load(tmp_path / "net")).lower(x).compile().memory_analysis()
    assert found.temp_size_in_bytes <= values.nbytes


@pytest.mark.parametrize("kernels", ["portable", "xla"])
def test_a_process_without_the_library(tmp_path, kernels):
    """The file alone gives the outputs, and with operations of XLA alone for any batch size."""
    params, masks = network()
    masks["fc"]["bias"] = np.ones(8, bool)
    small = sparse.compress(params, masks)
    size = jax_export.symbolic_shape("b") if kernels == "portable" else (len(X),)
    batch = jax.ShapeDtypeStruct((*size, 12), jnp.float32)
    export.save(tmp_path / "net", mlp, small, batch, kernels=kernels)
    np.save(tmp_path / "x.npy", X)
    program = f"""
        import sys, jax, numpy as np
        run = jax.export.deserialize(bytearray(open(r"{tmp_path}/net", "rb").read())).call
        np.save(r"{tmp_path}/y.npy", run(np.load(r"{tmp_path}/x.npy")))
        assert not any(name.startswith("jaxsparse") for name in sys.modules)
    """
    needed = "export" if kernels == "portable" else "experimental.sparse"
    lines = f"import jax.export, jax.{needed}\n" + textwrap.dedent(program)
    subprocess.run([sys.executable, "-c", lines], check=True, cwd=tmp_path, timeout=120)
    want = mlp(jaxsparse.apply(params, masks), X)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), want, rtol=1e-4, atol=1e-5)
    if kernels == "portable":
        found = export.load(tmp_path / "net")(X[:2])
        np.testing.assert_allclose(found, want[:2], rtol=1e-4, atol=1e-5)


def test_programs_that_no_file_can_hold(tmp_path):
    with pytest.raises(ValueError, match="kernels must be one of"):
        export.save(tmp_path / "net", mlp, network()[0], X, kernels="compiled")
    (tmp_path / "net").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        export.load(tmp_path / "net")
    if sparse.backends()["csr"].compiled:
        kernel = sparse.CSR.from_dense(*random_kernel())
        with pytest.raises(ValueError, match="leave out via"):
            export.save(tmp_path / "net", lambda k, x: k.product(x, via="compiled"), kernel, X)
