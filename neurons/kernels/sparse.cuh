// One step of signGD neurons with a dead zone: sparse_step of neurons/signgd/sparse.py.
#pragma once
#include "values.cuh"

// Of the lanes of a block: arrays, or NULL where all have the numbers.
struct Zones {
  float size, zone;  // c_1 and theta
  const float *sizes, *zones;
  bool mixed;    // whether some theta are not above 0: these lanes fire at every step
  bool nearest;  // whether signgd_nearest may be asked, if
  bool regular;  // all sizes are finite, and those of all members far from subnormal
};

DEVICE unsigned sign_of(float r) { return bits_of(r) & SIGN_BIT; }

DEVICE unsigned all_bits_if(bool condition) { return 0u - (unsigned)condition; }

// sign(r) size where |r| > bound, else 0; 0 for NaN
DEVICE float fired(float r, float bound, float size) {
  return float_of((bits_of(size) | sign_of(r)) & all_bits_if(fabsf(r) > bound));
}

// m members, one after the other. ``level`` d and ``code`` unless NULL.
template <int m, bool each>
DEVICE void signgd_sparse(const Zones &z, const float *target, int lanes, const float *v,
                          float *after, float *level, int *code) {
  const float number = z.size, widest = z.zone * z.size;
#define MEMBERS_OF_LANE(and_also)                                                  \
  const float size = each ? z.sizes[i] : number;                                   \
  const float bound = each ? z.zones[i] * size : widest, u = v[i];                 \
  float r = u - target[i], d = 0.0f, part = 1.0f;                                  \
  for (int k = 0; k < m; ++k) {                                                    \
    const float c = size * part, h = bound * part; /* exact, or rounded once */    \
    const float digit = fired(r, h, (float)(1 << (m - 1 - k)));                    \
    r = r - fired(r, h, c);                                                        \
    d = d + digit;                                                                 \
    part = part * 0.5f;                                                            \
    and_also;                                                                      \
  }                                                                                \
  after[i] = u - (size * (2.0f * part)) * d
  if (code) {
    FOR_LANES {
      int bits = 0;
      MEMBERS_OF_LANE(bits += (int)(digit > 0.0f ? digit : digit * -65536.0f));
      level[i] = d;
      code[i] = bits;
    }
  } else if (level) {
    FOR_LANES {
      MEMBERS_OF_LANE();
      level[i] = d;
    }
  } else {
    FOR_LANES {
      MEMBERS_OF_LANE();
    }
  }
#undef MEMBERS_OF_LANE
}

// Of the lanes whose theta is not above 0, in place of what was made there: dense_step
NOT_INLINE void signgd_where_dense(const Zones &z, int m, bool tie, const float *target, int lanes,
                                   const float *v, float *after, float *level, int *code) {
  for (int i = 0; i < lanes; ++i) {
    if (z.zones[i] > 0.0f) continue;
    float u = v[i], part = 1.0f;
    int d = 0, bits = 0;
    for (int k = 0; k < m; ++k) {
      const bool fires = tie ? u >= target[i] : u > target[i];
      const float size = z.sizes[i] * part;
      u = u + (fires ? -size : size);
      d = 2 * d + (fires ? 1 : -1);
      bits = 2 * bits + (fires ? 1 : 0x10000);
      part = part * 0.5f;
    }
    after[i] = u;
    if (level) level[i] = (float)d;
    if (code) code[i] = bits;
  }
}

#if LANES == 1
#define SPARSE_OF(a, z) signgd_sparse<MEMBERS, SCALED || SPARSE == 2>
#define FIRES_AT_TIE TIE
#else
#define SPARSE_OF(a, z) (z.sizes ? sparse_of<true>(MEMBERS) : sparse_of<false>(MEMBERS))
#define FIRES_AT_TIE a.fires_at_tie
typedef void (*Sparse)(const Zones &, const float *, int, const float *, float *, float *, int *);

template <bool each>
Sparse sparse_of(int members) {
  static const Sparse of[] = {
      signgd_sparse<1, each>,  signgd_sparse<2, each>,  signgd_sparse<3, each>,
      signgd_sparse<4, each>,  signgd_sparse<5, each>,  signgd_sparse<6, each>,
      signgd_sparse<7, each>,  signgd_sparse<8, each>,  signgd_sparse<9, each>,
      signgd_sparse<10, each>, signgd_sparse<11, each>, signgd_sparse<12, each>};
  return of[members - 1];
}

