// The field of view of a fundus photograph, the same box as dataload/fundus.py finds, step by step.
//
// One source for the processor and for CUDA: a team of threads walks through it in step. On the
// processor the team is one thread; on the GPU it is a block. Every thread of a team takes the same
// decisions from the same counts, so no result has to be handed round and no atomics are needed.
#pragma once

#include <cstdint>

// FIELD_VERSION of dataload/fundus.py; whoever loads a library compares the two
#define RETCLIP_FIELD_VERSION 1
#define RETCLIP_TEXT_OF(number) #number
#define RETCLIP_TEXT(number) RETCLIP_TEXT_OF(number)

#ifdef __CUDACC__
#define RETCLIP_HOST_DEVICE __host__ __device__
#else
#define RETCLIP_HOST_DEVICE
#endif

namespace retclip {

// the constants of dataload/fundus.py, under their names there
constexpr int kGrid = 512;
constexpr int kWhiteLevel = 240;
constexpr double kWhiteShare = 0.99;
constexpr int kCornerShare = 20;
constexpr double kSurroundRatio = 0.4;
constexpr int kMinContrast = 8;
constexpr int kContrastShare = 8;
constexpr double kLineShare = 0.05;
constexpr double kMinAreaShare = 0.04;

// A photograph by the points of its grid, which lie in the middle of its cells: the first of them,
// and the bytes from one to the next. `box` is where the result goes: y, x, height, width.
struct Photograph {
  const uint8_t *points;
  int64_t row_stride, column_stride;
  int32_t *box;
  int height, width, channels;
};

// darkest and brightest channel at every point of the grid, (kGrid, kGrid) at most, rows packed
struct Planes {
  uint8_t darkest[kGrid * kGrid];
  uint8_t brightest[kGrid * kGrid];
};

struct Counts {
  int rows[kGrid];
  int columns[kGrid];
  int histogram[4][256];
  int corner[4];
};

struct Range {
  int start, stop;
  RETCLIP_HOST_DEVICE int length() const { return stop - start; }
};

struct Rectangle {
  Range rows, columns;
};

RETCLIP_HOST_DEVICE inline int CeilDivide(int a, int b) { return (a + b - 1) / b; }
RETCLIP_HOST_DEVICE inline int Smaller(int a, int b) { return a < b ? a : b; }
RETCLIP_HOST_DEVICE inline int Larger(int a, int b) { return a > b ? a : b; }

// How many pixels lie between two points of the grid.
RETCLIP_HOST_DEVICE inline int GridStep(int height, int width) {
  return CeilDivide(Larger(height, width), kGrid);
}

// The photograph whose pixels, (height, width, channels), lie one after the other.
inline Photograph WholePhotograph(const uint8_t *pixels, int32_t *box, int height, int width,
                                  int channels) {
  const int64_t step = GridStep(height, width), middle = step / 2;
  const int64_t row = static_cast<int64_t>(width) * channels;
  return {pixels + middle * (row + channels), step * row, step * channels, box, height, width,
          channels};
}

// The team on the processor.
struct OneThread {
  int rank() const { return 0; }
  int size() const { return 1; }
  void sync() const {}
};

template <typename Team>
class FieldFinder {
 public:
  RETCLIP_HOST_DEVICE FieldFinder(Team team, const Photograph &photograph, Planes &planes,
                                  Counts &counts)
      : team_(team), photograph_(photograph), planes_(planes), counts_(counts) {
    step_ = GridStep(photograph.height, photograph.width);
    // a very narrow photograph has no points
    grid_height_ = CeilDivide(photograph.height - step_ / 2, step_);
    grid_width_ = CeilDivide(photograph.width - step_ / 2, step_);
  }

  // Writes the box, and returns whether it is a field that was found rather than all there is.
  RETCLIP_HOST_DEVICE bool Run() {
    Rectangle field{{0, grid_height_}, {0, grid_width_}};
    bool found = false;
    if (grid_height_ > 0 && grid_width_ > 0) {
      SampleGrid();
      const bool trimmed = TrimWhite(field);
      found = FindDisc(field) || trimmed;
    }
    if (team_.rank() == 0) {
      int32_t *box = photograph_.box;
      box[0] = field.rows.start * step_;
      box[1] = field.columns.start * step_;
      box[2] = End(field.rows, grid_height_, photograph_.height) - box[0];
      box[3] = End(field.columns, grid_width_, photograph_.width) - box[1];
    }
    return found;
  }

