"""2D convolution, in the fastest form that the platform of a program has."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jdl.ops import onednn

Array = jax.Array

NHWC = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = NHWC,
    feature_group_count: int = 1,
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated`, faster on CPUs.

    When a program is lowered for a CPU, the forward pass, the input's gradient and the kernel's
    gradient each take the fastest form known for their shape: with the extra `onednn` and a C++
    compiler oneDNN's convolutions, on a program's only device (on two cores of an Intel Xeon XLA's
    take 2.3, 2.0 and 6.6 times as long, medians of 16 shapes); otherwise XLA's convolution, or one
    product with the image's patches (im2col; Chellapilla et al., 2006). `python -m
    benchmarks.convolutions` measures them. On other platforms, with
    groups, dilated inputs, other layouts, a precision or a preferred type, it is XLA's convolution.
    Pass it as `flax.linen.Conv(conv_general_dilated=...)`. Forward and reverse mode of any order
    are supported.

    The forms without oneDNN allocate patches of up to nine times the image's size anew in each
    step: call `jdl.trainer.allocator.configure_allocator` first, as `jdl.train` does.

    Args:
      lhs: (batch, height, width, channels), any float dtype.
      rhs: (rows, columns, channels, features), of the same dtype.
      window_strides: along height and width, in pixels.
      padding: `SAME`, `VALID`, or pixels before and after along height and width.
      lhs_dilation: dilates the input, for a transposed convolution.
      rhs_dilation: dilates the kernel.
      dimension_numbers: as in `jax.lax`.
      feature_group_count: as in `jax.lax`.
      **options: further options of `jax.lax.conv_general_dilated`.

    Returns:
      (batch, height', width', features), dtype of `lhs`.
    """
    further = {name for name, value in options.items() if value not in (None, 1)}
    plain = (
        lhs.ndim == rhs.ndim == 4
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC)
        and lhs.shape[-1] == rhs.shape[2]
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and all(step == 1 for step in lhs_dilation or ())
        and feature_group_count == 1
        and not further  # such as batch_group_count or precision
    )
    if not plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            **options,
        )
    dilation = tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        reach = [(size - 1) * step + 1 for size, step in zip(rhs.shape, dilation, strict=False)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], reach, window_strides, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    window = Window(rhs.shape[:2], tuple(window_strides), pads, dilation)
    return forward_p.bind(lhs, rhs, window=window, size=window.outputs(lhs.shape[1:3]))


