// A CUDA device that is not there: its tensors say cuda:0 and lie in host memory.
//
// Every operator runs on the CPU, on the same memory; factors on two devices are refused as CUDA would.
// Loaded before torch, and told to `stand_in` after it: a build of torch with CUDA brings answers of its
// own, which give way. No streams that overlap, no races, no limit of memory.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <map>
#include <mutex>

using namespace at;

static const Device HERE(kCUDA, 0);

// Its tensors have this key too, which nobody uses: it comes before the kernels that a build with CUDA
// has for them, and after Python's modes, which see them first.
#define STAND CustomRNGKeyId

// ---- guards: one device, one stream, on which nothing is ever late

namespace c10::impl {
struct Guard : NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return HERE; }
  Device getDevice() const override { return HERE; }
  Stream only() const noexcept { return Stream(Stream::DEFAULT, HERE); }
  Stream getStream(Device) const noexcept override { return only(); }
  Stream getDefaultStream(Device) const override { return only(); }
  Stream getNewStream(Device, int) const override { return only(); }
  Stream exchangeStream(Stream) const noexcept override { return only(); }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
};
} // namespace c10::impl

// ---- memory from which a GPU copies without a wait

struct Pinned : Allocator {
  std::map<const char*, size_t> blocks; // address → bytes
  mutable std::mutex lock;

  DataPtr allocate(size_t bytes) override {
    auto* memory = static_cast<char*>(std::malloc(std::max<size_t>(bytes, 1)));
    std::lock_guard<std::mutex> held(lock);
    blocks[memory] = std::max<size_t>(bytes, 1);
    return {memory, memory, &release, Device(kCPU)};
  }
  static void release(void* memory) {
    {
      std::lock_guard<std::mutex> held(self().lock);
      self().blocks.erase(static_cast<char*>(memory));
    }
    std::free(memory);
  }
  bool holds(const void* address) const {
    std::lock_guard<std::mutex> held(lock);
    auto after = blocks.upper_bound(static_cast<const char*>(address));
    if (after == blocks.begin()) return false;
    auto block = std::prev(after);
    return static_cast<const char*>(address) < block->first + block->second;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  DeleterFnPtr raw_deleter() const override { return &release; }
  static Pinned& self() {
    static Pinned one;
    return one;
  }
};

// ---- random numbers: a CPU's, under the device's name

struct Numbers : c10::GeneratorImpl {
  Generator inner;

  explicit Numbers(Generator of)
      : GeneratorImpl(HERE, DispatchKeySet(DispatchKey::CUDA)), inner(std::move(of)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const TensorImpl& state) override {
    inner.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<TensorImpl> get_state() const override {
    return inner.unsafeGetGeneratorImpl()->get_state();
  }
  Numbers* clone_impl() const override { return new Numbers(inner.clone()); }
};

namespace at {
struct CUDAHooks : CUDAHooksInterface { // the name by which torch asks for them
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  long versionCuDNN() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
  bool isPinnedPtr(const void* address) const override { return Pinned::self().holds(address); }
  Allocator* getPinnedMemoryAllocator() const override { return &Pinned::self(); }
  const Generator& getDefaultGenerator(DeviceIndex) const override {
    static Generator one = getNewGenerator(0);
    return one;
  }
  Generator getNewGenerator(DeviceIndex) const override {
    return make_generator<Numbers>(detail::createCPUGenerator());
  }
};
C10_REGISTER_CLASS_WITH_PRIORITY(CUDAHooksRegistry, CUDAHooks, c10::REGISTRY_PREFERRED, CUDAHooks)
} // namespace at

// ---- one memory under two names

static Tensor renamed(const Tensor& x, Device device) {
  const auto& from = x.storage();
  auto* keeps = new Storage(from);
  DataPtr memory(
      const_cast<void*>(from.data()), keeps,
      [](void* kept) { delete static_cast<Storage*>(kept); }, device);
  // what an operator on the host writes to may grow there; `adopt` takes that over
  auto* allocator = device.is_cpu() ? c10::GetCPUAllocator() : nullptr;
  Storage storage(
      Storage::use_byte_size_t(), from.nbytes(), std::move(memory), allocator, allocator != nullptr);
  DispatchKeySet keys(device.is_cuda() ? DispatchKey::CUDA : DispatchKey::CPU);
  if (device.is_cuda()) keys = keys.add(DispatchKey::STAND);
  auto result = at::detail::make_tensor<TensorImpl>(std::move(storage), keys, x.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(x.sizes(), x.strides(), x.storage_offset());
  if (x.is_conj()) impl->_set_conj(true);
  if (x.is_neg()) impl->_set_neg(true);
  return result;
}

static bool ours(const Tensor& x) { return x.defined() && x.is_cuda(); }

static Tensor on_host(const Tensor& x) { return ours(x) ? renamed(x, Device(kCPU)) : x; }

static IValue on_host(const IValue& value) {
  if (value.isTensor()) return on_host(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (Tensor x : value.toTensorList()) list.push_back(on_host(x));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (std::optional<Tensor> x : value.toOptionalTensorList())
      list.push_back(x ? std::optional<Tensor>(on_host(*x)) : x);
    return list;
  }
  if (value.isDevice() && value.toDevice().is_cuda()) return Device(kCPU);
  if (value.isGenerator() && value.toGenerator().device().is_cuda())
    return static_cast<Numbers*>(value.toGenerator().unsafeGetGeneratorImpl())->inner;
  return value;
}

static IValue on_device(const IValue& value) {
  if (value.isTensor() && value.toTensor().defined()) return renamed(value.toTensor(), HERE);
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (Tensor x : value.toTensorList()) list.push_back(x.defined() ? renamed(x, HERE) : x);
    return list;
  }
  return value;
}

static void refuse(const c10::OperatorHandle& op, const Tensor& x, bool index) {
  if (!x.defined() || x.is_cuda() || x.dim() == 0 || index) return;
  TORCH_CHECK(
      false, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
      op.schema().name(), ")");
}

// the operator resized what it wrote to, or gave it other memory
static void adopt(const Tensor& mine, const Tensor& written) {
  auto* impl = mine.unsafeGetTensorImpl();
  if (written.storage().data() != mine.storage().data())
    impl->set_storage_keep_dtype(renamed(written, HERE).storage());
  if (written.sizes() != mine.sizes() || written.strides() != mine.strides())
    impl->set_sizes_and_strides(written.sizes(), written.strides(), written.storage_offset());
}

static void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto count = schema.arguments().size();
  const auto first = stack->size() - count;
  const bool index = schema.name().find("index") != std::string::npos &&
      schema.arguments().size() > 1 && schema.arguments()[1].type()->kind() == c10::TypeKind::ListType;
  std::vector<IValue> given(stack->begin() + first, stack->end());
  std::vector<IValue> taken;
  for (const auto& value : given) {
    if (value.isTensor()) refuse(op, value.toTensor(), false);
    if (value.isTensorList())
      for (Tensor x : value.toTensorList()) refuse(op, x, false);
    if (value.isOptionalTensorList())
      for (std::optional<Tensor> x : value.toOptionalTensorList())
        if (x) refuse(op, *x, index);
    taken.push_back(on_host(value));
  }
  torch::jit::drop(*stack, count);
  for (const auto& value : taken) stack->push_back(value);
  op.callBoxed(stack); // the CPU's kernel: no argument is on the device any more
  std::vector<IValue> results(stack->end() - schema.returns().size(), stack->end());
  torch::jit::drop(*stack, results.size());
  for (size_t i = 0; i < count; ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias == nullptr || !alias->isWrite()) continue;
    if (given[i].isTensor() && ours(given[i].toTensor())) adopt(given[i].toTensor(), taken[i].toTensor());
  }
  for (size_t i = 0; i < results.size(); ++i) {
    const auto* alias = schema.returns()[i].alias_info();
    IValue result = on_device(results[i]);
    if (alias != nullptr && alias->isWrite())
      for (size_t j = 0; j < count; ++j) {
        const auto* argument = schema.arguments()[j].alias_info();
        if (argument != nullptr && *argument == *alias) result = given[j];
      }
    stack->push_back(result);
  }
}

