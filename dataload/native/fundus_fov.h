// The DALI operator `fundus_fov`: photographs (HWC, uint8) to boxes (y, x, height, width; int32).
#pragma once

#include <vector>

#include "dali/pipeline/operator/checkpointing/stateless_operator.h"
#include "dali/pipeline/operator/operator.h"
#include "field_of_view.h"

namespace retclip {

// stateless: DALI then needs nothing from the operator to make a checkpoint of its pipeline
template <typename Backend>
class FundusFov : public dali::StatelessOperator<Backend> {
 public:
  explicit FundusFov(const dali::OpSpec &spec) : dali::StatelessOperator<Backend>(spec) {}

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc> &outputs, const dali::Workspace &ws) override {
    const auto &input = ws.Input<Backend>(0);
    DALI_ENFORCE(input.type() == DALI_UINT8,
                 dali::make_string("fundus_fov: photographs must be uint8, not ", input.type()));
    for (int i = 0; i < input.num_samples(); ++i) {
      const auto shape = input.tensor_shape_span(i);
      DALI_ENFORCE(
          shape.size() == 3 && shape[0] > 0 && shape[1] > 0 && (shape[2] == 1 || shape[2] == 3),
          dali::make_string("fundus_fov: photograph ", i, " of the batch must be (height, width, ",
                            "1 or 3 channels) and not empty, it is ", input.tensor_shape(i)));
    }
    outputs.resize(1);
    outputs[0] = {dali::uniform_list_shape(input.num_samples(), dali::TensorShape<1>{4}),
                  DALI_INT32};
    return true;
  }

  void RunImpl(dali::Workspace &ws) override;

 private:
  // one per thread of the pipeline, processor only
  std::vector<Planes> planes_;
};

template <typename Backend>
std::vector<Photograph> GatherPhotographs(dali::Workspace &ws) {
  const auto &input = ws.Input<Backend>(0);
  auto &output = ws.Output<Backend>(0);
  std::vector<Photograph> photographs(input.num_samples());
  for (int i = 0; i < input.num_samples(); ++i) {
    const auto shape = input.tensor_shape_span(i);
    photographs[i] = WholePhotograph(
        input.template tensor<uint8_t>(i), output.template mutable_tensor<int32_t>(i),
        static_cast<int>(shape[0]), static_cast<int>(shape[1]), static_cast<int>(shape[2]));
  }
  return photographs;
}

}  // namespace retclip
