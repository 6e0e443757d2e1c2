// e to the power of sixteen floats.

#pragma once

#include "codes.h"

namespace llama_perf {

// Within two units of the last digit; 0 below the smallest normal number, and for more
// than 88 as for 88. As in Cephes (Moshier): 2**n e**r, where |r| is at most log(2) / 2.
inline Floats exponential(Floats x) {
  constexpr float kLowest = -87.3f, kHighest = 88.0f;
  const Floats bounded = x > kHighest ? Floats{} + kHighest : x;
  const Floats safe = bounded < kLowest ? Floats{} + kLowest : bounded;
  // Adding 1.5 * 2**23 rounds to whole numbers.
  const Floats n = (safe * 1.44269504f + 0x1.8p23f) - 0x1.8p23f;
  const Floats r = (safe - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats power = r * 1.9875691500e-4f + 1.3981999507e-3f;
  power = power * r + 8.3334519073e-3f;
  power = power * r + 4.1665795894e-2f;
  power = power * r + 1.6666665459e-1f;
  power = power * r + 5.0000001201e-1f;
  power = power * r * r + r + 1.0f;
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  return bounded < kLowest ? Floats{} : power * (Floats)exponent;
}

}  // namespace llama_perf
