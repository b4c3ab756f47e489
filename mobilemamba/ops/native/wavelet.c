/* The wavelet branch in one pass: Haar transform, depthwise convolution of the four sub-bands, inverse transform.
 *
 * y = act(haar^-1(haar(x) * w) + other), channels-last; input and output may be slices of the channels of wider maps. A
 * map of odd sides is continued by zeros, and cropped at the end. */
#include <stdlib.h>

#include "simd.h"

typedef struct {
    int64_t batch, height, width, channels, kernel;
    int64_t type, threads, relu;
    const void *x, *other;
    void *y;
    int64_t x_stride[3], other_stride[3], y_stride[3]; /* elements: picture, row, column */
    const float *weight; /* (4, kernel, kernel, C): sub-bands LL, HL (high along H), LH, HH */
} wavelet_args;

INLINE void convolve(const vec *from, vec *to, const float *weight, int64_t rows, int64_t columns, int64_t kernel,
                     int64_t channels, int64_t n) {
    vec taps[kernel * kernel];
    for (int64_t i = 0; i < kernel * kernel; i++) taps[i] = load(weight, i * channels, FLOAT32, n);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            int64_t top = i - kernel / 2, left = j - kernel / 2;
            int64_t last_y = smaller(kernel, rows - top), last_x = smaller(kernel, columns - left);
            vec sum = splat(0);
            for (int64_t y = top < 0 ? -top : 0; y < last_y; y++)
                for (int64_t x = left < 0 ? -left : 0; x < last_x; x++)
                    sum += taps[y * kernel + x] * from[(top + y) * columns + left + x];
            to[i * columns + j] = sum;
        }
}

INLINE void wavelet_block(const wavelet_args *a, dtype type, int64_t b, block at, const int64_t n) {
    int64_t c = at.start;
    int64_t rows = (a->height + 1) / 2, columns = (a->width + 1) / 2, size = rows * columns;
    vec *bands = aligned_alloc(sizeof(vec), (size_t)(8 * size + 1) * sizeof(vec)), *mixed = bands + 4 * size;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            vec p[2][2];
            for (int64_t y = 0; y < 2; y++)
                for (int64_t x = 0; x < 2; x++) {
                    int64_t row = 2 * i + y, column = 2 * j + x;
                    int64_t from = b * a->x_stride[0] + row * a->x_stride[1] + column * a->x_stride[2] + c;
                    p[y][x] = row < a->height && column < a->width ? load(a->x, from, type, n) * 0.5f : splat(0);
                }
            vec above = p[0][0] + p[0][1], below = p[1][0] + p[1][1];
            vec above_w = p[0][0] - p[0][1], below_w = p[1][0] - p[1][1];
            vec *to = bands + i * columns + j;
            to[0] = above + below, to[size] = above - below;
            to[2 * size] = above_w + below_w, to[3 * size] = above_w - below_w;
        }
    for (int64_t band = 0; band < 4; band++) {
        const float *weight = a->weight + band * a->kernel * a->kernel * a->channels + c;
        if (a->kernel == 3) convolve(bands + band * size, mixed + band * size, weight, rows, columns, 3, a->channels, n);
        else convolve(bands + band * size, mixed + band * size, weight, rows, columns, a->kernel, a->channels, n);
    }
    for (int64_t row = 0; row < a->height; row++)
        for (int64_t column = 0; column < a->width; column++) {
            const vec *from = mixed + row / 2 * columns + column / 2;
            vec low = row % 2 ? from[0] - from[size] : from[0] + from[size];
            vec high = row % 2 ? from[2 * size] - from[3 * size] : from[2 * size] + from[3 * size];
            vec y = (column % 2 ? low - high : low + high) * 0.5f;
            if (a->other)
                y += load(a->other, b * a->other_stride[0] + row * a->other_stride[1] + column * a->other_stride[2] + c,
                          type, n);
            if (a->relu) y = max_vec(y, splat(0));
            store(a->y, b * a->y_stride[0] + row * a->y_stride[1] + column * a->y_stride[2] + c, type, at.skip, n, y);
        }
    free(bands);
}

CLONED static void wavelet_task(const wavelet_args *a, int64_t task) {
    int64_t blocks = blocks_of(a->channels), b = task / blocks;
    block at = block_at(a->channels, task % blocks);
    if (a->type == BFLOAT16) wavelet_block(a, BFLOAT16, b, at, at.n);
    else if (at.n == LANES) wavelet_block(a, FLOAT32, b, at, LANES);
    else wavelet_block(a, FLOAT32, b, at, at.n);
}

void mobilemamba_wavelet(const wavelet_args *a) {
#pragma omp parallel for schedule(static) num_threads((int)a->threads)
    for (int64_t task = 0; task < a->batch * blocks_of(a->channels); task++) wavelet_task(a, task);
}
