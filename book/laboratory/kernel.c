// What takes time in ALICE's networks, in C for WebAssembly with SIMD.
// kernel.wasm is made from this file by `python -m book.laboratory.build_kernel`.
//
// An image is x[channel][row][column]. Weights W (outputs x inputs) lie in blocks of 4 x 4 numbers,
// [output / 4][input / 4][input % 4][output % 4], so that the same numbers serve W and its transpose:
// `turned` means that W^T is applied, x having W's outputs as channels and y its inputs.
// The sizes that are taken for granted here are checked in layers.js.
#include <wasm_simd128.h>

typedef float f;
typedef float f4 __attribute__((vector_size(16)));
typedef int i4 __attribute__((vector_size(16)));

#define EXPORT(name) __attribute__((export_name(#name)))
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#define MOST 256 // channels

INLINE f4 load(const f *p) { return (f4)wasm_v128_load(p); }
INLINE f4 all(const f *p) { return (f4)wasm_v128_load32_splat(p); }
INLINE void store(f *p, f4 v) { wasm_v128_store(p, (v128_t)v); }
INLINE f4 even(f4 a, f4 b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6); }
INLINE f4 odd(f4 a, f4 b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7); }
INLINE f sum4(f4 v) { return (v[0] + v[1]) + (v[2] + v[3]); }
INLINE int up4(int n) { return (n + 3) & ~3; }

// ---- products of matrices

// c (4 outputs x 8 columns) = 4 rows of W, or of W^T, times a panel of `inputs` x 8 numbers.
// w is the first block, `step` the way to the next.
INLINE void product(f4 c[8], const f *w, int step, int turned, const f *panel, int inputs) {
  UNROLL for (int i = 0; i < 8; i++) c[i] = (f4){0, 0, 0, 0};
  for (int k = 0; k < inputs; k += 4, w += step, panel += 32) {
    UNROLL for (int i = 0; i < 4; i++) {
      f4 left = load(panel + 8 * i), right = load(panel + 8 * i + 4);
      UNROLL for (int o = 0; o < 4; o++) {
        f4 a = all(w + (turned ? 4 * o + i : 4 * i + o));
        c[2 * o] += a * left;
        c[2 * o + 1] += a * right;
      }
    }
  }
}

// W (outputs x inputs) from rows to blocks, filled up with zeros.
EXPORT(blocks) void blocks(f *to, const f *w, int outputs, int inputs) {
  int across = up4(inputs);
  for (int o = 0; o < up4(outputs); o++)
    for (int i = 0; i < across; i++)
      to[o / 4 * 4 * across + i * 4 + o % 4] = o < outputs && i < inputs ? w[o * inputs + i] : 0;
}

// Rows o to o + 3 of W or W^T: where their first block lies, and how far it is to the next.
INLINE const f *rows_of(const f *w, int o, int inputs, int turned) {
  return w + (turned ? 4 * o : o * inputs);
}
INLINE int step_of(int outputs, int turned) { return turned ? 4 * outputs : 16; }

static f panel[8 * MOST * 16];

// Eight columns of y (outputs x n) = bias + W panel.
INLINE void eight(f *y, const f *w, const f *bias, int inputs, int outputs, int n, int turned) {
  f4 c[8];
  for (int o = 0; o < outputs; o += 4) {
    product(c, rows_of(w, o, inputs, turned), step_of(outputs, turned), turned, panel, inputs);
    UNROLL for (int m = 0; m < 4; m++) {
      f4 b = bias ? all(bias + o + m) : (f4){0, 0, 0, 0};
      store(y + (o + m) * n, c[2 * m] + b);
      store(y + (o + m) * n + 4, c[2 * m + 1] + b);
    }
  }
}

