/* Batch normalisation in training, optionally followed by a ReLU; forwards and backwards, on dense channels-last maps.
 *
 * A map is a list of pixels of C adjacent numbers. It is read in full vectors for any C: a period of vectors holds a
 * whole number of pixels, and per-channel numbers are repeated over a period. Sums are taken within chunks of one size
 * and then over the chunks in order, so they have the same bits for any number of threads. The passes return 0, or 1 if
 * there is no memory. */
#include <math.h>

#include "simd.h"

#define CHUNK 16384 /* least elements of a task: few enough to be still in the cache when they are read again */
#define PERIOD 8    /* least vectors of a period: that many sums do not wait for each other */

typedef struct {
    int64_t pixels, channels, type, relu, threads; /* dtype of x, y and their gradients; the rest is float */
    const void *x;
    void *y;
    const float *weight, *bias;       /* (C) */
    double eps;
    float *mean, *variance, *inverse; /* (C), of the batch: mean, unbiased variance, 1 / sqrt(biased variance + eps) */
    float *partial;                   /* scratch of batch_norm_scratch() floats: two numbers per channel and chunk */
    /* Backwards only. */
    const void *grad_y;
    void *grad_x;
    float *grad_weight, *grad_bias; /* (C) */
} norm_args;

SIZE_OF(norm_args);

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

/* Repeats the numbers of the channels over a period. */
static void repeat(const float *numbers, int64_t channels, vec *to) {
    for (int64_t i = 0; i < period_of(channels) * LANES; i += channels)
        memcpy((float *)to + i, numbers, (size_t)channels * sizeof(float));
}

/* Adds up the sums of a period by channel. */
INLINE void fold(const vec *sums, int64_t channels, float *to) {
    const float *from = (const float *)sums;
    for (int64_t c = 0; c < channels; c++) to[c] = from[c];
    for (int64_t i = channels; i < period_of(channels) * LANES; i += channels)
        for (int64_t c = 0; c < channels; c++) to[c] += from[i + c];
}

/* Runs `body` for every vector of a chunk: n elements from element i of the map on, at vector v of the period. */
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
    SUMS,      /* sums of the gradient, and of its products with x - mean */
    GRADIENT   /* gradient of x: gradient * scale + x * slope + offset */
} pass;

enum { SCALE, SHIFT, MEAN, SLOPE, OFFSET, NUMBERS }; /* numbers of each channel that a pass may need */

/* The gradient of the normalised x; the ReLU passes it where its input is above 0 or NaN. */
INLINE vec grad_at(const norm_args *a, dtype type, int relu, int64_t i, int64_t n, vec x, vec scale, vec shift) {
    vec grad = load(a->grad_y, i, type, n);
    return relu ? select_vec(x * scale + shift <= 0.0f, splat(0), grad) : grad;
}

