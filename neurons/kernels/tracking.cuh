// The gradient of signGD neurons through their spikes, for targets f(x) computed before.
#pragma once
#include "surrogates.cuh"
#include "values.cuh"

struct TrackingGradient {
  Space space;
  Operand target, v_seq;  // of each step
  Operand v, scale;       // the first v; scale: data NULL where it is in eta
  Operand zones;          // data NULL where all are zone
  Operand y, v_last;      // gradients of the outputs and of the last v; data NULL for none
  float *x;               // [steps, neurons] the gradient of the targets
  float *v_start;         // [neurons] the gradient of the first v
  int steps, surrogate, sparse, signed_output, input_type;
  float zone, alpha;
  float eta[256];
};

// v' = v - size sigma(u), u = v - target, with sigma = 2 s(u) - 1; with a dead zone, of which h is the
// half width, s(u - h) + s(u + h) - 1. So dv'/du = -size sigma'(u); y is v', or v' - v if signed
DEVICE void tracking_gradient_block(const TrackingGradient &a, index_t n, int lanes) {
  ALIGNED float gradient[LANES], scale[LANES], u[LANES], slope[LANES], buffer[LANES];
  ALIGNED float zone[LANES], above[LANES];
  const index_t target_place = place_of(a.target, a.space, n);
  const index_t v_place = place_of(a.v, a.space, n), y_place = place_of(a.y, a.space, n);
  const index_t seq_place = place_of(a.v_seq, a.space, n);
  FOR_LANES gradient[i] = 0.0f;
  FOR_LANES scale[i] = 1.0f;
  if (a.v_last.data) {
    const index_t p = place_of(a.v_last, a.space, n);
    const float *from = fetch(a.v_last, a.space, FLOAT32, p, n, 0, lanes, buffer);
    FOR_LANES gradient[i] = from[i];
  }
  if (SCALED) {
    const index_t p = place_of(a.scale, a.space, n);
    const float *from = fetch(a.scale, a.space, FLOAT32, p, n, 0, lanes, buffer);
    FOR_LANES scale[i] = from[i];
  }
  if (SPARSE) FOR_LANES zone[i] = a.zone;
  if (SPARSE == 2) {
    const index_t p = place_of(a.zones, a.space, n);
    const float *from = fetch(a.zones, a.space, FLOAT32, p, n, 0, lanes, buffer);
    FOR_LANES zone[i] = from[i];
  }
  UNROLLED for (int t = a.steps - 1; t >= 0; --t) {
    const float *from = t ? fetch(a.v_seq, a.space, FLOAT32, seq_place, n, t - 1, lanes, buffer)
                          : fetch(a.v, a.space, FLOAT32, v_place, n, 0, lanes, buffer);
    FOR_LANES u[i] = from[i];
    from = fetch(a.target, a.space, FLOAT32, target_place, n, t, lanes, buffer);
    FOR_LANES u[i] -= from[i];
    FOR_LANES slope[i] = 0.0f;
    if (SPARSE) {
      FOR_LANES {
        const float h = zone[i] * (SCALED ? a.eta[t] * scale[i] : a.eta[t]);
        above[i] = u[i] - h;
        u[i] += h;
      }
      add_surrogate(SURROGATE, a.alpha, above, 0.0f, lanes, slope);
    }
    add_surrogate(SURROGATE, a.alpha, u, 0.0f, lanes, slope);
    const float twice = SPARSE ? 1.0f : 2.0f;
    const float *y = fetch(a.y, a.space, INPUT_TYPE, y_place, n, t, lanes, buffer);
    float *x = a.x + t * a.space.neurons + n;
    FOR_LANES {
      const float size = SCALED ? a.eta[t] * scale[i] : a.eta[t];
      const float decoded = SIGNED_OUTPUT ? gradient[i] : gradient[i] + y[i];
      const float change = -twice * size * slope[i] * (gradient[i] + y[i]);
      x[i] = -change;
      gradient[i] = decoded + change;
    }
  }
  FOR_LANES a.v_start[n + i] = gradient[i];
}
