// Functions of a number that compilers vectorize: no branches, no tables, no calls.
//
// exp and expm1 reduce by multiples of log 2 held in two parts (Cody and Waite 1980, ch. 6), log and
// log1p to [√½, √2] and then by atanh (Tang 1990); polynomials are interpolated at Chebyshev nodes.
// The others are the C library's.
#define EACH(name)                                                            \
  static inline float name##_f(float x) { return name##f(x); }               \
  static inline double name##_d(double x) { return name(x); }
EACH(acos) EACH(acosh) EACH(asin) EACH(asinh) EACH(atan) EACH(atanh) EACH(cos) EACH(cosh) EACH(erf)
EACH(log10) EACH(log2) EACH(sin) EACH(sinh) EACH(tan)

#define float_HALF 0.5f
#define double_HALF 0.5

static inline float power_f(int32_t n) // 2ⁿ for n from -126 to 127
{
  float found;
  const int32_t bits = (n + 127) << 23;
  __builtin_memcpy(&found, &bits, sizeof found);
  return found;
}

static inline int32_t integer_f(float shifted) // n of n + 0x1.8p23f
{
  const float shift = 0x1.8p23f;
  int32_t bits, zero;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  __builtin_memcpy(&zero, &shift, sizeof zero);
  return bits - zero;
}

static inline float number_f(int32_t n) // its inverse
{
  const float shift = 0x1.8p23f;
  int32_t bits;
  float found;
  __builtin_memcpy(&bits, &shift, sizeof bits);
  bits += n;
  __builtin_memcpy(&found, &bits, sizeof found);
  return found - shift;
}

static inline int32_t half_f(int32_t n) // n/2, rounded down; AVX2 has no signed shift of 64 bits
{
  return (int32_t)((uint32_t)(n + 512) >> 1) - 256;
}

// n and eʳ - 1 with x = n log 2 + r.
static inline float reduced_f(float x, int32_t *whole)
{
  const float shifted = x * 1.4426950408889634f + 0x1.8p23f; // the integer is in the last bits
  const float n = shifted - 0x1.8p23f;
  *whole = integer_f(shifted);
  const float r = (x - n * 0.693359375f) - n * -0.00021219444005469057f;
  return r + r * r * (((((0.0001989098115697468f * r + 0.001393364129062974f) * r + 0.008333310934190145f) * r + 0.041666465003710317f) * r + 0.16666666681614514f) * r + 0.500000001345796f);
}

static inline float exp_f(float x)
{
  const float held = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;
  int32_t whole;
  const float p = reduced_f(held, &whole);
  const int32_t half = half_f(whole);
  return ((1 + p) * power_f(half)) * power_f(whole - half);
}

static inline float expm1_f(float x)
{
  const float held = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;
  int32_t whole;
  const float p = reduced_f(held, &whole);
  whole -= 1;
  const int32_t half = half_f(whole);
  const float h = power_f(half) * power_f(whole - half); // 2ⁿ/2
  return 2 * (p * h + (h - float_HALF));
}

// log of a positive number, and f = m - 1 for its mantissa m.
static inline float log_f(float x)
{
  const float normal = x < 0x1p-126f ? x * 0x1p24f : x;
  int32_t bits;
  __builtin_memcpy(&bits, &normal, sizeof bits);
  const int32_t shifted = bits - 0x3f3504f3;
  const int32_t exponent = shifted >> 23;
  bits = (shifted & 0x7fffff) + 0x3f3504f3;
  float m;
  __builtin_memcpy(&m, &bits, sizeof m);
  const float e = (float)exponent - (x < 0x1p-126f ? 24 : 0);
  const float f = m - 1, s = f / (2 + f), u = s * s, square = float_HALF * f * f;
  const float rest = 2 * u * (((0.11665234181759619f * u + 0.142754103869002f) * u + 0.20000060920088875f) * u + 0.33333333277248317f);
  const float found = e * 0.693359375f - ((square - (s * (square + rest) + e * -0.00021219444005469057f)) - f);
  return x > 0 ? (x < INFINITY ? found : x) : x == 0 ? -INFINITY : NAN;
}

static inline float log1p_f(float x)
{
  const float u = 1 + x;
  const float lost = x - (u - 1); // by the rounding of u
  return u < INFINITY && u > 0 ? log_f(u) + lost / u : log_f(u);
}

static inline float sigmoid_f(float x)
{
  const float e = exp_f(-fabsf(x)), r = 1 / (1 + e);
  return x < 0 ? e * r : r;
}

static inline float tanh_f(float x)
{
  const float t = expm1_f(-2 * fabsf(x)), y = -t / (2 + t);
  return x < 0 ? -y : x == 0 ? x : y;
}

static inline float logaddexp_f(float a, float b)
{
  const float most = a > b || a != a ? a : b;
  return most + log1p_f(exp_f(a == b ? 0 : -fabsf(a - b)));
}

