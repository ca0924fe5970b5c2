// fundus_fov on the processor, its schema, and what the library was built for.
#include "fundus_fov.h"

// dataload/fundus_operator.py looks for this text in the file, before it loads what does not fit
extern "C" const char retclip_built_for[];
const char retclip_built_for[] = "retclip_dali built for DALI " RETCLIP_DALI_VERSION
                                 ", field version " RETCLIP_TEXT(RETCLIP_FIELD_VERSION) ";";

namespace retclip {

template <>
void FundusFov<dali::CPUBackend>::RunImpl(dali::Workspace &ws) {
  auto &threads = ws.GetThreadPool();
  planes_.resize(threads.NumThreads());
  const auto photographs = GatherPhotographs<dali::CPUBackend>(ws);
  for (const auto &photograph : photographs) {
    threads.AddWork([&](int thread) {
      Counts counts;
      FieldFinder<OneThread>({}, photograph, planes_[thread], counts).Run();
    });
  }
  threads.RunAll();
}

}  // namespace retclip

DALI_REGISTER_OPERATOR(FundusFov, retclip::FundusFov<dali::CPUBackend>, dali::CPU);

DALI_SCHEMA(FundusFov)
    .DocStr(R"code(Finds the field of view of fundus photographs.

The output is (y, x, height, width) in pixels, int32: the box that dataload/fundus.py finds.)code")
    .NumInput(1)
    .NumOutput(1)
    .InputLayout(0, "HWC");
