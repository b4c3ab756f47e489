/* Batch normalisation in training and a ReLU, if asked, forwards and backwards, of dense channels-last maps.
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
    int64_t pixels, channels, type, relu, threads; /* dtype of x, y and their gradients; all else is float */
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
    NORMALISE, /* x * scale + shift */
    SUMS,      /* of the gradient, and of its products with x - mean */
    GRADIENT   /* of x: gradient * scale + x * slope + offset */
} pass;

enum { SCALE, SHIFT, MEAN, SLOPE, OFFSET, NUMBERS }; /* what a pass may need of each channel */

/* The gradient of the normalised x: the ReLU lets it through where its input is not below 0, or NaN. */
INLINE vec grad_at(const norm_args *a, dtype type, int relu, int64_t i, int64_t n, vec x, vec scale, vec shift) {
    vec grad = load(a->grad_y, i, type, n);
    return relu ? select_vec(x * scale + shift <= 0.0f, splat(0), grad) : grad;
}

INLINE void chunk(const norm_args *a, dtype type, int relu, pass kind, int64_t task, vec *const *numbers) {
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
        EACH_VECTOR(vec y = load(a->x, i, type, n) * numbers[SCALE][v] + numbers[SHIFT][v];
                    store(a->y, i, type, 0, n, relu ? max_vec(y, splat(0)) : y);)
    } else if (kind == SUMS) {
        EACH_VECTOR(vec x = load(a->x, i, type, n);
                    vec grad = grad_at(a, type, relu, i, n, x, numbers[SCALE][v], numbers[SHIFT][v]);
                    sums[v] += grad; products[v] += grad * (x - numbers[MEAN][v]);)
        fold(sums, C, partial);
        fold(products, C, partial + C);
    } else {
        EACH_VECTOR(vec x = load(a->x, i, type, n);
                    vec grad = grad_at(a, type, relu, i, n, x, numbers[SCALE][v], numbers[SHIFT][v]);
                    grad = grad * numbers[SCALE][v] + (x * numbers[SLOPE][v] + numbers[OFFSET][v]);
                    store(a->grad_x, i, type, 0, n, grad);)
    }
}

CLONED static void chunk_task(const norm_args *a, pass kind, int64_t task, vec *const *numbers) {
    if (a->type == FLOAT32 && a->relu) chunk(a, FLOAT32, 1, kind, task, numbers);
    else if (a->type == FLOAT32) chunk(a, FLOAT32, 0, kind, task, numbers);
    else if (a->relu) chunk(a, BFLOAT16, 1, kind, task, numbers);
    else chunk(a, BFLOAT16, 0, kind, task, numbers);
}

static void over_chunks(const norm_args *a, pass kind, vec *const *numbers) {
#pragma omp parallel for schedule(static) num_threads((int)a->threads)
    for (int64_t task = 0; task < chunks_of(a); task++) chunk_task(a, kind, task, numbers);
}

/* The batch's affine map of each channel, repeated: the same numbers backwards as forwards. */
static void repeat_affine(const norm_args *a, vec **numbers) {
    int64_t C = a->channels;
    float *scale = malloc((size_t)(2 * C) * sizeof(float)), *shift = scale + C;
    for (int64_t c = 0; c < C; c++) {
        scale[c] = a->weight[c] * a->inverse[c];
        shift[c] = a->bias[c] - a->mean[c] * scale[c];
    }
    numbers[SCALE] = repeated(scale, C);
    numbers[SHIFT] = repeated(shift, C);
    free(scale);
}

static void free_all(vec **numbers) {
    for (int i = 0; i < NUMBERS; i++) free(numbers[i]);
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
    for (int64_t c = 0; c < C; c++) {
        a->mean[c] = (float)mean[c];
        a->variance[c] = (float)(squares[c] / (double)(a->pixels - 1));
        a->inverse[c] = (float)(1 / sqrt(squares[c] / (double)a->pixels + a->eps));
    }
    free(mean);
    vec *numbers[NUMBERS] = {0};
    repeat_affine(a, numbers);
    over_chunks(a, NORMALISE, numbers);
    free_all(numbers);
}

/* dx = weight * inverse * (dy - mean(dy) - (x - mean) * inverse^2 * mean(dy * (x - mean))) */
void mobilemamba_batch_norm_backward(const norm_args *a) {
    int64_t C = a->channels;
    vec *numbers[NUMBERS] = {0};
    repeat_affine(a, numbers);
    numbers[MEAN] = repeated(a->mean, C);
    over_chunks(a, SUMS, numbers);
    double *sum = calloc((size_t)(2 * C), sizeof(double)), *product = sum + C;
    for (int64_t task = 0; task < chunks_of(a); task++)
        for (int64_t c = 0; c < 2 * C; c++) sum[c] += a->partial[2 * task * C + c];
    float *slope = malloc((size_t)(2 * C) * sizeof(float)), *offset = slope + C;
    for (int64_t c = 0; c < C; c++) {
        double inverse = a->inverse[c], scale = a->weight[c] * inverse;
        a->grad_bias[c] = (float)sum[c];
        a->grad_weight[c] = (float)(product[c] * inverse);
        slope[c] = (float)(-scale * inverse * inverse * product[c] / (double)a->pixels);
        offset[c] = (float)(-scale * sum[c] / (double)a->pixels - (double)slope[c] * a->mean[c]);
    }
    numbers[SLOPE] = repeated(slope, C);
    numbers[OFFSET] = repeated(offset, C);
    over_chunks(a, GRADIENT, numbers);
    free(sum);
    free(slope);
    free_all(numbers);
}