static Tensor make(
    SymIntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device>,
    std::optional<bool>, std::optional<MemoryFormat> format) {
  auto options = TensorOptions().dtype(dtype).device(kCPU);
  return renamed(at::empty_symint(size, options, format), HERE);
}

static Tensor make_strided(
    SymIntArrayRef size, SymIntArrayRef stride, std::optional<ScalarType> dtype, std::optional<Layout>,
    std::optional<Device>, std::optional<bool>) {
  return renamed(at::empty_strided_symint(size, stride, TensorOptions().dtype(dtype).device(kCPU)), HERE);
}

static Tensor& copy_over(Tensor& to, const Tensor& from, bool) {
  on_host(to).copy_(on_host(from));
  return to;
}

static Tensor& set_to(
    Tensor& to, Storage source, SymInt offset, SymIntArrayRef size, SymIntArrayRef stride) {
  auto* impl = to.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_sizes_and_strides(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset.expect_int());
  return to;
}

static Tensor& set_whole(Tensor& to, Storage source) {
  auto items = int64_t(source.nbytes() / to.element_size());
  to.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  const int64_t one = 1;
  to.unsafeGetTensorImpl()->set_sizes_and_strides(IntArrayRef(items), IntArrayRef(one), 0);
  return to;
}

static const Tensor& resize_to(
    const Tensor& self, SymIntArrayRef size, std::optional<MemoryFormat> format) {
  auto host = on_host(self);
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  if (c10::multiply_integers(sizes) * int64_t(self.element_size()) > int64_t(self.storage().nbytes()))
    host = at::empty(sizes, self.options().device(kCPU), format);
  else
    host.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
 adopt(self, host);
  return self;
}

static int64_t plain_attention(
    const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
    std::optional<double>, bool) {
  return 0; // plain products
}

TORCH_LIBRARY_IMPL(_, CustomRNGKeyId, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run>());
}

TORCH_LIBRARY_IMPL(aten, CustomRNGKeyId, m) {
  m.impl("copy_", TORCH_FN(copy_over));
  m.impl("resize_", TORCH_FN(resize_to));
  m.impl("set_.source_Storage", TORCH_FN(set_whole));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_to));
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("_fused_sdp_choice", TORCH_FN(plain_attention));
}

// Take the place of what torch brought: the guard, and what makes tensors out of nothing.
extern "C" void stand_in() {
  c10::impl::DeviceGuardImplRegistrar(DeviceType::CUDA, new c10::impl::Guard());
  static torch::Library makers(torch::Library::IMPL, "aten", DispatchKey::CUDA, __FILE__, __LINE__);
  makers.impl("empty.memory_format", TORCH_FN(make));
  makers.impl("empty_strided", TORCH_FN(make_strided));
}
