// The steps of a network whose values are kept from frame to frame: each touches what changed alone.
// Definitions in torch, and what lies where, are in core/silent_steps.py.
#pragma once

struct Kept {
  float *data;     // [size], in the order in which the value lies in memory
  int *places;     // [changed], rising: where it changed in this frame
  float *before;   // [changed]: what it was there
  index_t size, changed;
};

enum { MOST = 8 };  // where more than an eighth changed, simple steps are faster over all of it
enum SilentKind { SETTLE, CONV, MOVE, SUM, AFFINE, ADD, NEURON, LARGEST, NORM, HOP };

struct SilentStep {
  Kept *const *in;       // [inputs]
  Kept *out;
  float *fresh;          // [size of out]: what was computed of it in this frame
  double *sums;          // [size of out]: W v + b
  unsigned char *marks;  // of outputs, pixels or rows; 0 between frames
  const double *columns;        // CONV [inputs, taps, outputs of its group], or [taps, channels]
  const float *weight, *shift;  // AFFINE [size of out] or NULL
  const int *const *starts, *const *ends;  // MOVE, SUM: [inputs], the outputs of each element
  const int *sources;  // MOVE of one input: where each output is from, -1 from nowhere; or NULL
  const double *factors;                   // SUM: by which they are reached
  void (*range)(const void *, long long, long long);  // NEURON: a kernel, and its arguments
  const void *arguments, *arguments_of_some;
  int *some;                 // NEURON [size of out]: those that run
  const float *const *far;   // NEURON: what the kernel reads of each neuron,
  float *const *near;        // and where it is laid of some
  index_t limit;  // more changed inputs than these are for torch
  index_t work;   // additions, and other updates, of this frame
  float first, second;  // ADD: the coefficients
  double epsilon;       // NORM
  int kind, inputs, read;  // read: how many ``far``
  int awake;               // runs again where its own value changed in the frame before
  int channels, outputs, groups, height, width, out_height, out_width;
  int kernel[2], stride[2], padding[2], dilation[2];
};

// Without a branch: whether a value changed is often as likely as not
static inline void silent_put(Kept &out, index_t place, float value) {
  const float before = out.data[place];
  out.places[out.changed] = (int)place;
  out.before[out.changed] = before;
  out.data[place] = value == before ? before : value;
  out.changed += value != before;
}

// What was computed anew from ``first`` to ``last``: most of it is often as it was
static void silent_compare(Kept &out, const float *fresh, index_t first, index_t last) {
  enum { BLOCK = 16 };
  index_t i = first;
  for (; i + BLOCK <= last; i += BLOCK) {
    unsigned long long ours[BLOCK / 2], other[BLOCK / 2], differ = 0;
    __builtin_memcpy(ours, fresh + i, sizeof ours);
    __builtin_memcpy(other, out.data + i, sizeof other);
    for (int k = 0; k < BLOCK / 2; ++k) differ |= ours[k] ^ other[k];
    if (!differ) continue;
    for (int k = 0; k < BLOCK; ++k) silent_put(out, i + k, fresh[i + k]);
  }
  for (; i < last; ++i) silent_put(out, i, fresh[i]);
}

static void silent_settle(SilentStep &s) {
  s.out->changed = 0;
  silent_compare(*s.out, s.fresh, 0, s.out->size);
  if (s.sums)
    for (index_t i = 0; i < s.out->size; ++i) s.sums[i] = (double)s.fresh[i];
}

// Calls ``of(i)`` for each mark i < count, in order, and takes it away
template <class Of>
static inline void silent_marked(unsigned char *marks, index_t count, const Of &of) {
  index_t i = 0;
  for (; i + 8 <= count; i += 8) {
    unsigned long long eight;
    __builtin_memcpy(&eight, marks + i, 8);
    if (!eight) continue;
    for (int k = 0; k < 8; ++k)
      if (marks[i + k]) marks[i + k] = 0, of(i + k);
  }
  for (; i < count; ++i)
    if (marks[i]) marks[i] = 0, of(i);
}

// The marks i < count, in order, which are taken away: how many there are
static inline index_t silent_listed(unsigned char *marks, index_t count, int *list) {
  index_t found = 0, i = 0;
  for (; i + 8 <= count; i += 8) {
    unsigned long long eight;
    __builtin_memcpy(&eight, marks + i, 8);
    if (!eight) continue;
    for (int k = 0; k < 8; ++k) list[found] = (int)i + k, found += marks[i + k];
    __builtin_memset(marks + i, 0, 8);
  }
  for (; i < count; ++i)
    if (marks[i]) marks[i] = 0, list[found++] = (int)i;
  return found;
}

static inline double silent_change(const Kept &in, index_t k) {
  return (double)in.data[in.places[k]] - (double)in.before[k];
}

