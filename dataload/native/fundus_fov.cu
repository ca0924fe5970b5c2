// The kernel of fundus_fov: one block of threads per photograph.
#include "fundus_fov_gpu.h"

namespace retclip {
namespace {

struct ThreadBlock {
  __device__ int rank() const { return threadIdx.x; }
  __device__ int size() const { return blockDim.x; }
  __device__ void sync() const { __syncthreads(); }
};

__global__ void FindFieldsKernel(const Photograph *photographs, Planes *planes) {
  __shared__ Counts counts;
  const Photograph photograph = photographs[blockIdx.x];
  FieldFinder<ThreadBlock>({}, photograph, planes[blockIdx.x], counts).Run();
}

}  // namespace

cudaError_t FindFields(const Photograph *photographs, Planes *planes, int count,
                       cudaStream_t stream) {
  // a thread for every line of the grid
  FindFieldsKernel<<<count, kGrid, 0, stream>>>(photographs, planes);
  return cudaGetLastError();
}

}  // namespace retclip