// y = bias + W x for each of n places: a 1 x 1 convolution.
INLINE void pointwise(f *y, const f *x, const f *w, const f *bias, int inputs, int outputs, int n,
                      int turned) {
  for (int p = 0; p < n; p += 8) {
    for (int k = 0; k < inputs; k++) {
      store(panel + 8 * k, load(x + k * n + p));
      store(panel + 8 * k + 4, load(x + k * n + p + 4));
    }
    eight(y + p, w, bias, inputs, outputs, n, turned);
  }
}
EXPORT(conv1)
void conv1(f *y, const f *x, const f *w, const f *bias, int inputs, int outputs, int size, int turned) {
  if (turned) pointwise(y, x, w, bias, inputs, outputs, size * size, 1);
  else pointwise(y, x, w, bias, inputs, outputs, size * size, 0);
}

// ---- convolutions of stride 2, with k x k weights and a border of one zero: size -> size / 2

// Where pixel p of the result looks for tap (a, b): -1 outside the image.
INLINE int look(int p, int a, int b, int size) {
  int i = p / (size / 2) * 2 - 1 + a, j = p % (size / 2) * 2 - 1 + b;
  return i < 0 || j < 0 || i >= size || j >= size ? -1 : i * size + j;
}

INLINE void halve(f *y, const f *x, const f *w, const f *bias, int inputs, int outputs, int size, int k) {
  int n = size * size / 4, from[16 * 8];
  for (int p = 0; p < n; p += 8) {
    for (int t = 0; t < k * k; t++)
      for (int s = 0; s < 8; s++) from[8 * t + s] = look(p + s, t / k, t % k, size);
    f *to = panel;
    for (int c = 0; c < inputs; c++)
      for (int t = 0; t < 8 * k * k; t++) *to++ = from[t] < 0 ? 0 : x[c * size * size + from[t]];
    eight(y + p, w, bias, inputs * k * k, outputs, n, 0);
  }
}

// The transpose of it.
INLINE void spread_out(f *x, const f *y, const f *w, int inputs, int outputs, int size, int k) {
  int n = size * size / 4, rows = inputs * k * k, to[16 * 8];
  static f taps[8 * MOST * 16];
  for (int i = 0; i < inputs * size * size; i++) x[i] = 0;
  for (int p = 0; p < n; p += 8) {
    for (int o = 0; o < outputs; o++) {
      store(panel + 8 * o, load(y + o * n + p));
      store(panel + 8 * o + 4, load(y + o * n + p + 4));
    }
    for (int t = 0; t < k * k; t++)
      for (int s = 0; s < 8; s++) to[8 * t + s] = look(p + s, t / k, t % k, size);
    eight(taps, w, 0, outputs, rows, 8, 1);
    const f *from = taps;
    for (int c = 0; c < inputs; c++)
      for (int t = 0; t < 8 * k * k; t++, from++)
        if (to[t] >= 0) x[c * size * size + to[t]] += *from;
  }
}
EXPORT(conv2)
void conv2(f *y, const f *x, const f *w, const f *bias, int inputs, int outputs, int size, int turned,
           int k) {
  if (turned) spread_out(y, x, w, outputs, inputs, size, k);
  else halve(y, x, w, bias, inputs, outputs, size, k);
}

// ---- 3 x 3 convolutions of stride 1, by Winograd's F(2 x 2, 3 x 3): y = A^T (G w G^T . B^T x B) A for
// tiles of 2 x 2 pixels, 16 products in place of 36. Each of the 16 is a product of matrices over many
// tiles. Lavin and Gray, arXiv:1509.09308.

enum { TILES = 32, V_STEP = TILES * MOST + 16 }; // + 16: the 16 streams must not share lines of a cache

static f V[16 * V_STEP], M[16 * V_STEP];

