"""The problems of Moré, Garbow and Hillstrom (1981), "Testing unconstrained optimization software",
ACM Transactions on Mathematical Software 7(1), pages 17-41.

x holds the parameters; t, u, y are the published data. Each function returns the residual, shape
(m,); the loss is its sum of squares.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxopt.problems._record import constants, integers, numbers, problems, product
from mlxopt.special import cos, exp, sin


def rosenbrock(x: mx.array) -> mx.array:
    """Problems 1 and 21; the parameters come in pairs."""
    a, b = x[0::2], x[1::2]
    return mx.stack([10 * (b - mx.square(a)), 1 - a], axis=1).reshape(-1)


def freudenstein_roth(x: mx.array) -> mx.array:
    a, b = x[0], x[1]
    return mx.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


def powell_badly_scaled(x: mx.array) -> mx.array:
    return mx.stack([1e4 * x[0] * x[1] - 1, exp(-x[0]) + exp(-x[1]) - 1.0001])


def brown_badly_scaled(x: mx.array) -> mx.array:
    return mx.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(x: mx.array) -> mx.array:
    b = x[1]
    powers = mx.stack([b, mx.square(b), b * mx.square(b)])
    return constants(x, [1.5, 2.25, 2.625]) - x[0] * (1 - powers)


def jennrich_sampson(x: mx.array) -> mx.array:
    i = integers(x, 1, 10)
    return 2 + 2 * i - (exp(i * x[0]) + exp(i * x[1]))


def helical_valley(x: mx.array) -> mx.array:
    turn = mx.arctan(x[1] / x[0]) / (2 * np.pi) + mx.where(x[0] > 0, 0.0, 0.5).astype(x.dtype)
    radius = mx.sqrt(mx.square(x[0]) + mx.square(x[1]))
    return mx.stack([10 * (x[2] - 10 * turn), 10 * (radius - 1), x[2]])


def bard(x: mx.array) -> mx.array:
    y = [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.1, 4.39]
    u = integers(x, 1, 15)
    v = 16 - u
    return constants(x, y) - (x[0] + u / (v * x[1] + mx.minimum(u, v) * x[2]))


def gaussian(x: mx.array) -> mx.array:
    half = [0.0009, 0.0044, 0.0175, 0.054, 0.1295, 0.242, 0.3521]
    t = (8 - integers(x, 1, 15)) / 2
    y = constants(x, [*half, 0.3989, *half[::-1]])
    return x[0] * exp(-x[1] * mx.square(t - x[2]) / 2) - y


def meyer(x: mx.array) -> mx.array:
    y = [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820]
    t = 45 + 5 * integers(x, 1, 16)
    return x[0] * exp(x[1] / (t + x[2])) - constants(x, [*y, 3307, 2872])


def gulf(x: mx.array) -> mx.array:
    """With |y - x₂| where the paper has |y·m·i·x₂|, a misprint."""
    t = np.arange(1, 100) / 100
    y = constants(x, 25 + (-50 * np.log(t)) ** (2 / 3))
    return exp(-mx.power(mx.abs(y - x[1]), x[2]) / x[0]) - constants(x, t)


def box(x: mx.array) -> mx.array:
    t = integers(x, 1, 10) / 10
    return exp(-t * x[0]) - exp(-t * x[1]) - x[2] * (exp(-t) - exp(-10 * t))


def powell_singular(x: mx.array) -> mx.array:
    """Problems 13 and 22; the parameters come in fours."""
    a, b, c, d = x[0::4], x[1::4], x[2::4], x[3::4]
    rows = [a + 10 * b, 5**0.5 * (c - d), mx.square(b - 2 * c), 10**0.5 * mx.square(a - d)]
    return mx.stack(rows, axis=1).reshape(-1)


def wood(x: mx.array) -> mx.array:
    a, b, c, d = x[0], x[1], x[2], x[3]
    first = [10 * (b - mx.square(a)), 1 - a, 90**0.5 * (d - mx.square(c)), 1 - c]
    return mx.stack([*first, 10**0.5 * (b + d - 2), (b - d) / 10**0.5])


def kowalik_osborne(x: mx.array) -> mx.array:
    y = [0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]
    u = constants(x, [4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])
    return constants(x, y) - x[0] * (u * u + u * x[1]) / (u * u + u * x[2] + x[3])


def brown_dennis(x: mx.array) -> mx.array:
    t = integers(x, 1, 20) / 5
    return mx.square(x[0] + t * x[1] - exp(t)) + mx.square(x[2] + x[3] * sin(t) - cos(t))


def osborne_1(x: mx.array) -> mx.array:
    t = 10 * integers(x, 0, 32)
    y = """
        0.844 0.908 0.932 0.936 0.925 0.908 0.881 0.85 0.818 0.784 0.751 0.718 0.685 0.658 0.628
        0.603 0.58 0.558 0.538 0.522 0.506 0.49 0.478 0.467 0.457 0.448 0.438 0.431 0.424 0.42
        0.414 0.411 0.406
    """
    return constants(x, numbers(y)) - (x[0] + x[1] * exp(-t * x[3]) + x[2] * exp(-t * x[4]))


def biggs(x: mx.array) -> mx.array:
    t = integers(x, 1, 13) / 10
    y = exp(-t) - 5 * exp(-10 * t) + 3 * exp(-4 * t)
    return x[2] * exp(-t * x[0]) - x[3] * exp(-t * x[1]) + x[5] * exp(-t * x[4]) - y


def osborne_2(x: mx.array) -> mx.array:
    t = integers(x, 0, 64) / 10
    y = """
        1.366 1.191 1.112 1.013 0.991 0.885 0.831 0.847 0.786 0.725 0.746 0.679 0.608 0.655 0.616
        0.606 0.602 0.626 0.651 0.724 0.649 0.649 0.694 0.644 0.624 0.661 0.612 0.558 0.533 0.495
        0.5 0.423 0.395 0.375 0.372 0.391 0.396 0.405 0.428 0.429 0.523 0.562 0.607 0.653 0.672
        0.708 0.633 0.668 0.645 0.632 0.591 0.559 0.597 0.625 0.739 0.71 0.729 0.72 0.636 0.581
        0.428 0.292 0.162 0.098 0.054
    """
    peaks = [x[i] * exp(-mx.square(t - x[i + 7]) * x[i + 4]) for i in (1, 2, 3)]
    return constants(x, numbers(y)) - (x[0] * exp(-t * x[4]) + peaks[0] + peaks[1] + peaks[2])


def watson(x: mx.array) -> mx.array:
    t = np.arange(1, 30)[:, None] / 29
    j = np.arange(x.size)
    slopes = j * t ** np.maximum(j - 1, 0)
    rows = constants(x, slopes) @ x - mx.square(constants(x, t**j) @ x) - 1
    return mx.concatenate([rows, mx.stack([x[0], x[1] - mx.square(x[0]) - 1])])


def penalty_1(x: mx.array) -> mx.array:
    return mx.concatenate([1e-5**0.5 * (x - 1), (mx.sum(mx.square(x)) - 0.25).reshape(1)])


def penalty_2(x: mx.array) -> mx.array:
    i = np.arange(2, x.size + 1)
    y = constants(x, np.exp(i / 10) + np.exp((i - 1) / 10))
    e = exp(x / 10)
    small = 1e-5**0.5 * mx.concatenate([e[1:] + e[:-1] - y, e[1:] - np.exp(-0.1)])
    total = mx.sum(integers(x, 1, x.size)[::-1] * mx.square(x)) - 1
    return mx.concatenate([x[:1] - 0.2, small, total.reshape(1)])


def variably_dimensioned(x: mx.array) -> mx.array:
    total = mx.sum(integers(x, 1, x.size) * (x - 1)).reshape(1)
    return mx.concatenate([x - 1, total, mx.square(total)])


def trigonometric(x: mx.array) -> mx.array:
    cosines = cos(x)
    return x.size - mx.sum(cosines) + integers(x, 1, x.size) * (1 - cosines) - sin(x)


def brown_almost_linear(x: mx.array) -> mx.array:
    return mx.concatenate([x[:-1] + mx.sum(x) - (x.size + 1), (product(x) - 1).reshape(1)])


def discrete_boundary_value(x: mx.array) -> mx.array:
    h = 1 / (x.size + 1)
    before, after = _neighbors(x)
    cubes = (x + h * integers(x, 1, x.size) + 1) ** 3
    return 2 * x - before - after + h**2 * cubes / 2


def discrete_integral(x: mx.array) -> mx.array:
    h = 1 / (x.size + 1)
    t = h * np.arange(1, x.size + 1)
    kernel = np.where(t[:, None] >= t, (1 - t[:, None]) * t, t[:, None] * (1 - t))
    return x + h * (constants(x, kernel) @ ((x + constants(x, t) + 1) ** 3)) / 2


def broyden_tridiagonal(x: mx.array) -> mx.array:
    before, after = _neighbors(x)
    return (3 - 2 * x) * x - before - 2 * after + 1


def _neighbors(x: mx.array) -> tuple[mx.array, mx.array]:
    """Return the entries before and after each entry, 0 beyond the ends."""
    edge = mx.zeros(1, dtype=x.dtype)
    padded = mx.concatenate([edge, x, edge])
    return padded[:-2], padded[2:]


def broyden_banded(x: mx.array) -> mx.array:
    n = x.size
    band = np.tri(n, k=1) - np.tri(n, k=-6) - np.eye(n)
    return x * (2 + 5 * mx.square(x)) + 1 - constants(x, band) @ (x * (1 + x))


def linear_full_rank(x: mx.array) -> mx.array:
    return mx.concatenate([x, mx.zeros_like(x)]) - 1 / x.size * mx.sum(x) - 1


def linear_rank_1(x: mx.array) -> mx.array:
    return integers(x, 1, 2 * x.size) * mx.sum(integers(x, 1, x.size) * x) - 1


def linear_rank_1_with_zeros(x: mx.array) -> mx.array:
    rows = np.append(np.arange(2 * x.size - 1), 0)
    return constants(x, rows) * mx.sum(integers(x, 2, x.size - 1) * x[1:-1]) - 1


def chebyquad(x: mx.array) -> mx.array:
    """Means of the Chebyshev polynomials on [0, 1] against their integrals."""
    z = 2 * x - 1
    before, polynomial, rows = mx.ones_like(z), z, []
    for i in range(1, x.size + 1):
        rows.append(mx.mean(polynomial) + (0.0 if i % 2 else 1 / (i * i - 1)))
        before, polynomial = polynomial, 2 * z * polynomial - before
    return mx.stack(rows)


_TABLE = """
Rosenbrock | 1 | residual rosenbrock | 24.2 at -1.2 1 | 0 at 1 1
Freudenstein and Roth | 2 | residual freudenstein_roth | 400.5 at 0.5 -2 | 0 at 5 4
    | 48.98425367924003 at 11.412778986902097 -0.8968052532744764
