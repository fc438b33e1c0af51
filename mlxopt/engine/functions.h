// Functions of a number that compilers vectorize: no branches, no tables.
//
// exp and expm1 reduce by multiples of log 2 held in two parts (Cody and Waite 1980, ch. 6), sin, cos
// and tan by those of π/2, log and log1p to [√½, √2] and then by atanh (Tang 1990), atan by
// atan x = π/4 + atan((x - 1) / (x + 1)). The polynomials are interpolated at Chebyshev nodes.
//
// Within 2 units in the last place: exp, expm1, log, log1p, sigmoid, tanh. Within 4: the others;
// logaddexp in units of the larger of its two terms, which can cancel to 0. pow, erfinv, and sin, cos
// and tan beyond 10⁵ are the C library's or rest on it.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "polynomials.h"

// The bits of a number and the number of bits; unsigned, for AVX2 shifts no others of 64.
#define BITS(T, U, _)                                                                              \
  static inline U bits##_(T x)                                                                     \
  {                                                                                                \
    U bits;                                                                                        \
    memcpy(&bits, &x, sizeof bits);                                                                \
    return bits;                                                                                   \
  }                                                                                                \
                                                                                                   \
  static inline T number##_(U bits)                                                                \
  {                                                                                                \
    T x;                                                                                           \
    memcpy(&x, &bits, sizeof x);                                                                   \
    return x;                                                                                      \
  }
BITS(float, uint32_t, _f)
BITS(double, uint64_t, _d)

// eʳ - 1 and powers of two with product 2ⁿ, where x = n log 2 + r. Two, for 2ⁿ itself can be too
// large or too small for its dtype. `shifted` ends in the integer n + 254, or n + 2046.
typedef struct { float rest, power, again, inverse; } reduced_float; // inverse: of again
typedef struct { double rest, power, again, inverse; } reduced_double;

static inline reduced_float reduce_f(float x)
{
  const float held = x < -104.0f ? -104.0f : x > 90.0f ? 90.0f : x;
  const float shifted = held * 1.4426950408889634f + (0x1.8p23f + 254);
  const float n = shifted - (0x1.8p23f + 254);
  const uint32_t last = bits_f(shifted) & 0x3ff, half = last >> 1, other = last - half;
  const float r = (held - n * 0.693359375f) - n * -0.00021219444005469057f;
  const float rest = r + r * r * exp_rest_f(r);
  return (reduced_float){
    rest, number_f(half << 23), number_f(other << 23), number_f((254 - other) << 23)};
}

static inline reduced_double reduce_d(double x)
{
  const double held = x < -746.0 ? -746.0 : x > 711.0 ? 711.0 : x;
  const double shifted = held * 1.4426950408889634 + (0x1.8p52 + 2046);
  const double n = shifted - (0x1.8p52 + 2046);
  const uint64_t last = bits_d(shifted) & 0x1fff, half = last >> 1, other = last - half;
  const double r = (held - n * 0.6931471803691238) - n * 1.9082149292705877e-10;
  const double rest = r + r * r * exp_rest_d(r);
  return (reduced_double){
    rest, number_d(half << 52), number_d(other << 52), number_d((2046 - other) << 52)};
}

// log(x + lost) = e log 2 + f - rest for x > 0 and a far smaller `lost`.
typedef struct { float e, f, rest; } split_float;
typedef struct { double e, f, rest; } split_double;

static inline split_float split_f(float x, float lost)
{
  const float tiny = x < 0x1p-126f ? 24 : 0, normal = x < 0x1p-126f ? x * 0x1p24f : x;
  const uint32_t shifted = bits_f(normal) + (0x3f800000 - 0x3f3504f3);
  const uint32_t exponent = shifted >> 23; // 127 is 0
  const float e = number_f(exponent | 0x4b000000) - (0x1p23f + 127) - tiny;
  const float more = lost == 0 ? 0 : 0.5f * lost * number_f((255 - exponent) << 23);
  const float f = number_f((shifted & 0x7fffff) + 0x3f3504f3) - 1 + more;
  const float s = f / (2 + f), u = s * s, square = 0.5f * f * f;
  return (split_float){e, f, square - s * (square + 2 * u * log_rest_f(u))};
}

