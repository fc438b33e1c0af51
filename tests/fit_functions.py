"""Make mlxopt/engine/polynomials.h: `python tests/fit_functions.py > mlxopt/engine/polynomials.h`.

Each polynomial agrees with the true function at as many Chebyshev nodes as it has coefficients
(see fit_special.py), of which there are as few as leave the error below a tenth of a rounding.
"""

import mpmath
from fit_special import DIGITS, erf_rest, exp_rest, log1p_rest, on_interval
from mpmath import mp, mpf

TINY = mpf(10) ** -20


def atan_rest(u):
    s = mpmath.sqrt(u)
    return (mpmath.atan(s) / s - 1) / u if u > TINY else -mpf(1) / 3


def asin_rest(u):
    s = mpmath.sqrt(u)
    return (mpmath.asin(s) / s - 1) / u if u > TINY else mpf(1) / 6


def sin_rest(u):
    r = mpmath.sqrt(u)
    return (mpmath.sin(r) / r - 1) / u if u > TINY else -mpf(1) / 6


def cos_rest(u):
    return (mpmath.cos(mpmath.sqrt(u)) - 1 + u / 2) / u**2 if u > TINY else mpf(1) / 24


def erf_far(t):
    x = 1 / t - 3
    return mpmath.exp(x * x) * mpmath.erfc(x) / t


def fits():
    """Yield (comment, name, variable, function, [low, high, coefficients] of float and double)."""
    half, silver = mpmath.log(2) / 2, mpmath.sqrt(2) - 1
    log_end, turn = (silver / (mpmath.sqrt(2) + 1)) ** 2, (mp.pi / 4) ** 2
    ninth, quarter, near = mpf(1) / 9, mpf(1) / 4, silver**2
    yield "(eʳ - 1 - r) / r², |r| ≤ (log 2)/2", "exp_rest", "r", exp_rest, (-half, half, 6, 11)
    comment = "(atanh(s)/s - 1) / u, u = s², for (1 + s) / (1 - s) in [√½, √2]"
    yield comment, "log_rest", "u", log1p_rest, (0, log_end, 4, 8)
    yield "The same for s ≤ 1/3", "log1p_rest", "u", log1p_rest, (0, ninth, 5, 10)
    yield "(sin(r)/r - 1) / u, u = r², |r| ≤ π/4", "sin_rest", "u", sin_rest, (0, turn, 3, 6)
    yield "(cos r - 1 + u/2) / u², there", "cos_rest", "u", cos_rest, (0, turn, 3, 6)
    yield "(atan(t)/t - 1) / u, u = t², |t| ≤ √2 - 1", "atan_rest", "u", atan_rest, (0, near, 5, 11)
    yield "(asin(s)/s - 1) / u, u = s² ≤ 1/4", "asin_rest", "u", asin_rest, (0, quarter, 5, 13)
    yield "erf(x) / x, u = x² ≤ 1", "erf_near", "u", erf_rest, (0, 1, 7, 13)
    comment = "exp(x²) erfc(x) / t, t = 1/(x + 3), 1 ≤ x ≤ 4 for float and 6 for double"
    yield comment, "erf_far", "t", erf_far, ((mpf(1) / 7, ninth), quarter, 7, 16)


def horner(coefficients, variable, suffix):
    """Return a nested polynomial in lines of C."""
    terms = [f"{mpmath.nstr(c, 9 if suffix else 17)}{suffix}" for c in reversed(coefficients)]
    words = ["(" * (len(terms) - 2) + terms[0]]
    for term in terms[1:]:
        close = "" if term is terms[-1] else ")"
        words += ["*", variable, *(("-", term[1:]) if term[0] == "-" else ("+", term))]
        words[-1] += close
    lines = ["  return"]
    for word in words:
        if len(lines[-1]) + len(word) > 96:
            lines.append("   ")
        lines[-1] += f" {word}"
    return "\n".join(lines) + ";"


def header():
    text = "// Made by tests/fit_functions.py: nested polynomials, for float and double.\n"
    with mp.workdps(DIGITS):
        for comment, name, variable, function, (low, high, few, many) in fits():
            text += f"\n// {comment}.\n"
            lows = low if isinstance(low, tuple) else (low, low)
            kinds = (("float", "f", lows[0], few), ("double", "", lows[1], many))
            for kind, suffix, start, count in kinds:
                found, *_ = on_interval(function, start, high, count - 1)
                text += f"static inline {kind} {name}_{kind[0]}({kind} {variable})\n{{\n"
                text += f"{horner(found, variable, suffix)}\n}}\n"
    return text


if __name__ == "__main__":
    print(header(), end="")
