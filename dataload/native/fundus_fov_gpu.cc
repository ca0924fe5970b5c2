// fundus_fov on the GPU.
#include "fundus_fov_gpu.h"

#include "dali/core/cuda_error.h"
#include "dali/kernels/dynamic_scratchpad.h"
#include "fundus_fov.h"

namespace retclip {

template <>
void FundusFov<dali::GPUBackend>::RunImpl(dali::Workspace &ws) {
  const auto photographs = GatherPhotographs<dali::GPUBackend>(ws);
  if (photographs.empty()) return;
  const int count = static_cast<int>(photographs.size());
  dali::kernels::DynamicScratchpad scratchpad(ws.stream());
  auto *planes = scratchpad.AllocateGPU<Planes>(count);
  auto *on_gpu = scratchpad.ToGPU(ws.stream(), photographs);
  CUDA_CALL(FindFields(on_gpu, planes, count, ws.stream()));
}

}  // namespace retclip

DALI_REGISTER_OPERATOR(FundusFov, retclip::FundusFov<dali::GPUBackend>, dali::GPU);