Powell badly scaled | 3 | residual powell_badly_scaled | 1.1352617173483783 at 0 1
    | 0 at 1.0981593296997559e-05 9.106146739867036
Brown badly scaled | 4 | residual brown_badly_scaled | 999998000003 at 1 1 | 0 at 1000000 2e-06
Beale | 5 | residual beale | 14.203125 at 1 1 | 0 at 3 0.5
Jennrich and Sampson | 6 | residual jennrich_sampson | 4171.3061619604905 at 0.3 0.4
    | 124.36218235561483 at 0.2578252136703641 0.2578252136703641
Helical valley | 7 | residual helical_valley | 2500 at -1 0 0 | 0 at 1 0 0
Bard | 8 | residual bard | 41.68169586167801 at 1 1 1
    | 0.008214877306578971 at 0.08241055974978896 1.133036092029722 2.3436951786425366 | 122/7
Gaussian | 9 | residual gaussian | 3.888106991166885e-06 at 0.4 1 0
    | 1.127932769618958e-08 at 0.39895613783875666 1.0000190844878059 0
Meyer | 10 | residual meyer | 1693607809.4361467 at 0.02 4000 250
    | 87.94585517084562 at 0.005609636471028509 6181.346346286303 345.2236346241341
Gulf research and development | 11 | residual gulf | 12.11070582556949 at 5 2.5 0.15
    | 0 at 50 25 1.5
