// What the generated functions call: products of matrices, by strides.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "functions.h"

#define INLINE static inline __attribute__((always_inline))

// part += the tile of A B at row i and column j, for `height` rows and `width` columns. A macro, for
// in a function compilers may fuse other products and sums.
#define TILE(a, ra, ca, b, rb, cb, k)                                                            \
  if (height == 4 && width == 16 && cb == 1) {                                                   \
    for (long p = 0; p < k; p++)                                                                 \
      for (long h = 0; h < 4; h++)                                                               \
        _Pragma("omp simd") for (long q = 0; q < 16; q++)                                        \
          part[h][q] += a[(i + h) * ra + p * ca] * b[p * rb + j + q];                            \
  } else {                                                                                       \
    for (long p = 0; p < k; p++)                                                                 \
      for (long h = 0; h < height; h++)                                                          \
        for (long q = 0; q < width; q++)                                                         \
          part[h][q] += a[(i + h) * ra + p * ca] * b[p * rb + (j + q) * cb];                     \
  }

// Aᵀ B for strips of rows, added in double: `sums` (k, m) += Σ over rows of A[r, :]ᵀ B[r, :].
// Within a strip the terms are added up in the dtype itself, in four running sums.
#define PRODUCT_T(T, letter)                                                                     \
  INLINE void mo_product_t_##letter(const T *a, long ra, long ca, const T *b, long rb, long cb,  \
                                    long rows, long k, long m, double *restrict sums)            \
  {                                                                                              \
    if (m == 1 && ca == 1) {                                                                     \
      T part[k];                                                                                 \
      for (long j = 0; j < k; j++) part[j] = 0;                                                  \
      long r = 0;                                                                                \
      for (; r + 4 <= rows; r += 4) {                                                            \
        const T *a0 = a + r * ra, *a1 = a0 + ra, *a2 = a1 + ra, *a3 = a2 + ra;                   \
        const T b0 = b[r * rb], b1 = b[(r + 1) * rb], b2 = b[(r + 2) * rb], b3 = b[(r + 3) * rb];\
        _Pragma("omp simd") for (long j = 0; j < k; j++)                                         \
          part[j] += (a0[j] * b0 + a1[j] * b1) + (a2[j] * b2 + a3[j] * b3);                      \
      }                                                                                          \
      for (; r < rows; r++)                                                                      \
        _Pragma("omp simd") for (long j = 0; j < k; j++) part[j] += a[r * ra + j] * b[r * rb];   \
      for (long j = 0; j < k; j++) sums[j] += part[j];                                           \
      return;                                                                                    \
    }                                                                                            \
    for (long i = 0; i < k; i += 4) {                                                            \
      const long height = k - i < 4 ? k - i : 4;                                                 \
      for (long j = 0; j < m; j += 16) {                                                         \
        const long width = m - j < 16 ? m - j : 16;                                              \
        T part[4][16] = {{0}};                                                                   \
        TILE(a, ca, ra, b, rb, cb, rows)                                                         \
        for (long p = 0; p < height; p++)                                                        \
          for (long q = 0; q < width; q++) sums[(i + p) * m + j + q] += part[p][q];              \
      }                                                                                          \
    }                                                                                            \
  }

// C = A B, C (rows, m) in C order, A (rows, k), B (k, m).
#define PRODUCT(T, letter)                                                                       \
  INLINE void mo_product_##letter(const T *a, long ra, long ca, const T *b, long rb, long cb,    \
                                  long rows, long k, long m, T *restrict c)                      \
  {                                                                                              \
    if (m == 1 && ca == 1 && rb == 1) {                                                          \
      long r = 0;                                                                                \
      for (; r + 4 <= rows; r += 4) {                                                            \
        const T *a0 = a + r * ra, *a1 = a0 + ra, *a2 = a1 + ra, *a3 = a2 + ra;                   \
        T s0 = 0, s1 = 0, s2 = 0, s3 = 0;                                                        \
        _Pragma("omp simd reduction(+:s0,s1,s2,s3)") for (long j = 0; j < k; j++) {              \
          s0 += a0[j] * b[j];                                                                    \
          s1 += a1[j] * b[j];                                                                    \
          s2 += a2[j] * b[j];                                                                    \
          s3 += a3[j] * b[j];                                                                    \
        }                                                                                        \
        c[r] = s0, c[r + 1] = s1, c[r + 2] = s2, c[r + 3] = s3;                                  \
      }                                                                                          \
      for (; r < rows; r++) {                                                                    \
        T s = 0;                                                                                 \
        _Pragma("omp simd reduction(+:s)") for (long j = 0; j < k; j++) s += a[r * ra + j] * b[j];\
        c[r] = s;                                                                                \
      }                                                                                          \
      return;                                                                                    \
    }                                                                                            \
    if (m == 1 && ra == 1) { /* A is stored by columns */                                        \
      for (long r = 0; r < rows; r++) c[r] = 0;                                                  \
      for (long p = 0; p < k; p++)                                                               \
        _Pragma("omp simd") for (long r = 0; r < rows; r++) c[r] += a[p * ca + r] * b[p * rb];   \
      return;                                                                                    \
    }                                                                                            \
    for (long i = 0; i < rows; i += 4) {                                                         \
      const long height = rows - i < 4 ? rows - i : 4;                                           \
      for (long j = 0; j < m; j += 16) {                                                         \
        const long width = m - j < 16 ? m - j : 16;                                              \
        T part[4][16] = {{0}};                                                                   \
        TILE(a, ra, ca, b, rb, cb, k)                                                            \
        for (long h = 0; h < height; h++)                                                        \
          for (long q = 0; q < width; q++) c[(i + h) * m + j + q] = part[h][q];                  \
      }                                                                                          \
    }                                                                                            \
  }

PRODUCT_T(float, f)
PRODUCT_T(double, d)
PRODUCT(float, f)
PRODUCT(double, d)

static inline float round_f(float x) { return rintf(x); }
static inline double round_d(double x) { return rint(x); }

// As in Python: the sign of the divisor.
static inline float remainder_f(float x, float y)
{
  const float r = fmodf(x, y);
  return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}

static inline double remainder_d(double x, double y)
{
  const double r = fmod(x, y);
  return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}
