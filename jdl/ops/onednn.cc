// 2D convolutions, matrix products and LSTMs by oneDNN as foreign functions of XLA; compiled by
// onednn.py.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

// The part of oneDNN's C interface, version 3, that is used here (oneapi/dnnl/dnnl.h): the
// distribution that holds the library has no headers.
extern "C" {
typedef struct dnnl_engine* dnnl_engine_t;
typedef struct dnnl_stream* dnnl_stream_t;
typedef struct dnnl_memory* dnnl_memory_t;
typedef struct dnnl_primitive* dnnl_primitive_t;
typedef struct dnnl_primitive_desc* dnnl_primitive_desc_t;
typedef struct dnnl_memory_desc* dnnl_memory_desc_t;
typedef const struct dnnl_memory_desc* const_dnnl_memory_desc_t;
typedef int64_t dnnl_dims_t[12];
typedef struct {
  int arg;
  dnnl_memory_t memory;
} dnnl_exec_arg_t;

int dnnl_engine_create(dnnl_engine_t*, int kind, size_t index);
int dnnl_stream_create(dnnl_stream_t*, dnnl_engine_t, unsigned flags);
int dnnl_stream_wait(dnnl_stream_t);
int dnnl_stream_destroy(dnnl_stream_t);
int dnnl_memory_desc_create_with_strides(dnnl_memory_desc_t*, int ndims, const dnnl_dims_t dims,
                                         int data_type, const dnnl_dims_t strides);
int dnnl_memory_desc_create_with_tag(dnnl_memory_desc_t*, int ndims, const dnnl_dims_t dims,
                                     int data_type, int tag);
int dnnl_memory_desc_equal(const_dnnl_memory_desc_t, const_dnnl_memory_desc_t);
int dnnl_convolution_forward_primitive_desc_create(
    dnnl_primitive_desc_t*, dnnl_engine_t, int prop_kind, int algorithm,
    const_dnnl_memory_desc_t source, const_dnnl_memory_desc_t weights,
    const_dnnl_memory_desc_t bias, const_dnnl_memory_desc_t destination, const dnnl_dims_t strides,
    const dnnl_dims_t dilates, const dnnl_dims_t before, const dnnl_dims_t after, const void* attr);
int dnnl_convolution_backward_data_primitive_desc_create(
    dnnl_primitive_desc_t*, dnnl_engine_t, int algorithm, const_dnnl_memory_desc_t source,
    const_dnnl_memory_desc_t weights, const_dnnl_memory_desc_t destination,
    const dnnl_dims_t strides, const dnnl_dims_t dilates, const dnnl_dims_t before,
    const dnnl_dims_t after, dnnl_primitive_desc_t forward, const void* attr);
int dnnl_convolution_backward_weights_primitive_desc_create(
    dnnl_primitive_desc_t*, dnnl_engine_t, int algorithm, const_dnnl_memory_desc_t source,
    const_dnnl_memory_desc_t weights, const_dnnl_memory_desc_t bias,
    const_dnnl_memory_desc_t destination, const dnnl_dims_t strides, const dnnl_dims_t dilates,
    const dnnl_dims_t before, const dnnl_dims_t after, dnnl_primitive_desc_t forward,
    const void* attr);
int dnnl_reorder_primitive_desc_create(dnnl_primitive_desc_t*, const_dnnl_memory_desc_t from,
                                       dnnl_engine_t, const_dnnl_memory_desc_t to, dnnl_engine_t,
                                       const void* attr);
const_dnnl_memory_desc_t dnnl_primitive_desc_query_md(dnnl_primitive_desc_t, int what, int index);
int dnnl_primitive_create(dnnl_primitive_t*, dnnl_primitive_desc_t);
int dnnl_primitive_execute(dnnl_primitive_t, dnnl_stream_t, int count, const dnnl_exec_arg_t*);
int dnnl_memory_create(dnnl_memory_t*, const_dnnl_memory_desc_t, dnnl_engine_t, void* handle);
int dnnl_memory_destroy(dnnl_memory_t);
int dnnl_sgemm(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
               const float* a, int64_t row_a, const float* b, int64_t row_b, float beta, float* c,
               int64_t row_c);
int omp_get_max_threads();
void omp_set_num_threads(int);
}