// u[16] = G w G^T, each in blocks.
EXPORT(winograd) void winograd(f *u, const f *w, int outputs, int inputs) {
  int across = up4(inputs), size = up4(outputs) * across;
  for (int i = 0; i < 16 * size; i++) u[i] = 0;
  for (int o = 0; o < outputs; o++)
    for (int i = 0; i < inputs; i++, w += 9) {
      f g[4][3], *to = u + o / 4 * 4 * across + i * 4 + o % 4;
      for (int b = 0; b < 3; b++) {
        f left = (w[b] + w[6 + b]) * .5f, right = w[3 + b] * .5f;
        g[0][b] = w[b], g[1][b] = left + right, g[2][b] = left - right, g[3][b] = w[6 + b];
      }
      for (int a = 0; a < 4; a++, to += 4 * size) {
        f left = (g[a][0] + g[a][2]) * .5f, right = g[a][1] * .5f;
        to[0] = g[a][0], to[size] = left + right, to[2 * size] = left - right, to[3 * size] = g[a][2];
      }
    }
}

// The rows of one channel that `tall` rows of tiles look at, with a zero on either side.
INLINE void border(f *to, const f *x, int first, int tall, int size) {
  for (int r = 0; r < 2 * tall + 2; r++, to += size + 2) {
    int i = first + r, inside = i >= 0 && i < size;
    to[0] = to[size + 1] = 0;
    for (int j = 0; j < size; j += 4) store(to + 1 + j, inside ? load(x + i * size + j) : (f4){0, 0, 0, 0});
  }
}

// (d0 - d2, d1 + d2, d2 - d1, d1 - d3), down the columns of four tiles at once, then along their rows.
INLINE void tiles_in(f *to, const f *row, int width) {
  f4 d[4][4];
  UNROLL for (int a = 0; a < 4; a++, row += width) {
    f4 p = load(row), q = load(row + 4), r = load(row + 2), s = load(row + 6);
    d[a][0] = even(p, q), d[a][1] = odd(p, q), d[a][2] = even(r, s), d[a][3] = odd(r, s);
  }
  UNROLL for (int b = 0; b < 4; b++) {
    f4 d0 = d[0][b], d1 = d[1][b], d2 = d[2][b], d3 = d[3][b];
    d[0][b] = d0 - d2, d[1][b] = d1 + d2, d[2][b] = d2 - d1, d[3][b] = d1 - d3;
  }
  UNROLL for (int a = 0; a < 4; a++, to += 4 * V_STEP) {
    store(to, d[a][0] - d[a][2]);
    store(to + V_STEP, d[a][1] + d[a][2]);
    store(to + 2 * V_STEP, d[a][2] - d[a][1]);
    store(to + 3 * V_STEP, d[a][1] - d[a][3]);
  }
}

// (m0 + m1 + m2, m1 - m2 - m3) down and along, for four tiles: two rows of eight pixels.
INLINE void tiles_out(f *y, const f *m, f4 bias, int size) {
  f4 s[2][4];
  UNROLL for (int b = 0; b < 4; b++, m += V_STEP) {
    f4 m0 = load(m), m1 = load(m + 4 * V_STEP), m2 = load(m + 8 * V_STEP), m3 = load(m + 12 * V_STEP);
    s[0][b] = m0 + m1 + m2, s[1][b] = m1 - m2 - m3;
  }
  UNROLL for (int a = 0; a < 2; a++, y += size) {
    f4 left = s[a][0] + s[a][1] + s[a][2] + bias, right = s[a][1] - s[a][2] - s[a][3] + bias;
    store(y, __builtin_shufflevector(left, right, 0, 4, 1, 5));
    store(y + 4, __builtin_shufflevector(left, right, 2, 6, 3, 7));
  }
}

// M[q] = U[q] V[q] for `tiles` tiles. Turning 3 x 3 weights by 180 degrees exchanges 0 and 3 among a, b.
INLINE void sixteen(const f *u, int inputs, int outputs, int tiles, int turned) {
  for (int q = 0; q < 16; q++) {
    static const int other[4] = {3, 1, 2, 0};
    const f *uq = u + (turned ? 4 * other[q / 4] + other[q % 4] : q) * inputs * outputs;
    for (int o = 0; o < outputs; o += 4)
      for (int p = 0; p < tiles; p += 8) {
        f4 c[8];
        product(c, rows_of(uq, o, inputs, turned), step_of(outputs, turned), turned,
                V + q * V_STEP + p * inputs, inputs);
        f *to = M + q * V_STEP + o * TILES + p;
        UNROLL for (int m = 0; m < 4; m++, to += TILES) store(to, c[2 * m]), store(to + 4, c[2 * m + 1]);
      }
  }
}

