// 2D convolutions and matrix products of oneDNN as foreign functions of XLA; compiled by onednn.py.

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
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

ffi::Error Multiply(Matrix left, Matrix right, ffi::ResultBufferR2<ffi::F32> result,
                    bool transpose_left, bool transpose_right) {
  const std::lock_guard<std::mutex> lock(running);
  const auto a = left.dimensions(), b = right.dimensions(), c = result->dimensions();
  const int64_t terms = a[transpose_left ? 0 : 1];
  const int status = dnnl_sgemm(transpose_left ? 'T' : 'N', transpose_right ? 'T' : 'N', c[0], c[1],
                                terms, 1, left.typed_data(), a[1], right.typed_data(), b[1], 0,
                                result->typed_data(), c[1]);
  return status ? ffi::Error(ffi::ErrorCode::kInternal, "oneDNN: a matrix product failed")
                : ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(JdlMultiply, Multiply,
                              ffi::Ffi::Bind()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Ret<Matrix>()
                                  .Attr<bool>("transpose_left")
                                  .Attr<bool>("transpose_right"));

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
