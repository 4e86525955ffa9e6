// Derivatives that stand in for that of the step function: the table of neurons/surrogate.py.
#pragma once
#include "functions.cuh"

enum Surrogate {
  SIGMOID,
  ATAN,
  PIECEWISE_QUADRATIC,
  STRAIGHT_THROUGH,
  SUPER,
  TRIANGLE,
  TANH,
  CIRC,
  HEAVI_ERFC
};

// slope[i] += derivative of the step at h[i] - threshold
DEVICE void add_surrogate(int surrogate, float alpha, const float *h, float threshold, int lanes,
                          float *slope) {
  if (surrogate == SIGMOID) {
    FOR_LANES {
      const float e = exp_below(-fabsf(alpha * (h[i] - threshold))), below = 1.0f + e;
      slope[i] += alpha * e / (below * below);  // s (1 - s), even in h - threshold
    }
  } else if (surrogate == ATAN) {
    FOR_LANES {
      const float u = 1.57079632679489662f * alpha * (h[i] - threshold);
      slope[i] += alpha / 2.0f / (1.0f + u * u);
    }
  } else if (surrogate == PIECEWISE_QUADRATIC) {
    FOR_LANES {
      const float u = alpha * fabsf(h[i] - threshold);
      slope[i] += u > 1.0f ? 0.0f : alpha * (1.0f - u);
    }
  } else if (surrogate == SUPER) {
    FOR_LANES {
      const float u = 1.0f + alpha * fabsf(h[i] - threshold);
      slope[i] += 1.0f / (u * u);
    }
  } else if (surrogate == TRIANGLE) {
    FOR_LANES {
      const float u = fabsf(h[i] - threshold);
      slope[i] += u > 1.0f ? 0.0f : alpha * (1.0f - u);
    }
  } else if (surrogate == TANH) {
    FOR_LANES {
      const float e = exp_below(-2.0f * fabsf(alpha * (h[i] - threshold))), below = 1.0f + e;
      slope[i] += 4.0f * e / (below * below);
    }
  } else if (surrogate == CIRC) {
    FOR_LANES {
      const float u = (h[i] - threshold) / alpha, below = 1.0f + u * u;
      slope[i] += 1.0f / (below * sqrtf(below));
    }
  } else if (surrogate == HEAVI_ERFC) {
    FOR_LANES {
      const float u = alpha * (h[i] - threshold);
      slope[i] += 1.12837916709551257f * exp_below(-(u * u));
    }
  } else {
    FOR_LANES slope[i] += 1.0f;
  }
}
