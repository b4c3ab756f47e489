/* Vectors of sixteen floats in GCC's and clang's vector extension, which the compiler maps to what the target has.
 *
 * A function marked CLONED is compiled for several instruction sets, and the loader picks one at run time; whatever it
 * calls must be INLINE, so that it is compiled for the same set. */
#ifndef MOBILEMAMBA_SIMD_H
#define MOBILEMAMBA_SIMD_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))
#ifdef MOBILEMAMBA_CLONES
#define CLONED __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONED __attribute__((noinline))
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

typedef enum { FLOAT32 = 0, BFLOAT16 = 1 } dtype;

/* Allocates n vectors; null if there is no memory. On the heap, as the size grows with what users choose. */
INLINE vec *vectors(int64_t n) { return aligned_alloc(sizeof(vec), (size_t)(n + 1) * sizeof(vec)); }

/* Lets Python compare the size of a function's arguments with that of its own structure. */
#define SIZE_OF(type) const int64_t mobilemamba_size_of_##type = sizeof(type)

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec select_vec(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
INLINE vec max_vec(vec a, vec b) { return select_vec(a < b, b, a); } /* keeps a NaN in a */

/* n elements from element i on; the other lanes are zero. */
INLINE vec load(const void *base, int64_t i, dtype type, int64_t n) {
    if (type == FLOAT32) {
        vec v = {0};
        const float *from = (const float *)base + i;
        if (n == LANES) memcpy(&v, from, sizeof v);
        else memcpy(&v, from, (size_t)n * sizeof *from);
        return v;
    }
    hvec h = {0};
    const uint16_t *from = (const uint16_t *)base + i;
    if (n == LANES) memcpy(&h, from, sizeof h);
    else memcpy(&h, from, (size_t)n * sizeof *from);
    return (vec)(__builtin_convertvector(h, uvec) << 16); /* bfloat16 is the upper half of a float */
}

/* Writes lanes skip .. n - 1 to elements i + skip .. i + n - 1. Rounds to nearest even, like PyTorch; keeps NaN. */
INLINE void store(void *base, int64_t i, dtype type, int64_t skip, int64_t n, vec v) {
    if (type == FLOAT32) {
        float *to = (float *)base + i;
        if (skip == 0 && n == LANES) memcpy(to, &v, sizeof v);
        else memcpy(to + skip, (float *)&v + skip, (size_t)(n - skip) * sizeof *to);
        return;
    }
    uvec bits = (uvec)v;
    uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uvec nan = (uvec)(v != v);
    hvec h = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), hvec);
    uint16_t *to = (uint16_t *)base + i;
    if (skip == 0 && n == LANES) memcpy(to, &h, sizeof h);
    else memcpy(to + skip, (uint16_t *)&h + skip, (size_t)(n - skip) * sizeof *to);
}

/* One vector's share of the channels. If the last one is short it moves back to full length, because partial loads are
 * slow; what it then shares with the block before is computed twice but stored once. Fewer than LANES stay short. */
typedef struct {
    int64_t start, n, skip; /* channels start + skip .. start + n - 1 are this block's own */
} block;

INLINE int64_t blocks_of(int64_t channels) { return (channels + LANES - 1) / LANES; }

INLINE block block_at(int64_t channels, int64_t index) {
    block at = {index * LANES, smaller(LANES, channels - index * LANES), 0};
    if (at.n < LANES && channels >= LANES) at.skip = LANES - at.n, at.start -= at.skip, at.n = LANES;
    return at;
}

/* v in the block's own lanes, 0 in the others. */
INLINE vec own_lanes(vec v, block at) {
    if (at.skip == 0 && at.n == LANES) return v;
    ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return select_vec((lane >= (int32_t)at.skip) & (lane < (int32_t)at.n), v, splat(0));
}

INLINE float sum_lanes(vec v) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
}

/* e^x to about 1 ulp: x = n ln 2 + r, a polynomial in r, n into the exponent. Below -87.3 it stays at 1.2e-38. */
INLINE vec exp_vec(vec x) {
    x = select_vec(x > 88.0f, splat(88.0f), x);
    x = select_vec(x < -87.3f, splat(-87.3f), x);
    vec magic = splat(12583039.0f); /* 1.5 * 2^23 + 127: adding it leaves the exponent of 2^n in the low bits */
    vec shifted = x * 1.44269504088896341f + magic;
    vec n = shifted - magic;
    vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (vec)((ivec)shifted << 23); /* a product, not a sum of bits: NaN stays NaN */
}

/* log(1 + e) for 0 <= e <= 1, as e times a polynomial: relative accuracy also where e is tiny. */
INLINE vec log1p_unit(vec e) {
    vec p = splat(0.0052326943f); /* minimax fit, relative error 3e-8 */
    p = p * e - 0.0295052389f;
    p = p * e + 0.0782259521f;
    p = p * e - 0.136632458f;
    p = p * e + 0.191060068f;
    p = p * e - 0.248429822f;
    p = p * e + 0.333190968f;
    p = p * e - 0.499994931f;
    p = p * e + 0.99999997f;
    return p * e;
}

/* log(1 + e^z) and its derivative, 1 / (1 + e^-z). */
INLINE vec softplus(vec z, vec *derivative) {
    vec e = exp_vec(select_vec(z > 0.0f, -z, z));
    if (derivative) *derivative = select_vec(z > 0.0f, splat(1.0f), e) / (e + 1.0f);
    return select_vec(z > 0.0f, z, splat(0.0f)) + log1p_unit(e);
}

INLINE vec sigmoid(vec x) {
    vec e = exp_vec(select_vec(x > 0.0f, -x, x));
    return select_vec(x > 0.0f, splat(1.0f), e) / (e + 1.0f);
}

INLINE vec silu(vec x) { return x * sigmoid(x); }

#endif