 private:
  // The pixel after the last of a range of cells; the frame may cut its last cell.
  RETCLIP_HOST_DEVICE int End(const Range &cells, int grid, int pixels) const {
    return cells.stop == grid ? pixels : cells.stop * step_;
  }

  RETCLIP_HOST_DEVICE void SampleGrid() {
    if (photograph_.channels == 3)
      SampleChannels<3>();
    else
      SampleChannels<0>();
  }

  // kChannels: how many there are, 0 where the photograph says it.
  template <int kChannels>
  RETCLIP_HOST_DEVICE void SampleChannels() {
    const int channels = kChannels ? kChannels : photograph_.channels;
    for (int y = 0; y < grid_height_; ++y) {
      const uint8_t *row = photograph_.points + y * photograph_.row_stride;
      for (int x = team_.rank(); x < grid_width_; x += team_.size()) {
        const uint8_t *pixel = row + x * photograph_.column_stride;
        uint8_t darkest = pixel[0], brightest = pixel[0];
        for (int channel = 1; channel < channels; ++channel) {
          darkest = pixel[channel] < darkest ? pixel[channel] : darkest;
          brightest = pixel[channel] > brightest ? pixel[channel] : brightest;
        }
        planes_.darkest[y * grid_width_ + x] = darkest;
        planes_.brightest[y * grid_width_ + x] = brightest;
      }
    }
  }

  // Leaves out the white rows and columns along the border; nothing where all is white. Returns
  // whether there were any.
  RETCLIP_HOST_DEVICE bool TrimWhite(Rectangle &field) {
    CountRows(planes_.darkest, kWhiteLevel - 1, field);
    CountColumns(planes_.darkest, kWhiteLevel - 1, field);
    const Rectangle inside{NotWhite(counts_.rows, grid_height_, grid_width_),
                           NotWhite(counts_.columns, grid_width_, grid_height_)};
    if (!inside.rows.length() || !inside.columns.length()) return false;
    field = inside;
    return inside.rows.length() < grid_height_ || inside.columns.length() < grid_width_;
  }

  RETCLIP_HOST_DEVICE static Range NotWhite(const int *counts, int lines, int length) {
    Range range{0, 0};
    for (int line = 0; line < lines; ++line) {
      if (static_cast<double>(counts[line]) / length < kWhiteShare) {
        if (range.stop == 0) range.start = line;
        range.stop = line + 1;
      }
    }
    return range;
  }

  // Narrows `field` to the disc; leaves it alone, and returns false, where there is no disc in a
  // surround.
  RETCLIP_HOST_DEVICE bool FindDisc(Rectangle &field) {
    const int surround = SurroundLevel(field);
    const int bright_mean = MeanAbove(surround + kMinContrast, field);
    if (bright_mean < 0) return false;
    const int contrast = bright_mean - surround;
    if (surround > kSurroundRatio * (surround + contrast)) return false;
    const int threshold = surround + Larger(kMinContrast, contrast / kContrastShare);
    Rectangle disc = field;
    // the second pass counts rows without what lies beside the disc, such as a printed date
    for (int pass = 0; pass < 2; ++pass) {
      CountRows(planes_.brightest, threshold, {field.rows, disc.columns});
      disc.rows = LongestRun(counts_.rows, field.rows);
      CountColumns(planes_.brightest, threshold, {disc.rows, field.columns});
      disc.columns = LongestRun(counts_.columns, field.columns);
    }
    const int area = field.rows.length() * field.columns.length();
    if (disc.rows.length() * disc.columns.length() < kMinAreaShare * area) return false;
    field = disc;
    return true;
  }

