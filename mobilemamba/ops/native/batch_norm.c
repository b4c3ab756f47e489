/* Batch normalisation in training, forwards and backwards, of dense channels-last maps.
 *
 * A map is a list of pixels of C neighbouring numbers. Whatever C is, it is read in full vectors: a period of vectors
 * holds a whole number of pixels, and per-channel numbers are repeated to its length. Sums are taken over chunks of one
 * size and then over the chunks in their order: the same bits for any number of threads. */
#include <math.h>
#include <stdlib.h>

#include "simd.h"

#define CHUNK 16384 /* elements of a task, at least: few enough to be in the cache when they are read again */
#define PERIOD 8    /* vectors of a period, at least: as many sums do not wait for each other */

typedef struct {
    int64_t pixels, channels, type, threads; /* dtype of x, y and their gradients; all else is float */
    const void *x;
    void *y;
    const float *weight, *bias;       /* (C) */
    double eps;
    float *mean, *variance, *inverse; /* (C) of the batch: mean, unbiased variance, 1 / sqrt(biased variance + eps) */
    float *partial;                   /* scratch of batch_norm_scratch() floats: two numbers a channel and chunk */
    /* Backwards only. */
    const void *grad_y;
    void *grad_x;
    float *grad_weight, *grad_bias; /* (C) */
} norm_args;

static int64_t period_of(int64_t channels) {
    int64_t vectors = channels;
    for (int64_t lanes = LANES; lanes > 1 && vectors % 2 == 0; lanes /= 2) vectors /= 2;
    return vectors * ((PERIOD + vectors - 1) / vectors);
}

static int64_t chunk_of(int64_t channels) {
    int64_t period = period_of(channels) * LANES;
    return (CHUNK + period - 1) / period * period;
}

static int64_t chunks_of(const norm_args *a) {
    return (a->pixels * a->channels + chunk_of(a->channels) - 1) / chunk_of(a->channels);
}

int64_t mobilemamba_batch_norm_scratch(const norm_args *a) { return 2 * chunks_of(a) * a->channels; }

/* Numbers of the channels, repeated over a period; to be freed. */
static vec *repeated(const float *numbers, int64_t channels) {
    int64_t length = period_of(channels) * LANES;
    float *to = aligned_alloc(sizeof(vec), (size_t)length * sizeof(float));
    for (int64_t i = 0; i < length; i += channels) memcpy(to + i, numbers, (size_t)channels * sizeof(float));
    return (vec *)to;
}

/* Sums over a period, added up by channel. */
INLINE void fold(const vec *sums, int64_t channels, float *to) {
    const float *from = (const float *)sums;
    for (int64_t c = 0; c < channels; c++) to[c] = from[c];
    for (int64_t i = channels; i < period_of(channels) * LANES; i += channels)
        for (int64_t c = 0; c < channels; c++) to[c] += from[i + c];
}

/* What is done with n elements of a chunk from element i of the map on; vector v of the period. */
#define EACH_VECTOR(body)                                                                                              \
    {                                                                                                                  \
        int64_t i = first, v = 0;                                                                                      \
        for (; i + LANES <= end; i += LANES, v = v + 1 < period ? v + 1 : 0) {                                         \
            const int64_t n = LANES;                                                                                   \
            body                                                                                                       \
        }                                                                                                              \
        if (i < end) {                                                                                                 \
            const int64_t n = end - i;                                                                                 \
            body                                                                                                       \
        }                                                                                                              \
    }

typedef enum {
    MOMENTS,   /* mean of x, and sum of squared deviations from it */
    NORMALISE, /* y = x * numbers[0] + numbers[1] */
    SUMS,      /* of y's gradient, and of its products with x - numbers[0] */
    GRADIENT   /* x's: y's * numbers[0] + x * numbers[1] + numbers[2] */
} pass;