Box | 12 | residual box | 1031.1538106093985 at 0 10 20 | 0 at 1 10 1
Powell singular | 13 | residual powell_singular | 215 at 3 -1 0 1 | 0 at 4*0
Wood | 14 | residual wood | 19192 at -3 -1 -3 -1 | 0 at 4*1
Kowalik and Osborne | 15 | residual kowalik_osborne | 0.00531317227210854 at 0.25 0.39 0.415 0.39
    | 0.0003075056038492384 at 0.19280693457903783 0.19128232873436754 0.1230565069263206
      0.13606233068379514 | 0.00102734306
Brown and Dennis | 16 | residual brown_dennis | 7926693.336997434 at 25 5 -5 -1
    | 85822.20162635628 at -11.594439904762162 13.2036300512072 -0.40343948817685954
      0.23677877445573625
Osborne 1 | 17 | residual osborne_1 | 0.8790262935446403 at 0.5 1.5 -1 0.01 0.02
    | 5.464894697482856e-05 at 0.37541005210695144 1.9358469127122897 -1.4646871366133452
      0.012867534640057136 0.022122699661672934
Biggs EXP6 | 18 | residual biggs | 0.7790700756559704 at 1 2 4*1 | 0 at 1 10 1 5 4 3
    | 0.005655649925499943 at 1.7114159928513153 17.68319834814202 1.1631436592306532
      5.186561625241846 1.7114159928513153 1.1631436592306532