  // The median brightness of the darkest of the four corners.
  RETCLIP_HOST_DEVICE int SurroundLevel(const Rectangle &field) {
    const int height = CeilDivide(field.rows.length(), kCornerShare);
    const int width = CeilDivide(field.columns.length(), kCornerShare);
    for (int corner = team_.rank(); corner < 4; corner += team_.size()) {
      const int top = corner < 2 ? field.rows.start : field.rows.stop - height;
      const int left = corner % 2 == 0 ? field.columns.start : field.columns.stop - width;
      int *histogram = counts_.histogram[corner];
      for (int level = 0; level < 256; ++level) histogram[level] = 0;
      for (int y = top; y < top + height; ++y)
        for (int x = left; x < left + width; ++x)
          ++histogram[planes_.brightest[y * grid_width_ + x]];
      const int size = height * width;
      counts_.corner[corner] =
          (Ranked(histogram, (size - 1) / 2) + Ranked(histogram, size / 2)) / 2;
    }
    team_.sync();
    const int *level = counts_.corner;
    return Smaller(Smaller(level[0], level[1]), Smaller(level[2], level[3]));
  }

  // The level at place `rank`, from 0, among the sorted levels of a histogram.
  RETCLIP_HOST_DEVICE static int Ranked(const int *histogram, int rank) {
    int level = 0;
    for (int below = histogram[0]; below <= rank; below += histogram[level]) ++level;
    return level;
  }

  // The mean, rounded down, of the brightness above `threshold`; -1 where nothing is above it.
  RETCLIP_HOST_DEVICE int MeanAbove(int threshold, const Rectangle &field) {
    CountRows(planes_.brightest, threshold, field);
    for (int y = field.rows.start + team_.rank(); y < field.rows.stop; y += team_.size()) {
      int sum = 0;
      for (int x = field.columns.start; x < field.columns.stop; ++x) {
        const int level = planes_.brightest[y * grid_width_ + x];
        sum += level > threshold ? level : 0;
      }
      counts_.columns[y] = sum;
    }
    team_.sync();
    int count = 0, sum = 0;
    for (int y = field.rows.start; y < field.rows.stop; ++y) {
      count += counts_.rows[y];
      sum += counts_.columns[y];
    }
    return count == 0 ? -1 : sum / count;
  }

  // The longest run of lines with enough bright points, the first of several.
  RETCLIP_HOST_DEVICE static Range LongestRun(const int *counts, const Range &lines) {
    int most = 0;
    for (int line = lines.start; line < lines.stop; ++line) most = Larger(most, counts[line]);
    Range longest{lines.start, lines.start}, run = longest;
    for (int line = lines.start; line < lines.stop; ++line) {
      if (counts[line] > kLineShare * most) {
        run.stop = line + 1;
        if (run.length() > longest.length()) longest = run;
      } else {
        run.start = line + 1;
      }
    }
    return longest;
  }

  // Counts the points above `threshold` in every row of a rectangle.
  RETCLIP_HOST_DEVICE void CountRows(const uint8_t *plane, int threshold, const Rectangle &in) {
    // others may still be writing the plane, or reading the counts that are about to go
    team_.sync();
    for (int y = in.rows.start + team_.rank(); y < in.rows.stop; y += team_.size()) {
      const uint8_t *row = plane + y * grid_width_;
      int count = 0;
      for (int x = in.columns.start; x < in.columns.stop; ++x) count += row[x] > threshold;
      counts_.rows[y] = count;
    }
    team_.sync();
  }

  // Counts the points above `threshold` in every column of a rectangle.
  RETCLIP_HOST_DEVICE void CountColumns(const uint8_t *plane, int threshold, const Rectangle &in) {
    team_.sync();
    const int first = in.columns.start + team_.rank();
    for (int x = first; x < in.columns.stop; x += team_.size()) counts_.columns[x] = 0;
    // row by row, as the plane lies in memory; a column belongs to one thread all along
    for (int y = in.rows.start; y < in.rows.stop; ++y) {
      const uint8_t *row = plane + y * grid_width_;
      for (int x = first; x < in.columns.stop; x += team_.size())
        counts_.columns[x] += row[x] > threshold;
    }
    team_.sync();
  }

  Team team_;
  const Photograph &photograph_;
  Planes &planes_;
  Counts &counts_;
  int step_, grid_height_, grid_width_;
};

}  // namespace retclip
