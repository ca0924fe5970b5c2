// The field of view as a plain C function, for dataload/fundus.py to call; free of DALI and CUDA.
#include "field_of_view.h"

#define RETCLIP_EXPORT extern "C" __attribute__((visibility("default")))

// dataload/fundus_library.py looks for this text in the file
RETCLIP_EXPORT const char retclip_field_built_for[];
const char retclip_field_built_for[] =
    "retclip_field built for field version " RETCLIP_TEXT(RETCLIP_FIELD_VERSION) ";";

// `points` is the first point of the grid of a photograph of height x width pixels, strides are the
// bytes to the next row and column of it, channels lie side by side. Writes y, x, height, width to
// `box`; returns 1 where a field was found and 0 where the box is all there is.
RETCLIP_EXPORT int retclip_field_of_grid(const uint8_t *points, int64_t row_stride,
                                         int64_t column_stride, int height, int width,
                                         int channels, int32_t *box) {
  // half a megabyte, kept: threads of Python may have small stacks
  static thread_local retclip::Planes planes;
  retclip::Counts counts;
  const retclip::Photograph photograph{points, row_stride, column_stride, box,
                                       height, width,      channels};
  return retclip::FieldFinder<retclip::OneThread>({}, photograph, planes, counts).Run();
}