INLINE void three(f *y, const f *x, const f *u, const f *bias, int inputs, int outputs, int size,
                  int turned) {
  int wide = size / 2, tall = TILES / wide < wide ? TILES / wide : wide, tiles = wide * tall;
  int full = up4(inputs);
  f rows[10 * 66];
  for (int i = 0; i < wide; i += tall) {
    for (int c = 0; c < full; c++) {
      if (c < inputs) border(rows, x + c * size * size, 2 * i - 1, tall, size);
      for (int t = 0; t < tiles; t += 4) {
        f *to = V + t / 8 * 8 * full + 8 * c + t % 8;
        if (c < inputs) tiles_in(to, rows + t / wide * 2 * (size + 2) + t % wide * 2, size + 2);
        else for (int q = 0; q < 16; q++) store(to + q * V_STEP, (f4){0, 0, 0, 0});
      }
    }
    sixteen(u, full, up4(outputs), tiles, turned);
    for (int o = 0; o < outputs; o++)
      for (int t = 0; t < tiles; t += 4)
        tiles_out(y + o * size * size + (i + t / wide) * 2 * size + t % wide * 2, M + o * TILES + t,
                  bias ? all(bias + o) : (f4){0, 0, 0, 0}, size);
  }
}
EXPORT(conv3)
void conv3(f *y, const f *x, const f *u, const f *bias, int inputs, int outputs, int size, int turned) {
  if (turned) three(y, x, u, bias, inputs, outputs, size, 1);
  else three(y, x, u, bias, inputs, outputs, size, 0);
}

// ---- number by number

// Cephes' expf: 2^k e^r, |r| <= log(2) / 2, with r's polynomial of degree 7.
INLINE f4 exp4(f4 x) {
  x = (f4)wasm_f32x4_pmax(wasm_f32x4_pmin((v128_t)x, wasm_f32x4_splat(80)), wasm_f32x4_splat(-80));
  f4 k = (f4)wasm_f32x4_nearest((v128_t)(x * 1.44269504f)), r = x - k * .693359375f + k * 2.12194440e-4f;
  f4 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f, p = p * r + 4.1665795894e-2f, p = p * r + 1.6666665459e-1f, p = p * r + .5f;
  p = p * r * r + r + 1;
  return p * (f4)(((i4)wasm_i32x4_trunc_sat_f32x4((v128_t)k) + 127) << 23);
}
INLINE f4 sigmoid(f4 x) { return 1 / (1 + exp4(-x)); }

INLINE f total(const f *a, int n) {
  f4 s = {0}, t = {0};
  for (int i = 0; i < n; i += 8) s += load(a + i), t += load(a + i + 4);
  return sum4(s + t);
}

// Group normalisation, then silu(z) = z sigmoid(z) where `bent`: y = silu(w xhat + b). A group's mean and
// 1 / sqrt(variance + eps) are kept in `stats`, two numbers a group.
EXPORT(norm)
void norm(f *y, f *stats, const f *x, const f *w, const f *b, int channels, int n, int groups, int bent) {
  int per = channels / groups, size = per * n;
  for (int g = 0; g < groups; g++, x += size) {
    f mean = total(x, size) / size;
    f4 s = {0}, t = {0};
    for (int i = 0; i < size; i += 8) {
      f4 p = load(x + i) - mean, q = load(x + i + 4) - mean;
      s += p * p, t += q * q;
    }
    f r = 1 / __builtin_sqrtf(sum4(s + t) / size + 1e-5f);
    stats[2 * g] = mean, stats[2 * g + 1] = r;
    for (int j = 0; j < per; j++) {
      f a = r * w[g * per + j], c = b[g * per + j] - mean * a;
      for (int i = j * n; i < (j + 1) * n; i += 4, y += 4) {
        f4 z = load(x + i) * a + c;
        store(y, bent ? z * sigmoid(z) : z);
      }
    }
  }
}