static inline split_double split_d(double x, double lost)
{
  const double tiny = x < 0x1p-1022 ? 54 : 0, normal = x < 0x1p-1022 ? x * 0x1p54 : x;
  const uint64_t shifted = bits_d(normal) + (0x3ff0000000000000 - 0x3fe6a09e667f3bcd);
  const uint64_t exponent = shifted >> 52; // 1023 is 0
  const double e = number_d(exponent | 0x4330000000000000) - (0x1p52 + 1023) - tiny;
  const double more = lost == 0 ? 0 : 0.5 * lost * number_d((2047 - exponent) << 52);
  const double f = number_d((shifted & 0xfffffffffffff) + 0x3fe6a09e667f3bcd) - 1 + more;
  const double s = f / (2 + f), u = s * s, square = 0.5 * f * f;
  return (split_double){e, f, square - s * (square + 2 * u * log_rest_d(u))};
}

static const float LOG2_f[] = {0.693359375f, -0.00021219444005469057f};
static const double LOG2_d[] = {0.6931471803691238, 1.9082149292705877e-10};
static const float LOG10_OF_2_f[] = {0.301025390625f, 4.605038981195214e-06f};
static const double LOG10_OF_2_d[] = {0.30102999566361177, 3.694239077158931e-13};

// x = n π/2 + r for |x| < 10⁵.
typedef struct { float r; uint32_t n; } turned_float;
typedef struct { double r; uint64_t n; } turned_double;

static inline turned_float turn_f(float x)
{
  const float shifted = x * 0.6366197723675814f + 0x1.8p23f, n = shifted - 0x1.8p23f;
  const double r = ((double)x - n * 1.5707963267341256) - n * 6.077100506506192e-11;
  return (turned_float){(float)r, bits_f(shifted)};
}

static inline turned_double turn_d(double x)
{
  const double shifted = x * 0.6366197723675814 + 0x1.8p52, n = shifted - 0x1.8p52;
  const double high = x - n * 1.5707963267341256, next = n * 6.077100506303966e-11;
  const double r = high - next, lost = (high - r) - next;
  return (turned_double){r + (lost - n * 2.0222662487959506e-21), bits_d(shifted)};
}

// Rare, and a branch: a function of its own, of which the compiler makes one of vectors.
#define FAR(name, T, _, function, fabs)                                                            \
  _Pragma("omp declare simd notinbranch")                                                          \
  static __attribute__((noinline, unused)) T far_##name##_(T x, T y)                               \
  {                                                                                                \
    return fabs(x) < (T)1e5 ? y : function(x);                                                     \
  }
FAR(sin, float, _f, sinf, fabsf) FAR(sin, double, _d, sin, fabs)
FAR(cos, float, _f, cosf, fabsf) FAR(cos, double, _d, cos, fabs)
FAR(tan, float, _f, tanf, fabsf) FAR(tan, double, _d, tan, fabs)