static inline float pow_f(float x, float y) { return powf(x, y); }
static inline float atan2_f(float y, float x) { return atan2f(y, x); }

static inline double power_d(int64_t n) // 2ⁿ for n from -1022 to 1023
{
  double found;
  const int64_t bits = (n + 1023) << 52;
  __builtin_memcpy(&found, &bits, sizeof found);
  return found;
}

static inline int64_t integer_d(double shifted) // n of n + 0x1.8p52
{
  const double shift = 0x1.8p52;
  int64_t bits, zero;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  __builtin_memcpy(&zero, &shift, sizeof zero);
  return bits - zero;
}

static inline double number_d(int64_t n) // its inverse
{
  const double shift = 0x1.8p52;
  int64_t bits;
  double found;
  __builtin_memcpy(&bits, &shift, sizeof bits);
  bits += n;
  __builtin_memcpy(&found, &bits, sizeof found);
  return found - shift;
}

static inline int64_t half_d(int64_t n) // n/2, rounded down; AVX2 has no signed shift of 64 bits
{
  return (int64_t)((uint64_t)(n + 4096) >> 1) - 2048;
}

// n and eʳ - 1 with x = n log 2 + r.
static inline double reduced_d(double x, int64_t *whole)
{
  const double shifted = x * 1.4426950408889634 + 0x1.8p52; // the integer is in the last bits
  const double n = shifted - 0x1.8p52;
  *whole = integer_d(shifted);
  const double r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10;
  return r + r * r * ((((((((((2.0914679595617734e-09 * r + 2.510520668068106e-08) * r + 2.7557273660822466e-07) * r + 2.7557255425009614e-06) * r + 2.480158732553378e-05) * r + 0.00019841269874801073) * r + 0.0013888888888883752) * r + 0.008333333333326141) * r + 0.04166666666666667) * r + 0.1666666666666667) * r + 0.5);
}

static inline double exp_d(double x)
{
  const double held = x < -746.0 ? -746.0 : x > 710.0 ? 710.0 : x;
  int64_t whole;
  const double p = reduced_d(held, &whole);
  const int64_t half = half_d(whole);
  return ((1 + p) * power_d(half)) * power_d(whole - half);
}

static inline double expm1_d(double x)
{
  const double held = x < -746.0 ? -746.0 : x > 710.0 ? 710.0 : x;
  int64_t whole;
  const double p = reduced_d(held, &whole);
  whole -= 1;
  const int64_t half = half_d(whole);
  const double h = power_d(half) * power_d(whole - half); // 2ⁿ/2
  return 2 * (p * h + (h - double_HALF));
}

// log of a positive number, and f = m - 1 for its mantissa m.
static inline double log_d(double x)
{
  const double normal = x < 0x1p-1022 ? x * 0x1p54 : x;
  int64_t bits;
  __builtin_memcpy(&bits, &normal, sizeof bits);
  const int64_t shifted = bits - 0x3fe6a09e667f3bcdLL;
  const int64_t exponent = shifted >> 52;
  bits = (shifted & 0xfffffffffffffLL) + 0x3fe6a09e667f3bcdLL;
  double m;
  __builtin_memcpy(&m, &bits, sizeof m);
  const double e = number_d(exponent) - (x < 0x1p-1022 ? 54 : 0);
  const double f = m - 1, s = f / (2 + f), u = s * s, square = double_HALF * f * f;
  const double rest = 2 * u * (((((((0.06543313778226081 * u + 0.06634386501981725) * u + 0.07693119853922058) * u + 0.09090897820020219) * u + 0.11111111195857391) * u + 0.14285714285401804) * u + 0.2000000000000044) * u + 0.3333333333333333);
  const double found = e * 0.6931471803691238 - ((square - (s * (square + rest) + e * 1.9082149292705877e-10)) - f);
  return x > 0 ? (x < INFINITY ? found : x) : x == 0 ? -INFINITY : NAN;
}

static inline double log1p_d(double x)
{
  const double u = 1 + x;
  const double lost = x - (u - 1); // by the rounding of u
  return u < INFINITY && u > 0 ? log_d(u) + lost / u : log_d(u);
}

static inline double sigmoid_d(double x)
{
  const double e = exp_d(-fabs(x)), r = 1 / (1 + e);
  return x < 0 ? e * r : r;
}

static inline double tanh_d(double x)
{
  const double t = expm1_d(-2 * fabs(x)), y = -t / (2 + t);
  return x < 0 ? -y : x == 0 ? x : y;
}

static inline double logaddexp_d(double a, double b)
{
  const double most = a > b || a != a ? a : b;
  return most + log1p_d(exp_d(a == b ? 0 : -fabs(a - b)));
}

static inline double pow_d(double x, double y) { return pow(x, y); }
static inline double atan2_d(double y, double x) { return atan2(y, x); }

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