Osborne 2 | 19 | residual osborne_2 | 2.0934195142120644 at 1.3 0.65 0.65 0.7 0.6 3 5 7 2 4.5 5.5
    | 0.04013773629354775 at 1.3099771546273007 0.43155379460298904 0.6336616989607241
      0.5994305347859162 0.7541832263280115 0.9042885798596334 1.365811835237028 4.823698817227157
      2.3986848661317546 4.568874597667672 5.6753414705806415
Watson (6) | 20 | residual watson | 30 at 6*0
    | 0.002287670053552451 at -0.015725086401458407 1.0124348693691096 -0.23299162595673667
      1.2604300877996055 -1.513728922722276 0.992996432431133
Watson (9) | 20 | residual watson | 30 at 9*0
    | 1.3997601381009148e-06 at -1.5307036521383693e-05 0.9997897039319482 0.014763963693561135
      0.14634232829932708 1.0008211030048255 -2.617731140519193 4.104403164478974
      -3.1436122785564575 1.0526264080101575
Watson (12) | 20 | residual watson | 30 at 12*0
    | 4.722381107240327e-10 at -6.638060465578225e-09 1.0000016441178619 -0.0005639322103231127
      0.3478205405036577 -0.15673150409268785 1.052815177189871 -3.247271153407404 7.288434897837697
      -10.271848241197915 9.074113646980027 -4.5413754666508135 1.0120118885448872
Extended Rosenbrock (10) | 21 | residual rosenbrock | 121 at -1.2 1 -1.2 1 -1.2 1 -1.2 1 -1.2 1
    | 0 at 10*1
Extended Powell singular (12) | 22 | residual powell_singular | 645 at 3 -1 0 1 3 -1 0 1 3 -1 0 1
    | 0 at 12*0
Penalty I (4) | 23 | residual penalty_1 | 885.06264 at 1 2 3 4
    | 2.2499775008999375e-05 at 4*0.2500074995875379
Penalty I (10) | 23 | residual penalty_1 | 148032.56535 at 1 2 3 4 5 6 7 8 9 10
    | 7.087651467090369e-05 at 10*0.15812230111311634
Penalty II (4) | 24 | residual penalty_2 | 2.340008805463025 at 4*0.5
    | 9.376293007355442e-06 at 0.1999993333503804 0.19131670099277262 0.48010148533262326
      0.5188454043902003
Penalty II (10) | 24 | residual penalty_2 | 162.65277656596712 at 10*0.5
    | 0.000293660537456746 at 0.19998360519782363 0.010350648471292304 0.019604934480438405
      0.032089067220685656 0.0499326773996413 0.07651399515399361 0.11862407286950416
      0.19214487233557667 0.34732058694184353 0.3691643741593508
Variably dimensioned (10) | 25 | residual variably_dimensioned
    | 2198551.1625 at 0.9 0.8 0.7 0.6 0.5 0.4 0.3 0.2 0.1 0 | 0 at 10*1