// The window that a tap at ``place`` belongs to, -1 where there is none
static inline int silent_window(int place, int stride, int windows) {
  if (place < 0) return -1;
  if (stride != 1) {
    if (place % stride) return -1;
    place /= stride;
  }
  return place < windows ? place : -1;
}

// Whether a sum stays what it is said to be: infinity less infinity would stay in it for ever
static bool silent_finite(const Kept &in) {
  double all = 0.0;
  for (index_t k = 0; k < in.changed; ++k) all += silent_change(in, k);
  return all - all == 0.0;
}

// Calls ``of(tap, output pixel)`` for what an input pixel reaches
template <class Of>
static inline void silent_reached(const SilentStep &s, index_t pixel, const Of &of) {
  const int x = (int)(pixel % s.width), y = (int)(pixel / s.width % s.height);
  const index_t image = pixel / s.width / s.height * s.out_height * s.out_width;
  for (int i = 0; i < s.kernel[0]; ++i) {
    const int row = silent_window(y + s.padding[0] - i * s.dilation[0], s.stride[0], s.out_height);
    if (row < 0) continue;
    for (int j = 0; j < s.kernel[1]; ++j) {
      const int along = x + s.padding[1] - j * s.dilation[1];
      const int column = silent_window(along, s.stride[1], s.out_width);
      if (column < 0) continue;
      of(i * s.kernel[1] + j, image + row * s.out_width + column);
    }
  }
}

// sums[j] += weight[e][j] change[e], one e after the other
static inline void silent_add(double *sums, int outputs, const double *const *rows,
                              const double *changes, int events) {
  enum { WIDTH = 8, VECTORS = 4, BLOCK = WIDTH * VECTORS };
  typedef double Vector __attribute__((vector_size(8 * WIDTH)));  // or gcc keeps sums in memory
  int j = 0;
  for (; j + BLOCK <= outputs; j += BLOCK) {
    Vector s[VECTORS];
    __builtin_memcpy(s, sums + j, sizeof s);
    for (int e = 0; e < events; ++e) {
      for (int k = 0; k < VECTORS; ++k) {
        Vector w;
        __builtin_memcpy(&w, rows[e] + j + k * WIDTH, sizeof w);
        s[k] += w * changes[e];
      }
    }
    __builtin_memcpy(sums + j, s, sizeof s);
  }
  for (; j + WIDTH <= outputs; j += WIDTH) {
    Vector s, w;
    __builtin_memcpy(&s, sums + j, sizeof s);
    for (int e = 0; e < events; ++e) {
      __builtin_memcpy(&w, rows[e] + j, sizeof w);
      s += w * changes[e];
    }
    __builtin_memcpy(sums + j, &s, sizeof s);
  }
  for (; j < outputs; ++j)
    for (int e = 0; e < events; ++e) sums[j] += rows[e][j] * changes[e];
}

static void silent_events(SilentStep &s) {
  enum { AT_ONCE = 64 };
  const Kept &in = *s.in[0];
  const int of_group = s.channels / s.groups, to_group = s.outputs / s.groups;
  const int taps = s.kernel[0] * s.kernel[1];
  double changes[AT_ONCE];
  const double *weights[AT_ONCE], *rows[AT_ONCE];
  for (index_t k = 0, end; k < in.changed; k = end) {
    const index_t pixel = in.places[k] / s.channels;
    const int group = (int)(in.places[k] - pixel * s.channels) / of_group;
    const index_t behind = pixel * s.channels + (index_t)(group + 1) * of_group;
    int events = 0;
    for (end = k; end < in.changed && in.places[end] < behind && events < AT_ONCE; ++end, ++events) {
      const index_t channel = in.places[end] - pixel * s.channels;
      changes[events] = silent_change(in, end);
      weights[events] = s.columns + channel * taps * to_group;
    }
    silent_reached(s, pixel, [&](int tap, index_t to) {
      for (int e = 0; e < events; ++e) rows[e] = weights[e] + tap * to_group;
      silent_add(s.sums + to * s.outputs + group * to_group, to_group, rows, changes, events);
      s.marks[to] = 1;
      s.work += (index_t)events * to_group;
    });
  }
}

// As silent_events, where each channel is a group with one output: weight [taps, channels]
static void silent_depthwise(SilentStep &s) {
  enum { AT_ONCE = 64 };
  const Kept &in = *s.in[0];
  double changes[AT_ONCE];
  int channels[AT_ONCE];
  for (index_t k = 0; k < in.changed;) {
    const index_t pixel = in.places[k] / s.channels, behind = (pixel + 1) * s.channels;
    int events = 0;
    for (; k < in.changed && in.places[k] < behind && events < AT_ONCE; ++k, ++events) {
      changes[events] = silent_change(in, k);
      channels[events] = (int)(in.places[k] - pixel * s.channels);
    }
    silent_reached(s, pixel, [&](int tap, index_t to) {
      const double *weight = s.columns + (index_t)tap * s.channels;
      double *sums = s.sums + to * s.channels;
      for (int e = 0; e < events; ++e) sums[channels[e]] += weight[channels[e]] * changes[e];
      s.marks[to] = 1;
      s.work += events;
    });
  }
}