INLINE int chunk(const norm_args *a, dtype type, int relu, pass kind, int64_t task, vec *const *numbers) {
    int64_t C = a->channels, period = period_of(C), first = task * chunk_of(C);
    int64_t end = smaller(first + chunk_of(C), a->pixels * C);
    float *partial = a->partial + 2 * task * C;
    vec *sums = 0, *products = 0, *mean = 0;
    if (kind == MOMENTS || kind == SUMS) {
        if (!(sums = vectors(3 * period))) return 1;
        products = sums + period, mean = products + period;
        for (int64_t v = 0; v < period; v++) sums[v] = products[v] = splat(0);
    }
    if (kind == MOMENTS) {
        EACH_VECTOR(sums[v] += load(a->x, i, type, n);)
        fold(sums, C, partial);
        for (int64_t c = 0; c < C; c++) partial[c] /= (float)((end - first) / C);
        repeat(partial, C, mean);
        EACH_VECTOR(vec deviation = own_lanes(load(a->x, i, type, n) - mean[v], (block){0, n, 0});
                    products[v] += deviation * deviation;)
        fold(products, C, partial + C);
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
    free(sums);
    return 0;
}

CLONED static int chunk_task(const norm_args *a, pass kind, int64_t task, vec *const *numbers) {
    if (a->type == FLOAT32 && a->relu) return chunk(a, FLOAT32, 1, kind, task, numbers);
    if (a->type == FLOAT32) return chunk(a, FLOAT32, 0, kind, task, numbers);
    if (a->relu) return chunk(a, BFLOAT16, 1, kind, task, numbers);
    return chunk(a, BFLOAT16, 0, kind, task, numbers);
}

static int over_chunks(const norm_args *a, pass kind, vec *const *numbers) {
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads((int)a->threads) reduction(| : failed)
    for (int64_t task = 0; task < chunks_of(a); task++) failed |= chunk_task(a, kind, task, numbers);
    return failed;
}

/* Memory shared by the passes: numbers repeated over a period, and two numbers per channel in double and in float. */
typedef struct {
    vec *numbers[NUMBERS]; /* free the first; null if there is no memory */
    double *sums;          /* zeros */
    float *pair;
} memory;

static memory memory_of(int64_t channels) {
    int64_t period = period_of(channels);
    memory m = {{vectors(NUMBERS * period + channels)}, 0, 0}; /* the last 64 bytes per channel hold 24 */
    if (!m.numbers[0]) return m;
    for (int i = 1; i < NUMBERS; i++) m.numbers[i] = m.numbers[0] + i * period;
    m.sums = (double *)(m.numbers[0] + NUMBERS * period);
    m.pair = (float *)(m.sums + 2 * channels);
    for (int64_t i = 0; i < 2 * channels; i++) m.sums[i] = 0;
    return m;
}

/* The affine map that normalises each channel, repeated over a period; it is the same backwards as forwards. */
static void repeat_affine(const norm_args *a, const memory *m) {
    int64_t C = a->channels;
    float *scale = m->pair, *shift = scale + C;
    for (int64_t c = 0; c < C; c++) {
        scale[c] = a->weight[c] * a->inverse[c];
        shift[c] = a->bias[c] - a->mean[c] * scale[c];
    }
    repeat(scale, C, m->numbers[SCALE]);
    repeat(shift, C, m->numbers[SHIFT]);
}

/* Computes the batch's statistics from the moments of the chunks. */
static void merge_moments(const norm_args *a, double *mean) {
    int64_t C = a->channels, chunk_pixels = chunk_of(C) / C;
    double *squares = mean + C;
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
}

int mobilemamba_batch_norm_forward(const norm_args *a) {
    memory m = memory_of(a->channels);
    int failed = !m.numbers[0] || over_chunks(a, MOMENTS, m.numbers);
    if (!failed) {
        merge_moments(a, m.sums);
        repeat_affine(a, &m);
        failed = over_chunks(a, NORMALISE, m.numbers);
    }
    free(m.numbers[0]);
    return failed;
}

/* dx = weight * inverse * (dy - mean(dy) - (x - mean) * inverse^2 * mean(dy * (x - mean))) */
static void merge_sums(const norm_args *a, const memory *m) {
    int64_t C = a->channels;
    double *sum = m->sums, *product = sum + C;
    for (int64_t task = 0; task < chunks_of(a); task++)
        for (int64_t c = 0; c < 2 * C; c++) sum[c] += a->partial[2 * task * C + c];
    float *slope = m->pair, *offset = slope + C;
    for (int64_t c = 0; c < C; c++) {
        double inverse = a->inverse[c], scale = a->weight[c] * inverse;
        a->grad_bias[c] = (float)sum[c];
        a->grad_weight[c] = (float)(product[c] * inverse);
        slope[c] = (float)(-scale * inverse * inverse * product[c] / (double)a->pixels);
        offset[c] = (float)(-scale * sum[c] / (double)a->pixels - (double)slope[c] * a->mean[c]);
    }
    repeat(slope, C, m->numbers[SLOPE]);
    repeat(offset, C, m->numbers[OFFSET]);
}

int mobilemamba_batch_norm_backward(const norm_args *a) {
    memory m = memory_of(a->channels);
    int failed = !m.numbers[0];
    if (!failed) {
        repeat_affine(a, &m);
        repeat(a->mean, a->channels, m.numbers[MEAN]);
        failed = over_chunks(a, SUMS, m.numbers);
    }
    if (!failed) {
        merge_sums(a, &m);
        failed = over_chunks(a, GRADIENT, m.numbers);
    }
    free(m.numbers[0]);
    return failed;
}