// d in closed form, for theta <= 2/3. With q = r_0 / c_m held within +-(2^m - 1), n the even number
// nearest to q and s = q - n in [-1, 1]:
//
//     d = n where |s| <= theta, else n + sign(s)
//
// Proof. The first m - 1 members leave r = (q - E) c_m with an even E. (1) Within their reach,
// |q| <= 2^m - 2 + 2 rho with rho = max(theta, 1 - theta), the bound of sparse.py is |q - E| <= 2 rho.
// If E = n, the last member does what stands above. Else E = n + 2 sign(s) and |q - E| = 2 - |s|, which
// is at least 1, so that the last member fires: d = n + sign(s). That is the same as above, for
// |s| >= 2 - 2 rho >= theta: 2 - 2 theta >= theta as theta <= 2/3, or 2 theta >= theta. (2) Beyond
// that, |q| > 2^m - 1, and all members fire: r_k > (2^(m-k) - 1) c_m >= c_(k+1).
//
// Rounding. In the definition h_m = theta' c_m, and all h_k have the same theta', within 2^-24 of
// theta; what members fired is subtracted exactly for theta >= 1/2 (Sterbenz), else within 2^-24 c_k,
// together 2^(m-23) c_m. Here q is off by 2^(m-23) at most, and so is s; that n may be the other
// neighbour near |s| = 1 is the case E != n again. theta' may be above 2/3 by 2^-24: then the
// |s| between 2 - 2 rho and theta' are within 2^-22 of it. So d is certain where |s| is farther than
// 2^(m-21) from theta. Returns whether that is so in all lanes; if not, what it wrote is to be
// overwritten. Sizes are regular, so that nothing here is subnormal but what is silent.
template <bool each>
DEVICE bool nearest_of(const Zones &z, int members, const float *target, int lanes, const float *v,
                       float *after, float *level) {
  const float even = 25165824.0f;  // 1.5 * 2^24: its neighbours are 2 apart
  const float last = 2.0f / (float)(1 << members), most = (float)(1 << members) - 1.0f;
  const float doubtful = (float)(1 << members) * 4.76837158e-7f;
  const float size = z.size * last, inverse = 1.0f / size;
  unsigned doubts = 0;
  const float lowest = z.zone - doubtful, highest = z.zone + doubtful;
#define NEAREST                                                                    \
  const float c = each ? z.sizes[i] * last : size, r = v[i] - target[i];           \
  const float low = each ? z.zones[i] - doubtful : lowest;                         \
  const float high = each ? z.zones[i] + doubtful : highest;                       \
  const float q = each ? r / c : r * inverse, below = q > most ? most : q;         \
  const float held = below < -most ? -most : below, n = (held + even) - even;      \
  const float s = held - n, d = n + fired(s, high, 1.0f);                          \
  doubts |= (unsigned)(!(fabsf(s) <= low) & !(fabsf(s) > high)); /* for NaN too */  \
  after[i] = v[i] - c * d
  if (level) {
    FOR_LANES {
      NEAREST;
      level[i] = d;
    }
  } else {
    FOR_LANES {
      NEAREST;
    }
  }
#undef NEAREST
  return !doubts;
}

// With fewer members it is slower than one after the other, with more too many lanes are doubtful.
DEVICE bool nearest_holds(int members, float zone) {
  return members >= 3 && members <= 10 && zone <= 0.666666687f;
}

struct Range {
  float least, most;
};

// Of numbers that are not negative; most is NaN where one is, or one is negative
DEVICE Range range_of(const float *values, int lanes) {
  unsigned least = ~0u, most = 0;
  FOR_LANES {
    const unsigned bits = bits_of(values[i]);
    least = bits < least ? bits : least;
    most = bits > most ? bits : most;
  }
  return {float_of(least), float_of(most >= SIGN_BIT ? 0x7fc00000u : most)};
}

DEVICE bool are_regular(const Range &scales, float eta, int members) {
  const float last = eta * scales.least / (float)(1 << members);
  return eta * scales.most < float_of(INFINITY_BITS) && last > 7.9e-31f;
}

NOT_INLINE bool signgd_nearest(const Zones &z, int members, const float *target, int lanes,
                               const float *v, float *after, float *level) {
  return z.sizes ? nearest_of<true>(z, members, target, lanes, v, after, level)
                 : nearest_of<false>(z, members, target, lanes, v, after, level);
}
#endif