class Window(NamedTuple):
    """How a 2D convolution reads its images; pairs are along height and width."""

    kernel: tuple[int, ...]  # rows and columns
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]  # of the kernel

    def outputs(self, size: Sequence[int]) -> tuple[int, ...]:
        """Returns height and width of the result for images of height and width `size`."""
        return tuple(
            max((n + before + after - (k - 1) * d - 1) // s + 1, 0)
            for n, k, s, (before, after), d in zip(size, *self, strict=True)
        )

    def exceeds(self, size: Sequence[int]) -> bool:
        """Whether a dilated kernel is larger than images: oneDNN's kernel gradient then crashes."""
        return any(
            d > 1 and (k - 1) * d >= n
            for n, k, d in zip(size, self.kernel, self.dilation, strict=True)
        )

    @property
    def turned(self) -> "Window":
        """The window by which the flipped kernel maps output gradients to input gradients."""
        padding = tuple(
            ((k - 1) * d - before, (k - 1) * d - after)
            for k, _, (before, after), d in zip(*self, strict=True)
        )
        return self._replace(padding=padding)

    @property
    def keeps_size(self) -> bool:
        """Whether results are as large as images, which are padded as by `SAME`."""
        return self.strides == (1, 1) and self.padding == tuple(
            ((k - 1) * d // 2, (k - 1) * d - (k - 1) * d // 2)
            for k, d in zip(self.kernel, self.dilation, strict=True)
        )


# Three primitives, each the transpose of the others: images (n, h, w, c), kernel (rows, columns, c,
# o) and outputs (n, h', w', o). `size` is height and width of the result.
forward_p = Primitive("conv_general_dilated_forward")  # images, kernel -> outputs
input_p = Primitive("conv_general_dilated_input")  # output gradient, kernel -> image gradient
kernel_p = Primitive("conv_general_dilated_kernel")  # images, output gradient -> kernel gradient

PARTS = (forward_p, input_p, kernel_p)


def _forward_by_xla(x: Array, kernel: Array, window: Window, size: tuple[int, ...]) -> Array:
    del size
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=NHWC,
    )


def _input_by_xla(g: Array, kernel: Array, window: Window, size: tuple[int, ...]) -> Array:
    images = jax.ShapeDtypeStruct((g.shape[0], *size, kernel.shape[2]), g.dtype)
    forward = functools.partial(_forward_by_xla, kernel=kernel, window=window, size=())
    return jax.linear_transpose(forward, images)(g)[0]


def _kernel_by_xla(x: Array, g: Array, window: Window, size: tuple[int, ...]) -> Array:
    kernel = jax.ShapeDtypeStruct((*size, x.shape[-1], g.shape[-1]), x.dtype)
    forward = functools.partial(_forward_by_xla, x, window=window, size=())
    return jax.linear_transpose(forward, kernel)(g)[0]


def _few_channels(channels: int, window: Window) -> bool:
    """Whether a convolution halves images of so few channels that tensor cores idle."""
    wide = window.dilation == (1, 1) and min(window.kernel) > 2
    return channels <= 4 and window.strides == (2, 2) and wide


def _forward_on_gpus(x: Array, kernel: Array, window: Window, size: tuple[int, ...]) -> Array:
    """Forward on GPUs: for few channels, 2x2 pixels become one of four times the channels."""
    if not _few_channels(x.shape[-1], window):
        return _forward_by_xla(x, kernel, window, size)
    (rows, columns, channels, features), (height, width) = kernel.shape, size
    rows, columns = rows + rows % 2, columns + columns % 2
    kernel = lax.pad(
        kernel,
        jnp.zeros((), kernel.dtype),
        [(0, n - k, 0) for n, k in zip((rows, columns), kernel.shape, strict=False)]
        + [(0, 0, 0)] * 2,
    )
    # As many pixels as the windows read: negative padding cuts what none does.
    reach = (2 * (height - 1) + rows, 2 * (width - 1) + columns)
    pads = [
        (before, wanted - before - n, 0)
        for wanted, n, (before, _) in zip(reach, x.shape[1:3], window.padding, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    n = x.shape[0]
    x = x.reshape(n, reach[0] // 2, 2, reach[1] // 2, 2, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, reach[0] // 2, reach[1] // 2, 4 * channels)
    kernel = kernel.reshape(rows // 2, 2, columns // 2, 2, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(rows // 2, columns // 2, 4 * channels, features)
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC)


def _kernel_on_gpus(x: Array, g: Array, window: Window, size: tuple[int, ...]) -> Array:
    """Kernel gradient on GPUs: the transpose of the forward form."""
    kernel = jax.ShapeDtypeStruct((*size, x.shape[-1], g.shape[-1]), x.dtype)
    forward = functools.partial(_forward_on_gpus, x, window=window, size=g.shape[1:3])
    return jax.linear_transpose(forward, kernel)(g)[0]


def _forward(x: Array, kernel: Array, window: Window, size: tuple[int, ...]) -> Array:
    """Forward on CPUs: a product for 1x1 kernels and few channels, else XLA's convolution.

    XLA is fast where results are as large as images, so a `VALID` result is cut from a `SAME` one.
    """
    pixels = window.kernel == (1, 1) and not any(map(any, window.padding))
    if pixels or (kernel[..., 0].size <= 64 and window.dilation == (1, 1)):
        flat = kernel.reshape(-1, kernel.shape[-1])
        return jnp.matmul(_patches(window, x, size), flat)
    same = _same(window)
    starts = [
        begin - before for (begin, _), (before, _) in zip(same.padding, window.padding, strict=True)
    ]
    if window.strides == (1, 1) and not window.keeps_size and min(starts) >= 0:
        (i, j), (height, width) = starts, size
        whole = lax.optimization_barrier(_forward_by_xla(x, kernel, same, ()))
        return whole[:, i : i + height, j : j + width]
    return _forward_by_xla(x, kernel, window, size)


def _input(g: Array, kernel: Array, window: Window, size: tuple[int, ...]) -> Array:
    """Input gradient on CPUs: a convolution with the flipped kernel, or scattered patches."""
    if window.strides == (1, 1) and window.kernel != (1, 1):
        turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
        return _forward_by_xla(g, turned, window.turned, size)
    # XLA would convolve a gradient that is dilated with zeros.
    images = jax.ShapeDtypeStruct((g.shape[0], *size, kernel.shape[2]), g.dtype)
    flat = kernel.reshape(-1, kernel.shape[-1])
    product = jnp.matmul(g, flat.T)
    return jax.linear_transpose(lambda x: _patches(window, x, g.shape[1:3]), images)(product)[0]


def _kernel(x: Array, g: Array, window: Window, size: tuple[int, ...]) -> Array:
    """Kernel gradient on CPUs: XLA's where results are as large as images, else one product."""
    if window.keeps_size and window.kernel != (1, 1) and x.shape[-1] >= 16:
        return _kernel_by_xla(x, g, window, size)
    patches = _patches(window, x, g.shape[1:3])
    rows = g.reshape(-1, g.shape[-1])
    product = jnp.matmul(patches.reshape(-1, patches.shape[-1]).T, rows)
    return product.reshape(*size, x.shape[-1], g.shape[-1])


def _same(window: Window) -> Window:
    reach = [(k - 1) * d for k, d in zip(window.kernel, window.dilation, strict=True)]
    return window._replace(padding=tuple((n // 2, n - n // 2) for n in reach))


def _patches(window: Window, x: Array, size: tuple[int, ...]) -> Array:
    """The receptive field of each output pixel, (batch, height', width', rows*columns*channels)."""
    kernel, strides, padding, dilation = window
    if any(map(any, padding)):
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)))

    def shifted(*begin: int) -> Array:
        rows, columns = (
            slice(b * d, b * d + max((n - 1) * s + 1, 0), s)
            for b, d, n, s in zip(begin, dilation, size, strides, strict=True)
        )
        return x[:, rows, columns]

    each = [shifted(i, j) for i in range(kernel[0]) for j in range(kernel[1])]
    return each[0] if len(each) == 1 else jnp.concatenate(each, axis=-1)


BY_XLA: tuple[Callable[..., Array], ...] = (_forward_by_xla, _input_by_xla, _kernel_by_xla)
ON_CPUS: tuple[Callable[..., Array], ...] = (_forward, _input, _kernel)
ON_GPUS: tuple[Callable[..., Array], ...] = (_forward_on_gpus, _input_by_xla, _kernel_on_gpus)


def _shape(part: int, a: Any, b: Any, size: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a part's result."""
    if part == 2:
        return (*size, a.shape[-1], b.shape[-1])
    return (a.shape[0], *size, b.shape[3 if part == 0 else 2])


def describe(part: int, a: Any, b: Any, window: Window, size: tuple[int, ...]) -> np.ndarray:
    """The numbers by which oneDNN's binding knows a convolution; see `onednn.cc`."""
    images, outputs = ((a.shape[1:3], size), (size, a.shape[1:3]), (a.shape[1:3], b.shape[1:3]))[
        part
    ]
    channels = b.shape[2] if part == 1 else a.shape[-1]
    features = a.shape[-1] if part == 1 else b.shape[-1]
    before, after = zip(*window.padding, strict=True)
    dilation = [step - 1 for step in window.dilation]
    numbers = [a.shape[0], *images, channels, *window.kernel, features, *outputs]
    return np.array([*numbers, *window.strides, *dilation, *before, *after], np.int64)


def _lower(part: int, ctx: Any, a: Any, b: Any, window: Window, size: tuple[int, ...]) -> Any:
    """Lowers a part for a CPU: to oneDNN's convolution, or to operations of XLA."""
    x, y = ctx.avals_in
    alone = onednn.is_alone(ctx.module_context) and 0 not in (*x.shape, *y.shape, *size)
    if alone and not (part == 2 and window.exceeds(x.shape[1:3])):
        spec = describe(part, x, y, window, size)
        if onednn.supports(part, x.dtype, spec):
            call = jax.ffi.ffi_lowering(onednn.CONVOLUTION)
            bits = np.int64(onednn.BITS[x.dtype.name])
            return call(ctx, a, b, part=np.int64(part), bits=bits, spec=spec)
    form = mlir.lower_fun(ON_CPUS[part], multiple_results=False)
    return form(ctx, a, b, window=window, size=size)


def _batch(part: int, arguments: Any, axes: Any, window: Window, size: tuple[int, ...]) -> Any:
    """`jax.vmap`: images join the batch where the kernel is shared, else calls are repeated."""
    a, b = arguments
    bind = functools.partial(PARTS[part].bind, window=window, size=size)
    if part < 2 and axes[1] is None:
        a = jnp.moveaxis(a, axes[0], 0)
        result = bind(a.reshape(-1, *a.shape[2:]), b)
        return result.reshape(*a.shape[:2], *result.shape[1:]), 0
    count = next(x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None)
    if count <= REPEATS:

        def take(x: Array, axis: int | None, index: int) -> Array:
            return x if axis is None else lax.index_in_dim(x, index, axis, keepdims=False)

        each = [bind(take(a, axes[0], i), take(b, axes[1], i)) for i in range(count)]
        return jnp.stack(each), 0
    form = functools.partial(_as_product, part, window=window, size=size)
    return jax.vmap(form, in_axes=axes)(a, b), 0


REPEATS = 16
"""Maximum number of calls for a kernel of each example; more are one batched product."""


def _as_product(part: int, a: Array, b: Array, window: Window, size: tuple[int, ...]) -> Array:
    """A part by im2col, whose products `jax.vmap` batches."""

    def forward(x: Array, kernel: Array) -> Array:
        flat = kernel.reshape(-1, kernel.shape[-1])
        return jnp.matmul(_patches(window, x, window.outputs(x.shape[1:3])), flat)

    if part == 0:
        return forward(a, b)
    unknown = jax.ShapeDtypeStruct(_shape(part, a, b, size), a.dtype)
    if part == 1:
        return jax.linear_transpose(lambda x: forward(x, b), unknown)(a)[0]
    return jax.linear_transpose(lambda kernel: forward(a, kernel), unknown)(b)[0]


@functools.cache
def _compiled(part: int, window: Window, size: tuple[int, ...]) -> Callable[..., Array]:
    return jax.jit(functools.partial(PARTS[part].bind, window=window, size=size))


def _spatial(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape[1:3]  # of an operand that is unknown while it is transposed


def _rules() -> None:
    """Registers how the primitives are evaluated, differentiated, batched and lowered."""
    for part, primitive in enumerate(PARTS):
        primitive.def_impl(
            lambda a, b, window, size, part=part: _compiled(part, window, size)(a, b)
        )
        primitive.def_abstract_eval(
            lambda a, b, window, size, part=part: a.update(shape=_shape(part, a, b, size))
        )
        batching.primitive_batchers[primitive] = functools.partial(_batch, part)
        mlir.register_lowering(primitive, mlir.lower_fun(BY_XLA[part], multiple_results=False))
        on_gpus = mlir.lower_fun(ON_GPUS[part], multiple_results=False)
        mlir.register_lowering(primitive, on_gpus, platform="cuda")
        mlir.register_lowering(primitive, functools.partial(_lower, part), platform="cpu")
    # Each is bilinear: given a cotangent, the gradient by one operand is another primitive.
    ad.defbilinear(
        forward_p,
        lambda g, x, k, window, size: input_p.bind(g, k, window=window, size=_spatial(x)),
        lambda g, x, k, window, size: kernel_p.bind(x, g, window=window, size=window.kernel),
    )
    ad.defbilinear(
        input_p,
        lambda c, g, k, window, size: forward_p.bind(c, k, window=window, size=_spatial(g)),
        lambda c, g, k, window, size: kernel_p.bind(c, g, window=window, size=window.kernel),
    )
    ad.defbilinear(
        kernel_p,
        lambda c, x, g, window, size: input_p.bind(g, c, window=window, size=_spatial(x)),
        lambda c, x, g, window, size: forward_p.bind(x, c, window=window, size=_spatial(g)),
    )


_rules()