namespace {

namespace ffi = xla::ffi;

enum { kCpu = 1, kInOrder = 1, kBf16 = 2, kF32 = 3, kAnyTag = 1, kDirect = 1, kTraining = 64 };
enum { kWeights = 131, kDiffWeights = 132 };  // what is asked of a descriptor
enum { kSource = 1, kDestination = 17, kKernel = 33, kDiff = 128 };  // arguments; a gradient's is added
enum Part { kForward = 0, kInputGradient = 1, kKernelGradient = 2 };

void Check(int status, const char* what) {
  if (status) throw std::runtime_error(std::string("oneDNN: ") + what + " failed");
}

dnnl_engine_t Engine() {
  static dnnl_engine_t engine = [] {
    dnnl_engine_t made;
    Check(dnnl_engine_create(&made, kCpu, 0), "creating its engine");
    return made;
  }();
  return engine;
}

// An array in the caller's buffer, or in one of oneDNN's (`handle` of all bits set).
class Memory {
 public:
  Memory(const_dnnl_memory_desc_t layout, void* handle) {
    Check(dnnl_memory_create(&memory_, layout, Engine(), handle), "creating an array");
  }
  Memory(const Memory&) = delete;
  ~Memory() { dnnl_memory_destroy(memory_); }
  operator dnnl_memory_t() const { return memory_; }