// What silu's derivative makes of d at z.
INLINE f4 bend(f4 d, f4 z) {
  f4 s = sigmoid(z);
  return d * s * (1 + z * (1 - s));
}

// d <- r (d - mean d - xhat mean(xhat d)) is its own transpose. A push multiplies by w and silu' after it,
// a pull before.
EXPORT(norm_d)
void norm_d(f *y, const f *d, const f *stats, const f *x, const f *w, const f *b, int channels, int n,
            int groups, int bent, int pull) {
  int per = channels / groups, size = per * n;
  for (int g = 0; g < groups; g++, x += size, d += size, y += size) {
    f mean = stats[2 * g], r = stats[2 * g + 1];
    f4 s = {0}, t = {0};
    for (int j = 0; j < per; j++) {
      f a = w[g * per + j], c = b[g * per + j];
      for (int i = j * n; i < (j + 1) * n; i += 4) {
        f4 xhat = (load(x + i) - mean) * r, e = load(d + i);
        if (pull) e = (bent ? bend(e, a * xhat + c) : e) * a, store(y + i, e);
        s += e, t += e * xhat;
      }
    }
    f first = sum4(s) / size, second = sum4(t) / size;
    for (int j = 0; j < per; j++) {
      f a = w[g * per + j], c = b[g * per + j];
      for (int i = j * n; i < (j + 1) * n; i += 4) {
        f4 xhat = (load(x + i) - mean) * r, e = (load((pull ? y : d) + i) - first - xhat * second) * r;
        if (!pull) e = bent ? bend(e * a, a * xhat + c) : e * a;
        store(y + i, e);
      }
    }
  }
}

EXPORT(add) void add(f *y, const f *a, const f *b, int n) {
  for (int i = 0; i < n; i += 4) store(y + i, load(a + i) + load(b + i));
}

// y = x + e[channel].
EXPORT(shift) void shift(f *y, const f *x, const f *e, int channels, int n) {
  for (int c = 0; c < channels; c++)
    for (int i = 0; i < n; i += 4, x += 4, y += 4) store(y, load(x) + e[c]);
}

// Each pixel four times; and the sum of the four.
EXPORT(upsample) void upsample(f *y, const f *x, int channels, int size) {
  for (int r = 0; r < channels * size; r++, x += size, y += 4 * size)
    for (int j = 0; j < size; j += 4) {
      f4 v = load(x + j), left = __builtin_shufflevector(v, v, 0, 0, 1, 1);
      f4 right = __builtin_shufflevector(v, v, 2, 2, 3, 3);
      store(y + 2 * j, left), store(y + 2 * j + 4, right);
      store(y + 2 * size + 2 * j, left), store(y + 2 * size + 2 * j + 4, right);
    }
}
EXPORT(upsample_turned) void upsample_turned(f *x, const f *y, int channels, int size) {
  for (int r = 0; r < channels * size; r++, x += size, y += 4 * size)
    for (int j = 0; j < size; j += 4) {
      const f *above = y + 2 * j, *below = above + 2 * size;
      f4 left = load(above) + load(below), right = load(above + 4) + load(below + 4);
      store(x + j, even(left, right) + odd(left, right));
    }
}

// ---- attention: for each head, P = softmax(q^T k / sqrt(c)) over n places and o = v P^T

enum { PLACES = 64 };