INLINE void chunk(const norm_args *a, dtype type, pass kind, int64_t task, vec *const *numbers) {
    int64_t C = a->channels, period = period_of(C), first = task * chunk_of(C);
    int64_t end = smaller(first + chunk_of(C), a->pixels * C);
    float *partial = a->partial + 2 * task * C;
    vec sums[period], products[period];
    for (int64_t v = 0; v < period; v++) sums[v] = products[v] = splat(0);
    if (kind == MOMENTS) {
        EACH_VECTOR(sums[v] += load(a->x, i, type, n);)
        fold(sums, C, partial);
        for (int64_t c = 0; c < C; c++) partial[c] /= (float)((end - first) / C);
        vec *mean = repeated(partial, C);
        EACH_VECTOR(vec deviation = own_lanes(load(a->x, i, type, n) - mean[v], (block){0, n, 0});
                    products[v] += deviation * deviation;)
        fold(products, C, partial + C);
        free(mean);
    } else if (kind == NORMALISE) {
        EACH_VECTOR(store(a->y, i, type, 0, n, load(a->x, i, type, n) * numbers[0][v] + numbers[1][v]);)
    } else if (kind == SUMS) {
        EACH_VECTOR(vec grad = load(a->grad_y, i, type, n); sums[v] += grad;
                    products[v] += grad * (load(a->x, i, type, n) - numbers[0][v]);)
        fold(sums, C, partial);
        fold(products, C, partial + C);
    } else {
        EACH_VECTOR(vec grad = load(a->grad_y, i, type, n) * numbers[0][v];
                    grad += load(a->x, i, type, n) * numbers[1][v] + numbers[2][v];
                    store(a->grad_x, i, type, 0, n, grad);)
    }
}

CLONED static void chunk_task(const norm_args *a, pass kind, int64_t task, vec *const *numbers) {
    if (a->type == FLOAT32) chunk(a, FLOAT32, kind, task, numbers);
    else chunk(a, BFLOAT16, kind, task, numbers);
}

static void over_chunks(const norm_args *a, pass kind, vec *const *numbers) {
#pragma omp parallel for schedule(static) num_threads((int)a->threads)
    for (int64_t task = 0; task < chunks_of(a); task++) chunk_task(a, kind, task, numbers);
}

void mobilemamba_batch_norm_forward(const norm_args *a) {
    int64_t C = a->channels, chunk_pixels = chunk_of(C) / C;
    over_chunks(a, MOMENTS, 0);
    double *mean = calloc((size_t)(2 * C), sizeof(double)), *squares = mean + C;
    for (int64_t task = 0; task < chunks_of(a); task++) {
        double pixels = (double)smaller(chunk_pixels, a->pixels - task * chunk_pixels);
        for (int64_t c = 0; c < C; c++) mean[c] += a->partial[2 * task * C + c] * (pixels / (double)a->pixels);
    }
    for (int64_t task = 0; task < chunks_of(a); task++) {
        double pixels = (double)smaller(chunk_pixels, a->pixels - task * chunk_pixels);
        for (int64_t c = 0; c < C; c++) {
            double difference = a->partial[2 * task * C + c] - mean[c];
            squares[c] += a->partial[(2 * task + 1) * C + c] + pixels * difference * difference;
        }
    }
    float *scale = malloc((size_t)(2 * C) * sizeof(float)), *shift = scale + C;
    for (int64_t c = 0; c < C; c++) {
        a->mean[c] = (float)mean[c];
        a->variance[c] = (float)(squares[c] / (double)(a->pixels - 1));
        a->inverse[c] = (float)(1 / sqrt(squares[c] / (double)a->pixels + a->eps));
        scale[c] = a->weight[c] * a->inverse[c];
        shift[c] = a->bias[c] - a->mean[c] * scale[c];
    }
    vec *numbers[] = {repeated(scale, C), repeated(shift, C)};
    over_chunks(a, NORMALISE, numbers);
    free(mean);
    free(scale);
    for (int i = 0; i < 2; i++) free(numbers[i]);
}

/* dx = weight * inverse * (dy - mean(dy) - (x - mean) * inverse^2 * mean(dy * (x - mean))) */
void mobilemamba_batch_norm_backward(const norm_args *a) {
    int64_t C = a->channels;
    vec *mean = repeated(a->mean, C);
    over_chunks(a, SUMS, &mean);
    double *sum = calloc((size_t)(2 * C), sizeof(double)), *product = sum + C;
    for (int64_t task = 0; task < chunks_of(a); task++)
        for (int64_t c = 0; c < 2 * C; c++) sum[c] += a->partial[2 * task * C + c];
    float *scale = malloc((size_t)(3 * C) * sizeof(float)), *slope = scale + C, *shift = slope + C;
    for (int64_t c = 0; c < C; c++) {
        double inverse = a->inverse[c];
        a->grad_bias[c] = (float)sum[c];
        a->grad_weight[c] = (float)(product[c] * inverse);
        scale[c] = a->weight[c] * a->inverse[c];
        slope[c] = (float)(-scale[c] * inverse * inverse * product[c] / (double)a->pixels);
        shift[c] = (float)(-scale[c] * sum[c] / (double)a->pixels - (double)slope[c] * a->mean[c]);
    }
    vec *numbers[] = {repeated(scale, C), repeated(slope, C), repeated(shift, C)};
    over_chunks(a, GRADIENT, numbers);
    free(mean);
    free(sum);
    free(scale);
    for (int i = 0; i < 3; i++) free(numbers[i]);
}
