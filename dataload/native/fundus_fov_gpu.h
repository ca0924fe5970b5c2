// What the GPU side of the operator calls; free of DALI's headers, so that nvcc need not read them.
#pragma once

#include <cuda_runtime.h>

#include "field_of_view.h"

namespace retclip {

// Fills the boxes of `count` photographs; both arrays of that length lie in GPU memory.
cudaError_t FindFields(const Photograph *photographs, Planes *planes, int count,
                       cudaStream_t stream);

}  // namespace retclip