 private:
  dnnl_memory_t memory_;
};

void Run(dnnl_primitive_t primitive, std::vector<dnnl_exec_arg_t> arguments) {
  dnnl_stream_t stream;
  Check(dnnl_stream_create(&stream, Engine(), kInOrder), "creating a stream");
  int status = dnnl_primitive_execute(primitive, stream, arguments.size(), arguments.data());
  status = dnnl_stream_wait(stream) || status;
  dnnl_stream_destroy(stream);
  Check(status, "running a convolution");
}

// A compiled convolution. oneDNN chooses the layout of the kernel; images are NHWC.
struct Plan {
  dnnl_primitive_t convolution = nullptr, reorder = nullptr;  // `reorder`: to or from `hwio`
  dnnl_memory_desc_t images = nullptr, outputs = nullptr, hwio = nullptr;
  const_dnnl_memory_desc_t kernel = nullptr;
};

dnnl_memory_desc_t Layout(int type, const dnnl_dims_t shape, const dnnl_dims_t strides) {
  dnnl_memory_desc_t made;
  Check(dnnl_memory_desc_create_with_strides(&made, 4, shape, type, strides), "a layout");
  return made;
}

dnnl_memory_desc_t Nhwc(int type, int64_t n, int64_t h, int64_t w, int64_t c) {
  const dnnl_dims_t shape{n, c, h, w}, strides{h * w * c, 1, w * c, c};
  return Layout(type, shape, strides);
}

// `spec`: images n h w c, kernel rows columns features, outputs h w, strides (2), dilations minus
// one (2), padding before (2) and after (2). What it makes lives as long as the process.
Plan MakePlan(int64_t part, int64_t bits, const int64_t* spec) {
  const int type = bits == 16 ? kBf16 : kF32;
  const int64_t n = spec[0], c = spec[3], rows = spec[4], columns = spec[5], o = spec[6];
  const dnnl_dims_t strides{spec[9], spec[10]}, dilation{spec[11], spec[12]};
  const dnnl_dims_t before{spec[13], spec[14]}, after{spec[15], spec[16]};
  Plan plan;
  plan.images = Nhwc(type, n, spec[1], spec[2], c);
  plan.outputs = Nhwc(type, n, spec[7], spec[8], o);
  const dnnl_dims_t shape{o, c, rows, columns}, hwio{1, o, columns * c * o, c * o};
  plan.hwio = Layout(type, shape, hwio);
  dnnl_memory_desc_t any;
  Check(dnnl_memory_desc_create_with_tag(&any, 4, shape, type, kAnyTag), "a layout");
  dnnl_primitive_desc_t forward, chosen;
  Check(dnnl_convolution_forward_primitive_desc_create(
            &forward, Engine(), kTraining, kDirect, plan.images, any, nullptr, plan.outputs,
            strides, dilation, before, after, nullptr),
        "a convolution");
  chosen = forward;
  if (part == kInputGradient) {
    Check(dnnl_convolution_backward_data_primitive_desc_create(
              &chosen, Engine(), kDirect, plan.images, any, plan.outputs, strides, dilation,
              before, after, forward, nullptr),
          "an input gradient");
  } else if (part == kKernelGradient) {
    Check(dnnl_convolution_backward_weights_primitive_desc_create(
              &chosen, Engine(), kDirect, plan.images, any, nullptr, plan.outputs, strides,
              dilation, before, after, forward, nullptr),
          "a kernel gradient");
  }
  const bool gradient = part == kKernelGradient;
  plan.kernel = dnnl_primitive_desc_query_md(chosen, gradient ? kDiffWeights : kWeights, 0);
  Check(dnnl_primitive_create(&plan.convolution, chosen), "a convolution");
  if (!dnnl_memory_desc_equal(plan.kernel, plan.hwio)) {
    dnnl_primitive_desc_t reorder;
    const_dnnl_memory_desc_t from = gradient ? plan.kernel : plan.hwio;
    const_dnnl_memory_desc_t to = gradient ? plan.hwio : plan.kernel;
    Check(dnnl_reorder_primitive_desc_create(&reorder, from, Engine(), to, Engine(), nullptr),
          "a change of layout");
    Check(dnnl_primitive_create(&plan.reorder, reorder), "a change of layout");
  }
  return plan;
}

const Plan& FindPlan(int64_t part, int64_t bits, const int64_t* spec) {
  static std::mutex mutex;
  static auto* plans = new std::map<std::vector<int64_t>, Plan>;  // never destroyed
  std::vector<int64_t> key(spec, spec + 17);
  key.push_back(part);
  key.push_back(bits);
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = plans->find(key);
  if (found == plans->end()) {
    found = plans->emplace(std::move(key), MakePlan(part, bits, spec)).first;
  }
  return found->second;
}

std::mutex running;  // one at a time, since each uses all cores

// Operands: images and kernel, output gradient and kernel, or images and output gradient.
ffi::Error Convolve(ffi::AnyBuffer left, ffi::AnyBuffer right, ffi::Result<ffi::AnyBuffer> result,
                    int64_t part, int64_t bits, ffi::Span<const int64_t> spec) {
  const std::lock_guard<std::mutex> lock(running);
  try {
    const Plan& plan = FindPlan(part, bits, spec.begin());
    void *a = left.untyped_data(), *b = right.untyped_data(), *out = result->untyped_data();
    void* fresh = reinterpret_cast<void*>(static_cast<size_t>(-1));  // allocated by oneDNN
    const bool gradient = part == kKernelGradient;
    Memory hwio(plan.hwio, gradient ? out : b);
    Memory kernel(plan.kernel, plan.reorder ? fresh : gradient ? out : b);
    if (plan.reorder && !gradient) Run(plan.reorder, {{kSource, hwio}, {kDestination, kernel}});
    Memory images(plan.images, part == kInputGradient ? out : a);
    Memory outputs(plan.outputs, part == kForward ? out : gradient ? b : a);
    Run(plan.convolution, {{kSource + (part == kInputGradient ? kDiff : 0), images},
                           {kKernel + (gradient ? kDiff : 0), kernel},
                           {kDestination + (part == kForward ? 0 : kDiff), outputs}});
    if (plan.reorder && gradient) Run(plan.reorder, {{kSource, kernel}, {kDestination, hwio}});
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, error.what());
  }
  return ffi::Error::Success();
}

using Matrix = ffi::BufferR2<ffi::F32>;
using Series = ffi::BufferR3<ffi::F32>;  // (time, batch, features)
using NewMatrix = ffi::Result<Matrix>;
using NewSeries = ffi::Result<Series>;

ffi::Error Done(int status) {
  return status ? ffi::Error(ffi::ErrorCode::kInternal, "oneDNN: a matrix product failed")
                : ffi::Error::Success();
}

