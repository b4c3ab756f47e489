/* A depthwise convolution of channels-last maps: act(x * w + bias).
 *
 * Input and output may be slices of the channels of wider maps. */
#include "simd.h"

#define TILE 3 /* adjacent columns whose sums are computed together: maps are often 3, 6 or 12 wide */

typedef enum {
    NONE = 0,
    RELU = 1,
    SWISH = 2,
    SIGMOID = 3,
    LOCAL = 4 /* the local part of MRFFI: relu(scale * relu(.) + shift) */
} activation;

typedef struct {
    int64_t batch, height, width, channels, y_height, y_width;
    int64_t kernel, stride; /* kernel is odd; the padding is kernel / 2 */
    int64_t type, threads, act;
    const void *x;
    void *y;
    int64_t x_stride[3], y_stride[3];  /* elements: picture, row, column */
    const float *weight;               /* (kernel, kernel, C) */
    const float *bias, *scale, *shift; /* (C); the last two for LOCAL only */
} depthwise_args;

SIZE_OF(depthwise_args);

static const float zeros[LANES]; /* read beyond the map: a branch instead would keep weights out of registers */

INLINE vec activate(const depthwise_args *a, vec x, int64_t c, int64_t n) {
    if (a->act == NONE) return x;
    if (a->act == SWISH) return silu(x);
    if (a->act == SIGMOID) return sigmoid(x);
    x = max_vec(x, splat(0));
    if (a->act == RELU) return x;
    return max_vec(x * load(a->scale, c, FLOAT32, n) + load(a->shift, c, FLOAT32, n), splat(0));
}

INLINE void row_of(const depthwise_args *a, dtype type, const int64_t kernel, const int64_t stride, int64_t b,
                   int64_t row, block at, const int64_t n) {
    int64_t c = at.start, top = row * stride - kernel / 2;
    int64_t first = top < 0 ? -top : 0, last = smaller(kernel, a->height - top);
    for (int64_t column = 0; column < a->y_width; column += TILE) {
        int64_t left = column * stride - kernel / 2, end = kernel + (TILE - 1) * stride;
        if (stride != 1) end = smaller(end, a->width - left); /* otherwise a constant */
        vec sums[TILE];
        for (int64_t j = 0; j < TILE; j++) sums[j] = load(a->bias, c, FLOAT32, n);
        for (int64_t y = first; y < last; y++) {
            const float *weight = a->weight + y * kernel * a->channels;
            int64_t from = b * a->x_stride[0] + (top + y) * a->x_stride[1] + left * a->x_stride[2] + c;
            for (int64_t x = 0; x < end; x++) {
                int inside = left + x >= 0 && left + x < a->width;
                vec input = load(inside ? a->x : zeros, inside ? from + x * a->x_stride[2] : 0, type, n);
                for (int64_t j = 0; j < TILE; j++)
                    if (x >= j * stride && x < j * stride + kernel)
                        sums[j] += load(weight, (x - j * stride) * a->channels + c, FLOAT32, n) * input;
            }
        }
        int64_t to = b * a->y_stride[0] + row * a->y_stride[1] + column * a->y_stride[2] + c;
        for (int64_t j = 0; j < TILE; j++)
            if (column + j < a->y_width)
                store(a->y, to + j * a->y_stride[2], type, at.skip, n, activate(a, sums[j], c, n));
    }
}

/* Common kernel sizes and widths are passed as constants, so that the compiler unrolls the loops over them. */
CLONED static void row_task(const depthwise_args *a, int64_t task) {
    int64_t blocks = blocks_of(a->channels), rows = task / blocks;
    int64_t b = rows / a->y_height, row = rows % a->y_height;
    block at = block_at(a->channels, task % blocks);
#define ROW(type)                                                                                                  \
    if (at.n < LANES || a->stride != 1 || a->kernel > 7) row_of(a, type, a->kernel, a->stride, b, row, at, at.n);  \
    else if (a->kernel == 7) row_of(a, type, 7, 1, b, row, at, LANES);                                             \
    else if (a->kernel == 5) row_of(a, type, 5, 1, b, row, at, LANES);                                             \
    else if (a->kernel == 3) row_of(a, type, 3, 1, b, row, at, LANES);                                             \
    else row_of(a, type, 1, 1, b, row, at, LANES)
    if (a->type == FLOAT32) {
        ROW(FLOAT32);
    } else {
        ROW(BFLOAT16);
    }
}

int mobilemamba_depthwise(const depthwise_args *a) {
    int64_t tasks = a->batch * a->y_height * blocks_of(a->channels);
#pragma omp parallel for schedule(static) num_threads((int)a->threads)
    for (int64_t task = 0; task < tasks; task++) row_task(a, task);
    return 0; /* it needs no memory */
}