// to[j] (+)= sum over channels of x[c][i] y[c][j].
INLINE void scores(f *to, const f *x, const f *y, int i, int channels, int n, int more) {
  f4 s[PLACES / 4];
  for (int j = 0; j < n / 4; j++) s[j] = more ? load(to + 4 * j) : (f4){0};
  for (int c = 0; c < channels; c++, y += n)
    for (int j = 0; j < n / 4; j++) s[j] += all(x + c * n + i) * load(y + 4 * j);
  for (int j = 0; j < n / 4; j++) store(to + 4 * j, s[j]);
}
// o[c][i] (+)= sum over places of p[j] v[c][j].
INLINE void average(f *o, const f *p, const f *v, int i, int channels, int n, int more) {
  for (int c = 0; c < channels; c++, v += n) {
    f4 s = {0};
    for (int j = 0; j < n; j += 4) s += load(p + j) * load(v + j);
    o[c * n + i] = sum4(s) + (more ? o[c * n + i] : 0);
  }
}
// o[c][j] += p[j] x[c][i].
INLINE void spread(f *o, const f *p, const f *x, int i, int channels, int n) {
  for (int c = 0; c < channels; c++, o += n)
    for (int j = 0; j < n; j += 4) store(o + j, load(o + j) + load(p + j) * all(x + c * n + i));
}
// What softmax's derivative at p makes of r: p (r - sum p r) scale. It is its own transpose.
INLINE void soften(f *r, const f *p, f scale, int n) {
  f4 s = {0};
  for (int j = 0; j < n; j += 4) s += load(p + j) * load(r + j);
  f mean = sum4(s);
  for (int j = 0; j < n; j += 4) store(r + j, load(p + j) * (load(r + j) - mean) * scale);
}

// A head's channels begin at h.
EXPORT(attend) void attend(f *o, f *P, const f *q, const f *k, const f *v, int heads, int c, int n) {
  f scale = 1 / __builtin_sqrtf(c);
  for (int h = 0; h < heads * c * n; h += c * n)
    for (int i = 0; i < n; i++, P += n) {
      scores(P, q + h, k + h, i, c, n, 0);
      f most = P[0];
      for (int j = 1; j < n; j++) most = P[j] > most ? P[j] : most;
      f4 s = {0};
      for (int j = 0; j < n; j += 4) {
        f4 e = exp4((load(P + j) - most) * scale);
        store(P + j, e);
        s += e;
      }
      f all = sum4(s);
      for (int j = 0; j < n; j += 4) store(P + j, load(P + j) / all);
      average(o + h, P, v + h, i, c, n, 0);
    }
}
EXPORT(attend_push)
void attend_push(f *o, const f *P, const f *q, const f *k, const f *v, const f *dq, const f *dk,
                 const f *dv, int heads, int c, int n) {
  f scale = 1 / __builtin_sqrtf(c), r[PLACES];
  for (int h = 0; h < heads * c * n; h += c * n)
    for (int i = 0; i < n; i++, P += n) {
      scores(r, dq + h, k + h, i, c, n, 0);
      scores(r, q + h, dk + h, i, c, n, 1);
      soften(r, P, scale, n);
      average(o + h, r, v + h, i, c, n, 0);
      average(o + h, P, dv + h, i, c, n, 1);
    }
}
EXPORT(attend_pull)
void attend_pull(f *gq, f *gk, f *gv, const f *P, const f *q, const f *k, const f *v, const f *g,
                 int heads, int c, int n) {
  f scale = 1 / __builtin_sqrtf(c), r[PLACES];
  for (int i = 0; i < heads * c * n; i++) gk[i] = gv[i] = 0;
  for (int h = 0; h < heads * c * n; h += c * n)
    for (int i = 0; i < n; i++, P += n) {
      spread(gv + h, P, g + h, i, c, n);
      scores(r, g + h, v + h, i, c, n, 0);
      soften(r, P, scale, n);
      average(gq + h, r, k + h, i, c, n, 0);
      spread(gk + h, r, q + h, i, c, n);
    }
}