// Runs `part(begin, end)` over [0, count) on XLA's threads, each of which has OpenMP use that thread
// alone: a second team of threads would have to be woken, and compete with XLA's. The caller takes
// parts as well and waits only for those that have begun, so a busy pool cannot block it.
template <typename F>
int Parallel(ffi::ThreadPool& pool, int64_t count, const F& part) {
  struct Shared {
    std::atomic<int64_t> next{0}, left;
    std::atomic<int> status{0};
  };
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), count));
  auto shared = std::make_shared<Shared>();
  shared->left = parts;
  auto work = [shared, parts, count, &part] {
    for (int64_t i; (i = shared->next++) < parts;) {
      const int threads = omp_get_max_threads();
      omp_set_num_threads(1);
      if (int status = part(count * i / parts, count * (i + 1) / parts)) shared->status = status;
      omp_set_num_threads(threads);
      --shared->left;
    }
  };
  for (int64_t i = 1; i < parts; ++i) pool.Schedule(decltype(work)(work));
  work();
  while (shared->left) std::this_thread::yield();
  return shared->status;
}

ffi::Error Multiply(ffi::ThreadPool pool, Matrix left, Matrix right, NewMatrix result,
                    bool transpose_left, bool transpose_right) {
  const auto a = left.dimensions(), b = right.dimensions(), c = result->dimensions();
  const int64_t terms = a[transpose_left ? 0 : 1];
  const bool tall = c[0] >= c[1];
  return Done(Parallel(pool, tall ? c[0] : c[1], [&](int64_t begin, int64_t end) {
    const float* x = left.typed_data();
    const float* y = right.typed_data();
    float* out = result->typed_data();
    if (tall) x += transpose_left ? begin : begin * a[1];
    if (!tall) y += transpose_right ? begin * b[1] : begin;
    return dnnl_sgemm(transpose_left ? 'T' : 'N', transpose_right ? 'T' : 'N',
                      tall ? end - begin : c[0], tall ? c[1] : end - begin, terms, 1, x, a[1], y,
                      b[1], 0, out + begin * (tall ? c[1] : 1), c[1]);
  }));
}

// A loop is compiled for several processors, the best of which is chosen when it is loaded.
#if defined(__GNUC__) && !defined(__clang__)
#define VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORIZED
#endif

// The rational function by which Eigen and XLA approximate tanh, to a few units in the last place.
inline float Tanh(float x) {
  x = std::min(std::max(x, -7.90531110763549805f), 7.90531110763549805f);
  const float s = x * x;
  float p = -2.76076847742355e-16f;
  p = p * s + 2.00018790482477e-13f;
  p = p * s - 8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  float q = 1.19825839466702e-06f;
  q = q * s + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return x * p / q;
}

inline float Sigmoid(float x) { return 0.5f * Tanh(0.5f * x) + 0.5f; }

// One row of a step: z is its product, p its projected input, gates are input, forget and output.
VECTORIZED void Cells(int64_t n, const float* __restrict z, const float* __restrict p,
                      const float* __restrict before, float* __restrict gates,
                      float* __restrict candidates, float* __restrict c, float* __restrict h) {
  for (int64_t j = 0; j < 3 * n; ++j) gates[j] = Sigmoid(z[j] + p[j]);
  for (int64_t j = 0; j < n; ++j) {
    const float g = candidates[j] = Tanh(z[3 * n + j] + p[3 * n + j]);
    c[j] = gates[n + j] * before[j] + gates[j] * g;
    h[j] = gates[2 * n + j] * Tanh(c[j]);
  }
}

// Its gradient: dh and dc are of the states after it, and become (dc) of those before it.
VECTORIZED void CellsGradient(int64_t n, const float* __restrict dh, const float* __restrict given,
                              const float* __restrict c, const float* __restrict before,
                              const float* __restrict gates, const float* __restrict candidates,
                              float* __restrict dc, float* __restrict dz) {
  for (int64_t j = 0; j < n; ++j) {
    const float i = gates[j], f = gates[n + j], o = gates[2 * n + j], g = candidates[j];
    const float slope = dh[j] + given[j], squashed = Tanh(c[j]);
    const float d = dc[j] + slope * o * (1 - squashed * squashed);
    dz[j] = d * g * i * (1 - i);
    dz[n + j] = d * before[j] * f * (1 - f);
    dz[2 * n + j] = slope * squashed * o * (1 - o);
    dz[3 * n + j] = d * i * (1 - g * g);
    dc[j] = d * f;
  }
}