static void silent_conv(SilentStep &s) {
  if (s.groups == s.channels && s.outputs == s.channels)
    silent_depthwise(s);
  else
    silent_events(s);
  silent_marked(s.marks, s.out->size / s.outputs, [&](index_t pixel) {
    const index_t first = pixel * s.outputs;
    for (index_t i = first; i < first + s.outputs; ++i) s.fresh[i] = (float)s.sums[i];
    silent_compare(*s.out, s.fresh, first, first + s.outputs);
  });
}

static void silent_move(SilentStep &s) {
  if (s.sources && s.in[0]->changed > s.in[0]->size / MOST) {
    const float *from = s.in[0]->data;
    for (index_t i = 0; i < s.out->size; ++i)
      s.fresh[i] = s.sources[i] < 0 ? s.out->data[i] : from[s.sources[i]];
    s.work += s.out->size;
    return silent_compare(*s.out, s.fresh, 0, s.out->size);
  }
  for (int n = 0; n < s.inputs; ++n) {
    const Kept &in = *s.in[n];
    for (index_t k = 0; k < in.changed; ++k) {
      const int place = in.places[k];
      for (int e = s.starts[n][place]; e < s.starts[n][place + 1]; ++e) {
        s.fresh[s.ends[n][e]] = in.data[place];
        s.marks[s.ends[n][e]] = 1;
      }
      s.work += s.starts[n][place + 1] - s.starts[n][place];
    }
  }
  silent_marked(s.marks, s.out->size, [&](index_t i) { silent_put(*s.out, i, s.fresh[i]); });
}

static void silent_sum(SilentStep &s) {
  const Kept &in = *s.in[0];
  for (index_t k = 0; k < in.changed; ++k) {
    const double change = silent_change(in, k);
    const int place = in.places[k];
    for (int e = s.starts[0][place]; e < s.starts[0][place + 1]; ++e) {
      s.sums[s.ends[0][e]] += s.factors[e] * change;
      s.marks[s.ends[0][e]] = 1;
    }
    s.work += s.starts[0][place + 1] - s.starts[0][place];
  }
  silent_marked(s.marks, s.out->size,
                [&](index_t i) { silent_put(*s.out, i, (float)s.sums[i]); });
}

static void silent_affine(SilentStep &s) {
  const Kept &in = *s.in[0];
  if (in.changed > in.size / MOST) {
    const float *from = in.data;
    for (index_t i = 0; i < in.size; ++i) s.fresh[i] = s.weight ? from[i] * s.weight[i] : from[i];
    if (s.shift)
      for (index_t i = 0; i < in.size; ++i) s.fresh[i] += s.shift[i];
    s.work += in.size;
    return silent_compare(*s.out, s.fresh, 0, in.size);
  }
  for (index_t k = 0; k < in.changed; ++k) {
    const int place = in.places[k];
    float y = in.data[place];
    if (s.weight) y = y * s.weight[place];
    if (s.shift) y = y + s.shift[place];
    silent_put(*s.out, place, y);
  }
  s.work += in.changed;
}

static void silent_sum_of_two(SilentStep &s) {
  const Kept &a = *s.in[0], &b = *s.in[1];
  if (a.changed + b.changed > a.size / MOST) {
    const float *left = a.data, *right = b.data;
    for (index_t i = 0; i < a.size; ++i) s.fresh[i] = left[i] * s.first + right[i] * s.second;
    s.work += a.size;
    return silent_compare(*s.out, s.fresh, 0, a.size);
  }
  index_t i = 0, j = 0;
  while (i < a.changed || j < b.changed) {
    const int left = i < a.changed ? a.places[i] : 0x7fffffff;
    const int right = j < b.changed ? b.places[j] : 0x7fffffff;
    const int place = left < right ? left : right;
    i += left == place, j += right == place;
    silent_put(*s.out, place, a.data[place] * s.first + b.data[place] * s.second);
    ++s.work;
  }
}

// Few of the neurons are laid side by side first, with all that the kernel reads of each
static void silent_neurons(SilentStep &s, index_t awake) {
  Kept &out = *s.out;
  for (int n = 0; n < s.inputs; ++n)
    for (index_t k = 0; k < s.in[n]->changed; ++k) s.marks[s.in[n]->places[k]] = 1;
  for (index_t k = 0; k < awake; ++k) s.marks[out.places[k]] = 1;
  const index_t count = silent_listed(s.marks, out.size, s.some);
  s.work += count;
  if (count > out.size / 2) {
    s.range(s.arguments, 0, out.size);
    silent_compare(out, s.fresh, 0, out.size);
    return;
  }
  for (int n = 0; n < s.read; ++n)
    for (index_t k = 0; k < count; ++k) s.near[n][k] = s.far[n][s.some[k]];
  s.range(s.arguments_of_some, 0, count);
  for (index_t k = 0; k < count; ++k) silent_put(out, s.some[k], s.fresh[k]);
}