// The part of a constant that its dtype lacks.
#define LOW(T, high, rest) (T)((high) - (T)(high) + (rest))
#define PI_4(T) (T)0.7853981633974483
#define PI_4_LOW(T) LOW(T, 0.7853981633974483, 3.061616997868383e-17)
// What is the same in both dtypes.
#define BOTH(T, _, fabs, sqrt, copysign)                                                           \
  static inline T exp##_(T x)                                                                      \
  {                                                                                                \
    const reduced_##T at = reduce##_(x);                                                           \
    return ((1 + at.rest) * at.power) * at.again;                                                  \
  }                                                                                                \
                                                                                                   \
  static inline T expm1##_(T x)                                                                    \
  {                                                                                                \
    const reduced_##T at = reduce##_(x);                                                           \
    const T found = (at.rest * at.power + (at.power - at.inverse)) * at.again;                     \
    return x == 0 ? x : found;                                                                     \
  }                                                                                                \
                                                                                                   \
  static inline T log##_(T x)                                                                      \
  {                                                                                                \
    const split_##T at = split##_(x, 0);                                                           \
    const T found = at.e * LOG2##_[0] - ((at.rest - at.e * LOG2##_[1]) - at.f);                    \
    return x > 0 ? (x < (T)INFINITY ? found : x) : x == 0 ? -(T)INFINITY : (T)NAN;                 \
  }                                                                                                \
                                                                                                   \
  static inline T log1p##_(T x)                                                                    \
  {                                                                                                \
    const T u = 1 + x;                                                                             \
    const split_##T at = split##_(u, x - (u - 1));                                                 \
    const T found = at.e * LOG2##_[0] - ((at.rest - at.e * LOG2##_[1]) - at.f);                    \
    return u > 0 ? ((x != 0) & (u < (T)INFINITY) ? found : x) : u == 0 ? -(T)INFINITY : (T)NAN;    \
  }                                                                                                \
                                                                                                   \
  static inline T log2##_(T x)                                                                     \
  {                                                                                                \
    const split_##T at = split##_(x, 0);                                                           \
    const T found = at.e + (at.f - at.rest) * (T)1.4426950408889634;                               \
    return x > 0 ? (x < (T)INFINITY ? found : x) : x == 0 ? -(T)INFINITY : (T)NAN;                 \
  }                                                                                                \
                                                                                                   \
  static inline T log10##_(T x)                                                                    \
  {                                                                                                \
    const split_##T at = split##_(x, 0);                                                           \
    const T low = at.e * LOG10_OF_2##_[1] + (at.f - at.rest) * (T)0.4342944819032518;              \
    const T found = at.e * LOG10_OF_2##_[0] + low;                                                 \
    return x > 0 ? (x < (T)INFINITY ? found : x) : x == 0 ? -(T)INFINITY : (T)NAN;                 \
  }                                                                                                \
                                                                                                   \
  static inline T sigmoid##_(T x)                                                                  \
  {                                                                                                \
    const reduced_##T at = reduce##_(-fabs(x));                                                    \
    const T m = 1 + at.rest, e = m * at.power * at.again, below = 1 + e;                           \
    const T e_lost = (at.rest - (m - 1)) * at.power * at.again, lost = e - (below - 1) + e_lost;   \
    const T y = (x < 0 ? e : 1) / below;                                                           \
    return y + ((x < 0 ? e_lost : 0) - y * lost) * (x < 0 ? 1 - y : y);                            \
  }                                                                                                \
                                                                                                   \
  static inline T tanh##_(T x)                                                                     \
  {                                                                                                \
    const reduced_##T at = reduce##_(-2 * fabs(x));                                                \
    const T e = at.power * at.again, p = at.rest * e, q = e - 1, t = q + p, below = 2 + t;         \
    const T t_lost = p - (t - q), lost = t - (below - 2) + t_lost, y = -t / below;                 \
    const T found = y - (t_lost + y * lost) * ((T)0.5 + (T)0.5 * y);                               \
    return x < 0 ? -found : x == 0 ? x : found;                                                    \
  }                                                                                                \
                                                                                                   \
  static inline T logaddexp##_(T a, T b)                                                           \
  {                                                                                                \
    const T most = (a > b) | (a != a) ? a : b, least = (a > b) | (a != a) ? b : a;                 \
    const T apart = a == b ? 0 : least - most, back = apart - least;                               \
    const T lost = (a == b) | (apart < -1000) ? 0 : (least - (apart - back)) - (most + back);      \
    const reduced_##T at = reduce##_(apart);                                                       \
    const T m = 1 + at.rest, e = (1 + (at.rest + lost * m)) * at.power * at.again;                 \
    const T s = e / (2 + e), u = s * s;                                                            \
    return most + (e - s * (e - 2 * u * log1p_rest##_(u)));                                          \
  }                                                                                                \
                                                                                                   \
  static inline T sinh##_(T x)                                                                     \
  {                                                                                                \
    const reduced_##T at = reduce##_(fabs(x));                                                     \
    const T t = (at.rest * at.power + (at.power - at.inverse)) * at.again;                         \
    const T half = (1 + at.rest) * ((T)0.5 * at.power) * at.again;                                 \
    const int near = t < 2;                                                                        \
    const T y = (near ? t : half) - (T)0.5 * (near ? t * t : (T)0.5) / (near ? 1 + t : half);      \
    return copysign(y, x);                                                                         \
  }                                                                                                \
                                                                                                   \
  static inline T cosh##_(T x)                                                                     \
  {                                                                                                \
    const reduced_##T at = reduce##_(fabs(x));                                                     \
    const T half = (1 + at.rest) * ((T)0.5 * at.power) * at.again;                                 \
    return half + (T)0.25 / half;                                                                  \
  }                                                                                                \
                                                                                                   \
  static inline T asinh##_(T x)                                                                    \
  {                                                                                                \
    const T a = fabs(x), y = a < (T)1e8 ? a + a * a / (1 + sqrt(1 + a * a)) : a - 1;               \
    return copysign(log1p##_(y) + (a < (T)1e8 ? 0 : (T)0.6931471805599453), x);                    \
  }                                                                                                \
                                                                                                   \
  static inline T acosh##_(T x)                                                                    \
  {                                                                                                \
    const T t = x - 1, y = x < (T)1e8 ? t + sqrt(t * (t + 2)) : t;                                 \
    const T found = log1p##_(y) + (x < (T)1e8 ? 0 : (T)0.6931471805599453);                        \
    return x >= 1 ? found : (T)NAN;                                                                \
  }                                                                                                \
                                                                                                   \
  static inline T atanh##_(T x)                                                                    \
  {                                                                                                \
    const T a = fabs(x);                                                                           \
    return copysign((T)0.5 * log1p##_(2 * a / (1 - a)), x);                                        \
  }                                                                                                \
                                                                                                   \
  static inline T wave##_(turned_##T at)                                                           \
  {                                                                                                \
    const T u = at.r * at.r, sine = at.r + at.r * u * sin_rest##_(u);                              \
    const T y = at.n & 1 ? 1 - u * ((T)0.5 - u * cos_rest##_(u)) : sine;                           \
    return at.n & 2 ? -y : y;                                                                      \
  }                                                                                                \
                                                                                                   \
  static inline T sin##_(T x)                                                                      \
  {                                                                                                \
    return far_sin##_(x, x == 0 ? x : wave##_(turn##_(x)));                                        \
  }                                                                                                \
                                                                                                   \
  static inline T cos##_(T x)                                                                      \
  {                                                                                                \
    turned_##T at = turn##_(x);                                                                    \
    at.n += 1;                                                                                     \
    return far_cos##_(x, wave##_(at));                                                             \
  }                                                                                                \
                                                                                                   \
  static inline T tan##_(T x)                                                                      \
  {                                                                                                \
    const turned_##T at = turn##_(x);                                                              \
    const T u = at.r * at.r, sine = at.r + at.r * u * sin_rest##_(u);                              \
    const T cosine = 1 - u * ((T)0.5 - u * cos_rest##_(u));                                        \
    const T y = (at.n & 1 ? -cosine : sine) / (at.n & 1 ? sine : cosine);                          \
    return far_tan##_(x, x == 0 ? x : y);                                                          \
  }                                                                                                \
                                                                                                   \
  static inline T atan##_(T x)                                                                     \
  {                                                                                                \
    const T a = fabs(x);                                                                           \
    const int near = a <= (T)0.41421356, middle = a <= (T)2.41421356;                              \
    const T t = (near ? a : middle ? a - 1 : -1) / (near ? 1 : middle ? a + 1 : a), u = t * t;     \
    const T turns = near ? 0 : middle ? 1 : 2;                                                     \
    const T low = turns * PI_4_LOW(T) + t * u * atan_rest##_(u);                                   \
    return copysign(turns * PI_4(T) + (t + low), x);                                               \
  }                                                                                                \
                                                                                                   \
  static inline T atan2##_(T y, T x)                                                               \
  {                                                                                                \
    const int large = (fabs(x) > (T)0x1p100) | (fabs(y) > (T)0x1p100);                             \
    const T a = fabs(y) * (large ? (T)0.25 : 1), b = fabs(x) * (large ? (T)0.25 : 1);              \
    const int near = (a <= (T)0.41421356 * b) & ((a != b) | (a == 0)), middle = a <= (T)2.41421356 * b;\
    const T above = near ? a : middle ? (a == b ? 0 : a - b) : -b;                                 \
    const T t = above / (near ? (b == 0 ? 1 : b) : middle ? a + b : a), u = t * t;                 \
    const int left = copysign((T)1, x) < 0;                                                        \
    const T turns = near ? 0 : middle ? 1 : 2, all = left ? 4 - turns : turns;                     \
    const T slope = left ? -t : t, low = all * PI_4_LOW(T) + slope * u * atan_rest##_(u);          \
    return copysign(all * PI_4(T) + (slope + low), y);                                             \
  }                                                                                                \
                                                                                                   \
  static inline T asin##_(T x)                                                                     \
  {                                                                                                \
    const T a = fabs(x), u = a <= (T)0.5 ? a * a : (T)0.5 - (T)0.5 * a;                            \
    const T s = a <= (T)0.5 ? a : sqrt(u), y = s + s * u * asin_rest##_(u);                        \
    const T far = 2 * PI_4(T) - (2 * y - 2 * PI_4_LOW(T));                                         \
    return copysign(a <= (T)0.5 ? y : far, x);                                                     \
  }                                                                                                \
                                                                                                   \
  static inline T acos##_(T x)                                                                     \
  {                                                                                                \
    const T a = fabs(x), u = a <= (T)0.5 ? a * a : (T)0.5 - (T)0.5 * a;                            \
    const T s = a <= (T)0.5 ? x : sqrt(u), rest = s * u * asin_rest##_(u);                         \
    const T middle = 2 * PI_4(T) - (s + (rest - 2 * PI_4_LOW(T)));                                 \
    const T right = 2 * (s + rest), left = 4 * PI_4(T) - (right - 4 * PI_4_LOW(T));                \
    return a <= (T)0.5 ? middle : x > 0 ? right : left;                                            \
  }                                                                                                \
                                                                                                   \
  static inline T erf##_(T x)                                                                      \
  {                                                                                                \
    const T end = sizeof(T) == 4 ? 4 : 6, a = fabs(x), b = a > end ? end : a, t = 1 / (b + 3);     \
    const T far = 1 - exp##_(-b * b) * (t * erf_far##_(t)), y = a < 1 ? a * erf_near##_(a * a) : far;\
    return copysign(y, x);                                                                         \
  }
BOTH(float, _f, fabsf, sqrtf, copysignf)
BOTH(double, _d, fabs, sqrt, copysign)

static inline float pow_f(float x, float y) { return powf(x, y); }
static inline double pow_d(double x, double y) { return pow(x, y); }

// From Winitzki's (2008) approximation, good to 2e-3, by Halley's steps on erf, or on erfc where x is
// near 1.
static inline double erfinv_d(double x)
{
  const double size = fabs(x), below = 1 - size;
  if (!(size < 1)) return size == 1 ? copysign(INFINITY, x) : NAN;
  const double l = log(below * (1 + size)), t = 4.330746750799873 + l / 2;
  double y = sqrt(sqrt(t * t - l / 0.147) - t);
  for (int step = 0; step < 3; step++) {
    const double error = size < 0.5 ? erf(y) - size : below - erfc(y);
    const double change = error / (1.1283791670955126 * exp(-y * y));
    y -= change / (1 + y * change);
  }
  return copysign(size == 0 ? 0 : y, x);
}

static inline float erfinv_f(float x) { return (float)erfinv_d(x); }