// The rows of a batch are independent: each thread takes its own through all of time, unless the
// kernel exceeds a core's cache, where it would be read by every thread: a product's threads share it.
template <typename F>
ffi::Error OverRows(ffi::ThreadPool& pool, int64_t batch, Matrix kernel, const F& rows) {
  if (kernel.size_bytes() <= (1 << 21)) return Done(Parallel(pool, batch, rows));
  const std::lock_guard<std::mutex> lock(running);
  return Done(rows(0, batch));
}

ffi::Error Lstm(ffi::ThreadPool pool, Series projected, Matrix hidden, Matrix cell, Matrix kernel,
                NewSeries hs, NewSeries cs, NewSeries gates, NewSeries candidates) {
  const auto shape = projected.dimensions();
  const int64_t time = shape[0], batch = shape[1], wide = shape[2], units = wide / 4;
  return OverRows(pool, batch, kernel, [&](int64_t begin, int64_t end) {
    std::vector<float> product((end - begin) * wide);
    const float *h = hidden.typed_data(), *c = cell.typed_data();
    for (int64_t t = 0; t < time; ++t) {
      if (int status = dnnl_sgemm('N', 'N', end - begin, wide, units, 1, h + begin * units, units,
                                  kernel.typed_data(), wide, 0, product.data(), wide)) {
        return status;
      }
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = t * batch + row;
        Cells(units, &product[(row - begin) * wide], projected.typed_data() + at * wide,
              c + row * units, gates->typed_data() + at * 3 * units,
              candidates->typed_data() + at * units, cs->typed_data() + at * units,
              hs->typed_data() + at * units);
      }
      h = hs->typed_data() + t * batch * units;
      c = cs->typed_data() + t * batch * units;
    }
    return 0;
  });
}

ffi::Error LstmGradient(ffi::ThreadPool pool, Series dhs, Matrix last, Matrix cell, Matrix kernel,
                        Series cs, Series gates, Series candidates, NewSeries dz, NewMatrix dh,
                        NewMatrix dc) {
  const auto shape = dhs.dimensions();
  const int64_t time = shape[0], batch = shape[1], units = shape[2], wide = 4 * units;
  std::fill_n(dh->typed_data(), batch * units, 0.0f);
  std::copy_n(last.typed_data(), batch * units, dc->typed_data());
  return OverRows(pool, batch, kernel, [&](int64_t begin, int64_t end) {
    for (int64_t t = time - 1; t >= 0; --t) {
      const float* before = t ? cs.typed_data() + (t - 1) * batch * units : cell.typed_data();
      float* slopes = dz->typed_data() + t * batch * wide;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = t * batch + row;
        CellsGradient(units, dh->typed_data() + row * units, dhs.typed_data() + at * units,
                      cs.typed_data() + at * units, before + row * units,
                      gates.typed_data() + at * 3 * units, candidates.typed_data() + at * units,
                      dc->typed_data() + row * units, slopes + row * wide);
      }
      if (int status = dnnl_sgemm('N', 'T', end - begin, units, wide, 1, slopes + begin * wide,
                                  wide, kernel.typed_data(), wide, 0,
                                  dh->typed_data() + begin * units, units)) {
        return status;
      }
    }
    return 0;
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(JdlMultiply, Multiply,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Ret<Matrix>()
                                  .Attr<bool>("transpose_left")
                                  .Attr<bool>("transpose_right"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(JdlLstm, Lstm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Series>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Ret<Series>()
                                  .Ret<Series>()
                                  .Ret<Series>()
                                  .Ret<Series>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(JdlLstmGradient, LstmGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Series>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Series>()
                                  .Arg<Series>()
                                  .Arg<Series>()
                                  .Ret<Series>()
                                  .Ret<Matrix>()
                                  .Ret<Matrix>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(JdlConvolve, Convolve,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("part")
                                  .Attr<int64_t>("bits")
                                  .Attr<ffi::Span<const int64_t>>("spec"));

// Whether oneDNN has such a convolution on this processor.
extern "C" bool JdlSupports(int64_t part, int64_t bits, const int64_t* spec) {
  try {
    FindPlan(part, bits, spec);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}