static void silent_largest(SilentStep &s) {
  const Kept &in = *s.in[0];
  const int channels = s.channels;
  for (index_t k = 0, pixel = -1; k < in.changed; ++k) {
    if (in.places[k] / channels == pixel) continue;
    pixel = in.places[k] / channels;
    silent_reached(s, pixel, [&](int, index_t to) { s.marks[to] = 1; });
  }
  silent_marked(s.marks, s.out->size / channels, [&](index_t pixel) {
    const int x = (int)(pixel % s.out_width), y = (int)(pixel / s.out_width % s.out_height);
    const index_t image = pixel / s.out_width / s.out_height * s.height * s.width;
    float *largest = s.fresh + pixel * channels;
    for (int c = 0; c < channels; ++c) largest[c] = -__builtin_inff();
    for (int i = 0; i < s.kernel[0]; ++i) {
      const int row = y * s.stride[0] - s.padding[0] + i * s.dilation[0];
      if (row < 0 || row >= s.height) continue;
      for (int j = 0; j < s.kernel[1]; ++j) {
        const int column = x * s.stride[1] - s.padding[1] + j * s.dilation[1];
        if (column < 0 || column >= s.width) continue;
        const float *from = in.data + (image + (index_t)row * s.width + column) * channels;
        for (int c = 0; c < channels; ++c) largest[c] = from[c] > largest[c] ? from[c] : largest[c];
        s.work += channels;
      }
    }
    silent_compare(*s.out, s.fresh, pixel * channels, (pixel + 1) * channels);
  });
}

// Eight sums side by side, each one after the other, and then those
template <class Of>
static inline double silent_total(int count, const Of &of) {
  enum { WIDTH = 8 };
  double parts[WIDTH] = {0.0}, total = 0.0;
  int i = 0;
  for (; i + WIDTH <= count; i += WIDTH)
    for (int k = 0; k < WIDTH; ++k) parts[k] += of(i + k);
  for (int k = 0; i + k < count; ++k) parts[k] += of(i + k);
  for (int k = 0; k < WIDTH; ++k) total += parts[k];
  return total;
}

static void silent_norm(SilentStep &s) {
  const Kept &in = *s.in[0];
  const int width = s.channels;
  for (index_t k = 0; k < in.changed; ++k) s.marks[in.places[k] / width] = 1;
  silent_marked(s.marks, s.out->size / width, [&](index_t row) {
    const float *x = in.data + row * width;
    float *y = s.fresh + row * width;
    const double mean = silent_total(width, [&](int i) { return (double)x[i]; }) / width;
    const auto squared = [&](int i) { return ((double)x[i] - mean) * ((double)x[i] - mean); };
    const double variance = silent_total(width, squared) / width;
    const double factor = 1.0 / __builtin_sqrt(variance + s.epsilon);
    for (int i = 0; i < width; ++i) y[i] = (float)(((double)x[i] - mean) * factor);
    silent_compare(*s.out, s.fresh, row * width, (row + 1) * width);
    s.work += width;
  });
}

// Whether the step was done; what is for torch is not
static bool silent_step(SilentStep &s) {
  index_t changed = 0;
  const index_t before = s.out->changed;
  s.out->changed = 0;
  s.work = 0;
  for (int n = 0; n < s.inputs; ++n) changed += s.in[n]->changed;
  if (s.awake) changed += before;
  if (s.kind == SETTLE) return silent_settle(s), true;
  if (!changed) return true;
  if (s.kind == HOP || changed > s.limit || (s.sums && !silent_finite(*s.in[0])))
    return s.work = -1, false;
  switch (s.kind) {
    case CONV: silent_conv(s); break;
    case MOVE: silent_move(s); break;
    case SUM: silent_sum(s); break;
    case AFFINE: silent_affine(s); break;
    case ADD: silent_sum_of_two(s); break;
    case NEURON: silent_neurons(s, before); break;
    case LARGEST: silent_largest(s); break;
    case NORM: silent_norm(s); break;
  }
  return true;
}

// Runs steps from ``first`` on, of which torch has computed that one if ``settle``; returns the next
// that is for torch
static long long silent_run(void *given, long long first, long long count, int settle) {
  SilentStep *steps = (SilentStep *)given;
  if (settle) silent_settle(steps[first++]);
  while (first < count && silent_step(steps[first])) ++first;
  return first;
}