Trigonometric (10) | 26 | residual trigonometric | 0.007075759466222842 at 10*0.1 | 0 at 10*0
    | 2.7950561218776955e-05 at 0.0551509039806917 0.05684061679473896 0.05876400176269574
      0.06099060865676067 0.06362621369585489 0.0668431794527598 0.20816151856988147
      0.16436309588564232 0.08500689568850849 0.09143145071470812
Brown almost linear (10) | 27 | residual brown_almost_linear | 273.2480478286743 at 10*0.5
    | 0 at 10*1 | 1 at 9*0 11
Discrete boundary value (10) | 28 | residual discrete_boundary_value
    | 0.0007885191012648201 at
      -10/121 -18/121 -24/121 -28/121 -30/121 -30/121 -28/121 -24/121 -18/121 -10/121
    | 0 at -0.04316498251876487 -0.08157715653538689 -0.11448571438052928 -0.14097357686259668
      -0.1599086961819831 -0.16987720231277492 -0.16908998378120835 -0.15524953522183182
      -0.125355891678935 -0.07541653368589209
Discrete integral equation (10) | 29 | residual discrete_integral
    | 0.06341684157945264 at
      -10/121 -18/121 -24/121 -28/121 -30/121 -30/121 -28/121 -24/121 -18/121 -10/121
    | 0 at -0.04316498251876487 -0.08157715653538689 -0.11448571438052928 -0.14097357686259668
      -0.1599086961819831 -0.16987720231277492 -0.16908998378120835 -0.15524953522183182
      -0.125355891678935 -0.07541653368589209
Broyden tridiagonal (10) | 30 | residual broyden_tridiagonal | 21 at 10*-1
    | 0 at -0.5707221320112248 -0.6818069499842752 -0.7022100760176601 -0.7055106298950805
      -0.7049061557287437 -0.7014966070298512 -0.6918893223547983 -0.6657965144058536
      -0.5960351090263657 -0.4164122575286934
Broyden banded (10) | 31 | residual broyden_banded | 360 at 10*-1
    | 0 at -0.4283028635872503 -0.47659642435629024 -0.5196524636468617 -0.5580993248321808
      -0.5925061568294573 -0.624503682199468 -0.6232394714405911 -0.6213938417965734
      -0.6204535966590874 -0.5864692707204351
Linear, full rank (10) | 32 | residual linear_full_rank | 50 at 10*1 | 10 at 10*-1
Linear, rank 1 (10) | 33 | residual linear_rank_1 | 8658670 at 10*1 | 190/41 at 3/41 9*0
Linear, rank 1 with zeros (10) | 34 | residual linear_rank_1_with_zeros | 4067996 at 10*1
    | 227/37 at 0 3/74 8*0
Chebyquad (8) | 35 | residual chebyquad | 0.03861769828593027 at 1/9 2/9 1/3 4/9 5/9 2/3 7/9 8/9
    | 0.00351687372567793 at 0.04315276015101661 0.19309084038418614 0.26632870689027294 0.5 0.5
      0.733671293109727 0.8069091596158139 0.9568472398489833
Chebyquad (9) | 35 | residual chebyquad
    | 0.028882980288225963 at 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9
    | 0 at 0.044205346135782767 0.19949067230988096 0.23561910847106 0.4160469078925981 0.5
      0.5839530921074021 0.76438089152894 0.8005093276901192 0.9557946538642172
Chebyquad (10) | 35 | residual chebyquad
    | 0.033763265462880075 at 1/11 2/11 3/11 4/11 5/11 6/11 7/11 8/11 9/11 10/11
    | 0.004772713696375355 at 0.03299337301807445 0.1551453577590733 0.20018919846138628
      0.38326166496125486 0.3832616649612551 0.5292494771334066 0.6403535493710657
      0.7135658474160002 0.8284818230519073 0.9252518337853975
    | 0.006503954800882304 at 0.05961990053581276 0.1667082818358615 0.23917065894260853
      0.39888429230604455 0.39888429230604455 0.6011157076939556 0.6011157076939555
      0.7608293410573915 0.8332917181641386 0.9403800994641873
"""

MGH = problems(_TABLE, globals(), "Moré, Garbow and Hillstrom 1981, ACM TOMS 7(1), problem ")
